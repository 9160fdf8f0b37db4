"""Making a list and checking it again: slot by slot, holding no more than a batch however long it is.

Made: the domain gives the slots from the seed, or they were imported; each gets a randomization number and a salt, is sealed for
its place, hashed into the tree of its stratum, and stored. Checked, at approval and at activation (SEQ-11): every slot is opened in
its place and compared with what the seed gives (an imported list has none), and the trees over what is stored lead to the
commitment on record.
"""

import json
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby, islice
from operator import itemgetter
from typing import Final
from uuid import UUID

from app.domain.codes import ALPHABET, RANDOMIZATION_NUMBER_LENGTH, draw_randomization_numbers
from app.domain.contents import SALT_SIZE, SlotContents, SlotPlace
from app.domain.encoding import canonical_json, encode
from app.domain.entropy import Entropy
from app.domain.imported_lists import ImportedList
from app.domain.merkle import Tile, salted_leaf, tiles, tree_root
from app.domain.schedules import (
    IMPORTED,
    BlockPlan,
    SlotPlan,
    Specification,
    StratumSpec,
    generate_blocks,
    generate_stratum,
    slots_per_stratum,
    validate,
)
from app.domain.sealed import Column, SealContext, Sealed
from app.domain.words import RandomizationNumber, StratumCode
from app.errors import IntegrityBroken, InvalidSpecification
from app.sealing.ring import Seal
from app.services.audited import Act
from app.services.evidence import slot_place
from app.storage import commitments, schedules
from app.storage.commitments import CommittedStratum
from app.storage.schedules import NewSlot, NewStratum, ScheduleHead

_SLOTS_AT_ONCE: Final = 16_384
_DRAWN_AT_ONCE: Final = 4096
_BASE: Final = len(ALPHABET)
_BODIES: Final = _BASE ** (RANDOMIZATION_NUMBER_LENGTH - 1)
_NOT_THE_LIST: Final = "The list as it is stored is not the list that was generated."
_DIGITS: Final = str.maketrans(ALPHABET, "0123456789abcdefghijklmnopqrst")

MOST_NUMBERS: Final = _BODIES // 2
"""How many randomization numbers all lists of a study may use: beyond it there would be too few gaps (rule B4)."""


class UsedNumbers:
    """The randomization numbers of a study, one bit for each there can be: 3 MB, where a set of a million takes 100."""

    def __init__(self) -> None:
        self._bits = bytearray(-(-_BODIES // 8))

    def take(self, number: str) -> bool:
        """Take in a well formed number, and return whether it was new."""
        # The check character follows from the others.
        byte, bit = divmod(int(number[:-1].translate(_DIGITS), _BASE), 8)
        if self._bits[byte] >> bit & 1:
            return False
        self._bits[byte] |= 1 << bit
        return True


def _numbers(entropy: Entropy, used: UsedNumbers, count: int) -> Iterator[RandomizationNumber]:
    """Yield so many new numbers, drawn in batches."""
    while count:
        drawn = draw_randomization_numbers(entropy, min(_DRAWN_AT_ONCE, count), frozenset())
        new = [number for number in drawn if used.take(number)]
        count -= len(new)
        yield from new


def _salts(entropy: Entropy) -> Iterator[bytes]:
    while True:
        drawn = entropy.draw("slot salt", SALT_SIZE * _DRAWN_AT_ONCE)
        for start in range(0, len(drawn), SALT_SIZE):
            yield drawn[start : start + SALT_SIZE]


# -- making ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ListMaker:
    """Seals, hashes and stores the slots of one list.

    ``slots`` gives them in order; ``waiting`` holds the tiles of finished hashes until they can be stored, ``strata`` the roots
    of the strata gone by.
    """

    act: Act
    specification: Specification
    schedule_id: UUID
    stratum_ids: Mapping[StratumCode, UUID]
    seed: bytes = field(repr=False)
    """Empty for an imported list."""
    used: UsedNumbers
    imported: ImportedList | None = field(default=None, repr=False)
    waiting: list[tuple[UUID, Tile]] = field(default_factory=list)
    strata: list[NewStratum] = field(default_factory=list)

    def store(self) -> int:
        """Store every slot with its tiles, and return how many slots they are."""
        tx, study = self.act.tx, self.act.study
        key_version = self.act.deployment.ring.newest_version(study.study_code)
        slots = self.slots()
        count = 0
        # While slots are being copied the connection can do nothing else, so tiles wait until the end of their batch.
        while stored := schedules.add_slots(
            tx, study.study_id, self.schedule_id, key_version, islice(slots, _SLOTS_AT_ONCE)
        ):
            count += stored
            for tree_id, of_tree in groupby(self.waiting, key=itemgetter(0)):
                commitments.add_tiles(tx, study.study_id, tree_id, (tile for _, tile in of_tree))
            self.waiting.clear()
        return count

    def slots(self) -> Iterator[NewSlot]:
        """Yield the slots of all strata, sealed."""
        spec, deployment = self.specification, self.act.deployment
        total = sum(slots_per_stratum(spec, stratum) for stratum in spec.strata)
        given = () if self.imported is None else self.imported.numbers
        numbers = iter(given) if given else _numbers(deployment.entropy, self.used, total)
        salts = _salts(deployment.entropy)
        seal = deployment.ring.sealer_for(Column.SLOT, spec.study_code)
        for stratum in spec.strata:
            yield from self._stratum(stratum, numbers, salts, seal)

    def _blocks(self, stratum: StratumSpec) -> Iterable[BlockPlan]:
        if self.imported is not None:
            return self.imported.blocks[stratum.stratum_code]
        return generate_blocks(self.specification, stratum, self.seed)

    def _stratum(
        self, stratum: StratumSpec, numbers: Iterator[RandomizationNumber], salts: Iterator[bytes], seal: Seal
    ) -> Iterator[NewSlot]:
        """Yield the slots of a stratum, 256 at once: so many make a tile."""
        spec, stratum_id, tree_id = (
            self.specification,
            self.stratum_ids[stratum.stratum_code],
            self.act.deployment.new_id(),
        )
        schedule, of_stratum, _ = slot_place(self.schedule_id, stratum_id, 0)
        # Fields encoded one after the other are the fields encoded together, so what comes again is encoded once.
        head = encode("slot", spec.study_code, spec.mode, spec.list_id, spec.segment_number, stratum.stratum_code)
        of_arm = {arm.arm_code: encode(arm.arm_code) for arm in spec.arms}
        sealed: list[NewSlot] = []

        def leaves() -> Iterator[bytes]:
            position = 0
            for block, block_size, arm_codes in self._blocks(stratum):
                of_block = encode(block, block_size)
                for arm_code in arm_codes:
                    number, salt = next(numbers), next(salts)
                    contents = SlotContents(arm_code, block, block_size, number, salt).to_bytes()
                    token = seal((schedule, of_stratum, position), contents)
                    sealed.append(NewSlot(stratum_id, position, number, token))
                    yield salted_leaf(salt, head + encode(position) + of_arm[arm_code] + of_block + encode(number))
                    position += 1

        tree = _Rooted(tiles(leaves()))
        for tile in tree:
            self.waiting.append((tree_id, tile))
            yield from sealed
            sealed.clear()
        self.strata.append(NewStratum(stratum_id, tree_id, slots_per_stratum(spec, stratum), tree.root))


class _Rooted:
    """Tiles one after the other, and then their root."""

    def __init__(self, source: Generator[Tile, None, bytes]) -> None:
        self._source = source
        self.root = b""

    def __iter__(self) -> Iterator[Tile]:
        self.root = yield from self._source


def commitment_of(specification: Specification, salt: bytes, roots: list[bytes]) -> str:
    """Return the root over the salted specification and the strata in order, in hexadecimal digits (rule A8)."""
    return tree_root([salted_leaf(salt, canonical_json(specification.document())), *roots]).hex()


def place_of(schedule_id: UUID) -> tuple[str]:
    """Return what binds what is sealed of a list to its row."""
    return (str(schedule_id),)


# -- checking ----------------------------------------------------------------------------------------------------------


def open_specification(act: Act, schedule_id: UUID, sealed: Sealed) -> Specification:
    """Return the specification of a list. Danger: it tells the block sizes (rule B7)."""
    context = SealContext(Column.SPECIFICATION, act.study.study_code, place_of(schedule_id))
    return Specification.from_document(json.loads(act.deployment.ring.open(context, sealed)))


def check_list(act: Act, head: ScheduleHead) -> None:
    """Return when the stored list is, slot by slot, what its specification and seed give and what was committed to.

    Nobody can compute an imported list anew: it is what was committed to, which the trail has told since it came.

    Raises ``IntegrityBroken`` for a slot that was swapped, moved, changed, added or left out, for changed numbers, roots or tiles,
    and for what nobody could have generated at all (SEQ-11, CUS-10).
    """
    try:
        _check_list(act, head)
    except (ArithmeticError, LookupError, TypeError, ValueError, InvalidSpecification):
        raise IntegrityBroken(_NOT_THE_LIST) from None


def _check_list(act: Act, head: ScheduleHead) -> None:
    study, ring = act.study, act.deployment.ring
    kept = commitments.get_list_commitment(act.tx, study.study_id, head.schedule_id)
    spec = open_specification(act, head.schedule_id, kept.sealed_specification)
    validate(spec)
    _require((spec.list_id, spec.segment_number) == (str(head.list_id), head.segment_number))
    context = SealContext(Column.SEED, study.study_code, place_of(head.schedule_id))
    secrets = ring.open(context, kept.sealed_seed)
    seed, salt = secrets[:-SALT_SIZE], secrets[-SALT_SIZE:]
    # What a list is said to be in clear is what its sealed specification says, and what is sealed as its seed.
    is_imported = head.origin == IMPORTED
    _require((head.algorithm == IMPORTED, spec.algorithm == IMPORTED, not seed) == (is_imported,) * 3)
    codes = {stratum_id: code for code, stratum_id in schedules.list_strata(act.tx, study.study_id).items()}
    _require([codes.get(stratum.stratum_id) for stratum in kept.strata] == [s.stratum_code for s in spec.strata])
    for stratum, committed in zip(spec.strata, kept.strata, strict=True):
        _check_stratum(act, head, committed, _Expected(spec, stratum, seed))
    _require(commitment_of(spec, salt, [stratum.root for stratum in kept.strata]) == head.commitment)


@dataclass(frozen=True, slots=True)
class _Expected:
    """What a stratum must hold."""

    specification: Specification
    stratum: StratumSpec
    seed: bytes = field(repr=False)

    def place(self, position: int) -> SlotPlace:
        """Return what the leaf of a slot says of its place."""
        spec = self.specification
        code = self.stratum.stratum_code
        return SlotPlace(spec.study_code, spec.mode, spec.list_id, spec.segment_number, code, position)

    def slots(self) -> Iterator[tuple[int, SlotPlan | None]]:
        """Yield every position with what the seed gives there, or None without a seed."""
        if self.seed:
            yield from ((plan.position, plan) for plan in generate_stratum(self.specification, self.stratum, self.seed))
        else:
            yield from ((position, None) for position in range(slots_per_stratum(self.specification, self.stratum)))


def _check_stratum(act: Act, head: ScheduleHead, committed: CommittedStratum, expected: _Expected) -> None:
    study_id = act.study.study_id
    tree = _Rooted(tiles(_stored_leaves(act, head, committed, expected)))
    for tile in tree:
        _require(commitments.get_tile(act.tx, study_id, committed.tree_id, tile.level, tile.index) == tile.hashes)
    _require(tree.root == committed.root)
    _require(committed.slot_count == slots_per_stratum(expected.specification, expected.stratum))


def _stored_leaves(act: Act, head: ScheduleHead, committed: CommittedStratum, expected: _Expected) -> Iterator[bytes]:
    """Yield the leaves of the slots as they are stored, each after it was compared with what is known of it."""
    open_slot = act.deployment.ring.opener_for(Column.SLOT, act.study.study_code)
    stored = schedules.list_slots(act.tx, act.study.study_id, head.schedule_id, committed.stratum_id)
    for expected_position, planned in expected.slots():
        position, number, token = next(stored, (-1, "", ""))
        _require(position == expected_position)
        contents = SlotContents.from_bytes(
            open_slot(slot_place(head.schedule_id, committed.stratum_id, position), token)
        )
        found = SlotPlan(position, contents.arm_code, contents.block, contents.block_size)
        _require(planned in {None, found} and contents.randomization_number == number)
        yield contents.leaf(expected.place(position))
    _require(next(stored, None) is None)


def _require(fits: bool) -> None:
    if not fits:
        raise IntegrityBroken(_NOT_THE_LIST)
