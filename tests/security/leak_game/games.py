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
from typing import Any, Final, TypeAlias

from tests.security.leak_game.guessing import (
    Columns,
    Examination,
    Finding,
    Lazily,
    Told,
    compared,
    examine,
    follow,
    gathered,
)
from tests.security.leak_game.reader import Known
from tests.security.leak_game.world import by_delivery

Things: TypeAlias = tuple[Columns, Sequence[int], Sequence[str]]
"""What is known of each of some things, its class, and the name of what was decided together with it."""
Orders: TypeAlias = Iterator[tuple[str, str, bool]]
"""The name of what was decided together, an order, and whether it was right to guess by it."""
Trio: TypeAlias = tuple[str, int, int, int]
"""The consignment of a thing, the thing, another one of its arm, and one of another arm."""
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


def _trios(codes: Sequence[str], groups: Iterable[Sequence[str]], known: Known, others: Any) -> Iterator[Trio]:  # noqa: ANN401  # a choice of partners
    """Give, for each code of a group, a partner of its arm and one of another, out of its group."""
    chance = random.Random("partners")
    at = {code: number for number, code in enumerate(codes)}
    for group in groups:
        for code in group:
            fit = [other for other in group if other != code and others(code, other)]
            same = [other for other in fit if known.arm_of_kit[other] == known.arm_of_kit[code]]
            different = [other for other in fit if known.arm_of_kit[other] != known.arm_of_kit[code]]
            if same and different:
                of = known.consignment_of[code]
                yield of, at[code], at[chance.choice(same)], at[chance.choice(different)]


def _grouped(known: Known, codes: Iterable[str]) -> list[list[str]]:
    groups: dict[str, list[str]] = defaultdict(list)
    for code in codes:
        groups[known.consignment_of[code]].append(code)
    return list(groups.values())


def subjects(known: Known) -> Trios:
    """Subjects whose kits came out of one consignment, of different strata."""
    codes = known.allocated.keys
    level = {draw.kit_code: known.played.stratum_of[draw.subject][0] for draw in known.played.draws}
    trios = _trios(codes, _grouped(known, codes), known, lambda one, other: level[one] != level[other])
    return known.allocated.columns, len(codes), list(trios)


def kits_as_made(known: Known) -> Trios:
    """Kits of one consignment, by what they are born with."""
    codes = known.kits.keys
    trios = _trios(codes, _grouped(known, codes), known, lambda _one, _other: True)
    return known.kits.of_some(codes, _BORN), len(codes), list(trios)


def kits_left(known: Known) -> Trios:
    """Kits of one consignment, which others were given of, that nobody was given and that share their status: by everything."""
    given = {draw.kit_code for draw in known.played.draws}
    used = {known.consignment_of[code] for code in given}
    codes = [code for code in known.kits.keys if code not in given and known.consignment_of[code] in used]
    status = known.status_of
    trios = _trios(codes, _grouped(known, codes), known, lambda one, other: status[one] == status[other])
    return known.kits.of_some(codes), len(codes), list(trios)


def _paired(things: Callable[[Known], Trios], studies: Sequence[Known]) -> Examination:
    found = [things(known) for known in studies]
    columns = gathered([columns for columns, _, _ in found])
    ones, others, labels = array("l"), array("l"), array("b")
    clusters: list[str] = []
    begin = 0
    for _, size, trios in found:
        for of, third, same, different in trios:
            clusters.extend((f"{begin} {of}",) * 2)
            ones.extend((begin + third, begin + third))
            others.extend((begin + same, begin + different))
            labels.extend((1, 0))
        begin += size
    return Examination(Lazily(compared(columns, ones, others)), labels, _numbered(clusters))


# -- one of two, by what happened ----------------------------------------------------------------------------------------


def passed_over(known: Known) -> Orders:
    """Kits in stock when another one of their consignment was given: in which order did one come before it, one after?"""
    chance, columns = random.Random("passed over"), known.kits.columns
    orders = {name: columns[name] for name in columns if name.startswith(_BORN) and name.endswith(" within")}
    index = {code: int(known.kits.value(code, "kit map_index value")) for code in known.kits.keys}
    for draw in known.played.draws:
        of = known.consignment_of[draw.kit_code]
        at = {code: known.kits.at[code] for code in (draw.kit_code, *draw.stock.get(of, ()))}
        # The first time that the server's log names the place of a kit; what it does not name comes last.
        places = {place: order for order, place in reversed(list(enumerate(draw.places)))}
        told = {name: {code: values[at[code]] for code in at} for name, values in orders.items()}
        if index[draw.kit_code] in places:
            told["the log's order"] = {code: float(places.get(index[code], len(places))) for code in at}
        for name, values in told.items():
            yield from _around(known, f"{of} {name}", draw.kit_code, values, chance)


def other_consignments(known: Known) -> Orders:
    """Kits in stock at the site when another one was given: what tells of their consignments?"""
    chance, value = random.Random("other consignments"), known.consignments.value
    for draw in known.played.draws:
        of = known.consignment_of[draw.kit_code]
        stock = {code: known.consignment_of[code] for code in chain(*draw.stock.values())} | {draw.kit_code: of}
        for name in known.consignments.columns:
            values = {code: value(consignment, name) for code, consignment in stock.items()}
            yield from _around(known, f"{of} {name}", draw.kit_code, values, chance)


def _around(known: Known, name: str, given: str, values: Mapping[str, float], chance: random.Random) -> Orders:
    """Give whether, of one kit before and one after the given one, it is the former that is of another arm, if one alone is."""
    before = [code for code, value in values.items() if value < values[given]]
    after = [code for code, value in values.items() if value >= values[given] and code != given]
    if before and after:
        arms = known.arm_of_kit
        former, latter = (arms[chance.choice(some)] != arms[given] for some in (before, after))
        if former != latter:
            of, _, order = name.partition(" ")
            yield of, order, former


def refused(known: Known) -> Orders:
    """Two slots asked for at a site that was short, beside one that was refused there: were they refused too?"""
    chance = random.Random("refused")
    for (site, delivery), period in by_delivery(known.played.asked).items():
        outcome: dict[tuple[str, int], bool] = {}
        for one in period:
            outcome[one.slot] = outcome.get(one.slot, False) or one.is_refused
        arms = {slot: known.arm_of_place[slot] for slot in outcome}
        for slot in [slot for slot, is_refused in outcome.items() if is_refused]:
            same = [other for other in outcome if other != slot and arms[other] == arms[slot]]
            different = [other for other in outcome if arms[other] != arms[slot]]
            if same and different:
                like, unlike = outcome[chance.choice(same)], outcome[chance.choice(different)]
                if like != unlike:
                    yield f"{site}/{delivery}", "refused too", like


def _ordered(orders: Callable[[Known], Orders], studies: Sequence[Known]) -> Told:
    told: defaultdict[str, defaultdict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for at, known in enumerate(studies):
        for of, order, is_right in orders(known):
            told[order][f"{at} {of}"].append(0.5 if is_right else -0.5)
    return told


# -- what is no leak, and must be known ----------------------------------------------------------------------------------


def moment(studies: Sequence[Known]) -> dict[str, float]:
    """What a withdrawal tells by its moment: how often all, and which share, of what is left is not of the last subject's arm."""
    consignments = certain = left = other = 0
    for known in studies:
        last = {known.consignment_of[draw.kit_code]: draw.kit_code for draw in known.played.draws}
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
}
_ORDERS: Final[dict[str, Callable[[Known], Orders]]] = {
    "passed over": passed_over,
    "other consignments": other_consignments,
    "refused": refused,
}
GAMES: Final = (*_SINGLES, *_PAIRS, *_ORDERS)


def guess(game: str, learnt: Sequence[Known], asked: Sequence[Known]) -> Finding:
    """Return how well a game is played on some studies after others were learnt from."""
    if game in _SINGLES:
        return examine(_single(_SINGLES[game], learnt), _single(_SINGLES[game], asked))
    if game in _PAIRS:
        return examine(_paired(_PAIRS[game], learnt), _paired(_PAIRS[game], asked))
    return follow(_ordered(_ORDERS[game], learnt), _ordered(_ORDERS[game], asked))
