"""Who is asking: a person or a machine client with the grants that hold now, and the second proof that was given."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from app.domain.words import Role, SiteCode, StudyCode


@dataclass(frozen=True, slots=True)
class HeldGrant:
    """A role that is held now; ``study_code`` is None outside any study, ``site_code`` None for every site."""

    role: Role
    study_code: StudyCode | None
    site_code: SiteCode | None


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

    def holds(self, study: StudyCode) -> frozenset[Role]:
        """Return the roles that the caller holds in a study."""
        return frozenset(grant.role for grant in self.grants if grant.study_code == study)
