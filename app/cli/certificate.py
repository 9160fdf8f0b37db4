"""`snose certificate`: what the offline verifier confirms of a final package, as a page for the statistician to sign.

The verifier runs as a process of its own and needs nothing of this; a package that it does not confirm gets no page. The same
package gives the same bytes: the page has the date of the package, and its reader writes the day of signing by hand. Offline, and
without a setting of the service.
"""

import hashlib
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Final
from zipfile import ZipFile

import typer
from fpdf import FPDF
from fpdf.enums import WrapMode, XPos, YPos

from app.domain.notes import parse_checkpoint, split_note
from app.domain.schedules import IMPORTED
from app.errors import IntegrityBroken

command = typer.Typer()

_WARNING: Final = (
    "UNBLINDED: holds the numbers of subjects by arm. For unblinded people, and after the database lock only."
)
_NOT_RECOMPUTED: Final = (
    "imported: not recomputable. Its slots, blocks and ratios were checked against specification and commitment"
)
_RECOMPUTED: Final = "recomputed from seed and specification: identical, slot by slot"
_LABEL_WIDTH: Final = 46
_SIZE: Final = 8.5
_LINE: Final = 4.2
_SIGNATURE_HEIGHT: Final = 34


class NotVerified(IntegrityBroken):
    """A package that the verifier does not confirm gets no certificate."""

    title = "The package was not verified; nothing was printed"


@dataclass(frozen=True, slots=True)
class Section:
    """A heading, and under it labels with their values."""

    heading: str
    rows: Sequence[tuple[str, str]]


@command.command()
def certificate(
    package: Annotated[Path, typer.Argument(help="The final package (zip), opened if it was encrypted.", exists=True)],
    out: Annotated[Path, typer.Option(help="PDF to write.")],
    key: Annotated[
        list[str] | None, typer.Option(help="Verification key known from elsewhere, for the verifier.")
    ] = None,
    sink: Annotated[
        list[Path] | None, typer.Option(help="File of checkpoints kept elsewhere, for the verifier.")
    ] = None,
    witness: Annotated[list[str] | None, typer.Option(help="Verification key of a witness, for the verifier.")] = None,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON on stdout.")] = False,
) -> None:
    """Print what the verifier confirms of a final package, for the statistician to sign; unblinded."""
    given = (("--key", key), ("--sink", sink), ("--witness", witness))
    options = [word for name, values in given for value in values or () for word in (name, str(value))]
    digest = print_certificate(package, out, options)
    said = f"The package was verified; its certificate is {out}. It is unblinded. SHA-256 of the package: {digest}"
    typer.echo(json.dumps({"certificate": str(out), "package_sha256": digest}) if as_json else said)


def print_certificate(package: Path, out: Path, options: Sequence[str]) -> str:
    """Write the certificate of a package and return the SHA-256 of the package; ``options`` are the verifier's own.

    Raises ``NotVerified`` with the first difference, or for a file that cannot be read or written.
    """
    try:
        digest = digest_of(package)
        drawn = _drawn(package, digest, verified(package, options))
        if digest_of(package) != digest:
            raise NotVerified("The package was changed while it was verified; nothing was printed.")
        out.write_bytes(drawn)
    except OSError as error:
        message = f"A file cannot be read or written: {error.strerror}."
        raise NotVerified(message) from None
    return digest


def _drawn(package: Path, digest: str, report: dict[str, Any]) -> bytes:
    with ZipFile(package) as archive:
        created_at = datetime.fromisoformat(json.loads(archive.read("manifest.json"))["created_at"])
        return draw(list(_sections(archive, report, digest)), created_at)


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file, hexadecimal; raise ``OSError``."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verified(package: Path, options: Sequence[str]) -> dict[str, Any]:
    """Return the report of the verifier, a process of its own, on a package; raise ``NotVerified`` with the first difference."""
    command = [sys.executable, "-I", str(files("app") / "verifier.py"), "package", str(package), "--json", *options]
    finished = subprocess.run(command, check=False, capture_output=True, text=True)  # noqa: S603  # our own file, by our own interpreter, no shell
    if not finished.stdout:
        raise NotVerified(finished.stderr.strip() or NotVerified.title)
    report: dict[str, Any] = json.loads(finished.stdout)
    if not report["ok"]:
        first = report["findings"][0]
        message = f"{NotVerified.title}. First difference [{first['kind']}]: {first['message']}"
        raise NotVerified(message)
    return report


# -- what it says ------------------------------------------------------------------------------------------------------


def _sections(archive: ZipFile, report: dict[str, Any], digest: str) -> Iterator[Section]:
    manifest, facts = json.loads(archive.read("manifest.json")), report["facts"]
    lists = json.loads(archive.read("schedules.json"))["schedules"]
    allocations = json.loads(archive.read("allocations.json"))["allocations"]
    yield Section(
        "Study and package",
        [
            ("Study", f"{manifest['study_code']} (mode {manifest['mode']})"),
            ("Deployment", manifest["deployment_id"]),
            ("Package made at", manifest["created_at"]),
            ("Package, SHA-256", digest),
            ("Verifier, SHA-256", digest_of(Path(str(files("app") / "verifier.py")))),
            ("Finding", "VERIFIED: the verifier found no difference"),
            *(("Note", warning) for warning in report["warnings"]),
        ],
    )
    for row in lists:
        yield _list_section(row, allocations)
    arms = Counter(allocation["binding"]["arm_code"] for allocation in allocations)
    yield Section(
        "Subjects and kits",
        [
            ("Subjects by arm", _by_arm(arms)),
            ("Subjects", str(facts["allocations"])),
            ("Kits in the map", f"{facts['kits']} in {facts['consignments']} consignments"),
            ("Kits assigned", str(facts["kits_assigned"])),
            ("Joined", "every subject to slot, kit and arm; bindings and entries of the trail compared"),
        ],
    )
    yield _trail_section(archive, report)
    yield Section("Signatures", list(_signatures(archive, lists)))


def _list_section(row: dict[str, Any], allocations: Sequence[dict[str, Any]]) -> Section:
    used = Counter(one["binding"]["arm_code"] for one in allocations if one["schedule_id"] == row["schedule_id"])
    slots = Counter(slot[1] for stratum in row["strata"] for slot in stratum["slots"])
    return Section(
        f"List {row['schedule_id']}",
        [
            ("Segment", f"{row['segment_number']} of list {row['list_id']}, {row['status']}"),
            ("Origin", _NOT_RECOMPUTED if row["origin"] == IMPORTED else f"generated, {_RECOMPUTED}"),
            ("Commitment", row["commitment"]),
            ("Slots by arm", _by_arm(slots)),
            ("Used by arm", _by_arm(used)),
        ],
    )


def _by_arm(counts: Counter[str]) -> str:
    return ", ".join(f"{arm}: {count}" for arm, count in sorted(counts.items())) or "none"


def _trail_section(archive: ZipFile, report: dict[str, Any]) -> Section:
    rows = [("Entries", str(report["facts"]["entries"]))]
    with archive.open("trail.jsonl") as lines:
        for line in lines:
            # Entries are lines of another beginning; there may be millions.
            if not line.startswith(b'{"body"'):
                checkpoint = parse_checkpoint(split_note(json.loads(line)["checkpoint"]).text)
                rows += [("Log", checkpoint.origin), ("Size, root", f"{checkpoint.size}, {checkpoint.root.hex()}")]
    rows += [("Vouched for", f"{origin}, up to size {size}") for origin, size in report["vouched"].items()]
    rows += [("Cosigned by witness", f"{origin}, up to size {size}") for origin, size in report["witnessed"].items()]
    return Section("Trail", rows)


def _signatures(archive: ZipFile, lists: Sequence[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    notes = [("Package", archive.read("manifest.note").decode())]
    notes += [(f"List {row['schedule_id'][:8]}", row["commitment_note"]) for row in lists if row["commitment_note"]]
    for what, note in notes:
        for signature in split_note(note).signatures:
            yield what, f"key {signature.name}, id {signature.key_id.hex()}"
    for key in json.loads(archive.read("keys.json"))["keys"]:
        yield "Key in the package", key


# -- how it looks ------------------------------------------------------------------------------------------------------


class _Page(FPDF):
    """A4 with the warning on top of every page and its number below."""

    def header(self) -> None:
        """Draw the warning."""
        self.set_font("Helvetica", "B", 9)
        self.cell(0, 6, _WARNING, border=1, align="C", new_x=XPos.LMARGIN, new_y=YPos.NEXT)
        self.ln(2)

    def footer(self) -> None:
        """Draw the number of the page."""
        self.set_y(-14)
        self.set_font("Helvetica", "", 8)
        self.cell(0, 6, f"Certificate of a final package, page {self.page_no()} of {{nb}}", align="C")


def draw(sections: Sequence[Section], created_at: datetime) -> bytes:
    """Return the page as a PDF with the fonts that every reader has; the same words give the same bytes."""
    page = _Page(format="A4")
    page.set_compression(compress=False)
    page.set_creation_date(created_at)
    page.set_title("Certificate of a final package")
    page.set_lang("en")
    page.set_auto_page_break(auto=True, margin=18)
    page.add_page()
    page.set_font("Helvetica", "B", 15)
    page.cell(0, 9, "Certificate of a final package", new_x=XPos.LMARGIN, new_y=YPos.NEXT)
    for section in sections:
        _draw_section(page, section)
    _draw_signature(page)
    return bytes(page.output())


def _draw_section(page: FPDF, section: Section) -> None:
    page.ln(2)
    page.set_font("Helvetica", "B", 10.5)
    page.cell(0, 6, _drawable(section.heading), new_x=XPos.LMARGIN, new_y=YPos.NEXT)
    for label, value in section.rows:
        page.set_font("Helvetica", "", _SIZE)
        page.cell(_LABEL_WIDTH, _LINE, label)
        page.set_font("Courier", "", _SIZE)
        page.multi_cell(
            0, _LINE, _drawable(value), align="L", new_x=XPos.LMARGIN, new_y=YPos.NEXT, wrapmode=WrapMode.CHAR
        )


def _draw_signature(page: FPDF) -> None:
    if page.will_page_break(_SIGNATURE_HEIGHT):
        page.add_page()
    page.ln(8)
    page.set_font("Helvetica", "", 10)
    statement = "I have compared the digest of the package above with that of the file before me."
    page.cell(0, 6, statement, new_x=XPos.LMARGIN, new_y=YPos.NEXT)
    page.ln(10)
    for place, width in (("Name", 60), ("Place and date", 50), ("Signature", 60)):
        page.cell(width, 6, place, border="T")
        page.cell(6, 6, "")


def _drawable(text: str) -> str:
    """Return text in Latin-1, which the built-in fonts have; other characters as their numbers."""
    return text.encode("latin-1", "backslashreplace").decode("latin-1")
