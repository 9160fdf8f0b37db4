"""PostgreSQL itself crashed under load, in every way it can: at once on command, a backend, the checkpointer, all of it."""

import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

import pytest

from tests.databases import PostgresServer, postgres_server, processes_below
from tests.reliability import load
from tests.reliability.conftest import Ground
from tests.reliability.load import Journal
from tests.reliability.records import check_database, check_records
from tests.reliability.service import Service, Sponsor
from tests.reliability.tally import Tally
from tests.reliability.test_failover import READY_WITHIN_SECONDS, asking, ready
from tests.reliability.test_kill import CLIENTS, check_journal

LONG: Final = (pytest.mark.long, pytest.mark.timeout(0))
BATCH: Final = 40
"""Allocations around one crash."""


def stop_at_once(server: PostgresServer) -> None:
    """As `pg_ctl stop -m immediate` does it."""
    server.stop(signal.SIGQUIT)
    server.start()


def kill_backend(server: PostgresServer) -> None:
    """A backend that dies takes the shared memory with it: the server ends all others, and recovers."""
    _kill_one(server, " [local] ")


def kill_checkpointer(server: PostgresServer) -> None:
    """Likewise, in what writes the pages back."""
    _kill_one(server, "checkpointer")


def kill_all(server: PostgresServer) -> None:
    """As a power cut would; the disks keep what they were made to."""
    server.kill_all()
    server.start()


def _kill_one(server: PostgresServer, kind: str) -> None:
    # After another crash, those that are looked for may not be back yet.
    until = time.monotonic() + READY_WITHIN_SECONDS
    while time.monotonic() < until:
        found = [pid for pid, title in processes_below(server.pid).items() if kind in title]
        if found:
            os.kill(found[0], signal.SIGKILL)
            return
        time.sleep(0.01)
    message = f"there is no {kind}"
    raise AssertionError(message)


CRASHES: Final[Mapping[str, Callable[[PostgresServer], None]]] = {
    "stopped_at_once": stop_at_once,
    "backends": kill_backend,
    "checkpointers": kill_checkpointer,
    "all_processes": kill_all,
}


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    """A server of its own: the one that serves the other tests is not to crash."""
    with postgres_server() as running:
        yield running


@pytest.fixture
def ground(server: PostgresServer, tmp_path: Path) -> Iterator[Ground]:
    """The service with two workers."""
    with Service(tmp_path, server.url_for(server.create_database()), workers=2) as service:
        issued = service.create()
        service.start()
        sponsor = Sponsor(service, issued)
        yield Ground(service, sponsor, tmp_path)
        sponsor.close()


@pytest.mark.parametrize("crashes", [pytest.param(20, marks=LONG)])
def test_crash_under_load(ground: Ground, server: PostgresServer, crashes: int, round_seed: int, tally: Tally) -> None:
    """The service goes on by itself; every acknowledged allocation stands, once, in order, trail whole [C6, INT-01; T5]"""
    chance = random.Random(round_seed)
    study = ground.open_study(crashes * BATCH)
    requests = load.requests_for(study, [f"S-{number:05}" for number in range(crashes * BATCH)], keyed=True)
    journal = Journal(ground.folder / "journal.jsonl")
    happened: Counter[str] = Counter()
    for ordinal, begin in enumerate(range(0, len(requests), BATCH)):
        name = list(CRASHES)[ordinal % len(CRASHES)]
        after = journal.count + chance.randrange(1, BATCH - CLIENTS)
        with asking(ground, requests[begin : begin + BATCH], journal):
            until = time.monotonic() + READY_WITHIN_SECONDS
            while journal.count < after and time.monotonic() < until:
                time.sleep(0.001)
            assert journal.count < begin + BATCH, "the traffic was over before the crash"
            CRASHES[name](server)
        happened[name] += 1
        until = time.monotonic() + READY_WITHIN_SECONDS
        while not ready(ground) and time.monotonic() < until:
            time.sleep(0.01)
        records = check_records(ground.service, study, ground.folder)
        assert len(records) == len(check_journal(records, journal)) == begin + BATCH
    tally(crashes=crashes, acknowledged=journal.count, **happened)


@pytest.mark.long
@pytest.mark.timeout(0)
def test_server_that_forgets(ground: Ground, server: PostgresServer) -> None:
    """The negative control: a server that comes back without what it had synced is found by the same check [INT-01; T5]"""
    study = ground.open_study(BATCH)
    requests = load.requests_for(study, [f"S-{number:05}" for number in range(BATCH)], keyed=True)
    earlier = server.directory / "earlier"
    connection = f"host={server.directory} user=postgres"
    server.run("pg_basebackup", "--pgdata", str(earlier), "--checkpoint", "fast", "--dbname", connection)
    journal = Journal(ground.folder / "journal.jsonl")
    with asking(ground, requests, journal):
        pass
    server.kill_all()
    shutil.rmtree(server.data)
    earlier.rename(server.data)
    server.start()
    with pytest.raises(KeyError, match="S-"):
        check_journal(check_database(ground.service, study), journal)
