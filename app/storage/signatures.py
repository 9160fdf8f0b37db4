"""Electronic signatures: written once with the act that they sign, never changed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from sqlalchemy import insert, select

from app.domain.signatures import Meaning, RecordKind, Signature
from app.domain.words import Role
from app.storage import tables
from app.storage.database import Transaction

_s = tables.signature.c
_FIELDS: Final = tuple(Signature.__dataclass_fields__)


@dataclass(frozen=True, slots=True)
class KeptSignature:
    """A signature with the seal that it was given under."""

    signature: Signature
    mac: bytes


def add_signature(tx: Transaction, study_id: UUID, kept: KeptSignature) -> None:
    """Keep a signature."""
    row = {name: getattr(kept.signature, name) for name in _FIELDS}
    tx.execute(insert(tables.signature), {"study_id": study_id, "mac": kept.mac} | row)


def list_signatures(
    tx: Transaction, study_id: UUID, kind: RecordKind, record_ids: Sequence[str]
) -> list[KeptSignature]:
    """Return the signatures on some records of one kind, in the order in which they were given."""
    rows = tx.execute(
        select(*(_s[name] for name in _FIELDS), _s.mac)
        .where(_s.study_id == study_id, _s.record_kind == kind, _s.record_id.in_(record_ids))
        .order_by(_s.signed_at, _s.signature_id)
    )
    return [
        KeptSignature(
            Signature(
                row.signature_id,
                RecordKind(row.record_kind),
                row.record_id,
                row.content_hash,
                Meaning(row.meaning),
                row.printed_name,
                row.username,
                Role(row.role),
                row.signed_at,
                row.session_id,
                row.proved_at,
            ),
            row.mac,
        )
        for row in rows
    ]
