"""The form of a sealed value: padding and spelling."""

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from app.errors import SealBroken
from app.sealing.envelope import open_box, pad, read_token, unpad, write_token

NONCE = bytes(range(12))


class TestPadding:
    @given(plaintext=st.binary(max_size=60))
    def test_any_plaintext(self, plaintext: bytes) -> None:
        """What is padded has the one length and comes back as it was. (rule B3)"""
        assert len(pad(plaintext, 64)) == 64
        assert unpad(pad(plaintext, 64)) == plaintext

    def test_full_to_the_brim(self) -> None:
        """The last byte of the capacity can be used."""
        assert unpad(pad(b"x" * 60, 64)) == b"x" * 60

    def test_one_byte_too_long(self) -> None:
        """What does not fit is refused, and the message says no more than lengths."""
        with pytest.raises(ValueError, match=r"^61 bytes do not fit: a value of this column holds 60\.$"):
            pad(b"x" * 61, 64)

    @pytest.mark.parametrize("at", range(7, 16))
    def test_byte_after_the_end(self, at: int) -> None:
        """Nothing may hide behind the plaintext."""
        padded = bytearray(pad(b"abc", 16))
        padded[at] = 1
        with pytest.raises(SealBroken):
            unpad(bytes(padded))

    @pytest.mark.parametrize("length", [13, 255, 2**32 - 1])
    def test_length_beyond_the_end(self, length: int) -> None:
        """A length that cannot be is no plaintext."""
        with pytest.raises(SealBroken):
            unpad(length.to_bytes(4, "big") + bytes(12))


class TestToken:
    @given(key_id=st.from_regex(r"[sd][0-9]{1,6}", fullmatch=True), box=st.binary(min_size=16, max_size=80))
    def test_any_box(self, key_id: str, box: bytes) -> None:
        """What is written is read."""
        assert read_token(write_token(key_id, NONCE, box)) == (key_id, NONCE, box)

    def test_golden(self) -> None:
        """The spelling is fixed: base64url without padding."""
        assert write_token("s3", NONCE, b"\xfb\xff" * 8) == "v1.s3.AAECAwQFBgcICQoL.-__7__v_-__7__v_-__7_w"

    @pytest.mark.parametrize(
        "token",
        [
            "",
            "v1",
            "v1.s1.AAECAwQFBgcICQoL",
            "v1.s1.AAECAwQFBgcICQoL.AAAAAAAAAAAAAAAAAAAAAA.x",
            "v2.s1.AAECAwQFBgcICQoL.AAAAAAAAAAAAAAAAAAAAAA",
            "v1.s1.AAECAwQFBgcICQoL.AAAAAAAAAAAAAAAAAAAAAA==",
            "v1.s1.AAECAwQFBgcICQoL.AAAAAAAAAAAAAAAAAAAAAB",
            "v1.s1.AAECAwQFBgcICQoL.AAAAAAAAAAAAAAAAAAAAA\n",
            "v1.s1.AAECAwQFBgcICQo.LAAAAAAAAAAAAAAAAAAAAAA",
            "v1.s1.AAECAwQFBgcICQoL.+/AAAAAAAAAAAAAAAAAAAA",
            "v1.s1.AAECAwQFBgcICQoL.AAAAAAAAAAAAAAAAAAAA",
            "v1.s1.AAEC.",
            "v1.s1..",
            "v1.s1.AAECAwQFBgcICQoL.A",
            "v1.s1.ÄÄECAwQFBgcICQoL.AAAAAAAAAAAAAAAAAAAAAA",
            "v1.s1.\ud800AECAwQFBgcICQoL.AAAAAAAAAAAAAAAAAAAAAA",
        ],
    )
    def test_any_other_spelling(self, token: str) -> None:
        """One value has one spelling; everything else is refused before a key is touched. (T10)"""
        with pytest.raises(SealBroken, match="not well formed"):
            read_token(token)


class TestBox:
    def test_other_associated_data(self) -> None:
        """A box opens with what it was bound to, and the refusal carries no cause that could be printed."""
        cipher = AESGCM(bytes(32))
        box = cipher.encrypt(NONCE, b"A", b"here")
        assert open_box(cipher, NONCE, box, b"here") == b"A"
        with pytest.raises(SealBroken) as refused:
            open_box(cipher, NONCE, box, b"there")
        assert refused.value.__suppress_context__
