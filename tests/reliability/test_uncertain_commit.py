"""COMMITs that were not replicated, on two real servers: nothing is told as done, or shown, or signed, that a failover undoes.

The standby is held, so that each COMMIT waits for it, and each wait is cancelled: PostgreSQL then answers that all is well, with a
warning. What was committed so stands on the primary alone, for everybody to read, until the primary is lost.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest
from httpx2 import Response

from app.services.keeper import Keeper
from app.storage import database, migrate
from app.storage.database import Database, Transaction, _CommitWatch
from tests import harness
from tests.clusters import CANCEL_WAITS, DATABASE, Cluster, cluster
from tests.harness import STUDY, Caller, House, expect
from tests.reliability.records import check_export, check_tables
from tests.reliability.tally import Tally
from tests.running_study import TREATMENTS, RunningStudy, S, running_study

LONG: Final = (pytest.mark.long, pytest.mark.timeout(0))
_TRIES: Final = 20


@dataclass
class Ground:
    """A study that is open, in process, on two servers."""

    servers: Cluster
    running: RunningStudy
    asked: int = 0

    @property
    def house(self) -> House:
        return self.running.house

    def subjects(self, count: int) -> list[str]:
        """Return names that nobody has used."""
        self.asked += count
        return [f"01-{number:04}" for number in range(1001 + self.asked - count, 1001 + self.asked)]

    def check_told(self, told: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Mapping[str, Any]]:
        """Return the allocations on the server that is left; every one that was told is there as it was told."""
        kept = allocated_in(self.servers.url)
        for subject, body in told.items():
            assert subject in kept, f"{subject} was told and is lost"
            assert body["randomization_number"] == kept[subject]["randomization_number"]
            assert body["kit_code"] == kept[subject]["kit_code"]
        return kept

    def check_trust(self, inspector: Caller) -> None:
        """Whoever holds the checkpoints finds them in the log that is left."""
        self.house.deployment.checkpoints.compare(self.house.deployment.database)
        assert self.house.deployment.checkpoints.suspicions == {}
        export = inspector.get(f"{S}/trail/export", step_up=True)
        assert export.status_code == 200
        sink = self.house.settings.checkpoint_file
        check_export(export.content, sink, sink.parent)


@contextmanager
def study_on_two_servers(folder: Path, kits_per_arm: int) -> Iterator[Ground]:
    """Give an open study with so many kits of each arm, and as many slots as kits."""
    with cluster() as servers:
        migrate.upgrade(servers.url)
        # Eight threads as always; named, so that the house is not begun as a copy of one on another server.
        with harness.house(servers.url, folder, threads=8) as house:
            running = running_study(house, subjects=2, kits_per_arm=kits_per_arm, length=2 * kits_per_arm)
            running.person("inspector")
            yield Ground(servers, running)


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    """One study for all short tests: each leaves it in order, on whichever server is the primary then."""
    with study_on_two_servers(tmp_path_factory.mktemp("uncertain"), 16) as short:
        yield short


def allocated_in(url: str) -> dict[str, Mapping[str, Any]]:
    """Return what whoever looks finds on the primary, replicated or not, once the tables are consistent."""
    looking = Database(url)
    try:
        return {row.subject_id: row._asdict() for row in check_tables(looking, STUDY)}
    finally:
        looking.close()


@contextmanager
def cancelling(servers: Cluster) -> Iterator[list[int]]:
    """Hold the standby and cancel each wait for it; gives how many, one number each time. The standby stays held."""
    servers.hold_standby()
    cancelled: list[int] = []
    is_over = threading.Event()

    def cancel() -> None:
        with psycopg.connect(servers.primary.url_for("postgres"), autocommit=True) as owner:
            while not is_over.wait(0.01):
                cancelled.append(len(owner.execute(CANCEL_WAITS).fetchall()))

    administrator = threading.Thread(target=cancel)
    administrator.start()
    try:
        yield cancelled
    finally:
        is_over.set()
        administrator.join()


def ask_in_vain(ground: Ground, subjects: Sequence[str]) -> tuple[dict[str, dict[str, Any]], int]:
    """Ask for allocations all at once, each wait for the standby cancelled; return what was told, and how many waits it took."""
    ground.running.investigator.token()
    with cancelling(ground.servers) as cancelled, ThreadPoolExecutor(len(subjects)) as clients:
        answers = dict(zip(subjects, clients.map(ground.running.ask, subjects), strict=True))
    told = {subject: answer.json() for subject, answer in answers.items() if answer.status_code in {200, 201}}
    for subject in answers.keys() - told.keys():
        assert answers[subject].status_code == 503, answers[subject].text
    return told, sum(cancelled)


def test_allocation_whose_wait_was_cancelled(ground: Ground) -> None:
    """Never a 2xx: not for the act, not for its retry that finds the stored answer, until both are replicated [C6; T6]"""
    check_cancelled_waits(ground, 6, 2)


@pytest.mark.parametrize("waits", [pytest.param(200, marks=LONG)])
def test_many_cancelled_waits(tmp_path: Path, waits: int, tally: Tally) -> None:
    """The same, by six clients at once, who wait for each other's locks meanwhile [C6; T6, G4]"""
    with study_on_two_servers(tmp_path, waits // 2 + 20) as ground:
        cancelled, told = check_cancelled_waits(ground, waits, 6)
    tally(cancelled_waits=cancelled, acknowledged=told)


def check_cancelled_waits(ground: Ground, waits: int, clients: int) -> tuple[int, int]:
    """Cancel so many waits, and return how many it were, and how many allocations were told in the end.

    In turns the standby goes on, and the same key gives the stored answer; or the primary is lost, and it does the act anew.
    """
    told: dict[str, dict[str, Any]] = {}
    cancelled = turns = 0
    while cancelled < waits or turns < 2:
        subjects = ground.subjects(clients)
        falsely, count = ask_in_vain(ground, subjects)
        assert falsely == {}
        cancelled += count
        # Committed on the primary, and read there by whoever looks: there was something to be told falsely.
        assert set(allocated_in(ground.servers.url)) & set(subjects)
        if turns % 2:
            ground.servers.fail_over()
            assert not set(ground.check_told(told)) & set(subjects)
        else:
            ground.servers.let_go_on()
        told |= {subject: ground.running.ask_until_told(subject, _TRIES) for subject in subjects}
        ground.check_told(told)
        turns += 1
    ground.check_trust(ground.running.person("inspector"))
    return cancelled, len(told)


@pytest.mark.long
def test_build_that_ignores_the_warning(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: a service that takes COMMIT's word is caught, by what it told and the survivor does not have [C6]"""
    subjects = ground.subjects(2)
    with monkeypatch.context() as broken:
        broken.setattr(database, "_NOT_REPLICATED", "")
        told, _ = ask_in_vain(ground, subjects)
    ground.servers.fail_over()
    assert told
    with pytest.raises(AssertionError, match="was told and is lost"):
        ground.check_told(told)
    # A new process, which has not seen what is lost.
    ground.house.leave()
    ground.house.open()
    ground.check_told({subject: ground.running.ask_until_told(subject, _TRIES) for subject in subjects})


def readings(ground: Ground, subject: str) -> dict[str, Callable[[], Response]]:
    """Return every kind of reading that shows allocations or signs a log: entered ones, and those that enter nothing."""
    doctor, inspector = ground.running.investigator, ground.running.person("inspector")
    pages = expect(doctor.get(f"{S}/allocations", limit=1), 200)["next_cursor"]
    trail = expect(inspector.get(f"{S}/trail", limit=1), 200)["next_cursor"]
    return {
        "allocation": lambda: doctor.get(f"{S}/subjects/{subject}/allocation"),
        "first page": lambda: doctor.get(f"{S}/allocations"),
        "next page": lambda: doctor.get(f"{S}/allocations", cursor=pages),
        "trail": lambda: inspector.get(f"{S}/trail"),
        "trail's next page": lambda: inspector.get(f"{S}/trail", cursor=trail),
        "checkpoint": lambda: inspector.get(f"{S}/trail/checkpoint"),
        "proof": lambda: inspector.get(f"{S}/trail/proofs/1"),
    }


def shown_falsely(ground: Ground) -> set[str]:
    """Return which readings were answered although they may show what a failover undoes."""
    (subject,) = ground.subjects(1)
    asked = readings(ground, subject)
    with cancelling(ground.servers):
        assert ground.running.ask(subject).status_code == 503
        statuses = {name: ask().status_code for name, ask in asked.items()}
    assert set(statuses.values()) <= {200, 503}
    ground.servers.let_go_on()
    ground.check_told({subject: ground.running.ask_until_told(subject, _TRIES)})
    return {name for name, status in statuses.items() if status == 200}


def test_reading_of_what_was_not_replicated(ground: Ground) -> None:
    """Nothing is shown and no checkpoint is signed: each reading's own COMMIT waits, also where it enters nothing [C6, E4]"""
    assert shown_falsely(ground) == set()


def test_readings_that_do_not_wait(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: PostgreSQL lets a transaction without a write go, and each such reading is told [C6]"""
    monkeypatch.setattr(Transaction, "settle", lambda _tx: None)
    assert shown_falsely(ground) == {"next page", "trail's next page", "checkpoint", "proof"}


def publish_in_vain(ground: Ground) -> None:
    """Have something entered in the service's own log that is not replicated, the keeper do its round, and the primary be lost."""
    keeper, admin = Keeper(ground.house.deployment), ground.house.admin
    (name,) = ground.subjects(1)
    admin.token()
    keeper.round()
    with cancelling(ground.servers):
        person = {"username": f"nurse.{name}", "display_name": "Nurse", "email": "nurse@example.org"}
        assert admin.post("/v1/people", json=person).status_code == 503
        keeper.round()
    ground.servers.fail_over()
    while ground.house.client.get("/readyz").status_code != 200:
        ground.running.ask_until_told(name, _TRIES)
    ground.house.deployment.checkpoints.compare(ground.house.deployment.database)


def test_checkpoint_of_what_was_not_replicated(ground: Ground) -> None:
    """The sink never gets ahead of the survivor, so no failover is taken for a rollback [C6, INT-07, custody "The trail"]"""
    publish_in_vain(ground)
    ground.check_trust(ground.running.person("inspector"))


@pytest.mark.long
def test_keeper_that_does_not_wait(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: a checkpoint of what the failover undid shuts the service, as a rollback would [INT-07]"""
    sink = ground.house.settings.checkpoint_file
    with monkeypatch.context() as broken:
        broken.setattr(Transaction, "settle", lambda _tx: None)
        publish_in_vain(ground)
    assert {one.kind for one in ground.house.deployment.checkpoints.suspicions.values()} == {"smaller"}
    # As if it had not been written: without its last line, in a new process.
    ground.house.leave()
    sink.write_bytes(b"".join(sink.read_bytes().splitlines(keepends=True)[:-1]))
    ground.house.open()
    ground.check_trust(ground.running.person("inspector"))


def test_code_break_that_nobody_cancels(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """Past the limit 503 with the back-up contact and no treatment; once the standby is back it is answered [C6, D4]"""
    doctor = ground.running.investigator
    subject = ground.running.allocations[0]["subject_id"]
    body = {"subject_id": subject, "reason_code": "serious_adverse_event"}
    token = doctor.elevated_token()
    # The same watch with a shorter limit; not for longer, because a slow machine's COMMITs may take as long.
    watch = _CommitWatch(0.05)
    with monkeypatch.context() as impatient, closing(watch):
        impatient.setattr(ground.house.deployment.database, "_watch", watch)
        ground.servers.hold_standby()
        refused = ground.house.send("POST", f"{S}/code-breaks", token=token, json=body)
    assert refused.status_code == 503
    assert refused.json()["backup_contact"]
    # Those who stand behind it are not to wait as long again.
    assert watch._patience() < watch._limit == 0.05
    assert not [word for pair in TREATMENTS.items() for word in pair if word in refused.text]
    ground.servers.let_go_on()
    broken = expect(doctor.post(f"{S}/code-breaks", json=body, step_up=True), 201)
    assert broken["treatment"] in TREATMENTS.values()


def test_primary_is_found_among_hosts(ground: Ground) -> None:
    """Whichever host of the URL is the primary, and a server that vanished is given up, unless the URL says otherwise [INT-01]"""
    hosts = ",".join(str(server.directory) for server in (ground.servers.standby, ground.servers.primary))
    looking = Database(f"postgresql://postgres@/{DATABASE}?host={hosts}&keepalives_idle=7")
    try:
        with looking.transaction() as tx:
            found = tx.driver_connection.info
            assert found.host == str(ground.servers.primary.directory)
            told = found.get_parameters()
    finally:
        looking.close()
    assert (told["target_session_attrs"], told["keepalives_idle"], told["keepalives_count"]) == ("read-write", "7", "3")
