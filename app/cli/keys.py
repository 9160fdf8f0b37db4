"""`snose keys`: rotation of the wrapping, of study keys and of signing keys; escrow of the deployment secret.

On PostgreSQL it runs beside the service, in a process of its own. SQLite has one process: stop the service first.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final

import typer

from app.cli.progress import progress
from app.domain.words import StudyCode
from app.errors import KeyUnavailable, UnsafeSetting
from app.sealing.escrow import EscrowProvider
from app.sealing.files import create_private_file, read_private_file
from app.sealing.providers import KeyFileProvider, KeyProvider
from app.services import keys
from app.services.context import Deployment, SystemEntropy
from app.services.startup import Surroundings, unseal
from app.settings import KeyProviderKind, Settings
from app.surroundings import key_provider, surroundings

command = typer.Typer(name="keys", help="The life of the keys.", no_args_is_help=True)
rotate = typer.Typer(name="rotate", help="Renew a key while the service runs.", no_args_is_help=True)
command.add_typer(rotate)

AsJson = Annotated[bool, typer.Option("--json", help="Print one line of JSON on stdout.")]
_LONGEST_KEY: Final = 1024


@rotate.command()
def study(
    study_code: Annotated[str, typer.Argument(help="Code of the study.")],
    batch: Annotated[int, typer.Option(min=1, max=10_000, help="Rows sealed anew in one transaction.")] = keys.BATCH,
    *,
    as_json: AsJson = False,
) -> None:
    """Seal everything of a study under a new key and retire the old one; goes on where an earlier run was cut off."""
    with _deployment(Settings()) as deployment, progress(study_code, "rows") as tell:
        rotated = keys.rotate_study_key(deployment, StudyCode(study_code), tell, batch)
    _say(
        as_json,
        {"study_code": study_code, "version": rotated.version, "rows": rotated.rows},
        f"Everything of {study_code} lies under version {rotated.version} of its key. Older versions are refused and destroyed.",
    )


@rotate.command()
def signing(*, as_json: AsJson = False) -> None:
    """Make a new signing key, handed over to by the old one; running workers take it in within a minute."""
    with _deployment(Settings()) as deployment:
        version = keys.rotate_signing_key(deployment)
        vkey = deployment.signing.vkey(version).text()
    _say(as_json, {"version": version, "key": vkey}, f"Version {version} of the signing key signs from now on:\n{vkey}")


@rotate.command()
def wrapping(
    to: Annotated[KeyProviderKind | None, typer.Option(help="Provider to move to; default: the present one.")] = None,
    new_key_file: Annotated[
        Path | None, typer.Option(help="For `file`: the new key file; made when it is not there.")
    ] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Wrap the deployment secret by a new key file, by Vault, or by the newest version of Vault's key."""
    settings = Settings()
    kind = to or settings.key_provider
    target, then = _target(settings, kind, new_key_file)
    with _surroundings(settings) as around:
        moved = keys.rewrap_secret(around, settings.mode, target)
    done = "The deployment secret is wrapped anew." if moved else "This had been done before; nothing was changed."
    _say(as_json, {"moved": moved, "provider": kind.value}, f"{done} {then}")


@command.command()
def escrow(
    to: Annotated[str, typer.Option(help="Public key of who keeps it: base64 of the 32 bytes of an X25519 key.")],
    out: Annotated[Path, typer.Option(help="File to write; never overwritten.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Export the deployment secret, encrypted to an independent party, for the day when the key provider's key is lost."""
    settings = Settings()
    if out.exists():
        message = f"There is a file at {out} already; an escrow is never overwritten."
        raise UnsafeSetting(message)
    with _surroundings(settings) as around:
        content = keys.escrow_secret(around, settings.mode, to)
    create_private_file(out, "an escrow", content)
    digest = hashlib.sha256(content).hexdigest()
    _say(
        as_json,
        {"escrow": str(out), "sha256": digest},
        f"The deployment secret is in {out}, for the holder of that key alone (SHA-256 {digest}, entered in the service's trail). "
        "It stays good through every rotation. Keep it, the private key and the database with different people.",
    )


@command.command()
def restore(
    escrow_file: Annotated[Path, typer.Option("--escrow", help="File that `snose keys escrow` wrote.")],
    recipient_key: Annotated[Path, typer.Option(help="File (0600) with the private key, base64 of its 32 bytes.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Have the configured provider wrap the secret of an escrow; makes the key file when it is not there."""
    settings = Settings()
    provider = read_escrow(escrow_file, recipient_key)

    def make() -> KeyProvider:
        if settings.key_provider is KeyProviderKind.FILE and not settings.key_file.exists():
            KeyFileProvider.create(settings.key_file, SystemEntropy().draw("key file", 32))
        return key_provider(settings, SystemEntropy())

    with _surroundings(settings) as around:
        keys.restore_secret(around, settings.mode, provider, make)
    kind = settings.key_provider
    _say(
        as_json,
        {"restored": True, "provider": kind.value},
        f"The deployment secret is wrapped by {kind.value} again. Take the recipient's key off this machine, run snose doctor, and "
        "start the service.",
    )


def read_escrow(escrow: Path, recipient_key: Path) -> EscrowProvider:
    """Return what an escrow and the key of its recipient open; raises ``KeyUnavailable``, ``UnsafeSetting``."""
    private_key = read_private_file(recipient_key, "recipient key", _LONGEST_KEY).decode("ascii", "replace").strip()
    try:
        content = escrow.read_bytes()
    except OSError as error:
        raise KeyUnavailable(f"The escrow {escrow} cannot be read: {error.strerror}.") from None
    return EscrowProvider.of(content, private_key)


def _target(settings: Settings, kind: KeyProviderKind, new_key_file: Path | None) -> tuple[KeyProvider, str]:
    """Return the provider to move to, and what the operator does then."""
    if kind is KeyProviderKind.VAULT:
        if new_key_file is not None:
            raise UnsafeSetting("--new-key-file belongs to --to file.")
        there = settings.model_copy(update={"key_provider": kind})
        provider = key_provider(there, SystemEntropy())
        if settings.key_provider is kind:
            return provider, "Raise min_decryption_version of the key, so that older versions open nothing."
        return provider, f"Set SNOSE_KEY_PROVIDER=vault, restart, run snose doctor, then destroy {settings.key_file}."
    if new_key_file is None or new_key_file.absolute() == settings.key_file.absolute():
        raise UnsafeSetting("Name a key file of its own for the new key: --new-key-file PATH.")
    if not new_key_file.exists():
        KeyFileProvider.create(new_key_file, SystemEntropy().draw("key file", 32))
    old = str(settings.key_file) if settings.key_provider is KeyProviderKind.FILE else "the key in Vault"
    after = (
        f"Set SNOSE_KEY_PROVIDER=file and SNOSE_KEY_FILE={new_key_file}, restart, run snose doctor, then destroy {old}."
    )
    return KeyFileProvider(new_key_file, SystemEntropy()), after


@contextmanager
def _surroundings(settings: Settings) -> Iterator[Surroundings]:
    around = surroundings(settings)
    try:
        around.database.be_the_only_process()
        yield around
    finally:
        around.database.close()


@contextmanager
def _deployment(settings: Settings) -> Iterator[Deployment]:
    with _surroundings(settings) as around:
        yield unseal(around, settings.mode)


def _say(as_json: bool, values: dict[str, object], text: str) -> None:  # the option of every command
    typer.echo(json.dumps(values) if as_json else text)
