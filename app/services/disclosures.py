"""Access transparency: who has opened or looked at a subject's record, and when, told from the trail alone (BLD-20, E6(R3) 3.15.2).

Each line is an entry of a log, found by its sealed look-up columns and told from the bytes that were hashed, with the way to its
proof. Who may read it reads the public trail anyway (rule E3); the safety officer, who does not, is told which safety unblindings
were this subject's, and nobody else is: for all others every subject's report names them alike.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import chain
from typing import Any, Final
from uuid import UUID

from app.domain.disclosures import DID_NOT_LEAVE, KEY_USE, LISTING, OPENING, REVEALING, Learnt, Section, told
from app.domain.words import Action, Role, StudyCode, SubjectId, SubjectKey, subject_key
from app.services import pages
from app.services.audited import Act, audited
from app.services.checkpoints import body_of, check_lookup, origin_of
from app.services.context import RequestContext
from app.services.evidence import safety_context
from app.services.interim import is_of_part
from app.storage import allocations, kits, trail, unblinding
from app.storage.trail import Entry, EntryFilter

_BEGINNING: Final = (0, -1)
_EVER: Final = (2**31 - 1, 0)
"""Behind every entry: what withholds an answer counts although it came after the first page."""
_SECOND_ENTRIES: Final = 100
"""How many entries of one action about one subject are looked through for the one that says that the answer was withheld."""
_NOT_SHOWN: Final = "Key use that concerns the whole deployment stands in the service's own log, which inspectors read."


@dataclass(frozen=True, slots=True)
class Disclosure:
    """One line: an entry of the trail, and what it means for the subject."""

    section: Section
    at: str
    actor: str
    role: str | None
    organisation: str | None
    client: str | None
    action: str
    outcome: str
    learnt: Learnt
    in_words: str
    target: Mapping[str, Any] | None
    log: str
    index: int
    segment: int
    leaf_hash: str
    proof: str | None
    """Where its inclusion is proved; None for the service's own log, of which proofs are not given out."""


@dataclass(frozen=True, slots=True)
class DisclosureReport:
    """A page of the report of one subject, and what this reader is not shown."""

    subject_id: SubjectId
    items: Sequence[Disclosure]
    not_shown: Sequence[str]
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class _Source:
    """Entries of one log that make up a section, until where it stood at the first page; no entry is of two filters."""

    section: Section
    log_id: UUID
    wanted: Sequence[EntryFilter]
    until: tuple[int, int]


@dataclass(frozen=True, slots=True)
class _Subject:
    """What decides whether an act on many concerned this subject."""

    key: SubjectKey
    allocated_at: datetime
    strata_used: Mapping[str, str]
    kit_codes: frozenset[str]
    consignment_codes: frozenset[str]


def read_disclosures(
    ctx: RequestContext, study: StudyCode, subject: str, section: Section | None, limit: int, cursor: str | None
) -> DisclosureReport:
    """Return who opened or looked at a subject's record: one section after the other, each in the order of its log.

    Raises ``Missing`` for a subject that was never allocated, ``IntegrityBroken`` for an entry that was changed.
    """
    key = subject_key(subject)

    def work(act: Act) -> DisclosureReport:
        _note_reading(act, key)
        study_id = act.study.study_id
        allocation = allocations.get_allocation(act.tx, study_id, key, None)
        given = [one.kit for one in kits.list_assignments(act.tx, study_id, key)]
        about = _Subject(
            key,
            allocation.allocated_at,
            allocation.strata_used,
            frozenset(kit.kit_code for kit in given),
            frozenset(kit.consignment_code for kit in given),
        )
        number, after, ends = _place(act, section, cursor)
        sources = _sources(act, key, section, ends)
        items: list[Disclosure] = []
        following = None
        last = [number, *after]
        for place, entry in _walk(act, sources, number, after, limit + 1):
            line = _line(act, sources[place], entry, about)
            if line is None:
                continue
            if len(items) == limit:
                following = pages.encode(act, [*last, *(value for end in ends for value in end)], [section])
                break
            items.append(line)
            last = [place, entry.segment, entry.log_index]
        not_shown = [] if _reads_service_log(act) else [_NOT_SHOWN]
        return DisclosureReport(allocation.subject_id, items, not_shown, following)

    return audited(ctx, Action.READ_DISCLOSURES, work, study=study)


def _note_reading(act: Act, key: SubjectKey) -> None:
    if _is_safety_officer(act):
        # Else who reads the public trail would guess from it whose case a safety unblinding was (rule E3, UNB-03).
        act.note(restricted={"subject_id": key})
    else:
        act.note(target={"subject_id": key}, subject_key=key)


def _is_safety_officer(act: Act) -> bool:
    return Role.SAFETY_OFFICER in act.principal.holds(act.study.study_code)


def _reads_service_log(act: Act) -> bool:
    return Role.INSPECTOR in act.principal.holds(act.study.study_code)


# -- where the lines come from


def _place(
    act: Act, section: Section | None, cursor: str | None
) -> tuple[int, tuple[int, int], tuple[tuple[int, int], tuple[int, int]]]:
    """Return behind what a page begins, and where the study's log and the service's own ended at the first page."""
    if cursor is None:
        return 0, _BEGINNING, (_end(act, act.study.study_id), _end(act, trail.SERVICE_LOG))
    number, segment, index, *ends = pages.decode(act, cursor, [section])
    # The reading is entered with its first page (rule E1).
    act.is_entered = False
    return number, (segment, index), ((ends[0], ends[1]), (ends[2], ends[3]))


def _end(act: Act, log_id: UUID) -> tuple[int, int]:
    newest = trail.list_segments(act.tx, log_id)[-1]
    return newest.segment, newest.frontier.size


def _sources(
    act: Act, key: SubjectKey, section: Section | None, ends: tuple[tuple[int, int], tuple[int, int]]
) -> list[_Source]:
    study_id, (here, service) = act.study.study_id, ends
    found = [
        _Source(Section.SUBJECT, study_id, [EntryFilter(subject_key=key)], here),
        _Source(Section.OPENED, study_id, _of_many(OPENING), here),
        _Source(Section.KEYS, study_id, _of_many(KEY_USE), here),
    ]
    if _reads_service_log(act):
        found.append(_Source(Section.KEYS, trail.SERVICE_LOG, _of_many(KEY_USE), service))
    found.append(_Source(Section.LISTS, study_id, _of_many(LISTING), here))
    return [source for source in found if section in (None, source.section)]


def _of_many(actions: Collection[str]) -> list[EntryFilter]:
    # One for each action: so each is found by its index, and rare ones cost nothing among a million others.
    return [EntryFilter(action=action, names_no_subject=True) for action in actions]


def _walk(
    act: Act, sources: Sequence[_Source], number: int, after: tuple[int, int], size: int
) -> Iterator[tuple[int, Entry]]:
    """Give the entries of the sources from a place on, each with the number of its source; so many are read at once."""
    for place in range(number, len(sources)):
        source = sources[place]
        while found := _page(act, source, after, size):
            for entry in found:
                yield place, entry
            after = (found[-1].segment, found[-1].log_index)
        after = _BEGINNING


def _page(act: Act, source: _Source, after: tuple[int, int], size: int) -> list[Entry]:
    """Return the next entries of a source in the order of its log."""
    pages_of = (trail.list_entries(act.tx, source.log_id, one, after, source.until, size) for one in source.wanted)
    return sorted(chain.from_iterable(pages_of), key=lambda entry: (entry.segment, entry.log_index))[:size]


# -- what a line says


def _line(act: Act, source: _Source, entry: Entry, about: _Subject) -> Disclosure | None:
    """Return what an entry tells of the subject; None for one that concerns others only."""
    of_study = act.study.study_code if source.log_id != trail.SERVICE_LOG else None
    check_lookup(act.deployment.ring, origin_of(act.deployment.origin(of_study), entry.segment), entry)
    body = body_of(entry)
    whose = _whose_safety_unblinding(act, body)
    if source.section is Section.OPENED and not _concerns(body, about, whose):
        return None
    learnt, in_words = told(
        source.section,
        body["action"],
        body["outcome"],
        body["after"],
        did_leave=not _was_withheld(act, source, entry, body),
        is_told=whose is not None,
    )
    return Disclosure(
        source.section,
        body["at"],
        body["actor"],
        body["role"],
        body["organisation"],
        body["client"],
        body["action"],
        body["outcome"],
        learnt,
        in_words,
        body["target"],
        body["log"],
        body["index"],
        entry.segment,
        entry.leaf_hash.hex(),
        f"/v1/studies/{of_study}/trail/proofs/{body['index']}?segment={entry.segment}" if of_study else None,
    )


def _concerns(body: Mapping[str, Any], about: _Subject, whose: SubjectKey | None) -> bool:
    """Return whether an act on what names no subject was about this one's too, as far as the reader may know."""
    action, target = body["action"], body["target"] or {}
    if action == Action.UNBLIND_FOR_SAFETY:
        return whose in (None, about.key)
    if action == Action.RELEASE_INTERIM and "data_cut_at" in (body["after"] or {}):
        # Who was allocated after the cut, or is of another part, is not in the package.
        is_cut_off = about.allocated_at > datetime.fromisoformat(body["after"]["data_cut_at"])
        return not is_cut_off and is_of_part(about.strata_used, body["after"].get("strata", {}))
    if "consignment_codes" in (body["after"] or {}):
        return not about.consignment_codes.isdisjoint(body["after"]["consignment_codes"])
    if "consignment_code" in target:
        return target["consignment_code"] in about.consignment_codes
    if action == Action.BREAK_CODE:
        # Broken while it was being assigned: whoever broke it knew nobody's name.
        return target.get("kit_code") in about.kit_codes
    return True


def _whose_safety_unblinding(act: Act, body: Mapping[str, Any]) -> SubjectKey | None:
    """Return whose treatment a safety unblinding opened, to the safety officer alone; None where it is not told, or not known."""
    unblinding_id = (body["after"] or {}).get("safety_unblinding_id")
    if unblinding_id is None or not _is_safety_officer(act):
        return None
    sealed = unblinding.find_safety_subject(act.tx, act.study.study_id, UUID(unblinding_id))
    if sealed is None:
        return None
    opened = act.deployment.ring.open(safety_context(act, UUID(unblinding_id)), sealed)
    return subject_key(opened.decode())


def _was_withheld(act: Act, source: _Source, entry: Entry, body: Mapping[str, Any]) -> bool:
    """Return whether a second entry of the same request says that the answer did not leave (rule D4)."""
    if body["action"] not in REVEALING:
        return False
    wanted = replace(source.wanted[0], action=body["action"])
    after = (entry.segment, entry.log_index)
    later = trail.list_entries(act.tx, source.log_id, wanted, after, _EVER, _SECOND_ENTRIES)
    bodies = (body_of(one) for one in later)
    return any(one["request_id"] == body["request_id"] and one["outcome"] in DID_NOT_LEAVE for one in bodies)
