"""The tests of the suite as they are written down: their node ids and what each says that it shows."""

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
_IDS: Final = re.compile(r"\b([A-Z]{3})-(\d\d)\b((?:,\s*\d\d\b)*)")
"""One id, or several of one section: ``UNB-01, 02, 03``."""


@cache
def docstrings() -> Mapping[str, str]:
    """Return what each test says, by its node id ``tests/api/test_x.py::TestY::test_z``: its file's words, its class's, its own."""
    found: dict[str, str] = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        module = ast.parse(path.read_text(encoding="utf-8"))
        place = path.relative_to(ROOT).as_posix()
        found.update(_within(module.body, place, ast.get_docstring(module) or ""))
    return MappingProxyType(found)


def _within(body: Sequence[ast.stmt], place: str, said: str) -> Iterator[tuple[str, str]]:
    for node in body:
        if isinstance(node, ast.ClassDef) and node.name.startswith("Test"):
            yield from _within(node.body, f"{place}::{node.name}", f"{said}\n{ast.get_docstring(node) or ''}")
        elif isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            yield f"{place}::{node.name}", f"{said}\n{ast.get_docstring(node) or ''}"


def ids_in(text: str) -> frozenset[str]:
    """Return the requirement ids that a docstring cites."""
    return frozenset(
        f"{section}-{number}"
        for section, first, others in _IDS.findall(text)
        for number in (first, *re.findall(r"\d\d", others))
    )
