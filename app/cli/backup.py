"""`snose backup` and `snose restore`: the whole database out while the service runs, and back into an empty one."""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from app.cli.keys import read_escrow
from app.cli.progress import progress
from app.errors import UnsafeSetting
from app.sealing.providers import KeyProvider
from app.services import backups
from app.services.backups import Against, Restored
from app.services.context import SystemEntropy, system_clock
from app.settings import Settings
from app.storage.database import Database
from app.surroundings import key_provider

command = typer.Typer()

AsJson = Annotated[bool, typer.Option("--json", help="Print one line of JSON on stdout.")]


@command.command()
def backup(
    out: Annotated[
        Path, typer.Argument(help="Folder to make; or one that is there, for a new one named after the time.")
    ],
    *,
    as_json: AsJson = False,
) -> None:
    """Copy the whole database while the service runs; the copy holds no key."""
    database = Database(Settings().url(), pool_size=1)
    try:
        with progress("backup", "pages" if database.sqlite_file else "tables") as tell:
            place, manifest = backups.back_up(database, out, system_clock(), f"snose {version('snose')}", tell)
    finally:
        database.close()
    if as_json:
        typer.echo(json.dumps({"backup": str(place), "manifest": msgspec.to_builtins(manifest)}))
        return
    typer.echo(
        f"{place}: {manifest.member.size} bytes, SHA-256 {manifest.member.sha256}, of {manifest.taken_at:%Y-%m-%d %H:%M:%S} UTC.\n"
        f"It does not hold: {'; '.join(manifest.not_in_it)}.\n"
        "Keep it on another machine than the database, and apart from the keys."
    )


@command.command()
def restore(
    folder: Annotated[Path, typer.Argument(metavar="BACKUP", help="Folder that `snose backup` made.")],
    into: Annotated[
        str | None, typer.Option(help="URL of an empty database, of its owner's role; default: as for snose migrate.")
    ] = None,
    sink: Annotated[list[Path] | None, typer.Option(help="File of checkpoints kept elsewhere.", exists=True)] = None,
    escrow: Annotated[Path | None, typer.Option(help="Escrow of the deployment secret, to try every key.")] = None,
    recipient_key: Annotated[Path | None, typer.Option(help="File (0600) with the private key that opens it.")] = None,
    *,
    with_keys: Annotated[
        bool, typer.Option("--keys", help="Try every key, by the key provider of the settings.")
    ] = False,
    to_head: Annotated[bool, typer.Option("--migrate", help="Bring an older schema to that of this release.")] = False,
    as_json: AsJson = False,
) -> None:
    """Put a backup into an empty database, look whether everything in it holds, and say what comes next."""
    settings = Settings()
    against = Against(tuple(sink or ()), _provider(settings, escrow, recipient_key, with_keys=with_keys))
    url = into or settings.migration_url or settings.url()
    with progress("restore", "done") as tell:
        found = backups.restore(url, folder, against, SystemEntropy(), tell, to_head=to_head)
    typer.echo(json.dumps(_in_full(found)) if as_json else _in_words(found))
    if found.faults:
        raise typer.Exit(1)


def _provider(
    settings: Settings, escrow: Path | None, recipient_key: Path | None, *, with_keys: bool
) -> KeyProvider | None:
    if (escrow is None) != (recipient_key is None) or (escrow is not None and with_keys):
        raise UnsafeSetting("Give --escrow with --recipient-key, or --keys, or none of them.")
    if escrow is None or recipient_key is None:
        return key_provider(settings, SystemEntropy()) if with_keys else None
    return read_escrow(escrow, recipient_key)


def _in_full(found: Restored) -> dict[str, object]:
    return {
        "whole": not found.faults,
        "faults": found.faults,
        "deployment_id": found.manifest.deployment_id,
        "mode": found.manifest.mode,
        "taken_at": found.manifest.taken_at.isoformat(),
        "schema_revision": found.revision,
        "logs": [{"origin": log.origin, "size": log.size, "held": log.held, "missing": log.lost} for log in found.logs],
        "next": found.next,
    }


def _in_words(found: Restored) -> str:
    manifest = found.manifest
    taken = f"Backup of {manifest.taken_at:%Y-%m-%d %H:%M:%S} UTC, {manifest.mode} deployment {manifest.deployment_id}"
    lines = [f"{taken}, schema {found.revision}, {sum(manifest.rows.values())} rows."]
    lines += [
        f"{log.origin}: {log.size} entries" + ("" if log.held is None else f", a checkpoint elsewhere of {log.held}")
        for log in found.logs
    ]
    lines += [f"WRONG: {fault}" for fault in found.faults] or ["Everything that was looked at holds."]
    lines += [f"{number}. {step}" for number, step in enumerate(found.next, 1)]
    return "\n".join(lines)
