"""The disk is full under the database, the sink, or both: refused in plain words, nothing lost, and on it goes with space."""

import itertools
import json
import os
import resource
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from random import Random
from typing import Final

import httpx
import pytest
from httpx2 import Response
from sqlalchemy import text

from tests.harness import House, expect
from tests.reliability import load
from tests.reliability.conftest import Ground
from tests.reliability.load import Answer, Connection, Journal, Request
from tests.reliability.records import check_records
from tests.reliability.service import OpenStudy, Service, Sponsor
from tests.reliability.tally import Tally
from tests.reliability.test_kill import check_journal
from tests.reliability.test_rotation import with_new_token
from tests.running_study import S, running_study

LONG: Final = (pytest.mark.long, pytest.mark.timeout(0))
PAGE: Final = 4096
SIZE: Final = 16 * 1024 * 1024
REFUSALS: Final = (
    (503, "The database does not answer"),
    # Where it was COMMIT that found no room (rule C6).
    (503, "It is not known whether this was done"),
)
MOST: Final = 120
"""Acts after which a disk with a few free pages must have been full."""


def why_no_disk() -> str | None:
    """Return why no small disk can be had here; None where one can."""
    if os.geteuid() != 0:
        return "only root may mount a small disk"
    if shutil.which("mount") is None:
        return "mount is not installed"
    return None


@pytest.mark.parametrize("database_kind", ["sqlite"])
def test_no_page_left_in_the_database(house: House) -> None:
    """SQLite's own SQLITE_FULL: 503, nothing of the act is kept, and the same request goes through with space [C3, INT-01; T4]"""
    study = running_study(house, subjects=1)
    database = house.deployment.database
    with closing(sqlite3.connect(str(database.sqlite_file), isolation_level=None)) as owner:
        owner.execute("VACUUM")

    def limit(pages: int) -> None:
        # The setting is one of the connection, and there is one.
        with database.transaction() as tx:
            tx.execute(text(f"PRAGMA max_page_count = {pages:d}"))

    def allocate(number: int) -> Response:
        return study.ask(f"01-{number:04}")

    # No more than there are now.
    limit(1)
    answers = (allocate(number) for number in itertools.count(2))
    before = sum(1 for _ in itertools.takewhile(lambda answer: answer.status_code == 201, answers))
    assert study.investigator.get("/livez").status_code == 200
    refused = before + 2
    problem = expect(allocate(refused), 503)
    assert (problem["code"], problem["title"]) == ("database_unavailable", "The database does not answer")
    limit(1_000_000)
    expect(allocate(refused), 201)
    items = expect(study.investigator.get(f"{S}/allocations", limit=500), 200)["items"]
    assert sorted(item["subject_id"] for item in items) == [f"01-{number:04}" for number in range(1, refused + 1)]


# -- a real service on a small disk --------------------------------------------------------------------------------------


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """Give a folder with a disk of its own, in memory."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)], check=True)  # noqa: S607
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)  # noqa: S607  # wherever the machine has it


@contextmanager
def filled(disk: Path, room: int) -> Iterator[None]:
    """Leave so many bytes free on a disk."""
    filler = disk / "filler"
    with filler.open("wb") as file:
        free = os.statvfs(disk)
        os.posix_fallocate(file.fileno(), 0, max(1, free.f_bavail * free.f_frsize - room))
    try:
        yield
    finally:
        filler.unlink()


@contextmanager
def limited(pid: int, file: Path, room: int) -> Iterator[None]:
    """Let a process write so many bytes behind the present end of a file, and of every other one."""
    _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (file.stat().st_size + room, hard))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard, hard))


class Clients:
    """One who allocates and one who registers people, and what they were told."""

    def __init__(self, ground: Ground, study: OpenStudy) -> None:
        self.ground, self.study = ground, study
        self.journal = Journal(ground.folder / "journal.jsonl")
        self._numbers = itertools.count()
        self._token = study.token
        self._admin_token = ""

    def renew(self) -> None:
        """Sign in anew, while there is space: a token is a row like any other."""
        admin = self.study.trial.admin
        admin.token = ""
        self._admin_token = self.study.trial._token(admin, step_up=False)
        (request,) = with_new_token(self.study, load.requests_for(self.study, ["-"]))
        self._token = request.token

    def new_request(self) -> Request:
        number = next(self._numbers)
        subject = f"S-{number:05}"
        content = json.dumps(self.study.body(subject, number)).encode()
        return Request(self.study.code, subject, self._token, content, f"key-{subject}")

    def allocate(self, request: Request) -> Answer:
        connection = Connection(self.ground.service.port)
        path = f"/v1/studies/{request.study}/allocations"
        answer = connection.post(path, request.token, request.content, request.key)
        connection.close()
        if answer.status in {200, 201}:
            self.journal.acknowledged(request, answer)
        return answer

    def register(self) -> httpx.Response:
        name = f"person.{next(self._numbers)}"
        token = {"Authorization": f"Bearer {self._admin_token}"}
        body = {"username": name, "display_name": name, "email": f"{name}@example.org"}
        url = f"{self.ground.service.base_url}/v1/people"
        return httpx.post(url, json=body, headers=token, trust_env=False, timeout=30)


def allocate_until_full(clients: Clients) -> Request:
    """Allocate until one is refused in plain words, and return that request."""
    for _ in range(MOST):
        request = clients.new_request()
        answer = clients.allocate(request)
        if answer.status not in {200, 201}:
            problem = json.loads(answer.body)
            assert (answer.status, problem["title"]) in REFUSALS, answer.body
            return request
    message = "the disk was never full"
    raise AssertionError(message)


def register_until_full(clients: Clients) -> None:
    """Register people until one is refused in plain words; allocations go on beside it for a minute."""
    for _ in range(MOST):
        response = clients.register()
        if response.status_code != httpx.codes.CREATED:
            problem = response.json()
            assert (response.status_code, problem["code"]) == (503, "audit_unavailable"), response.text
            assert problem["title"] == "The audit trail cannot be made durable"
            assert clients.allocate(clients.new_request()).status == 201
            return
    message = "the disk was never full"
    raise AssertionError(message)


@pytest.mark.skipif(why_no_disk() is not None, reason=str(why_no_disk()))
@pytest.mark.parametrize("full", ["database", "sink", "both", "limit"])
@pytest.mark.parametrize("fills", [pytest.param(13, marks=LONG)])
def test_fills(tmp_path: Path, full: str, fills: int, round_seed: int, tally: Tally) -> None:
    """Filled to a few pages again and again, by a full disk or the limit of a file's size [C3, D4, INT-01; T4]"""
    chance = Random(round_seed)
    with small_disk(tmp_path / "disk") as disk:
        database = (tmp_path if full == "sink" else disk) / "snose.sqlite"
        sink = (disk if full in {"sink", "both"} else tmp_path) / "checkpoints.jsonl"
        with Service(tmp_path, f"sqlite:///{database}", 1, SNOSE_CHECKPOINT_FILE=str(sink)) as service:
            service.sink = sink
            issued = service.create()
            service.start()
            sponsor = Sponsor(service, issued)
            ground = Ground(service, sponsor, tmp_path)
            clients = Clients(ground, ground.open_study(fills * MOST))
            for _ in range(fills):
                room = chance.randrange(12) * 8 * PAGE
                _fill(clients, full, disk, database, room)
            service.kill()
            service.start()
            records = check_records(service, clients.study, tmp_path)
            assert len(check_journal(records, clients.journal)) == len(records)
            sponsor.close()
    tally(fills=fills, acknowledged=clients.journal.count)


def _fill(clients: Clients, full: str, disk: Path, database: Path, room: int) -> None:
    """Fill once, be refused, give the space back, and go on."""
    clients.renew()
    if full == "sink":
        with filled(disk, 0):
            register_until_full(clients)
        assert clients.register().status_code == 201
        return
    with ExitStack() as filling:
        if full == "limit":
            # No other file that the service writes is as long as the database.
            filling.enter_context(limited(clients.ground.service.worker_pids()[0], database, room))
        else:
            filling.enter_context(filled(disk, room))
        refused = allocate_until_full(clients)
        # Who only asks how the service is hears of it too, and those who read are answered as far as it goes.
        alive = httpx.get(f"{clients.ground.service.base_url}/livez", trust_env=False)
        assert alive.status_code == httpx.codes.OK
    assert clients.allocate(refused).status in {200, 201}
