"""Many clients at once: the order of every list is kept, and a repeated request is one request."""

from collections import defaultdict

import pytest

from tests.reliability import history, load
from tests.reliability.conftest import Ground
from tests.reliability.records import check_records
from tests.reliability.tally import Tally

LONG = (pytest.mark.long, pytest.mark.timeout(0))
CLIENTS = 32
OTHERS = 80


@pytest.mark.parametrize(
    ("database_kind", "subjects"),
    [
        ("postgresql", 240),
        ("sqlite", 80),
        pytest.param("postgresql", 5000, marks=LONG),
        pytest.param("sqlite", 1000, marks=LONG),
    ],
)
def test_every_request_sent_twice_at_random_by_many_clients(
    ground: Ground, subjects: int, round_seed: int, tally: Tally
) -> None:
    """As many allocations as subjects, in list order, no kit twice, duplicates answered alike [C4, C5, done when 4; T15]

    And one order explains what the clients saw: of these requests, and of a few others and readings after them.
    """
    study = ground.open_study(subjects + OTHERS)
    requests = load.requests_for(study, [f"S-{number:05}" for number in range(subjects)])
    outcome = load.run(ground.service.port, load.twice_at_random(requests, round_seed), CLIENTS)
    answers = defaultdict(list)
    for request, answer in outcome.answers:
        answers[request.subject].append(answer)
    assert len(answers) == subjects
    for twins in answers.values():
        assert sorted(answer.status for answer in twins) == [200, 201]
        assert [answer.is_replayed for answer in twins if answer.status == 200] == [True]
        assert len({answer.body for answer in twins}) == 1
    others = history.script(study, OTHERS, round_seed, first=subjects)
    whole = history.of_outcome(outcome, study) + history.record(ground.service.port, others, CLIENTS)
    records = check_records(ground.service, study, ground.folder)
    assert len(records) >= subjects
    assert history.violations(whole, history.slots_of(records.values())) == []
    tally(**history.count(whole))
