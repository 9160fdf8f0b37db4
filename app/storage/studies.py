"""Studies: definition, sites, status, and the keys of each."""

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Row, bindparam, insert, select, update

from app.domain.signatures import SignatureShown
from app.domain.words import Arm, ArmCode, Factor, FurtherKits, Level, SiteCode, StudyCode, StudyStatus
from app.errors import AlreadyExists, Missing
from app.storage import tables
from app.storage.database import AlreadyThere, Transaction

_st = tables.study.c
_si = tables.site.c
_a = tables.arm.c
_f = tables.factor.c


@dataclass(frozen=True, slots=True)
class StudyHead:
    """What every act in a study needs to know of it."""

    study_id: UUID
    study_code: StudyCode
    status: StudyStatus
    key_version: int
    backup_contact: str
    stock_floor: int
    stratify_by_site: bool
    is_frozen: bool
    min_key_version: int = 1
    """Versions of the study's key below it were retired: nothing that they sealed is opened any more."""
    further_kits_after_break: FurtherKits = FurtherKits.ALLOWED
    exempt_events: tuple[str, ...] = ()
    """Events of the disease itself, for which nobody is unblinded as a matter of course (UNB-04)."""
    safety_unblinding_shown: bool = False
    """Whether an allocation shows that its subject was unblinded for a safety report, and when; never what it showed (UNB-05)."""


@dataclass(frozen=True, slots=True)
class Definition:
    """The rest of a study's definition."""

    title: str
    blinding: str
    planned_subjects: int
    registered_at: datetime
    arms: tuple[Arm, ...]
    factors: tuple[Factor, ...]


@dataclass(frozen=True, slots=True)
class Site:
    """A centre of the study."""

    site_code: SiteCode
    name: str
    timezone: str
    is_active: bool
    added_at: datetime
    is_signed: bool = False
    """Whether its activation was signed, and it still says what was signed; told by who reads it for people."""
    signatures: tuple[SignatureShown, ...] = ()


_SITE: Final = ("site_code", "name", "timezone", "is_active", "added_at")
_HEAD: Final = select(*(_st[name] for name in StudyHead.__dataclass_fields__))
_FIND: Final = _HEAD.where(_st.study_code == bindparam("study_code"))
_HOLD: Final = (
    select(_st.status, _si.is_active, _si.timezone)
    .join_from(tables.study, tables.site, _si.study_id == _st.study_id)
    .where(_st.study_id == bindparam("study_id"), _si.site_code == bindparam("site_code"))
    .with_for_update(read=True, of=[tables.study, tables.site])
)


def _head(row: Row[Any]) -> StudyHead:
    values = {name: getattr(row, name) for name in StudyHead.__dataclass_fields__}
    words = {
        "status": StudyStatus(values["status"]),
        "further_kits_after_break": FurtherKits(values["further_kits_after_break"]),
        "exempt_events": tuple(json.loads(values["exempt_events"])),
    }
    return StudyHead(**(values | words))


def find_study(tx: Transaction, study_code: StudyCode) -> StudyHead | None:
    """Return a study by its code, or None."""
    row = tx.execute(_FIND, {"study_code": study_code}).one_or_none()
    return None if row is None else _head(row)


def list_studies(tx: Transaction) -> list[StudyHead]:
    """Return every study, in the order of their codes."""
    return [_head(row) for row in tx.execute(_HEAD.order_by(_st.study_code))]


def add_study(tx: Transaction, study: StudyHead, definition: Definition, wrapped_key: str) -> None:
    """Record a study with its definition and first key; raise ``AlreadyExists``."""
    row = {name: getattr(study, name) for name in StudyHead.__dataclass_fields__}
    row |= {name: getattr(definition, name) for name in ("title", "blinding", "planned_subjects", "registered_at")}
    row["exempt_events"] = json.dumps(study.exempt_events)
    try:
        tx.execute(insert(tables.study), row)
    except AlreadyThere:
        message = f"The study {study.study_code} is registered already."
        raise AlreadyExists(message) from None
    tx.execute(
        insert(tables.study_key),
        {"study_id": study.study_id, "version": study.key_version, "wrapped": wrapped_key},
    )
    tx.execute(
        insert(tables.arm),
        [
            {
                "study_id": study.study_id,
                "arm_code": arm.arm_code,
                "ordinal": ordinal,
                "label": arm.label,
                "treatment": arm.treatment,
                "ratio": arm.ratio,
            }
            for ordinal, arm in enumerate(definition.arms)
        ],
    )
    if definition.factors:
        tx.execute(
            insert(tables.factor),
            [
                {
                    "study_id": study.study_id,
                    "factor_code": factor.factor_code,
                    "ordinal": ordinal,
                    "label": factor.label,
                    "levels": json.dumps([[level.level_code, level.label] for level in factor.levels]),
                }
                for ordinal, factor in enumerate(definition.factors)
            ],
        )


def get_definition(tx: Transaction, study_id: UUID) -> Definition:
    """Return the definition of a study that is there."""
    row = tx.execute(
        select(_st.title, _st.blinding, _st.planned_subjects, _st.registered_at).where(_st.study_id == study_id)
    ).one()
    return Definition(
        row.title,
        row.blinding,
        row.planned_subjects,
        row.registered_at,
        list_arms(tx, study_id),
        list_factors(tx, study_id),
    )


def list_arms(tx: Transaction, study_id: UUID) -> tuple[Arm, ...]:
    """Return the arms in the order of the definition."""
    rows = tx.execute(
        select(_a.arm_code, _a.label, _a.treatment, _a.ratio).where(_a.study_id == study_id).order_by(_a.ordinal)
    )
    return tuple(Arm(ArmCode(row.arm_code), row.label, row.treatment, row.ratio) for row in rows)


def list_factors(tx: Transaction, study_id: UUID) -> tuple[Factor, ...]:
    """Return the stratification factors in the order of the definition."""
    rows = tx.execute(select(_f.factor_code, _f.label, _f.levels).where(_f.study_id == study_id).order_by(_f.ordinal))
    return tuple(
        Factor(row.factor_code, row.label, tuple(Level(code, label) for code, label in json.loads(row.levels)))
        for row in rows
    )


def record_freeze(tx: Transaction, study_id: UUID) -> None:
    """Freeze arms and definitions, from the first approval on."""
    tx.execute(update(tables.study).where(_st.study_id == study_id).values(is_frozen=True))


def lock_study(tx: Transaction, study_id: UUID) -> StudyStatus:
    """Lock the study's row against any change and return its status."""
    return StudyStatus(tx.execute(select(_st.status).where(_st.study_id == study_id).with_for_update()).scalar_one())


def record_status(tx: Transaction, study_id: UUID, status: StudyStatus) -> None:
    """Set the status of a study."""
    tx.execute(update(tables.study).where(_st.study_id == study_id).values(status=status))


@dataclass(frozen=True, slots=True)
class Standing:
    """How a study and one of its sites stand, held until the transaction ends."""

    status: StudyStatus
    site_is_active: bool
    site_timezone: str


def hold_standing(tx: Transaction, study_id: UUID, site_code: SiteCode) -> Standing:
    """Return how study and site stand and keep both from changing; raise ``Missing`` for an unknown site.

    One statement locks both rows in share mode and reads them. Nothing is read beside the locked rows, so after a wait it is
    what now stands (`custody.md`, "The one door").
    """
    row = tx.execute(_HOLD, {"study_id": study_id, "site_code": site_code}).one_or_none()
    if row is None:
        raise Missing
    return Standing(StudyStatus(row.status), row.is_active, row.timezone)


def add_site(tx: Transaction, study_id: UUID, site: Site) -> None:
    """Record a site with the row that its stock is locked by; raise ``AlreadyExists``."""
    try:
        tx.execute(
            insert(tables.site),
            {"study_id": study_id} | {name: getattr(site, name) for name in _SITE},
        )
    except AlreadyThere:
        message = f"The site {site.site_code} exists already."
        raise AlreadyExists(message) from None
    tx.execute(insert(tables.site_stock), {"study_id": study_id, "site_code": site.site_code})


def _site(row: Row[Any]) -> Site:
    return Site(row.site_code, row.name, row.timezone, row.is_active, row.added_at)


def get_site(tx: Transaction, study_id: UUID, site_code: SiteCode) -> Site:
    """Return a site; raise ``Missing``."""
    row = tx.execute(
        select(*(_si[name] for name in _SITE)).where(_si.study_id == study_id, _si.site_code == site_code)
    ).one_or_none()
    if row is None:
        raise Missing
    return _site(row)


def list_sites(tx: Transaction, study_id: UUID) -> list[Site]:
    """Return the sites of a study by code."""
    rows = tx.execute(select(*(_si[name] for name in _SITE)).where(_si.study_id == study_id).order_by(_si.site_code))
    return [_site(row) for row in rows]


def record_site_activation(tx: Transaction, study_id: UUID, site_code: SiteCode) -> None:
    """Make a site active."""
    tx.execute(update(tables.site).where(_si.study_id == study_id, _si.site_code == site_code).values(is_active=True))


def list_study_keys(tx: Transaction, study_id: UUID) -> list[tuple[int, str]]:
    """Return the wrapped keys of a study with their versions, those left out that were destroyed."""
    keys = tables.study_key.c
    rows = tx.execute(select(keys.version, keys.wrapped).where(keys.study_id == study_id, keys.wrapped != ""))
    return [(row.version, row.wrapped) for row in rows]


def begin_key_version(tx: Transaction, study_id: UUID, version: int, wrapped: str) -> bool:
    """Have the study seal with a new version of its key from now on; return False when somebody else was first.

    The end of its log is told, and so locked: whoever comes there with an older version has to begin anew.
    """
    moved = tx.execute(
        update(tables.study)
        .where(_st.study_id == study_id, _st.key_version == version - 1, _st.min_key_version == version - 1)
        .values(key_version=version)
    )
    if moved.rowcount != 1:
        return False
    tx.execute(insert(tables.study_key), {"study_id": study_id, "version": version, "wrapped": wrapped})
    tx.execute(update(tables.log).where(tables.log.c.study_id == study_id).values(key_version=version))
    return True


def retire_key_versions(tx: Transaction, study_id: UUID, least: int) -> None:
    """Have every version below ``least`` refused from now on, and destroy what they were wrapped as (rule F4)."""
    keys = tables.study_key.c
    tx.execute(update(tables.study).where(_st.study_id == study_id).values(min_key_version=least))
    tx.execute(
        update(tables.study_key)
        .where(keys.study_id == study_id, keys.version < least, keys.wrapped != "")
        .values(wrapped="")
    )
