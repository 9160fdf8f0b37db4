"""The paper part of code-break envelopes: one page for each kit, printed before it is sent and sealed in plain sight of nobody.

A page is folded in three, so that the code lies inside and the number outside; it is closed with a numbered seal and travels with
its kit. The pages of the same kits are the same bytes, whenever they are printed: nothing in the file tells a time, a machine or
an arm.
"""

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
_MARGIN: Final = 20.0
_QR: Final = 38.0
_LINE: Final = 6.0


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
    pdf.set_auto_page_break(auto=False)
    pdf.set_margin(_MARGIN)
    heading = f"Study {study_code}" + (" - TEST, NOT FOR PATIENTS" if mode is Mode.TEST else "")
    place = f"Site {site_code}" if site_code is not None else "Site ______________"
    for number, sheet in enumerate(sheets, start=1):
        pdf.add_page()
        _outside(pdf, heading, f"{place}    Consignment {consignment_code}, sheet {number} of {len(sheets)}", sheet)
        _inside(pdf, contact, sheet)
        _folds(pdf)
    return bytes(pdf.output())


def _outside(pdf: FPDF, heading: str, place: str, sheet: Sheet) -> None:
    pdf.set_y(_MARGIN / 2)
    _text(pdf, heading, size=14, bold=True)
    _text(pdf, f"CODE-BREAK SHEET No. {sheet.kit_code}", size=20, bold=True)
    _text(pdf, place)
    _text(pdf, "Keep it closed, with the kit of this number or in the site's file.")
    _text(pdf, "Open it only in an emergency, and only while the randomization service does not answer.", bold=True)
    _text(pdf, "A sheet that is open, torn or missing is reported to the monitor at once.")
    _text(pdf, "Seal No. ______________     Opened on ____________ at ________ by ______________________________")


def _inside(pdf: FPDF, contact: str, sheet: Sheet) -> None:
    pdf.set_y(_FOLD + _MARGIN / 2)
    _text(pdf, f"Code of kit {sheet.kit_code}", size=12, bold=True)
    _text(pdf, in_groups(sheet.code), size=16, bold=True, family="Courier")
    top = pdf.get_y() + 2
    _qr(pdf, sheet.code, top)
    left = _MARGIN + _QR + 6
    for step in (
        "1. Write date, time and your name outside.",
        f"2. Call the emergency desk: {contact or 'see the trial protocol'}.",
        f"3. Name study and kit {sheet.kit_code}, and read out the code above, or send a picture of it.",
        "4. The desk opens the envelope of this kit and tells you the treatment of its subject.",
        "5. Once the service answers again, the opening is entered there.",
    ):
        pdf.set_xy(left, top)
        pdf.set_font("Helvetica", size=9)
        pdf.multi_cell(_WIDTH - _MARGIN - left, 5, _latin(step), align="L")
        top = pdf.get_y() + 1


def _folds(pdf: FPDF) -> None:
    pdf.set_font("Helvetica", size=7)
    pdf.set_dash_pattern(dash=2, gap=2)
    for at in (_FOLD, 2 * _FOLD):
        pdf.line(5, at, _WIDTH - 5, at)
        pdf.text(6, at - 1, "fold")
    pdf.set_dash_pattern()
    pdf.rect(_WIDTH / 2 - 30, 2 * _FOLD + 35, 60, 25)
    pdf.text(_WIDTH / 2 - 26, 2 * _FOLD + 40, "Seal here, after folding the code inside.")


def _qr(pdf: FPDF, code: str, top: float) -> None:
    """Draw the code for a scanner; runs of dark modules are one rectangle, so that a page stays small."""
    matrix = segno.make(code, error="m", micro=False).matrix
    side = _QR / len(matrix)
    for row, modules in enumerate(matrix):
        begin: int | None = None
        for column, dark in enumerate([*modules, 0]):
            if dark and begin is None:
                begin = column
            elif not dark and begin is not None:
                pdf.rect(_MARGIN + begin * side, top + row * side, (column - begin) * side, side, style="F")
                begin = None


def _text(pdf: FPDF, text: str, *, size: int = 10, bold: bool = False, family: str = "Helvetica") -> None:
    pdf.set_x(_MARGIN)
    pdf.set_font(family, style="B" if bold else "", size=size)
    pdf.multi_cell(_WIDTH - 2 * _MARGIN, _LINE if size < 16 else 9, _latin(text), align="L")  # noqa: PLR2004  # points


def _latin(text: str) -> str:
    """Return what the fonts that every reader has can show; a contact in another script is read in the protocol."""
    return text.encode("latin-1", "replace").decode("latin-1")
