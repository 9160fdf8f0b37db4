"""What the application's own PostgreSQL role may do: read, insert, and change the columns that may change (rule E2).

The owner's URL migrates, this role serves. It can delete and truncate nothing, and it owns nothing, so it cannot
switch a trigger off. The columns are those that the triggers of revision 0002 leave open, and a test holds the two
against each other; credentials, recoveries, passkeys, devices, tries to sign in and sessions have no such triggers, because
nothing in them is evidence.
"""

from typing import Final

from sqlalchemy import Connection, text

from app.errors import UnsafeSetting
from app.storage.database import Database
from app.storage.tables import metadata

CHANGEABLE: Final = {
    "trail_restricted": ("sealed", "key_version"),
    "log": ("size", "frontier", "last_at", "mac", "key_version"),
    "stored_answer": ("sealed_small", "sealed_large"),
    "deployment": ("wrapped_secret",),
    "signing_key": ("wrapped",),
    "principal": ("display_name", "email", "is_active", "deactivated_at"),
    "credential": (
        *("secret_hash", "secret_set_at", "must_change", "sealed_totp_secret", "totp_last_step"),
        *("failed_codes", "codes_blocked_until", "factor_recovered_at", "wrong_codes", "reset_by"),
    ),
    "sign_in_tries": ("failed", "blocked_until", "guesses"),
    "factor_recovery": (*("tries", "confirmed_by", "confirmed_at", "identity_check", "confirmation_mac", "closed_at"),),
    "known_device": ("used_at", "wrong_passwords", "wrong_codes", "ended_at"),
    "former_secret": ("ends_at",),
    "client_key": ("revoked_at", "revoked_by"),
    "passkey": ("sign_count", "last_challenge_at", "last_request", "removed_at"),
    "issuer": ("confirmed_at", "confirmed_by", "revoked_at", "revoked_by"),
    "identity_link": ("confirmed_at", "confirmed_by", "ended_at", "ended_by", "proof_spent_until"),
    "pending_grant": ("decided_at", "decided_by"),
    "role_grant": ("revoked_at", "revoked_by"),
    "session": ("proof_at", "proof_spent_at", "ended_at", "used_at", "wrong_codes"),
    "study": (
        *("title", "planned_subjects", "stock_floor", "backup_contact", "status", "is_frozen"),
        *("key_version", "min_key_version"),
    ),
    "study_key": ("wrapped",),
    "site": ("name", "timezone", "is_active"),
    "schedule": (
        *("status", "commitment_note", "decided_at", "decided_by", "activated_at", "activated_by"),
        *("sealed_specification", "sealed_seed", "sealed_quality_report", "key_version"),
    ),
    "stratum": ("allocated",),
    "schedule_stratum": ("first_ordinal",),
    "slot": ("sealed", "key_version"),
    "consignment": (
        *("site_code", "status", "dispatched_at", "assignable_at", "withdrawn_at", "sheets_released_at", "recall_id"),
    ),
    "kit": ("site_code", "status", "sealed", "key_version"),
    "allocation": ("sealed_binding", "key_version"),
    "kit_assignment": ("dispensed_at", "dispensed_by", "sealed_binding", "key_version"),
    "envelope": ("written_at",),
    "code_break": ("status", "narrated_at"),
    "notice_receiver": ("removed_at", "removed_by", "disabled_at"),
    "notice": ("failures", "next_try_at", "delivered_at", "given_up_at"),
    "safety_unblinding": ("status", "sealed_subject", "key_version"),
    "dual_control_request": ("released_at", "released_by", "sealed_statement", "key_version"),
}
"""The columns that may change, by table; the tables left out are append-only."""

LOCKED: Final = {"site_stock": ("site_code",)}
"""Locking a row needs the right to change a column of it, although a trigger refuses every change."""


def grant_to(url: str, role: str) -> None:
    """Give ``role`` exactly the rights of the application in the migrated database at ``url``, the owner's.

    What the role was granted before on these tables is taken back first, so the call may be repeated after each
    migration. Raises ``UnsafeSetting`` on SQLite, which knows no roles, for a role that is not there, and for one that
    triggers and grants do not hold: a superuser, one that bypasses row rules, or one that can act as the owner.
    """
    database = Database(url)
    try:
        if not database.is_postgresql:
            raise UnsafeSetting("SQLite has no roles: leave the role out, the file's mode keeps others away.")
        with database.transaction() as tx:
            _refuse_powerful(tx.connection, role)
            _grant(tx.connection, role)
    finally:
        database.close()


_POWERS: Final = text("""
    SELECT rolsuper OR rolreplication OR rolbypassrls OR pg_has_role(r.oid, current_user::name, 'MEMBER') AS is_powerful
    FROM pg_roles AS r WHERE rolname = :role
""")


def _refuse_powerful(connection: Connection, role: str) -> None:
    row = connection.execute(_POWERS, {"role": role}).one_or_none()
    if row is None:
        raise UnsafeSetting(f"The database has no role {role}. Create it first: CREATE ROLE ... LOGIN.")
    if row.is_powerful:
        raise UnsafeSetting(
            f"The role {role} could switch the triggers off: it is the owner, can become the owner, or is a superuser."
        )


def _grant(connection: Connection, role: str) -> None:
    quote = connection.dialect.identifier_preparer.quote_identifier
    to = quote(role)
    schema = quote(str(connection.scalar(text("SELECT current_schema()"))))

    def run(statement: str) -> None:
        connection.exec_driver_sql(statement)

    run(f"REVOKE ALL ON SCHEMA {schema} FROM {to}")
    run(f"GRANT USAGE ON SCHEMA {schema} TO {to}")
    run(f"GRANT SELECT ON alembic_version TO {to}")
    for table in metadata.sorted_tables:
        name = quote(table.name)
        # The rights of columns go with those of their table.
        run(f"REVOKE ALL ON {name} FROM {to}, PUBLIC")
        run(f"GRANT SELECT, INSERT ON {name} TO {to}")
        if columns := CHANGEABLE.get(table.name, ()) + LOCKED.get(table.name, ()):
            run(f"GRANT UPDATE ({', '.join(quote(column) for column in columns)}) ON {name} TO {to}")
