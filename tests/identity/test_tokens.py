"""Tokens and client secrets: form, digest, refusal of garbage."""

import hashlib
import re
import string
from collections.abc import Callable

import pytest

from app.domain.entropy import Entropy
from app.errors import NotAuthenticated, WrongCredentials
from app.identity.tokens import (
    client_secret_digest,
    new_client_secret,
    new_token,
    token_digest,
    verify_client_secret,
)
from tests.identity.builders import GivenEntropy, SeededEntropy

KINDS = [(new_token, token_digest, "snose_"), (new_client_secret, client_secret_digest, "snose_client_")]


@pytest.mark.parametrize(("new", "digest", "prefix"), KINDS, ids=["token", "client secret"])
class TestBoth:
    def test_form(self, new: Callable[[Entropy], str], digest: Callable[[str], bytes], prefix: str) -> None:
        """A token is a prefix and 256 random bits; its SHA-256 is what is stored. (rule F1)"""
        entropy = SeededEntropy()
        token = new(entropy)
        assert re.fullmatch(prefix + r"[A-Za-z0-9_-]{43}", token)
        assert [size for _, size in entropy.drawn] == [32]
        assert digest(token) == hashlib.sha256(token.encode()).digest()
        assert len({new(entropy) for _ in range(1000)}) == 1000

    @pytest.mark.parametrize("byte", [0, 255, 251])
    def test_extremes(
        self, new: Callable[[Entropy], str], digest: Callable[[str], bytes], prefix: str, byte: int
    ) -> None:
        """Every 256 bits make a well-formed token."""
        assert len(digest(new(GivenEntropy(bytes([byte]))))) == 32

    def test_garbage(self, new: Callable[[Entropy], str], digest: Callable[[str], bytes], prefix: str) -> None:
        """What cannot be one is refused before anything is looked up, and not repeated. (rule G1)"""
        token = new(SeededEntropy())
        garbage = {
            "",
            prefix,
            token[:-1],
            token + "A",
            token + "\n",
            " " + token,
            token.replace(prefix, "", 1),
            token.replace(prefix, prefix.upper(), 1),
            token[:-1] + "+",
            token[:-1] + "\u00e9",
            token[:-1] + "\ud800",
            token[:10] + "=" + token[11:],
            "x" * 100_000,
        }
        # The last character carries four bits: its other spellings would be read as the same token.
        garbage |= {token[:-1] + last for last in string.ascii_letters + string.digits + "-_"} - {
            token[:-1] + last for last in "AEIMQUYcgkosw048"
        }
        assert len(garbage) == 13 + 48
        for text in garbage:
            with pytest.raises(NotAuthenticated) as refused:
                digest(text)
            assert len(text) < 10 or text not in str(refused.value)


class TestKinds:
    def test_one_for_the_other(self) -> None:
        """A client secret is no token and a token no client secret."""
        with pytest.raises(NotAuthenticated):
            token_digest(new_client_secret(SeededEntropy()))
        with pytest.raises(WrongCredentials):
            client_secret_digest(new_token(SeededEntropy()))


class TestVerifyClientSecret:
    def test_right(self) -> None:
        """The client's own secret passes."""
        secret = new_client_secret(SeededEntropy())
        verify_client_secret(secret, client_secret_digest(secret))

    def test_wrong(self) -> None:
        """A wrong secret, an unknown client and garbage are refused in the same words. (USR-10)"""
        entropy = SeededEntropy()
        secret, other = new_client_secret(entropy), new_client_secret(entropy)
        words = set()
        for sent, kept in (
            (other, client_secret_digest(secret)),
            (secret, None),
            ("garbage", client_secret_digest(secret)),
            ("garbage", None),
            (secret, client_secret_digest(secret)[:-1]),
            (secret, b""),
        ):
            with pytest.raises(WrongCredentials) as refused:
                verify_client_secret(sent, kept)
            words.add(str(refused.value))
        assert len(words) == 1
