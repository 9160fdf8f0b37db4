"""The n-th write or sync fails, again and again, under a real service: no 2xx without durability, no duplicate after it."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from random import Random
from types import MappingProxyType
from typing import Final

import httpx
import pytest
from sqlalchemy import make_url, select

from app.storage import tables
from app.storage.database import Database
from app.storage.sink import FileSink
from tests.databases import postgres_server
from tests.reliability import builds, io_errors, load
from tests.reliability.conftest import Ground
from tests.reliability.crash_images import why_not
from tests.reliability.io_errors import Injection
from tests.reliability.load import Journal
from tests.reliability.records import check_database, check_records
from tests.reliability.service import OpenStudy, Service, Sponsor
from tests.reliability.tally import Tally
from tests.reliability.test_kill import check_journal
from tests.reliability.test_rotation import with_new_token

LONG: Final = (pytest.mark.long, pytest.mark.timeout(0))
pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))

CLIENTS: Final = 4
PART: Final = 24


@dataclass
class Traffic:
    """Clients of a study: what they still ask for, and what they know."""

    ground: Ground
    study: OpenStudy
    journal: Journal
    pending: list[load.Request]
    people: list[str] = field(default_factory=list)
    checkpoints: list[str] = field(default_factory=list)
    refused: int = 0
    token: str = ""
    """Of an administrator."""
    names: Iterator[str] = field(default_factory=lambda: (f"person.{number}" for number in itertools.count()))

    @classmethod
    def on(cls, ground: Ground, subjects: int) -> "Traffic":
        """Open a study with so many subjects to come."""
        study = ground.open_study(subjects)
        requests = load.requests_for(study, [f"S-{number:05}" for number in range(subjects)], keyed=True)
        return cls(ground, study, Journal(ground.folder / "journal.jsonl"), requests)

    def renew(self) -> None:
        """Sign in anew, while nothing fails: a machine's token ends after half an hour, and a token may be lost like any answer."""
        self.pending = with_new_token(self.study, self.pending)
        admin = self.study.trial.admin
        admin.token = ""
        self.token = self.study.trial._token(admin, step_up=False)

    def allocate(self, is_over: Callable[[], bool] = lambda: False) -> None:
        """Have some subjects allocated, by clients that ask until they are answered, or until it is over."""
        part, self.pending = self.pending[:PART], self.pending[PART:]
        assert part, "the study is too small for so many errors"
        load.run(self.ground.service.port, part, CLIENTS, journal=self.journal, is_over=is_over)

    def register(self) -> None:
        """Register some people, each of whom is answered only once the checkpoint is in the sink.

        Each is asked for once: whoever was refused may be there or not, and is nobody that a client knows of.
        """
        token = {"Authorization": f"Bearer {self.token}"}
        with httpx.Client(base_url=self.ground.service.base_url, trust_env=False, timeout=30) as client:
            for name in itertools.islice(self.names, PART):
                body = {"username": name, "display_name": name, "email": f"{name}@example.org"}
                response = client.post("/v1/people", json=body, headers=token)
                if response.status_code == httpx.codes.CREATED:
                    self.people.append(name)
                    self.checkpoints.append(response.headers["Audit-Checkpoint"])
                else:
                    assert (response.status_code, response.json()["code"]) == (503, "audit_unavailable")
                    self.refused += 1

    def check(self) -> None:
        """Kill every process, start anew, and look for all that a client was told."""
        service = self.ground.service
        service.kill()
        service.start()
        known = check_journal(check_records(service, self.study, self.ground.folder), self.journal)
        assert len(known) == self.journal.count
        database = Database(service.url)
        with database.transaction() as tx:
            names = set(tx.execute(select(tables.principal.c.name)).scalars())
        database.close()
        assert names.issuperset(self.people)
        roots = {checkpoint.root for checkpoint in FileSink(service.sink).checkpoints()}
        assert roots.issuperset(header.split()[1] for header in self.checkpoints)


@dataclass(frozen=True)
class Fault:
    """Calls of one kind on some files that fail with one error, while somebody asks."""

    call: str
    error: str
    files: Sequence[Path]
    ask: Callable[[Traffic], None]

    def inject(self, traffic: Traffic, errors: int, step: int, build: Mapping[str, str] = MappingProxyType({})) -> int:
        """Have at least so many calls of the service fail, and return how many did; what runs then has not ended in order."""
        service, out = traffic.ground.service, traffic.ground.folder / "strace"
        traffic.renew()
        service.kill()
        service.start(build, under=io_errors.strace(Injection(self.call, self.error, step), self.files, out))
        while io_errors.count(out) < errors:
            self.ask(traffic)
        # Nothing more fails unheard between the last answer and the counting.
        service.kill()
        return io_errors.count(out)


def of_records(service: Service) -> list[Fault]:
    """Return the faults of SQLite's database and journal."""
    database = Path(str(make_url(service.url).database))
    files = [database, Path(f"{database}-journal"), database.parent]
    calls = ("pwrite64", "fdatasync", "unlink")
    return [Fault(call, error, files, Traffic.allocate) for call in calls for error in ("EIO", "ENOSPC")]


def of_sink(service: Service) -> list[Fault]:
    """Return the faults of the file sink."""
    calls = ("write", "fsync")
    return [Fault(call, error, [service.sink], Traffic.register) for call in calls for error in ("EIO", "ENOSPC")]


def step_of(fault: Fault, chance: Random) -> int:
    """Return from which call to the next error it is, so that the errors fall on all calls of an act in turn.

    An act writes up to 130 times and syncs up to eight times, a rollback's included: were the step shorter, every try of an act
    would meet an error, and none would ever be done.
    """
    steps = {"pwrite64": (211, 223, 239, 251), "fdatasync": (11, 13, 17, 19)}
    return chance.choice(steps.get(fault.call, (3, 4, 5, 6, 7)))


def fail_the_sink(
    traffic: Traffic, fault: Fault, errors: int, step: int, build: Mapping[str, str] = MappingProxyType({})
) -> int:
    """Inject errors into the sink; each but those that the keeper's own rounds met has one act refused."""
    refused = traffic.refused
    failed = fault.inject(traffic, errors, step, build)
    refused = traffic.refused - refused
    assert refused <= failed <= refused + 3, f"{failed} errors, and {refused} acts refused"
    return failed


@pytest.mark.parametrize("database_kind", ["sqlite"])
@pytest.mark.parametrize("errors", [pytest.param(120, marks=LONG)])
def test_errors_of_the_disk_under_sqlite(ground: Ground, errors: int, round_seed: int, tally: Tally) -> None:
    """Writes, syncs and unlinks of database and journal, writes and syncs of the sink, EIO and ENOSPC [C6, D4, INT-01; T3, G3]"""
    chance = Random(round_seed)
    traffic = Traffic.on(ground, 40 * errors)
    records, sink = of_records(ground.service), of_sink(ground.service)
    each = -(-errors // (len(records) + len(sink)))
    failed = 0
    for fault in records:
        failed += fault.inject(traffic, each, step_of(fault, chance))
        traffic.check()
    for fault in sink:
        failed += fail_the_sink(traffic, fault, each, step_of(fault, chance))
        traffic.check()
    tally(errors=failed, acknowledged=traffic.journal.count, acknowledged_people=len(traffic.people))
    assert failed >= errors


@pytest.mark.parametrize("errors", [pytest.param(12, marks=LONG)])
def test_errors_of_the_log_under_postgresql(tmp_path: Path, errors: int, round_seed: int, tally: Tally) -> None:
    """Each ends PostgreSQL and every session of it, which recovers by itself; what was acknowledged stands [C6, INT-01; T3, G3]"""
    chance = Random(round_seed)
    out = tmp_path / "strace"
    with postgres_server() as server, server.database() as url, Service(tmp_path, url, 2) as service:
        issued = service.create()
        service.start()
        sponsor = Sponsor(service, issued)
        # Each session counts its own calls, and all begin anew after an error: it comes after a few hundred acts at the latest.
        traffic = Traffic.on(Ground(service, sponsor, tmp_path), 400 * errors)
        # The segments of the log that the traffic of this test can reach.
        segments = [server.data / "pg_wal" / f"{1:08X}{0:08X}{number:08X}" for number in range(1, 40)]
        failed = 0
        for call, error in itertools.product(("pwrite64", "fdatasync"), ("EIO", "ENOSPC")):
            traffic.renew()
            out.unlink(missing_ok=True)
            # Of each session that begins from now on; the service's are ended by the first error.
            service.stop()
            with io_errors.injecting(server.pid, Injection(call, error, chance.randint(20, 40)), segments, out):
                service.start()
                while io_errors.count(out) < -(-errors // 4):
                    traffic.allocate()
            failed += io_errors.count(out)
            traffic.check()
        sponsor.close()
    tally(log_errors=failed, acknowledged=traffic.journal.count)
    assert failed >= errors


# -- builds with a fault -------------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.timeout(0)
@pytest.mark.parametrize("database_kind", ["sqlite"])
def test_a_build_that_does_not_hear_a_failed_commit_is_caught(ground: Ground) -> None:
    """Negative control: what it acknowledged is not there after the kill [C6; T3]"""
    traffic = Traffic.on(ground, 480)
    strace = ground.folder / "strace"
    # A checkpoint of what was lost may have gone out: then the service suspects a rollback, rightly, and allocates no more.
    fault = replace(
        next(fault for fault in of_records(ground.service) if fault.call == "fdatasync"),
        ask=partial(Traffic.allocate, is_over=lambda: io_errors.count(strace) >= 12),
    )
    # Eleven from one to the next, so that the errors fall on all syncs of an act in turn: that of the folder comes too late to
    # undo it.
    fault.inject(traffic, 12, 11, builds.chosen(ground.folder, "deaf to commit"))
    with pytest.raises(KeyError, match="S-"):
        check_journal(check_database(ground.service, traffic.study), traffic.journal)


@pytest.mark.long
@pytest.mark.timeout(0)
@pytest.mark.parametrize("database_kind", ["sqlite"])
def test_a_build_that_does_not_hear_a_failed_sync_of_the_sink_is_caught(ground: Ground) -> None:
    """Negative control: more errors than acts were refused [D4; T3]"""
    traffic = Traffic.on(ground, 8)
    fault = next(fault for fault in of_sink(ground.service) if fault.call == "fsync")
    deaf = builds.chosen(ground.folder, "deaf to the sink")
    with pytest.raises(AssertionError, match="and 0 acts refused"):
        fail_the_sink(traffic, fault, 12, 3, deaf)
