"""Several replicas of the service on one PostgreSQL: none knows anything that the others do not."""

import json
import threading
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import pytest
from httpx2 import Response

from app.services.audited import Act
from app.services.keeper import Keeper
from tests.harness import STUDY, House
from tests.reliability import load
from tests.reliability.conftest import Ground
from tests.reliability.records import check_export, check_records, check_tables
from tests.reliability.service import Service
from tests.reliability.tally import Tally
from tests.running_study import RunningStudy, S, allocation_of, running_study

LONG: Final = (pytest.mark.long, pytest.mark.timeout(0))
CLIENTS: Final = 8


def replica_of(house: House, name: str) -> House:
    """Return one more service on the same database, with the same key and a checkpoint file of its own."""
    sink = house.settings.checkpoint_file.with_name(f"{name}.jsonl")
    settings = house.settings.model_copy(update={"checkpoint_file": sink})
    replica = House(settings, house.clock, house.entropy, house.list_entropy)
    replica.open()
    return replica


def ask_all_at_once(running: RunningStudy, houses: Sequence[House], subjects: Sequence[str]) -> list[list[Response]]:
    """Ask every replica for each subject at the same moment; return the answers by subject. One token is good at all of them."""
    token = running.investigator.token()

    def ask(house: House, subject: str) -> Response:
        return house.send("POST", f"{S}/allocations", token=token, json=allocation_of(subject))

    with ThreadPoolExecutor(len(houses)) as clients:
        return [
            [waiting.result() for waiting in [clients.submit(ask, house, subject) for house in houses]]
            for subject in subjects
        ]


def check_alike(answers: Sequence[Sequence[Response]]) -> None:
    """One of the replicas did it, and all say the same."""
    for same in answers:
        assert sorted(answer.status_code for answer in same) == [200] * (len(same) - 1) + [201]
        assert len({answer.content for answer in same}) == 1


@pytest.mark.parametrize("database_kind", ["postgresql"])
def test_two_replicas_in_process(house: House) -> None:
    """One effect for each subject; either sink vouches for all of the log, a new replica's too [C4, C5, E4, custody "Beyond"]"""
    running = running_study(house, subjects=0)
    inspector = running.person("inspector")
    other = replica_of(house, "other")
    subjects = [f"01-{number:04}" for number in range(1, 7)]
    check_alike(ask_all_at_once(running, [house, other], subjects))
    assert {row.subject_id for row in check_tables(house.deployment.database, STUDY)} == set(subjects)
    # What one has entered is under a checkpoint of the other: each keeps every log's, in a file of its own.
    Keeper(other.deployment).round()
    export = expect_content(inspector.get(f"{S}/trail/export", step_up=True))
    for one in (house, other):
        sink = one.settings.checkpoint_file
        check_export(export, sink, sink.parent)
        assert one.client.get("/readyz").status_code == 200
    # One is lost with its disk, and a third one begins with an empty file: it goes on where the others stand.
    other.leave()
    third = replica_of(house, "third")
    check_alike(ask_all_at_once(running, [third, house], ["01-0007"]))
    third.leave()


@pytest.mark.long
@pytest.mark.parametrize("database_kind", ["postgresql"])
def test_replicas_that_remember_by_themselves(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: a build that keeps what it answered in its own memory is found by the same check [C4]"""
    running = running_study(house, subjects=0)
    other = replica_of(house, "other")
    remembered: dict[tuple[int, bytes], Any] = defaultdict(lambda: None)
    monkeypatch.setattr(Act, "claim", lambda act, scope, *_: remembered[id(act.deployment), scope])
    answers = ask_all_at_once(running, [house, other], ["01-0001"])
    other.leave()
    with pytest.raises(AssertionError):
        check_alike(answers)


def expect_content(answer: Response) -> bytes:
    """Return the bytes of a good answer."""
    assert answer.status_code == 200, answer.text
    return answer.content


@pytest.mark.parametrize("database_kind", ["postgresql"])
@pytest.mark.parametrize("is_sink_shared", [True, False])
@pytest.mark.parametrize("subjects", [pytest.param(2000, marks=LONG)])
def test_two_services_under_load(
    ground: Ground, tmp_path: Path, subjects: int, tally: Tally, *, is_sink_shared: bool
) -> None:
    """Every request sent to both: one allocation each, one answer, lists in order; either may stop, and start anew [C4, C5; T15]"""
    study = ground.open_study(subjects)
    requests = load.requests_for(study, [f"S-{number:05}" for number in range(subjects)], keyed=True)
    folder = tmp_path / "second"
    folder.mkdir()
    shared = {"SNOSE_CHECKPOINT_FILE": str(ground.service.sink)} if is_sink_shared else {}
    key = str(ground.service.settings().key_file)
    with Service(folder, ground.service.url, 2, SNOSE_KEY_FILE=key, **shared) as second:
        second.start()
        outcomes: list[load.Outcome] = []
        failures: list[BaseException] = []

        def ask(port: int, wanted: list[load.Request]) -> None:
            journal = load.Journal(tmp_path / f"journal-{port}.jsonl")
            try:
                outcomes.append(load.run(port, wanted, CLIENTS, journal=journal))
            except (OSError, AssertionError) as error:
                failures.append(error)

        # In two orders, so that now one and now the other is first.
        ports = {ground.service.port: requests, second.port: requests[::2] + requests[1::2]}
        clients = [threading.Thread(target=ask, args=each) for each in ports.items()]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        assert failures == []
        answers = defaultdict(list)
        for outcome in outcomes:
            for request, answer in outcome.answers:
                answers[request.subject].append(answer)
        for same in answers.values():
            assert sorted(answer.status for answer in same) == [200, 201]
            assert len({answer.body for answer in same}) == 1
        firsts = [sum(answer.status == 201 for _, answer in outcome.answers) for outcome in outcomes]
        assert min(firsts) > 0
        records = check_records(ground.service, study, tmp_path)
        assert len(records) == len(answers) == subjects
        # In order, so that the last round has put everything under a checkpoint of its own file.
        second.stop()
        if not is_sink_shared:
            check_export(study.trial.export_trail(), folder / "checkpoints.jsonl", tmp_path)
        second.start()
        again = load.Connection(second.port)
        one = requests[0]
        answer = again.post(f"/v1/studies/{study.code}/allocations", one.token, one.content, one.key)
        again.close()
        assert json.loads(answer.body)["kit_code"] == records[one.subject]["kit_code"]
        tally(subjects=subjects, first_by_one=firsts[0], first_by_the_other=firsts[1])
