"""What the service does by itself, under its own name: checkpoints every interval, comparison with the sink, counted noise."""

from threading import Event, Thread
from typing import Final

import structlog

from app.errors import SnoseError
from app.services.audited import enter_by_service
from app.services.checkpoints import INTERVAL
from app.services.context import Deployment
from app.storage.database import CommitUncertain, TryAgain

_log: Final = structlog.get_logger("snose.keeper")


class Keeper:
    """A thread that wakes every interval."""

    def __init__(self, deployment: Deployment) -> None:
        """Name the deployment to keep."""
        self._deployment = deployment
        self._stopped = Event()
        self._thread = Thread(target=self._run, name="keeper", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End, with a last round, so that a graceful stop leaves everything under a checkpoint."""
        self._stopped.set()
        self._thread.join()
        self.round()

    def _run(self) -> None:
        while not self._stopped.wait(INTERVAL.total_seconds()):
            self.round()

    def round(self) -> None:
        """Do once what is done every interval; a failure is logged and told by /readyz, and the next round tries again."""
        deployment = self._deployment
        try:
            for network, count in sorted(deployment.noise.take().items()):
                enter_by_service(deployment, "session:noise", after={"network": network, "count": count})
            deployment.checkpoints.publish_all(deployment.database, deployment.clock())
            deployment.checkpoints.compare(deployment.database)
        except (SnoseError, TryAgain, CommitUncertain) as error:
            _log.warning("round failed", kind=type(error).__name__)
