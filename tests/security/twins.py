"""Twins of a deployment that differ in nothing but arms, and the comparison of all that blinded people get from them (rule B2).

    first = play(url, folder, BASE)
    assert differences(first, play(other_url, folder, PERMUTED)) == []

Twin (a) has the labels of the arms permuted just before anything is sealed, in list and kit map, by a double in the tests. Twin (b)
has another list and another kit map; twin (c) other block sizes. Both go down to the floor in the same running counts as the first
(rule B2's note), and each subject's arm is another one.

What is compared byte by byte: status, headers in order, and body of every answer to a blinded person, to the administrator of the
service and to nobody known; the log lines; the metrics; the public trail. Kit codes and randomization numbers are renamed by first
appearance. A page of stock, and a receipt, are in the order of the codes, which are chance: they are compared as sets. What differs
by nature is masked field by field: ``MASKED`` is all of it.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

from app import main
from app.api import kits as kits_api
from app.api.doors import Context, Door
from app.api.schemas import StudyPath, SubjectPath
from app.domain import schedules
from app.domain.schedules import (
    ALGORITHM,
    BlockPlan,
    Fill,
    SlotPlan,
    Specification,
    StratumSpec,
    enumerate_strata,
    generate_stratum,
)
from app.domain.words import BLINDED_ROLES, Action, Arm, ArmCode, Mode, Role, StudyCode
from app.errors import StockInsufficient
from app.services import consignments, lists, stock
from app.services.audited import Act
from app.services.evidence import OpenedKit, open_kit
from app.storage import kits as stored_kits
from app.storage.kits import Assignable, SealedKit
from tests.harness import SeededEntropy
from tests.security.operations import Operation
from tests.security.script import ANONYMOUS, LIST_LENGTH, Exchange, listening, protocol_of, running
from tests.security.truth import KitTruth, open_kits
from tests.security.whole_script import WholePlay

# -- what differs between twins ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Twin:
    """What a deployment has of its own: its chance of arms, its block sizes, and whether labels are permuted."""

    name: str
    list_label: str = "first list"
    kit_label: str = "first kits"
    number_label: str = "first numbers"
    block_sizes: tuple[int, ...] = (4, 6, 8)
    is_permuted: bool = False
    fourth_is_like_third: bool = False
    """Which arm comes where the first twin is below the floor already: what a neutral refusal does not depend on."""


BASE: Final = Twin("first")
PERMUTED: Final = Twin("(a) labels permuted", is_permuted=True)
OTHER_CHANCE: Final = Twin(
    "(b) another list, another kit map", "second list", "second kits", "second numbers", fourth_is_like_third=True
)
OTHER_BLOCKS: Final = Twin("(c) other block sizes", "third list", block_sizes=(2, 8))
ALL_BUT_LABELS: Final = replace(
    OTHER_CHANCE,
    name="(b) and (c) another list of other block sizes, another kit map",
    block_sizes=OTHER_BLOCKS.block_sizes,
)
"""What tells (b) or (c) from the first tells this one too, and it is one play instead of two."""


class TwinEntropy(SeededEntropy):
    """Chance that is the same on every twin, but for the codes of kits and the numbers of slots."""

    def __init__(self, twin: Twin) -> None:
        super().__init__("all the rest")
        self._own = {
            "kit-code": SeededEntropy(twin.kit_label),
            "randomization-number": SeededEntropy(twin.number_label),
        }

    def draw(self, purpose: str, size: int) -> bytes:
        own = self._own.get(purpose)
        return super().draw(purpose, size) if own is None else own.draw(purpose, size)


class ChosenSeed:
    """The source of seeds of lists: one that was looked for."""

    def __init__(self, seed: bytes) -> None:
        self._seed = seed

    def draw(self, purpose: str, size: int) -> bytes:
        assert (purpose, size) == ("seed", len(self._seed))
        return self._seed


def chosen_seed(twin: Twin, length: int) -> bytes:
    """Return a seed of a twin whose list goes down to the floor as the script needs it.

    The consignment of the least size is used from the sixth last slot on. Its first two kits are one of each arm, so that the third
    is the last that the floor allows, whatever its arm.
    """
    begin = length - 6
    for number in range(10_000):
        seed = hashlib.sha256(f"{twin.list_label} {number}".encode()).digest()
        arms = [slot.arm_code for slot in _slots(twin, length, seed)][begin : begin + 4]
        if arms[0] != arms[1] and (arms[2] == arms[3]) == twin.fourth_is_like_third:
            return seed
    raise AssertionError(twin)


def _slots(twin: Twin, length: int, seed: bytes) -> Iterator[SlotPlan]:
    protocol = protocol_of(length)
    (stratum,) = enumerate_strata((), None, length)
    spec = Specification(
        StudyCode(protocol.study_code),
        Mode.TEST,
        "not part of the stream",
        0,
        ALGORITHM,
        tuple(Arm(**arm) for arm in protocol.arms),
        (),
        stratify_by_site=False,
        block_sizes=twin.block_sizes,
        block_size_weights=(1,) * len(twin.block_sizes),
        fill=Fill.EXACT,
        strata=(stratum,),
    )
    return generate_stratum(spec, stratum, seed)


@contextmanager
def permuted(length: int) -> Iterator[None]:
    """Swap the arms just before slots and kits are sealed, product and all; nothing in the service knows of it."""
    one, other = (ArmCode(arm["arm_code"]) for arm in protocol_of(length).arms)
    swapped = {one: other, other: one}
    generate, seal = schedules.generate_blocks, consignments._sealed

    def generate_swapped(spec: Specification, stratum: StratumSpec, seed: bytes) -> Iterator[BlockPlan]:
        for block in generate(spec, stratum, seed):
            yield block._replace(arm_codes=tuple(swapped[arm_code] for arm_code in block.arm_codes))

    def seal_swapped(act: Act, consignment_id: Any, code: Any, ordered: Sequence[Any]) -> Any:  # noqa: ANN401  # as it is
        product = {kit.arm_code: kit for kit in ordered}
        return seal(
            act,
            consignment_id,
            code,
            [replace(product[swapped[kit.arm_code]], kit_code=kit.kit_code) for kit in ordered],
        )

    with (
        patch.object(schedules, "generate_blocks", generate_swapped),
        patch.object(lists, "generate_blocks", generate_swapped),
        patch.object(consignments, "_sealed", seal_swapped),
    ):
        yield


# -- what came out of one ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recording:
    """Everything that was obtained from one twin, and the truth about its kits."""

    twin: Twin
    exchanges: Sequence[Exchange]
    log: Sequence[str]
    metrics: str
    bodies: Sequence[bytes]
    kits: Mapping[str, KitTruth] = field(repr=False)
    numbers: frozenset[str]
    package: bytes = field(repr=False)
    operations: Sequence[Operation] = field(repr=False)
    """Every operation of the document that the build gives."""

    @cached_property
    def outputs(self) -> tuple[Sequence[tuple[str, str]], "Masks"]:
        """Place and text of everything that must be equal on twins, in order, and what was masked in it."""
        masks = Masks()
        return list(comparable(self, masks)), masks


def play(
    url: str,
    folder: Path,
    twin: Twin,
    leak: Callable[[], AbstractContextManager[None]] | None = None,
    length: int = LIST_LENGTH,
) -> Recording:
    """Return what the script gets from a twin; ``leak`` puts a fault into the build, and plays the short script on it."""
    chance = {"entropy": TwinEntropy(twin), "list_entropy": ChosenSeed(chosen_seed(twin, length))}
    with (
        leak() if leak is not None else nullcontext(),
        permuted(length) if twin.is_permuted else nullcontext(),
        listening() as output,
        running(url, folder, **chance) as house,
    ):
        script = WholePlay.in_house(house, length)
        script.block_sizes, script.import_label = twin.block_sizes, twin.kit_label
        script.thorough = length > LIST_LENGTH
        package = b""
        if leak is None:
            package = script.run()
        else:
            script.run_short()
        found = open_kits(house.deployment, StudyCode(script.protocol.study_code))
        answered = [
            json.loads(one.body)
            for one in script.recorder.exchanges
            # An act whose COMMIT went unheard is answered by the next try, from store.
            if one.method == "POST" and one.status in {200, 201} and one.path.endswith("/allocations")
        ]
        numbers = frozenset(one["randomization_number"] for one in answered)
        return Recording(
            twin,
            script.recorder.exchanges,
            # A sealed service says which file it cannot read: the place is the test's own.
            [line.replace(str(folder), "...") for line in output.log()],
            output.metrics(),
            house.bodies(),
            found,
            numbers,
            package,
            script.operations() if leak is None else (),
        )


# -- what is masked ----------------------------------------------------------------------------------------------------

_HEX: Final = re.compile(r"[0-9a-f]{64}")
_BASE64: Final = re.compile(r"[A-Za-z0-9+/]{43}=|[A-Za-z0-9+/]{91}=")
_NOTE: Final = re.compile(r"(?:[^\n]+\n)+?([^\n]+)\n\n\u2014 [^ \n]+ ([^\n]+)\n")
_CHECKPOINT: Final = re.compile(r"[0-9]+ ([^ ]+) ([^ ]+)")
_ANY: Final = re.compile(r".+")

MASKED: Final[Mapping[str, re.Pattern[str]]] = {
    # salted commitments
    "commitment": _HEX,
    "items.commitment": _HEX,
    "items.after.commitment": _HEX,
    "export.body.after.commitment": _HEX,
    "trail.after.commitment": _HEX,
    # salted hashes of restricted parts, which tell specifications and quantities
    "export.body.restricted": _HEX,
    "trail.restricted": _HEX,
    # hashes over entries that hold one of those, and what is built of them
    "leaf_hash": _HEX,
    "items.leaf_hash": _HEX,
    "receipt.leaf_hash": _HEX,
    "items.receipt.leaf_hash": _HEX,
    "export.leaf_hash": _HEX,
    "root": _HEX,
    "from_root": _HEX,
    "to_root": _HEX,
    "proof": _HEX,
    # roots and signatures in signed notes and in headers
    "checkpoint#root": _BASE64,
    "checkpoint#signature": _BASE64,
    "text#root": _BASE64,
    "text#signature": _BASE64,
    "items.after.signature#root": _BASE64,
    "items.after.signature#signature": _BASE64,
    "export.body.after.signature#root": _BASE64,
    "export.body.after.signature#signature": _BASE64,
    "trail.after.signature#root": _BASE64,
    "trail.after.signature#signature": _BASE64,
    "items.after.logs.root": _BASE64,
    "trail.after.logs.root": _BASE64,
    "export.checkpoint#root": _BASE64,
    "export.checkpoint#signature": _BASE64,
    "header.audit-checkpoint#root": _BASE64,
    "header.audit-checkpoint#signature": _BASE64,
    # the answer at the emergency door, which is what its requester is unblinded by
    "code break.arm_code": _ANY,
    "code break.treatment": _ANY,
    "code break.receipt.leaf_hash": _HEX,
    # a code, under the seal of the service, that says where a page of stock ends
    "stock.next_cursor": _ANY,
}
"""Every field that is not compared, and the form that it must have: nothing but one hash or signature fits into it."""


@dataclass
class Masks:
    """Takes out what is masked, and counts where."""

    met: Counter[str] = field(default_factory=Counter)
    seen: dict[str, list[str]] = field(default_factory=dict)

    def apply(self, text: str, spots: Iterable[tuple[str, str]]) -> str:
        """Return a text without the values of masked fields; each must stand there no more often than its fields do."""
        fields = [(path, value) for path, value in spots if path in MASKED]
        counts = Counter(value for _, value in fields)
        for path, value in fields:
            assert MASKED[path].fullmatch(value), f"{path} holds something else than it should"
            self.met[path] += 1
            self.seen.setdefault(path, []).append(value)
        for value, count in counts.items():
            written = json.dumps(value, ensure_ascii=False)[1:-1]
            assert text.count(written) == count, f"{value} stands outside of its masked fields too"
            text = text.replace(written, "#")
        return text


def _spots(value: object, path: str) -> Iterator[tuple[str, str]]:
    """Give every string of a JSON value with the names that lead to it; notes are taken apart."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _spots(inner, f"{path}.{name}" if path else name)
    elif isinstance(value, list):
        for inner in value:
            yield from _spots(inner, path)
    elif isinstance(value, str):
        yield from _note_spots(value, path) if path.endswith(("checkpoint", "signature")) else [(path, value)]


def _note_spots(note: str, path: str) -> Iterator[tuple[str, str]]:
    match = _NOTE.fullmatch(note)
    assert match is not None
    yield from ((f"{path}#root", match[1]), (f"{path}#signature", match[2]))


def _is_json(exchange: Exchange) -> bool:
    kind = dict(exchange.headers).get("content-type", "")
    return bool(exchange.body) and kind.partition(";")[0] in {"application/json", "application/problem+json"}


def _body_spots(exchange: Exchange) -> Iterator[tuple[str, str]]:
    if "/trail/export" in exchange.path and exchange.status == 200:
        for line in exchange.body.splitlines():
            yield from _spots(json.loads(line), "export")
    elif _is_json(exchange):
        prefix = "code break" if is_code_break(exchange) else "stock" if is_stock(exchange) else ""
        yield from _spots(json.loads(exchange.body), prefix)
    elif exchange.path.endswith("/trail/checkpoint") and exchange.status == 200:
        yield from _note_spots(exchange.body.decode(), "text")


def is_code_break(exchange: Exchange) -> bool:
    return (exchange.method, exchange.status) == ("POST", 201) and exchange.path.endswith("/code-breaks")


def is_stock(exchange: Exchange) -> bool:
    return exchange.status == 200 and re.search(r"/sites/.*/(kits|call-backs)", exchange.path) is not None


# -- comparing ---------------------------------------------------------------------------------------------------------

_BLINDED: Final = frozenset({role.value for role in BLINDED_ROLES} | {ANONYMOUS, Role.SERVICE_ADMIN.value})
_CODE: Final = re.compile(r"(?<![A-Za-z0-9])[2-9A-HJKMNP-Z]{6}(?:[2-9A-HJKMNP-Z]{3})?(?![A-Za-z0-9])")
_RECEIVED: Final = re.compile(r'"received":\[[^\]]*\]')


@dataclass
class Names:
    """Kit codes and randomization numbers, named by first appearance."""

    codes: frozenset[str]
    given: dict[str, str] = field(default_factory=dict)

    def rename(self, text: str) -> str:
        """Return a text with names for codes; what was received is told in the order of the codes, and is a set."""

        def as_set(match: re.Match[str]) -> str:
            codes = json.loads(match[0].partition(":")[2])
            return json.dumps(sorted(self.given.get(code, "<kit nobody heard of>") for code in codes))

        def name(match: re.Match[str]) -> str:
            code = match[0]
            if code not in self.codes:
                return code
            return self.given.setdefault(code, f"<{'kit' if len(code) == 9 else 'number'} {len(self.given):05}>")

        return _CODE.sub(name, _RECEIVED.sub(as_set, text))

    def rename_stock(self, body: str) -> str:
        """Return a page of stock as a set: named kits by their names, the others alike."""
        page = json.loads(body)
        for item in page["items"]:
            item["kit_code"] = self.given.get(item["kit_code"], "<kit nobody heard of>")
        page["items"].sort(key=json.dumps)
        return json.dumps(page)


def comparable(recording: Recording, masks: Masks) -> Iterator[tuple[str, str]]:
    """Give place and text of everything that must be equal on twins, in order."""
    names = Names(frozenset(recording.kits) | recording.numbers)
    for exchange in recording.exchanges:
        if exchange.who.partition(" ")[0] in _BLINDED:
            yield names.rename(re.sub("cursor=[^&]+", "cursor=", exchange.place)), _text_of(exchange, names, masks)
    for body in recording.bodies:
        said = body.decode()
        yield "the public trail", names.rename(masks.apply(said, _spots(json.loads(said), "trail")))
    for line in recording.log:
        yield "a log line", names.rename(line)
    for line in recording.metrics.splitlines():
        yield "the metrics", line


def _text_of(exchange: Exchange, names: Names, masks: Masks) -> str:
    body = masks.apply(exchange.body.decode(), _body_spots(exchange))
    body = names.rename_stock(body) if is_stock(exchange) else names.rename(body)
    return f"{exchange.status}\n{_headers(exchange, masks)}\n\n{body}"


def _headers(exchange: Exchange, masks: Masks) -> str:
    lines = []
    for name, value in exchange.headers:
        spots: list[tuple[str, str]] = []
        if name == "audit-checkpoint":
            match = _CHECKPOINT.fullmatch(value)
            assert match is not None
            spots = [(f"header.{name}#root", match[1]), (f"header.{name}#signature", match[2])]
        lines.append(f"{name}: {masks.apply(value, spots)}")
    return "\n".join(lines)


def differences(one: Recording, other: Recording) -> list[str]:
    """Return what a blinded person could tell two twins apart by; empty when there is nothing (rule B1)."""
    first, second = one.outputs[0], other.outputs[0]
    found = [
        f"{place}\n{_around(text, other_text)}" if place == other_place else f"{place} against {other_place}"
        for (place, text), (other_place, other_text) in zip(first, second, strict=False)
        if (place, text) != (other_place, other_text)
    ]
    if len(first) != len(second):
        found.append(f"{len(first)} outputs against {len(second)}")
    return found


def _around(one: str, other: str) -> str:
    at = next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return f"  {one[max(0, at - 80) : at + 60]!r}\n  {other[max(0, at - 80) : at + 60]!r}"


# -- the choice of a kit -----------------------------------------------------------------------------------------------


def skipped_kits_tell(recording: Recording) -> float:
    """Return how often this guess is right: a kit that was passed over, in an order known from outside, is of another arm.

    Known from outside are the order of the codes and that of the row ids. A half is chance, give or take; 1 is full unblinding of
    every kit that was passed over. The better of the two orders counts (rule B5).
    """
    orders: list[Callable[[KitTruth], str]] = [lambda kit: kit.kit_code, lambda kit: str(kit.kit_id)]
    return max(_share_right(recording, order) for order in orders)


def _share_right(recording: Recording, order: Callable[[KitTruth], str]) -> float:
    right = guesses = 0
    gone: set[str] = set()
    for code in handled_kits(recording):
        if code in gone:
            continue
        gone.add(code)
        given = recording.kits[code]
        for kit in recording.kits.values():
            if (
                kit.consignment_code == given.consignment_code
                and kit.kit_code not in gone
                and order(kit) < order(given)
            ):
                guesses += 1
                right += kit.arm_code != given.arm_code
    return right / guesses


def handled_kits(recording: Recording) -> Iterator[str]:
    """Give the codes of kits as the service gave them to subjects, in order."""
    for exchange in recording.exchanges:
        if (exchange.method, exchange.status) == ("POST", 201) and re.search(
            r"/allocations$|/subjects/[^/]+/kits$|/replacement$", exchange.path
        ):
            yield json.loads(exchange.body)["kit_code"]


# -- leaky builds ------------------------------------------------------------------------------------------------------


@contextmanager
def lot_shown() -> Iterator[None]:
    """A build that shows a site the lot of a subject's kits."""
    door = Door("Leak")

    @door.get("/studies/{study}/subjects/{subject}/kits", Action.READ_SUBJECT_KITS)
    def list_kits_and_lots(study: StudyPath, subject: SubjectPath, ctx: Context) -> dict[str, Any]:
        """List a subject's kits, with their lots."""
        page = kits_api.list_subject_kits(study, subject, ctx)
        truth = open_kits(ctx.deployment, StudyCode(study))
        items = [{**item.model_dump(), "lot": truth[item.kit_code].lot} for item in page.items]
        return {"items": items, "next_cursor": None}

    with patch.object(main, "DOORS", (door, *main.DOORS)):
        yield


@contextmanager
def first_match() -> Iterator[None]:
    """A build that takes the first kit of the arm in the order of the codes."""

    def in_order_of_codes(act: Act, consignment: Assignable, _sample: int) -> Iterator[SealedKit]:
        found = stored_kits.list_in_stock(act.tx, act.study.study_id, consignment)
        yield from sorted(found, key=lambda kit: kit.kit_code)

    with patch.object(stock, "_in_random_order", in_order_of_codes):
        yield


class _OnlyWhatIsThere(dict[ArmCode, OpenedKit]):
    def __missing__(self, arm_code: ArmCode) -> OpenedKit:
        raise StockInsufficient


@contextmanager
def arm_dependent_refusal() -> Iterator[None]:
    """A build that refuses when the allocated arm is below its floor, whatever the other arms hold."""

    def arms_at_the_floor(
        act: Act, consignment: Assignable, _arms: Collection[ArmCode]
    ) -> dict[ArmCode, OpenedKit] | None:
        seen: Counter[ArmCode] = Counter()
        first: dict[ArmCode, OpenedKit] = {}
        for kit in stock._in_random_order(act, consignment, 100):
            opened = open_kit(act, kit)
            seen[opened.arm_code] += 1
            first.setdefault(opened.arm_code, opened)
        enough = {arm: kit for arm, kit in first.items() if seen[arm] >= act.study.stock_floor}
        return _OnlyWhatIsThere(enough) if enough else None

    with patch.object(stock, "_first_of_every_arm", arms_at_the_floor):
        yield
