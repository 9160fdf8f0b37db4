"""Every table. Singular names, UUIDv4 row ids, aware UTC times, and the study in every key, so that one study can live on one node.

What a reader of the database may not learn is sealed (rule B3): no column, index or order depends on an arm or a block.
"""

from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Date,
    DateTime,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    Uuid,
    false,
    text,
)
from sqlalchemy.engine import Dialect

SERVICE_LOG: Final = UUID(int=0)
"""Stands where a study's id stands, for the service's own log."""


class UtcDateTime(TypeDecorator[datetime]):
    """An aware time in UTC; SQLite hands back naive ones, which would compare with nothing."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Store aware times only."""
        if value is None:
            return None
        if value.tzinfo is None:
            message = "a time without zone cannot be stored"
            raise ValueError(message)
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Return aware UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if dialect.name == "sqlite" else value.astimezone(UTC)


metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(referred_table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    }
)


def _id(name: str, *, nullable: bool = False) -> Column[UUID]:
    return Column(name, Uuid(), nullable=nullable)


def _text(name: str, *, nullable: bool = False) -> Column[str]:
    return Column(name, Text(), nullable=nullable)


def _time(name: str, *, nullable: bool = False) -> Column[datetime]:
    return Column(name, UtcDateTime(), nullable=nullable)


def _number(name: str, *, nullable: bool = False) -> Column[int]:
    return Column(name, Integer(), nullable=nullable)


def _of_study(name: str, *items: Any) -> Table:  # noqa: ANN401  # columns and constraints, as Table takes them
    return Table(
        name,
        metadata,
        Column("study_id", Uuid(), nullable=False),
        *items,
        ForeignKeyConstraint(["study_id"], ["study.study_id"]),
    )


# -- the deployment and its keys

deployment = Table(
    "deployment",
    metadata,
    Column("deployment_id", Uuid(), primary_key=True),
    _text("mode"),
    Column("is_demo", Boolean(), nullable=False),
    _text("wrapped_secret"),
    _time("created_at"),
)
signing_key = Table(
    "signing_key",
    metadata,
    Column("version", Integer(), primary_key=True, autoincrement=False),
    _text("public_key"),
    _text("wrapped"),
    _text("handover", nullable=True),
    _time("created_at"),
)

# -- people and machines

principal = Table(
    "principal",
    metadata,
    Column("principal_id", Uuid(), primary_key=True),
    _text("name"),
    _text("display_name"),
    _text("email", nullable=True),
    Column("is_machine", Boolean(), nullable=False),
    Column("is_active", Boolean(), nullable=False),
    _time("created_at"),
    _time("deactivated_at", nullable=True),
    UniqueConstraint("name"),
)
credential = Table(
    "credential",
    metadata,
    Column("principal_id", Uuid(), primary_key=True),
    _text("secret_hash"),
    _time("secret_set_at"),
    Column("must_change", Boolean(), nullable=False),
    _text("sealed_totp_secret", nullable=True),
    Column("totp_last_step", BigInteger(), nullable=True),
    _number("failed_codes"),
    _time("codes_blocked_until", nullable=True),
    _time("factor_recovered_at", nullable=True),
    # In a row, however long it takes.
    Column("wrong_codes", Integer(), nullable=False, server_default="0"),
    _text("reset_by", nullable=True),
    ForeignKeyConstraint(["principal_id"], ["principal.principal_id"]),
)
# Tries at a password by a few bits of a keyed digest of the name, whether or not anybody has it.
sign_in_tries = Table(
    "sign_in_tries",
    metadata,
    Column("bucket", Integer(), primary_key=True, autoincrement=False),
    _number("failed"),
    _time("blocked_until", nullable=True),
    # Since the password was last known, or set; those of long ago count too.
    Column("guesses", Integer(), nullable=False, server_default="0"),
)
# A second factor that was lost, and its successor, which only the person has seen; a MAC binds what a colleague has confirmed.
factor_recovery = Table(
    "factor_recovery",
    metadata,
    Column("recovery_id", Uuid(), primary_key=True),
    _id("principal_id"),
    Column("code_digest", LargeBinary(32), nullable=False),
    _text("sealed_totp_secret"),
    Column("former_last_step", BigInteger(), nullable=True),
    _time("requested_at"),
    _number("tries"),
    _text("confirmed_by", nullable=True),
    _time("confirmed_at", nullable=True),
    _text("identity_check", nullable=True),
    Column("confirmation_mac", LargeBinary(32), nullable=True),
    _time("closed_at", nullable=True),
    ForeignKeyConstraint(["principal_id"], ["principal.principal_id"]),
    UniqueConstraint("code_digest"),
    Index(None, "principal_id"),
)
# What sends its secret along is counted apart at the sign-in; it is no factor.
known_device = Table(
    "known_device",
    metadata,
    Column("device_id", Uuid(), primary_key=True),
    _id("principal_id"),
    Column("secret_digest", LargeBinary(32), nullable=False),
    _time("remembered_at"),
    _time("expires_at"),
    _time("used_at", nullable=True),
    _number("wrong_passwords"),
    Column("wrong_codes", Integer(), nullable=False, server_default="0"),
    _time("ended_at", nullable=True),
    ForeignKeyConstraint(["principal_id"], ["principal.principal_id"]),
    UniqueConstraint("secret_digest"),
    Index(None, "principal_id"),
)
# The public key is sealed too: who writes to the database could else plant a factor of their own for somebody else.
passkey = Table(
    "passkey",
    metadata,
    Column("passkey_id", Uuid(), primary_key=True),
    _id("principal_id"),
    Column("credential_digest", LargeBinary(32), nullable=False),
    _text("sealed_key"),
    _text("name"),
    Column("sign_count", BigInteger(), nullable=False),
    _time("last_challenge_at", nullable=True),
    _text("last_request", nullable=True),
    _time("created_at"),
    _time("removed_at", nullable=True),
    ForeignKeyConstraint(["principal_id"], ["principal.principal_id"]),
    UniqueConstraint("credential_digest"),
    Index(None, "principal_id"),
)
role_grant = Table(
    "role_grant",
    metadata,
    Column("grant_id", Uuid(), primary_key=True),
    _id("principal_id"),
    _text("role"),
    _text("study_code", nullable=True),
    _text("site_code", nullable=True),
    _time("granted_at"),
    _text("granted_by"),
    _time("revoked_at", nullable=True),
    _text("revoked_by", nullable=True),
    _time("starts_at", nullable=True),
    _time("ends_at", nullable=True),
    Column("needs_training", Boolean(), nullable=True),
    ForeignKeyConstraint(["principal_id"], ["principal.principal_id"]),
    Index(None, "principal_id"),
    Index(None, "study_code"),
)
pending_grant = Table(
    "pending_grant",
    metadata,
    Column("grant_id", Uuid(), primary_key=True),
    _id("principal_id"),
    _text("role"),
    _text("study_code", nullable=True),
    _text("site_code", nullable=True),
    _time("starts_at", nullable=True),
    _time("ends_at", nullable=True),
    Column("needs_training", Boolean(), nullable=False),
    _time("requested_at"),
    _text("requested_by"),
    _time("decided_at", nullable=True),
    _text("decided_by", nullable=True),
    ForeignKeyConstraint(["principal_id"], ["principal.principal_id"]),
    Index(None, "principal_id"),
)
training = Table(
    "training",
    metadata,
    Column("training_id", Uuid(), primary_key=True),
    _id("principal_id"),
    _text("study_code", nullable=True),
    _text("topic"),
    Column("completed_on", Date(), nullable=False),
    Column("valid_until", Date(), nullable=True),
    _time("recorded_at"),
    _text("recorded_by"),
    ForeignKeyConstraint(["principal_id"], ["principal.principal_id"]),
    Index(None, "principal_id"),
)
session = Table(
    "session",
    metadata,
    Column("session_id", Uuid(), primary_key=True),
    Column("token_digest", LargeBinary(32), nullable=False),
    _id("principal_id"),
    _time("issued_at"),
    _time("expires_at"),
    _time("proof_at", nullable=True),
    _time("proof_spent_at", nullable=True),
    _time("ended_at", nullable=True),
    _id("sign_in_id", nullable=True),
    _time("used_at", nullable=True),
    _id("link_id", nullable=True),
    # Of the sign-in, in its first row: from which known device it began, and how many wrong codes were tried in it in a row.
    _id("device_id", nullable=True),
    Column("wrong_codes", Integer(), nullable=False, server_default="0"),
    ForeignKeyConstraint(["principal_id"], ["principal.principal_id"]),
    UniqueConstraint("token_digest"),
    Index(None, "principal_id"),
)
# What a machine client proves itself with besides the secret of its credential. The secrets before that one, while they still open:
former_secret = Table(
    "former_secret",
    metadata,
    _id("principal_id"),
    _text("secret_hash"),
    _time("set_at"),
    _time("ends_at"),
    ForeignKeyConstraint(["principal_id"], ["principal.principal_id"]),
    PrimaryKeyConstraint("principal_id", "secret_hash"),
)
client_key = Table(
    "client_key",
    metadata,
    Column("key_id", Text(), primary_key=True),
    _id("principal_id"),
    _text("algorithm"),
    _text("public_jwk"),
    _time("added_at"),
    _text("added_by"),
    _time("revoked_at", nullable=True),
    _text("revoked_by", nullable=True),
    ForeignKeyConstraint(["principal_id"], ["principal.principal_id"]),
    Index(None, "principal_id"),
)
used_assertion = Table(
    "used_assertion",
    metadata,
    Column("digest", LargeBinary(32), primary_key=True),
    _time("used_at"),
)
# Who else vouches for people and machines, and as whom.
issuer = Table(
    "issuer",
    metadata,
    Column("issuer_id", Uuid(), primary_key=True),
    _text("issuer"),
    _text("audience"),
    _text("jwks"),
    _text("proof_acr_values"),
    _time("requested_at"),
    _text("requested_by"),
    _time("confirmed_at", nullable=True),
    _text("confirmed_by", nullable=True),
    _time("revoked_at", nullable=True),
    _text("revoked_by", nullable=True),
    _text("jwks_uri", nullable=True),
    Column("is_discovered", Boolean(), nullable=True),
    *(_text(name, nullable=True) for name in ("client_id", "sealed_client_secret", "redirect_uris")),
    *(_text(name, nullable=True) for name in ("groups_claim", "required_groups")),
    Index(None, "issuer"),
)
identity_link = Table(
    "identity_link",
    metadata,
    Column("link_id", Uuid(), primary_key=True),
    _text("issuer"),
    _text("subject"),
    _id("principal_id"),
    _time("requested_at"),
    _text("requested_by"),
    _time("confirmed_at", nullable=True),
    _text("confirmed_by", nullable=True),
    _time("ended_at", nullable=True),
    _text("ended_by", nullable=True),
    _time("proof_spent_until", nullable=True),
    ForeignKeyConstraint(["principal_id"], ["principal.principal_id"]),
    Index(None, "issuer", "subject"),
    Index(None, "principal_id"),
)

# -- studies

study = Table(
    "study",
    metadata,
    Column("study_id", Uuid(), primary_key=True),
    _text("study_code"),
    _text("title"),
    _text("blinding"),
    _number("planned_subjects"),
    _number("stock_floor"),
    Column("stratify_by_site", Boolean(), nullable=False),
    _text("backup_contact"),
    _text("status"),
    Column("is_frozen", Boolean(), nullable=False),
    _number("key_version"),
    _number("min_key_version"),
    _time("registered_at"),
    Column("further_kits_after_break", Text(), nullable=False, server_default="allowed"),
    Column("exempt_events", Text(), nullable=False, server_default="[]"),
    Column("safety_unblinding_shown", Boolean(), nullable=False, server_default=false()),
    UniqueConstraint("study_code"),
)
study_key = _of_study("study_key", _number("version"), _text("wrapped"), PrimaryKeyConstraint("study_id", "version"))
arm = _of_study(
    "arm",
    _text("arm_code"),
    _number("ordinal"),
    _text("label"),
    _text("treatment"),
    _number("ratio"),
    PrimaryKeyConstraint("study_id", "arm_code"),
)
factor = _of_study(
    "factor",
    _text("factor_code"),
    _number("ordinal"),
    _text("label"),
    _text("levels"),
    PrimaryKeyConstraint("study_id", "factor_code"),
)
site = _of_study(
    "site",
    _text("site_code"),
    _text("name"),
    _text("timezone"),
    Column("is_active", Boolean(), nullable=False),
    _time("added_at"),
    PrimaryKeyConstraint("study_id", "site_code"),
)
site_stock = _of_study("site_stock", _text("site_code"), PrimaryKeyConstraint("study_id", "site_code"))
"""One row a site that every change of its stock locks (`custody.md`, lock order)."""

# -- allocation lists

schedule = _of_study(
    "schedule",
    _id("schedule_id"),
    _id("list_id"),
    _number("segment_number"),
    _text("status"),
    _text("origin"),
    _text("algorithm"),
    _number("slot_count"),
    _text("commitment"),
    _text("commitment_note", nullable=True),
    _text("sealed_specification"),
    _text("sealed_seed"),
    _text("sealed_quality_report"),
    _number("key_version"),
    _time("generated_at"),
    _text("generated_by"),
    _time("decided_at", nullable=True),
    _text("decided_by", nullable=True),
    _time("activated_at", nullable=True),
    _text("activated_by", nullable=True),
    PrimaryKeyConstraint("study_id", "schedule_id"),
    UniqueConstraint("study_id", "list_id", "segment_number"),
)
stratum = _of_study(
    "stratum",
    _id("stratum_id"),
    _text("stratum_code"),
    _number("allocated"),
    PrimaryKeyConstraint("study_id", "stratum_id"),
    UniqueConstraint("study_id", "stratum_code"),
)
schedule_stratum = _of_study(
    "schedule_stratum",
    _id("schedule_id"),
    _id("stratum_id"),
    _number("ordinal"),
    _id("tree_id"),
    _number("slot_count"),
    Column("root", LargeBinary(32), nullable=False),
    _number("first_ordinal", nullable=True),
    PrimaryKeyConstraint("study_id", "schedule_id", "stratum_id"),
    ForeignKeyConstraint(["study_id", "schedule_id"], ["schedule.study_id", "schedule.schedule_id"]),
    ForeignKeyConstraint(["study_id", "stratum_id"], ["stratum.study_id", "stratum.stratum_id"]),
    Index(None, "study_id", "stratum_id"),
)
slot = Table(
    "slot",
    metadata,
    _id("study_id"),
    _id("schedule_id"),
    _id("stratum_id"),
    _number("position"),
    _text("randomization_number"),
    _text("sealed"),
    _number("key_version"),
    PrimaryKeyConstraint("study_id", "schedule_id", "stratum_id", "position"),
    # A number is one subject's, whatever list it came from (BLD-04).
    UniqueConstraint("study_id", "randomization_number"),
)
commitment_tile = _of_study(
    "commitment_tile",
    _id("tree_id"),
    _number("level"),
    _number("tile_index"),
    Column("hashes", LargeBinary(), nullable=False),
    PrimaryKeyConstraint("study_id", "tree_id", "level", "tile_index"),
)

# -- kits

consignment = _of_study(
    "consignment",
    _id("consignment_id"),
    _text("consignment_code"),
    _text("site_code", nullable=True),
    _text("status"),
    _text("origin"),
    _number("kit_count"),
    Column("unusable_from", Date(), nullable=False),
    _text("commitment"),
    _text("commitment_note"),
    Column("map_root", LargeBinary(32), nullable=False),
    _time("created_at"),
    _text("created_by"),
    _time("dispatched_at", nullable=True),
    _time("assignable_at", nullable=True),
    _time("withdrawn_at", nullable=True),
    # When the sheets with the codes of its envelopes were last released.
    _time("sheets_released_at", nullable=True),
    # By which recall it was called back, if by any: an id of a request that two people decide.
    Column("recall_id", Uuid(), nullable=True),
    PrimaryKeyConstraint("study_id", "consignment_id"),
    UniqueConstraint("study_id", "consignment_code"),
    Index(None, "study_id", "site_code"),
)
kit = _of_study(
    "kit",
    _id("kit_id"),
    _text("kit_code"),
    _id("consignment_id"),
    _number("map_index"),
    _text("site_code", nullable=True),
    _text("status"),
    _text("sealed"),
    _number("key_version"),
    PrimaryKeyConstraint("study_id", "kit_id"),
    UniqueConstraint("study_id", "kit_code"),
    ForeignKeyConstraint(["study_id", "consignment_id"], ["consignment.study_id", "consignment.consignment_id"]),
)
# Carries what is pooled and nothing of the arm; only kits in stock are in it, so that used ones cost nothing.
Index(
    "ix_kit_in_stock",
    kit.c.study_id,
    kit.c.consignment_id,
    kit.c.map_index,
    postgresql_where=text("status = 'in_stock'"),
    sqlite_where=text("status = 'in_stock'"),
)
# In the order of its pages, and without the status: else PostgreSQL takes it for the stock of a consignment until it has counted.
Index("ix_kit_site", kit.c.study_id, kit.c.site_code, kit.c.kit_code)
Index(
    "ix_kit_assigned",
    kit.c.study_id,
    kit.c.site_code,
    postgresql_where=text("status = 'assigned'"),
    sqlite_where=text("status = 'assigned'"),
)

# -- subjects

allocation = _of_study(
    "allocation",
    _id("allocation_id"),
    _text("subject_key"),
    _text("subject_id"),
    _text("site_code"),
    _id("stratum_id"),
    _number("ordinal"),
    _id("schedule_id"),
    _number("position"),
    _text("randomization_number"),
    _text("strata_used"),
    _text("allocated_by"),
    _text("reported_user", nullable=True),
    _time("allocated_at"),
    _text("sealed_binding"),
    _number("key_version"),
    PrimaryKeyConstraint("study_id", "allocation_id"),
    UniqueConstraint("study_id", "subject_key"),
    UniqueConstraint("study_id", "stratum_id", "ordinal"),
    UniqueConstraint("study_id", "schedule_id", "stratum_id", "position"),
    UniqueConstraint("study_id", "randomization_number"),
    Index(None, "study_id", "site_code", "allocated_at"),
)
subject_flag = _of_study(
    "subject_flag",
    _id("flag_id"),
    _text("subject_key"),
    _text("kind"),
    _text("detail"),
    _time("flagged_at"),
    _text("flagged_by"),
    PrimaryKeyConstraint("study_id", "flag_id"),
    Index(None, "study_id", "subject_key"),
)
kit_assignment = _of_study(
    "kit_assignment",
    _id("assignment_id"),
    _id("kit_id"),
    _text("subject_key"),
    _text("visit", nullable=True),
    _id("replaces", nullable=True),
    _time("assigned_at"),
    _text("assigned_by"),
    _time("dispensed_at", nullable=True),
    _text("dispensed_by", nullable=True),
    _text("sealed_binding"),
    _number("key_version"),
    PrimaryKeyConstraint("study_id", "assignment_id"),
    UniqueConstraint("study_id", "kit_id"),
    ForeignKeyConstraint(["study_id", "kit_id"], ["kit.study_id", "kit.kit_id"]),
    Index(None, "study_id", "subject_key"),
)
replacement_release = _of_study(
    "replacement_release",
    _id("kit_id"),
    _time("released_at"),
    _text("released_by"),
    PrimaryKeyConstraint("study_id", "kit_id"),
)

envelope = _of_study(
    "envelope",
    _id("kit_id"),
    # The finished file. Not under a key of ours (`app.domain.envelopes`), so a rotation has nothing to do with it.
    Column("content", LargeBinary(), nullable=False),
    _time("issued_at"),
    _time("written_at", nullable=True),
    PrimaryKeyConstraint("study_id", "kit_id"),
    ForeignKeyConstraint(["study_id", "kit_id"], ["kit.study_id", "kit.kit_id"]),
)
"""The outbox of the code-break envelopes: one for each kit given, from the moment it is given."""
Index(
    "ix_envelope_waiting",
    envelope.c.study_id,
    envelope.c.kit_id,
    postgresql_where=text("written_at IS NULL"),
    sqlite_where=text("written_at IS NULL"),
)

# -- unblinding

code_break = _of_study(
    "code_break",
    _id("code_break_id"),
    _text("subject_key", nullable=True),
    _id("kit_id", nullable=True),
    _text("site_code", nullable=True),
    Column("is_by_kit_code", Boolean(), nullable=False),
    Column("is_own_site", Boolean(), nullable=False),
    _text("reason_code"),
    _text("status"),
    _time("broken_at"),
    _text("broken_by"),
    _text("role"),
    _time("narrated_at", nullable=True),
    # Who opened an envelope while the service was down; it was told by ``broken_by`` later. None for a break by the service.
    _text("opened_by", nullable=True),
    PrimaryKeyConstraint("study_id", "code_break_id"),
    Index(None, "study_id", "subject_key"),
    Index(None, "study_id", "broken_at"),
)
code_break_assessment = _of_study(
    "code_break_assessment",
    _id("code_break_id"),
    _time("assessed_at"),
    _text("assessed_by"),
    _text("impact"),
    PrimaryKeyConstraint("study_id", "code_break_id"),
)
drill = _of_study(
    "drill",
    _id("drill_id"),
    _text("site_code"),
    _text("username"),
    _time("revealed_at"),
    _number("reveal_ms"),
    PrimaryKeyConstraint("study_id", "drill_id"),
    Index(None, "study_id", "site_code", "username"),
)
access_review = _of_study(
    "access_review",
    _id("review_id"),
    _time("reviewed_at"),
    _text("reviewed_by"),
    _text("content_hash"),
    _text("lines"),
    PrimaryKeyConstraint("study_id", "review_id"),
)
safety_unblinding = _of_study(
    "safety_unblinding",
    _id("safety_unblinding_id"),
    _text("sealed_subject"),
    _number("key_version"),
    _text("status"),
    _time("unblinded_at"),
    _text("unblinded_by"),
    PrimaryKeyConstraint("study_id", "safety_unblinding_id"),
)
dual_control_request = _of_study(
    "dual_control_request",
    _id("request_id"),
    _text("kind"),
    _id("consignment_id", nullable=True),
    _text("recipient_key", nullable=True),
    _text("sealed_statement"),
    _number("key_version"),
    _time("requested_at"),
    _text("requested_by"),
    _time("released_at", nullable=True),
    _text("released_by", nullable=True),
    PrimaryKeyConstraint("study_id", "request_id"),
)

# -- notices

notice_receiver = _of_study(
    "notice_receiver",
    _id("receiver_id"),
    _text("channel"),
    _text("address"),
    _time("added_at"),
    _text("added_by"),
    _time("removed_at", nullable=True),
    _text("removed_by", nullable=True),
    # When the receiver itself said that it wants no more (410).
    _time("disabled_at", nullable=True),
    PrimaryKeyConstraint("study_id", "receiver_id"),
)
notice = _of_study(
    "notice",
    _id("notice_id"),
    _id("receiver_id"),
    _text("body"),
    _time("posted_at"),
    _number("failures"),
    _time("next_try_at"),
    _time("delivered_at", nullable=True),
    _time("given_up_at", nullable=True),
    PrimaryKeyConstraint("study_id", "notice_id", "receiver_id"),
    ForeignKeyConstraint(["study_id", "receiver_id"], ["notice_receiver.study_id", "notice_receiver.receiver_id"]),
    Index(None, "study_id", "receiver_id"),
)
"""The outbox of the notices: a row for each receiver, written with what it tells of."""
_WAITING: Final = text("delivered_at IS NULL AND given_up_at IS NULL")
Index("ix_notice_waiting", notice.c.next_try_at, postgresql_where=_WAITING, sqlite_where=_WAITING)

# -- signatures

signature = _of_study(
    "signature",
    _id("signature_id"),
    _text("record_kind"),
    _text("record_id"),
    Column("content_hash", LargeBinary(32), nullable=False),
    _text("meaning"),
    _text("printed_name"),
    _text("username"),
    _text("role"),
    _time("signed_at"),
    _id("session_id"),
    _time("proved_at"),
    # Of the deployment's secret: who writes into the database only cannot sign for anybody.
    Column("mac", LargeBinary(32), nullable=False),
    PrimaryKeyConstraint("study_id", "signature_id"),
    Index(None, "study_id", "record_kind", "record_id"),
)

# -- answers and the trail (no foreign key: the service's own log stands under SERVICE_LOG)

stored_answer = Table(
    "stored_answer",
    metadata,
    _id("study_id"),
    Column("scope", LargeBinary(32), nullable=False),
    _text("sealed_small", nullable=True),
    _text("sealed_large", nullable=True),
    _time("claimed_at"),
    PrimaryKeyConstraint("study_id", "scope"),
)
log = Table(
    "log",
    metadata,
    _id("study_id"),
    _number("segment"),
    _text("origin"),
    Column("size", BigInteger(), nullable=False),
    Column("frontier", LargeBinary(), nullable=False),
    _time("last_at"),
    Column("mac", LargeBinary(32), nullable=False),
    # Of the study's key: who comes to the end of the log with an older one has sealed with it, and begins anew.
    _number("key_version"),
    PrimaryKeyConstraint("study_id", "segment"),
)
trail_entry = Table(
    "trail_entry",
    metadata,
    _id("study_id"),
    _number("segment"),
    Column("log_index", BigInteger(), nullable=False),
    _time("at"),
    _text("action"),
    _text("actor"),
    _text("subject_key", nullable=True),
    _text("site_code", nullable=True),
    Column("body", LargeBinary(), nullable=False),
    Column("leaf_hash", LargeBinary(32), nullable=False),
    # Seals the columns by which an entry is found, which are no part of what is hashed.
    Column("lookup_mac", LargeBinary(32), nullable=False),
    PrimaryKeyConstraint("study_id", "segment", "log_index"),
    # With the place behind it, so that the entries of one subject come in order and a page of them costs no more than it shows.
    Index("ix_trail_entry_subject", "study_id", "subject_key", "segment", "log_index"),
)
# What was done on many subjects at once; what is written in haste is about one, and costs nothing here.
Index(
    "ix_trail_entry_of_nobody",
    trail_entry.c.study_id,
    trail_entry.c.action,
    trail_entry.c.segment,
    trail_entry.c.log_index,
    postgresql_where=text("subject_key IS NULL"),
    sqlite_where=text("subject_key IS NULL"),
)
UNBLINDING: Final = (
    "action IN ('accidental_unblinding:record', 'code_break:create', 'envelope:enter_opening', 'final_unblinding:release', "
    "'interim_unblinding:release', 'packing_list:release', 'preparation:read', 'recall:release', 'safety_unblinding:create', "
    "'third_party_unblinding:open')"
)
"""What can unblind; written out, because a planner recognises a partial index by its words alone."""
Index(
    "ix_trail_entry_unblinding",
    trail_entry.c.study_id,
    trail_entry.c.segment,
    trail_entry.c.log_index,
    postgresql_where=text(UNBLINDING),
    sqlite_where=text(UNBLINDING),
)
trail_node = Table(
    "trail_node",
    metadata,
    _id("study_id"),
    _number("segment"),
    _number("level"),
    Column("node_index", BigInteger(), nullable=False),
    Column("hash", LargeBinary(32), nullable=False),
    PrimaryKeyConstraint("study_id", "segment", "level", "node_index"),
)
trail_restricted = Table(
    "trail_restricted",
    metadata,
    _id("study_id"),
    _number("segment"),
    Column("log_index", BigInteger(), nullable=False),
    _text("sealed"),
    _number("key_version"),
    PrimaryKeyConstraint("study_id", "segment", "log_index"),
)
