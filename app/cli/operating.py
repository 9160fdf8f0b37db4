"""`snose init` and `snose doctor`: what an operator runs before the first start and before every later one."""

import json
from typing import Annotated

import typer

from app.sealing.providers import KeyFileProvider
from app.services import safety, startup
from app.services.context import SystemEntropy
from app.services.people import register_first_admin
from app.settings import KeyProviderKind, Settings
from app.surroundings import surroundings

command = typer.Typer()

AsJson = Annotated[bool, typer.Option("--json", help="Print one line of JSON on stdout.")]


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
def doctor(*, as_json: AsJson = False) -> None:
    """Name each unsafe setting, and what is wrong with the back-up, and how to mend it."""
    settings = Settings()
    around = surroundings(settings)
    found = [
        *safety.findings(around, settings.plain_host()),
        *safety.weaknesses(around, settings.database_url_file),
        *safety.of_sign_in(around, settings.mode),
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


def _say(as_json: bool, values: dict[str, object], text: str) -> None:  # the option of every command
    typer.echo(json.dumps(values) if as_json else text)
