"""Look every so often at who holds which role, and sign for it (USR-07).

A study administrator reviews and signs, and administers no account: what is to be revoked is listed for a service administrator,
who revokes it as ever (USR-16). So no review takes the last person who can break a code away from a site unseen. A review that is
overdue is told and blocks nothing (rule D5).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from app.domain.access_reviews import Access, Decision, Verdict, check_decisions, due_at, hash_of, reviewed_line
from app.domain.encoding import encode
from app.domain.notices import Notice, Topic
from app.domain.signatures import RecordKind, SignatureShown
from app.domain.words import Action, StudyCode
from app.errors import ReviewOutdated
from app.services import pages
from app.services.audited import Act, Receipt, audited
from app.services.context import Deployment, RequestContext
from app.services.outbox import tell_once
from app.services.signatures import sign, with_signatures
from app.storage import access_reviews
from app.storage.access_reviews import ReviewRecord, ReviewState


@dataclass(frozen=True, slots=True)
class CurrentAccess:
    """Who holds what now, and the hash by which a sign-off says that this is what was looked at."""

    content_hash: str
    last_reviewed_at: datetime | None
    due_at: datetime
    is_overdue: bool
    items: Sequence[Access]


@dataclass(frozen=True, slots=True)
class Review:
    """A review that was signed, with what was said of each grant."""

    review_id: UUID
    reviewed_at: datetime
    reviewed_by: str
    content_hash: str
    items: Sequence[Mapping[str, Any]]
    is_signed: bool = False
    signatures: tuple[SignatureShown, ...] = ()
    receipt: Receipt | None = None


@dataclass(frozen=True, slots=True)
class ReviewPage:
    """A page of the register of reviews."""

    items: Sequence[Review]
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class Outstanding:
    """What reviews leave to do in one study."""

    study_code: StudyCode
    last_reviewed_at: datetime | None
    due_at: datetime
    is_overdue: bool
    to_revoke: Sequence[Mapping[str, Any]] = field(default_factory=tuple)
    """What the newest review wants revoked, and is not yet."""


def read_current(ctx: RequestContext, study: StudyCode) -> CurrentAccess:
    """Return every grant in the study with its training and when its holder was last here; nothing that depends on an arm."""

    def work(act: Act) -> CurrentAccess:
        present = access_reviews.list_access(act.tx, study, act.now)
        [state] = access_reviews.list_states(act.tx, study)
        due = _due(act.deployment, state)
        return CurrentAccess(hash_of(present), state.reviewed_at, due, due < act.now, present)

    return audited(ctx, Action.READ_ACCESS_REVIEWS, work, study=study)


def sign_review(ctx: RequestContext, study: StudyCode, content_hash: str, decisions: Sequence[Decision]) -> Review:
    """Return the review, signed by the caller; raise ``ReviewOutdated`` when the grants are not those that were looked at."""

    def work(act: Act) -> Review:
        present = access_reviews.list_access(act.tx, study, act.now)
        if hash_of(present) != content_hash:
            raise ReviewOutdated
        check_decisions(present, decisions)
        by_grant = {one.grant_id: one for one in decisions}
        lines = [reviewed_line(one, by_grant[one.grant_id]) for one in present]
        kept = ReviewRecord(
            act.deployment.new_id(),
            act.now,
            act.principal.name,
            content_hash,
            json.dumps(lines, ensure_ascii=False),
        )
        access_reviews.add_review(act.tx, act.study.study_id, kept)
        wanted = [str(one.grant_id) for one in decisions if one.verdict is Verdict.REVOKE]
        act.note(after={"review_id": str(kept.review_id), "content_hash": content_hash, "to_revoke": sorted(wanted)})
        sign(act, RecordKind.ACCESS_REVIEW, str(kept.review_id), _content(kept))
        return _shown(act, [kept])[0]

    return audited(ctx, Action.SIGN_ACCESS_REVIEW, work, study=study, answer_type=Review)


def list_reviews(ctx: RequestContext, study: StudyCode, limit: int, cursor: str | None) -> ReviewPage:
    """Return the register of reviews in the order of time, each with its signature."""

    def work(act: Act) -> ReviewPage:
        after, until = pages.place_in_time(act, cursor)
        found = access_reviews.list_reviews(act.tx, act.study.study_id, after, until, limit + 1)
        items, following = found[:limit], None
        if len(found) > limit:
            following = pages.cursor_in_time(act, items[-1].reviewed_at, items[-1].review_id, until)
        return ReviewPage(_shown(act, items), following)

    return audited(ctx, Action.READ_ACCESS_REVIEWS, work, study=study)


def list_outstanding(ctx: RequestContext) -> Sequence[Outstanding]:
    """Return for each study that is not closed when a review is due, and which grants are still to be revoked."""

    def work(act: Act) -> Sequence[Outstanding]:
        standing = access_reviews.list_standing(act.tx)
        found = []
        for state in access_reviews.list_states(act.tx):
            newest = access_reviews.find_newest(act.tx, state.study_id)
            wanted = [
                line
                for line in (json.loads(newest.lines) if newest is not None else [])
                if line["verdict"] == Verdict.REVOKE and UUID(line["grant_id"]) in standing
            ]
            due = _due(act.deployment, state)
            found.append(Outstanding(state.study_code, state.reviewed_at, due, due < act.now, wanted))
        return found

    return audited(ctx, Action.LIST_OUTSTANDING_REVIEWS, work)


def tell_overdue(deployment: Deployment) -> None:
    """Tell the receivers of a study's notices, once, that its review is overdue; whoever is told already is not told again."""
    now = deployment.clock()
    with deployment.database.transaction() as tx:
        late = [state for state in access_reviews.list_states(tx) if _due(deployment, state) < now]
    for state in late:
        due = _due(deployment, state)
        name = deployment.ring.mac("overdue review", encode(state.study_code, due.isoformat()))
        about = {"due_at": due.isoformat()}
        tell_once(
            deployment, state.study_id, name, Notice(Topic.ACCESS_REVIEW, now, state.study_code, deployment.mode, about)
        )


def _due(deployment: Deployment, state: ReviewState) -> datetime:
    return due_at(state.reviewed_at, state.registered_at, deployment.limits.access_review_period)


def _shown(act: Act, kept: Sequence[ReviewRecord]) -> list[Review]:
    contents = {one.review_id: _content(one) for one in kept}
    reviews = [
        Review(one.review_id, one.reviewed_at, one.reviewed_by, one.content_hash, json.loads(one.lines)) for one in kept
    ]
    return with_signatures(
        act, RecordKind.ACCESS_REVIEW, reviews, lambda one: (str(one.review_id), contents[one.review_id])
    )


def _content(review: ReviewRecord) -> Mapping[str, Any]:
    """Return what is signed of a review: what was looked at, and what was said of it."""
    return {
        "review_id": str(review.review_id),
        "reviewed_at": review.reviewed_at.isoformat(timespec="microseconds"),
        "reviewed_by": review.reviewed_by,
        "content_hash": review.content_hash,
        "lines": json.loads(review.lines),
    }
