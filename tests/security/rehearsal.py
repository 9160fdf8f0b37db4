"""What an owner of the database does to it, and what the service and the verifier then say; all of it rolled back again.

    world = World.open(house, play)
    with world.rehearsal() as rehearsal:
        rehearsal.change("arm", {"arm_code": "PLACEBO"}, treatment="Something else")
        rehearsal.break_code_of("01-0001")              # raises RevealUnavailable

Each rehearsal is one transaction of an own connection: the triggers of the table are dropped, rows are changed, and the service, in
a process that has just begun, works in savepoints of the same transaction. Its sink is a copy.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch
from uuid import UUID, uuid4

from sqlalchemy import Connection, Table, and_, delete, insert, select, text, update

from app.domain.sealed import SealContext
from app.domain.words import Action, KitCode, ReasonCode, Role, SiteCode, StudyCode
from app.errors import DatabaseUnavailable
from app.policy import Decision
from app.sealing.providers import KeyFileProvider
from app.services import allocations, audited, kits, lists, people, startup, trail, unblinding
from app.services.allocations import AllocationRequest
from app.services.audited import Act
from app.services.checkpoints import CheckpointKeeper
from app.services.commitments import CommitmentKeeper
from app.services.context import Deployment, RequestContext, token_digest_of
from app.services.exports import export_lines
from app.services.final_package import FinalPackage
from app.services.noise import NoiseMeter
from app.services.startup import Surroundings
from app.services.trail import TrailQuery
from app.services.unblinding import CodeBreakRequest
from app.storage import schedules, studies, tables
from app.storage.database import Database, Transaction
from app.storage.sink import FileSink
from app.verifier import Report, verify_package, verify_trail
from tests.harness import House
from tests.security.script import Play
from tests.security.truth import KitTruth, SlotTruth, open_kits, open_slots

Row = dict[str, Any]
_ACTOR_OF: Final = {
    Action.BREAK_CODE: Role.INVESTIGATOR,
    Action.ALLOCATE: Role.INVESTIGATOR,
    Action.ASSIGN_KIT: Role.PHARMACIST,
    Action.READ_PREPARATION: Role.UNBLINDED_PHARMACIST,
    Action.READ_RESTRICTED: Role.SAFETY_OFFICER,
    Action.READ_SAFETY_UNBLINDINGS: Role.SAFETY_OFFICER,
    Action.READ_TRAIL: Role.INSPECTOR,
    Action.READ_PROOF: Role.INSPECTOR,
    Action.STEP_UP: Role.MONITOR,
}


class SavepointDatabase(Database):
    """A database whose transactions are savepoints of one that is rolled back at the end."""

    def begin(self) -> Connection:
        self._connection = self.engine.connect()
        self._connection.begin()
        if not self.is_postgresql:
            # An owner's connection need not check them; here they would be checked at the COMMIT that never comes.
            self._connection.exec_driver_sql("PRAGMA defer_foreign_keys = ON")
        return self._connection

    def end(self) -> None:
        self._connection.rollback()
        self._connection.close()

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        savepoint = self._connection.begin_nested()
        tx = Transaction(self._connection)
        try:
            yield tx
        except BaseException:
            savepoint.rollback()
            raise
        if tx.is_broken:
            savepoint.rollback()
            raise DatabaseUnavailable
        savepoint.commit()


@dataclass(frozen=True)
class World:
    """A deployment in the middle of a trial, its rows as they are, and the truth about them."""

    house: House
    play: Play
    database: SavepointDatabase
    study: StudyCode
    study_id: UUID
    slots: Sequence[SlotTruth]
    kits: Mapping[str, KitTruth]
    rows: Mapping[str, Sequence[Row]]
    folder: Path
    treatments: Mapping[str, str]

    @classmethod
    def open(cls, house: House, play: Play, folder: Path) -> "World":
        study = StudyCode(play.protocol.study_code)
        with house.deployment.database.transaction() as tx:
            rows = {
                table.name: [
                    dict(row._mapping) for row in tx.execute(select(table).order_by(*table.primary_key.columns))
                ]
                for table in tables.metadata.sorted_tables
            }
        study_id = next(row["study_id"] for row in rows["study"] if row["study_code"] == study)
        return cls(
            house,
            play,
            SavepointDatabase(house.settings.url()),
            study,
            study_id,
            open_slots(house.deployment, study),
            open_kits(house.deployment, study),
            {name: [row for row in found if row.get("study_id", study_id) == study_id] for name, found in rows.items()},
            folder,
            {arm["arm_code"]: arm["treatment"] for arm in play.protocol.arms},
        )

    @contextmanager
    def rehearsal(self) -> Iterator["Rehearsal"]:
        connection = self.database.begin()
        try:
            # Nobody else is here for whom a second try would wait.
            with patch.object(audited, "_FIRST_PAUSE", 0):
                yield Rehearsal(self, connection, self._started())
        finally:
            self.database.end()

    def _started(self) -> Deployment:
        """Return the service as a process that has just begun, with a copy of the sink."""
        base = self.house.deployment
        sink = self.folder / "sink-of-a-rehearsal.jsonl"
        shutil.copyfile(self.house.settings.checkpoint_file, sink)
        return replace(
            base,
            database=self.database,
            checkpoints=CheckpointKeeper(base.signing, FileSink(sink), base.ring),
            commitments=CommitmentKeeper(base.deployment_id, base.ring, base.signing),
            noise=NoiseMeter(),
            factors={},
        )

    def close(self) -> None:
        self.database.close()


@dataclass
class Rehearsal:
    """One tampering, and the service that meets it."""

    world: World
    connection: Connection
    deployment: Deployment
    opened: set[str] = field(default_factory=set)
    numbers: Iterator[int] = field(default_factory=lambda: iter(range(1, 1000)))

    # -- the owner of the database

    def _let_change(self, table: str) -> None:
        if table in self.opened:
            return
        self.opened.add(table)
        if self.world.database.is_postgresql:
            self.connection.execute(text(f'ALTER TABLE "{table}" DISABLE TRIGGER ALL'))
            return
        names = text("SELECT name FROM sqlite_master WHERE type = 'trigger' AND tbl_name = :table")
        for (name,) in self.connection.execute(names, {"table": table}).all():
            self.connection.execute(text(f'DROP TRIGGER "{name}"'))

    def change(self, table: str, row: Row, **values: object) -> None:
        """Change a row, whatever the triggers say."""
        self._let_change(table)
        changed = self.connection.execute(update(_table(table)).where(_is_row(table, row)).values(**values))
        assert changed.rowcount == 1

    def swap(self, table: str, one: Row, other: Row, *columns: str) -> None:
        """Exchange columns of two rows, past the constraints that keep them apart."""
        taken = {column: _placeholder(one[column]) for column in columns}
        self.change(table, one, **taken)
        self.change(table, other, **{column: one[column] for column in columns})
        self.change(table, {**one, **taken}, **{column: other[column] for column in columns})

    def delete(self, table: str, row: Row) -> None:
        self._let_change(table)
        self.connection.execute(delete(_table(table)).where(_is_row(table, row)))

    def insert(self, table: str, row: Row) -> None:
        self._let_change(table)
        self.connection.execute(insert(_table(table)).values(**row))

    # -- the service

    def context(self, action: Action, role: Role | None = None) -> RequestContext:
        who = self.world.play.people[role or _ACTOR_OF[action]][0]
        digest = token_digest_of(who.token)
        now = self.deployment.clock()
        session = tables.session
        fresh = update(session).where(session.c.token_digest == digest).values(proof_at=now, proof_spent_at=None)
        self.connection.execute(fresh)
        return RequestContext(self.deployment, action, digest, uuid4().hex, "test", "POST", f"/{action}")

    def start(self) -> None:
        """Do what a process does when it begins: open the keys, and compare every log with the sink."""
        provider = KeyFileProvider(self.world.house.settings.key_file, self.deployment.entropy)
        sink = FileSink(self.world.house.settings.checkpoint_file)
        around = Surroundings(
            self.world.database, provider, sink, self.deployment.limits, entropy=self.deployment.entropy
        )
        started = startup.unseal(around, self.deployment.mode)
        with self.world.database.transaction() as tx:
            for head in studies.list_studies(tx):
                # A damaged key shuts its own study only: the first request there takes the key in, as the door does.
                for version, wrapped in studies.list_study_keys(tx, head.study_id):
                    started.ring.add_study_key(head.study_code, version, wrapped)
        self.deployment.checkpoints.suspicions = started.checkpoints.suspicions

    def break_code_of(self, subject: str) -> None:
        """Break the code of a subject; what is told must be the truth."""
        wanted = CodeBreakRequest(subject, None, ReasonCode.OVERDOSE, None)
        told = unblinding.break_code(self.context(Action.BREAK_CODE), self.world.study, wanted)
        self._check_told(told.arm_code, told.treatment, self._true_arm(subject))

    def break_kit(self, kit_code: str) -> None:
        wanted = CodeBreakRequest(None, KitCode(kit_code), ReasonCode.OVERDOSE, None)
        told = unblinding.break_code(self.context(Action.BREAK_CODE), self.world.study, wanted)
        self._check_told(told.arm_code, told.treatment, self.world.kits[kit_code].arm_code)

    def prepare(self, subject: str) -> None:
        told = kits.read_preparation(self.context(Action.READ_PREPARATION), self.world.study, subject)
        self._check_told(told.arm_code, told.treatment, self._true_arm(subject))

    def next_kit(self, subject: str) -> None:
        given = kits.assign_kit(self.context(Action.ASSIGN_KIT), self.world.study, subject, f"T{next(self.numbers)}")
        assert self.world.kits[given.kit_code].arm_code == self._true_arm(subject), "another arm was given out"

    def allocate(self) -> None:
        """Allocate a new subject; kit and slot must be of the arm that the true list has next."""
        position = len(self.world.rows["allocation"])
        number = next(self.numbers)
        given = allocations.allocate(
            self.context(Action.ALLOCATE),
            self.world.study,
            AllocationRequest(f"01-7{number:03}", SiteCode("01"), {}, True, True, None),  # noqa: FBT003  # as its fields are
        )
        slot = self.world.slots[position]
        assert given.randomization_number == slot.randomization_number, "another slot was used"
        assert self.world.kits[given.kit_code].arm_code == slot.arm_code, "another arm was given out"

    def replay(self, subject: str) -> None:
        """Ask for an allocation again; the stored answer must be the true one."""
        kept = next(one for one in self.world.play.allocations if one["subject_id"] == subject)
        wanted = AllocationRequest(subject, SiteCode("01"), {}, True, True, None)  # noqa: FBT003  # as its fields are
        given = allocations.allocate(self.context(Action.ALLOCATE), self.world.study, wanted)
        assert (given.kit_code, given.randomization_number) == (kept["kit_code"], kept["randomization_number"])

    def look_through(self) -> None:
        """Check a list slot by slot, as before its activation."""
        with self.world.database.transaction() as tx:
            act = self._act(tx)
            for head in schedules.list_schedules(tx, self.world.study_id, act.now):
                lists.check_list(act, head)

    def read_restricted(self, index: int, role: Role) -> None:
        trail.read_restricted(self.context(Action.READ_RESTRICTED, role), self.world.study, index, None)

    def read_safety(self) -> list[str]:
        page = unblinding.list_safety_unblindings(
            self.context(Action.READ_SAFETY_UNBLINDINGS), self.world.study, 100, None
        )
        return [str(one.subject_id) for one in page.items]

    def read_trail(self) -> int:
        """Read the trail to its end and return how many entries were shown."""
        shown, cursor = 0, None
        while shown == 0 or cursor is not None:
            context = self.context(Action.READ_TRAIL)
            page = trail.read_trail(context, self.world.study, TrailQuery(), 500, cursor)
            shown, cursor = shown + len(page.items), page.next_cursor
        return shown

    def prove(self, index: int) -> None:
        trail.prove_entry(self.context(Action.READ_PROOF), self.world.study, index, None)

    def step_up(self, otp: str) -> None:
        people.step_up(self.context(Action.STEP_UP), otp)

    def _true_arm(self, subject: str) -> str:
        row = next(row for row in self.world.rows["allocation"] if row["subject_id"] == subject)
        return next(slot.arm_code for slot in self.world.slots if slot.position == row["position"])

    def _check_told(self, arm_code: str, treatment: str, true_arm: str) -> None:
        assert (arm_code, treatment) == (true_arm, self.world.treatments[true_arm]), "another arm was told"

    def _act(self, tx: Transaction) -> Act:
        ctx = RequestContext(self.deployment, Action.RELEASE_FINAL_UNBLINDING, None, uuid4().hex, "test")
        head = studies.find_study(tx, self.world.study)
        return Act(tx, ctx, None, Decision(None, None), head, ctx.now())

    # -- the offline verifier

    def verify(self) -> Report:
        """Make the final package of what stands now, and let the verifier read it beside the sink."""
        path = self.world.folder / "package.zip"
        with self.world.database.transaction() as tx:
            package = FinalPackage(self._act(tx))
        path.write_bytes(package.complete())
        return verify_package(
            path, keys=self.deployment.signing.vkeys(), sinks=[self.world.house.settings.checkpoint_file]
        )

    def verify_trail(self, sink: Path | None = None) -> Report:
        path = self.world.folder / "trail.jsonl"
        with self.world.database.transaction() as tx:
            head = self._act(tx).study
            path.write_bytes(b"".join(export_lines(self.deployment, tx, head)))
        return verify_trail(
            path, keys=self.deployment.signing.vkeys(), sinks=[sink or self.world.house.settings.checkpoint_file]
        )


def _table(name: str) -> Table:
    return tables.metadata.tables[name]


def _is_row(table: str, row: Row) -> Any:  # noqa: ANN401  # a condition
    return and_(*(column == row[column.name] for column in _table(table).primary_key.columns))


def _placeholder(value: object) -> object:
    if isinstance(value, UUID):
        return uuid4()
    if isinstance(value, int):
        return 1_000_000 + value
    if isinstance(value, datetime):
        return value.replace(year=2100)
    return f"{value!s}~" if isinstance(value, str) else b"~" * len(value) if isinstance(value, bytes) else value


def forge(world: World, context: SealContext, plaintext: bytes) -> str:
    """Return a token as the service itself would seal it: an older value of the place, or a thief of the key."""
    return world.house.deployment.ring.seal(context, plaintext).token


def body_of(row: Row) -> dict[str, Any]:
    """Return what an entry says."""
    body: dict[str, Any] = json.loads(row["body"])
    return body


Attempt = Callable[[Rehearsal], object]
