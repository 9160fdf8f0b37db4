"""Nothing that blinded people get depends on an arm: twins that differ in arms only answer alike, byte by byte (rules B1, B2)."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext

import pytest

from tests.security.conftest import Places
from tests.security.twins import (
    BASE,
    MASKED,
    OTHER_BLOCKS,
    OTHER_CHANCE,
    PERMUTED,
    Masks,
    Recording,
    Twin,
    arm_dependent_refusal,
    differences,
    first_match,
    handled_kits,
    lot_shown,
    play,
    skipped_kits_tell,
)

Leak = Callable[[], AbstractContextManager[None]]
Plays = Callable[..., Recording]
CHANCE = 0.6
"""Above a half by more than luck gives on a few hundred kits; the seeds are fixed, so luck is the same every time."""


@pytest.fixture(scope="module")
def plays(places: Places) -> Iterator[Plays]:
    """Plays a twin on a kind of database, once for all tests of this module."""
    kept: dict[tuple[object, ...], Recording] = {}

    def played(kind: str, twin: Twin, leak: Leak | None = None, length: int = 24) -> Recording:
        key = (kind, twin, leak, length)
        if key not in kept:
            with places(kind) as (url, folder):
                kept[key] = play(url, folder, twin, leak, length)
        return kept[key]

    yield played
    kept.clear()


def truth_of(recording: Recording) -> list[tuple[str, str]]:
    """Return code and arm of every kit that was given to somebody, in order."""
    return [(code, recording.kits[code].arm_code) for code in handled_kits(recording)]


class TestTwins:
    @pytest.mark.parametrize("twin", [PERMUTED, OTHER_CHANCE, OTHER_BLOCKS], ids=lambda twin: twin.name)
    def test_twins_answer_alike(self, plays: Plays, database_kind: str, twin: Twin) -> None:
        """Every answer to a blinded person, the log, the metrics and the public trail are byte-equal. [BLD-01, rules B1, B2]"""
        first, second = plays(database_kind, BASE), plays(database_kind, twin)

        assert differences(first, second) == []
        assert [arm for _, arm in truth_of(first)] != [arm for _, arm in truth_of(second)], "the twins are no twins"
        assert len({exchange.status for exchange in first.exchanges}) >= 8

    def test_every_masked_field_is_met_and_differs(self, plays: Plays) -> None:
        """The list of masked fields is exact: each occurs, and each differs by nature on some twin. [BLD-01, rule B2]"""
        masks = [Masks() for _ in range(4)]
        recordings = [plays("sqlite", twin) for twin in (BASE, PERMUTED, OTHER_CHANCE, OTHER_BLOCKS)]
        for mask, recording in zip(masks, recordings, strict=True):
            assert differences(recording, recording, mask) == []

        assert set(masks[0].met) == set(MASKED)
        alike = [path for path in MASKED if all(mask.seen[path] == masks[0].seen[path] for mask in masks)]
        assert alike == []

    def test_errors_of_the_catalogue_were_met(self, plays: Plays) -> None:
        """What blinded people are refused with is among what was compared. [BLD-08, rules B6, B9]"""
        problems = {
            code
            for exchange in plays("sqlite", BASE).exchanges
            for code in REFUSALS
            if exchange.status >= 400 and f'"code": "{code}"'.encode() in exchange.body
        }

        assert problems == set(REFUSALS)

    def test_kits_that_were_passed_over_tell_nothing(self, plays: Plays, database_kind: str) -> None:
        """In no order known from outside does a kit that was passed over tell its arm. [BLD-06, rule B5]"""
        for twin in (BASE, OTHER_CHANCE):
            assert skipped_kits_tell(plays(database_kind, twin)) < CHANCE


REFUSALS = (
    "already_allocated",
    "already_dispensed",
    "forbidden",
    "illegal_transition",
    "invalid",
    "invalid_strata",
    "kit_mismatch",
    "list_unavailable",
    "malformed_request",
    "not_authenticated",
    "not_confirmed",
    "not_found",
    "replacement_needs_release",
    "site_inactive",
    "site_not_ready",
    "step_up_required",
    "stock_insufficient",
    "study_not_open",
    "subject_id_unavailable",
)


class TestLeakyBuilds:
    """The harness has teeth: each of three faults is seen (rule B2)."""

    @pytest.mark.parametrize("twin", [PERMUTED, OTHER_CHANCE], ids=lambda twin: twin.name)
    def test_lot_shown_to_a_site(self, plays: Plays, twin: Twin) -> None:
        """A lot is an arm: a site that sees it tells twins apart. [BLD-07, rule B11]"""
        found = differences(plays("sqlite", BASE, lot_shown), plays("sqlite", twin, lot_shown))

        assert any("/kits" in difference for difference in found)

    def test_first_match_choice(self, plays: Plays) -> None:
        """The first kit of the arm in the order of the codes tells the arm of every kit before it. [BLD-06, rule B5]"""
        assert skipped_kits_tell(plays("sqlite", BASE, first_match)) > 0.95

    def test_arm_dependent_refusal(self, plays: Plays) -> None:
        """Where only the allocated arm's stock decides, the refusal tells the next arm. [BLD-08, rule B6]"""
        leak = arm_dependent_refusal
        found = differences(plays("sqlite", BASE, leak), plays("sqlite", OTHER_CHANCE, leak))

        assert any("/allocations" in difference for difference in found)

    def test_short_script_without_a_fault(self, plays: Plays) -> None:
        """The short script that catches the faults finds none where there is none. [BLD-01]"""
        first = plays("sqlite", BASE, _honest)

        assert differences(first, plays("sqlite", OTHER_CHANCE, _honest)) == []
        assert differences(first, plays("sqlite", PERMUTED, _honest)) == []
        assert skipped_kits_tell(first) < CHANCE


def _honest() -> AbstractContextManager[None]:
    return nullcontext()


@pytest.mark.long
@pytest.mark.timeout(0)
class TestWholeTrial:
    @pytest.mark.parametrize("twin", [PERMUTED, OTHER_CHANCE, OTHER_BLOCKS], ids=lambda twin: twin.name)
    def test_320_subjects(self, plays: Plays, database_kind: str, twin: Twin) -> None:
        """The same over the whole trial of 320 subjects. [BLD-01, rule B2]"""
        assert differences(plays(database_kind, BASE, None, 320), plays(database_kind, twin, None, 320)) == []
