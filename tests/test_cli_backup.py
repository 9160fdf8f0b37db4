"""`snose backup` and `snose restore`: what an operator types, and what is said."""

import json
from base64 import b64encode
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from tests.test_cli import INIT, operator
from tests.test_cli_keys import run


@pytest.fixture
def deployed(migrated_sqlite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a new deployment, set by the environment."""
    (tmp_path / "snose.sqlite").write_bytes(migrated_sqlite.read_bytes())
    settings = operator(tmp_path, f"sqlite:///{tmp_path / 'snose.sqlite'}") | {"SNOSE_MODE": "test"}
    for name, setting in settings.items():
        monkeypatch.setenv(name, setting)
    assert run(*INIT).exit_code == 0
    return tmp_path


class TestBackupAndRestore:
    def test_in_words_and_in_json(self, deployed: Path) -> None:
        """Out beside whoever serves, back into an empty file, with the keys tried; in words or as JSON. [INT-04, INT-05]"""
        place = deployed / "backup"
        made = run("backup", str(place))
        assert made.exit_code == 0
        assert "It does not hold: the key file" in made.stdout
        assert "backup: " in made.stderr
        again = run("backup", str(deployed), "--json")
        assert json.loads(again.stdout)["manifest"]["engine"] == "sqlite"
        into = f"sqlite:///{deployed / 'new.sqlite'}"
        sink = str(deployed / "evidence" / "checkpoints.jsonl")
        back = run("restore", str(place), "--into", into, "--sink", sink, "--keys")
        assert back.exit_code == 0
        assert "Everything that was looked at holds." in back.stdout
        assert "1. The checkpoint file knows of nothing that is missing here." in back.stdout
        over = run("restore", str(place), "--into", into)
        assert "empty database only" in str(over.exception)

    def test_with_an_escrow(self, deployed: Path) -> None:
        """Every key is tried by an escrow and its recipient's key, where the key file is gone. [CUS-08, T34]"""
        private = X25519PrivateKey.generate()
        recipient, escrow = deployed / "recipient.key", deployed / "escrow.json"
        recipient.touch(mode=0o600)
        recipient.write_text(b64encode(private.private_bytes_raw()).decode())
        public = b64encode(private.public_key().public_bytes_raw()).decode()
        assert run("keys", "escrow", "--to", public, "--out", str(escrow)).exit_code == 0
        assert run("backup", str(deployed / "backup")).exit_code == 0
        (deployed / "snose.key").unlink()
        into = ("restore", str(deployed / "backup"), "--json", "--into")
        half = run(*into, f"sqlite:///{deployed / 'half.sqlite'}", "--escrow", str(escrow))
        assert "--recipient-key" in str(half.exception)
        keys = ("--escrow", str(escrow), "--recipient-key", str(recipient))
        whole = run(*into, f"sqlite:///{deployed / 'whole.sqlite'}", *keys)
        assert whole.exit_code == 0
        assert json.loads(whole.stdout)["whole"] is True
        in_words = run(
            "restore", str(deployed / "backup"), "--into", f"sqlite:///{deployed / 'words.sqlite'}", "--keys"
        )
        assert in_words.exit_code == 1
        assert "WRONG: The key file" in in_words.stdout
        assert "1. Do not serve from this database." in in_words.stdout
