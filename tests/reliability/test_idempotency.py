"""A key sent many times at once stands for one act."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest

from app.cli.trial import Machine
from tests.reliability import builds, load
from tests.reliability.conftest import Ground
from tests.reliability.load import Answer, Request
from tests.reliability.records import check_database, check_records
from tests.reliability.service import OpenStudy
from tests.reliability.tally import Tally

LONG = (pytest.mark.long, pytest.mark.timeout(0))
CLIENTS = 20


@dataclass
class Keys:
    """Subjects, each with a key of its own, and what was answered to each."""

    ground: Ground
    study: OpenStudy
    count: int
    requests: Sequence[Request] = ()
    told: dict[str, bytes] = field(default_factory=dict)
    repeated: int = 0

    def __post_init__(self) -> None:
        """Make the requests."""
        self.requests = load.requests_for(self.study, [f"S-{number:05}" for number in range(self.count)], keyed=True)

    def ask(self, requests: Sequence[Request], times: int, expected: tuple[int, ...]) -> Mapping[str, list[Answer]]:
        """Return what each subject's requests were answered, all of them sent so many times, side by side."""
        journal = load.Journal(self.ground.folder / "journal.jsonl")
        repeated = [request for request in requests for _ in range(times)]
        # Patient clients: whoever meets its own twin in the act is told to come again, and does.
        outcome = load.run(self.ground.service.port, repeated, CLIENTS, journal=journal, expected=expected)
        self.repeated += len(repeated)
        answers = defaultdict(list)
        for request, answer in outcome.answers:
            answers[request.subject].append(answer)
        assert {subject: len(same) for subject, same in answers.items()} == {one.subject: times for one in requests}
        return answers

    def check_first(self, times: int) -> None:
        """One creates, all the others are told the same."""
        for subject, same in self.ask(self.requests, times, (200, 201)).items():
            assert sorted(answer.status for answer in same) == [200] * (times - 1) + [201]
            assert all(answer.is_replayed for answer in same if answer.status == 200)
            (self.told[subject],) = {answer.body for answer in same}

    def check_same(self, times: int) -> None:
        """Whoever asks again is told the same, and told that it is the same."""
        self._check_replay(self.requests, times)

    def check_other_content(self, times: int) -> None:
        """The key stands for what it was first used for."""
        changed = [
            one._replace(content=self._body(f"another-{one.subject}", number))
            for number, one in enumerate(self.requests)
        ]
        self._check_refusal(changed, times, 422, "idempotency_key_reused")

    def check_other_client(self, token: str, times: int) -> None:
        """Keys are each client's own; the subject is one for all: the same is the same, other data is refused."""
        others = [one._replace(token=token) for one in self.requests]
        self._check_replay(others, times)
        elsewhere = [
            one._replace(content=self._body(one.subject, number + 1), key=f"other-{one.key}")
            for number, one in enumerate(others)
        ]
        for subject, refusals in self._check_refusal(elsewhere, times, 409, "already_allocated").items():
            assert {one["location"] for one in refusals} == {
                f"/v1/studies/{self.study.code}/subjects/{subject}/allocation"
            }

    def _body(self, subject: str, number: int) -> bytes:
        return json.dumps(self.study.body(subject, number)).encode()

    def _check_replay(self, requests: Sequence[Request], times: int) -> None:
        for subject, same in self.ask(requests, times, (200, 201)).items():
            assert {(one.status, one.is_replayed, one.body) for one in same} == {(200, True, self.told[subject])}

    def _check_refusal(
        self, requests: Sequence[Request], times: int, status: int, code: str
    ) -> Mapping[str, list[dict[str, Any]]]:
        answers = self.ask(requests, times, (200, 201, status))
        told = {subject: [json.loads(one.body) for one in same] for subject, same in answers.items()}
        for subject, same in answers.items():
            assert {(one.status, body.get("code")) for one, body in zip(same, told[subject], strict=True)} == {
                (status, code)
            }
        return told

    def renew_tokens(self) -> None:
        """Sign everybody in again, as whoever comes back a day later must."""
        trial = self.study.trial
        for people in trial.people.values():
            for person in people:
                person.token, person.stepped_up_at = "", None
        assert trial.edc is not None
        token = trial._get_machine_token(trial.edc)
        self.requests = [one._replace(token=token) for one in self.requests]

    def check_effects(self) -> None:
        """As many acts as keys, each with what its client was told."""
        records = check_database(self.ground.service, self.study)
        assert len(records) == self.count
        for subject, body in self.told.items():
            assert json.loads(body)["randomization_number"] == records[subject]["randomization_number"]
            assert json.loads(body)["kit_code"] == records[subject]["kit_code"]


def other_client(study: OpenStudy) -> Machine:
    """A second machine with the same right."""
    machine = study.trial.join_machine("CTMS")
    study.trial._get_machine_token(machine)
    return machine


@pytest.mark.parametrize("database_kind", ["postgresql", "sqlite"])
@pytest.mark.parametrize(("count", "times", "again"), [(6, 20, 2), pytest.param(100, 20, 20, marks=LONG)])
def test_one_key_many_times_at_once_is_one_act(
    ground: Ground, count: int, times: int, again: int, tally: Tally
) -> None:
    """One effect for each key, whatever comes after: the same, other content, another client, a restart, a day [C4; T16, G6]"""
    keys = Keys(ground, ground.open_study(count), count)
    keys.check_first(times)
    keys.check_other_content(again)
    other = other_client(keys.study)
    keys.check_other_client(other.token, again)
    if again == times:
        ground.service.stop()
        ground.service.start()
        keys.check_same(again)
        keys.check_other_content(again)
    ground.service.stop()
    ground.service.start(builds.chosen(ground.folder, "a day later"))
    keys.study.trial.now = lambda: datetime.now(UTC) + builds.A_DAY_AND_AN_HOUR
    keys.renew_tokens()
    keys.check_same(again)
    keys.check_other_content(again)
    keys.check_effects()
    check_records(ground.service, keys.study, ground.folder)
    tally(keys=count, effects=count, duplicates=keys.repeated)


@pytest.mark.long
@pytest.mark.timeout(0)
@pytest.mark.parametrize("database_kind", ["postgresql", "sqlite"])
def test_build_that_passes_keys_over_is_found(ground: Ground) -> None:
    """The same check meets a second subject under a key [control of T16]"""
    keys = Keys(ground, ground.open_study(40), 8)
    ground.service.stop()
    ground.service.start(builds.chosen(ground.folder, "keys passed over"))
    keys.check_first(20)
    with pytest.raises(AssertionError, match="201"):
        keys.check_other_content(2)
