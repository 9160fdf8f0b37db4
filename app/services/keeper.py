"""What the service does by itself, under its own name: checkpoints every interval, comparison with the sink, counted noise."""

import base64
from threading import Event, Thread
from typing import Final

import structlog

from app.errors import SnoseError
from app.services.aside import put_aside_broken
from app.services.audited import enter_by_service
from app.services.checkpoints import INTERVAL
from app.services.context import Deployment
from app.storage.database import AlreadyThere, CommitUncertain, TryAgain

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
        """Do once what is done every interval; a failure is logged and told by /readyz, and the next round tries again.

        The comparison comes first: a log that does not continue gets no checkpoint, which would become the highest one.
        """
        for step in (self._compare, self._put_aside, self._enter_noise, self._publish):
            try:
                step()
            except (SnoseError, TryAgain, AlreadyThere, CommitUncertain) as error:
                _log.warning("round failed", step=step.__name__.lstrip("_"), kind=type(error).__name__)

    def _compare(self) -> None:
        self._deployment.checkpoints.compare(self._deployment.database)

    def _put_aside(self) -> None:
        """Put aside what code breaks could not, because somebody held the stock."""
        put_aside_broken(self._deployment)

    def _enter_noise(self) -> None:
        """Enter what unknown callers were refused, one entry for each network; what cannot be entered is counted again."""
        noise = self._deployment.noise
        counts = dict(sorted(noise.take().items()))
        while counts:
            network, count = next(iter(counts.items()))
            try:
                enter_by_service(self._deployment, "session:noise", after={"network": network, "count": count})
            except BaseException:
                noise.give_back(counts)
                raise
            del counts[network]

    def _publish(self) -> None:
        """Write the checkpoints of what has grown; the service's own log keeps those of the others (`custody.md`)."""
        deployment = self._deployment
        keeper = deployment.checkpoints
        own = deployment.origin(None)
        others = [state for state in keeper.grown(deployment.database) if not state.origin.startswith(own)]
        if others:
            named = [
                {
                    "origin": state.origin,
                    "size": state.frontier.size,
                    "root": base64.b64encode(state.frontier.root()).decode(),
                }
                for state in others
            ]
            enter_by_service(deployment, "checkpoint:publish", after={"logs": named})
        keeper.publish_all(deployment.database, deployment.clock())
