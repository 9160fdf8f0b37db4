"""The `snose` command. Every command takes its settings from the environment; exit status 0 only on success."""

import json
import subprocess
import sys
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Final

import typer
from pydantic import ValidationError

from app.cli import backup as backup_command
from app.cli import demo as demo_command
from app.cli import envelope as envelope_command
from app.cli import keys as keys_command
from app.cli import witness as witness_command
from app.cli.serving import serve as serve_until_stopped
from app.domain.words import ConsignmentCode, Mode, StudyCode
from app.errors import SealBroken, SnoseError
from app.sealing.files import create_private_file, read_private_file
from app.sealing.providers import KeyFileProvider
from app.sealing.recipients import decrypt_with
from app.services import safety, startup
from app.services.context import SystemEntropy
from app.services.people import register_first_admin
from app.settings import KeyProviderKind, Settings
from app.storage import grants, migrate
from app.surroundings import configure_logs, refuse_core_dumps, surroundings

command = typer.Typer(
    name="snose",
    help="Randomization, blinding and code breaks for clinical trials.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

command.add_typer(witness_command.command, name="witness")

command.add_typer(keys_command.command)

command.add_typer(backup_command.command)

command.add_typer(envelope_command.command, name="envelope")

_LONGEST_KEY: Final = 1024

AsJson = Annotated[bool, typer.Option("--json", help="Print one line of JSON on stdout.")]


def main() -> None:
    """Run the command; what goes wrong is said in one plain sentence, never as a traceback."""
    refuse_core_dumps()
    try:
        command()
    except SnoseError as error:
        typer.echo(error.message, err=True)
        sys.exit(1)
    except ValidationError as error:
        for fault in error.errors():
            typer.echo(f"SNOSE_{'_'.join(map(str, fault['loc'])).upper()}: {fault['msg']}", err=True)
        sys.exit(1)


def _say(as_json: bool, values: dict[str, object], text: str) -> None:  # the option of every command
    typer.echo(json.dumps(values) if as_json else text)


@command.command()
def demo(  # one parameter for each option of api.md
    subjects: Annotated[int, typer.Option(min=1, max=320, help="How many of the 320 to enrol.")] = 320,
    *,
    exit_: Annotated[bool, typer.Option("--exit", help="End after the summary.")] = False,
    serve_only: Annotated[bool, typer.Option("--serve-only", help="Stop before the first subject.")] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on loopback; 0 picks one.")] = 0,
    data: Annotated[Path | None, typer.Option(help="Folder for the demo's files.")] = None,
    database: Annotated[str | None, typer.Option(help="PostgreSQL URL, empty or of an earlier demo.")] = None,
    as_json: AsJson = False,
) -> None:
    """Run the whole trial NCT03033277 on a throw-away deployment, then go on serving."""
    demo_command.run(demo_command.Options(subjects, exit_, serve_only, port, data, database, as_json), as_json=as_json)


@command.command()
def init(
    username: Annotated[str, typer.Option(help="User name of the first service administrator.")],
    display_name: Annotated[str, typer.Option(help="Printed name.")],
    email: Annotated[str, typer.Option(help="Address.")] = "",
    *,
    as_json: AsJson = False,
) -> None:
    """Make the keys of a new deployment and its first service administrator; shows the issued password once."""
    settings = Settings()
    chance = SystemEntropy()
    if settings.key_provider is KeyProviderKind.FILE and not settings.key_file.exists():
        KeyFileProvider.create(settings.key_file, chance.draw("key file", 32))
    around = surroundings(settings)
    around.database.be_the_only_process()
    try:
        startup.create_deployment(around, settings.mode)
        deployment = startup.unseal(around, settings.mode)
        password = register_first_admin(deployment, username, display_name, email)
    finally:
        around.database.close()
    _say(
        as_json,
        {"username": username, "password": password},
        f"Issued to {username}, to be replaced at the first sign-in: {password}",
    )


@command.command()
def serve() -> None:
    """Serve until stopped."""
    settings = Settings()
    configure_logs()
    if settings.mode is Mode.LIVE:
        around = surroundings(settings)
        try:
            safety.refuse_unsafe(around, settings.plain_host())
        finally:
            around.database.close()
    serve_until_stopped(settings)


@command.command(name="migrate")
def migrate_(
    revision: Annotated[str, typer.Option(help="Revision to reach.")] = "head",
    app_role: Annotated[
        str | None, typer.Option(help="PostgreSQL role of the service; gets exactly the grants that it needs.")
    ] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Bring the database to the schema of this release."""
    settings = Settings()
    url = settings.migration_url or settings.url()
    migrate.upgrade(url, revision)
    if app_role is not None:
        grants.grant_to(url, app_role)
    _say(as_json, {"revision": migrate.head()}, f"The schema is at revision {migrate.head()}.")


@command.command()
def doctor(*, as_json: AsJson = False) -> None:
    """Name each unsafe setting, and what is wrong with the back-up, and how to mend it."""
    settings = Settings()
    around = surroundings(settings)
    found = [
        *safety.findings(around, settings.plain_host()),
        *safety.weaknesses(around, settings.database_url_file),
        *safety.concerns(around, settings.mode),
    ]
    around.database.close()
    if as_json:
        typer.echo(json.dumps({"findings": [{"what": one.what, "mend": one.mend} for one in found]}))
    elif not found:
        typer.echo("Nothing unsafe was found.")
    else:
        for one in found:
            typer.echo(f"- {one.what}\n  {one.mend}")
    if found:
        raise typer.Exit(1)


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
    as_json: AsJson = False,
) -> None:
    """Print what the verifier confirms of a final package, for the statistician to sign; unblinded."""
    # What draws pages takes half a second to load, and no other command needs it.
    from app.cli.certificate import print_certificate  # noqa: PLC0415  # no other command waits for the PDF library

    given = (("--key", key), ("--sink", sink), ("--witness", witness))
    options = [word for name, values in given for value in values or () for word in (name, str(value))]
    digest = print_certificate(package, out, options)
    _say(
        as_json,
        {"certificate": str(out), "package_sha256": digest},
        f"The package was verified; its certificate is {out}. It is unblinded. SHA-256 of the package: {digest}",
    )


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
    """Open what was encrypted to you: a final package, a consignment's packing list, or its sheets; unblinded."""
    from app.services.consignments import packing_list_info  # noqa: PLC0415  # no other command waits for the services
    from app.services.envelopes import sheets_info  # noqa: PLC0415  # the same
    from app.services.unblinding import final_package_info  # noqa: PLC0415  # the same

    code = StudyCode(study)
    if consignment is None:
        purposes = [final_package_info(code)]
    else:
        purposes = [make(code, ConsignmentCode(consignment)) for make in (packing_list_info, sheets_info)]
    private_key = read_private_file(recipient_key, "recipient key", _LONGEST_KEY).decode("ascii", "replace").strip()
    create_private_file(out, "an opened file", _opened(private_key, file.read_bytes(), purposes))
    _say(as_json, {"opened": str(out)}, f"{out} is opened, for your eyes only: it is unblinded.")


def _opened(private_key: str, content: bytes, purposes: list[bytes]) -> bytes:
    """Return the plaintext; the length tells nothing of the purpose, so that each is tried. Raises ``SealBroken``."""
    for info in purposes[:-1]:
        with suppress(SealBroken):
            return decrypt_with(private_key, content, info)
    return decrypt_with(private_key, content, purposes[-1])


@command.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def verify(ctx: typer.Context) -> None:
    """Verify a trail export or a final package offline: `snose verify trail|package FILE [--sink FILE] [--json]`."""
    verifier: Final = str(files("app") / "verifier.py")
    # A process of its own: the verifier shares nothing with the service, not even what is imported here.
    finished = subprocess.run([sys.executable, "-I", verifier, *ctx.args], check=False)  # noqa: S603  # our own file, by our own interpreter, without a shell
    raise typer.Exit(finished.returncode)
