"""The witness's key: cosignatures as C2SP writes them, and a key file that only its owner reads. [AUD-18, F2]"""

import pickle
from base64 import b64encode
from pathlib import Path
from typing import Final

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from app.domain.notes import NoteMalformed, NoteSignature, signature_lines
from app.errors import IntegrityBroken, KeyUnavailable, UnsafeSetting
from app.sealing.cosigning import Cosigner, private_key_text, read_cosigner, verify_cosignature

SEED: Final = bytes(range(32))
NAME: Final = "witness.example.org/w1"
TEXT: Final = f"snose/d1/S1\n42\n{b64encode(bytes(32)).decode()}\n"
COSIGNER: Final = Cosigner(NAME, SEED)


class TestCosignature:
    def test_is_a_timestamped_signature(self) -> None:
        """Eight bytes of time, then Ed25519 over the two lines and the checkpoint. [C2SP tlog-cosignature]"""
        line = COSIGNER.cosign(TEXT, 1679315147)
        assert line.signature[:8] == (1679315147).to_bytes(8, "big")
        signed = Ed25519PrivateKey.from_private_bytes(SEED).sign(f"cosignature/v1\ntime 1679315147\n{TEXT}".encode())
        assert line.signature[8:] == signed
        assert verify_cosignature(signature_lines([line]), COSIGNER.vkey, TEXT) == (line, 1679315147)

    def test_among_others(self) -> None:
        """Lines of keys that nobody asked about are passed over."""
        other = Cosigner("other", bytes(32)).cosign(TEXT, 1)
        lines = signature_lines([other, COSIGNER.cosign(TEXT, 2)])
        assert verify_cosignature(lines, COSIGNER.vkey, TEXT)[1] == 2

    @pytest.mark.parametrize("at", [0, 7, 8, 71])
    def test_changed(self, at: int) -> None:
        """Time and signature are bound together, and both to the text."""
        line = COSIGNER.cosign(TEXT, 5)
        changed = bytearray(line.signature)
        changed[at] ^= 1
        lines = signature_lines([line._replace(signature=bytes(changed))])
        with pytest.raises(IntegrityBroken):
            verify_cosignature(lines, COSIGNER.vkey, TEXT)

    def test_of_something_else(self) -> None:
        """Another text, no line of this witness, a short line, no line at all, no key: none of them is a cosignature."""
        line = COSIGNER.cosign(TEXT, 5)
        good = signature_lines([line])
        for lines, vkey, text in (
            (good, COSIGNER.vkey, TEXT.replace("42", "43")),
            (good, COSIGNER.vkey, TEXT[:-1]),
            (good, Cosigner(NAME, bytes(32)).vkey, TEXT),
            (signature_lines([NoteSignature(line.name, line.key_id, b"short")]), COSIGNER.vkey, TEXT),
            ("nothing", COSIGNER.vkey, TEXT),
            (good, "nothing", TEXT),
        ):
            with pytest.raises(IntegrityBroken):
                verify_cosignature(lines, vkey, text)

    def test_beyond_every_clock(self) -> None:
        """A time above 2^63 - 1 is refused, signed or not."""
        with pytest.raises(IntegrityBroken, match="clock"):
            verify_cosignature(signature_lines([COSIGNER.cosign(TEXT, 2**63)]), COSIGNER.vkey, TEXT)


class TestKeyFile:
    def test_round_trip(self, tmp_path: Path) -> None:
        """What was written is the key that is read."""
        path = tmp_path / "key"
        path.write_text(private_key_text(NAME, SEED))
        path.chmod(0o600)
        assert read_cosigner(path).vkey == COSIGNER.vkey

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"PRIVATE+KEY+w",
            private_key_text(NAME, SEED).encode()[:-1],
            private_key_text(NAME, SEED).encode().replace(b"witness", b"Witness"),
            private_key_text(NAME, SEED).encode() + b"\n",
            b"PRIVATE+KEY+w+00000000+BA==\n",
            b"\xff" * 40,
        ],
    )
    def test_something_else(self, tmp_path: Path, content: bytes) -> None:
        """A damaged file is never read as another key."""
        path = tmp_path / "key"
        path.write_bytes(content)
        path.chmod(0o600)
        with pytest.raises(KeyUnavailable):
            read_cosigner(path)

    def test_that_others_can_read(self, tmp_path: Path) -> None:
        """Whoever reads it is the witness."""
        path = tmp_path / "key"
        path.write_text(private_key_text(NAME, SEED))
        path.chmod(0o644)
        with pytest.raises(UnsafeSetting):
            read_cosigner(path)

    @pytest.mark.parametrize("name", ["", "two words", "plus+sign"])
    def test_name(self, name: str) -> None:
        """A name that a note cannot carry makes no key."""
        with pytest.raises(NoteMalformed):
            private_key_text(name, SEED)

    def test_does_not_leave(self) -> None:
        """It neither prints nor pickles itself."""
        assert repr(COSIGNER) == f"<Cosigner {NAME}>"
        with pytest.raises(TypeError):
            pickle.dumps(COSIGNER)
