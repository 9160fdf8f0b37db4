"""What the service does by itself, under its own name: checkpoints, comparison with the sinks, noise, envelopes' files, notices."""

import base64
from datetime import timedelta
from threading import Event, Thread
from typing import Final

import structlog

from app.errors import SnoseError
from app.services.access_reviews import tell_overdue
from app.services.aside import put_aside_broken
from app.services.audited import enter_by_service
from app.services.checkpoints import INTERVAL
from app.services.context import Deployment
from app.services.enveloping import look_after_envelopes, write_envelopes
from app.services.handovers import take_in_signing_keys
from app.services.outbox import send_notices
from app.services.unblinding import tell_late_breaks
from app.services.witnessing import WitnessKeeper, wait_for_work
from app.storage.database import AlreadyThere, CommitUncertain, TryAgain

_log: Final = structlog.get_logger("snose.keeper")
_PASSING: Final = (SnoseError, TryAgain, AlreadyThere, CommitUncertain)
"""What the next round may not meet again."""
_BREATH: Final = 0.2
"""Seconds between the making of an envelope or a notice and its writing or sending, so that one look serves all that come to it."""
_GRACE: Final = 3.0
"""Seconds that the end of the service waits for a notice that is being sent."""


class Keeper:
    """A thread that wakes every interval."""

    def __init__(self, deployment: Deployment) -> None:
        """Name the deployment to keep."""
        self._deployment = deployment
        self._stopped = Event()
        self._thread = Thread(target=self._run, name="keeper", daemon=True)
        # Apart: a witness that takes its time must not delay the file sink (rule D4).
        self._witness_thread = Thread(target=self._run_witness, name="witness", daemon=True)
        # Apart too: the folder of the envelopes may be on a disk that takes its time.
        self._envelope_thread = Thread(target=self._run_envelopes, name="envelopes", daemon=True)
        # And apart: whoever is sent a notice may take their time, or be no friend of ours.
        self._notice_thread = Thread(target=self._run_notices, name="notices", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()
        self._witness_thread.start()
        if self._deployment.desk is not None:
            # What the process before this one has left.
            self._deployment.desk.wanted.set()
        self._envelope_thread.start()
        self._notice_thread.start()

    def stop(self) -> None:
        """End, with a last round, so that a graceful stop leaves everything under a checkpoint, and that before the witness."""
        self._stopped.set()
        self._deployment.checkpoints.published.set()
        if self._deployment.desk is not None:
            self._deployment.desk.wanted.set()
        self._deployment.office.wanted.set()
        self._thread.join()
        self._witness_thread.join()
        self._envelope_thread.join()
        # Whoever answers slowly does not delay the end: what was being sent is sent again later.
        self._notice_thread.join(_GRACE)
        self.round()
        self.witness_round()
        self.envelope_round()

    def _run(self) -> None:
        while not self._stopped.wait(INTERVAL.total_seconds()):
            self.round()

    def _run_witness(self) -> None:
        while self._deployment.witness is not None and wait_for_work(self._deployment.checkpoints, self._stopped):
            self.witness_round()

    def _run_envelopes(self) -> None:
        desk = self._deployment.desk
        while desk is not None:
            desk.wanted.wait(INTERVAL.total_seconds())
            desk.wanted.clear()
            if self._stopped.wait(_BREATH):
                # The last round is that of the stop.
                return
            self.envelope_round()

    def _run_notices(self) -> None:
        wanted, pause = self._deployment.office.wanted, INTERVAL
        while True:
            wanted.wait(pause.total_seconds())
            wanted.clear()
            if self._stopped.wait(_BREATH):
                return
            pause = self.notice_round()

    def notice_round(self) -> timedelta:
        """Send the notices that are due and return when to look again; what hinders it waits for the next round."""
        try:
            return send_notices(self._deployment, self._stopped, INTERVAL)
        except _PASSING as error:
            _log.warning("round failed", step="notices", kind=type(error).__name__)
            return INTERVAL

    def envelope_round(self) -> None:
        """Write the files of the envelopes that wait, and look for those that were written; what hinders it waits for the next."""
        for step in (write_envelopes, look_after_envelopes):
            try:
                step(self._deployment)
            except _PASSING as error:
                _log.warning("round failed", step=step.__name__, kind=type(error).__name__)

    def witness_round(self) -> None:
        """Send the witness what it has not cosigned, and enter when it begins to miss or is back (rule D4)."""
        witness = self._deployment.witness
        if witness is None:
            return
        try:
            with witness.turn:
                witness.round()
                if witness.trouble != witness.told:
                    self._enter_witness(witness)
                    witness.told = witness.trouble
        except _PASSING as error:
            _log.warning("round failed", step="witness", kind=type(error).__name__)

    def _enter_witness(self, witness: WitnessKeeper) -> None:
        after = {"witness": witness.witness, "trouble": witness.trouble}
        if witness.trouble is not None:
            _log.error("not witnessed", **after)
        enter_by_service(self._deployment, "checkpoint:witness", after=after)

    def round(self) -> None:
        """Do once what is done every interval; a failure is logged and told by /readyz, and the next round tries again.

        The comparison comes first: a log that does not continue gets no checkpoint, which would become the highest one.
        """
        for step in (
            self._take_in_keys,
            self._compare,
            self._put_aside,
            self._tell_overdue,
            self._enter_noise,
            self._publish,
        ):
            try:
                step()
            except _PASSING as error:
                _log.warning("round failed", step=step.__name__.lstrip("_"), kind=type(error).__name__)

    def _take_in_keys(self) -> None:
        """Take in what another process has rotated to, before anything that it signed is judged (rule F4)."""
        with self._deployment.database.transaction() as tx:
            take_in_signing_keys(tx, self._deployment.signing)

    def _compare(self) -> None:
        self._deployment.checkpoints.compare(self._deployment.database)

    def _put_aside(self) -> None:
        """Put aside what code breaks could not, because somebody held the stock."""
        put_aside_broken(self._deployment)

    def _tell_overdue(self) -> None:
        """Put into the outbox which access reviews are overdue, and what is so after a code break."""
        tell_overdue(self._deployment)
        tell_late_breaks(self._deployment)

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
