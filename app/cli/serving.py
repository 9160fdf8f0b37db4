"""Serving: a parent that looks after worker processes and gives out the metrics of all of them on a port of their own."""

import os
import tempfile
from pathlib import Path
from typing import Final

import typer
import uvicorn
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.multiprocess import MultiProcessCollector
from uvicorn.supervisors import Multiprocess

from app.api.connections import Patience
from app.domain.words import Mode
from app.errors import UnsafeSetting
from app.settings import Settings

command = typer.Typer()

APPLICATION: Final = "app.main:create_from_environment"
GRACE_SECONDS: Final = 30
HEALTH_SECONDS: Final = 30
"""A worker that says nothing for so long is replaced. By itself uvicorn takes five seconds for death, and on a machine that is busy
enough then kills every worker before it has begun."""
BACKLOG: Final = 512


@command.command()
def serve() -> None:
    """Serve until stopped."""
    settings = Settings()
    if settings.mode is Mode.LIVE:
        _refuse_unsafe(settings)
    _serve(settings)


def _refuse_unsafe(settings: Settings) -> None:
    # Half of what the service is made of: a parent that need not look for itself leaves it to its workers.
    from app.process import configure_logs  # noqa: PLC0415  # as is said above
    from app.services import safety  # noqa: PLC0415  # the same
    from app.surroundings import surroundings  # noqa: PLC0415  # the same

    configure_logs()
    around = surroundings(settings)
    try:
        safety.refuse_unsafe(around, settings.plain_host())
    finally:
        around.database.close()


def _serve(settings: Settings) -> None:
    """Serve until stopped; requests in hand are finished first. Raises ``UnsafeSetting`` for SQLite with several workers.

    The workers read the settings from the environment again, so this must have come from there.
    """
    if settings.url().startswith("sqlite") and settings.workers > 1:
        message = "SQLite takes one worker. Set SNOSE_WORKERS=1, or use PostgreSQL."
        raise UnsafeSetting(message)
    with tempfile.TemporaryDirectory(prefix="snose-metrics-") as folder:
        # Read by the metrics library when a worker imports it: each worker writes its numbers there.
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        if settings.metrics_port is not None:
            _give_out_metrics(settings.host, settings.metrics_port, Path(folder))
        config = uvicorn.Config(
            APPLICATION,
            factory=True,
            host=settings.host,
            port=settings.port,
            workers=settings.workers,
            # uvicorn's own access log holds paths with subjects and kit codes; the service writes its own (`app.api.edge`).
            access_log=False,
            log_level="warning",
            server_header=False,
            date_header=True,
            timeout_graceful_shutdown=GRACE_SECONDS,
            timeout_keep_alive=30,
            timeout_worker_healthcheck=HEALTH_SECONDS,
            backlog=BACKLOG,
            loop="uvloop",
            http=Patience(settings.receive_seconds, settings.connections).connection(),
            ws="none",
        )
        socket = config.bind_socket()
        Multiprocess(config, [socket]).run()


def _give_out_metrics(host: str, port: int, folder: Path) -> None:
    registry = CollectorRegistry()
    MultiProcessCollector(registry, str(folder))  # type: ignore[no-untyped-call]  # the library's own is untyped
    start_http_server(port, host, registry)
