"""`snose migrate`: the database at the schema of this release."""

import json
from typing import Annotated

import typer

from app.settings import Settings
from app.storage import grants, migrate

command = typer.Typer()

AsJson = Annotated[bool, typer.Option("--json", help="Print one line of JSON on stdout.")]


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
    reached = migrate.head()
    typer.echo(json.dumps({"revision": reached}) if as_json else f"The schema is at revision {reached}.")
