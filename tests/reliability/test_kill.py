"""Processes of the service killed in mid-traffic, again and again: what a client was told stays, and nothing happens twice."""

import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from tests.reliability import builds, load
from tests.reliability.conftest import Ground
from tests.reliability.load import Journal, Request
from tests.reliability.records import check_database, check_records
from tests.reliability.service import GONE_WITHIN_SECONDS
from tests.reliability.tally import Tally

LONG = (pytest.mark.long, pytest.mark.timeout(0))
CLIENTS = 8


@pytest.mark.parametrize("database_kind", ["postgresql", "sqlite"])
@pytest.mark.parametrize(("kills", "subjects"), [(2, 120), pytest.param(10, 600, marks=LONG)])
def test_kill_in_mid_traffic_loses_and_doubles_nothing(
    ground: Ground, kills: int, subjects: int, round_seed: int, tally: Tally
) -> None:
    """The whole process group killed, and on PostgreSQL single workers; what was acknowledged stands [C6, INT-01; T1]

    Half of the subjects are for the kills of the group, each followed by a start; the others in turns for those of a worker, after
    which the other worker goes on and the parent starts a new one.
    """
    chance = random.Random(round_seed)
    study = ground.open_study(subjects)
    pending = load.requests_for(study, [f"S-{number:05}" for number in range(subjects)], keyed=True)
    journal = Journal(ground.folder / "journal.jsonl")
    for _ in range(kills):
        with traffic(ground, pending, journal) as reached:
            reached(chance.randint(1, subjects // kills // 2))
            ground.service.kill()
        ground.service.start()
        known = check_journal(check_database(ground.service, study), journal)
        pending = [request for request in pending if request.subject not in known]
        assert pending, "the traffic was over before the kill"
        tally(kills=1)
    for turn in range(kills):
        with traffic(ground, pending[turn::kills], journal, is_finished=True) as reached:
            if len(ground.service.worker_pids()) > 1:
                assert reached(chance.randint(1, subjects // kills // 4)), "the traffic was over before the kill"
                # The other worker may have answered all that is left before a new one is there.
                kill_a_worker(ground, chance)
                tally(worker_kills=1)
    records = check_records(ground.service, study, ground.folder)
    assert len(records) == len(check_journal(records, journal)) == subjects
    tally(acknowledged=subjects)


@pytest.mark.long
@pytest.mark.timeout(0)
@pytest.mark.parametrize("database_kind", ["postgresql", "sqlite"])
def test_build_that_answers_before_its_commit_is_found(ground: Ground) -> None:
    """The same kill and the same check: what was told and never committed is missed [C6; control of T1]"""
    study = ground.open_study(80)
    requests = load.requests_for(study, [f"S-{number:05}" for number in range(80)], keyed=True)
    journal = Journal(ground.folder / "journal.jsonl")
    ground.service.stop()
    ground.service.start(builds.chosen(ground.folder, "answers before commit"))
    with traffic(ground, requests, journal) as reached:
        reached(10)
        ground.service.kill()
    ground.service.start()
    with pytest.raises(KeyError, match="S-"):
        check_journal(check_database(ground.service, study), journal)


@pytest.mark.long
@pytest.mark.timeout(0)
@pytest.mark.parametrize("database_kind", ["postgresql"])
def test_workers_that_are_slow_to_start_are_waited_for(ground: Ground) -> None:
    """On a machine that is busy enough a start takes its time, and the parent does not kill who has not begun to answer"""
    ground.service.stop()
    ground.service.start(builds.chosen(ground.folder, "slow start"))
    workers = ground.service.worker_pids()
    assert len(workers) == 2
    time.sleep(2 * builds.SLOW_SECONDS)
    assert ground.service.worker_pids() == workers


@contextmanager
def traffic(
    ground: Ground, requests: Sequence[Request], journal: Journal, *, is_finished: bool = False
) -> Iterator[Callable[[int], bool]]:
    """Have clients ask until the block ends, or until everything is answered.

    Gives a function that waits for so many more answers, and tells whether the clients go on.
    """
    is_over = threading.Event()
    clients = threading.Thread(
        target=load.run,
        args=(ground.service.port, requests, CLIENTS),
        kwargs={"journal": journal, "is_over": is_over.is_set},
    )

    def reached(more: int) -> bool:
        enough = journal.count + more
        while journal.count < enough and clients.is_alive():
            time.sleep(0.002)
        return clients.is_alive()

    clients.start()
    try:
        yield reached
        if is_finished:
            clients.join()
    finally:
        is_over.set()
        clients.join()


def kill_a_worker(ground: Ground, chance: random.Random) -> None:
    """Kill one of the workers, and wait until another one was started in its place."""
    before = ground.service.worker_pids()
    os.kill(chance.choice(before), signal.SIGKILL)
    until = time.monotonic() + GONE_WITHIN_SECONDS
    while len(after := ground.service.worker_pids()) < len(before) or set(after) == set(before):
        assert time.monotonic() < until, "nobody took the place of the killed worker"
        time.sleep(0.01)


def check_journal(records: Mapping[str, Mapping[str, Any]], journal: Journal) -> set[str]:
    """Return the subjects that clients know to be allocated; each has the number and kit that its client was told."""
    known = set()
    for line in journal.lines():
        told, kept = json.loads(line["body"]), records[line["subject"]]
        assert told["randomization_number"] == kept["randomization_number"]
        assert told["kit_code"] == kept["kit_code"]
        known.add(line["subject"])
    return known
