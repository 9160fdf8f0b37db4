"""OWASP ASVS 5.0.0: `asvs.toml` is complete, and what it names is there."""

import re
import tomllib
from collections.abc import Mapping
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import pytest

from tests.nodes import ROOT, docstrings
from tests.security.asvs_levels import REQUIREMENTS, WANTED, WANTED_L3

Trace = Mapping[str, Mapping[str, Any]]

TRACE: Final[Trace] = tomllib.loads((Path(__file__).parent / "asvs.toml").read_text(encoding="utf-8"))
AWAITED: Final[frozenset[str]] = frozenset()
"""What is being built beside this; emptied when it has landed."""
TELLING: Final = ("README.md", "app/domain/security.md", "app/services/safety.py")
"""Where an operator or an assessor reads; the last is what `snose doctor` says."""
STATUSES: Final = {"not applicable", "operator", "beyond", "open"}
KEYS: Final = {"what", "code", "tests", "told", "status", "reason"}
_MOST_OF_THE_OPERATOR: Final = 10


def told_anywhere() -> str:
    return re.sub(r"\s+", " ", " ".join((ROOT / name).read_text(encoding="utf-8") for name in TELLING))


def faults_of(trace: Trace, awaited: frozenset[str] = AWAITED) -> list[str]:
    """Return everything that is wrong with the file, each beginning with its id."""
    told = told_anywhere()
    faults = [f"{one}: missing" for one in WANTED - trace.keys() - awaited]
    faults += [f"{one}: awaited, and there" for one in awaited & trace.keys()]
    faults += [f"{one}: unknown" for one in trace.keys() - REQUIREMENTS.keys()]
    for one, entry in trace.items():
        faults += [f"{one}: {fault}" for fault in _faults_of_one(one, entry, told)]
    return sorted(faults)


def _faults_of_one(one: str, entry: Mapping[str, Any], told: str) -> list[str]:
    status, faults = entry.get("status"), []
    faults += [f"no such key: {key}" for key in entry.keys() - KEYS]
    faults += [f"no such test: {node}" for node in entry.get("tests", ()) if node not in docstrings()]
    faults += [f"no such module: {name}" for name in entry.get("code", ()) if not _is_there(name)]
    if "told" in entry and entry["told"] not in told:
        faults.append("its sentence is nowhere")
    if status == "open":
        faults.append("open")
    if status == "beyond" and REQUIREMENTS.get(one) != 3:
        faults.append("only level 3 is ever beyond us")
    if status is not None and (status not in STATUSES or not str(entry.get("reason", "")).endswith(".")):
        faults.append("no status without a sentence that gives its reason")
    if status in {None, "operator"} and not entry.get("what"):
        faults.append("not said what it is")
    if status == "operator" and "told" not in entry:
        faults.append("nobody tells the operator")
    if status is None and "told" not in entry and not (entry.get("tests") and entry.get("code")):
        faults.append("neither shown nor written down")
    return faults


def _is_there(module: str) -> bool:
    try:
        return module.partition(".")[0] == "app" and find_spec(module) is not None
    except ModuleNotFoundError:
        return False


class TestTrace:
    def test_nothing_is_wrong(self) -> None:
        """Every requirement of levels 1 and 2, and those of level 3 that are wanted, is met and shown, or said why not. [VAL-01]"""
        assert faults_of(TRACE) == []

    def test_levels_are_the_standards(self) -> None:
        """345 requirements: 70, 183 and 92 of the three levels."""
        counts = [list(REQUIREMENTS.values()).count(level) for level in (1, 2, 3)]
        assert counts == [70, 183, 92]
        assert {REQUIREMENTS[one] for one in WANTED_L3} == {3}

    def test_the_operators_part_is_small(self) -> None:
        """What is left to the operator stays a short list, and what is not applicable gives its reason."""
        by_status = [entry.get("status") for entry in TRACE.values()]
        assert by_status.count("operator") <= _MOST_OF_THE_OPERATOR
        assert by_status.count(None) > 200

    def test_the_readme_counts_right(self) -> None:
        """The README's figures are those of the file. [VAL-10]"""
        met = [one for one, entry in TRACE.items() if "status" not in entry]
        said = f"{len(TRACE)} requirements, of which {len(met)} are met"
        assert said in told_anywhere(), said


class TestNegativeControls:
    @pytest.mark.parametrize(
        ("one", "change", "fault"),
        [
            ("2.3.4", None, "missing"),
            ("9.9.9", {"what": "?", "code": ["app.main"], "tests": []}, "unknown"),
            ("2.3.4", {"tests": ["tests/api/test_kits.py::TestNextKit::test_mispelt"]}, "no such test"),
            ("2.3.4", {"tests": []}, "neither shown nor written down"),
            ("2.3.4", {"code": ["app.services.stocks"]}, "no such module"),
            ("2.3.4", {"code": ["os"]}, "no such module"),
            ("2.3.4", {"status": "open", "reason": "Not yet."}, "open"),
            ("2.3.4", {"status": "beyond", "reason": "Too much."}, "only level 3"),
            ("2.3.4", {"status": "not applicable"}, "no status without"),
            ("2.3.4", {"status": "perhaps", "reason": "Who knows."}, "no status without"),
            ("2.3.4", {"what": ""}, "not said what it is"),
            ("2.3.4", {"why": "x"}, "no such key"),
            ("12.1.1", {"told": "a sentence that nobody wrote"}, "its sentence is nowhere"),
        ],
    )
    def test_each_fault_is_found(self, one: str, change: dict[str, Any] | None, fault: str) -> None:
        """Whatever is taken out of the file, misspelt or made up is named by its id."""
        trace: dict[str, Any] = deepcopy(dict(TRACE))
        if change is None:
            del trace[one]
        else:
            trace[one] = {**trace.get(one, {}), **change}
        found = faults_of(trace)
        assert [said for said in found if said.startswith(f"{one}: {fault}")], found

    def test_what_is_awaited_is_not_there(self) -> None:
        """An id that has arrived is no longer awaited."""
        assert faults_of(TRACE, AWAITED | {"2.3.4"}) == ["2.3.4: awaited, and there"]
