"""`snose keys`: what an operator runs to renew a key, and what is said."""

import hashlib
import json
from base64 import b64encode
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from typer.testing import CliRunner, Result

from app.cli import command
from app.settings import Settings
from app.storage.database import Database
from tests.commands import snose
from tests.test_cli import INIT, operator


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


class TestEscrow:
    @pytest.mark.parametrize("database_kind", ["sqlite"])
    def test_the_key_file_is_lost(
        self, migrated_database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Exported, lost, refused where a file is damaged or absent, and restored by the command that doctor names.

        [CUS-08, CUS-12, T34]
        """
        for name, setting in (operator(tmp_path, migrated_database_url) | {"SNOSE_MODE": "test"}).items():
            monkeypatch.setenv(name, setting)
        assert run(*INIT).exit_code == 0
        key_file, out, recipient = Settings().key_file, tmp_path / "escrow.json", tmp_path / "recipient.key"
        private = X25519PrivateKey.generate()
        recipient.touch(mode=0o600)
        recipient.write_text(b64encode(private.private_bytes_raw()).decode() + "\n")
        public = b64encode(private.public_key().public_bytes_raw()).decode()
        made = run("keys", "escrow", "--to", public, "--out", str(out), "--json")
        assert json.loads(made.stdout)["sha256"] == hashlib.sha256(out.read_bytes()).hexdigest()
        assert out.stat().st_mode & 0o777 == 0o600
        assert "never overwritten" in str(run("keys", "escrow", "--to", public, "--out", str(out)).exception)
        key_file.unlink()
        assert "snose keys restore --escrow FILE --recipient-key FILE" in run("doctor").stdout
        restoring = ["keys", "restore", "--recipient-key", str(recipient), "--json", "--escrow"]
        assert "cannot be read" in str(run(*restoring, str(tmp_path / "absent")).exception)
        damaged = tmp_path / "damaged.json"
        damaged.write_bytes(out.read_bytes()[:-20])
        assert "is damaged" in str(run(*restoring, str(damaged)).exception)
        assert not key_file.exists()
        assert json.loads(run(*restoring, str(out)).stdout) == {"restored": True, "provider": "file"}
        assert key_file.stat().st_mode & 0o777 == 0o600
        assert "snose keys restore" not in run("doctor").stdout


def run(*arguments: str) -> Result:
    """Run the command in this process: one of its own takes a second to start."""
    return CliRunner().invoke(command, arguments)
