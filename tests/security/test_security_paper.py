"""`app/domain/security.md` is true: its tables are what the code does."""

import ast
import re
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement
from packaging.version import Version

from app.identity import passwords
from tests.test_packaging import ROOT, pins

PAPER: Final = (ROOT / "app" / "domain" / "security.md").read_text(encoding="utf-8")
STARTING: Final = {"subprocess"}
NETWORK: Final = {
    "socket",
    "http.client",
    "httpx",
    "smtplib",
    "urllib.request",
    "ftplib",
    "imaplib",
    "telnetlib",
    "xmlrpc",
}
OUTWARD: Final = {
    "app.storage.delivery": "looks after connections that others made",
    "app.cli.demo": "calls the service itself",
    "app.cli.sign_in": "a person's own command: it calls the service, and listens for that person's browser on loopback",
}
"""Modules with a socket that connect to nobody else."""


@cache
def modules() -> tuple[tuple[str, tuple[ast.AST, ...]], ...]:
    """Return every module of the service with all that stands in it."""
    return tuple(
        (
            ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"),
            tuple(ast.walk(ast.parse(path.read_text(encoding="utf-8")))),
        )
        for path in sorted((ROOT / "app").rglob("*.py"))
    )


def importing(libraries: set[str]) -> set[str]:
    """Return the modules of the service that import one of these libraries."""
    found = set()
    for name, nodes in modules():
        for node in nodes:
            named = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            named += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if libraries & {*named, *(one.rpartition(".")[0] for one in named)}:
                found.add(name)
    return found


def section(title: str) -> str:
    return re.split(r"^## ", PAPER.split(f"## {title}\n", 1)[1], flags=re.MULTILINE)[0]


def named_in(text: str) -> set[str]:
    return set(re.findall(r"`(app(?:\.\w+)+)`", text))


class TestTables:
    def test_limits(self) -> None:
        """Each limit that is written down is the constant that the code goes by. [VAL-10]"""
        rows = re.findall(r"^\| [^|]+ \| `([\w.]+)\.(\w+)` \| (\d+) \|$", PAPER, re.MULTILINE)
        assert len(rows) > 15
        for module, name, value in rows:
            assert getattr(import_module(module), name) == int(value), name

    def test_connections(self) -> None:
        """Whatever opens a connection, or could, is in the table; nothing else of the service has a socket. [VAL-10]"""
        told = named_in(section("Connections"))
        assert importing(NETWORK) - OUTWARD.keys() == told - {"app.storage.database", "app.storage.backups"}

    def test_programs(self) -> None:
        """Whatever starts another program is named as dangerous, and does so without a shell."""
        dangerous = named_in(section("Libraries and dangerous places"))
        assert importing(STARTING) <= dangerous
        for name, nodes in modules():
            for node in nodes:
                assert not (isinstance(node, ast.keyword) and node.arg == "shell"), name

    def test_ciphers(self) -> None:
        """Every module that enciphers, signs or derives is in the inventory, and every module there is one. [VAL-10]"""
        ciphering = {name for name in importing_below("cryptography") if name != "app.verifier"}
        told = named_in(section("Keys and ciphers"))
        assert ciphering <= told
        assert all((ROOT / Path(*name.split("."))).with_suffix(".py").exists() for name in told)

    def test_words_of_passwords(self) -> None:
        """The words that no password is made of are those that are written down. [USR-11]"""
        told = section("Signing in").split("is not made of these words:")[1].split(".")[0].split()
        assert set(told) == passwords._STEMS

    def test_ways_in_are_those_that_are_written_down(self) -> None:
        """Whoever begins a session is named, with no other way beside it: neither by mail, nor by questions. [USR-01]"""
        beginning = {
            name
            for name, nodes in modules()
            for node in nodes
            if isinstance(node, ast.Call)
            and getattr(node.func, "id", getattr(node.func, "attr", "")) in {"begin_session", "add_session"}
        }
        assert beginning
        assert beginning - {"app.services.sessions"} == named_in(section("Signing in"))

    def test_events_of_the_log(self) -> None:
        """Every event that the service logs stands in the inventory, and no other. [VAL-10]"""
        logged = {
            str(node.args[0].value)
            for _, nodes in modules()
            for node in nodes
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and isinstance(node.func.value, ast.Name)
            and node.func.value.id == "_log"
            and isinstance(node.args[0], ast.Constant)
        }
        told = section("Logs").split("its events are:")[1].split(". ")[0]
        assert set(re.findall(r"`([a-z ]+)`", told)) == logged

    def test_floors(self) -> None:
        """No library is older than the floor below which a fault of it was met. [INT-15]"""
        pinned = {name.partition("==")[0]: Version(name.partition("==")[2]) for name in pins()}
        text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
        floors = [Requirement(found) for found in re.findall(r'^    "([^"]+)",', text, re.MULTILINE) if ">=" in found]
        assert len(floors) > 40
        assert [str(one) for one in floors if pinned[one.name] not in one.specifier] == []


def importing_below(package: str) -> set[str]:
    """Return the modules that import anything of a package."""
    return {
        name
        for name, nodes in modules()
        for node in nodes
        if (isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == package)
        or (isinstance(node, ast.Import) and any(alias.name.partition(".")[0] == package for alias in node.names))
    }
