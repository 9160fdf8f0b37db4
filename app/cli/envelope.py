"""`snose envelope`: the emergency desk's own tool. It needs the desk's key, an envelope and the code on the kit's sheet.

It reads no setting and asks no service and no database, because it is there for the hour in which none of them answers (rule D5).
"""

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final

import typer

from app.domain.envelopes import EnvelopeContent, EnvelopeHeader, normalise_sheet_code
from app.domain.words import ReasonCode
from app.errors import KeyUnavailable, UnsafeSetting
from app.sealing.envelopes import desk_keys, open_envelope
from app.sealing.files import read_private_file

_LONGEST_KEY: Final = 100
_LONGEST_FILE: Final = 16_384

command = typer.Typer(
    name="envelope", help="Code-break envelopes, for the hour without the service.", no_args_is_help=True
)

DeskKey = Annotated[Path, typer.Option(help="File (0600) with the desk's private key.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one line of JSON on stdout.")]


@command.command()
def keys(desk_key: DeskKey, *, as_json: AsJson = False) -> None:
    """Make the key pair of an emergency desk: the private key into a file, the public key for the service."""
    private, public = desk_keys(os.urandom(32))
    try:
        descriptor = os.open(desk_key, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        message = f"The key file {desk_key} cannot be made: {error.strerror}."
        raise UnsafeSetting(message) from None
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(f"{private}\n")
        file.flush()
        os.fsync(file.fileno())
    typer.echo(json.dumps({"key": public}) if as_json else f"Public key, for SNOSE_ENVELOPE_DESK_KEY: {public}")


@command.command(name="open")
def open_(
    file: Annotated[Path, typer.Argument(help="The envelope of the kit.")],
    desk_key: DeskKey,
    code: Annotated[str, typer.Option(prompt="Code on the kit's sheet", help="Code on the kit's sheet.")],
    opened_by: Annotated[str, typer.Option(help="Who opens it; entered afterwards.")] = "",
    *,
    as_json: AsJson = False,
) -> None:
    """Open one envelope offline: shows the treatment, and what must be entered afterwards."""
    spelled = normalise_sheet_code(code)
    private = read_private_file(desk_key, "desk key", _LONGEST_KEY).decode("ascii", "replace").strip()
    header, opened = open_envelope(private, spelled, _content(file))
    content = EnvelopeContent.from_bytes(opened)
    entry = {
        "kit_code": content.kit_code,
        "opened_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "opened_by": opened_by or "(your name)",
    }
    kept = _keep_record(desk_key, header, content, entry)
    if as_json:
        told = {
            "study_code": header.study_code,
            "mode": header.mode,
            "site_code": content.site_code,
            "subject_id": content.subject_id,
            "assigned_at": content.assigned_at.isoformat(),
            "treatment": content.treatment,
        }
        typer.echo(json.dumps(entry | told))
    else:
        typer.echo(_in_words(header, content, entry))
    if not kept:
        # Whoever needs the treatment has it; what could not be kept must be written down by hand.
        typer.echo(f"The opening could not be recorded beside {desk_key}. Write it down.", err=True)


def _content(file: Path) -> bytes:
    try:
        with file.open("rb") as opened:
            return opened.read(_LONGEST_FILE)
    except OSError as error:
        message = f"The envelope {file} cannot be read: {error.strerror}."
        raise KeyUnavailable(message) from None


def _keep_record(desk_key: Path, header: EnvelopeHeader, content: EnvelopeContent, entry: dict[str, str]) -> bool:
    """Return whether the opening now stands, without the treatment, in the desk's own record beside its key."""
    line = {
        "deployment": header.deployment_id,
        "study_code": header.study_code,
        "site_code": content.site_code,
        "subject_id": content.subject_id,
        **entry,
    }
    record = desk_key.with_name(f"{desk_key.name}.opened.jsonl")
    try:
        descriptor = os.open(record, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "ab") as file:
            file.write(json.dumps(line).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        return False
    return True


def _in_words(header: EnvelopeHeader, content: EnvelopeContent, entry: dict[str, str]) -> str:
    reasons = ", ".join(ReasonCode)
    body = json.dumps(entry | {"reason_code": "(one of these)", "reason": "(what happened)"}, indent=2)
    return (
        f"Study {header.study_code} ({header.mode}), site {content.site_code}, kit {content.kit_code}\n"
        f"Subject {content.subject_id}, kit given {content.assigned_at.isoformat(timespec='minutes')}\n"
        f"\nTREATMENT: {content.treatment}\n"
        "\nTell it to nobody but the physician who asks.\n"
        "\nOnce the service answers again, a safety officer or study administrator enters this\n"
        f"(POST /v1/studies/{header.study_code}/envelope-openings; reason codes: {reasons}):\n{body}"
    )
