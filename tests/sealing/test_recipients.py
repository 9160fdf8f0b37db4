"""Encryption to a recipient (HPKE, RFC 9180)."""

import hmac
from base64 import b64decode, b64encode, urlsafe_b64encode

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from app.errors import Invalid, SealBroken
from app.sealing.recipients import decrypt_with, encrypt_to

# RFC 7748, 6.1: the keys of Bob and of Alice.
PRIVATE = "XasIfmJKikt54X+Lg4AO5m87sSkmGLb9HC+LJ/+I4Os="
PUBLIC = "3p7bfXt9wbTTW2HC7OQ1Nz+DQ8hbeGdNrfx+FG+IK08="
OTHER_PRIVATE = "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo="
PACKING_LIST = b"kit_code,arm_code,lot,expires_on\n" * 1000


def extract(suite: bytes, salt: bytes, label: bytes, content: bytes) -> bytes:
    """Return LabeledExtract of RFC 9180, 4."""
    return hmac.digest(salt or bytes(32), b"HPKE-v1" + suite + label + content, "sha256")


def expand(suite: bytes, key: bytes, label: bytes, info: bytes, length: int) -> bytes:
    """Return LabeledExpand of RFC 9180, 4, for one block."""
    content = length.to_bytes(2, "big") + b"HPKE-v1" + suite + label + info
    return hmac.digest(key, content + b"\1", "sha256")[:length]


class TestEncryption:
    def test_to_the_holder(self) -> None:
        """The holder of the key, and nobody else, reads the packing list. (rule F3, api: recipient_key)"""
        sent = encrypt_to(PUBLIC, PACKING_LIST, b"packing list 17")
        assert decrypt_with(PRIVATE, sent, b"packing list 17") == PACKING_LIST
        assert len(sent) == 32 + len(PACKING_LIST) + 16
        assert b"kit_code" not in sent
        for private, content, info in (
            (OTHER_PRIVATE, sent, b"packing list 17"),
            (PRIVATE, sent, b"packing list 18"),
            (PRIVATE, sent[:-1], b"packing list 17"),
            (PRIVATE, sent[:40], b"packing list 17"),
            (PRIVATE, sent[:10], b"packing list 17"),
            (PRIVATE, bytes(32) + sent[32:], b"packing list 17"),
            (PRIVATE, sent[:-1] + bytes([sent[-1] ^ 1]), b"packing list 17"),
        ):
            with pytest.raises(SealBroken):
                decrypt_with(private, content, info)

    def test_twice(self) -> None:
        """Each time another key is encapsulated."""
        assert encrypt_to(PUBLIC, b"x", b"") != encrypt_to(PUBLIC, b"x", b"")

    def test_opened_by_hand(self) -> None:
        """Any program that follows RFC 9180 reads what was sent: here its base mode, step by step."""
        sent = encrypt_to(PUBLIC, PACKING_LIST, b"packing list 17")
        private = X25519PrivateKey.from_private_bytes(b64decode(PRIVATE))
        shared = private.exchange(X25519PublicKey.from_public_bytes(sent[:32]))
        kem, suite = b"KEM\x00\x20", b"HPKE\x00\x20\x00\x01\x00\x02"
        both = sent[:32] + b64decode(PUBLIC)
        secret = expand(kem, extract(kem, b"", b"eae_prk", shared), b"shared_secret", both, 32)
        context = b"\0" + extract(suite, b"", b"psk_id_hash", b"")
        context += extract(suite, b"", b"info_hash", b"packing list 17")
        schedule = extract(suite, secret, b"secret", b"")
        key = expand(suite, schedule, b"key", context, 32)
        nonce = expand(suite, schedule, b"base_nonce", context, 12)
        assert AESGCM(key).decrypt(nonce, sent[32:], b"") == PACKING_LIST

    @pytest.mark.parametrize(
        "key",
        [
            "",
            "x",
            PUBLIC[:-2],
            PUBLIC + "\n",
            b64encode(bytes(31)).decode(),
            b64encode(bytes(33)).decode(),
            b64encode(bytes(32)).decode(),
            b64encode(b"\1" + bytes(31)).decode(),
            urlsafe_b64encode(b"\xff" * 32).decode(),
            "é" * 44,
            "\ud800" * 44,
        ],
    )
    def test_key_that_is_none(self, key: str) -> None:
        """A key that cannot be one is refused, the field named; also points of small order."""
        with pytest.raises(Invalid, match="X25519 public key") as refused:
            encrypt_to(key, b"secret", b"")
        assert refused.value.field == "recipient_key"

    def test_private_key_that_is_none(self) -> None:
        """So is a private key."""
        with pytest.raises(Invalid, match="X25519 private key") as refused:
            decrypt_with(PRIVATE[:-4], b"", b"")
        assert PRIVATE[:-4] not in str(refused.value)
        assert len(b64decode(PRIVATE)) == 32
