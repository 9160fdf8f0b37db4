"""What the OpenAPI document says may be answered: the test that meets anything else fails (rule G1, SYS-08, T11)."""

import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, Final

from fastapi import FastAPI

_PARAMETER: Final = re.compile(r"\{\w+\}")
_declared: dict[tuple[str, int], list[tuple[re.Pattern[str], frozenset[str]]]] = {}
"""By method and number of slashes: path and statuses. The document says the same of every deployment, so it is read once."""


def is_undeclared(app: FastAPI, method: str, path: str, status: int) -> bool:
    """Return whether an operation of the document was asked, and answered by a status that it does not name."""
    if not _declared:
        _declared.update(_read(app.openapi()["paths"]))
    asked = path.partition("?")[0]
    found = (
        statuses
        for pattern, statuses in _declared.get((method.upper(), asked.count("/")), [])
        if pattern.fullmatch(asked)
    )
    named = next(found, None)
    return named is not None and str(status) not in named


def _read(paths: Mapping[str, Any]) -> dict[tuple[str, int], list[tuple[re.Pattern[str], frozenset[str]]]]:
    read = defaultdict(list)
    # Those without a parameter first: what they answer is theirs alone.
    for path in sorted(paths, key=lambda one: one.count("{")):
        for method, operation in paths[path].items():
            pattern = re.compile(_PARAMETER.sub("[^/]+", path))
            read[method.upper(), path.count("/")].append((pattern, frozenset(operation["responses"])))
    return read
