"""Every process of the service killed in mid-traffic, again and again: what a client was told stays, and nothing happens twice."""

import json
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from tests.reliability import load
from tests.reliability.conftest import Ground
from tests.reliability.load import Journal, Request
from tests.reliability.records import check_records
from tests.reliability.tally import Tally

LONG = (pytest.mark.long, pytest.mark.timeout(0))
CLIENTS = 8


@pytest.mark.parametrize("database_kind", ["postgresql", "sqlite"])
@pytest.mark.parametrize(("kills", "subjects"), [(2, 120), pytest.param(20, 1600, marks=LONG)])
def test_kill_in_mid_traffic_loses_and_doubles_nothing(ground: Ground, kills: int, subjects: int, tally: Tally) -> None:
    """Killing the whole process group; every acknowledged allocation stands, trail and lists whole [C6, INT-01; T1]"""
    study = ground.open_study(subjects)
    pending = load.requests_for(study, [f"S-{number:05}" for number in range(subjects)], keyed=True)
    journal = Journal(ground.folder / "journal.jsonl")
    for _ in range(kills):
        kill_in_traffic(ground, pending, journal, after=journal.count + subjects // (kills + 1))
        ground.service.start()
        known = check_journal(check_records(ground.service, study, ground.folder), journal)
        pending = [request for request in pending if request.subject not in known]
        assert pending, "the traffic was over before the kill"
    load.run(ground.service.port, pending, CLIENTS, journal=journal)
    journal.close()
    records = check_records(ground.service, study, ground.folder)
    assert len(records) == len(check_journal(records, journal)) == subjects
    tally(kills=kills, acknowledged=subjects)


def kill_in_traffic(ground: Ground, requests: Sequence[Request], journal: Journal, after: int) -> None:
    """Kill the service once so many requests are acknowledged, while the clients go on asking."""
    is_killed = threading.Event()
    clients = threading.Thread(
        target=load.run,
        args=(ground.service.port, requests, CLIENTS),
        kwargs={"journal": journal, "is_over": is_killed.is_set},
    )
    clients.start()
    while journal.count < after and clients.is_alive():
        time.sleep(0.002)
    ground.service.kill()
    is_killed.set()
    clients.join()


def check_journal(records: Mapping[str, Mapping[str, Any]], journal: Journal) -> set[str]:
    """Return the subjects that clients know to be allocated; each has the number and kit that its client was told."""
    known = set()
    for line in journal.lines():
        told, kept = json.loads(line["body"]), records[line["subject"]]
        assert told["randomization_number"] == kept["randomization_number"]
        assert told["kit_code"] == kept["kit_code"]
        known.add(line["subject"])
    return known
