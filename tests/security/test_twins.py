"""Nothing that blinded people get depends on an arm: twins that differ in arms only answer alike, byte by byte (rules B1, B2)."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Final

import pytest

from app.domain.words import BLINDED_ROLES, Role
from tests.security.conftest import Places
from tests.security.leaks import PLANTED, all_of_them, codes_by_arm, codes_tell
from tests.security.operations import catalogue, code_of, operation_at
from tests.security.script import ANONYMOUS
from tests.security.twins import (
    ALL_BUT_LABELS,
    BASE,
    MASKED,
    OTHER_BLOCKS,
    OTHER_CHANCE,
    PERMUTED,
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
BLINDED: Final = frozenset({ANONYMOUS, Role.SERVICE_ADMIN.value} | {role.value for role in BLINDED_ROLES})
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
    @pytest.mark.parametrize("twin", [PERMUTED, ALL_BUT_LABELS], ids=lambda twin: twin.name)
    def test_twins_answer_alike(self, plays: Plays, database_kind: str, twin: Twin) -> None:
        """Every answer to a blinded person, the log, the metrics and the public trail are byte-equal. [BLD-01, rules B1, B2]"""
        first, second = plays(database_kind, BASE), plays(database_kind, twin)

        assert differences(first, second) == []
        assert [arm for _, arm in truth_of(first)] != [arm for _, arm in truth_of(second)], "the twins are no twins"
        assert len({exchange.status for exchange in first.exchanges}) >= 8

    def test_every_masked_field_is_met_and_differs(self, plays: Plays) -> None:
        """The list of masked fields is exact: each occurs, and each differs by nature on some twin. [BLD-01, rule B2]"""
        masks = [plays("sqlite", twin).outputs[1] for twin in (BASE, PERMUTED, ALL_BUT_LABELS)]

        assert set(masks[0].met) == set(MASKED)
        alike = [path for path in MASKED if all(mask.seen[path] == masks[0].seen[path] for mask in masks)]
        assert alike == []

    def test_every_operation_was_played(self, plays: Plays) -> None:
        """Every operation of the document was done by those who may, and asked for by somebody blinded. [BLD-01, B2]"""
        played = plays("sqlite", BASE)
        done, asked = set(), set()
        for exchange in played.exchanges:
            operation = operation_at(played.operations, exchange.method, exchange.path)
            if operation is not None and exchange.status < 300:
                done.add(operation.name)
            if operation is not None and exchange.who.partition(" ")[0] in BLINDED:
                asked.add(operation.name)
        names = {operation.name for operation in played.operations}

        assert names - done == UNPLAYED.keys(), "play it in whole_script.py, or say in UNPLAYED why it cannot be"
        assert names - asked == set()

    def test_every_blinded_role_asked(self, plays: Plays) -> None:
        """What is compared was said to every blinded role, the administrator and nobody known. [BLD-09, rule B1]"""
        assert {exchange.who.partition(" ")[0] for exchange in plays("sqlite", BASE).exchanges} >= BLINDED

    def test_every_error_of_the_catalogue_was_met(self, plays: Plays) -> None:
        """Every error that a caller can meet is among what was said. [BLD-08, rules B6, B9, G1]"""
        said: dict[str, set[str]] = {}
        for exchange in plays("sqlite", BASE).exchanges:
            code = code_of(exchange.body) if exchange.status >= 400 else None
            if code is not None:
                said.setdefault(code, set()).add(exchange.who.partition(" ")[0])

        assert catalogue().keys() - said.keys() == UNMET.keys(), (
            "provoke it in whole_script.py, or say in UNMET why not"
        )
        unheard = {code for code, who in said.items() if not who & BLINDED}
        assert unheard == UNBLINDED_ONLY

    def test_kits_that_were_passed_over_tell_nothing(self, plays: Plays, database_kind: str) -> None:
        """In no order known from outside does a kit that was passed over tell its arm. [BLD-06, rule B5]"""
        for twin in (BASE, ALL_BUT_LABELS):
            assert skipped_kits_tell(plays(database_kind, twin)) < CHANCE


UNPLAYED: Final[Mapping[str, str]] = {
    "begin_sign_in": "a provider is asked over a network, about no trial: tests/api/test_sign_ins.py",
    "complete_sign_in": "as begin_sign_in",
    "confirm_grant": "nothing waits in a deployment without the setting; in one with it, in tests/api/test_two_person_grants.py",
}
"""Operations that the script cannot do, each with its reason."""

UNMET: Final[Mapping[str, str]] = {
    "error": "the root of the tree, which nobody raises",
    "unavailable": "a branch of the tree, which nobody raises",
    "malformed_code": "a code in a request is a field, and answered as invalid; one in an import as faulty_import",
    "unsafe_setting": "said to the operator at start, before there is a caller",
    "provider_unavailable": "no issuer of the script is asked over a network; one that is, in tests/api/test_provider_keys.py",
    "passkeys_off": "the script is of a deployment that takes passkeys; the other is in tests/api/test_passkeys.py",
}
"""Errors that no caller can meet, each with its reason."""

UNBLINDED_ONLY: Final = frozenset(
    {"commitment_differs", "faulty_import", "generator_cannot_approve", "invalid_specification"}
)
"""Errors of what only unblinded roles may do."""


class TestLeakyBuilds:
    """The harness has teeth: each fault is seen (rule B2)."""

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

    @pytest.mark.parametrize("row", PLANTED)
    def test_planted(self, plays: Plays, row: str) -> None:
        """Each leak of the catalogue of failures that was planted is found at its place. [BLD-01, rule B2; failures 4-33]"""
        planted = PLANTED[row]
        found = differences(plays("sqlite", BASE, all_of_them), plays("sqlite", planted.twin, all_of_them))

        assert planted.is_among(found)

    def test_planted_codes_by_arm(self, plays: Plays) -> None:
        """Codes in the order of arms are found, and those of an honest build are in none. [BLD-04, rule B4; failures 1, 2]"""
        assert codes_tell(plays("sqlite", BASE, all_of_them)) > 6
        for twin in (BASE, ALL_BUT_LABELS):
            assert codes_tell(plays("sqlite", twin)) < 3.5

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
class TestEachLeakAlone:
    @pytest.mark.parametrize("row", PLANTED)
    def test_planted(self, plays: Plays, database_kind: str, row: str) -> None:
        """The same for builds that have no other fault, on both databases. [BLD-01, rule B2; failures 4-33]"""
        planted = PLANTED[row]
        first = plays(database_kind, BASE, planted.leak)
        found = differences(first, plays(database_kind, planted.twin, planted.leak))

        assert planted.is_among(found, is_alone=True)

    def test_planted_codes_by_arm(self, plays: Plays, database_kind: str) -> None:
        """Codes in the order of arms. [BLD-04, rule B4; failures 1, 2]"""
        assert codes_tell(plays(database_kind, BASE, codes_by_arm)) > 6


@pytest.mark.long
@pytest.mark.timeout(0)
class TestWholeTrial:
    @pytest.mark.parametrize("twin", [PERMUTED, OTHER_CHANCE, OTHER_BLOCKS], ids=lambda twin: twin.name)
    def test_320_subjects(self, plays: Plays, database_kind: str, twin: Twin) -> None:
        """The same over the whole trial of 320 subjects. [BLD-01, rule B2]"""
        assert differences(plays(database_kind, BASE, None, 320), plays(database_kind, twin, None, 320)) == []
