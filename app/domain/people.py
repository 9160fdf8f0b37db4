"""Who is asking: a person or a machine client with the grants that hold now, and the second proof that was given."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from app.domain.words import UNBLINDED_ROLES, Role, SiteCode, StudyCode

VOUCHING_ROLES: Final = frozenset({Role.INVESTIGATOR, Role.SAFETY_OFFICER, Role.STUDY_ADMIN, Role.SERVICE_ADMIN})
"""Who confirms that a colleague has lost a second factor: those who break codes, or administer, and so are there at night."""
RECOVERY_TOLD_FOR: Final = timedelta(days=1)
"""How long the entries of code breaks say that the second factor is a recovered one."""


@dataclass(frozen=True, slots=True)
class HeldGrant:
    """A role that is held now; ``study_code`` is None outside any study, ``site_code`` None for every site."""

    role: Role
    study_code: StudyCode | None
    site_code: SiteCode | None


@dataclass(frozen=True, slots=True)
class Period:
    """The time for which a role is delegated; without an end it holds until it is revoked."""

    starts_at: datetime
    ends_at: datetime | None

    def overlaps(self, other: "Period") -> bool:
        """Return whether both hold at some moment."""
        return (other.ends_at is None or self.starts_at < other.ends_at) and (
            self.ends_at is None or other.starts_at < self.ends_at
        )


@dataclass(frozen=True, slots=True)
class Proof:
    """The caller's own second proof: when it was given, and whether an act has spent it (rule D3)."""

    at: datetime
    spent: bool


@dataclass(frozen=True, slots=True)
class Principal:
    """Who is asking, as the database knows it at this moment."""

    principal_id: UUID
    name: str
    """The user name of a person, the client id of a machine."""
    display_name: str
    is_machine: bool
    session_id: UUID
    sign_in_id: UUID
    """The first session of the sign-in that this one belongs to: a second proof makes new ones."""
    used_at: datetime
    """When the sign-in was last used, to the minute."""
    must_change_password: bool
    password_expired: bool
    proof: Proof | None
    grants: tuple[HeldGrant, ...]
    ended_grants: tuple[HeldGrant, ...] = ()
    """Roles that were delegated for a time that is over, and were not revoked: they open nothing but a code break (rule D1)."""
    untrained_grants: tuple[HeldGrant, ...] = ()
    """Roles that wait for a training that is not on record, or is over: likewise."""
    is_outside: bool = False
    """Known by the word of an outside issuer, in this session."""
    factor_recovered_at: datetime | None = None
    """When the second factor took the place of a lost one, by a colleague's word."""
    needs_second_factor: bool = False
    """One factor was shown in this session, and the operator asks for two (USR-09)."""

    def was_recovered_lately(self, now: datetime) -> bool:
        """Return whether the second factor is a recovered one, less than a day old."""
        return self.factor_recovered_at is not None and now - self.factor_recovered_at < RECOVERY_TOLD_FOR

    @property
    def lapsed_grants(self) -> tuple[HeldGrant, ...]:
        """Return what opens nothing but a code break."""
        return self.ended_grants + self.untrained_grants

    def is_known_in(self, study: StudyCode) -> bool:
        """Return whether the study has delegated anything to the caller, effective or lapsed."""
        return any(grant.study_code == study for grant in (*self.grants, *self.lapsed_grants))

    def acts_after_end(self, study: StudyCode, role: Role, site: SiteCode | None) -> bool:
        """Return whether the role, by which something is done at the site, has ended there, or wherever it was held."""
        return self._lapsed(self.ended_grants, study, role, site)

    def acts_untrained(self, study: StudyCode, role: Role, site: SiteCode | None) -> bool:
        """Return whether the role, by which something is done at the site, waits for a training there, or wherever it is held."""
        return self._lapsed(self.untrained_grants, study, role, site)

    def _lapsed(self, lapsed: tuple[HeldGrant, ...], study: StudyCode, role: Role, site: SiteCode | None) -> bool:
        now, then = (
            {grant.site_code for grant in grants if grant.study_code == study and grant.role is role}
            for grants in (self.grants, lapsed)
        )
        return bool(then) and site not in now and (site in then or not now)

    def holds(self, study: StudyCode) -> frozenset[Role]:
        """Return the roles that the caller holds in a study."""
        return frozenset(grant.role for grant in self.grants if grant.study_code == study)


def may_vouch(voucher: Collection[HeldGrant], owner: Collection[HeldGrant]) -> bool:
    """Return whether who holds the first roles may confirm that who holds the second has lost a second factor.

    A colleague of one study at least. Who knew the password as well would be the other person: so nobody blinded vouches for
    somebody unblinded, and only an administrator of the service for another one (rules B1, B10, SIG-07).
    """
    if not owner:
        return False
    if any(grant.role is Role.SERVICE_ADMIN for grant in voucher):
        return True
    if any(grant.role is Role.SERVICE_ADMIN for grant in owner):
        return False
    studies = {grant.study_code for grant in voucher if grant.role in VOUCHING_ROLES}
    unblinded_in = {grant.study_code for grant in voucher if grant.role in VOUCHING_ROLES & UNBLINDED_ROLES}
    shared = any(grant.study_code in studies for grant in owner)
    return shared and all(grant.study_code in unblinded_in for grant in owner if grant.role in UNBLINDED_ROLES)
