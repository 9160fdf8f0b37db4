"""The second key provider: the transit engine of Vault or OpenBao, so that the key that wraps never enters the service.

Three calls of its HTTP API: ``auth/approle/login`` (unless a token file is named), ``<mount>/encrypt/<key>`` and
``<mount>/decrypt/<key>``. The context goes along as ``associated_data``, which the AEAD types of transit keys
(``aes256-gcm96`` and its siblings) bind to what they encrypt. Transit keeps versions of its key: a wrapped secret names the
one it was wrapped by, and ``min_decryption_version`` retires old ones.

The standard library's client is enough for this: it follows no redirect (which would carry the token to another host), asks
no proxy, and logs nothing.
"""

import hmac
import json
import re
import socket
import ssl
from binascii import Error as NotBase64
from binascii import a2b_base64, b2a_base64
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from ipaddress import ip_address
from pathlib import Path
from threading import Event, Timer
from typing import Final, NoReturn, TypeVar
from urllib.parse import SplitResult, urlsplit

import msgspec

from app.errors import KeyUnavailable, UnsafeSetting
from app.sealing.files import read_private_file

ANSWER_SECONDS: Final = 5.0
"""How long one call of the provider may take, from the connection to the last byte of the answer."""

_LONGEST_ANSWER: Final = 65536
_LONGEST_TOKEN: Final = 4096
_PATH: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}(?:/[A-Za-z0-9_.-]{1,64})*")
_WRAPPED: Final = re.compile(r"vault:v[1-9][0-9]{0,8}:([A-Za-z0-9+/=]{1,4096})")
_TOKEN: Final = re.compile(r"[!-~]+")
_OK: Final = 200
_REFUSED: Final = 400
_PROBE: Final = b"is this bound?"


@dataclass(frozen=True, slots=True)
class TokenFile:
    """A token that lies in a file (0600), as an agent of Vault keeps it there and renews it."""

    path: Path


@dataclass(frozen=True, slots=True)
class AppRole:
    """A role of the service, and the file (0600) with its secret id; each use of the provider signs in anew."""

    role_id: str
    secret_id_file: Path


_Shape = TypeVar("_Shape", bound=msgspec.Struct)


class _Encrypted(msgspec.Struct):
    ciphertext: str


class _Decrypted(msgspec.Struct):
    plaintext: str


class _Wrapping(msgspec.Struct):
    data: _Encrypted


class _Unwrapping(msgspec.Struct):
    data: _Decrypted


class _Login(msgspec.Struct):
    client_token: str


class _SignedIn(msgspec.Struct):
    auth: _Login


class VaultTransitProvider:
    """Wraps by a named key of a transit engine; the key stays there.

    Args: the address (``https://host:8200``), how the service becomes known there, the mount of the engine and the name of
    its key, the file of the authority that the server's certificate is proved to (the system's own when None), and how long one
    call may take. Raises ``UnsafeSetting`` for an address or a name that cannot be one. Nothing is sent before it is used.

    Wrapping and unwrapping raise ``KeyUnavailable`` for a provider that cannot be reached, refuses, is sealed or answers garbage;
    ``UnsafeSetting`` for a token file that others can read. No message holds a token or an answer.
    """

    def __init__(
        self,
        address: str,
        known_by: TokenFile | AppRole,
        mount: str = "transit",
        key_name: str = "snose",
        ca_file: Path | None = None,
        answer_seconds: float = ANSWER_SECONDS,
    ) -> None:
        self._url = _address(address)
        if not _PATH.fullmatch(mount) or not _PATH.fullmatch(key_name) or "/" in key_name:
            raise UnsafeSetting("SNOSE_VAULT_MOUNT and SNOSE_VAULT_KEY are names as Vault's own paths have them.")
        self._known_by = known_by
        self._mount = mount
        self._key_name = key_name
        self._ca_file = ca_file
        self._answer_seconds = answer_seconds

    def __repr__(self) -> str:
        return f"<VaultTransitProvider {self.name}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("A key provider is not pickled or copied.")

    @property
    def name(self) -> str:
        """Return the kind of provider, its address and the key, for the operator."""
        return f"vault:{self._where}/{self._mount}/{self._key_name}"

    @property
    def weakness(self) -> str | None:
        """Return what is wrong with plain HTTP to another machine: token and deployment secret would travel in clear."""
        if self._url.scheme == "https" or _is_loopback(str(self._url.hostname)):
            return None
        return f"The key provider at {self._where} is spoken to in plain HTTP."

    @property
    def _where(self) -> str:
        return f"{self._url.scheme}://{self._url.netloc}"

    def wrap(self, secret: bytes, context: bytes) -> str:
        """Return ``secret`` wrapped under the newest version of the provider's key and bound to ``context``.

        What comes back is unwrapped and compared, and must not open with another context: an engine too old to know
        ``associated_data`` passes over it in silence.
        """
        token = self._token()
        body = {"plaintext": _to_base64(secret), "associated_data": _to_base64(context)}
        status, answer = self._ask(f"{self._mount}/encrypt/{self._key_name}", body, token)
        self._refuse_status(status)
        wrapped = self._read(answer, _Wrapping).data.ciphertext
        if not _is_wrapped(wrapped) or not hmac.compare_digest(self._unwrapped(wrapped, context, token) or b"", secret):
            raise self._garbage()
        if self._unwrapped(wrapped, context + _PROBE, token) is not None:
            message = f"The key provider at {self._where} does not bind what it wraps to this deployment: {_AEAD}"
            raise KeyUnavailable(message)
        return wrapped

    def unwrap(self, wrapped: str, context: bytes) -> bytes:
        """Return what was wrapped. Raises ``KeyUnavailable`` for another key, context or wrapped text."""
        # What is no text of transit is not sent there, and base64 has spellings that its decoder would forgive.
        secret = self._unwrapped(wrapped, context, self._token()) if _is_wrapped(wrapped) else None
        if secret is None:
            message = f"The key provider at {self._where} does not open the secret of this deployment."
            raise KeyUnavailable(message)
        return secret

    def _unwrapped(self, wrapped: str, context: bytes, token: str) -> bytes | None:
        """Return what was wrapped; None when the provider says that key, context and text do not belong together."""
        body = {"ciphertext": wrapped, "associated_data": _to_base64(context)}
        status, answer = self._ask(f"{self._mount}/decrypt/{self._key_name}", body, token)
        if status == _REFUSED:
            return None
        self._refuse_status(status)
        secret = _from_base64(self._read(answer, _Unwrapping).data.plaintext)
        if secret is None:
            raise self._garbage()
        return secret

    # -- becoming known ------------------------------------------------------------------------------------------------

    def _token(self) -> str:
        if isinstance(self._known_by, TokenFile):
            return _read_word(self._known_by.path, "token file")
        body = {
            "role_id": self._known_by.role_id,
            "secret_id": _read_word(self._known_by.secret_id_file, "secret id file"),
        }
        status, answer = self._ask("auth/approle/login", body, None)
        if status == _REFUSED:
            message = f"The key provider at {self._where} does not know the service's role and secret id."
            raise KeyUnavailable(message)
        self._refuse_status(status)
        token = self._read(answer, _SignedIn).auth.client_token
        if not _TOKEN.fullmatch(token):
            raise self._garbage()
        return token

    # -- asking --------------------------------------------------------------------------------------------------------

    def _ask(self, path: str, body: Mapping[str, str], token: str | None) -> tuple[int, bytes]:
        """Return status and body of one answer; the provider's own words are never passed on."""
        headers = {"Content-Type": "application/json", "X-Vault-Request": "true"}
        if token is not None:
            headers["X-Vault-Token"] = token
        connection = self._connection()
        try:
            connection.connect()
            with _ended_after(connection.sock, self._answer_seconds):
                connection.request("POST", f"/v1/{path}", json.dumps(body), headers)
                response = connection.getresponse()
                answer = response.read(_LONGEST_ANSWER + 1)
        except ssl.SSLCertVerificationError as error:
            message = f"The key provider at {self._where} does not prove who it is: {error.verify_message}."
            raise KeyUnavailable(message) from None
        except OSError as error:
            why = (
                "no answer in time" if isinstance(error, TimeoutError) else error.strerror or "the connection broke off"
            )
            message = f"The key provider at {self._where} cannot be reached: {why}."
            raise KeyUnavailable(message) from None
        except HTTPException:
            raise self._garbage() from None
        finally:
            connection.close()
        if len(answer) > _LONGEST_ANSWER:
            raise self._garbage()
        return response.status, answer

    def _connection(self) -> HTTPConnection:
        host, port = str(self._url.hostname), self._url.port or 8200
        if self._url.scheme == "http":
            return HTTPConnection(host, port, timeout=self._answer_seconds)
        try:
            context = ssl.create_default_context(cafile=self._ca_file)
        except (OSError, ValueError):
            message = f"The CA file {self._ca_file} cannot be read or holds no certificate."
            raise KeyUnavailable(message) from None
        return HTTPSConnection(host, port, timeout=self._answer_seconds, context=context)

    def _read(self, answer: bytes, shape: type[_Shape]) -> _Shape:
        try:
            return msgspec.json.decode(answer, type=shape)
        except (msgspec.MsgspecError, RecursionError, ValueError):
            raise self._garbage() from None

    def _refuse_status(self, status: int) -> None:
        if status != _OK:
            why = _REASONS.get(status, f"answers with status {status}.")
            message = f"The key provider at {self._where} {why}"
            raise KeyUnavailable(message)

    def _garbage(self) -> KeyUnavailable:
        return KeyUnavailable(f"What answers at {self._where} does not answer as a key provider does.")


_AEAD: Final = "its key must be of the type aes256-gcm96, in a release that knows associated data."
_REASONS: Final = {
    400: f"does not take the secret: {_AEAD}",
    403: "refuses the service's token: give it a new one, with a policy for this key.",
    404: "knows no such engine or key.",
    429: "is a standby that answers nothing: name the active one.",
    503: "is sealed or under maintenance.",
}


@contextmanager
def _ended_after(connected: socket.socket, seconds: float) -> Iterator[None]:
    """Raise ``TimeoutError`` for a call that drags on: the socket's own limit begins anew with every byte that drips in."""
    is_over = Event()

    def end() -> None:
        is_over.set()
        # The plain half of it: the TLS half would wait for a farewell. What was closed meanwhile needs no end.
        with suppress(OSError):
            socket.socket.shutdown(connected, socket.SHUT_RDWR)

    timer = Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    except (OSError, HTTPException):
        # Ended by us, whatever it looks like from inside.
        if not is_over.is_set():
            raise
    finally:
        timer.cancel()
    if is_over.is_set():
        raise TimeoutError


def _address(address: str) -> SplitResult:
    url = urlsplit(address)
    try:
        is_whole = url.scheme in {"http", "https"} and url.hostname and url.port != 0
    except ValueError:
        is_whole = False
    if not is_whole or url.path.strip("/") or url.query or url.fragment or "@" in url.netloc:
        raise UnsafeSetting("SNOSE_VAULT_ADDR is an address such as https://vault.example.org:8200.")
    return url


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _read_word(path: Path, what: str) -> str:
    word = read_private_file(path, what, _LONGEST_TOKEN).decode("latin-1").strip()
    if not _TOKEN.fullmatch(word):
        message = f"The {what} {path} does not hold one word."
        raise KeyUnavailable(message)
    return word


def _is_wrapped(text: str) -> bool:
    found = _WRAPPED.fullmatch(text)
    return found is not None and _from_base64(found[1]) is not None


def _to_base64(content: bytes) -> str:
    return b2a_base64(content, newline=False).decode("ascii")


def _from_base64(text: str) -> bytes | None:
    """Return what is written; None for any spelling but the one of ``_to_base64``."""
    try:
        content = a2b_base64(text.encode("ascii"), strict_mode=True)
    except (NotBase64, UnicodeEncodeError):
        return None
    return content if _to_base64(content) == text else None
