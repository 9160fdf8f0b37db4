"""The paper part of code-break envelopes: one page for each kit, printed before it is sent and sealed in plain sight of nobody.

A page is folded in three, so that the code lies inside and the number outside; it is closed with a numbered seal and travels with
its kit. The pages of the same kits are the same bytes, whenever they are printed: nothing in the file tells a time, a machine or
an arm.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

import segno
from fpdf import FPDF

from app.domain.envelopes import in_groups
from app.domain.words import ConsignmentCode, KitCode, Mode, SiteCode, StudyCode

_PRINTED_AT: Final = datetime(2000, 1, 1, tzinfo=UTC)
"""What the file says of its making."""
_WIDTH: Final = 210.0
_FOLD: Final = 99.0
"""A third of A4, in millimetres."""
_LEFT: Final = 20.0
_QR: Final = 38.0
_BESIDE_QR: Final = _LEFT + _QR + 6
_LINE_LENGTH: Final = 70
"""Characters of a line beside the drawn code."""
_MASK: Final = 0
"""Any mask of a drawn code can be read; looking for the prettiest would take most of the time."""


@dataclass(frozen=True, slots=True)
class Sheet:
    """The paper of one kit. Danger: holds a code."""

    kit_code: KitCode
    code: str = field(repr=False)


def sheets_pdf(
    study_code: StudyCode,
    mode: Mode,
    consignment_code: ConsignmentCode,
    site_code: SiteCode | None,
    contact: str,
    sheets: Sequence[Sheet],
) -> bytes:
    """Return the pages of a consignment as PDF, in the order given; A4, one page for each kit."""
    pdf = FPDF(format="A4", unit="mm")
    pdf.set_creation_date(_PRINTED_AT)
    pdf.set_producer("snose")
    pdf.set_title(f"Code-break sheets {study_code} {consignment_code}")
    heading = f"Study {study_code}" + (" - TEST, NOT FOR PATIENTS" if mode is Mode.TEST else "")
    place = f"Site {site_code}" if site_code is not None else "Site ______________"
    steps = _steps(contact)
    for number, sheet in enumerate(sheets, start=1):
        pdf.add_page()
        _outside(pdf, heading, f"{place}    Consignment {consignment_code}, sheet {number} of {len(sheets)}", sheet)
        _inside(pdf, steps, sheet)
        _folds(pdf)
    return bytes(pdf.output())


def _outside(pdf: FPDF, heading: str, place: str, sheet: Sheet) -> None:
    _write(pdf, 18, heading, size=14, bold=True)
    _write(pdf, 29, f"CODE-BREAK SHEET No. {sheet.kit_code}", size=20, bold=True)
    _write(pdf, 38, place)
    _write(pdf, 46, "Keep it closed, with the kit of this number or in the site's file.")
    _write(
        pdf, 52, "Open it only in an emergency, and only while the randomization service does not answer.", bold=True
    )
    _write(pdf, 58, "A sheet that is open, torn or missing is reported to the monitor at once.")
    _write(pdf, 72, "Seal No. ____________________")
    _write(pdf, 82, "Opened on ______________ at ________ by ______________________________")


def _steps(contact: str) -> list[str]:
    """Return the lines that say what to do with an open sheet."""
    steps = (
        "1. Write date, time and your name outside.",
        f"2. Call the emergency desk: {contact or 'see the trial protocol'}.",
        "3. Name study and kit, and read out the code above, or send a picture of it.",
        "4. The desk opens the envelope of this kit and tells you the treatment of its subject.",
        "5. Once the service answers again, the opening is entered there.",
    )
    return [line for step in steps for line in textwrap.wrap(step, _LINE_LENGTH)]


def _inside(pdf: FPDF, steps: Sequence[str], sheet: Sheet) -> None:
    _write(pdf, _FOLD + 12, f"Code of kit {sheet.kit_code}", size=12, bold=True)
    _write(pdf, _FOLD + 22, in_groups(sheet.code), size=16, bold=True, family="Courier")
    top = _FOLD + 30
    _qr(pdf, sheet.code, top)
    for number, line in enumerate(steps, start=1):
        _write(pdf, top + 5 * number, line, size=9, left=_BESIDE_QR)


def _folds(pdf: FPDF) -> None:
    pdf.set_dash_pattern(dash=2, gap=2)
    for at in (_FOLD, 2 * _FOLD):
        pdf.line(5, at, _WIDTH - 5, at)
        _write(pdf, at - 1, "fold", size=7, left=6)
    pdf.set_dash_pattern()
    pdf.rect(_WIDTH / 2 - 30, 2 * _FOLD + 35, 60, 25)
    _write(pdf, 2 * _FOLD + 40, "Seal here, after folding the code inside.", size=7, left=_WIDTH / 2 - 26)


def _qr(pdf: FPDF, code: str, top: float) -> None:
    """Draw the code for a scanner; runs of dark modules are one rectangle, so that a page stays small."""
    matrix = segno.make(code, error="m", micro=False, mask=_MASK).matrix
    side = _QR / len(matrix)
    for row, modules in enumerate(matrix):
        begin: int | None = None
        for column, dark in enumerate([*modules, 0]):
            if dark and begin is None:
                begin = column
            elif not dark and begin is not None:
                pdf.rect(_LEFT + begin * side, top + row * side, (column - begin) * side, side, style="F")
                begin = None


def _write(
    pdf: FPDF,
    at: float,
    text: str,
    *,
    size: int = 10,
    bold: bool = False,
    family: str = "Helvetica",
    left: float = _LEFT,
) -> None:
    """Write one line; what the fonts that every reader has cannot show is a question mark, and is read in the protocol."""
    pdf.set_font(family, style="B" if bold else "", size=size)
    pdf.text(left, at, text.encode("latin-1", "replace").decode("latin-1"))
