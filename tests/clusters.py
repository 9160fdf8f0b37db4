"""Two PostgreSQL servers, of which one follows the other synchronously: what a failover, and a COMMIT that waits, are tested on.

with cluster() as servers:
    servers.url                  # both servers; whoever connects gets the one that takes writes
    servers.fail_over()          # every process of the primary killed, the standby promoted, a new standby made
    servers.hold_standby()       # from now on each COMMIT waits, until let_go_on() or a cancelled wait

The primary's ``synchronous_standby_names`` is never emptied: with its standby gone nothing is acknowledged any more, as with
Patroni's ``synchronous_mode_strict`` (`deploy/patroni.yml`).
"""

import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import psycopg
from psycopg import sql

from tests.databases import SETTINGS, PostgresServer, give_to_servers, postgres_binaries, processes_below, server_folder

NAMES: Final = ("a", "b")
DATABASE: Final = "snose"
SYNCHRONOUS: Final = {"synchronous_standby_names": f"ANY 1 ({', '.join(NAMES)})"}
FOLLOWING: Final = {
    "max_connections": "60",
    # A standby that lost its primary looks again at once, and a slow machine is no reason to give it up.
    "wal_retrieve_retry_interval": "50ms",
    "wal_sender_timeout": "0",
    "wal_receiver_timeout": "0",
}
FOLLOWS_WITHIN_SECONDS: Final = 60.0
CANCEL_WAITS: Final = sql.SQL("SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'")
"""Cancels each COMMIT that waits for the standby, as an administrator does who finds the service hanging.

The server then answers that it is done, with a warning.
"""


class Cluster:
    """A primary and its standby, with one empty database."""

    def __init__(self, directory: Path, *, is_synchronous: bool = True) -> None:
        binaries = postgres_binaries(directory)
        settings = {**SETTINGS, **FOLLOWING, **(SYNCHRONOUS if is_synchronous else {})}
        for name in NAMES:
            (directory / name).mkdir()
            give_to_servers(directory / name)
        self.primary, self.standby = (PostgresServer(directory / name, settings, binaries) for name in NAMES)
        hosts = ",".join(str(directory / name) for name in NAMES)
        self.url: Final = f"postgresql://postgres@/{DATABASE}?host={hosts}&target_session_attrs=read-write"
        self._held: int | None = None

    def start(self) -> None:
        """Make and start both."""
        self.primary.initialise()
        self.primary.start()
        self._follow()
        with psycopg.connect(self.primary.url_for("postgres"), autocommit=True) as owner:
            owner.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(DATABASE)))

    def stop(self) -> None:
        """End both, in whatever state they are."""
        self.let_go_on()
        for server in (self.standby, self.primary):
            server.stop(signal.SIGQUIT)

    # -- what breaks

    def hold_standby(self) -> None:
        """Stop the standby from taking up anything more; what is committed from now on is on the primary alone."""
        (self._held,) = (pid for pid, title in processes_below(self.standby.pid).items() if "walreceiver" in title)
        os.kill(self._held, signal.SIGSTOP)

    def let_go_on(self) -> None:
        """Let the standby take up what it has missed."""
        if self._held is not None:
            os.kill(self._held, signal.SIGCONT)
            self._held = None

    def lose_primary(self) -> None:
        """End every process of the primary at once; what the standby had not taken up by then is lost, also where it was held."""
        self.primary.kill_all()
        if self._held is not None:
            # What was sent to it last lies with the held process, and is never to reach the disk.
            os.kill(self._held, signal.SIGKILL)
            self._held = None

    def promote(self) -> None:
        """Make the standby the primary, and a new standby for it, without which it would acknowledge nothing."""
        self.primary, self.standby = self.standby, self.primary
        self.primary.run("pg_ctl", "promote", "--pgdata", str(self.primary.data), "--wait", "--silent")
        self._follow()

    def fail_over(self) -> None:
        """Lose the primary and promote the standby."""
        self.lose_primary()
        self.promote()

    # -- inside

    def _follow(self) -> None:
        """Make the standby anew out of the primary, and return once it follows."""
        standby = self.standby
        shutil.rmtree(standby.data, ignore_errors=True)
        name = standby.directory.name
        standby.run(
            "pg_basebackup",
            *("--pgdata", str(standby.data), "--wal-method", "stream", "--checkpoint", "fast", "--no-sync"),
            *("--dbname", f"host={self.primary.directory} user=postgres application_name={name}"),
            "--write-recovery-conf",
        )
        standby.start()
        until = time.monotonic() + FOLLOWS_WITHIN_SECONDS
        following = sql.SQL("SELECT 1 FROM pg_stat_replication WHERE application_name = %s AND state = 'streaming'")
        with psycopg.connect(self.primary.url_for("postgres"), autocommit=True) as owner:
            while time.monotonic() < until:
                if owner.execute(following, [name]).fetchall():
                    return
                time.sleep(0.01)
        message = "the standby does not follow"
        raise AssertionError(message)


@contextmanager
def cluster(*, is_synchronous: bool = True) -> Iterator[Cluster]:
    """Give a running pair of servers, stopped and removed afterwards, whatever happens."""
    with server_folder() as own:
        servers = Cluster(own, is_synchronous=is_synchronous)
        try:
            servers.start()
            yield servers
        finally:
            servers.stop()
