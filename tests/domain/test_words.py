"""Identifiers and exclusions."""

import itertools

import pytest

from app.domain.words import (
    BLINDED_ROLES,
    UNBLINDED_ROLES,
    Role,
    excludes,
    subject_key,
    subject_spelling,
)
from app.errors import Invalid


class TestSubjectKey:
    @pytest.mark.parametrize(
        "spelling",
        ["01-000A", " 01-000a ", "01-000a", "\u00a001-000A", "\uff10\uff11-000a", "01-000\uff21"],
    )
    def test_spellings_of_one_subject(self, spelling: str) -> None:
        """Case, outer and inner spaces and compatibility forms do not make another subject. [ASG-07, rule C4]"""
        assert subject_key(spelling) == "01-000a"

    def test_inner_spaces_collapse(self) -> None:
        """Several inner spaces are one. [rule C4]"""
        assert subject_key("A  1\t2") == "a 1 2"

    @pytest.mark.parametrize(
        "spelling",
        [
            "",
            " ",
            ".",
            "..",
            "a/b",
            "a" * 41,
            "a\x00b",
            "a\u202eb",
            "a;b",
            "a\ud800b",
            "a'b",
            "\u200bab",
            "*",
            "a,b",
            "%",
        ],
    )
    def test_refused(self, spelling: str) -> None:
        """Anything but letters, digits, '-', '_', '.' and single spaces is refused with the field named. [ASG-23, G1]"""
        with pytest.raises(Invalid) as refused:
            subject_key(spelling)
        assert refused.value.field == "subject_id"

    def test_longest(self) -> None:
        """Forty characters are allowed."""
        assert len(subject_key("é" * 40)) == 40

    def test_spelling_shown(self) -> None:
        """Answers show the first spelling, tidied but not folded. [rule C4]"""
        assert subject_spelling("  01-00 0A ") == "01-00 0A"


class TestExclusions:
    def test_blinded_and_unblinded(self) -> None:
        """Every blinded role excludes every unblinded one, both ways. [BLD-17, rule B10]"""
        for one, other in itertools.product(BLINDED_ROLES, UNBLINDED_ROLES):
            assert excludes(one, other)
            assert excludes(other, one)

    def test_service_admin(self) -> None:
        """The service administrator holds nothing else. [USR-16]"""
        for role in Role:
            assert excludes(Role.SERVICE_ADMIN, role) == (role is not Role.SERVICE_ADMIN)

    def test_within_a_side(self) -> None:
        """Roles of one side go together."""
        for side in (BLINDED_ROLES, UNBLINDED_ROLES):
            for one, other in itertools.product(side, side):
                assert not excludes(one, other)

    def test_every_role_has_a_side(self) -> None:
        """No role is without a side but the service administrator. [rule B10]"""
        assert BLINDED_ROLES | UNBLINDED_ROLES | {Role.SERVICE_ADMIN} == set(Role)
        assert not BLINDED_ROLES & UNBLINDED_ROLES
