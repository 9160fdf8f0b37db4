"""Consignments and kits, and which kit was given to whom."""

from uuid import UUID

from sqlalchemy import select

from app.domain.words import ConsignmentStatus, SiteCode
from app.storage import tables
from app.storage.database import Transaction

_c = tables.consignment.c


def has_consignment(tx: Transaction, study_id: UUID, site_code: SiteCode, status: ConsignmentStatus) -> bool:
    """Return whether a site has a consignment of this status."""
    return (
        tx.execute(
            select(_c.consignment_id)
            .where(_c.study_id == study_id, _c.site_code == site_code, _c.status == status)
            .limit(1)
        ).first()
        is not None
    )
