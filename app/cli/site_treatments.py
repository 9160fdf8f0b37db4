"""`snose site-treatments`: of a final package, what one site may know when the trial is over: its own subjects alone (UNB-09).

Offline, for whoever holds the opened package and gives each site its part, so that investigators can tell their participants what
they were given (ICH E6(R3) 3.17, 2.9). The service itself opens nothing for it.
"""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final
from zipfile import ZipFile

import typer

from app.cli.certificate import NotVerified, digest_of, verified
from app.errors import Missing
from app.sealing.files import create_private_file
from app.services.final_package import harmless

command = typer.Typer()

_LIST: Final = "list.csv"


@command.command(name="site-treatments")
def site_treatments(
    package: Annotated[Path, typer.Argument(help="The final package (zip), opened if it was encrypted.", exists=True)],
    site: Annotated[str, typer.Option(help="Code of the site.")],
    out: Annotated[Path, typer.Option(help="CSV to write; it is not there yet.")],
    key: Annotated[
        list[str] | None, typer.Option(help="Verification key known from elsewhere, for the verifier.")
    ] = None,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON on stdout.")] = False,
) -> None:
    """Write what the subjects of one site were given, from a final package that verifies; unblinded."""
    content, subjects = treatments_of(package, site, [word for one in key or () for word in ("--key", one)])
    create_private_file(out, "the treatments of a site", content)
    said = f"The package was verified; {out} tells what the {subjects} subjects of site {site} were given. It is unblinded."
    typer.echo(json.dumps({"file": str(out), "site": site, "subjects": subjects}) if as_json else said)


def treatments_of(package: Path, site: str, options: Sequence[str]) -> tuple[bytes, int]:
    """Return the lines of a package's list that are of one site, as CSV under its heading, and how many; nothing of other sites.

    Raises ``NotVerified`` for a package that the verifier does not confirm or that cannot be read, ``Missing`` for a site that has
    no subject in it.
    """
    try:
        digest = digest_of(package)
        verified(package, options)
        with ZipFile(package) as archive:
            allocations = json.loads(archive.read("allocations.json"))["allocations"]
            lines = list(csv.reader(io.StringIO(archive.read(_LIST).decode(), newline="")))
        if digest_of(package) != digest:
            raise NotVerified("The package was changed while it was verified; nothing was written.")
    except OSError as error:
        message = f"A file cannot be read: {error.strerror}."
        raise NotVerified(message) from None
    theirs = {harmless(one["subject_id"]) for one in allocations if one["site_code"] == site}
    if not theirs:
        message = f"No subject of this package is of site {site}; nothing was written."
        raise Missing(message)
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    for line in (lines[0], *(line for line in lines[1:] if line[0] in theirs)):
        writer.writerow(map(harmless, line))
    return text.getvalue().encode(), len(theirs)
