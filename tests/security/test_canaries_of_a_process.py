"""Canaries in a real `snose serve`: what was typed, given out or treated with, sought in everything that the process leaves behind.

A study of canaries is run over HTTP; every operation is sent them in body, path, query, header and token; then a stored value makes
the service fail, a migration fails, and workers crash. Searched are stdout and stderr, the metrics as they are served and in their
files, the sink of checkpoints, every file left in the folders, the log of PostgreSQL with all statements and parameters, and the
database itself (BLD-13, T14, T27; rules B3, F1, G1).
"""

import io
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import httpx
import psycopg
import pytest

from app.cli.trial import Machine, Person, StudyProtocol, Trial, sleep_until_next_step
from app.domain.words import Role
from app.errors import DatabaseUnavailable
from app.storage import migrate
from tests.databases import Postgres, PostgresServer
from tests.reliability.service import Service, _free_port
from tests.security.operations import Operation, operations_of
from tests.security.test_canaries import TYPED
from tests.security.test_dump import copied, spellings

ROOT: Final = Path(__file__).parents[2]
FILL: Final = "CANARY-FILL-5B"
"""What is sent in the place of every text of every example; some of it is a name, and is kept as one."""
# Six digits could stand in a time by chance.
WORDS: Final = {**TYPED, "one-time code": "814159-CANARY", "fill": FILL}
STUDY: Final = "CANARIES-1"
SUBJECTS: Final = 4
TEAM: Final = (
    Role.STUDY_ADMIN,
    Role.STATISTICIAN,
    Role.LIST_APPROVER,
    Role.SUPPLY_MANAGER,
    Role.PHARMACIST,
    Role.INVESTIGATOR,
    Role.INVESTIGATOR,
    Role.COORDINATOR,
    Role.MONITOR,
    Role.INSPECTOR,
    Role.SAFETY_OFFICER,
    Role.UNBLINDED_PHARMACIST,
)
IN_CLEAR: Final = frozenset({"subject", "visit", "reported user", "contact", "fill"})
"""Typed words whose place is a row in clear: pseudonyms, codes and the study's own contact; and no other sink."""
OF_ARMS: Final = frozenset({"arm code", "label", "treatment"})
"""Words that stand in clear where the study defines its arms, and nowhere else."""
FAULTY_ZONE: Final = "Canary/ZONE-OF-A-FAULT"


class CanaryTrial(Trial):
    """A trial in whose every text a canary sits; what it gets back that opens something, it remembers."""

    def __init__(self, *arguments: Any, **named: Any) -> None:  # noqa: ANN401  # as a trial takes them
        super().__init__(*arguments, **named)
        self.statuses: list[int] = []
        self.problems: list[bytes] = []

    def send(self, method: str, path: str, **more: Any) -> httpx.Response:  # noqa: ANN401  # as httpx takes them
        client = self.client
        assert isinstance(client, httpx.Client)
        response = client.request(method, path, **more)
        self.statuses.append(response.status_code)
        if response.status_code >= 400:  # HTTP's own
            self.problems.append(response.content)
        return response

    def bearer(self, who: Person | Machine, *, step_up: bool = False) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._token(who, step_up=step_up)}"}

    def run(self) -> bytes:
        """Play the trial and return the final package."""
        for role in TEAM:
            self.join(f"{role.value}.{len(self.people.get(role, ())) + 1}", role)
        self.edc = self.join_machine("EDC system")
        admin, study = self.who(Role.STUDY_ADMIN), self.study
        definition = {
            "study_code": STUDY,
            "title": "A study of canaries",
            "blinding": "double",
            "planned_subjects": self.protocol.planned_subjects,
            "stock_floor": 3,
            "arms": self.protocol.arms,
            "factors": [],
            "stratify_by_site": False,
            "backup_contact": WORDS["contact"],
        }
        self.ask(admin, "POST", "/v1/studies", definition)
        site = {"site_code": self.site_code, "name": "Nanjing", "timezone": "Asia/Shanghai"}
        self.ask(admin, "POST", f"{study}/sites", site)
        self.make_list((2, 4))
        self.send_kits()
        self.open()
        for number in range(1, SUBJECTS + 1):
            self.enrol(number)
        self.say_reasons()
        self.send_everywhere()
        self.break_and_tell()
        self.close()
        return self.unblind()

    def send_kits(self) -> None:
        day = self.now().date() + timedelta(days=700)
        kits = [
            {"arm_code": arm["arm_code"], "lot": f"{WORDS['lot']}{at}", "expires_on": day.isoformat(), "count": 8}
            for at, arm in enumerate(self.protocol.arms)
        ]
        manager, path = self.who(Role.SUPPLY_MANAGER), f"{self.study}/consignments"
        self.ask(manager, "POST", path, {"consignment_code": "C1", "kits": kits}, step_up=True)
        self.ask(manager, "POST", f"{path}/C1/dispatch", {"site_code": self.site_code})
        received = {"received": self.kit_codes("C1"), "missing": []}
        self.ask(self.who(Role.PHARMACIST), "POST", f"{path}/C1/receipt", received)

    def say_reasons(self) -> None:
        """Type canaries where they belong."""
        reason, subject = WORDS["reason"], f"{self.study}/subjects/{self.subject_id(1)}"
        pharmacist, code = self.who(Role.PHARMACIST), self.allocations[0]["kit_code"]
        body: dict[str, Any] = {"reason_code": "lost", "reason": reason}
        self.ask(pharmacist, "POST", f"{self.study}/kits/{code}/replacement", body)
        body = {"category": "other", "reason": reason}
        self.ask(self.who(Role.INVESTIGATOR), "POST", f"{subject}/error-mark", body, step_up=True)
        self.ask(self.edc, "POST", f"{subject}/kits", {"visit": WORDS["visit"]})
        body = {
            "subject_id": WORDS["subject"],
            "site_code": self.site_code,
            "strata": {},
            "consent_confirmed": True,
            "eligibility_confirmed": True,
            "reported_user": WORDS["reported user"],
        }
        self.ask(self.edc, "POST", f"{self.study}/allocations", body)

    def break_and_tell(self) -> None:
        investigator, breaks = self.people[Role.INVESTIGATOR][1], f"{self.study}/code-breaks"
        body = {"subject_id": self.subject_id(2), "reason_code": "overdose"}
        broken = self.ask(investigator, "POST", breaks, body, step_up=True).json()
        narrative = {"narrative": WORDS["narrative"]}
        self.ask(investigator, "POST", f"{breaks}/{broken['code_break_id']}/narrative", narrative)
        officer = self.who(Role.SAFETY_OFFICER)
        body = {"subject_id": self.subject_id(3), "reason": WORDS["reason"]}
        self.ask(officer, "POST", f"{self.study}/safety-unblindings", body, step_up=True)

    def send_everywhere(self) -> None:
        """Send every operation canaries, by somebody who may: in place of every text, in the path, as rubbish, as a token."""
        known = {"study": STUDY, "site": self.site_code, "subject": self.subject_id(1), "code": "C1", "index": "2"}
        everybody = [self.admin, *(held[0] for held in self.people.values()), self.edc]
        assert isinstance(self.client, httpx.Client)
        for operation in operations_of(self.client.get("/openapi.json").json()):
            if operation.name in {"sign_out", "livez", "readyz"}:
                continue
            who = next((one for one in everybody if one is not None and one.roles[0] in operation.entitled), None)
            headers = self.bearer(who) if who is not None else {}
            # A proof that is good for one act is kept for that act.
            if not operation.spends_the_proof and isinstance(who, Person) and who.stepped_up:
                headers = {"Authorization": f"Bearer {who.stepped_up}"}
            for path in (operation.at(known), operation.at({"study": STUDY, **_canary_path(operation)})):
                self.send_canaries(operation, path, headers)
            self.send(operation.method, operation.at(known), headers={"Authorization": f"Bearer {WORDS['token']}"})

    def send_canaries(self, operation: Operation, path: str, headers: Mapping[str, str]) -> None:
        query = {"cursor": WORDS["token"], "limit": WORDS["reason"], "subject": WORDS["subject"]}
        if not operation.bodies:
            self.send(operation.method, path, params=query, headers={**headers, "Idempotency-Key": WORDS["token"]})
        for media_type, example in operation.bodies.items():
            filled = _filled(example)
            for body in (
                filled,
                {**filled, WORDS["unknown field"]: WORDS["reason"]} if isinstance(filled, dict) else 1,
            ):
                content = body if isinstance(body, str) else json.dumps(body)
                sent = {**headers, "Content-Type": media_type}
                self.send(operation.method, path, content=content.encode(), headers=sent)
            self.send(operation.method, path, content=json.dumps(WORDS).encode()[:-1], headers=headers)


def _canary_path(operation: Operation) -> dict[str, str]:
    return {name: quote(WORDS["subject"]) for name in re.findall(r"\{([^}]+)\}", operation.path) if name != "study"}


def _filled(example: object) -> Any:  # noqa: ANN401  # a JSON value
    """Return an example with a canary in the place of every text."""
    if isinstance(example, dict):
        return {name: _filled(value) for name, value in example.items()}
    if isinstance(example, list):
        return [_filled(value) for value in example]
    return FILL if isinstance(example, str) else example


@dataclass
class Left:
    """Everything that a service and what happened to it left behind."""

    secrets: dict[str, bytes]
    """What opens something, by its name."""
    codes: set[str]
    """Kit codes and randomization numbers."""
    sinks: dict[str, bytes]
    """Every sink that is no database, by its name."""
    database: bytes
    arms_table: bytes
    statements: list[str]
    """Records of the log of PostgreSQL, each statement with its parameters."""
    problems: list[bytes]
    statuses: set[int]
    limits: dict[int, str] = field(default_factory=dict)
    """What the kernel says of the limits of every process of the service."""
    cores: list[Path] = field(default_factory=list)


@pytest.fixture(scope="module", params=[pytest.param("sqlite", marks=pytest.mark.long), "postgresql"])
def left(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Left]:
    """A service that was sent every canary, failed, and crashed; the push form has the one with the more sinks."""
    folder = tmp_path_factory.mktemp("process")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("work", "tmp"):
            (folder / name).mkdir()
        # Whatever is written beside a path of its own is written where we look: a core, a file of the moment.
        patch.chdir(folder / "work")
        patch.setenv("TMPDIR", str(folder / "tmp"))
        patch.setenv("PYTHONPATH", str(ROOT))
        if request.param == "sqlite":
            yield observed(folder, f"sqlite:///{folder / 'snose.sqlite'}", None)
            return
        server: Postgres = request.getfixturevalue("postgres")
        with server.database() as url:
            with psycopg.connect(url, autocommit=True) as connection:
                for setting in ("log_statement = 'all'", "log_min_duration_statement = 0"):
                    connection.execute(f'ALTER DATABASE "{connection.info.dbname}" SET {setting}')
            yield observed(folder, url, PostgresServer.__dict__["log"].fget(server))


def observed(folder: Path, url: str, log: Path | None) -> Left:
    """Return what is left of a whole life of the service."""
    begun = log.stat().st_size if log is not None else 0
    with Service(folder, url, 2 if log is not None else 1) as service:
        metrics_port = _free_port()
        service._environment["SNOSE_METRICS_PORT"] = str(metrics_port)
        issued = service.create()
        service.start()
        with httpx.Client(base_url=service.base_url, timeout=60, trust_env=False) as client:
            trial = trial_of(client)
            trial.own(trial.admin, issued)
            package = trial.run()
            fail_inside(trial, url)
            found = Left({}, set(), {}, b"", b"", [], trial.problems, set(trial.statuses))
            with httpx.Client(trust_env=False) as scraper:
                found.sinks["metrics"] = scraper.get(f"http://127.0.0.1:{metrics_port}/metrics").content
            found.limits = {pid: limits_of(pid) for pid in (service.pid, *service.worker_pids())}
            read_files(found, folder, "while it runs")
            crash(service, client)
            found.sinks["failed migration"] = failed_migration(service, url)
        service.stop()
    found.cores = [path for path in folder.rglob("*") if "core" in path.name.lower()]
    read_files(found, folder, "after it")
    found.secrets = {"issued password": issued.encode(), **secrets_of(trial), **seeds_of(package)}
    found.codes = {one[name] for one in trial.allocations for name in ("kit_code", "randomization_number")}
    dump(found, url)
    if log is not None:
        with log.open("rb") as file:
            file.seek(begun)
            found.statements = statements_of(file.read().decode(errors="replace"))
    return found


def trial_of(client: httpx.Client) -> CanaryTrial:
    arms = (
        {"arm_code": WORDS["arm code"], "label": WORDS["label"], "treatment": WORDS["treatment"], "ratio": 1},
        {
            "arm_code": f"{WORDS['arm code']}2",
            "label": f"{WORDS['label']} 2",
            "treatment": f"{WORDS['treatment']} 2",
            "ratio": 1,
        },
    )
    admin = Person("first.admin", "canary password of the first", "", (Role.SERVICE_ADMIN,))
    protocol = StudyProtocol(STUDY, "Canaries", 8, arms)
    return CanaryTrial(client, lambda: datetime.now(UTC), sleep_until_next_step, admin, protocol=protocol)


def fail_inside(trial: CanaryTrial, url: str) -> None:
    """Have the service meet a stored value that it cannot read, and says so in a message with that value in it."""
    change = f"UPDATE site SET timezone = '{FAULTY_ZONE}'"  # noqa: S608  # our own constant
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
            names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger' AND tbl_name = 'site'")
            for (name,) in names.fetchall():
                connection.execute(f'DROP TRIGGER "{name}"')
            connection.execute(change)
            connection.commit()
    else:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("ALTER TABLE site DISABLE TRIGGER ALL")
            connection.execute(change)
    path = f"{trial.study}/sites/{trial.site_code}/kits"
    headers = trial.bearer(trial.who(Role.PHARMACIST))
    assert trial.send("GET", path, headers=headers).status_code == httpx.codes.INTERNAL_SERVER_ERROR


def crash(service: Service, client: httpx.Client) -> None:
    """Have the workers die of a fault of memory, and wait until others have taken their place."""
    died = service.worker_pids()
    for pid in died:
        os.kill(pid, signal.SIGSEGV)
    until = time.monotonic() + 60
    while time.monotonic() < until:
        if set(service.worker_pids()).isdisjoint(died):
            try:
                if client.get("/readyz").status_code == httpx.codes.OK:
                    return
            except httpx.TransportError:
                pass
        time.sleep(0.05)
    pytest.fail("nobody took the place of the crashed workers")


def failed_migration(service: Service, url: str) -> bytes:
    """Have a migration meet a database of canaries that is not as it should be, and return all that the command said."""
    back = "UPDATE alembic_version SET version_num = '0001'"
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
            connection.execute(back)
            connection.commit()
    else:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(back)
        # The server lets everybody in; a password in the URL is one that must not be told all the same.
        service._environment["SNOSE_MIGRATION_URL"] = url.replace("postgres@", f"postgres:{quote(WORDS['password'])}@")
    finished = subprocess.run(
        [sys.executable, "-m", "app.cli", "migrate"],
        env={**os.environ, **service._environment},
        capture_output=True,
        check=False,
    )
    assert finished.returncode == 1
    assert b"The migration failed and was rolled back" in finished.stderr
    assert b"Traceback" not in finished.stderr
    return finished.stdout + finished.stderr


def limits_of(pid: int) -> str:
    return next(line for line in Path(f"/proc/{pid}/limits").read_text(encoding="ascii").splitlines() if "core" in line)


def read_files(found: Left, folder: Path, when: str) -> None:
    """Read every file of the folders but the database's own and the key."""
    for path in folder.rglob("*"):
        if path.is_file() and path.name != "key" and not path.name.startswith("snose.sqlite"):
            found.sinks[f"{path.relative_to(folder)} {when}"] = path.read_bytes()


def dump(found: Left, url: str) -> None:
    """Read the whole database, and apart from it the table that defines the arms."""
    if url.startswith("sqlite"):
        path = Path(url.removeprefix("sqlite:///"))
        with closing(sqlite3.connect(path)) as connection:
            found.arms_table = repr(connection.execute("SELECT * FROM arm").fetchall()).encode()
        found.database = b"".join(one.read_bytes() for one in path.parent.glob("snose.sqlite*"))
    else:
        tables = copied(url)
        found.arms_table = tables["arm"].encode()
        found.database = "".join(tables.values()).encode()


def secrets_of(trial: CanaryTrial) -> dict[str, bytes]:
    secrets: dict[str, bytes] = {}
    for person in (trial.admin, *(one for held in trial.people.values() for one in held)):
        parts = replace(person)
        for name in ("password", "totp_secret", "token", "stepped_up"):
            secrets[f"{name} of {person.username}"] = getattr(parts, name).encode()
    assert trial.edc is not None
    secrets |= {"client secret": trial.edc.client_secret.encode(), "client token": trial.edc.token.encode()}
    return {name: secret for name, secret in secrets.items() if secret}


def seeds_of(package: bytes) -> dict[str, bytes]:
    """Return the seeds that the final package opens at last."""
    with zipfile.ZipFile(io.BytesIO(package)) as archive:
        schedules = json.loads(archive.read("schedules.json"))["schedules"]
    return {f"seed {at}": bytes.fromhex(one["seed"]) for at, one in enumerate(schedules)}


def statements_of(log: str) -> list[str]:
    """Return the records of a server's log, a statement together with its parameters."""
    records: list[str] = []
    for line in log.splitlines():
        if re.match(r"\d{4}-\d\d-\d\d .*(LOG|ERROR|WARNING|NOTICE|FATAL|STATEMENT):", line):
            records.append(line)
        elif records:
            records[-1] += "\n" + line
    return records


def words_of(word: str) -> set[bytes]:
    """Return how a typed word may be written: as it is, and as bytes are."""
    return {spelling.lower().encode() for spelling in spellings(word.encode())}


class TestCanariesOfAProcess:
    def test_the_play(self, left: Left) -> None:
        """It was sent all over: answers of every class, a fault of our own among them. [T14]"""
        assert left.statuses >= {200, 201, 400, 401, 404, 409, 422, 500}
        assert len(left.problems) > 200
        assert len(left.secrets) >= 50
        assert {
            "metrics",
            "failed migration",
            "service.log after it",
            "checkpoints.jsonl after it",
        } <= left.sinks.keys()
        assert b'"fault"' in left.sinks["service.log after it"]
        assert b"snose_requests_total" in left.sinks["metrics"]
        assert any(name.startswith("tmp/") for name in left.sinks), "the metrics of the workers lie in files"

    def test_sinks(self, left: Left) -> None:
        """No canary, secret, seed or code in output, metrics, sink or any file left behind. [BLD-13, SIG-07, T14]"""
        unwanted = {name: words_of(word) for name, word in {**WORDS, "zone of the fault": FAULTY_ZONE}.items()}
        unwanted |= {name: {s.lower().encode() for s in spellings(secret)} for name, secret in left.secrets.items()}
        unwanted |= {code: {code.lower().encode()} for code in left.codes}
        assert [
            (sink, name)
            for sink, content in left.sinks.items()
            for name, words in unwanted.items()
            for word in words
            if word in content.lower()
        ] == []

    def test_problems(self, left: Left) -> None:
        """No problem echoes a value that was sent. [rule G1]"""
        values = {name: word.encode() for name, word in WORDS.items() if name != "unknown field"}
        assert [(name, body) for body in left.problems for name, word in values.items() if word in body] == []

    def test_database(self, left: Left) -> None:
        """What is secret, free text or a lot is in the database nowhere; arms only where they are defined. [BLD-05, CUS-04, F1]"""
        content = left.database.lower()
        hidden = {name: word for name, word in WORDS.items() if name not in IN_CLEAR | OF_ARMS}
        assert [name for name, word in hidden.items() for s in words_of(word) if s in content] == []
        assert [
            name for name, secret in left.secrets.items() for s in spellings(secret) if s.encode() in left.database
        ] == []
        for name in ("label", "treatment"):
            word = WORDS[name].encode()
            assert left.database.count(word) == left.arms_table.count(word) == 2, name
        assert WORDS["subject"].encode() in left.database, "the dump is one of this trial"

    def test_log_of_the_server(self, left: Left, request: pytest.FixtureRequest) -> None:
        """With every statement and parameter logged: secrets and free text nowhere, arms only in their definition. [B3, T32]"""
        if "sqlite" in request.node.name:
            assert left.statements == []
            return
        assert len(left.statements) > 1000
        assert any("Parameters" in record or "parameters" in record for record in left.statements)
        unwanted = {name: words_of(word) for name, word in WORDS.items() if name not in IN_CLEAR | OF_ARMS}
        unwanted |= {name: {s.lower().encode() for s in spellings(secret)} for name, secret in left.secrets.items()}
        everything = "\n".join(left.statements).lower().encode()
        assert [name for name, words in unwanted.items() for word in words if word in everything] == []
        telling = [
            record
            for record in left.statements
            for name in OF_ARMS
            if any(word in record.lower().encode() for word in words_of(WORDS[name]))
        ]
        assert telling
        assert [record for record in telling if not re.search(r"INSERT INTO arm\b", record)] == []


class TestMigration:
    @pytest.mark.parametrize("database_kind", ["sqlite"])
    def test_to_a_revision_that_is_not_ours(self, database_url: str) -> None:
        """An unknown revision is told in a plain sentence. [INT-03]"""
        with pytest.raises(DatabaseUnavailable, match="does not know"):
            migrate.upgrade(database_url, "9999")


class TestCrash:
    def test_of_a_worker(self, left: Left) -> None:
        """Workers died of SIGSEGV, and no core is left; none of the processes may write one. [T27, custody.md]"""
        assert left.cores == []
        assert len(left.limits) >= 2
        assert all(re.search(r"Max core file size\s+0\s+0\b", limit) for limit in left.limits.values())

    @pytest.mark.skipif(sys.platform != "linux", reason="prctl(2) is Linux's")
    def test_process_is_not_dumpable(self) -> None:
        """Nor is one piped to a program, where the limit does not bind (core(5)). [T27, custody.md]"""
        program = (
            "import ctypes, resource; from app.process import refuse_core_dumps; prctl = ctypes.CDLL(None).prctl; "
            "before = prctl(3, 0, 0, 0, 0); refuse_core_dumps(); "
            "print(before, prctl(3, 0, 0, 0, 0), resource.getrlimit(resource.RLIMIT_CORE))"
        )
        said = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
        assert said.stdout.split(maxsplit=2) == ["1", "0", "(0, 0)\n"] or said.stdout == "1 0 (0, 0)\n"

    def test_without_it_a_core_is_left(self, tmp_path: Path) -> None:
        """The search finds a core where one is written: what a process holds is in it. [T27]"""
        pattern = Path("/proc/sys/kernel/core_pattern")
        if sys.platform != "linux" or pattern.read_text(encoding="ascii").startswith(("|", "/")):
            pytest.skip("cores of this machine go elsewhere")
        program = (
            "import os, resource; hard = resource.getrlimit(resource.RLIMIT_CORE)[1]; "
            "resource.setrlimit(resource.RLIMIT_CORE, (hard, hard)); word = ' '.join(['CANARY', 'IN', 'MEMORY']); os.abort()"
        )
        subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=False)
        cores = list(tmp_path.iterdir())
        if not cores:
            pytest.skip("the hard limit of this machine allows no core")
        assert b"CANARY IN MEMORY" in cores[0].read_bytes()
