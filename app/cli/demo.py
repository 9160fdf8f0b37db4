"""`snose demo`: a throw-away deployment on loopback that runs the whole of NCT03033277 and checks everything at the end."""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Final
from zipfile import ZipFile

import httpx
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from app.cli.trial import Person, Trial, sleep_until_next_step
from app.domain.words import Role
from app.errors import SnoseError, UnsafeSetting
from app.sealing.providers import KeyFileProvider
from app.services import startup
from app.services.people import register_first_admin
from app.settings import Settings
from app.storage import migrate
from app.storage.database import Database
from app.surroundings import surroundings

READY_SECONDS: Final = 60
FILES: Final = (
    "snose-demo.db",
    "snose-demo.db.lock",
    "snose-demo.db-journal",
    "snose-demo.key",
    "snose-demo-checkpoints.jsonl",
    "snose-demo-final-package.zip",
    "snose-demo-trail.jsonl",
    "snose-demo.log",
)
TEAM: Final = (
    Role.STUDY_ADMIN,
    Role.INVESTIGATOR,
    Role.COORDINATOR,
    Role.PHARMACIST,
    Role.MONITOR,
    Role.INSPECTOR,
    Role.STATISTICIAN,
    Role.LIST_APPROVER,
    Role.SUPPLY_MANAGER,
    Role.UNBLINDED_PHARMACIST,
    Role.SAFETY_OFFICER,
    Role.TREATING_PHYSICIAN,
)
ACTORS: Final = (
    Role.STUDY_ADMIN,
    Role.INVESTIGATOR,
    Role.PHARMACIST,
    Role.INSPECTOR,
    Role.STATISTICIAN,
    Role.LIST_APPROVER,
    Role.SUPPLY_MANAGER,
)
"""Who acts in the run; nobody of them is listed, so that no one-time code of a listed person is spent."""

command = typer.Typer()

Advance = Callable[[int], None]
"""Moves the bar by so many steps."""


@dataclass(frozen=True, slots=True)
class Options:
    """The options of the command."""

    subjects: int
    exit: bool
    serve_only: bool
    port: int
    data: Path | None
    database: str | None
    as_json: bool


class Stopped(Exception):
    """Somebody asked the command to end."""


@command.command()
def demo(  # one parameter for each option of api.md
    subjects: Annotated[int, typer.Option(min=1, max=320, help="How many of the 320 to enrol.")] = 320,
    *,
    exit_: Annotated[bool, typer.Option("--exit", help="End after the summary.")] = False,
    serve_only: Annotated[bool, typer.Option("--serve-only", help="Stop before the first subject.")] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on loopback; 0 picks one.")] = 0,
    data: Annotated[Path | None, typer.Option(help="Folder for the demo's files.")] = None,
    database: Annotated[str | None, typer.Option(help="PostgreSQL URL, empty or of an earlier demo.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON on stdout.")] = False,
) -> None:
    """Run the whole trial NCT03033277 on a throw-away deployment, then go on serving."""
    _run(Options(subjects, exit_, serve_only, port, data, database, as_json), as_json=as_json)


def _run(options: Options, *, as_json: bool) -> None:
    """Run the demo; raises ``SnoseError`` with one plain sentence when it cannot."""
    console = Console(stderr=True)
    signal.signal(signal.SIGTERM, _stop)
    begun = time.monotonic()
    try:
        with _folder(options.data) as folder, _deployment(options, folder) as (trial, base_url):
            listed, admin = _invite(trial)
            with _steps(console, options) as advance:
                _prepare(trial, advance)
                outcome = None if options.serve_only else _whole_trial(trial, options, folder, advance)
            line: dict[str, Any] = {
                "base_url": base_url,
                "study_code": trial.protocol.study_code,
                "people": [_told(person) for person in [admin, *listed]],
                "clients": [
                    {
                        "client_id": trial.edc.client_id,
                        "client_secret": trial.edc.client_secret,
                        "roles": [role.value for role in trial.edc.roles],
                    }
                ]
                if trial.edc is not None
                else [],
            }
            if outcome is not None:
                outcome["seconds"] = round(time.monotonic() - begun, 1)
                line["summary"] = outcome
                _show(console, outcome)
            if as_json:
                sys.stdout.write(json.dumps(line) + "\n")
                sys.stdout.flush()
            elif not options.exit:
                _show_people(console, base_url, [admin, *listed])
            failed = outcome is not None and not (outcome["trail_verified"] and outcome["list_verified"])
            if failed:
                message = "The offline verifier found a fault; see the lines above."
                raise SnoseError(message)
            if not options.exit:
                console.print(f"Serving at {base_url} until stopped (Ctrl+C).")
                while True:
                    time.sleep(3600)
    except (KeyboardInterrupt, Stopped):
        console.print("Stopped.")


def _stop(_number: int, _frame: FrameType | None) -> None:
    raise Stopped


@contextmanager
def _folder(wanted: Path | None) -> Iterator[Path]:
    """Give the folder of the demo's files; one that this command made is removed at the end."""
    if wanted is None:
        folder = Path(tempfile.mkdtemp(prefix="snose-demo-"))
        made = True
    else:
        folder = wanted.absolute()
        made = not folder.exists()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name in FILES:
        (folder / name).unlink(missing_ok=True)
    try:
        yield folder
    finally:
        if made:
            shutil.rmtree(folder)


@contextmanager
def _deployment(options: Options, folder: Path) -> Iterator[tuple[Trial, str]]:
    """Give the script's hands on a running service of mode `test`, and where it listens."""
    url = options.database or f"sqlite:///{folder / 'snose-demo.db'}"
    _require_throw_away(url)
    key_file = folder / "snose-demo.key"
    KeyFileProvider.create(key_file, secrets.token_bytes(32))
    port = options.port or _free_port()
    environment = {
        "SNOSE_MODE": "test",
        "SNOSE_DATABASE_URL": url,
        "SNOSE_KEY_FILE": str(key_file),
        "SNOSE_CHECKPOINT_FILE": str(folder / "snose-demo-checkpoints.jsonl"),
        "SNOSE_BACKUP_CONTACT": "Emergency desk, +00 000 0000, day and night",
        "SNOSE_HOST": "127.0.0.1",
        "SNOSE_PORT": str(port),
        "SNOSE_WORKERS": "2" if options.database and options.database.startswith("postgres") else "1",
    }
    migrate.upgrade(url)
    admin, issued = _first_admin(environment)
    base_url = f"http://127.0.0.1:{port}"
    with (
        (folder / "snose-demo.log").open("wb") as log,
        httpx.Client(base_url=base_url, timeout=60, trust_env=False) as client,
    ):
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("SNOSE_")}
        process = subprocess.Popen(
            [sys.executable, "-m", "app.cli", "serve"],
            env={**inherited, **environment},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            _wait_until_ready(client, process, folder)
            trial = Trial(client, lambda: datetime.now(UTC), sleep_until_next_step, admin)
            trial.own(admin, issued)
            yield trial, base_url
        finally:
            process.terminate()
            process.wait(timeout=60)


def _require_throw_away(url: str) -> None:
    """Empty the database of an earlier demo; raise ``UnsafeSetting`` for a database that holds anything else."""
    database = Database(url)
    try:
        kind = startup.what_is_in(database)
    finally:
        database.close()
    if kind == "empty":
        return
    if kind != "demo":
        message = (
            "The demo takes an empty database or one of an earlier demo, and this one is neither. Nothing was changed."
        )
        raise UnsafeSetting(message)
    migrate.downgrade(url, "base")


def _first_admin(environment: dict[str, str]) -> tuple[Person, str]:
    """Return the deployment's first service administrator, and the password that was issued."""
    settings = Settings.model_validate(
        {name.removeprefix("SNOSE_").lower(): value for name, value in environment.items()}
    )
    around = surroundings(settings)
    try:
        startup.create_deployment(around, settings.mode, is_demo=True)
        deployment = startup.unseal(around, settings.mode)
        issued = register_first_admin(deployment, "demo.root", "Demo Root", "root@example.org")
    finally:
        around.database.close()
    return Person("demo.root", secrets.token_urlsafe(15), "", (Role.SERVICE_ADMIN,)), issued


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _wait_until_ready(client: httpx.Client, process: "subprocess.Popen[bytes]", folder: Path) -> None:
    until = time.monotonic() + READY_SECONDS
    while time.monotonic() < until and process.poll() is None:
        try:
            if client.get("/readyz").status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    sys.stderr.write((folder / "snose-demo.log").read_text(encoding="utf-8", errors="replace")[-2000:])
    message = "The service did not become ready; the end of its log stands above."
    raise SnoseError(message)


def _invite(trial: Trial) -> tuple[list[Person], Person]:
    """Let everybody join: those who act in the run, and one person for each role who is listed and does nothing."""
    for role in ACTORS:
        trial.join(f"run.{role.value}", role)
    # A site is activated once two people there have practised the code break.
    trial.join("run.second_investigator", Role.INVESTIGATOR)
    listed = [trial.join(f"demo.{role.value}", role) for role in TEAM]
    trial.edc = trial.join_machine("EDC system")
    admin = Person("demo.service_admin", "", "", (Role.SERVICE_ADMIN,))
    issued = trial.ask(
        trial.admin,
        "POST",
        "/v1/people",
        {"username": admin.username, "display_name": "Demo Service Admin", "email": "admin@example.org"},
    ).json()["password"]
    trial.grant(f"/v1/people/{admin.username}/grants", Role.SERVICE_ADMIN)
    admin.password = trial.new_password()
    trial.own(admin, issued)
    return listed, admin


def _prepare(trial: Trial, advance: Advance) -> None:
    """Take the study from its registry record to an open one with an active list and a stocked site."""
    for step in (trial.register, trial.make_list, trial.stock, trial.open):
        step()
        advance(1)


def _whole_trial(trial: Trial, options: Options, folder: Path, advance: Advance) -> dict[str, Any]:
    """Enrol, break one code, close, unblind and verify; return the summary."""
    for number in range(1, options.subjects + 1):
        trial.enrol(number)
        advance(1)
    broken = trial.break_code(min(7, options.subjects))
    trial.close()
    package = folder / "snose-demo-final-package.zip"
    package.write_bytes(trial.unblind())
    advance(1)
    export = folder / "snose-demo-trail.jsonl"
    export.write_bytes(trial.export_trail())
    sink = str(folder / "snose-demo-checkpoints.jsonl")
    trail_verified = _verified(["trail", str(export), "--sink", sink])
    list_verified = _verified(["package", str(package), "--sink", sink])
    advance(1)
    per_arm, dispensed = _opened(package)
    entries = sum(1 for line in export.read_bytes().splitlines() if b'"body"' in line)
    return {
        "allocated": sum(per_arm.values()),
        "per_arm": dict(sorted(per_arm.items())),
        "dispensed": dispensed,
        "code_breaks": 1 if broken["treatment"] else 0,
        "trail_entries": entries,
        "trail_verified": trail_verified,
        "list_verified": list_verified,
    }


def _opened(package: Path) -> tuple[Counter[str], int]:
    """Return subjects by arm and kits dispensed, as the final package has them."""
    with ZipFile(BytesIO(package.read_bytes())) as archive:
        rows = json.loads(archive.read("allocations.json"))
    rows = rows["allocations"] if isinstance(rows, dict) else rows
    arms = Counter(row["binding"]["arm_code"] for row in rows)
    return arms, sum(1 for row in rows for kit in row["kits"] if kit["dispensed_at"] is not None)


def _verified(arguments: Sequence[str]) -> bool:
    """Return whether the offline verifier, a process that shares nothing with the service, finds everything in order."""
    verifier = str(files("app") / "verifier.py")
    finished = subprocess.run(  # noqa: S603  # our own file, by our own interpreter, without a shell
        [sys.executable, "-I", verifier, *arguments], check=False, stdout=sys.stderr, stderr=sys.stderr
    )
    return finished.returncode == 0


@contextmanager
def _steps(console: Console, options: Options) -> Iterator[Advance]:
    """Give what moves the bar on a terminal, and writes a line for every tenth elsewhere."""
    total = 4 if options.serve_only else 6 + options.subjects
    if console.is_terminal:
        with Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
        ) as bar:
            task = bar.add_task("NCT03033277", total=total)
            yield lambda count: bar.advance(task, count)
        return
    done = 0

    def tell(count: int) -> None:
        nonlocal done
        before, done = done, done + count
        if done * 10 // total > before * 10 // total:
            console.print(f"NCT03033277: {done} of {total} steps")

    yield tell


def _told(person: Person) -> dict[str, object]:
    return {
        "username": person.username,
        "password": person.password,
        "totp_secret": person.totp_secret,
        "roles": [role.value for role in person.roles],
    }


def _show(console: Console, outcome: dict[str, Any]) -> None:
    table = Table(title="NCT03033277, whole trial")
    table.add_column("what")
    table.add_column("figure", justify="right")
    for name, value in outcome.items():
        shown = " : ".join(f"{arm} {count}" for arm, count in value.items()) if name == "per_arm" else str(value)
        table.add_row(name.replace("_", " "), shown)
    console.print(table)


def _show_people(console: Console, base_url: str, people: Sequence[Person]) -> None:
    table = Table(title=f"People of the demo at {base_url} (documentation at {base_url}/docs)")
    for heading in ("user name", "password", "one-time code secret", "role"):
        table.add_column(heading, overflow="fold")
    for person in people:
        table.add_row(person.username, person.password, person.totp_secret, ", ".join(person.roles))
    console.print(table)
