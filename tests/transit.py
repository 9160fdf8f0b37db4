"""A transit engine for the tests, as Vault and OpenBao serve it: real HTTP on loopback, real keys with versions, real refusals.

    with transit_engine() as vault:                        # or transit_engine(certificate=...) for TLS
        vault.address                                      # http://127.0.0.1:port
        vault.new_key("snose"); vault.rotate("snose"); vault.forget_versions_below("snose", 2); vault.destroy("snose")
        vault.is_sealed = True; vault.says = b"..."        # 503 from now on; these very bytes instead of any answer

Written after the HTTP API documentation of both: ciphertexts ``vault:v<version>:<base64 of nonce and box>``, AES-256-GCM with
``associated_data``, 400 with ``errors`` for what does not decrypt, 403 for an unknown token, 404 for another mount, 503 sealed.
"""

import json
import os
import re
import ssl
import threading
import time
from base64 import b64decode, b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

TOKEN: Final = "hvs.CAESIKq2-canary-token-0123456789"
ROLE_ID: Final = "9f2c1f6e-role"
SECRET_ID: Final = "b7f0-canary-secret-id"
_NONCE: Final = 12
_CIPHERTEXT: Final = re.compile(r"vault:v(\d+):(.*)", re.DOTALL)


class Refused(Exception):
    """A refusal with its status; its words are the engine's own."""

    def __init__(self, status: int, *errors: str) -> None:
        super().__init__(status)
        self.status = status
        self.errors = errors


class Engine:
    """The state of the engine, and what a test can do to it."""

    def __init__(self) -> None:
        self.address = ""
        self.mount = "transit"
        self.keys: dict[str, dict[int, bytes]] = {}
        self.least_version: dict[str, int] = {}
        self.tokens = {TOKEN}
        self.is_sealed = False
        self.knows_associated_data = True
        self.says: bytes | None = None
        """What is sent instead of any answer, byte by byte as it stands."""
        self.pause = 0.0
        """Seconds between two bytes of ``says``."""
        self.asked: list[str] = []
        """The paths of all requests."""
        self.serving: _Serving

    @contextmanager
    def unreachable(self) -> Iterator[None]:
        """Have nobody listen at the address for a while."""
        self.serving.stop()
        try:
            yield
        finally:
            self.serving.start()

    def new_key(self, name: str) -> None:
        self.keys[name] = {1: os.urandom(32)}

    def rotate(self, name: str) -> None:
        """Add a version, which encrypts from now on; the earlier ones still decrypt."""
        versions = self.keys[name]
        versions[max(versions) + 1] = os.urandom(32)

    def forget_versions_below(self, name: str, version: int) -> None:
        """Set ``min_decryption_version``."""
        self.least_version[name] = version

    def destroy(self, name: str) -> None:
        """Destroy a key with all its versions."""
        del self.keys[name]

    # -- answering

    def answer(self, path: str, token: str | None, body: dict[str, Any]) -> dict[str, Any]:
        """Return the JSON of an answer, or raise what the engine refuses with."""
        self.asked.append(path)
        if self.is_sealed:
            raise Refused(503, "Vault is sealed")
        if path == "/v1/auth/approle/login":
            return self._signed_in(body)
        if token not in self.tokens:
            raise Refused(403, "permission denied")
        prefix = f"/v1/{self.mount}/"
        if not path.startswith(prefix):
            raise Refused(404, f'no handler for route "{path}"')
        operation, _, name = path.removeprefix(prefix).partition("/")
        if name not in self.keys:
            raise Refused(400, "encryption key not found")
        if operation == "encrypt":
            return {"data": self._encrypt(name, _plain(body["plaintext"]), self._associated(body))}
        plaintext = self._decrypt(name, body["ciphertext"], self._associated(body))
        if operation == "decrypt":
            return {"data": {"plaintext": b64encode(plaintext).decode()}}
        if operation == "rewrap":
            return {"data": self._encrypt(name, plaintext, self._associated(body))}
        raise Refused(404, f'no handler for route "{path}"')

    def _signed_in(self, body: dict[str, Any]) -> dict[str, Any]:
        if (body.get("role_id"), body.get("secret_id")) != (ROLE_ID, SECRET_ID):
            raise Refused(400, "invalid role or secret ID")
        token = f"hvs.{os.urandom(16).hex()}"
        self.tokens.add(token)
        return {"auth": {"client_token": token, "lease_duration": 1200, "renewable": True}}

    def _associated(self, body: dict[str, Any]) -> bytes:
        return _plain(body.get("associated_data", "")) if self.knows_associated_data else b""

    def _encrypt(self, name: str, plaintext: bytes, associated: bytes) -> dict[str, Any]:
        version = max(self.keys[name])
        nonce = os.urandom(_NONCE)
        box = nonce + AESGCM(self.keys[name][version]).encrypt(nonce, plaintext, associated)
        return {"ciphertext": f"vault:v{version}:{b64encode(box).decode()}", "key_version": version}

    def _decrypt(self, name: str, ciphertext: str, associated: bytes) -> bytes:
        found = _CIPHERTEXT.fullmatch(ciphertext)
        if found is None:
            raise Refused(400, "invalid ciphertext: no prefix")
        version, box = int(found[1]), _plain(found[2])
        if version < self.least_version.get(name, 1):
            raise Refused(400, "ciphertext or signature version is disallowed by policy (too old)")
        if version not in self.keys[name]:
            raise Refused(400, "invalid ciphertext: version is too new")
        try:
            return AESGCM(self.keys[name][version]).decrypt(box[:_NONCE], box[_NONCE:], associated)
        except (InvalidTag, ValueError):
            raise Refused(400, "cipher: message authentication failed") from None


def _plain(text: str) -> bytes:
    try:
        return b64decode(text, validate=True)
    except ValueError:
        raise Refused(400, "failed to base64-decode plaintext") from None


def _handler(engine: Engine) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if engine.says is not None:
                self._say(engine.says)
                return
            try:
                status, answer = 200, engine.answer(self.path, self.headers.get("X-Vault-Token"), body)
            except Refused as refused:
                status, answer = refused.status, {"errors": list(refused.errors)}
            content = json.dumps({"request_id": os.urandom(8).hex(), **answer}).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def _say(self, content: bytes) -> None:
            self.close_connection = True
            try:
                if not engine.pause:
                    self.wfile.write(content)
                    return
                for byte in content:
                    self.wfile.write(bytes([byte]))
                    time.sleep(engine.pause)
            except OSError:
                return

        def log_message(self, *_values: object) -> None:
            return

    return Handler


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, *_values: object) -> None:
        """A client that hung up, or one that refused our certificate, is none of a test's output."""


class _Serving:
    """The socket and the thread behind an engine, which can go away and come back at the same port."""

    def __init__(self, engine: Engine, certificate: Path | None) -> None:
        self._engine = engine
        self._certificate = certificate
        self._port = 0

    def start(self) -> None:
        self._server = _Server(("127.0.0.1", self._port), _handler(self._engine))
        self._port = self._server.server_address[1]
        if self._certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self._certificate)
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self._engine.address = f"{'http' if self._certificate is None else 'https'}://127.0.0.1:{self._port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@contextmanager
def transit_engine(certificate: Path | None = None) -> Iterator[Engine]:
    """Give a running engine with a key ``snose``; over TLS when a file with certificate and key is given."""
    engine = Engine()
    engine.new_key("snose")
    serving = engine.serving = _Serving(engine, certificate)
    serving.start()
    try:
        yield engine
    finally:
        serving.stop()
