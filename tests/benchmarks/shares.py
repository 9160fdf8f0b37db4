"""What share of an allocation's time goes into sealing and into the trail, looked at inside one process."""

import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

from app.sealing.ring import KeyRing
from app.services import allocations, audited
from app.services.context import SystemEntropy
from app.storage import migrate
from app.storage.database import Transaction
from tests import supply
from tests.harness import expect, house

_PARTS: Final = (
    (allocations, "allocate", "whole"),
    (KeyRing, "seal", "sealing"),
    (KeyRing, "open", "sealing"),
    (KeyRing, "mac", "sealing"),
    (KeyRing, "check_mac", "sealing"),
    (audited, "_compose", "trail"),
    (audited._Composed, "append_to", "trail"),
    (Transaction, "execute", "statements"),
)


def measure_shares(url: str, count: int) -> dict[str, float]:
    """Return the milliseconds of one allocation, and the shares of sealing, of the trail's computing and of its statements.

    The trail's statements store the answer, too. The whole is the use case, from the thread's beginning to the COMMIT, without
    HTTP: beside that the shares would look smaller.
    """
    migrate.upgrade(url)
    spent: defaultdict[str, float] = defaultdict(float)
    with (
        tempfile.TemporaryDirectory() as folder,
        house(url, Path(folder), entropy=SystemEntropy()) as opened,
    ):
        running = supply.trial(opened, per_arm=count, length=count + count % 2 + 8)
        for number in range(8):
            running.allocate(f"01-warm-{number}")
        with _timed(spent):
            for number in range(count):
                expect(running.post_allocation(f"01-{number:05}"), 201)
    shares = {part: spent[part] / spent["whole"] for part in ("sealing", "trail", "trail's statements")}
    return {"allocations": count, "whole_ms": spent["whole"] / count * 1000, **shares, "share": sum(shares.values())}


@contextmanager
def _timed(spent: defaultdict[str, float]) -> Iterator[None]:
    """Add up the seconds of each part; what one part has another one do is the other's alone."""
    doing: list[str] = []
    of_others = [0.0]

    def timing(work: Callable[..., Any], part: str) -> Callable[..., Any]:
        def timed(*arguments: object, **named: object) -> object:
            name = "trail's statements" if part == "statements" and doing[-1:] == ["trail"] else part
            doing.append(name)
            of_others.append(0.0)
            begun = time.perf_counter()
            try:
                return work(*arguments, **named)
            finally:
                seconds = time.perf_counter() - begun
                of_inner = of_others.pop()
                spent[name] += seconds if name == "whole" else seconds - of_inner
                of_others[-1] += seconds
                doing.pop()

        return timed

    patches = [patch.object(where, name, timing(getattr(where, name), part)) for where, name, part in _PARTS]
    for one in patches:
        one.start()
    try:
        yield
    finally:
        for one in patches:
            one.stop()
