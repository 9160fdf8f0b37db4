"""The import contracts of the house hold, and each of them would notice its violation."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from copy import deepcopy
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import grimp
import pytest
from importlinter.api import read_configuration
from importlinter.application.use_cases import lint_imports
from importlinter.domain.contract import Contract, registry

ROOT = Path(__file__).resolve().parent.parent
CONFIGURATION = ROOT / "pyproject.toml"

# One import, or one module, that must not be: (contract, importer, imported).
VIOLATIONS = [
    ("layers", "app.errors", "app.domain.words"),
    ("layers", "app.domain.words", "app.storage.database"),
    ("layers", "app.storage.database", "app.sealing.ring"),
    ("layers", "app.sealing.ring", "app.storage.database"),
    ("layers", "app.identity", "app.policy"),
    ("layers", "app.services.studies", "app.api.studies"),
    ("layers", "app.services.context", "app.settings"),
    ("layers", "app.api.studies", "app.main"),
    ("layers", "app.main", "app.cli"),
    ("layers", "app.settings", "app.surroundings"),
    ("layers", "app.surroundings", "app.main"),
    ("verifier-imports-nothing", "app.verifier", "app.domain.merkle"),
    ("verifier-imports-nothing", "app.verifier", "app.errors"),
    ("verifier-is-a-process", "app.cli", "app.verifier"),
    ("verifier-is-a-process", "app.services.trail", "app.verifier"),
    ("layers", "app.witness", "app.main"),
    ("witness-knows-no-secret", "app.witness", "app.sealing.ring"),
    ("witness-knows-no-secret", "app.sealing.cosigning", "app.sealing.signing"),
    ("no-circles", "app.domain.encoding", "app.domain.schedules"),
    ("pure", "app.domain.words", "os"),
    ("pure", "app.domain.words", "time"),
    ("pure", "app.domain.streams", "secrets"),
    ("pure", "app.domain.streams", "random"),
    ("pure", "app.domain.words", "logging"),
    ("pure", "app.domain.words", "pydantic"),
    ("pure", "app.policy", "socket"),
    ("pure", "app.policy", "sqlalchemy"),
    ("no-foreign-chance", "app.services.kits", "random"),
    ("no-foreign-chance", "app.api.kits", "numpy"),
    ("ciphers", "app.storage.database", "cryptography"),
    ("ciphers", "app.services.kits", "cryptography"),
    ("databases", "app.services.kits", "sqlalchemy"),
    ("databases", "app.main", "psycopg"),
    ("databases", "app.cli", "sqlite3"),
    ("credentials", "app.services.people", "pyotp"),
    ("credentials", "app.api.people", "argon2"),
    ("credentials", "app.services.passkeys", "webauthn"),
    ("frameworks", "app.services.kits", "fastapi"),
    ("frameworks", "app.storage.database", "pydantic"),
    ("frameworks", "app.identity", "starlette"),
    ("one-door", "app.main", "app.policy"),
    ("one-door", "app.services.kits", "app.policy"),
    ("one-door", "app.services.unblinding", "app.storage.trail_writer"),
    ("one-door", "app.storage.kits", "app.storage.trail_writer"),
    ("routes-call-services", "app.api.kits", "app.storage.kits"),
    ("routes-call-services", "app.api.unblinding", "app.sealing.ring"),
    ("features", "app.services.kits", "app.services.allocations"),
    ("features", "app.services.trail", "app.services.kits"),
]


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    """Who imports whom in the service, and which libraries."""
    return grimp.build_graph("app", include_external_packages=True, cache_dir=None)


@pytest.fixture(scope="module")
def contracts() -> dict[str, Contract]:
    """The contracts of pyproject.toml by their ids."""
    configuration = read_configuration(str(CONFIGURATION))
    # The linter's own way of registering its contract types is private; reading once does it.
    lint_imports(str(CONFIGURATION), limit_to_contracts=("no-circles",), cache_dir=None)
    return {options["id"]: _contract(options, configuration) for options in configuration["contracts_options"]}


def _contract(options: dict[str, Any], configuration: dict[str, Any]) -> Contract:
    build = registry.get_contract_class(options["type"])
    return build(options["name"], configuration["session_options"], options)


class TestContracts:
    def test_as_the_code_stands(self, capsys: pytest.CaptureFixture[str]) -> None:
        """Every contract of the house is kept."""
        kept = lint_imports(str(CONFIGURATION), cache_dir=None)
        assert kept, capsys.readouterr().out

    @pytest.mark.parametrize(("contract", "importer", "imported"), VIOLATIONS)
    def test_with_a_forbidden_import(
        self,
        graph: grimp.ImportGraph,
        contracts: dict[str, Contract],
        contract: str,
        importer: str,
        imported: str,
    ) -> None:
        """Each wall notices who goes through it, and says so only then."""
        assert contracts[contract].check(deepcopy(graph), verbose=False).kept
        planted = deepcopy(graph)
        assert importer in planted.modules, f"{importer} is no module, the violation would prove nothing"
        if imported not in planted.modules:
            assert not imported.startswith("app."), f"{imported} is no module"
            planted.add_module(imported, is_squashed=True)
        planted.add_import(importer=importer, imported=imported, line_number=1, line_contents="planted")
        assert not contracts[contract].check(planted, verbose=False).kept

    def test_with_a_module_outside_every_layer(self, graph: grimp.ImportGraph, contracts: dict[str, Contract]) -> None:
        """A new room needs a place in the house."""
        planted = deepcopy(graph)
        planted.add_module("app.utils")
        assert not contracts["layers"].check(planted, verbose=False).kept

    @pytest.mark.parametrize(
        ("contract", "keepers"),
        [
            ("ciphers", {"app.sealing", "app.verifier"}),
            ("databases", {"app.storage"}),
            ("credentials", {"app.identity"}),
        ],
    )
    def test_everyone_but_the_keeper_is_named(
        self, graph: grimp.ImportGraph, contracts: dict[str, Contract], contract: str, keepers: set[str]
    ) -> None:
        """A contract that lists who may not is complete: nobody is forgotten."""
        assert set(contracts[contract].contract_options["source_modules"]) == graph.find_children("app") - keepers

    def test_every_contract_has_a_planted_violation(self, contracts: dict[str, Contract]) -> None:
        """A contract that was never seen to fail proves nothing."""
        assert set(contracts) == {contract for contract, _, _ in VIOLATIONS}

    def test_with_the_import_written_into_a_file(self, tmp_path: Path) -> None:
        """The linter reads real files: an import inside a function, in a copy of the service, is found."""
        shutil.copytree(ROOT / "app", tmp_path / "app", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(CONFIGURATION, tmp_path)
        with (tmp_path / "app" / "domain" / "words.py").open("a") as file:
            file.write("\n\ndef now() -> float:\n    import time\n\n    return time.time()\n")
        found = subprocess.run(
            [
                sys.executable,
                "-c",
                "from importlinter.cli import lint_imports_command as c; c()",
                "--no-cache",
            ],
            cwd=tmp_path,
            env={"PYTHONPATH": str(tmp_path), "COLUMNS": "200"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert found.returncode == 1, found.stdout + found.stderr
        assert "app.domain.words -> time" in found.stdout


class TestLibraries:
    def test_what_is_imported_is_declared(self, graph: grimp.ImportGraph) -> None:
        """Whoever installs the wheel has every library that the code imports."""
        project = tomllib.loads(CONFIGURATION.read_text(encoding="utf-8"))["project"]
        declared = {re.split(r"[\[<>=;]", requirement)[0].lower() for requirement in project["dependencies"]}
        imported = {name for name in graph.modules if graph.is_module_squashed(name)} - sys.stdlib_module_names
        distributions = packages_distributions()
        undeclared = {
            name
            for name in imported
            if not {distribution.lower().replace("_", "-") for distribution in distributions[name]} & declared
        }
        assert undeclared == set()


class TestChance:
    def test_no_generator_by_another_way(self) -> None:
        """Nothing in `app/` names Python's or NumPy's generators, by import or by string. [SEQ-06]"""
        named = [
            f"{path.relative_to(ROOT)}:{node.lineno}"
            for path in sorted((ROOT / "app").rglob("*.py"))
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Constant) and node.value in {"random", "numpy", "numpy.random"}
        ]
        assert named == []
