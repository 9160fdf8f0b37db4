"""The hot statements find their rows by an index, and not by the study alone: what they cost does not grow with it."""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import pytest
from sqlalchemy import event, text

from app.storage.database import Database
from tests import supply
from tests.harness import House, expect
from tests.supply import S, Trial

GROWING: Final = frozenset(
    {
        "allocation",
        "code_break",
        "commitment_tile",
        "envelope",
        "kit",
        "kit_assignment",
        "session",
        "signature",
        "slot",
        "stored_answer",
        "subject_flag",
        "trail_entry",
        "trail_node",
        "trail_restricted",
    }
)
"""Tables with a row for each subject, kit, slot, act or sign-in."""
BESIDES: Final = re.compile(r"\b(?!study_id\b)(\w+)\)?(?:::\w+)? ?(?:=|>|<|>=|<=|IS)")
"""A condition on some column that is not the study."""
Said = tuple[str, Any]


def faults_of(database: Database, statements: Sequence[Said]) -> list[str]:
    """Return what the planner says of each growing table that it would not look into by an index, beyond the study."""
    said = _of_postgresql if database.is_postgresql else _of_sqlite
    return [fault for statement, parameters in statements for fault in said(database, statement, parameters)]


def _of_postgresql(database: Database, statement: str, parameters: Any) -> Iterator[str]:  # noqa: ANN401  # the driver's
    with database.engine.connect() as connection:
        # Few rows are read quicker as a whole. With rows made dear, the planner chooses as it does when there are many.
        for setting in ("enable_seqscan = off", "cpu_tuple_cost = 1000", "cpu_index_tuple_cost = 1000"):
            connection.execute(text(f"SET LOCAL {setting}"))
        plan = connection.exec_driver_sql(f"EXPLAIN (FORMAT JSON) {statement}", parameters).scalar_one()
        connection.rollback()
    for node in _nodes((plan if isinstance(plan, list) else json.loads(plan))[0]["Plan"]):
        if node.get("Relation Name") not in GROWING or node["Node Type"] == "ModifyTable":
            continue
        conditions = " ".join(str(one.get("Index Cond", "")) for one in _nodes(node))
        if not _is_narrow(node["Relation Name"], conditions):
            yield f"{node['Node Type']} of {node['Relation Name']} by {conditions or 'nothing'}: {statement}"


def _is_narrow(table: str, conditions: str) -> bool:
    """Return whether conditions lead to a few rows of one study; a session is found by its token alone."""
    return BESIDES.search(conditions) is not None and ("study_id" in conditions or table == "session")


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for below in plan.get("Plans", ()):
        yield from _nodes(below)


def _of_sqlite(database: Database, statement: str, parameters: Any) -> Iterator[str]:  # noqa: ANN401  # the driver's
    with database.engine.connect() as connection:
        plan = [row[3] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)]
        connection.rollback()
    for step in plan:
        way, _, table = step.partition(" ")
        name = table.split()[0] if table else ""
        if way in {"SCAN", "SEARCH"} and name in GROWING and not _is_narrow(name, step.partition("(")[2]):
            yield f"{step}: {statement}"


@contextmanager
def sent_by(database: Database) -> Iterator[list[Said]]:
    """Collect what is sent meanwhile, as the driver gets it."""
    found: list[Said] = []

    def listen(_connection: object, _cursor: object, statement: str, parameters: Any, *more: object) -> None:  # noqa: ANN401  # the driver's
        is_many = more[-1]
        if statement.startswith(("SELECT", "WITH", "INSERT", "UPDATE")):
            found.append((statement, parameters[0] if is_many else parameters))

    event.listen(database.engine, "before_cursor_execute", listen)
    try:
        yield found
    finally:
        event.remove(database.engine, "before_cursor_execute", listen)


@pytest.fixture
def trial(house: House) -> Trial:
    """A consignment so large that its kits are drawn by place."""
    running = supply.trial(house, per_arm=60)
    running.allocate("01-0001")
    return running


def test_hot_statements_go_by_an_index(trial: Trial) -> None:
    """Allocation, replay, further kit, dispensing, trail of a subject, code break: nothing is looked for in a whole study."""
    house, investigator = trial.house, trial.investigator
    investigator.elevated_token()
    trial.pharmacist.token()
    database = house.deployment.database
    with sent_by(database) as statements:
        kit = trial.allocate("01-0002")["kit_code"]
        expect(trial.post_allocation("01-0002"), 200)
        expect(investigator.post(f"{S}/subjects/01-0002/kits", json={"visit": "V2"}), 201)
        scanned = {"subject_id": "01-0002", "scanned_code": kit}
        expect(trial.pharmacist.post(f"{S}/kits/{kit}/dispensation", json=scanned), 200)
        expect(investigator.get(f"{S}/trail", subject="01-0002"), 200)
        body = {"subject_id": "01-0002", "reason_code": "overdose"}
        expect(investigator.post(f"{S}/code-breaks", json=body, step_up=True), 201)
    assert len(statements) > 40
    if database.is_postgresql:
        with database.transaction() as tx:
            # As the server does by itself once a table has grown.
            tx.execute(text("ANALYZE"))
    assert faults_of(database, statements) == []


def test_signatures_are_found_by_their_record(trial: Trial) -> None:
    """What was signed on one record, and on a page of them, is not looked for among all that was ever signed. [SIG-03]"""
    body = {"category": "ineligible", "reason": "as it happened"}
    expect(trial.investigator.post(f"{S}/subjects/01-0001/error-mark", json=body, step_up=True), 201)
    database = trial.house.deployment.database
    with sent_by(database) as statements:
        expect(trial.investigator.get(f"{S}/subjects/01-0001/allocation"), 200)
        expect(trial.investigator.get(f"{S}/sites"), 200)
    asked = [one for one in statements if "FROM signature" in one[0]]
    assert len(asked) == 2
    assert faults_of(database, asked) == []


@pytest.mark.parametrize(
    "planted",
    [
        "SELECT sealed FROM kit WHERE study_id = {study} AND status = 'in_stock'",
        "SELECT subject_id FROM allocation WHERE study_id = {study} AND subject_id = '01-0001'",
        "SELECT body FROM trail_entry WHERE study_id = {study} AND actor = 'nurse.li'",
        "SELECT mac FROM signature WHERE study_id = {study} AND username = 'nurse.li'",
        "UPDATE slot SET key_version = 2 WHERE randomization_number = 'R4K7QK'",
    ],
)
def test_a_statement_that_looks_through_a_study_is_caught(trial: Trial, planted: str) -> None:
    """The planner is asked the same of what nobody should write."""
    database = trial.house.deployment.database
    with database.transaction() as tx:
        study = tx.execute(text("SELECT study_id FROM study")).scalar_one()
    statement = planted.format(study=f"'{study}'")
    assert faults_of(database, [(statement, {} if database.is_postgresql else ())]) != []
