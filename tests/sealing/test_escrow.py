"""The deployment secret in escrow: one box for one recipient, one deployment, one mode (CUS-08, CUS-12)."""

import json
import pickle
from base64 import b64decode, b64encode
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from app.domain.words import Mode
from app.errors import Invalid, KeyUnavailable, UnsafeSetting
from app.sealing.escrow import EscrowProvider, escrow_secret
from app.sealing.ring import KeyRing, secret_context
from tests.sealing.builders import DEPLOYMENT, key_file, secret_of

SECRET = secret_of("deployment secret")
PRIVATE = b64encode(secret_of("recipient")).decode()
PUBLIC = b64encode(X25519PrivateKey.from_private_bytes(b64decode(PRIVATE)).public_key().public_bytes_raw()).decode()
CONTEXT = secret_context(DEPLOYMENT, Mode.TEST)


def escrow(folder: Path) -> bytes:
    """Return the escrow of a deployment."""
    provider = key_file(folder)
    wrapped = KeyRing.create_secret(provider, DEPLOYMENT, Mode.TEST, SECRET)
    return escrow_secret(provider, DEPLOYMENT, Mode.TEST, wrapped, PUBLIC)


class TestEscrow:
    def test_opens_to_the_secret(self, tmp_path: Path) -> None:
        """The recipient gets the secret back; the file names its deployment and shows nothing of the secret. [CUS-12]"""
        content = escrow(tmp_path)
        told = json.loads(content)
        assert (told["deployment_id"], told["mode"], content.count(b"\n")) == (DEPLOYMENT, "test", 1)
        assert SECRET not in b64decode(told["box"])
        opened = EscrowProvider.of(content, PRIVATE)
        assert opened.unwrap("whatever the database holds", CONTEXT) == SECRET
        assert (opened.name, opened.weakness) == ("escrow", None)

    @pytest.mark.parametrize(
        "changes",
        [
            {"deployment_id": "another"},
            {"mode": "live"},
        ],
    )
    def test_of_another_deployment(self, tmp_path: Path, changes: dict[str, Any]) -> None:
        """It says whose it is; relabelled as the one that is asked for, it does not open. [CUS-10]"""
        told = json.loads(escrow(tmp_path)) | changes
        relabelled = EscrowProvider.of(json.dumps(told).encode(), PRIVATE)
        with pytest.raises(KeyUnavailable, match=f"of the {told['mode']} deployment {told['deployment_id']}"):
            relabelled.unwrap("", CONTEXT)
        with pytest.raises(KeyUnavailable, match="does not open this escrow"):
            relabelled.unwrap("", secret_context(told["deployment_id"], Mode(told["mode"])))

    @pytest.mark.parametrize("private", [b64encode(secret_of("somebody else")).decode(), "", "é", "AAAA"])
    def test_another_key(self, tmp_path: Path, private: str) -> None:
        """Whoever else tries is told so. [CUS-12]"""
        with pytest.raises(KeyUnavailable, match="does not open this escrow"):
            EscrowProvider.of(escrow(tmp_path), private).unwrap("", CONTEXT)

    def test_damaged(self, tmp_path: Path) -> None:
        """A file that is cut, altered or of another kind is told in plain words. [CUS-12]"""
        content = escrow(tmp_path)
        more = json.dumps(json.loads(content) | {"version": 2}).encode()
        for spoilt in (b"", b"\xff", content[:-9], b"[]", b"{}", content.replace(b":1", b":2", 1), more, b"[" * 5000):
            with pytest.raises(KeyUnavailable, match="is damaged"):
                EscrowProvider.of(spoilt, PRIVATE)
        told = json.loads(content)
        box = bytearray(b64decode(told["box"]))
        box[-1] ^= 1
        altered = EscrowProvider.of(json.dumps(told | {"box": b64encode(box).decode()}).encode(), PRIVATE)
        with pytest.raises(KeyUnavailable, match="was altered"):
            altered.unwrap("", CONTEXT)

    def test_for_a_key_that_is_none(self, tmp_path: Path) -> None:
        """The recipient's key is looked at."""
        provider = key_file(tmp_path)
        wrapped = KeyRing.create_secret(provider, DEPLOYMENT, Mode.TEST, SECRET)
        with pytest.raises(Invalid):
            escrow_secret(provider, DEPLOYMENT, Mode.TEST, wrapped, "AAAA")

    def test_opens_and_nothing_else(self, tmp_path: Path) -> None:
        """It wraps nothing, prints nothing and is not copied. [custody: keys]"""
        opened = EscrowProvider.of(escrow(tmp_path), PRIVATE)
        with pytest.raises(UnsafeSetting, match="wraps nothing"):
            opened.wrap(SECRET, CONTEXT)
        assert PRIVATE not in repr(opened)
        assert "box" not in repr(opened)
        with pytest.raises(TypeError):
            pickle.dumps(opened)
