"""Every requirement of signatures, users and unblinding is cited by a test that shows it (VAL-01)."""

from collections.abc import Mapping
from typing import Final

from tests.nodes import docstrings, ids_in

MUST: Final = {
    "CUS": "02 06",
    "SIG": "01 02 03 04 05 06 07 08 09 10 11 12",
    "USR": "01 02 03 04 05 06 07 08 09 10 11 12 13 14 15 16 17 18 19 20 21",
    "EUB": "01 02 03 04 05 06 07 08 09 10 11 12 13 14 15 16 18 19 20 21 22 23",
    "UNB": "01 02 03 05 06 07 08",
}
SHOULD: Final = {"EUB": "17 24 25", "UNB": "04 09 10"}
OUT: Final = {"SIG": "13", "UNB": "11"}
"""Not for this service: identity proofing on paper, and the clocks of SUSAR reports."""


def ids(by_section: Mapping[str, str]) -> frozenset[str]:
    """Return the full ids of a table above."""
    return frozenset(f"{section}-{number}" for section, numbers in by_section.items() for number in numbers.split())


def cited() -> frozenset[str]:
    """Return every id that some test cites."""
    return frozenset[str]().union(*map(ids_in, docstrings().values()))


def uncited(by_tests: frozenset[str]) -> frozenset[str]:
    """Return the ids that nobody shows and nobody explains."""
    return (ids(MUST) | ids(SHOULD)) - by_tests


class TestCitations:
    def test_each_is_cited(self) -> None:
        """By the docstring of at least one test, of its class or of its file. [VAL-01]"""
        assert not uncited(cited())

    def test_the_lists_are_apart(self) -> None:
        """An id has one level, and the sections are whole: no number is left out. [VAL-01]"""
        assert not ids(MUST) & ids(SHOULD)
        assert not (ids(MUST) | ids(SHOULD)) & ids(OUT)
        for section, last in {"SIG": 13, "USR": 21, "EUB": 25, "UNB": 11}.items():
            every = {f"{section}-{number:02}" for number in range(1, last + 1)}
            assert {one for one in ids(MUST) | ids(SHOULD) | ids(OUT) if one.startswith(section)} == every

    def test_a_missing_citation_is_found(self) -> None:
        """Negative control: with any one citation taken out, that id is named."""
        everything = ids(MUST) | ids(SHOULD)
        for one in everything:
            assert uncited(everything - {one}) == {one}

    def test_ids_are_read_as_people_write_them(self) -> None:
        """Several of one section in a row, and nothing that only looks like one."""
        assert ids_in("Told. [UNB-01, 02, 03, D7; EUB-08]") == {"UNB-01", "UNB-02", "UNB-03", "EUB-08"}
        assert ids_in("RFC-9470, SHA-256, T17, 2026-11-22") == frozenset()
