"""Notes, checkpoints and verification keys: the published example, round trips and refusals. [AUD-18]"""

import base64
import random
from typing import Final

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from app.domain.notes import (
    Checkpoint,
    NoteMalformed,
    NoteSignature,
    VerificationKey,
    final_package_text,
    join_note,
    key_handover_text,
    key_id,
    kit_commitment_text,
    list_commitment_text,
    note_text_to_sign,
    parse_checkpoint,
    parse_key_handover,
    parse_verification_key,
    split_note,
)

# The example of the Go checksum database's note package.
KEY: Final = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
TEXT: Final = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
SIGNATURE_LINE: Final = (
    "\u2014 PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
)
NOTE: Final = f"{TEXT}\n{SIGNATURE_LINE}"
ROOT: Final = bytes(range(32))
SIGNATURE: Final = NoteSignature("snose/d1", b"\x01\x02\x03\x04", b"\x05" * 64)


class TestPublishedExample:
    def test_verifies(self) -> None:
        """The key, the note and the signature of the published example fit together."""
        key = parse_verification_key(KEY)
        note = split_note(NOTE)
        (signature,) = note.signatures
        assert note.text == TEXT
        assert (signature.name, signature.key_id) == ("PeterNeumann", key.key_id)
        assert key.key_id.hex() == "c74f20a3"
        Ed25519PublicKey.from_public_bytes(key.public_key).verify(signature.signature, note_text_to_sign(note.text))
        assert join_note(note.text, note.signatures) == NOTE
        assert key.text() == KEY

    def test_does_not_verify_another_text(self) -> None:
        """The negative control: one letter more, and the signature does not hold."""
        (signature,) = split_note(NOTE).signatures
        public = Ed25519PublicKey.from_public_bytes(parse_verification_key(KEY).public_key)
        with pytest.raises(InvalidSignature):
            public.verify(signature.signature, note_text_to_sign("A" + TEXT))


class TestCheckpoint:
    @pytest.mark.parametrize("size", [0, 1, 1841, 10**18])
    def test_round_trip(self, size: int) -> None:
        """A checkpoint is three lines, and they are read back."""
        checkpoint = Checkpoint("snose/d1/NCT03033277~2", size, ROOT)
        assert checkpoint.text() == f"snose/d1/NCT03033277~2\n{size}\n{base64.b64encode(ROOT).decode()}\n"
        assert parse_checkpoint(checkpoint.text()) == checkpoint

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "origin\n1\n",
            "\n1\n{root}\n",
            "origin\n01\n{root}\n",
            "origin\n-1\n{root}\n",
            "origin\n+1\n{root}\n",
            "origin\n1 \n{root}\n",
            "origin\n\u0661\n{root}\n",
            "origin\n1\n{root}",
            "origin\n1\n{root}\nextension\n",
            "origin\n1\n\n{root}\n",
            "origin\n1\nAAAA\n",
            "origin\n1\n*{root}\n",
            "origin\n1\n{root}=\n",
            "origin\n1\n\u00e9\n",
        ],
    )
    def test_malformed(self, text: str) -> None:
        """Anything but origin, size and root is refused."""
        with pytest.raises(NoteMalformed):
            parse_checkpoint(text.format(root=base64.b64encode(ROOT).decode()))

    def test_second_spelling_of_base64(self) -> None:
        """The unused bits of base64 are zero, so that a checkpoint has one spelling."""
        spelt = base64.b64encode(ROOT).decode()
        other = spelt[:-2] + chr(ord(spelt[-2]) + 1) + "="
        assert base64.b64decode(other) == ROOT
        with pytest.raises(NoteMalformed, match="one spelling"):
            parse_checkpoint(f"origin\n1\n{other}\n")


class TestNotes:
    def test_two_signatures_and_blank_lines(self) -> None:
        """A text may hold blank lines, and a note several signatures."""
        other = NoteSignature("witness.example/w", b"\x09" * 4, b"\x08" * 76)
        note = split_note(join_note("a\n\nb\n", [SIGNATURE, other]))
        assert note.text == "a\n\nb\n"
        assert note.signatures == (SIGNATURE, other)

    @pytest.mark.parametrize("text", ["", "no line feed", "a\rb\n", "a\x00\n", "tab\t\n", "\ud800\n"])
    def test_text_that_cannot_be_signed(self, text: str) -> None:
        """A text that a note cannot carry is refused before it is signed."""
        with pytest.raises(NoteMalformed):
            note_text_to_sign(text)
        with pytest.raises(NoteMalformed):
            join_note(text, [SIGNATURE])

    @pytest.mark.parametrize("name", ["", "two words", "a+b", "line\nfeed", "no\u00a0break"])
    def test_bad_key_name(self, name: str) -> None:
        """The name of a key could not be told from the rest of its line."""
        with pytest.raises(NoteMalformed):
            join_note("a\n", [SIGNATURE._replace(name=name)])

    def test_no_signature(self) -> None:
        """A note without a signature is no signed note."""
        with pytest.raises(NoteMalformed, match="at least one"):
            join_note("a\n", [])

    @pytest.mark.parametrize(
        "note",
        [
            "",
            "a\n",
            "a\n\n",
            "a\n\n\n",
            f"a\n{SIGNATURE_LINE}",
            f"a\n\n{SIGNATURE_LINE}".removesuffix("\n"),
            f"a\r\n\n{SIGNATURE_LINE}",
            "a\n\n- name AAAAAAAA\n",
            "a\n\n\u2014 name\n",
            "a\n\n\u2014 name AAAA\n",
            "a\n\n\u2014 name AAAAAA==\n",
            "a\n\n\u2014 name ****\n",
            "a\n\n\u2014  AAAAAAAA\n",
            f"a\n\n{SIGNATURE_LINE}trailing\n",
        ],
    )
    def test_malformed(self, note: str) -> None:
        """What is not text, blank line and signature lines is refused."""
        with pytest.raises(NoteMalformed):
            split_note(note)

    def test_mutations_of_a_note(self) -> None:
        """Five hundred changed notes: each is refused or does not verify. [AUD-18]"""
        key = parse_verification_key(KEY)
        public = Ed25519PublicKey.from_public_bytes(key.public_key)
        chance = random.Random(1992)
        refused = 0
        for _ in range(500):
            position = chance.randrange(len(NOTE))
            changed = NOTE[:position] + chance.choice("\n\x00 +=a\u2014Z") + NOTE[position + 1 :]
            if changed == NOTE:
                continue
            try:
                note = split_note(changed)
                (signature,) = note.signatures
                assert (signature.name, signature.key_id) == (key.name, key.key_id)
                public.verify(signature.signature, note_text_to_sign(note.text))
            except (NoteMalformed, InvalidSignature, AssertionError, ValueError):
                refused += 1
            else:
                pytest.fail(f"accepted with another character at {position}")
        assert refused > 400


class TestVerificationKeys:
    def test_round_trip(self) -> None:
        """A key survives being written down, whatever base64 makes of it."""
        for seed in range(20):
            public = Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32).public_key().public_bytes_raw()
            key = VerificationKey("snose/d1", public)
            assert parse_verification_key(key.text()) == key
            assert key.key_id == key_id("snose/d1", public)

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "PeterNeumann+c74f20a3",
            "PeterNeumann+c74f20a4+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
            "PeterNeumanN+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
            "PeterNeumann+c74f20a3+AhpC2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
            "PeterNeumann+c74f20a3+ARpc",
            "PeterNeumann+c74f20a3+AR*c",
            "+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
        ],
    )
    def test_malformed(self, text: str) -> None:
        """A key that is not Ed25519, or whose hash is not its own, is refused."""
        with pytest.raises(NoteMalformed):
            parse_verification_key(text)


class TestTexts:
    def test_each_purpose_has_its_context_line(self) -> None:
        """No signature can serve for another purpose, deployment, study or object. [SEQ-11]"""
        old, new = VerificationKey("snose/d1", b"\x01" * 32), VerificationKey("snose/d1", b"\x02" * 32)
        root = base64.b64encode(ROOT).decode()
        assert list_commitment_text("d1", "S1", "id", ROOT) == f"snose/v1/list-commitment\nd1\nS1\nid\n{root}\n"
        assert kit_commitment_text("d1", "S1", "C1", ROOT) == f"snose/v1/kit-commitment\nd1\nS1\nC1\n{root}\n"
        assert key_handover_text("d1", old, new) == f"snose/v1/key-handover\nd1\n{old.text()}\n{new.text()}\n"
        assert parse_key_handover(key_handover_text("d1", old, new)) == (old, new)
        assert final_package_text("d1", "S1", b"{}") == (
            "snose/v1/final-package\nd1\nS1\nRBNvo1WzZ4oRRq0W9+hknpT7T8If536DEMBg9hyq/4o=\n"
        )

    @pytest.mark.parametrize(
        ("first", "deployment", "names"),
        [
            ("snose/v1/key-handover", "d2", ("snose/d1", "snose/d1")),
            ("snose/v1/key-handover", "d1", ("snose/d1", "snose/d2")),
            ("snose/v1/kit-commitment", "d1", ("snose/d1", "snose/d1")),
            ("snose/v1/key-handover\nd1", "d1", ("snose/d1", "snose/d1")),
        ],
    )
    def test_of_no_handover(self, first: str, deployment: str, names: tuple[str, str]) -> None:
        """A handover stays within one deployment, and nothing else is taken for one."""
        old, new = (VerificationKey(name, bytes([number]) * 32) for number, name in enumerate(names))
        with pytest.raises(NoteMalformed):
            parse_key_handover(f"{first}\n{deployment}\n{old.text()}\n{new.text()}\n")

    def test_line_feed_in_a_line(self) -> None:
        """A code that could make two lines out of one is refused."""
        with pytest.raises(NoteMalformed):
            list_commitment_text("d1", "S1\nS2", "id", ROOT)
