"""`snose verify`: the offline verifier, in a process that shares nothing with the service."""

import subprocess
import sys
from importlib.resources import files
from typing import Final

import typer

command = typer.Typer()


@command.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def verify(ctx: typer.Context) -> None:
    """Verify a trail export or a final package offline: `snose verify trail|package FILE [--sink FILE] [--json]`."""
    verifier: Final = str(files("app") / "verifier.py")
    # A process of its own: the verifier shares nothing with the service, not even what is imported here.
    finished = subprocess.run([sys.executable, "-I", verifier, *ctx.args], check=False)  # noqa: S603  # our own file, by our own interpreter, without a shell
    raise typer.Exit(finished.returncode)
