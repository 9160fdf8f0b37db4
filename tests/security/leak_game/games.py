"""What the reader is asked: the arm of a kit, of a slot, of an allocation; and which of two shares the arm of a third.

Where one of two is to be chosen, one of them has the arm and the other has not, so that a half is chance however the arms are
mixed. The two come out of the same consignment, and subjects out of other strata than the third: that permuted blocks can be
counted along, and that the *moment* of a withdrawal tells counts, are stated limits of the design and no leak.
"""

import random
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Final, TypeAlias

from tests.security.leak_game.guessing import (
    Columns,
    Examination,
    Finding,
    Lazily,
    Tally,
    Told,
    compared,
    examine,
    follow,
    gathered,
)
from tests.security.leak_game.reader import Known

Things: TypeAlias = tuple[Columns, Sequence[int], Sequence[str]]
"""What is known of each of some things, its class, and the name of what was decided together with it."""
Orders: TypeAlias = Iterator[tuple[str, str, float, float]]
"""The name of what was decided together, an order, and the chances that it was right and that it was wrong to guess by it."""
Trio: TypeAlias = tuple[str, int, int, int]
"""What was decided together with a thing, the thing, another one of its arm, and one of another arm."""
Trios: TypeAlias = tuple[Columns, int, list[Trio]]
"""What is known of things, how many they are, and which of them are compared."""
_BORN: Final = ("kit kit_id", "kit kit_code", "kit map_index", "kit sealed", "kit system rowid")
"""What a kit is born with."""


# -- one thing -----------------------------------------------------------------------------------------------------------


def kits(known: Known) -> Things:
    """Every kit, by everything that is known of it."""
    codes = known.kits.keys
    clusters = [known.consignment_of[code] for code in codes]
    return known.kits.columns, [known.arm_of_kit[code] for code in codes], clusters


def slots(known: Known) -> Things:
    """Every slot, used or not."""
    places = known.slots.keys
    return known.slots.columns, [known.arm_of_slot[place] for place in places], list(map(str, places))


def allocations(known: Known) -> Things:
    """Every allocation: its rows, its kit, its entry, its answer, and what its request moved."""
    codes = known.allocated.keys
    return known.allocated.columns, [known.arm_of_kit[code] for code in codes], codes


def _single(things: Callable[[Known], Things], studies: Sequence[Known]) -> Examination:
    found = [things(known) for known in studies]
    clusters = _numbered(f"{at} {cluster}" for at, (_, _, clusters) in enumerate(found) for cluster in clusters)
    labels = list(chain(*(labels for _, labels, _ in found)))
    return Examination(gathered([columns for columns, _, _ in found]), labels, clusters)


def _numbered(names: Iterable[str]) -> list[int]:
    numbers: dict[str, int] = {}
    return [numbers.setdefault(name, len(numbers)) for name in names]


# -- one of two, by what they have in common with a third ----------------------------------------------------------------


def _trios(
    groups: Mapping[str, Sequence[int]], arms: Sequence[int], fits: Callable[[int, int], bool], most: int = 1
) -> list[Trio]:
    """Return, for each thing of a group, up to ``most`` partners of its arm and as many of another, out of its group."""
    chance = random.Random("partners")
    trios: list[Trio] = []
    for name, group in groups.items():
        for one in group:
            fit = [other for other in group if other != one and fits(one, other)]
            same = [other for other in fit if arms[other] == arms[one]]
            different = [other for other in fit if arms[other] != arms[one]]
            for _ in range(min(most, len(same), len(different))):
                chosen = same.pop(chance.randrange(len(same))), different.pop(chance.randrange(len(different)))
                trios.append((name, one, *chosen))
    return trios


def _by_consignment(known: Known, codes: Sequence[str]) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = defaultdict(list)
    for at, code in enumerate(codes):
        groups[known.consignment_of[code]].append(at)
    return groups


def _arms(known: Known, codes: Sequence[str]) -> list[int]:
    return [known.arm_of_kit[code] for code in codes]


def subjects(known: Known) -> Trios:
    """Subjects whose kits came out of one consignment, of different strata."""
    codes = known.allocated.keys
    level_of = {draw.kit_code: known.stratum_of[draw.subject][0] for draw in known.draws}
    levels = [level_of[code] for code in codes]
    groups = _by_consignment(known, codes)
    trios = _trios(groups, _arms(known, codes), lambda one, other: levels[one] != levels[other])
    return known.allocated.columns, len(codes), trios


def kits_as_made(known: Known) -> Trios:
    """Kits of one consignment, by what they are born with."""
    codes = known.kits.keys
    trios = _trios(_by_consignment(known, codes), _arms(known, codes), lambda _one, _other: True)
    return known.kits.of_some(codes, _BORN), len(codes), trios


def kits_left(known: Known) -> Trios:
    """Kits of one consignment, which others were given of, that nobody was given and that share their status: by everything.

    They are few, so each is compared several times.
    """
    given = {draw.kit_code for draw in known.draws}
    used = {known.consignment_of[code] for code in given}
    codes = [code for code in known.kits.keys if code not in given and known.consignment_of[code] in used]
    status = [known.status_of[code] for code in codes]
    groups = _by_consignment(known, codes)
    trios = _trios(groups, _arms(known, codes), lambda one, other: status[one] == status[other], most=4)
    return known.kits.of_some(codes), len(codes), trios


def refused(known: Known) -> Trios:
    """Slots of different strata asked for at one site while it drew from one consignment, or from none, from a refusal on.

    Had each arm a stock of its own, those refused beside a given one would be of the arm that is short.
    """
    places = known.asked.keys
    level = [place[1] for place in places]
    groups: dict[str, list[int]] = defaultdict(list)
    for at, (period, _, _) in enumerate(places):
        groups[period].append(at)
    arms = [known.arm_of_place[place[1:]] for place in places]
    trios = _trios(groups, arms, lambda one, other: level[one] != level[other], most=16)
    return known.asked.columns, len(places), trios


def _paired(things: Callable[[Known], Trios], studies: Sequence[Known]) -> Examination:
    found = [things(known) for known in studies]
    columns = gathered([columns for columns, _, _ in found])
    ones, others, labels = array("l"), array("l"), array("b")
    clusters: list[str] = []
    begin = 0
    for _, size, trios in found:
        for of, third, same, different in trios:
            # Pairs share things, and things their consignment: what one consignment tells counts as one piece of evidence.
            clusters.extend((f"{begin} {of}",) * 2)
            ones.extend((begin + third, begin + third))
            others.extend((begin + same, begin + different))
            labels.extend((1, 0))
        begin += size
    return Examination(Lazily(compared(columns, ones, others)), labels, _numbered(clusters))


# -- one of two, by what happened ----------------------------------------------------------------------------------------


def passed_over(known: Known) -> Orders:
    """Kits in stock when another one of their consignment was given: in which order did one come before it, one after?"""
    columns, arms = known.kits.columns, known.arm_of_kit
    orders = {name: columns[name] for name in columns if name.startswith(_BORN) and name.endswith(" within")}
    index = {code: int(known.kits.value(code, "kit map_index value")) for code in known.kits.keys}
    for draw in known.draws:
        given, of = draw.kit_code, known.consignment_of[draw.kit_code]
        stock = [code for code in draw.stock.get(of, ()) if code != given]
        others = [(1, arms[code] != arms[given]) for code in stock]
        at, limit = [known.kits.at[code] for code in stock], known.kits.at[given]
        for name, values in orders.items():
            yield from _around(of, name, values[limit], [values[one] for one in at], others)
        # The first time that the server's log names the place of a kit; what it does not name comes last.
        places = {place: order for order, place in reversed(list(enumerate(draw.places)))}
        if index[given] in places:
            told = [float(places.get(index[code], len(places))) for code in stock]
            yield from _around(of, "the log's order", float(places[index[given]]), told, others)


def other_consignments(known: Known) -> Orders:
    """Kits in stock at the site when one was given: what tells of their consignments?

    The given one is among them: without it, what is left of its consignment is of the other arm the more often.
    """
    at, arms = known.consignments.at, known.arm_of_kit
    for draw in known.draws:
        given, of = draw.kit_code, known.consignment_of[draw.kit_code]
        others = [(len(codes), sum(arms[code] != arms[given] for code in codes)) for codes in draw.stock.values()]
        places = [at[name] for name in draw.stock]
        for name, values in known.consignments.columns.items():
            yield from _around(of, name, values[at[of]], [values[place] for place in places], others)


def _around(of: str, order: str, limit: float, values: Sequence[float], others: Sequence[tuple[int, int]]) -> Orders:
    """Give how likely it is that, of one kit before and one after the given one, the former alone is of another arm, or the latter.

    ``others`` says of how many kits each value is, and how many of them are of another arm than the given one. One before and one
    after are drawn evenly; nothing is drawn here: the chances are those of all such pairs.
    """
    all_before = all_after = different_before = different_after = 0
    for value, (count, different) in zip(values, others, strict=True):
        if value < limit:
            all_before += count
            different_before += different
        else:
            all_after += count
            different_after += different
    if all_before and all_after:
        former, latter = different_before / all_before, different_after / all_after
        right, wrong = former * (1 - latter), latter * (1 - former)
        if right or wrong:
            yield of, order, right, wrong


def _ordered(orders: Callable[[Known], Orders], studies: Sequence[Known]) -> Told:
    told: defaultdict[str, defaultdict[str, Tally]] = defaultdict(lambda: defaultdict(Tally))
    for at, known in enumerate(studies):
        for of, order, right, wrong in orders(known):
            told[order][f"{at} {of}"].add(right, wrong)
    return told


# -- what is no leak, and must be known ----------------------------------------------------------------------------------


def moment(studies: Sequence[Known]) -> dict[str, float]:
    """What a withdrawal tells by its moment: how often all, and which share, of what is left is not of the last subject's arm."""
    consignments = certain = left = other = 0
    for known in studies:
        last = {known.consignment_of[draw.kit_code]: draw.kit_code for draw in known.draws}
        for code in known.withdrawn:
            remaining = [
                known.arm_of_kit[kit]
                for kit, of in known.consignment_of.items()
                if of == code and known.status_of[kit] == "in_stock"
            ]
            if code in last and remaining:
                different = sum(arm != known.arm_of_kit[last[code]] for arm in remaining)
                consignments += 1
                certain += different == len(remaining)
                left += len(remaining)
                other += different
    return {
        "consignments": consignments,
        "told for certain": certain / max(1, consignments),
        "of another arm": other / max(1, left),
    }


# -- all of them ---------------------------------------------------------------------------------------------------------

_SINGLES: Final[dict[str, Callable[[Known], Things]]] = {"kits": kits, "slots": slots, "allocations": allocations}
_PAIRS: Final[dict[str, Callable[[Known], Trios]]] = {
    "pairs of subjects": subjects,
    "pairs of kits as made": kits_as_made,
    "pairs of kits left": kits_left,
    "refused": refused,
}
_ORDERS: Final[dict[str, Callable[[Known], Orders]]] = {
    "passed over": passed_over,
    "other consignments": other_consignments,
}
GAMES: Final = (*_SINGLES, *_PAIRS, *_ORDERS)


def guess(game: str, learnt: Sequence[Known], asked: Sequence[Known]) -> Finding:
    """Return how well a game is played on some studies after others were learnt from."""
    if game in _SINGLES:
        return examine(_single(_SINGLES[game], learnt), _single(_SINGLES[game], asked))
    if game in _PAIRS:
        return examine(_paired(_PAIRS[game], learnt), _paired(_PAIRS[game], asked))
    return follow(_ordered(_ORDERS[game], learnt), _ordered(_ORDERS[game], asked))
