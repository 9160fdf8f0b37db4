"""Vault and OpenBao transit: what is its own; what every provider must do stands in ``test_providers_conformance``."""

import socket
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Final

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from app.errors import KeyUnavailable, UnsafeSetting
from app.sealing.vault import AppRole, TokenFile, VaultTransitProvider, _ended_after
from app.settings import Settings
from app.surroundings import key_provider
from tests.sealing.builders import SeededEntropy, secret_of
from tests.transit import ROLE_ID, SECRET_ID, TOKEN, Engine, transit_engine

SECRET: Final = secret_of("deployment secret")
CONTEXT: Final = b"deployment"


@pytest.fixture
def vault() -> Iterator[Engine]:
    with transit_engine() as engine:
        yield engine


def private(folder: Path, name: str, content: str, mode: int = 0o600) -> Path:
    """Return a file with a secret."""
    path = folder / name
    path.write_text(content)
    path.chmod(mode)
    return path


def by_token(vault: Engine, folder: Path, *, ca_file: Path | None = None) -> VaultTransitProvider:
    token_file = private(folder, "token", TOKEN)
    return VaultTransitProvider(vault.address, TokenFile(token_file), ca_file=ca_file, answer_seconds=2.0)


def certificate(folder: Path, name: str) -> Path:
    """Return a file with a new certificate of the loopback address and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = folder / f"{name}.pem"
    path.write_bytes(
        signed.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return path


class TestKeyVersions:
    def test_rotated(self, vault: Engine, tmp_path: Path) -> None:
        """A rotated key opens what its earlier versions wrapped, until they are retired. [F4, T26]"""
        provider = by_token(vault, tmp_path)
        first = provider.wrap(SECRET, CONTEXT)
        vault.rotate("snose")
        second = provider.wrap(SECRET, CONTEXT)
        assert (first[:9], second[:9]) == ("vault:v1:", "vault:v2:")
        assert provider.unwrap(first, CONTEXT) == SECRET
        vault.forget_versions_below("snose", 2)
        assert provider.unwrap(second, CONTEXT) == SECRET
        with pytest.raises(KeyUnavailable, match="does not open"):
            provider.unwrap(first, CONTEXT)

    def test_destroyed(self, vault: Engine, tmp_path: Path) -> None:
        """After the key was destroyed, what it wrapped is noise. [F4]"""
        provider = by_token(vault, tmp_path)
        wrapped = provider.wrap(SECRET, CONTEXT)
        vault.destroy("snose")
        with pytest.raises(KeyUnavailable, match="does not open"):
            provider.unwrap(wrapped, CONTEXT)


class TestWrap:
    def test_without_associated_data(self, vault: Engine, tmp_path: Path) -> None:
        """An engine that passes over associated data is found out before anything hangs on it. [A10]"""
        vault.knows_associated_data = False
        with pytest.raises(KeyUnavailable, match="does not bind what it wraps to this deployment"):
            by_token(vault, tmp_path).wrap(SECRET, CONTEXT)

    def test_refused(self, vault: Engine, tmp_path: Path) -> None:
        """A key that cannot do it is told, with the type that can."""
        vault.keys = {}
        with pytest.raises(KeyUnavailable, match="does not take the secret: its key must be of the type aes256-gcm96"):
            by_token(vault, tmp_path).wrap(SECRET, CONTEXT)

    @pytest.mark.parametrize(
        "ciphertext", ["vault:v1:", "vault:v0:AAAA", "vault:v1:AAAA", "v1.file.AAAA.AAAA", "vault:v1:AAA"]
    )
    def test_not_what_was_wrapped(self, vault: Engine, tmp_path: Path, ciphertext: str) -> None:
        """What comes back is unwrapped and compared before it is kept: a lost secret is a lost list. [F4]"""
        body = b'{"data": {"ciphertext": "%s", "plaintext": "AAAA"}}' % ciphertext.encode()
        vault.says = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
        with pytest.raises(KeyUnavailable, match="does not answer as a key provider does"):
            by_token(vault, tmp_path).wrap(SECRET, CONTEXT)

    def test_text_of_another_kind(self, vault: Engine, tmp_path: Path) -> None:
        """What transit never wrote is not sent there."""
        with pytest.raises(KeyUnavailable, match="does not open"):
            by_token(vault, tmp_path).unwrap("v1.file.AAAA.AAAA", CONTEXT)
        assert vault.asked == []


class TestBecomingKnown:
    def by_role(self, vault: Engine, folder: Path, secret_id: str = SECRET_ID) -> VaultTransitProvider:
        return VaultTransitProvider(vault.address, AppRole(ROLE_ID, private(folder, "secret-id", secret_id)))

    def test_by_role(self, vault: Engine, tmp_path: Path) -> None:
        """With a role the service signs in anew at each use: no long-lived token lies anywhere."""
        provider = self.by_role(vault, tmp_path)
        assert provider.unwrap(provider.wrap(SECRET, CONTEXT), CONTEXT) == SECRET
        assert vault.asked.count("/v1/auth/approle/login") == 2

    def test_by_a_wrong_secret_id(self, vault: Engine, tmp_path: Path) -> None:
        """A role that is not known is told as such, without its secret id."""
        with pytest.raises(KeyUnavailable, match="does not know the service's role and secret id") as refused:
            self.by_role(vault, tmp_path, "canary").wrap(SECRET, CONTEXT)
        assert "canary" not in refused.value.message

    @pytest.mark.parametrize(
        "body", [b'{"auth": {"client_token": "a\\r\\nb"}}', b'{"auth": {"client_token": ""}}', b"{}"]
    )
    def test_given_no_token(self, vault: Engine, tmp_path: Path, body: bytes) -> None:
        """What is no token never becomes a header."""
        vault.says = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
        with pytest.raises(KeyUnavailable, match="does not answer as a key provider does"):
            self.by_role(vault, tmp_path).wrap(SECRET, CONTEXT)

    @pytest.mark.parametrize("mode", [0o640, 0o604, 0o644])
    def test_token_open_to_others(self, vault: Engine, tmp_path: Path, mode: int) -> None:
        """A token that others can read is refused like a key file. [F2]"""
        token_file = private(tmp_path, "loose", TOKEN, mode)
        with pytest.raises(UnsafeSetting, match=r"token file .* is open to others") as refused:
            VaultTransitProvider(vault.address, TokenFile(token_file)).wrap(SECRET, CONTEXT)
        assert TOKEN not in refused.value.message
        assert vault.asked == []

    @pytest.mark.parametrize("content", ["", "two words", "a\r\nX-Other: b", "\x00", "é"])
    def test_token_of_garbage(self, vault: Engine, tmp_path: Path, content: str) -> None:
        """A file that holds no one word is told, and not sent."""
        token_file = private(tmp_path, "garbage", content)
        with pytest.raises(KeyUnavailable, match="does not hold one word"):
            VaultTransitProvider(vault.address, TokenFile(token_file)).wrap(SECRET, CONTEXT)


class TestTransport:
    def test_tls(self, tmp_path: Path) -> None:
        """The server is proved to the authority that the settings name, and to no other."""
        ours, foreign = certificate(tmp_path, "ours"), certificate(tmp_path, "foreign")
        with transit_engine(ours) as vault:
            provider = by_token(vault, tmp_path, ca_file=ours)
            assert provider.unwrap(provider.wrap(SECRET, CONTEXT), CONTEXT) == SECRET
            assert provider.weakness is None
            asked = len(vault.asked)
            for ca_file in (foreign, None):
                with pytest.raises(KeyUnavailable, match="does not prove who it is"):
                    by_token(vault, tmp_path, ca_file=ca_file).wrap(SECRET, CONTEXT)
            assert len(vault.asked) == asked

    def test_tls_to_a_server_without(self, vault: Engine, tmp_path: Path) -> None:
        """A server that speaks no TLS is none that can be reached by it."""
        vault.address = vault.address.replace("http:", "https:")
        with pytest.raises(KeyUnavailable, match="cannot be reached"):
            by_token(vault, tmp_path).wrap(SECRET, CONTEXT)

    @pytest.mark.parametrize("content", [None, "not a certificate"])
    def test_authority_of_garbage(self, tmp_path: Path, content: str | None) -> None:
        """A CA file that is missing or none is told."""
        ca_file = tmp_path / "ca.pem"
        if content is not None:
            ca_file.write_text(content)
        provider = VaultTransitProvider(
            "https://127.0.0.1:1", TokenFile(private(tmp_path, "token", TOKEN)), ca_file=ca_file
        )
        with pytest.raises(KeyUnavailable, match=r"The CA file .* cannot be read or holds no certificate"):
            provider.wrap(SECRET, CONTEXT)

    def test_redirected(self, vault: Engine, tmp_path: Path) -> None:
        """No redirect is followed: it would carry the token to another host."""
        with transit_engine() as other:
            location = f"Location: {other.address}/v1/transit/encrypt/snose".encode()
            vault.says = b"HTTP/1.1 307 Moved\r\n" + location + b"\r\nContent-Length: 0\r\n\r\n"
            with pytest.raises(KeyUnavailable, match="answers with status 307"):
                by_token(vault, tmp_path).wrap(SECRET, CONTEXT)
            assert other.asked == []

    @pytest.mark.parametrize(
        "address",
        ["", "vault.example.org:8200", "ftp://h", "https://", "https://h/x", "https://h?a=b", "https://u:p@h", "http://h:0",
         "http://h:99999", "https://h#f"],
    )  # fmt: skip
    def test_impossible_address(self, tmp_path: Path, address: str) -> None:
        """An address that is none is refused at once. [F2]"""
        with pytest.raises(UnsafeSetting, match="SNOSE_VAULT_ADDR"):
            VaultTransitProvider(address, TokenFile(tmp_path / "token"))

    @pytest.mark.parametrize(
        ("mount", "key"), [("", "snose"), ("../x", "s/x"), ("transit", "a b"), ("transit", "a/b"), ("a?b", "c")]
    )
    def test_impossible_names(self, tmp_path: Path, mount: str, key: str) -> None:
        """Names become paths, so they hold nothing but what a path's parts hold."""
        with pytest.raises(UnsafeSetting, match="SNOSE_VAULT_MOUNT and SNOSE_VAULT_KEY"):
            VaultTransitProvider("https://h", TokenFile(tmp_path / "token"), mount, key)

    @pytest.mark.parametrize(
        ("address", "is_weak"),
        [
            ("http://vault.example.org:8200", True),
            ("http://192.0.2.7", True),
            ("https://vault.example.org", False),
            ("http://127.0.0.1:8200", False),
            ("http://[::1]:8200", False),
            ("http://localhost:8200", False),
        ],
    )
    def test_plain_http(self, tmp_path: Path, address: str, is_weak: bool) -> None:
        """Plain HTTP to another machine is a weakness, which live mode refuses. [F2]"""
        weakness = VaultTransitProvider(address, TokenFile(tmp_path / "token")).weakness
        assert (weakness is not None) == is_weak
        assert weakness is None or "plain HTTP" in weakness


class TestSettings:
    @pytest.mark.parametrize(
        ("given", "name"),
        [
            ({"vault_token_file": "t"}, "vault:https://h:1/transit/snose"),
            (
                {"vault_role_id": "r", "vault_secret_id_file": "s", "vault_mount": "keys/transit", "vault_key": "k"},
                "vault:https://h:1/keys/transit/k",
            ),
        ],
    )
    def test_provider(self, given: dict[str, str], name: str) -> None:
        """Every setting of the provider is honoured."""
        settings = Settings.model_validate({"key_provider": "vault", "vault_addr": "https://h:1", **given})
        assert key_provider(settings, SeededEntropy()).name == name

    @pytest.mark.parametrize(
        "given",
        [
            {},
            {"vault_role_id": "r"},
            {"vault_secret_id_file": "s"},
            {"vault_token_file": "t", "vault_role_id": "r"},
            {"vault_token_file": "t", "vault_role_id": "r", "vault_secret_id_file": "s"},
        ],
    )
    def test_half_said(self, given: dict[str, str]) -> None:
        """One way to become known, and the whole of it. [F2]"""
        settings = Settings.model_validate({"key_provider": "vault", "vault_addr": "https://h:1", **given})
        with pytest.raises(UnsafeSetting, match="SNOSE_VAULT_TOKEN_FILE, or SNOSE_VAULT_ROLE_ID"):
            key_provider(settings, SeededEntropy())


def test_a_call_that_was_ended_took_too_long() -> None:
    """Whatever it looks like from inside, it is told as what it was: the provider dragged on. [D5]"""
    ours, theirs = socket.socketpair()
    theirs.settimeout(30)

    def drag_on() -> None:
        with _ended_after(ours, 0.01):
            assert theirs.recv(1) == b"", "it was not ended"
            raise ConnectionResetError

    with ours, theirs, pytest.raises(TimeoutError):
        drag_on()
