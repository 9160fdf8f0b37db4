"""What lies inside the sealed values of a slot, a kit and a binding: the bytes, and the leaf that was committed to.

Danger: every type here holds an arm. None prints itself, and none goes anywhere but into a seal, a proof or an unblinded answer.
"""

from dataclasses import dataclass, field
from datetime import date
from typing import Final

import msgspec

from app.domain.encoding import encode
from app.domain.merkle import salted_leaf
from app.domain.words import ArmCode, ConsignmentCode, KitCode, Mode, RandomizationNumber, StratumCode, StudyCode
from app.errors import SealBroken

SALT_SIZE: Final = 32


@dataclass(frozen=True, slots=True)
class SlotPlace:
    """Which slot of which list: everything of its leaf that is not secret (rule A8)."""

    study_code: StudyCode
    mode: Mode
    list_id: str
    segment_number: int
    stratum_code: StratumCode
    position: int


@dataclass(frozen=True, slots=True)
class SlotContents:
    """The inside of a slot."""

    arm_code: ArmCode = field(repr=False)
    block: int = field(repr=False)
    block_size: int = field(repr=False)
    randomization_number: RandomizationNumber
    salt: bytes = field(repr=False)

    def to_bytes(self) -> bytes:
        """Return what is sealed."""
        return b"".join(
            (
                self.salt,
                self.block.to_bytes(4, "big"),
                self.block_size.to_bytes(2, "big"),
                f"{self.randomization_number} {self.arm_code}".encode(),
            )
        )

    @classmethod
    def from_bytes(cls, opened: bytes) -> "SlotContents":
        """Return what ``to_bytes`` wrote."""
        number, _, arm_code = opened[SALT_SIZE + 6 :].decode().partition(" ")
        return cls(
            ArmCode(arm_code),
            int.from_bytes(opened[SALT_SIZE : SALT_SIZE + 4], "big"),
            int.from_bytes(opened[SALT_SIZE + 4 : SALT_SIZE + 6], "big"),
            RandomizationNumber(number),
            opened[:SALT_SIZE],
        )

    def leaf(self, place: SlotPlace) -> bytes:
        """Return the leaf of this slot in the commitment of its list."""
        content = encode(
            "slot",
            place.study_code,
            place.mode,
            place.list_id,
            place.segment_number,
            place.stratum_code,
            place.position,
            self.arm_code,
            self.block,
            self.block_size,
            self.randomization_number,
        )
        return salted_leaf(self.salt, content)


@dataclass(frozen=True, slots=True)
class KitContents:
    """The inside of a kit: its arm, and the lot and expiry that would tell it (rule B11)."""

    arm_code: ArmCode = field(repr=False)
    lot: str = field(repr=False)
    expires_on: date = field(repr=False)
    salt: bytes = field(repr=False)

    def to_bytes(self) -> bytes:
        """Return what is sealed."""
        return self.salt + msgspec.json.encode([self.arm_code, self.lot, self.expires_on])

    @classmethod
    def from_bytes(cls, opened: bytes) -> "KitContents":
        """Return what ``to_bytes`` wrote."""
        arm_code, lot, expires_on = msgspec.json.decode(opened[SALT_SIZE:], type=tuple[str, str, date])
        return cls(ArmCode(arm_code), lot, expires_on, opened[:SALT_SIZE])

    def leaf(self, study_code: StudyCode, mode: Mode, consignment_code: ConsignmentCode, kit_code: KitCode) -> bytes:
        """Return the leaf of this kit in the commitment of its consignment."""
        content = encode(
            "kit",
            study_code,
            mode,
            consignment_code,
            kit_code,
            self.arm_code,
            self.lot,
            self.expires_on.isoformat(),
        )
        return salted_leaf(self.salt, content)


@dataclass(frozen=True, slots=True)
class Binding:
    """What was bound to a subject at the moment of assigning: arm and treatment words (rule C3)."""

    arm_code: ArmCode = field(repr=False)
    treatment: str = field(repr=False)

    def to_bytes(self) -> bytes:
        """Return what is sealed."""
        return msgspec.json.encode([self.arm_code, self.treatment])

    @classmethod
    def from_bytes(cls, opened: bytes) -> "Binding":
        """Return what ``to_bytes`` wrote; raise ``SealBroken`` for anything else."""
        try:
            arm_code, treatment = msgspec.json.decode(opened, type=tuple[str, str])
        except msgspec.MsgspecError:
            raise SealBroken from None
        return cls(ArmCode(arm_code), treatment)
