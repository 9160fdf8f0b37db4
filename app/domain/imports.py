"""What every import is like: a CSV file that is read line by line, and faults that are all named before it is refused whole."""

import csv
from collections.abc import Sequence
from io import StringIO

from app.errors import FaultyImport

Fault = tuple[str, str]
"""Where, and a sentence that says what is wrong; never what was sent (rule G1)."""
Header = tuple[str, ...]
Line = tuple[str, Sequence[str]]
"""The place by which a fault in a line is named, and its cells."""


def read_table(content: bytes, headers: Sequence[Header], field: str) -> tuple[Header, list[Line]]:
    """Return which of the headers a CSV file in UTF-8 has, and its lines.

    After RFC 4180; a byte order mark and empty lines are passed over.
    Raises ``FaultyImport`` for a file that is none, that has another header, or that has lines of other lengths.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise _faulty([("file", "The file is not UTF-8.")], field) from None
    reader = csv.reader(StringIO(text, newline=""), strict=True)
    header: Header = headers[0]
    lines: list[Line] = []
    faults: list[Fault] = []
    try:
        found = tuple(next(reader, ()))
        if found in headers:
            header = found
        else:
            faults.append(("line 1", f"The header must be {' or '.join(','.join(one) for one in headers)}."))
        for cells in reader:
            place = f"line {reader.line_num}"
            if len(cells) == len(header):
                lines.append((place, cells))
            elif cells:
                faults.append((place, f"A line has {len(header)} cells."))
    except csv.Error:
        faults.append((f"line {reader.line_num}", "This is not CSV: a quote is out of place, or a cell is too long."))
    refuse_faults(faults, field)
    return header, lines


def refuse_faults(faults: Sequence[Fault], field: str) -> None:
    """Return when there is no fault; raise ``FaultyImport`` with all of them otherwise. ``field`` is where the import came."""
    if faults:
        raise _faulty(faults, field)


def _faulty(faults: Sequence[Fault], field: str) -> FaultyImport:
    place, sentence = faults[0]
    more = f" This is one of {len(faults)} faults." if len(faults) > 1 else ""
    return FaultyImport(f"{place}: {sentence}{more} Nothing was imported.", tuple(faults), field)
