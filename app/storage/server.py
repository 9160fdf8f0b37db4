"""What the database server itself is set to, where that decides whether a COMMIT is one (custody.md, "PostgreSQL")."""

import sqlite3
from typing import Final

from sqlalchemy import text

from app.storage.database import Transaction

_MUST_BE_ON: Final = ("fsync", "full_page_writes", "synchronous_commit")


def list_unsafe_settings(tx: Transaction) -> list[str]:
    """Return the names of PostgreSQL settings under which an acknowledged allocation could be lost."""
    if not tx.is_postgresql:
        return []
    return [name for name in _MUST_BE_ON if tx.execute(text(f"SHOW {name}")).scalar_one() == "off"]


def can_change_the_trail(tx: Transaction) -> bool:
    """Return whether the role in use owns the trail, or may change or delete its entries (PostgreSQL)."""
    if not tx.is_postgresql:
        return False
    return bool(
        tx.execute(
            text(
                "SELECT has_table_privilege('trail_entry', 'UPDATE') OR has_table_privilege('trail_entry', 'DELETE')"
                " OR has_table_privilege('trail_entry', 'TRUNCATE')"
            )
        ).scalar_one()
    )


def sqlite_version() -> str:
    """Return the version of the SQLite library."""
    return sqlite3.sqlite_version
