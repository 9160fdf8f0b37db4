"""Kits whose code was broken while somebody else held the stock of their site: put aside as soon as it is free.

A code break waits for no stock (rule D5). Where it could not quarantine the kit in its own transaction, this does it apart, at once
and again with every round of the keeper: what is still to be done stands in the database, so that no crash forgets it (EUB-07).
"""

from typing import Final

import structlog

from app.domain.kits import STEPS, Step
from app.errors import SnoseError
from app.services.audited import enter_by_service
from app.services.context import Deployment
from app.storage import kits, studies, unblinding
from app.storage.database import AlreadyThere, CommitUncertain, Transaction, TryAgain
from app.storage.unblinding import KitToPutAside

LONGEST_WAIT_MS: Final = 1_000
"""How long a code break, or what follows it, waits for the stock of a site."""
PUT_ASIDE: Final = "kit:put_aside"
"""The action of the entry, the service's own."""

_log: Final = structlog.get_logger("snose.aside")


def put_aside_broken(deployment: Deployment) -> None:
    """Quarantine every kit of nobody's by which a code was broken; one that cannot be had now is logged, and left to the next time.

    Raises ``DatabaseUnavailable`` and ``TryAgain`` when not even the kits can be looked up.
    """
    with deployment.database.transaction() as tx:
        waiting = unblinding.list_to_put_aside(tx)
    for one in waiting:
        try:
            _put_aside(deployment, one)
        except (SnoseError, TryAgain, AlreadyThere, CommitUncertain) as error:
            _log.warning("kit not put aside yet", study=one.study_code, kind=type(error).__name__)


def _put_aside(deployment: Deployment, one: KitToPutAside) -> None:
    def work(tx: Transaction) -> None:
        tx.wait_for_locks(LONGEST_WAIT_MS)
        kits.lock_stock(tx, one.study_id, one.site_code)
        kits.lock_kit(tx, one.study_id, one.kit_code)
        # Looked up again behind the locks: somebody may have put it aside, or been given it, meanwhile.
        if one not in unblinding.list_to_put_aside(tx):
            raise AlreadyThere(PUT_ASIDE)
        kits.record_status(tx, one.study_id, one.kit_id, status)

    status = STEPS[Step.BREAK_CODE][one.status]
    with deployment.database.transaction() as tx:
        study = studies.find_study(tx, one.study_code)
    enter_by_service(
        deployment,
        PUT_ASIDE,
        study=study,
        target={"kit_code": one.kit_code},
        after={"kit_status": status, "alert": "supply_manager"},
        site_code=one.site_code,
        work=work,
    )
