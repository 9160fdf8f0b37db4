"""`snose open`: what the service has encrypted to somebody, opened by the private key alone."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Final

import typer

from app.domain.words import ConsignmentCode, StudyCode
from app.errors import SealBroken
from app.sealing.files import create_private_file, read_private_file
from app.sealing.recipients import decrypt_with
from app.services.consignments import packing_list_info
from app.services.envelopes import sheets_info
from app.services.interim import interim_info
from app.services.recalls import recall_info
from app.services.unblinding import final_package_info

command = typer.Typer()

_LONGEST_KEY: Final = 1024

AsJson = Annotated[bool, typer.Option("--json", help="Print one line of JSON on stdout.")]


@command.command(name="open")
def open_(
    file: Annotated[Path, typer.Argument(help="What the service has encrypted (.hpke).", exists=True)],
    study: Annotated[str, typer.Option(help="Code of the study.")],
    recipient_key: Annotated[Path, typer.Option(help="File (0600) with the private key, base64 of its 32 bytes.")],
    out: Annotated[Path, typer.Option(help="File to write; it is not there yet.")],
    consignment: Annotated[
        str | None, typer.Option(help="Code of the consignment, for its packing list or sheets.")
    ] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Open what was encrypted to you: packages, lists of recalled kits, packing lists and sheets; unblinded."""
    code = StudyCode(study)
    if consignment is None:
        purposes = [final_package_info(code), interim_info(code), recall_info(code)]
    else:
        purposes = [make(code, ConsignmentCode(consignment)) for make in (packing_list_info, sheets_info)]
    private_key = read_private_file(recipient_key, "recipient key", _LONGEST_KEY).decode("ascii", "replace").strip()
    create_private_file(out, "an opened file", _opened(private_key, file.read_bytes(), purposes))
    said = f"{out} is opened, for your eyes only: it is unblinded."
    typer.echo(json.dumps({"opened": str(out)}) if as_json else said)


def _opened(private_key: str, content: bytes, purposes: list[bytes]) -> bytes:
    """Return the plaintext; the length tells nothing of the purpose, so that each is tried. Raises ``SealBroken``."""
    for info in purposes[:-1]:
        with suppress(SealBroken):
            return decrypt_with(private_key, content, info)
    return decrypt_with(private_key, content, purposes[-1])
