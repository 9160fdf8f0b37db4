"""The `snose` command. Every command takes its settings from the environment; exit status 0 only on success.

A command lies in a module of its own, loaded when it is called: nobody waits for what only another command needs, and neither does
a worker of the service, which begins with loading this.
"""

import sys
from importlib import import_module
from typing import Final, cast

import typer
from pydantic import ValidationError
from typer.core import TyperCommand, TyperGroup
from typer.main import get_group

from app.errors import SnoseError
from app.process import refuse_core_dumps

_MODULES: Final = {
    "demo": "demo",
    "init": "operating",
    "serve": "serving",
    "migrate": "migrating",
    "doctor": "operating",
    "sign-in": "sign_in",
    "certificate": "certificate",
    "site-treatments": "site_treatments",
    "open": "opening",
    "verify": "verifying",
    "witness": "witness",
    "keys": "keys",
    "backup": "backup",
    "restore": "backup",
    "envelope": "envelope",
}
"""The module of each command, or of a group that has the name."""


class _Commands(TyperGroup):
    """Loads a command when it is asked for."""

    def list_commands(self, ctx: object) -> list[str]:  # noqa: ARG002  # Typer hands it in
        """Return the names, in the order of the help."""
        return list(_MODULES)

    def get_command(self, ctx: object, cmd_name: str) -> TyperCommand | TyperGroup | None:  # noqa: ARG002  # the same
        """Return what has this name; None when nothing has."""
        # For a name that nothing has, all are loaded: Typer says which of them may have been meant.
        for name in (cmd_name,) if cmd_name in _MODULES else _MODULES:
            there = get_group(import_module(f"app.cli.{_MODULES[name]}").command)
            self.commands[name] = there.commands.get(name, there)
        return cast("TyperCommand | TyperGroup | None", self.commands.get(cmd_name))


command = typer.Typer(
    name="snose",
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


@command.callback()
def snose() -> None:
    """Randomization, blinding and code breaks for clinical trials."""


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
