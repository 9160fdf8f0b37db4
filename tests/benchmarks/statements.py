"""The very statements of one allocation, recorded as the service sends them, and run without it: by pgbench, or by a bare loop.

What belongs to one allocation (ids, subject, key, slot, kit, index) is made anew for each run of the statements; everything else
stays as it was recorded. Two things differ from the service, both to the advantage of what it is compared with. pgbench gives
out the same kits again and again, so that their number in stock stays what it is: the kit keeps its status, and the constraint
against two assignments of one kit is left out of its database. And nothing is sealed, checked or hashed.
"""

import re
import sqlite3
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import psycopg
from psycopg import sql
from sqlalchemy import event
from sqlalchemy.engine import Connection, ExecutionContext

from app.domain.words import Action, KitStatus, StudyCode
from app.services import allocations, startup
from app.services.allocations import AllocationRequest
from app.services.context import RequestContext, token_digest_of
from app.storage.database import Database
from app.surroundings import surroundings
from tests.databases import PostgresServer
from tests.reliability.service import OpenStudy, Service

_WARM: Final = 16
_PLACEHOLDER: Final = re.compile(r"%\((\w+)\)s")
_SCOPE: Final = "decode(md5('s' || :n::bigint::text) || md5('t' || :n::bigint::text), 'hex')"
_MADE_ANEW: Final = {
    "scope": _SCOPE,
    "answer_scopes": f"ARRAY[{_SCOPE}]",
    "claimed_at": "clock_timestamp()",
    "site_code": "('0' || :site::int::text)",
    "of_code": "('site=0' || :site::int::text)",
    "consignment_id": ":consignment_id::uuid",
    "order": ":order::bigint",
    "a_allocation_id": "md5('a' || :n::bigint::text)::uuid",
    "a_subject_key": "('s' || :n::bigint::text)",
    "a_subject_id": "('s' || :n::bigint::text)",
    "a_site_code": "('0' || :site::int::text)",
    "a_stratum_id": ":stratum_id::uuid",
    "a_ordinal": ":ordinal::int",
    "a_schedule_id": ":schedule_id::uuid",
    "a_position": ":position::int",
    "a_randomization_number": ":randomization_number::text",
    "a_allocated_at": "clock_timestamp()",
    "k_assignment_id": "md5('k' || :n::bigint::text)::uuid",
    "k_kit_id": ":kit_id::uuid",
    "k_subject_key": "('s' || :n::bigint::text)",
    "k_assigned_at": "clock_timestamp()",
    "e_log_index": ":size::bigint",
    "e_at": "clock_timestamp()",
    "e_subject_key": "('s' || :n::bigint::text)",
    "e_site_code": "('0' || :site::int::text)",
    "levels": "ARRAY[1]",
    "node_indexes": "ARRAY[:size::bigint]",
    "hashes": "ARRAY[decode(md5('h') || md5('h'), 'hex')]",
    "b_size": ":size::bigint + 1",
    "b_last_at": "clock_timestamp()",
}


@dataclass(frozen=True)
class Recorded:
    """One statement as the driver got it, with its parameters by name."""

    text: str
    names: tuple[str, ...]
    values: Mapping[str, Any]


def record_allocation(service: Service, study: OpenStudy) -> list[Recorded]:
    """Return the statements of one allocation, once everything that is read once a process was read; the service must be down."""
    settings = service.settings()
    around = surroundings(settings)
    recorded: list[Recorded] = []
    try:
        deployment = startup.unseal(around, settings.mode)

        def allocate(number: int) -> None:
            context = RequestContext(
                deployment,
                Action.ALLOCATE,
                token_digest_of(study.token),
                "recorded",
                "127.0.0.0/24",
                "POST",
                f"/v1/studies/{study.code}/allocations",
            )
            body = study.body(f"recorded-{number}", number)
            allocations.allocate(context, StudyCode(study.code), AllocationRequest(**body))

        for number in range(_WARM):
            allocate(number)
        _listen(around.database, recorded)
        allocate(_WARM)
    finally:
        around.database.close()
    return recorded


def _listen(database: Database, recorded: list[Recorded]) -> None:
    @event.listens_for(database.engine, "before_cursor_execute")
    def hear(
        _connection: Connection, _cursor: object, text: str, values: object, context: ExecutionContext, _many: bool
    ) -> None:
        compiled: Any = context.compiled
        if compiled is None:
            return
        if isinstance(values, dict):
            recorded.append(Recorded(text, tuple(values), values))
        else:
            assert isinstance(values, tuple | list)
            names = tuple(compiled.positiontup)
            first = values[0] if isinstance(values, list) else values
            recorded.append(Recorded(text, names, dict(zip(names, first, strict=True))))


# -- pgbench


def write_script(recorded: list[Recorded], path: Path, url: str) -> None:
    """Write the statements as a script of pgbench."""
    lines = ["\\set n random(1, 9000000000000000000)", "\\set order random(-4000000000000000000, 4000000000000000000)"]
    lines += ["\\set site random(1, 8)", "BEGIN;"]
    with psycopg.connect(url) as connection:
        for one in recorded:
            text = _PLACEHOLDER.sub(partial(_spelled, one.values, connection), one.text)
            # What a statement finds is what the next one needs; of several rows the last.
            ends = "\\aset" if text.lstrip().startswith(("SELECT", "WITH claimed")) else ";"
            lines.append(re.sub(r"\s+", " ", text).strip() + f" {ends}")
    path.write_text("\n".join([*lines, "COMMIT;", ""]), encoding="utf-8")


def _spelled(values: Mapping[str, Any], connection: psycopg.Connection, placeholder: re.Match[str]) -> str:
    """Return how a parameter stands in the script."""
    name = placeholder[1]
    value = values[name]
    if name in _MADE_ANEW:
        return _MADE_ANEW[name]
    if value == KitStatus.ASSIGNED.value:
        value = KitStatus.IN_STOCK.value
    text = sql.Literal(value).as_string(connection)
    # pgbench would take what follows a colon for one of its variables, inside of quotes too.
    return "U&" + text.replace(":", "\\003a") if isinstance(value, str) and ":" in value else text


def prepare_for_pgbench(url: str) -> None:
    """Let kits be given out again and again in this copy of a database."""
    with psycopg.connect(url) as connection:
        connection.execute("ALTER TABLE kit_assignment DROP CONSTRAINT uq_kit_assignment_study_id_kit_id")
        connection.execute("CREATE INDEX ON kit_assignment (study_id, kit_id)")


def run_pgbench(server: PostgresServer, url: str, scripts: list[Path], clients: int, transactions: int) -> float:
    """Return the transactions a second of pgbench with so many clients."""
    files = [part for script in scripts for part in ("-f", str(script))]
    each = max(1, transactions // clients)
    finished = subprocess.run(
        [
            str(server.binaries / "pgbench"),
            *("--no-vacuum", "--protocol=prepared", f"--client={clients}", f"--jobs={min(2, clients)}"),
            *(f"--transactions={each}", *files, url),
        ],
        check=False,
        capture_output=True,
        text=True,
    )
    found = re.search(r"^tps = ([0-9.]+)", finished.stdout, re.MULTILINE)
    failed = re.search(r"number of failed transactions: ([1-9]\d*)", finished.stdout)
    if finished.returncode or found is None or failed is not None:
        raise RuntimeError(finished.stderr[-2000:] or finished.stdout)
    return float(found[1])


# -- SQLite


def run_bare_loop(recorded: list[Recorded], path: Path, transactions: int) -> float:
    """Return the transactions a second of a loop in the driver's own connection, set as the service sets its own."""
    database = Database(f"sqlite:///{path}")
    begun = time.perf_counter()
    try:
        with database.engine.connect() as connected:
            driver = connected.connection.driver_connection
            assert isinstance(driver, sqlite3.Connection)
            for number in range(transactions):
                _run_once(recorded, driver.cursor(), number)
    finally:
        database.close()
    return transactions / (time.perf_counter() - begun)


def _run_once(recorded: list[Recorded], cursor: sqlite3.Cursor, number: int) -> None:
    subject, site = uuid4().hex, f"0{number % 8 + 1}"
    made: dict[str, Any] = {
        **dict.fromkeys(("scope", "b_scope"), uuid4().bytes * 2),
        **dict.fromkeys(("subject_key", "subject_id", "k_subject_key"), subject),
        **dict.fromkeys(("allocation_id", "k_assignment_id"), uuid4().hex),
        "site_code": site,
        "of_code": f"site={site}",
        "order": number * 0x9E3779B97F4A7C15 % 2**62,
    }
    cursor.execute("BEGIN IMMEDIATE")
    for one in recorded:
        if "log_index" in one.values:
            made["log_index"] = one.values["log_index"] + 1 + number
        if "b_size" in one.values:
            made["b_size"] = one.values["b_size"] + 1 + number
        values = [made.get(name, one.values[name]) for name in one.names]
        if not one.text.lstrip().startswith("INSERT INTO trail_node"):
            cursor.execute(one.text, values)
        if cursor.description is None:
            continue
        rows = cursor.fetchall()
        assert rows, one.text
        found = dict(zip((column[0] for column in cursor.description), rows[0], strict=True))
        made.update(_needed_later(found))
    cursor.execute("COMMIT")


def _needed_later(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of later statements that a row gives."""
    needed: dict[str, Any] = {}
    if "allocated" in found:
        needed |= {"stratum_id": found["stratum_id"], "ordinal": found["allocated"] - 1}
    if "randomization_number" in found:
        needed |= {name: found[name] for name in ("schedule_id", "position", "randomization_number")}
    if "kit_id" in found:
        needed["k_kit_id"] = found["kit_id"]
    elif "consignment_id" in found:
        needed["consignment_id"] = found["consignment_id"]
    return needed
