"""What every key provider must do: one suite, and a new provider is one more ground in ``GROUNDS``.

A ground makes the provider, another one with another key, and the faults that its kind can have: each is a state of the world
that is put right again, with the words in which the operator hears of it.
"""

import json
import os
import pickle
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final, Protocol

import pytest
from structlog.testing import capture_logs

from app.domain.encoding import encode
from app.domain.words import Mode
from app.errors import KeyUnavailable
from app.sealing.providers import KeyFileProvider, KeyProvider
from app.sealing.ring import KeyRing
from app.sealing.vault import TokenFile, VaultTransitProvider
from tests import harness
from tests.harness import STUDY, House, expect
from tests.sealing.builders import DEPLOYMENT, SeededEntropy, secret_of
from tests.transit import TOKEN, transit_engine

SECRET: Final = secret_of("deployment secret")
CONTEXT: Final = b"deployment"
CANARY: Final = "canary-7Q2M-answer"
Fault = Callable[[], AbstractContextManager[None]]


class Ground(Protocol):
    """A provider and its world."""

    faults: Mapping[str, tuple[Fault, str]]
    secrets: tuple[str, ...]
    """Texts that may stand in no message, log line or answer."""

    def provider(self) -> KeyProvider: ...

    def provider_of_another_key(self) -> KeyProvider: ...

    def settings(self) -> dict[str, Any]: ...

    def moved_to(self, house: House) -> None: ...


class KeyFileGround:
    """The key file."""

    def __init__(self, folder: Path, _stack: ExitStack) -> None:
        self._folder = folder
        self.path = folder / "the.key"
        KeyFileProvider.create(self.path, secret_of("key file"))
        self.secrets: tuple[str, ...] = (b64encode(secret_of("key file")).decode(), CANARY)
        whole = self.path.read_bytes()
        self.faults: Mapping[str, tuple[Fault, str]] = {
            "missing": (self.missing, "cannot be read: No such file or directory"),
            **{
                name: (self.holding(content), "is not a key file of this service")
                for name, content in {
                    "empty": b"",
                    "truncated": whole[:-9],
                    "cut in the header": whole[:7],
                    "text": CANARY.encode(),
                    "zeros": bytes(62),
                    "a page of something": os.urandom(4096),
                }.items()
            },
            "another key": (
                self.holding(b"snose key file v1\n" + b64encode(secret_of("other")) + b"\n"),
                "does not open the secret of this deployment",
            ),
        }

    def provider(self) -> KeyProvider:
        return KeyFileProvider(self.path, SeededEntropy(os.urandom(8)))

    def provider_of_another_key(self) -> KeyProvider:
        path = self._folder / "another.key"
        KeyFileProvider.create(path, secret_of("another"))
        return KeyFileProvider(path, SeededEntropy())

    def settings(self) -> dict[str, Any]:
        return {}

    def moved_to(self, house: House) -> None:
        """Have the faults befall the key file of a house."""
        self.path = house.settings.key_file

    @contextmanager
    def missing(self) -> Iterator[None]:
        aside = self.path.with_name("aside")
        self.path.rename(aside)
        yield
        aside.rename(self.path)

    def holding(self, content: bytes) -> Fault:
        @contextmanager
        def fault() -> Iterator[None]:
            before = self.path.read_bytes()
            self.path.write_bytes(content)
            yield
            self.path.write_bytes(before)

        return fault


def http(body: bytes, status: str = "200 OK", length: int | None = None) -> bytes:
    """Return an answer as it goes over the wire; ``length`` may lie."""
    size = len(body) if length is None else length
    return f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {size}\r\n\r\n".encode() + body


def decrypted(plaintext: object) -> bytes:
    return http(json.dumps({"data": {"plaintext": plaintext, "ciphertext": plaintext}, "note": CANARY}).encode())


GARBAGE: Final = {
    "nothing of HTTP": b"\x00\xff" * 50,
    "a hymn": b"And did those feet in ancient time\r\n\r\n" + CANARY.encode(),
    "no body": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    "a web page": http(b"<html>" + CANARY.encode()),
    "cut short": http(b'{"data": {"plaintext": "' + b64encode(SECRET)[:9], length=400),
    "cut in a chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\n{",
    "chunks of nonsense": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{",
    "headers without end": b"HTTP/1.1 200 OK\r\n" + b"X-A: b\r\n" * 500,
    "one endless header": b"HTTP/1.1 200 OK\r\nX-A: " + b"a" * 100_000,
    "not UTF-8": http(b'{"data": {"plaintext": "\xff\xfe"}}'),
    "a list": http(b"[]"),
    "null": http(b"null"),
    "another shape": http(json.dumps({"plaintext": CANARY}).encode()),
    "a number": decrypted(7),
    "no base64": decrypted(CANARY),
    "loose base64": decrypted(b64encode(SECRET).decode() + "\n"),
    "accents": decrypted("é" * 44),
    "a deep nest": http(b"[" * 60_000),
    "without end": http(b'{"data": "' + b"a" * 70_000 + b'"}'),
}


class TransitGround:
    """The transit engine of Vault or OpenBao."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.engine = stack.enter_context(transit_engine())
        self.token_file = folder / "token"
        self.token_file.write_text(TOKEN + "\n")
        self.token_file.chmod(0o600)
        self.secrets: tuple[str, ...] = (TOKEN, CANARY)
        self.faults: Mapping[str, tuple[Fault, str]] = {
            "unreachable": (self.engine.unreachable, "cannot be reached: Connection refused"),
            "silent": (self.saying(http(b"{}"), pause=3.0), "cannot be reached: no answer in time"),
            "dripping": (self.saying(http(b"{" + b" " * 900), pause=0.02), "cannot be reached: no answer in time"),
            "hanging up": (self.saying(b""), "cannot be reached: the connection broke off"),
            "sealed": (self.state(is_sealed=True), "is sealed or under maintenance"),
            "refusing the token": (self.state(tokens=set()), "refuses the service's token"),
            "of another mount": (self.state(mount="elsewhere"), "knows no such engine or key"),
            "with another key": (
                self.state(keys={"snose": {1: bytes(32)}}),
                "does not open the secret of this deployment",
            ),
            "without the key": (self.state(keys={}), "does not open the secret of this deployment"),
            "past this version": (
                self.state(least_version={"snose": 2}),
                "does not open the secret of this deployment",
            ),
            "failing": (self.saying(http(CANARY.encode(), "500 Oh")), "answers with status 500"),
            "moved": (
                self.saying(http(b"", "307 Away\r\nLocation: http://127.0.0.1:1/")),
                "answers with status 307",
            ),
            **{
                name: (self.saying(content), "does not answer as a key provider does")
                for name, content in GARBAGE.items()
            },
        }

    def provider(self) -> KeyProvider:
        known_by = TokenFile(self.token_file)
        return VaultTransitProvider(self.engine.address, known_by, answer_seconds=0.25)

    def provider_of_another_key(self) -> KeyProvider:
        self.engine.new_key("another")
        return VaultTransitProvider(self.engine.address, TokenFile(self.token_file), key_name="another")

    def settings(self) -> dict[str, Any]:
        return {
            "key_provider": "vault",
            "vault_addr": self.engine.address,
            "vault_token_file": self.token_file,
        }

    def moved_to(self, _house: House) -> None:
        """The engine serves whoever asks."""

    def saying(self, content: bytes, pause: float = 0.0) -> Fault:
        return self.state(says=content, pause=pause)

    def state(self, **changed: object) -> Fault:
        @contextmanager
        def fault() -> Iterator[None]:
            before = {name: getattr(self.engine, name) for name in changed}
            for name, value in changed.items():
                setattr(self.engine, name, value)
            yield
            for name, value in before.items():
                setattr(self.engine, name, value)

        return fault


GROUNDS: Final[Mapping[str, Callable[[Path, ExitStack], Ground]]] = {
    "key file": KeyFileGround,
    "transit": TransitGround,
}


@pytest.fixture(params=GROUNDS)
def ground(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ground]:
    with ExitStack() as stack:
        yield GROUNDS[str(request.param)](tmp_path, stack)


class TestEveryProvider:
    def test_unwrapped(self, ground: Ground) -> None:
        """What was wrapped is unwrapped, also by the provider of another process. [F1]"""
        wrapped = ground.provider().wrap(SECRET, CONTEXT)
        assert ground.provider().unwrap(wrapped, CONTEXT) == SECRET

    @pytest.mark.parametrize("context", [b"", b"deploymenu", b"deployment "])
    def test_other_context(self, ground: Ground, context: bytes) -> None:
        """A secret opens in the deployment and mode it was wrapped for. [A10]"""
        provider = ground.provider()
        with pytest.raises(KeyUnavailable, match="does not open"):
            provider.unwrap(provider.wrap(SECRET, CONTEXT), context)

    def test_other_key(self, ground: Ground) -> None:
        """Another key opens nothing: a backup without the key is noise. [F4]"""
        wrapped = ground.provider().wrap(SECRET, CONTEXT)
        with pytest.raises(KeyUnavailable, match="does not open"):
            ground.provider_of_another_key().unwrap(wrapped, CONTEXT)

    def test_changed(self, ground: Ground) -> None:
        """Nothing that was changed or cut short is unwrapped. [T10]"""
        provider = ground.provider()
        wrapped = provider.wrap(SECRET, CONTEXT)
        prefix = max(wrapped.rindex("."), 0) if "." in wrapped else wrapped.rindex(":")
        changes = {wrapped[:at] for at in range(len(wrapped))} | {wrapped + "A", "", "garbage", wrapped + "\n"}
        for at in range(prefix, len(wrapped)):
            changes |= {wrapped[:at] + other + wrapped[at + 1 :] for other in "AB+\u00e9"}
        for change in changes - {wrapped}:
            with pytest.raises(KeyUnavailable):
                provider.unwrap(change, CONTEXT)

    def test_twice(self, ground: Ground) -> None:
        """The same secret wrapped twice shows no likeness."""
        provider = ground.provider()
        assert provider.wrap(SECRET, CONTEXT) != provider.wrap(SECRET, CONTEXT)

    def test_printed(self, ground: Ground) -> None:
        """Neither name, repr, wrapped text nor refusal shows a secret. [house rule 6]"""
        provider = ground.provider()
        wrapped = provider.wrap(SECRET, CONTEXT)
        with pytest.raises(KeyUnavailable) as refused:
            provider.unwrap(wrapped, b"other")
        for text in (provider.name, repr(provider), repr(vars(provider)), wrapped, str(refused.value)):
            for secret in (*ground.secrets, b64encode(SECRET).decode(), SECRET.hex(), repr(SECRET)[2:-1]):
                assert secret not in text

    def test_pickled(self, ground: Ground) -> None:
        """A provider is not pickled. [custody: in memory]"""
        with pytest.raises(TypeError, match="not pickled"):
            pickle.dumps(ground.provider())

    def test_every_fault(self, ground: Ground) -> None:
        """A wrong, missing, unreachable or babbling provider is told in plain words, and what it said is not. [done when 6]"""
        wrapped = ground.provider().wrap(SECRET, CONTEXT)
        for name, (fault, words) in ground.faults.items():
            with fault(), pytest.raises(KeyUnavailable) as refused:
                ground.provider().unwrap(wrapped, CONTEXT)
            assert words in refused.value.message, name
            assert not any(secret in refused.value.message for secret in ground.secrets), name
            assert ground.provider().unwrap(wrapped, CONTEXT) == SECRET, name

    def test_wrong_length(self, ground: Ground) -> None:
        """What is no key of 256 bits is not used as one. [F2]"""
        context = encode("snose deployment secret", DEPLOYMENT, Mode.TEST)
        wrapped = ground.provider().wrap(SECRET[:31], context)
        with pytest.raises(KeyUnavailable, match="wrong length"):
            KeyRing(ground.provider(), DEPLOYMENT, Mode.TEST, wrapped, SeededEntropy())

    def test_from_one_to_the_other(self, ground: Ground, tmp_path: Path) -> None:
        """The deployment secret moves from any provider to any other, and no sealed value changes. [F4, CUS-08]"""
        folder = tmp_path / "other"
        folder.mkdir()
        with ExitStack() as stack:
            for make in GROUNDS.values():
                to = make(folder, stack).provider()
                wrapped = KeyRing.create_secret(ground.provider(), DEPLOYMENT, Mode.TEST, SECRET)
                moved = KeyRing.rewrap_deployment_secret(ground.provider(), to, DEPLOYMENT, Mode.TEST, wrapped)
                before = KeyRing(ground.provider(), DEPLOYMENT, Mode.TEST, wrapped, SeededEntropy())
                after = KeyRing(to, DEPLOYMENT, Mode.TEST, moved, SeededEntropy())
                assert before.purpose_key("tokens") == after.purpose_key("tokens")
                with pytest.raises(KeyUnavailable):
                    to.unwrap(wrapped, CONTEXT)


def operations(house: House) -> list[tuple[str, str]]:
    """Return every operation of the OpenAPI document but the health checks."""
    document = house.client.get("/openapi.json").json()
    return [
        (method.upper(), path.replace("{", "").replace("}", ""))
        for path, methods in document["paths"].items()
        for method in methods
        if path not in {"/livez", "/readyz"}
    ]


@pytest.mark.parametrize("database_kind", ["sqlite"])
def test_service_without_its_provider(ground: Ground, migrated_database_url: str, tmp_path: Path) -> None:
    """It starts sealed: health answers, all else is 503, nothing leaks; it unseals at a restart. [F2, done when 6; T26]"""
    with harness.house(migrated_database_url, tmp_path, **ground.settings()) as house:
        ground.moved_to(house)
        house.register_study()
        asked = operations(house)
        assert len(asked) > 50
        # Those that wait are told above, by a provider with less patience; of the garbage every sixth is enough here.
        told_above = {name for name, (_, words) in ground.faults.items() if "in time" in words}
        told_above |= {name for number, name in enumerate(GARBAGE) if number % 6}
        faults = {name: one for name, one in ground.faults.items() if name not in told_above}
        for ordinal, (name, (fault, words)) in enumerate(faults.items()):
            with fault(), capture_logs() as logs:
                house.restart()
                # All operations under a few faults, one in seven under each of the others.
                answers = [
                    house.client.request(method, path) for method, path in asked[ordinal % 7 :: 1 if ordinal < 3 else 7]
                ]
                assert {answer.status_code for answer in answers} == {503}, name
                # At the door of code breaks it says whom to ask instead (rule D4).
                assert {answer.json()["code"] for answer in answers} <= {"sealed", "reveal_unavailable"}, name
                assert house.client.get("/livez").status_code == 200
                assert house.client.get("/readyz").status_code == 503
            (because,) = [line["because"] for line in logs if line["event"] == "sealed"]
            assert words in because, name
            said = because + repr(logs) + "".join(answer.text + repr(answer.headers) for answer in answers)
            assert not any(secret in said for secret in ground.secrets), name
        house.restart()
        assert house.client.get("/readyz").status_code == 200
        assert expect(house.study_admins[STUDY].get(f"/v1/studies/{STUDY}"), 200)["study_code"] == STUDY


@pytest.mark.parametrize("database_kind", ["sqlite"])
def test_service_with_a_secret_that_is_none_of_its_own(migrated_database_url: str, tmp_path: Path) -> None:
    """Garbage that looks like a secret opens no key, and the service stays sealed. [F2, done when 6]"""
    with ExitStack() as stack:
        ground = TransitGround(tmp_path, stack)
        with harness.house(migrated_database_url, tmp_path, **ground.settings()) as house:
            for content, words in (
                (bytes(range(32)), "do not open with the secret that the key provider gave"),
                (bytes(31), "a deployment secret of a wrong length"),
            ):
                with ground.saying(decrypted(b64encode(content).decode()))(), capture_logs() as logs:
                    house.restart()
                assert [words in line["because"] for line in logs if line["event"] == "sealed"] == [True]
                assert house.client.get("/readyz").status_code == 503
