"""A study with the people who make and approve its allocation list, calling the services themselves."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from uuid import UUID

from sqlalchemy import Table, select, text

from app.domain.contents import SlotContents
from app.domain.schedules import Fill, StratumLength
from app.domain.sealed import Column, SealContext, Sealed
from app.domain.words import Action, StudyCode
from app.policy import Decision
from app.services import schedules
from app.services.audited import Act
from app.services.context import RequestContext, token_digest_of
from app.services.evidence import slot_place
from app.services.schedules import GeneratedSchedule, ScheduleSummary, WantedList
from app.storage import studies, tables
from app.storage.database import Transaction
from tests.harness import STUDY, Caller, House, Json

CODE = StudyCode(STUDY)


def wanted(
    *,
    sizes: Sequence[int] = (4, 6, 8),
    weights: Sequence[int] | None = None,
    length: int | None = 48,
    lengths: Sequence[StratumLength] | None = None,
    fill: Fill = Fill.EXACT,
    reason: str | None = None,
) -> WantedList:
    """Return a specification as a statistician would sign it; ``lengths`` takes the place of ``length``."""
    return WantedList(
        tuple(sizes),
        None if weights is None else tuple(weights),
        length if lengths is None else None,
        None if lengths is None else tuple(lengths),
        fill,
        reason,
    )


def context(house: House, caller: Caller, action: Action, **fields: Json) -> RequestContext:
    """Return a request of a person with a fresh second proof."""
    digest = token_digest_of(caller.elevated_token())
    return RequestContext(house.deployment, action, digest, "test", "127.0.0.0/24", **fields)


class ListOffice:
    """A registered study and its statistician, approver and administrator."""

    def __init__(self, house: House, sites: tuple[str, ...] = ("01",), **fields: Json) -> None:
        house.register_study(sites=sites, **fields)
        self.house = house
        self.statistician = house.person("statistician")
        self.approver = house.person("list_approver")
        self.study_admin = house.study_admins[STUDY]

    def generate(
        self, asked: WantedList | None = None, caller: Caller | None = None, key: str | None = None
    ) -> GeneratedSchedule:
        ctx = context(self.house, caller or self.statistician, Action.GENERATE_SCHEDULE, idempotency_key=key)
        return schedules.generate_schedule(ctx, CODE, asked or wanted())

    def extend(self, schedule_id: UUID, asked: WantedList | None = None) -> GeneratedSchedule:
        ctx = context(self.house, self.statistician, Action.EXTEND_SCHEDULE)
        return schedules.extend_schedule(ctx, CODE, schedule_id, asked or wanted())

    def approve(self, made: GeneratedSchedule, caller: Caller | None = None) -> ScheduleSummary:
        ctx = context(self.house, caller or self.approver, Action.APPROVE_SCHEDULE)
        return schedules.approve_schedule(ctx, CODE, made.schedule_id, made.commitment)

    def reject(self, made: GeneratedSchedule, reason: str = "wrong lengths") -> ScheduleSummary:
        ctx = context(self.house, self.approver, Action.REJECT_SCHEDULE)
        return schedules.reject_schedule(ctx, CODE, made.schedule_id, reason)

    def activate(self, made: GeneratedSchedule) -> ScheduleSummary:
        ctx = context(self.house, self.study_admin, Action.ACTIVATE_SCHEDULE)
        return schedules.activate_schedule(ctx, CODE, made.schedule_id)

    def active(self, asked: WantedList | None = None) -> GeneratedSchedule:
        made = self.generate(asked)
        self.approve(made)
        self.activate(made)
        return made

    # -- looking inside

    @contextmanager
    def act(self) -> Iterator[Act]:
        """Give an act of nobody's on the study, for what lies below the use cases."""
        with self.house.deployment.database.transaction() as tx:
            ctx = RequestContext(self.house.deployment, Action.ALLOCATE, None, "test", "")
            yield Act(tx, ctx, None, Decision(None, None), studies.find_study(tx, CODE), ctx.now())

    @property
    def study_id(self) -> UUID:
        with self.act() as act:
            return act.study.study_id

    def rows(self, table: Table, made: GeneratedSchedule | None = None) -> list[dict[str, Any]]:
        """Return the rows of a table in the order of its key, those of one list where one is named."""
        statement = select(table).order_by(*table.primary_key.columns)
        if made is not None:
            statement = statement.where(table.c.schedule_id == made.schedule_id)
        with self.house.deployment.database.transaction() as tx:
            return [dict(row) for row in tx.execute(statement).mappings()]

    def opened(self, row: Mapping[str, Any]) -> SlotContents:
        """Return the inside of a slot's row."""
        place = slot_place(row["schedule_id"], row["stratum_id"], row["position"])
        context = SealContext(Column.SLOT, CODE, place)
        return SlotContents.from_bytes(self.house.deployment.ring.open(context, Sealed(row["sealed"])))

    @contextmanager
    def tampering(self, table: Table) -> Iterator[Transaction]:
        """Give a transaction of an owner who switched off the table's triggers: detected is what cannot be prevented (A9)."""
        with self.house.deployment.database.transaction() as tx:
            if tx.is_postgresql:
                tx.execute(text(f"ALTER TABLE {table.name} DISABLE TRIGGER ALL"))
            else:
                named = text("SELECT name FROM sqlite_master WHERE type = 'trigger' AND tbl_name = :name")
                for name in tx.execute(named, {"name": table.name}).scalars().all():
                    tx.execute(text(f'DROP TRIGGER "{name}"'))
            yield tx


def slots_of(office: ListOffice, made: GeneratedSchedule) -> list[dict[str, Any]]:
    """Return the rows of a list's slots, stratum by stratum in position order."""
    return office.rows(tables.slot, made)
