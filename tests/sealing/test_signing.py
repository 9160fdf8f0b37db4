"""Signatures: notes as C2SP writes them, versions, handovers."""

import pickle
from base64 import b64decode, b64encode
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from app.domain.notes import NoteMalformed, VerificationKey
from app.errors import IntegrityBroken, KeyUnavailable, SealBroken
from app.sealing.notes import verify_handover, verify_note, verify_signature
from app.sealing.signing import SigningKeys
from tests.sealing.builders import ring_of, secret_of

NAME = "snose/7d0c4f0e"
TEXT = f"{NAME}/ASPECT-01\n42\n{b64encode(bytes(32)).decode()}\n"


def keys_of(folder: Path, *versions: int, name: str = NAME, seed: str = "signing") -> SigningKeys:
    """Return the signing keys of a deployment; equal arguments give equal keys."""
    keys = SigningKeys(ring_of(folder), name)
    for version in versions:
        keys.add_signing_key(version, keys.new_signing_key(version, secret_of(f"{seed} {version}"))[1])
    return keys


class TestKeys:
    def test_rfc_8032_test_1(self, tmp_path: Path) -> None:
        """Key and signature are those of the published vector."""
        keys = SigningKeys(ring_of(tmp_path), NAME)
        seed = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
        public, wrapped = keys.new_signing_key(1, seed)
        keys.add_signing_key(1, wrapped)
        assert b64decode(public).hex() == "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
        assert keys.sign(b"").hex() == (
            "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46b"
            "d25bf5f0595bbe24655141438e7a100b"
        )

    def test_wrapped_key_elsewhere(self, tmp_path: Path) -> None:
        """A wrapped key is taken in under its version, name and deployment alone."""
        wrapped = keys_of(tmp_path).new_signing_key(2, secret_of("seed"))[1]
        strange = SigningKeys(ring_of(tmp_path, deployment_id="other"), NAME)
        for keys, version in ((keys_of(tmp_path), 1), (keys_of(tmp_path, name="other"), 2), (strange, 2)):
            with pytest.raises(SealBroken):
                keys.add_signing_key(version, wrapped)

    def test_another_key_of_a_version(self, tmp_path: Path) -> None:
        """A version stands for one key; the same one may come again."""
        keys = keys_of(tmp_path, 1)
        keys.add_signing_key(1, keys.new_signing_key(1, secret_of("signing 1"))[1])
        with pytest.raises(SealBroken, match="Another signing key"):
            keys.add_signing_key(1, keys.new_signing_key(1, secret_of("another"))[1])

    def test_no_key(self, tmp_path: Path) -> None:
        """Without a key nothing is signed. (rule F2)"""
        keys = keys_of(tmp_path)
        assert keys.vkeys() == []
        for call in (lambda: keys.sign(b""), lambda: keys.sign_note(TEXT), lambda: keys.vkey(1)):
            with pytest.raises(KeyUnavailable):
                call()

    def test_seed_of_a_wrong_length(self, tmp_path: Path) -> None:
        """A private key is made from 32 bytes."""
        with pytest.raises(ValueError, match="32 bytes"):
            keys_of(tmp_path).new_signing_key(1, bytes(31))

    def test_printed(self, tmp_path: Path) -> None:
        """Signing keys show no key and are not pickled. (custody: in memory)"""
        keys = keys_of(tmp_path, 1)
        assert repr(keys) == f"<SigningKeys {NAME}>"
        assert repr(secret_of("signing 1"))[2:-1] not in repr(vars(keys))
        with pytest.raises(TypeError, match="not pickled"):
            pickle.dumps(keys)


class TestNote:
    def test_layout(self, tmp_path: Path) -> None:
        """A note is the text, an empty line, and a line with name, id and signature. (C2SP)"""
        keys = keys_of(tmp_path, 1)
        note = keys.sign_note(TEXT)
        text, line = note.split("\n\n")
        assert text + "\n" == TEXT
        dash, name, encoded = line.removesuffix("\n").split(" ")
        assert (dash, name) == ("\N{EM DASH}", keys.name)
        signed = b64decode(encoded)
        key = keys.vkey(1)
        assert signed[:4] == key.key_id
        Ed25519PublicKey.from_public_bytes(key.public_key).verify(signed[4:], TEXT.encode())
        encoded = b64encode(b"\x01" + key.public_key).decode()
        assert keys.vkeys() == [f"{NAME}+{key.key_id.hex()}+{encoded}"]

    def test_published_vector(self) -> None:
        """The note and key that the Go package `note` shows in its documentation verify."""
        vkey = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
        text = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
        signature = "x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM="
        note = f"{text}\n\N{EM DASH} PeterNeumann {signature}\n"
        assert verify_note(note, [vkey]) == text

    def test_verified(self, tmp_path: Path) -> None:
        """A note gives its text to whoever holds the key, also among other keys."""
        keys, others = keys_of(tmp_path, 1, 2), keys_of(tmp_path, 1, seed="others", name="witness")
        assert verify_note(keys.sign_note(TEXT), keys.vkeys()) == TEXT
        assert verify_note(keys.sign_note(TEXT), [*others.vkeys(), keys.vkey(2).text()]) == TEXT

    def test_text_with_empty_lines(self, tmp_path: Path) -> None:
        """Empty lines within a text are text."""
        keys = keys_of(tmp_path, 1)
        text = "one\n\n\N{EM DASH} two\n\n\nthree\n"
        assert verify_note(keys.sign_note(text), keys.vkeys()) == text

    def test_unknown_signatures(self, tmp_path: Path) -> None:
        """Lines of unknown keys are passed over; alone they are not enough."""
        keys, witness = keys_of(tmp_path, 1), keys_of(tmp_path, 1, name="witness", seed="witness")
        both = keys.sign_note(TEXT) + witness.sign_note(TEXT).split("\n\n")[1]
        assert verify_note(both, keys.vkeys()) == verify_note(both, witness.vkeys()) == TEXT
        for vkeys in ([], keys_of(tmp_path, 2).vkeys(), keys_of(tmp_path, 1, name="other").vkeys()):
            with pytest.raises(IntegrityBroken, match="not signed by a known key"):
                verify_note(both, vkeys)

    def test_wrong_signature_of_a_known_key(self, tmp_path: Path) -> None:
        """One wrong signature of a known key spoils the note, whatever else is right. (C2SP signed-note)"""
        keys, witness = keys_of(tmp_path, 1), keys_of(tmp_path, 1, name="witness", seed="witness")
        forged = keys.sign_note(TEXT) + witness.sign_note("another\n").split("\n\n")[1]
        assert verify_note(forged, keys.vkeys()) == TEXT
        with pytest.raises(IntegrityBroken, match="not that of its key"):
            verify_note(forged, [*keys.vkeys(), *witness.vkeys()])

    def test_every_changed_character(self, tmp_path: Path) -> None:
        """No other character in text or signature is accepted. (INT-07)"""
        keys = keys_of(tmp_path, 1)
        note = keys.sign_note(TEXT)
        tried = 0
        for at, character in enumerate(note):
            for change in (
                note[:at] + chr(ord(character) ^ 1) + note[at + 1 :],
                note[:at] + note[at + 1 :],
                note[:at],
            ):
                with pytest.raises(IntegrityBroken):
                    verify_note(change, keys.vkeys())
                tried += 1
        assert tried == 3 * len(note) > 500

    def test_too_many_signatures(self, tmp_path: Path) -> None:
        """A stranger cannot make the service verify without end."""
        keys = keys_of(tmp_path, 1)
        note = keys.sign_note(TEXT)
        line = note.split("\n\n")[1]
        assert verify_note(note + line * 15, keys.vkeys()) == TEXT
        with pytest.raises(IntegrityBroken, match="too many"):
            verify_note(note + line * 16, keys.vkeys())

    @pytest.mark.parametrize("text", ["", "no end", "tab\there\n", "return\r\n", "nul\0\n"])
    def test_text_that_a_note_cannot_carry(self, tmp_path: Path, text: str) -> None:
        """Such a text is not signed."""
        with pytest.raises(NoteMalformed):
            keys_of(tmp_path, 1).sign_note(text)

    @pytest.mark.parametrize("vkey", ["", "a+b", "name+00000000+AQ==", "name+c74f20a3+****"])
    def test_key_that_is_none(self, tmp_path: Path, vkey: str) -> None:
        """A public key that is none is said to be broken, and not passed over."""
        keys = keys_of(tmp_path, 1)
        with pytest.raises(IntegrityBroken, match="not well formed"):
            verify_note(keys.sign_note(TEXT), [*keys.vkeys(), vkey])

    def test_newest_key_signs(self, tmp_path: Path) -> None:
        """After a rotation the new key signs, and old notes stay verifiable. (CUS-08)"""
        keys = keys_of(tmp_path, 1)
        old = keys.sign_note(TEXT)
        keys.add_signing_key(2, keys.new_signing_key(2, secret_of("signing 2"))[1])
        new = keys.sign_note(TEXT)
        assert keys.newest_version == 2
        assert verify_note(new, [keys.vkey(2).text()]) == TEXT
        assert verify_note(old, keys.vkeys()) == verify_note(new, keys.vkeys()) == TEXT
        with pytest.raises(IntegrityBroken):
            verify_note(new, [keys.vkey(1).text()])


class TestHandover:
    def test_signed_by_both(self, tmp_path: Path) -> None:
        """A handover is verified with the old and the new key. (custody: keys)"""
        keys = keys_of(tmp_path, 1, 2)
        note = keys.sign_handover("handover\n", 1, 2)
        assert verify_handover(note, *keys.vkeys()) == "handover\n"

    @pytest.mark.parametrize(
        "signed",
        [
            lambda keys: keys.sign_note("handover\n"),
            lambda keys: keys.sign_handover("handover\n", 1, 1),
            lambda keys: keys.sign_handover("handover\n", 2, 2),
        ],
        ids=["new alone", "old twice", "new twice"],
    )
    def test_signed_by_one(self, tmp_path: Path, signed: Callable[[SigningKeys], str]) -> None:
        """One key alone makes no handover, neither the stolen old one nor an appointed new one."""
        keys = keys_of(tmp_path, 1, 2)
        with pytest.raises(IntegrityBroken, match="old and by the new key"):
            verify_handover(signed(keys), *keys.vkeys())

    def test_to_the_same_key(self, tmp_path: Path) -> None:
        """Nor does a key hand over to itself."""
        keys = keys_of(tmp_path, 1)
        vkey = keys.vkey(1).text()
        with pytest.raises(IntegrityBroken, match="old and by the new key"):
            verify_handover(keys.sign_note("handover\n"), vkey, vkey)


class TestRawSignature:
    def test_verified(self, tmp_path: Path) -> None:
        """A signature fits its message and key, and what does not fit raises. (house rule 7)"""
        keys = keys_of(tmp_path, 1)
        public = b64encode(keys.vkey(1).public_key).decode()
        other = b64encode(keys_of(tmp_path, 2).vkey(2).public_key).decode()
        signature = keys.sign(b"context\nmessage")
        verify_signature(public, b"context\nmessage", signature)
        for key, message, given in (
            (public, b"context\nmessagf", signature),
            (other, b"context\nmessage", signature),
            (public, b"context\nmessage", signature[:-1]),
            (public, b"context\nmessage", b""),
            (public[:-4], b"context\nmessage", signature),
            ("?", b"context\nmessage", signature),
            ("é", b"context\nmessage", signature),
        ):
            with pytest.raises(IntegrityBroken, match="not that of its key"):
                verify_signature(key, message, given)

    def test_key_of_a_note(self, tmp_path: Path) -> None:
        """The public key given at the making is the one of the notes."""
        keys = keys_of(tmp_path, 1)
        public, _ = keys.new_signing_key(1, secret_of("signing 1"))
        assert keys.vkey(1) == VerificationKey(NAME, b64decode(public))
