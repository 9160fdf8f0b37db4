"""Whether the service can do its work now."""

from app.errors import SnoseError
from app.services.context import Deployment
from app.storage import migrate
from app.storage.database import CommitUncertain, TryAgain


def is_ready(deployment: Deployment | None) -> bool:
    """Return whether keys, database, schema and sinks are all there; a witness may be missed for a while."""
    if deployment is None or deployment.checkpoints.is_failing or deployment.checkpoints.suspicions:
        return False
    if deployment.witness is not None and deployment.witness.has_missed_too_long(deployment.clock()):
        return False
    try:
        with deployment.database.transaction() as tx:
            return migrate.is_served(tx)
    except (SnoseError, TryAgain, CommitUncertain):
        return False
