"""`snose keys`: what an operator runs to renew a key, and what is said."""

import json
from pathlib import Path

import pytest

from app.storage.database import Database
from tests.test_cli import INIT, operator, snose


def deployed(folder: Path, url: str) -> dict[str, str]:
    """Return the environment of a new deployment, in mode test."""
    environment = operator(folder, url) | {"SNOSE_MODE": "test"}
    assert snose(folder, *INIT, **environment).returncode == 0
    return environment


class TestRotate:
    # On PostgreSQL the command is run beside the service in tests/reliability/test_rotation.py.
    @pytest.mark.parametrize("database_kind", ["sqlite"])
    def test_wrapping_and_signing(self, migrated_database_url: str, tmp_path: Path) -> None:
        """A new key file and a new signing key, each by one command that says what to do next. [F4, INT-05]"""
        environment = deployed(tmp_path, migrated_database_url)
        signed = snose(tmp_path, "keys", "rotate", "signing", "--json", **environment)
        assert signed.returncode == 0, signed.stderr
        assert json.loads(signed.stdout)["version"] == 2
        new = tmp_path / "new.key"
        moved = snose(tmp_path, "keys", "rotate", "wrapping", "--new-key-file", str(new), **environment)
        assert moved.returncode == 0, moved.stderr
        assert f"SNOSE_KEY_FILE={new}" in moved.stdout
        assert new.stat().st_mode & 0o777 == 0o600
        again = snose(tmp_path, "keys", "rotate", "wrapping", "--new-key-file", str(new), "--json", **environment)
        assert json.loads(again.stdout) == {"moved": False, "provider": "file"}
        old = snose(tmp_path, "doctor", **environment)
        assert "does not open the secret of this deployment" in old.stdout
        renewed = environment | {"SNOSE_KEY_FILE": str(new)}
        assert "does not open" not in snose(tmp_path, "doctor", **renewed).stdout
        unknown = snose(tmp_path, "keys", "rotate", "study", "NOPE", **renewed)
        assert (unknown.returncode, unknown.stderr.strip()) == (1, "There is no study NOPE.")

    @pytest.mark.parametrize("database_kind", ["sqlite"])
    def test_beside_a_running_service(self, database_url: str, tmp_path: Path) -> None:
        """SQLite has one process: the command asks for the service to be stopped first. [custody: transactions]"""
        assert snose(tmp_path, "migrate", **operator(tmp_path, database_url)).returncode == 0
        environment = deployed(tmp_path, database_url)
        serving = Database(database_url)
        serving.be_the_only_process()
        refused = snose(tmp_path, "keys", "rotate", "signing", **environment)
        serving.close()
        assert refused.returncode == 1
        assert "Stop it first" in refused.stderr

    def test_wrapping_by_nothing_new(self, tmp_path: Path) -> None:
        """The present key file is no new one, and a file is none of Vault's. [F2]"""
        environment = operator(tmp_path, f"sqlite:///{tmp_path / 'snose.db'}")
        same = snose(
            tmp_path, "keys", "rotate", "wrapping", "--new-key-file", environment["SNOSE_KEY_FILE"], **environment
        )
        both = snose(tmp_path, "keys", "rotate", "wrapping", "--to", "vault", "--new-key-file", "x", **environment)
        for refused in (same, both):
            assert refused.returncode == 1
            assert "--new-key-file" in refused.stderr
            assert "Traceback" not in refused.stderr
