"""The unblinding log: every act that could unblind, of every kind, told from the trail alone and without a treatment (UNB-08)."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import Any, Final

from app.domain.encoding import canonical_json
from app.domain.unblinding_log import UNBLINDINGS, purpose_of
from app.domain.words import Action, StudyCode
from app.services import pages
from app.services.audited import Act, audited
from app.services.checkpoints import body_of, check_lookup, origin_of
from app.services.context import RequestContext
from app.services.final_package import harmless
from app.storage import trail
from app.storage.trail import Entry

_BEGINNING: Final = (0, -1)
_PAGE: Final = 500


@dataclass(frozen=True, slots=True)
class LogLine:
    """One act: who, when, of which kind and to which purpose, how it ended, and who stays blinded."""

    index: int
    segment: int
    at: str
    kind: str
    outcome: str
    actor: str
    role: str | None
    target: Mapping[str, Any] | None
    purpose: Mapping[str, Any]
    who_learns: str
    stays_blinded: str
    safeguards: str
    leaf_hash: str


_COLUMNS: Final = [name for name in LogLine.__dataclass_fields__ if name != "leaf_hash"]
"""Of the export: a line is found again in the trail by its segment and index."""


@dataclass(frozen=True, slots=True)
class LogPage:
    """A page of the log."""

    items: Sequence[LogLine]
    next_cursor: str | None


def read_unblinding_log(ctx: RequestContext, study: StudyCode, limit: int, cursor: str | None) -> LogPage:
    """Return the acts that could unblind in the order of the trail, refused and withheld ones included, up to the first page.

    Raises ``IntegrityBroken`` for an entry that was changed.
    """

    def work(act: Act) -> LogPage:
        after, until = _BEGINNING, _end(act)
        if cursor is not None:
            segment, index, *end = pages.decode(act, cursor)
            # The reading is entered with its first page (rule E1).
            act.is_entered = False
            after, until = (segment, index), (end[0], end[1])
        found = trail.list_unblindings(act.tx, act.study.study_id, after, until, limit + 1)
        items = [_line(act, entry) for entry in found[:limit]]
        following = None
        if len(found) > limit:
            following = pages.encode(act, [items[-1].segment, items[-1].index, *until])
        return LogPage(items, following)

    return audited(ctx, Action.READ_UNBLINDING_LOG, work, study=study)


def export_unblinding_log(ctx: RequestContext, study: StudyCode) -> bytes:
    """Return the whole log as CSV, no cell of which a spreadsheet takes for a formula."""

    def work(act: Act) -> bytes:
        text = StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow(_COLUMNS)
        for line in _whole(act):
            writer.writerow(_cell(getattr(line, name)) for name in _COLUMNS)
        return text.getvalue().encode()

    return audited(ctx, Action.READ_UNBLINDING_LOG, work, study=study)


def _cell(value: object) -> str:
    if isinstance(value, Mapping):
        return canonical_json(value).decode()
    return "" if value is None else harmless(str(value))


def _whole(act: Act) -> Iterator[LogLine]:
    after, until = _BEGINNING, _end(act)
    while found := trail.list_unblindings(act.tx, act.study.study_id, after, until, _PAGE):
        for entry in found:
            yield _line(act, entry)
        after = (found[-1].segment, found[-1].log_index)


def _end(act: Act) -> tuple[int, int]:
    newest = trail.list_segments(act.tx, act.study.study_id)[-1]
    return newest.segment, newest.frontier.size


def _line(act: Act, entry: Entry) -> LogLine:
    origin = act.deployment.origin(act.study.study_code)
    check_lookup(act.deployment.ring, origin_of(origin, entry.segment), entry)
    body = body_of(entry)
    known = UNBLINDINGS[body["action"]]
    return LogLine(
        body["index"],
        entry.segment,
        body["at"],
        known.kind,
        body["outcome"],
        body["actor"],
        body["role"],
        body["target"],
        purpose_of(body["after"]),
        known.who_learns,
        known.stays_blinded,
        known.safeguards,
        entry.leaf_hash.hex(),
    )
