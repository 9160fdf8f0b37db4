"""What stands beside a backup: of which deployment it is, how far its logs had come, and the hash of everything in it.

The hashes find what was damaged, not what was forged: who can write to the backup can write to this file too. Forgery is found by
the logs, which are held against checkpoints that somebody else keeps (rule E4).
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Final, Literal

import msgspec

from app.domain.words import Mode
from app.errors import Invalid

NOT_IN_IT: Final = (
    "the key file, or the key in Vault or OpenBao: without it everything sealed is noise",
    "escrows and recipients' keys",
    "the checkpoint file: kept with the backup it would prove nothing",
    "the code-break envelopes and the emergency desk's key",
    "settings, and on PostgreSQL roles and grants",
)
"""Said in every backup, so that nobody finds it out on the day it is needed."""

Engine = Literal["sqlite", "postgresql"]
MemberName = Literal["database.sqlite", "database.dump"]
MEMBERS: Final[Mapping[Engine, MemberName]] = {"sqlite": "database.sqlite", "postgresql": "database.dump"}
"""The one file that holds the database."""


class LogEnd(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How far a log had come: its origin, its size, and the base64 of its root, as in a checkpoint."""

    origin: str
    size: int
    root: str


class Member(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file of the backup; its name can be no path."""

    name: MemberName
    size: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that a backup says about itself."""

    snose_backup: Literal[1]
    product: str
    deployment_id: str
    mode: Mode
    engine: Engine
    engine_version: str
    schema_revision: str
    taken_at: datetime
    logs: tuple[LogEnd, ...]
    rows: dict[str, int]
    """How many rows each table has."""
    member: Member
    not_in_it: tuple[str, ...] = NOT_IN_IT

    def text(self) -> bytes:
        """Return the manifest as it is written: JSON for people too."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"


def parse_manifest(content: bytes) -> Manifest:
    """Return the manifest; raise ``Invalid`` for what is none, or of a later form than this release knows."""
    try:
        return msgspec.json.decode(content, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        message = "The manifest is damaged, or is that of no backup which this release knows."
        raise Invalid(message, "manifest") from None
