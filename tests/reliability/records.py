"""What the records of a deployment must say after any traffic and any crash, read from the database and from the trail's export."""

import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from sqlalchemy import Row, func, select

from app.domain.words import Action, KitStatus
from app.storage import tables
from app.storage.database import Database, Transaction
from tests.reliability.service import OpenStudy, Service

_a = tables.allocation.c
_ka = tables.kit_assignment.c
_k = tables.kit.c
_in = tables.schedule_stratum.c
_e = tables.trail_entry.c


def check_records(service: Service, study: OpenStudy, folder: Path) -> dict[str, Mapping[str, Any]]:
    """Return what `check_database` does, once the trail's export is accepted too.

    By the offline verifier, against every checkpoint that ever went out of the database.
    """
    records = check_database(service, study)
    check_export(study.trial.export_trail(), service.sink, folder)
    return records


def check_database(service: Service, study: OpenStudy) -> dict[str, Mapping[str, Any]]:
    """Return each allocated subject's numbers once everything is consistent; fails otherwise.

    Slots in list order without a gap, no kit twice, one entry for each allocation in the order of the list, and no claim without
    its answer. Nobody may be asking meanwhile.
    """
    database = Database(service.url)
    try:
        allocations = check_tables(database, study.code)
    finally:
        database.close()
    return {row.subject_id: row._asdict() for row in allocations}


def check_tables(database: Database, code: str, *, only_assigned: bool = True) -> list[Row[Any]]:
    """Return the allocations of a study once its tables are consistent; fails otherwise.

    ``only_assigned``: nobody has dispensed a kit, or done anything else with it, since it was given to a subject.
    """
    with database.transaction() as tx:
        allocations = _allocations(tx, code)
        _check_slots(tx, code, allocations)
        _check_kits(tx, code, allocations, only_assigned=only_assigned)
        _check_entries(tx, code, allocations)
        unanswered = select(func.count()).where(
            tables.stored_answer.c.sealed_small.is_(None), tables.stored_answer.c.sealed_large.is_(None)
        )
        assert tx.execute(unanswered).scalar_one() == 0
    return allocations


def used_slots(service: Service, study: OpenStudy) -> list[Mapping[str, Any]]:
    """Return what stands in the lists, right or wrong."""
    database = Database(service.url)
    try:
        with database.transaction() as tx:
            return [row._asdict() for row in _allocations(tx, study.code)]
    finally:
        database.close()


def _allocations(tx: Transaction, code: str) -> list[Row[Any]]:
    """The allocations with the kit that came with each."""
    rows = tx.execute(
        select(
            _a.subject_id,
            _a.site_code,
            _a.stratum_id,
            _a.ordinal,
            (_a.ordinal - _in.first_ordinal).label("expected_position"),
            _a.position,
            _a.schedule_id,
            _a.randomization_number,
            _k.kit_code,
        )
        .join_from(tables.allocation, tables.study, tables.study.c.study_id == _a.study_id)
        .join(
            tables.schedule_stratum,
            (_in.study_id == _a.study_id) & (_in.schedule_id == _a.schedule_id) & (_in.stratum_id == _a.stratum_id),
        )
        # The kit that came with the allocation: those of later visits name the visit, a replacement what it replaces.
        .outerjoin(
            tables.kit_assignment,
            (_ka.study_id == _a.study_id)
            & (_ka.subject_key == _a.subject_key)
            & _ka.visit.is_(None)
            & _ka.replaces.is_(None),
        )
        .outerjoin(tables.kit, (_k.study_id == _ka.study_id) & (_k.kit_id == _ka.kit_id))
        .where(tables.study.c.study_code == code)
        .order_by(_a.stratum_id, _a.ordinal)
    )
    return list(rows.all())


def _check_slots(tx: Transaction, code: str, allocations: list[Row[Any]]) -> None:
    by_stratum = defaultdict(list)
    for row in allocations:
        assert row.position == row.expected_position
        by_stratum[row.stratum_id].append(row.ordinal)
    counted = tx.execute(
        select(tables.stratum.c.stratum_id, tables.stratum.c.allocated)
        .join(tables.study, tables.study.c.study_id == tables.stratum.c.study_id)
        .where(tables.study.c.study_code == code)
    )
    for row in counted:
        assert by_stratum[row.stratum_id] == list(range(row.allocated))
    numbers = {row.randomization_number for row in allocations}
    assert len(numbers) == len(allocations)


def _check_kits(tx: Transaction, code: str, allocations: list[Row[Any]], *, only_assigned: bool) -> None:
    """A kit with each allocation, no kit twice, further ones included, and no kit called assigned that nobody has."""
    first = [row.kit_code for row in allocations]
    assert None not in first
    assert len(set(first)) == len(first) == len({row.subject_id for row in allocations})
    in_study = tables.study.c.study_code == code
    given = tx.execute(
        select(_k.kit_code, _k.status)
        .join_from(tables.kit_assignment, tables.study, tables.study.c.study_id == _ka.study_id)
        .join(tables.kit, (_k.study_id == _ka.study_id) & (_k.kit_id == _ka.kit_id))
        .where(in_study)
    ).all()
    assert len({row.kit_code for row in given} | set(first)) == len(given)
    assert not only_assigned or {row.status for row in given} <= {KitStatus.ASSIGNED.value}
    assigned = tx.execute(
        select(func.count())
        .select_from(tables.kit)
        .join(tables.study, tables.study.c.study_id == _k.study_id)
        .where(in_study, _k.status == KitStatus.ASSIGNED.value)
    )
    assert assigned.scalar_one() == sum(row.status == KitStatus.ASSIGNED.value for row in given)


def _check_entries(tx: Transaction, code: str, allocations: list[Row[Any]]) -> None:
    """The trail and the allocations one to one, and the entries of each stratum in the order of its list."""
    bodies = tx.execute(
        select(_e.body)
        .join(tables.study, tables.study.c.study_id == _e.study_id)
        .where(tables.study.c.study_code == code, _e.action == Action.ALLOCATE)
        .order_by(_e.segment, _e.log_index)
    ).scalars()
    entered = [entry["after"] for entry in map(json.loads, bodies) if entry["outcome"] == "done"]
    rows = {row.randomization_number: row for row in allocations}
    assert len(entered) == len(rows)
    in_order: dict[object, list[int]] = defaultdict(list)
    for after in entered:
        row = rows[after["randomization_number"]]
        assert after["kit_code"] == row.kit_code
        in_order[row.stratum_id].append(row.ordinal)
    for ordinals in in_order.values():
        assert ordinals == list(range(len(ordinals)))


def check_export(exported: bytes, sink: Path, folder: Path) -> None:
    """Return once the offline verifier accepts an exported trail against the checkpoints of a sink; fails otherwise."""
    export = folder / "export.jsonl"
    export.write_bytes(exported)
    verifier = str(files("app") / "verifier.py")
    finished = subprocess.run(
        [sys.executable, "-I", verifier, "trail", str(export), "--sink", str(sink)],
        check=False,
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
