"""How a long command tells how far it is: a bar on a terminal, a line for every tenth elsewhere."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

_LINE_EVERY: Final = 10
"""Percent between two lines where there is no terminal."""


@contextmanager
def progress(what: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """Give a function that hears how many of how many are done, and tells it on standard error."""
    console = Console(stderr=True)
    if console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=console) as bar:
            task = bar.add_task(what, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
        return
    told = -1

    def tell(done: int, total: int) -> None:
        nonlocal told
        percent = done * 100 // total if total else 100
        if percent >= told + _LINE_EVERY or (percent == 100 and told != 100):  # noqa: PLR2004  # a hundred per cent is all
            told = percent
            sys.stderr.write(f"{what}: {done} of {total} {unit}\n")
            sys.stderr.flush()

    yield tell
