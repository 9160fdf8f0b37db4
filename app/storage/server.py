"""What the database server itself is set to, where that decides whether a COMMIT is one (custody.md, "PostgreSQL")."""

import sqlite3
from dataclasses import dataclass
from typing import Final

from sqlalchemy import text

from app.storage.database import Transaction


@dataclass(frozen=True, slots=True)
class Server:
    """What a PostgreSQL server and this connection to it are, as far as an operator can mend it."""

    settings: dict[str, str]
    """By name, as ``pg_settings`` has them."""
    address: str | None
    """Where the server listens, when that is another machine; None for a socket or loopback."""
    is_encrypted: bool
    is_superuser: bool
    may_bypass: bool
    """Whether the role in use owns a table, or may delete or truncate the trail, replicate, or pass by row rules."""


_SETTINGS: Final = (
    *("fsync", "full_page_writes", "synchronous_commit", "synchronous_standby_names", "wal_level"),
    *("log_statement", "log_min_duration_statement", "log_min_duration_sample", "log_transaction_sample_rate"),
    *("log_parameter_max_length", "log_parameter_max_length_on_error"),
)

_CONNECTION: Final = text("""
    SELECT CASE WHEN inet_server_addr() IS NULL OR inet_server_addr() <<= '127.0.0.0/8' OR inet_server_addr() = '::1'
        THEN NULL ELSE host(inet_server_addr()) END AS address,
        COALESCE((SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()), false) AS is_encrypted,
        r.rolsuper AS is_superuser,
        r.rolreplication OR r.rolbypassrls
        OR has_table_privilege('trail_entry', 'UPDATE') OR has_table_privilege('trail_entry', 'DELETE')
        OR has_table_privilege('trail_entry', 'TRUNCATE')
        OR EXISTS (
            SELECT FROM pg_class AS c JOIN pg_class AS trail ON trail.relnamespace = c.relnamespace
            WHERE trail.oid = CAST('trail_entry' AS regclass) AND c.relkind = 'r' AND pg_has_role(c.relowner, 'MEMBER')
        ) AS may_bypass
    FROM pg_roles AS r WHERE r.rolname = current_user
""")


def look_at_server(tx: Transaction) -> Server | None:
    """Return what the server is set to and who is asking; None on SQLite, which has neither."""
    if not tx.is_postgresql:
        return None
    of_settings = text("SELECT name, setting FROM pg_settings WHERE name = ANY(:names)")
    settings = {row.name: row.setting for row in tx.execute(of_settings, {"names": list(_SETTINGS)})}
    row = tx.execute(_CONNECTION).one()
    return Server(settings, row.address, row.is_encrypted, row.is_superuser, row.may_bypass)


def sqlite_version() -> str:
    """Return the version of the SQLite library."""
    return sqlite3.sqlite_version
