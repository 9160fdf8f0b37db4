"""A key sent many times at once stands for one act."""

import json
from collections import defaultdict

import pytest

from tests.reliability import load
from tests.reliability.conftest import Ground
from tests.reliability.records import check_records
from tests.reliability.tally import Tally

LONG = (pytest.mark.long, pytest.mark.timeout(0))


@pytest.mark.parametrize("database_kind", ["postgresql", "sqlite"])
@pytest.mark.parametrize(("keys", "times"), [(12, 20), pytest.param(100, 20, marks=LONG)])
def test_one_key_many_times_at_once_is_one_act(ground: Ground, keys: int, times: int, tally: Tally) -> None:
    """One effect for each key, one answer to all; the key with other content is refused, also after a restart [C4; T16]"""
    study = ground.open_study(keys)
    requests = load.requests_for(study, [f"S-{number:05}" for number in range(keys)], keyed=True)
    journal = load.Journal(ground.folder / "journal.jsonl")
    repeated = [request for request in requests for _ in range(times)]
    # Patient clients: whoever meets its own twin in the act is told to come again, and does.
    outcome = load.run(ground.service.port, repeated, times, journal=journal)
    journal.close()
    answers = defaultdict(list)
    for request, answer in outcome.answers:
        answers[request.subject].append(answer)
    for same in answers.values():
        assert len(same) == times
        assert [answer.status for answer in same].count(201) == 1
        assert len({answer.body for answer in same}) == 1
    assert len(check_records(ground.service, study, ground.folder)) == keys
    ground.service.stop()
    ground.service.start()
    connection = load.Connection(ground.service.port)
    path = f"/v1/studies/{study.code}/allocations"
    for request in requests:
        again = connection.post(path, request.token, request.content, request.key)
        assert (again.status, again.body) == (200, answers[request.subject][0].body)
        other = json.dumps(study.body("another", 0)).encode()
        changed = connection.post(path, request.token, other, request.key)
        assert (changed.status, json.loads(changed.body)["code"]) == (422, "idempotency_key_reused")
    connection.close()
    assert len(check_records(ground.service, study, ground.folder)) == keys
    tally(keys=keys, duplicates=keys * times)
