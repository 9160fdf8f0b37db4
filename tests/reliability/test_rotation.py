"""A study's key rotated by the command while clients allocate, and the command killed again and again."""

import os
import random
import subprocess
import sys
import threading
import time
from typing import Final

import pytest
from sqlalchemy import func, select

from app.domain.words import StudyCode
from app.services import keys, startup
from app.storage import resealing, studies, tables
from app.storage.database import Database
from app.surroundings import surroundings
from tests.reliability import load
from tests.reliability.conftest import Ground
from tests.reliability.records import check_records
from tests.reliability.service import SITES, OpenStudy

LONG: Final = (pytest.mark.long, pytest.mark.timeout(0))
CLIENTS: Final = 4
PART: Final = 200


def rotation(ground: Ground, code: str, batch: int) -> "subprocess.Popen[bytes]":
    """Start the command as an operator does."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("SNOSE_")}
    return subprocess.Popen(
        [sys.executable, "-m", "app.cli", "keys", "rotate", "study", code, "--batch", str(batch)],
        env={**inherited, **ground.service.environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def state(database: Database) -> tuple[int, int, int]:
    """Return newest and least version, and how many rows lie under an older version than the newest."""
    with database.transaction() as tx:
        (head,) = studies.list_studies(tx)
        left = sum(resealing.count_older(tx, head.study_id, head.key_version).values())
    return head.key_version, head.min_key_version, left


def kill_in_mid_walk(ground: Ground, database: Database, seconds: float, batch: int) -> bool:
    """Run the command and kill it so long after it has begun to work; return whether anything was left for the next."""
    command = rotation(ground, "LOAD", batch)
    before = state(database)
    until = time.monotonic() + 60
    while time.monotonic() < until and command.poll() is None and state(database) == before:
        # Seldom: of a million rows the count itself takes its time.
        time.sleep(0.1)
    time.sleep(seconds)
    command.kill()
    command.communicate()
    newest, least, _ = state(database)
    return least < newest


def with_new_token(study: OpenStudy, requests: list[load.Request]) -> list[load.Request]:
    """Return the requests with a new token, as an EDC system gets one in time: a rotation may take longer than its half hour."""
    machine = study.trial.edc
    assert machine is not None
    machine.token = ""
    token = study.trial._token(machine, step_up=False)
    return [request._replace(token=token) for request in requests]


def check_every_row(ground: Ground) -> int:
    """Return how many rows there are under a study's key, once each of them has opened: by a rotation, which opens them all."""
    around = surroundings(ground.service.settings())
    try:
        deployment = startup.unseal(around, ground.service.settings().mode)
        return keys.rotate_study_key(deployment, StudyCode("LOAD")).rows
    finally:
        around.database.close()


@pytest.mark.parametrize("database_kind", ["postgresql"])
@pytest.mark.parametrize(
    ("kills", "subjects", "slots", "batch"),
    [(2, 160, 30, 10), pytest.param(100, 4000, 125_000, 200, marks=LONG)],
)
def test_killed_under_load(ground: Ground, kills: int, subjects: int, slots: int, batch: int) -> None:
    """No failed request, no unreadable row, and the last run retires the old key [F4, CUS-08, done when 5; T26, G18]

    On SQLite there is one process: the command is refused while the service runs (tests/test_cli_keys.py).
    """
    # In the long form a million slots in eight strata; kits for a site where one arm leads, beside the floor.
    study = ground.sponsor.open_study("LOAD", SITES, slots, subjects // len(SITES) // 2 + 32)
    requests = load.requests_for(study, [f"S-{number:05}" for number in range(subjects)])
    outcomes: list[load.Outcome] = []
    failures: list[BaseException] = []
    is_over = threading.Event()

    def clients() -> None:
        try:
            # Without a journal a client is not patient: any answer but a clean one ends the run and fails the test.
            for first in range(0, subjects, PART):
                part = with_new_token(study, requests[first : first + PART])
                outcomes.append(load.run(ground.service.port, part, CLIENTS))
            while not is_over.is_set():
                # Asked again, each is answered from what was stored, and entered.
                load.run(ground.service.port, with_new_token(study, requests[:PART]), CLIENTS)
        except (OSError, AssertionError) as error:
            failures.append(error)

    database = Database(ground.service.url)
    longest = 0.2 if kills < 10 else 2.0
    moments = [random.Random(number).random() * longest for number in range(kills)]
    traffic = threading.Thread(target=clients)
    traffic.start()
    try:
        cut_off = sum(kill_in_mid_walk(ground, database, moment, batch) for moment in moments)
        command = rotation(ground, "LOAD", 200)
        _, told = command.communicate(timeout=3600)
        assert command.returncode == 0, told.decode()
    finally:
        is_over.set()
        traffic.join()
    assert failures == []
    assert sum(len(outcome.answers) for outcome in outcomes) == subjects
    newest, least, _ = state(database)
    assert newest == least >= 2
    assert cut_off > 0
    with database.transaction() as tx:
        rows = sum(
            tx.execute(select(func.count()).select_from(tables.metadata.tables[table])).scalar_one()
            for table in resealing.TABLES
        )
        living = tx.execute(select(tables.study_key.c.version).where(tables.study_key.c.wrapped != "")).scalars().all()
    database.close()
    assert list(living) == [newest]
    assert len(check_records(ground.service, study, ground.folder)) == subjects
    assert check_every_row(ground) >= rows
