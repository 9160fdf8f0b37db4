"""The refusals that must stand in the database (revision 0002, and later): what an owner took away is told (rule E2).

The names are those of the newest schema; a test holds them against what the migrations make, on both databases.
"""

from collections.abc import Container
from typing import Final

from sqlalchemy import text

from app.storage.database import Transaction

UPDATES: Final = {
    "access_review": "no_update",
    "allocation": "fixed rotation",
    "arm": "no_update",
    "code_break": "fixed once status",
    "code_break_assessment": "no_update",
    "commitment_tile": "no_update",
    "consignment": "fixed",
    "deployment": "fixed",
    "dual_control_request": "fixed once rotation",
    "drill": "no_update",
    "envelope": "fixed once",
    "factor": "no_update",
    "kit": "fixed rotation",
    "kit_assignment": "fixed once rotation",
    "log": "fixed growth",
    "notice": "fixed once",
    "notice_receiver": "fixed once",
    "principal": "fixed",
    "replacement_release": "no_update",
    "role_grant": "fixed once",
    "safety_unblinding": "fixed rotation status",
    "schedule": "fixed once rotation status",
    "schedule_stratum": "fixed once",
    "signature": "no_update",
    "signing_key": "fixed",
    "site": "fixed",
    "site_stock": "no_update",
    "slot": "fixed rotation",
    "stored_answer": "fixed once",
    "stratum": "fixed growth",
    "study": "fixed rotation status thaw",
    "study_key": "fixed rotation",
    "subject_flag": "no_update",
    "training": "no_update",
    "trail_entry": "no_update",
    "trail_node": "no_update",
    "trail_restricted": "fixed rotation",
}
"""Every guarded table with its triggers on UPDATE; each has two more, on what deletes and what replaces."""


def expected(*, is_postgresql: bool, tables: Container[str] = UPDATES) -> frozenset[str]:
    """Return the names of the triggers that must stand on these tables; an older schema has fewer."""
    others = ("no_delete", "no_truncate" if is_postgresql else "no_replace")
    return frozenset(
        f"{table}_{name}" for table, names in UPDATES.items() if table in tables for name in (*names.split(), *others)
    )


def list_missing(tx: Transaction) -> list[str]:
    """Return the triggers that are gone, or that PostgreSQL would pass over for whoever asks it to."""
    if tx.is_postgresql:
        standing = tx.execute(
            text("SELECT tgname FROM pg_trigger WHERE NOT tgisinternal AND tgenabled = 'A'")
        ).scalars()
    else:
        standing = tx.execute(text("SELECT name FROM sqlite_master WHERE type = 'trigger'")).scalars()
    return sorted(expected(is_postgresql=tx.is_postgresql) - set(standing))
