"""The command: the demo from any folder on both databases, and what an operator runs."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest

from app.domain.words import Role
from app.sealing.providers import KeyFileProvider
from tests.commands import snose, snose_anew

SUBJECTS: Final = 12


class TestDemo:
    def check(self, finished: "subprocess.CompletedProcess[str]") -> dict[str, Any]:
        assert finished.returncode == 0, finished.stderr[-2000:]
        (line,) = finished.stdout.splitlines()
        told: dict[str, Any] = json.loads(line)
        summary = told["summary"]
        assert summary["allocated"] == summary["dispensed"] == sum(summary["per_arm"].values()) == SUBJECTS
        assert all(len(arm) >= 6 for arm in summary["per_arm"])
        assert summary["code_breaks"] == 1
        assert summary["trail_verified"] is True
        assert summary["list_verified"] is True
        return told

    def test_whole_trial(self, database_kind: str, database_url: str, tmp_path: Path) -> None:
        """From the registry's record to the opened and verified list, one JSON line on stdout. [Done 2]"""
        arguments = ["demo", "--exit", "--json", "--subjects", str(SUBJECTS)]
        if database_kind == "postgresql":
            arguments += ["--database", database_url]
        told = self.check(snose_anew(tmp_path, *arguments))
        assert told["study_code"] == "NCT03033277"
        roles = [role for person in told["people"] for role in person["roles"]]
        assert sorted(roles) == sorted(role.value for role in Role if role is not Role.EDC_CLIENT)
        assert all(person["password"] and len(person["totp_secret"]) == 32 for person in told["people"])
        assert told["clients"][0]["roles"] == ["edc_client"]
        assert list(tmp_path.glob("snose-demo*")) == []
        if database_kind == "postgresql":
            self.check_in_folder_of_others(tmp_path, arguments)

    def check_in_folder_of_others(self, folder: Path, arguments: list[str]) -> None:
        """Once more over an earlier demo's database, in a folder that keeps its files and the demo's own. [api.md: --data]"""
        (folder / "mine.txt").write_text("mine")
        self.check(snose_anew(folder, *arguments, "--data", str(folder)))
        assert (folder / "mine.txt").read_text() == "mine"
        package = folder / "snose-demo-final-package.zip"
        assert snose_anew(folder, "verify", "package", str(package)).returncode == 0
        content = bytearray(package.read_bytes())
        content[len(content) // 2] ^= 1
        package.write_bytes(bytes(content))
        assert snose_anew(folder, "verify", "package", str(package)).returncode == 1

    def test_database_of_others(self, migrated_database_url: str, tmp_path: Path) -> None:
        """A database that holds anything but an earlier demo is refused and not touched. [api.md: --database]"""
        environment = operator(tmp_path, migrated_database_url)
        assert snose(tmp_path, *INIT, **environment).returncode == 0
        refused = snose(tmp_path, "demo", "--exit", "--database", migrated_database_url)
        assert refused.returncode == 1
        assert "Nothing was changed" in refused.stderr
        again = snose(tmp_path, *INIT, **environment)
        assert again.returncode == 1
        assert "belongs to a deployment already" in again.stderr


INIT: Final = ("init", "--username", "root.one", "--display-name", "Root One", "--json")


def operator(folder: Path, url: str) -> dict[str, str]:
    """Return the environment of a live deployment in a folder."""
    (folder / "evidence").mkdir(exist_ok=True)
    return {
        "SNOSE_MODE": "live",
        "SNOSE_DATABASE_URL": url,
        "SNOSE_KEY_FILE": str(folder / "snose.key"),
        "SNOSE_CHECKPOINT_FILE": str(folder / "evidence" / "checkpoints.jsonl"),
        "SNOSE_BACKUP_CONTACT": "Desk, day and night",
    }


class TestOperator:
    def test_from_nothing(self, database_url: str, tmp_path: Path) -> None:
        """Migrate, init, doctor: each is one command, with JSON where asked. [INT-03]"""
        environment = operator(tmp_path, database_url)
        migrated = snose(tmp_path, "migrate", "--json", **environment)
        assert migrated.returncode == 0, migrated.stderr
        assert json.loads(migrated.stdout)["revision"] >= "0002"
        made = snose(tmp_path, *INIT, **environment)
        assert made.returncode == 0, made.stderr
        assert json.loads(made.stdout)["username"] == "root.one"
        assert (tmp_path / "snose.key").stat().st_mode & 0o777 == 0o600
        examined = snose(tmp_path, "doctor", "--json", **environment)
        findings = [one["what"] for one in json.loads(examined.stdout)["findings"]]
        expected = (
            ["on the same disk as the database", "The key file lies beside the database"]
            if database_url.startswith("sqlite")
            else ["The service's database role is a superuser"]
        )
        expected.append("A password alone opens")
        named = [next((words for words in expected if words in what), what) for what in findings[:-1]]
        # How much room the machine has left is its own affair.
        assert [what for what in named if "little room" not in what] == expected
        assert "No code-break envelopes" in findings[-1]
        assert examined.returncode == 1

    @pytest.mark.parametrize("arguments", [["serve"], ["doctor"]])
    def test_nothing_there(self, tmp_path: Path, arguments: list[str]) -> None:
        """Live mode does not start on nothing, and says what to do, in words and without a traceback. [rule F2]"""
        environment = operator(tmp_path, f"sqlite:///{tmp_path / 'snose.db'}")
        refused = snose(tmp_path, *arguments, **environment)
        assert refused.returncode == 1
        assert "snose migrate" in refused.stderr + refused.stdout
        assert "Traceback" not in refused.stderr

    def test_key_file_for_everybody(self, migrated_database_url: str, tmp_path: Path) -> None:
        """A key file that others can read is refused. [rule F2]"""
        environment = operator(tmp_path, migrated_database_url)
        KeyFileProvider.create(tmp_path / "snose.key", os.urandom(32))
        (tmp_path / "snose.key").chmod(0o644)
        refused = snose(tmp_path, *INIT, **environment)
        assert refused.returncode == 1
        assert "open to others" in refused.stderr

    def test_sqlite_takes_one_worker(self, tmp_path: Path) -> None:
        """Several workers on SQLite are refused at the start. [custody: transactions]"""
        environment = operator(tmp_path, f"sqlite:///{tmp_path / 'snose.db'}") | {"SNOSE_MODE": "test"}
        refused = snose(tmp_path, "serve", **environment, SNOSE_WORKERS="2")
        assert refused.returncode == 1
        assert "SQLite takes one worker" in refused.stderr

    @pytest.mark.parametrize("name", ["SNOSE_PORT", "SNOSE_MODE"])
    def test_impossible_setting(self, tmp_path: Path, name: str) -> None:
        """A setting that cannot be is named, without a traceback."""
        refused = snose(tmp_path, "doctor", **{name: "canary"})
        assert refused.returncode == 1
        assert name in refused.stderr
        assert "Traceback" not in refused.stderr
