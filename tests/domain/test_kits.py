"""The life of a kit, what makes it usable, imports and packing lists."""

import csv
from datetime import date
from io import StringIO
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.codes import draw_kit_codes
from app.domain.imports import refuse_faults
from app.domain.kits import (
    IMPORT_HEADER,
    LARGEST_CONSIGNMENT,
    STEPS,
    ImportLine,
    PlannedKit,
    ReplacementReason,
    Step,
    check_import,
    is_lot,
    is_usable,
    next_status,
    packing_list,
    parse_day,
    read_import,
    status_after_replacement,
)
from app.domain.words import ArmCode, ConsignmentStatus, KitCode, KitStatus
from app.errors import FaultyImport, IllegalTransition
from tests.harness import SeededEntropy

ARMS = frozenset({ArmCode("A"), ArmCode("B")})
LEGAL = {
    (Step.DISPATCH, "registered", "dispatched"),
    (Step.RECEIVE, "dispatched", "in_stock"),
    (Step.RECEIVE, "missing", "in_stock"),
    (Step.RECEIVE_LATE, "missing", "quarantined"),
    (Step.RECEIVE_LATE, "dispatched", "quarantined"),
    (Step.REPORT_MISSING, "dispatched", "missing"),
    (Step.ASSIGN, "in_stock", "assigned"),
    (Step.DISPENSE, "assigned", "dispensed"),
    (Step.RETURN, "dispensed", "returned"),
    (Step.RETURN, "replaced", "returned"),
    (Step.RETURN, "lost", "returned"),
    (Step.QUARANTINE, "in_stock", "quarantined"),
    (Step.QUARANTINE, "assigned", "quarantined"),
    (Step.RELEASE_TO_STOCK, "quarantined", "in_stock"),
    (Step.RELEASE_TO_SUBJECT, "quarantined", "assigned"),
    (Step.REPLACE, "assigned", "replaced"),
    (Step.REPLACE, "dispensed", "replaced"),
    (Step.REPLACE, "quarantined", "replaced"),
    (Step.REPLACE, "damaged", "damaged"),
    (Step.REPLACE, "lost", "lost"),
    *((Step.BREAK_CODE, status, "quarantined") for status in ("registered", "dispatched", "missing", "in_stock")),
    *((Step.BREAK_CODE, status, "quarantined") for status in ("quarantined", "damaged", "lost")),
    *((Step.REPORT_DAMAGE, status, "damaged") for status in ("in_stock", "assigned", "dispensed", "quarantined")),
    *((Step.REPORT_LOSS, status, "lost") for status in ("in_stock", "assigned", "dispensed", "quarantined")),
    *((Step.DESTROY, status, "destroyed") for status in ("quarantined", "returned", "replaced", "damaged")),
}


class TestNextStatus:
    @pytest.mark.parametrize(("step", "status"), list(product(Step, KitStatus)))
    def test_each_step_from_each_status(self, step: Step, status: KitStatus) -> None:
        """What is legal leads where it should, all the rest is refused [KIT-03]"""
        then = [KitStatus(to) for by, at, to in LEGAL if (by, at) == (step, status.value)]
        if then:
            assert next_status(status, step) is then[0]
        else:
            with pytest.raises(IllegalTransition):
                next_status(status, step)

    def test_a_returned_kit_never_reaches_a_subject_again(self) -> None:
        """Whatever is done to a returned, replaced, damaged or lost kit, it is never assigned or dispensed [KIT-11]"""
        for gone in (KitStatus.RETURNED, KitStatus.REPLACED, KitStatus.DAMAGED, KitStatus.DESTROYED):
            # Breaking the code of a kit that nobody had puts it aside, where the service releases it no more.
            reached = _reachable(gone, set(Step) - {Step.BREAK_CODE})
            assert not reached & {KitStatus.IN_STOCK, KitStatus.ASSIGNED, KitStatus.DISPENSED}

    def test_destruction_is_the_end(self) -> None:
        """Nothing follows; and unused stock is put aside before it is destroyed [KIT-12]"""
        assert _reachable(KitStatus.DESTROYED, set(Step)) == {KitStatus.DESTROYED}
        with pytest.raises(IllegalTransition):
            next_status(KitStatus.IN_STOCK, Step.DESTROY)


def _reachable(status: KitStatus, steps: set[Step]) -> set[KitStatus]:
    reached, open_ends = {status}, [status]
    while open_ends:
        at = open_ends.pop()
        for step in steps:
            to = STEPS[step].get(at)
            if to is not None and to not in reached:
                reached.add(to)
                open_ends.append(to)
    return reached


class TestReplacement:
    @pytest.mark.parametrize(
        ("status", "reason", "then"),
        [
            ("assigned", "damaged", "damaged"),
            ("assigned", "lost", "lost"),
            ("assigned", "expired", "replaced"),
            ("dispensed", "temperature_excursion", "replaced"),
            ("quarantined", "other", "replaced"),
            ("damaged", "damaged", "damaged"),
            ("damaged", "other", "damaged"),
            ("lost", "damaged", "lost"),
        ],
    )
    def test_the_old_kit_tells_why(self, status: str, reason: str, then: str) -> None:
        """Damaged and lost stay on record as such, all other replaced kits are retired [KIT-10]"""
        assert status_after_replacement(KitStatus(status), ReplacementReason(reason)) is KitStatus(then)

    @pytest.mark.parametrize("status", ["registered", "dispatched", "missing", "returned", "replaced", "destroyed"])
    @pytest.mark.parametrize("reason", list(ReplacementReason))
    def test_what_nobody_has_is_not_replaced(self, status: str, reason: ReplacementReason) -> None:
        """Only a kit with a subject can be replaced, and only once [KIT-10]"""
        with pytest.raises(IllegalTransition):
            status_after_replacement(KitStatus(status), reason)


class TestIsUsable:
    def test_the_day_of_the_consignment_ends_all_its_kits(self) -> None:
        """Assigned or not, from that day on, and not a day earlier [KIT-04, B11]"""
        day = date(2027, 1, 31)
        for status in (KitStatus.IN_STOCK, KitStatus.ASSIGNED, KitStatus.DISPENSED):
            assert is_usable(status, ConsignmentStatus.ASSIGNABLE, day, date(2027, 1, 30))
            assert not is_usable(status, ConsignmentStatus.ASSIGNABLE, day, day)

    def test_a_withdrawn_consignment(self) -> None:
        """What it has left in stock is not usable; what subjects have is [B5]"""
        day, today = date(2027, 1, 31), date(2027, 1, 1)
        assert not is_usable(KitStatus.IN_STOCK, ConsignmentStatus.WITHDRAWN, day, today)
        assert not is_usable(KitStatus.IN_STOCK, ConsignmentStatus.DISPATCHED, day, today)
        assert is_usable(KitStatus.ASSIGNED, ConsignmentStatus.WITHDRAWN, day, today)

    def test_other_statuses(self) -> None:
        """Put aside, replaced, returned and so on: not usable [KIT-04]"""
        usable = {status for status in KitStatus if is_usable(status, ConsignmentStatus.ASSIGNABLE, date.max, date.min)}
        assert usable == {KitStatus.IN_STOCK, KitStatus.ASSIGNED, KitStatus.DISPENSED}


def lines(count: int, seed: int = 1) -> list[ImportLine]:
    """Return an import without fault: codes and arms by chance."""
    entropy = SeededEntropy(seed)
    arms = ["AB"[byte & 1] for byte in entropy.draw("arms", count)]
    return [
        ImportLine(f"kits.{index}", code, arm, f"L-{arm}", "2027-06-30")
        for index, (code, arm) in enumerate(zip(draw_kit_codes(entropy, count, ()), arms, strict=True))
    ]


def faults_of(given_lines: list[ImportLine]) -> list[tuple[str, str]]:
    return check_import(given_lines, ARMS)[2]


def changed(line: ImportLine, **fields: str) -> ImportLine:
    kept = {name: getattr(line, name) for name in ImportLine.__dataclass_fields__}
    return ImportLine(**(kept | fields))


class TestCheckImport:
    def test_a_good_import(self) -> None:
        """Every line becomes a kit, its code normalised [BLD-04]"""
        wanted = lines(1000)
        typed = [changed(line, kit_code=f"{line.kit_code[:4].lower()}-{line.kit_code[4:]}") for line in wanted]
        planned, places, faults = check_import(typed, ARMS)
        assert not faults
        assert [kit.kit_code for kit in planned] == [line.kit_code for line in wanted]
        assert places[planned[7].kit_code] == "kits.7"

    @pytest.mark.parametrize(
        ("fields", "sentence"),
        [
            ({"kit_code": "2222222222"}, "nine characters"),
            ({"arm_code": "C"}, "no such arm"),
            ({"lot": "=HYPERLINK()"}, "does not begin with"),
            ({"lot": "L\n1"}, "printable ASCII"),
            ({"lot": ""}, "1 to 40"),
            ({"expires_on": "2027-02-29"}, "a day such as"),
            ({"expires_on": "20270630"}, "a day such as"),
            ({"expires_on": "2027-06-30T00:00"}, "a day such as"),
        ],
    )
    def test_one_wrong_line_in_a_thousand(self, fields: dict[str, str], sentence: str) -> None:
        """Exactly that line is named, with what is wrong and without what was sent [G1]"""
        wrong = lines(1000)
        wrong[612] = changed(wrong[612], **fields)
        [(place, text)] = faults_of(wrong)
        assert place == "kits.612"
        assert sentence in text
        assert not any(value and value in text for value in fields.values() if value != "C")

    def test_a_wrong_check_character(self) -> None:
        """A code that was typed wrong is caught before it labels a kit [KIT-01]"""
        wrong = lines(1000)
        code = wrong[3].kit_code
        wrong[3] = changed(wrong[3], kit_code=code[:-1] + ("2" if code[-1] != "2" else "3"))
        assert [place for place, _ in faults_of(wrong)] == ["kits.3"]

    def test_every_fault_is_named_at_once(self) -> None:
        """Nobody mends line by line: two faults of one line and one of another are three [G1]"""
        wrong = lines(100)
        wrong[1] = changed(wrong[1], arm_code="", expires_on="")
        wrong[5] = changed(wrong[5], lot="@x")
        assert [place for place, _ in faults_of(wrong)] == ["kits.1", "kits.1", "kits.5"]

    def test_a_code_twice(self) -> None:
        """Also in another spelling; the place of the first one is named [KIT-01]"""
        wrong = lines(100)
        wrong[40] = changed(wrong[40], kit_code=wrong[2].kit_code.lower())
        [(place, text)] = faults_of(wrong)
        assert (place, "kits.2." in text) == ("kits.40", True)

    def test_an_arm_without_a_kit(self) -> None:
        """A consignment holds every arm [B6]"""
        wrong = [changed(line, arm_code="A", lot="L") for line in lines(30)]
        assert faults_of(wrong) == [("kits", "The consignment holds no kit of B.")]
        assert faults_of([]) == [("kits", "The consignment holds no kit of A, B.")]

    def test_more_than_a_consignment_holds(self) -> None:
        """What is too large is refused like any other fault [G2]"""
        assert faults_of(lines(1) * (LARGEST_CONSIGNMENT + 1))[-1] == (
            "kits",
            "A consignment holds at most 200000 kits.",
        )

    def test_codes_that_tell_the_arm(self) -> None:
        """Low codes to one arm, high codes to the other, in shuffled lines: refused [BLD-04]"""
        given_lines = lines(200)
        middle = sorted(line.kit_code for line in given_lines)[100]
        wrong = [changed(line, arm_code="A" if line.kit_code < middle else "B") for line in given_lines]
        [(place, text)] = faults_of(wrong)
        assert (place, "codes tell the arm" in text) == ("kits", True)

    def test_an_order_of_lines_that_tells_the_arm(self) -> None:
        """Arm by arm, or arms that alternate without chance: refused [BLD-04]"""
        sorted_lines = sorted(lines(200), key=lambda line: line.arm_code)
        alternating = [changed(line, arm_code="AB"[index % 2]) for index, line in enumerate(lines(200))]
        for wrong in (sorted_lines, alternating):
            assert any("order of the lines" in text for _, text in faults_of(wrong))

    @pytest.mark.parametrize("seed", range(20))
    def test_chance_is_not_refused(self, seed: int) -> None:
        """The limit is 1e-6, so honest imports pass [A6]"""
        assert not faults_of(lines(400, seed))


def csv_of(given_lines: list[ImportLine], start: str = "") -> bytes:
    rows = [f"{line.kit_code},{line.arm_code},{line.lot},{line.expires_on}" for line in given_lines]
    return "\r\n".join([start + ",".join(IMPORT_HEADER), *rows, ""]).encode()


class TestReadImport:
    @pytest.mark.parametrize("start", ["", "﻿"])
    def test_a_file_as_spreadsheets_write_it(self, start: str) -> None:
        """With or without byte order mark, empty lines passed over; the header is line 1 [api.md]"""
        wanted = lines(3)
        read = read_import(csv_of(wanted, start) + b"\r\n\r\n")
        assert [line.kit_code for line in read] == [line.kit_code for line in wanted]
        assert [line.place for line in read] == ["line 2", "line 3", "line 4"]

    @pytest.mark.parametrize(
        ("content", "place"),
        [
            (b"", "line 1"),
            (b"kit_code,arm_code,lot\r\n", "line 1"),
            (b"kit_code;arm_code;lot;expires_on\r\n", "line 1"),
            (b"kit_code,arm_code,lot,expires_on\r\nA,B,C\r\n", "line 2"),
            (b"kit_code,arm_code,lot,expires_on\r\nA,B,C,D,E\r\n", "line 2"),
            (b'kit_code,arm_code,lot,expires_on\r\nA,"B"x,C,D\r\n', "line 2"),
            (b"kit_code,arm_code,lot,expires_on\r\nA,B,C," + b"x" * 200_000 + b"\r\n", "line 2"),
            (b"\xff\xfe", "file"),
        ],
    )
    def test_what_is_no_such_file(self, content: bytes, place: str) -> None:
        """Refused, and the line is named [G1]"""
        with pytest.raises(FaultyImport) as refused:
            read_import(content)
        assert refused.value.faults[0][0] == place
        assert refused.value.message.startswith(f"{place}:")

    @given(st.binary(max_size=200))
    def test_any_bytes_are_read_or_refused(self, content: bytes) -> None:
        """Nothing that is sent is a fault of the service [G2]"""
        for sent in (content, ",".join(IMPORT_HEADER).encode() + b"\r\n" + content):
            try:
                check_import(read_import(sent), ARMS)
            except FaultyImport as refused:
                assert refused.faults  # noqa: PT017  # the refusal is one of the two right answers


class TestRefuseFaults:
    def test_no_fault(self) -> None:
        """An import without fault goes on [api.md]"""
        refuse_faults([], "kits")

    def test_the_sentence_names_the_first_and_counts_the_rest(self) -> None:
        """All are listed, the first is in the sentence [G1]"""
        faults = [("line 2", "This."), ("line 9", "That.")]
        with pytest.raises(FaultyImport) as refused:
            refuse_faults(faults, "kits")
        assert refused.value.message == "line 2: This. This is one of 2 faults. Nothing was imported."
        assert refused.value.faults == tuple(faults)


class TestPackingList:
    def test_in_the_order_of_the_codes(self) -> None:
        """The order of the list says nothing of the arm [B4]"""
        kits = [
            PlannedKit(KitCode(code), ArmCode(arm), "L1", date(2027, 6, 30))
            for code, arm in (("ZZZZ", "A"), ("2222", "B"))
        ]
        rows = list(csv.reader(StringIO(packing_list(kits).decode())))
        assert rows == [list(IMPORT_HEADER), ["2222", "B", "L1", "2027-06-30"], ["ZZZZ", "A", "L1", "2027-06-30"]]

    @pytest.mark.parametrize("lead", ["=", "+", "-", "@", "\t", "\r"])
    def test_no_cell_is_a_formula(self, lead: str) -> None:
        """An arm's code may begin with a hyphen; a spreadsheet must not run it [T23]"""
        kit = PlannedKit(KitCode("2222"), ArmCode(f"{lead}A"), "a,b", date(2027, 6, 30))
        row = list(csv.reader(StringIO(packing_list([kit]).decode(), newline="")))[1]
        assert row == ["2222", f"'{lead}A", "a,b", "2027-06-30"]


class TestWords:
    def test_lots(self) -> None:
        """Printable ASCII, no formula, no edge of spaces [B11]"""
        assert all(map(is_lot, ("L", "L2607/3", "A B", "x" * 40)))
        assert not any(map(is_lot, ("", " L", "L ", "=L", "-1", "x" * 41, "é", "a\tb", "a\n")))

    def test_days(self) -> None:
        """One spelling of a day only [api.md]"""
        assert parse_day("2028-02-29") == date(2028, 2, 29)
        assert all(
            parse_day(text) is None
            for text in ("2027-02-29", "2027-1-1", "\u0662\u0660\u0662\u0667-01-01", "", "2027-01-01 ")
        )
