"""The primary of two PostgreSQL servers lost under load, again and again, while the service and its clients go on."""

import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import httpx
import pytest

from app.cli.trial import UnexpectedAnswer
from tests.clusters import Cluster, cluster
from tests.reliability import load
from tests.reliability.conftest import Ground
from tests.reliability.load import Journal
from tests.reliability.records import check_database, check_records
from tests.reliability.service import OpenStudy, Service, Sponsor
from tests.reliability.tally import Tally
from tests.reliability.test_kill import CLIENTS, check_journal

LONG: Final = (pytest.mark.long, pytest.mark.timeout(0))
BATCH: Final = 40
"""Allocations around one failover."""
READY_WITHIN_SECONDS: Final = 30.0


@contextmanager
def served(servers: Cluster, folder: Path) -> Iterator[Ground]:
    """Give the service with two workers, which knows both servers."""
    with Service(folder, servers.url, workers=2) as service:
        issued = service.create()
        service.start()
        sponsor = Sponsor(service, issued)
        yield Ground(service, sponsor, folder)
        sponsor.close()


@contextmanager
def asking(ground: Ground, requests: list[load.Request], journal: Journal) -> Iterator[None]:
    """Have patient clients ask all this at once; when the block ends they have been answered."""
    failures: list[BaseException] = []

    def ask() -> None:
        try:
            load.run(ground.service.port, requests, CLIENTS, journal=journal)
        except (OSError, AssertionError) as error:
            failures.append(error)

    clients = threading.Thread(target=ask)
    clients.start()
    try:
        yield
    finally:
        clients.join()
    assert failures == []


@contextmanager
def making_checkpoints(study: OpenStudy) -> Iterator[None]:
    """Have the trail exported all the time: each time is a checkpoint in the sink, just before the answer."""
    is_over = threading.Event()

    def export() -> None:
        while not is_over.is_set():
            try:
                study.trial.export_trail()
            except (UnexpectedAnswer, httpx.HTTPError):
                # There is no primary just now.
                time.sleep(0.05)

    inspector = threading.Thread(target=export)
    inspector.start()
    try:
        yield
    finally:
        is_over.set()
        inspector.join()


def ready(ground: Ground) -> bool:
    """Ask whether requests can be served now."""
    return httpx.get(f"{ground.service.base_url}/readyz", timeout=60, trust_env=False).status_code == 200


def fail_over_in_traffic(ground: Ground, servers: Cluster, journal: Journal, after: int) -> float:
    """Lose the primary once so many are answered; return for how many seconds nobody could be served."""
    until = time.monotonic() + READY_WITHIN_SECONDS
    while journal.count < after and time.monotonic() < until:
        time.sleep(0.001)
    begun = time.monotonic()
    servers.lose_primary()
    assert not ready(ground)
    servers.promote()
    while not ready(ground):
        assert time.monotonic() < begun + READY_WITHIN_SECONDS, "the service does not find the new primary"
        time.sleep(0.01)
    return time.monotonic() - begun


@pytest.mark.parametrize("failovers", [pytest.param(10, marks=LONG)])
def test_primary_lost_under_load(tmp_path: Path, failovers: int, round_seed: int, tally: Tally) -> None:
    """Every 2xx is on the survivor, nothing twice, order and trail whole, and no failover looks like a rollback [C6; T6, G4]"""
    chance = random.Random(round_seed)
    without: list[float] = []
    with cluster() as servers, served(servers, tmp_path) as ground:
        study = ground.open_study(failovers * BATCH)
        requests = load.requests_for(study, [f"S-{number:05}" for number in range(failovers * BATCH)], keyed=True)
        journal = Journal(tmp_path / "journal.jsonl")
        for begin in range(0, len(requests), BATCH):
            after = journal.count + chance.randrange(1, BATCH - CLIENTS)
            with asking(ground, requests[begin : begin + BATCH], journal), making_checkpoints(study):
                without.append(fail_over_in_traffic(ground, servers, journal, after))
            records = check_records(ground.service, study, tmp_path)
            assert len(records) == len(check_journal(records, journal)) == begin + BATCH
        # A process that has seen nothing holds the database against the sink before it is ready.
        ground.service.stop()
        ground.service.start()
    tally(failovers=failovers, acknowledged=journal.count, not_ready_ms=round(1000 * sum(without)))


@pytest.mark.long
@pytest.mark.timeout(0)
def test_pair_that_is_not_synchronous(tmp_path: Path) -> None:
    """The negative control: where nobody waits for the standby, what was told is lost, and the same check finds it [C6; T6]"""
    with cluster(is_synchronous=False) as servers, served(servers, tmp_path) as ground:
        study = ground.open_study(BATCH)
        requests = load.requests_for(study, [f"S-{number:05}" for number in range(BATCH)], keyed=True)
        journal = Journal(tmp_path / "journal.jsonl")
        servers.hold_standby()
        with asking(ground, requests, journal):
            pass
        servers.lose_primary()
        servers.promote()
        with pytest.raises(KeyError, match="S-"):
            check_journal(check_database(ground.service, study), journal)
