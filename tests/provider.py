"""An OpenID provider for the tests: a real one, over HTTP on loopback, with a form to sign in by and keys that it changes.

with provider() as idp:
idp.issuer                                       # http://127.0.0.1:port, described at /.well-known/openid-configuration
idp.rotate()                                     # signs with a new key from now on, and tells it
idp.claims["nonce"] = "another"                  # said in every token from now on; None leaves a claim out
idp.faults["/keys"] = hang                       # or status(500), garbage, redirect(url): what a path does instead
idp.browse(url)                                  # what a person does who signs in there: the answer's parameters

`python -m tests.provider` runs one for trying out by hand.
"""

import base64
import hashlib
import json
import secrets
import socketserver
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import escape
from http.server import BaseHTTPRequestHandler
from threading import Event, Thread
from typing import Any, Final
from urllib.parse import parse_qs, unquote_plus, urlencode, urlsplit

import httpx

from tests.signers import Signer, forged, signer

PERSON: Final = "m.rossi"
PASSWORD: Final = "at the hospital"  # of the tests' own provider
DESCRIPTION: Final = "/.well-known/openid-configuration"
_PATIENCE: Final = 30.0
_LIFE: Final = 300

Params = Mapping[str, str]
Fault = Callable[["Provider", "_Talk"], None]


@dataclass
class Provider:
    """The state of the provider, and what a test can do to it."""

    issuer: str = ""
    signer: Signer = field(default_factory=lambda: signer("RS256", "idp"))
    keys: list[dict[str, Any]] = field(default_factory=list)
    clients: dict[str, str | None] = field(default_factory=dict)
    """Secrets of clients; None for one without."""
    people: dict[str, dict[str, Any]] = field(default_factory=lambda: {PERSON: {"sub": "248289761001"}})
    """Claims of each, `sub` above all."""
    claims: dict[str, Any] = field(default_factory=dict)
    header: dict[str, Any] = field(default_factory=dict)
    described: dict[str, Any] = field(default_factory=dict)
    """Said in the description instead."""
    said: dict[str, Any] = field(default_factory=dict)
    """Said in the answer with the tokens instead."""
    faults: dict[str, Fault] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    forms: list[Params] = field(default_factory=list)
    """What was posted for tokens."""
    is_signed_with: Callable[["Provider", dict[str, Any]], str] | None = None
    acr: str = "pwd"
    """What the next sign-in is worth, when nobody asks for more."""
    ended: Event = field(default_factory=Event)
    clock: Callable[[], float] = time.time
    _codes: dict[str, dict[str, Any]] = field(default_factory=dict)
    _made: int = 0

    def __post_init__(self) -> None:
        self.keys = [self.jwk()]

    def jwk(self) -> dict[str, Any]:
        kid = self.signer.key_id
        # As they come: with a certificate beside them, and one that is for ciphers.
        return {**self.signer.jwk, "kid": kid, "use": "sig", "alg": self.signer.algorithm, "x5c": ["MIIB" * 1500]}

    def rotate(self, algorithm: str = "RS256", *, is_told: bool = True) -> None:
        """Sign with a new key."""
        self._made += 1
        self.signer = signer(algorithm, f"idp{self._made}")
        if is_told:
            self.keys = [self.jwk()]

    def description(self) -> dict[str, Any]:
        return {
            "issuer": self.issuer,
            "authorization_endpoint": f"{self.issuer}/authorize",
            "token_endpoint": f"{self.issuer}/token",
            "jwks_uri": f"{self.issuer}/keys",
            "response_types_supported": ["code"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["RS256"],
            "code_challenge_methods_supported": ["S256"],
            "authorization_response_iss_parameter_supported": True,
            **self.described,
        }

    def jwks(self) -> dict[str, Any]:
        cipher = {**signer("RS256", "cipher").jwk, "kid": "enc", "use": "enc", "alg": "RSA-OAEP"}
        return {"keys": [cipher, *self.keys]}

    def authorize(self, params: Params, username: str) -> str:
        """Return where the person is sent back to, with a code."""
        code = secrets.token_urlsafe(16)
        self._codes[code] = {**params, "username": username, "auth_time": self.clock()}
        answer = {"code": code, "state": params["state"], "iss": self.issuer}
        return f"{params['redirect_uri']}?{urlencode(answer)}"

    def tokens(self, form: Params, authorization: str) -> tuple[int, dict[str, Any]]:
        """Return what a client gets for a code."""
        self.forms.append(form)
        if not self._is_client(form, authorization):
            return 401, {"error": "invalid_client"}
        asked = self._codes.pop(form.get("code", ""), None)
        verifier = hashlib.sha256(form.get("code_verifier", "").encode()).digest()
        challenge = base64.urlsafe_b64encode(verifier).rstrip(b"=").decode()
        if (
            asked is None
            or form.get("redirect_uri") != asked["redirect_uri"]
            or asked.get("code_challenge_method") != "S256"
            or asked.get("code_challenge") != challenge
        ):
            return 400, {"error": "invalid_grant"}
        access = secrets.token_urlsafe(16)
        return 200, {
            "access_token": access,
            "token_type": "Bearer",
            "expires_in": _LIFE,
            "id_token": self._id_token(asked, access),
            **self.said,
        }

    def _id_token(self, asked: dict[str, Any], access: str) -> str:
        now = self.clock()
        half = hashlib.sha256(access.encode()).digest()[:16]
        wanted = asked.get("acr_values", "").split()
        usual = {
            "iss": self.issuer,
            "aud": asked["client_id"],
            "iat": now,
            "exp": now + _LIFE,
            "auth_time": asked["auth_time"],
            "acr": wanted[0] if wanted else self.acr,
            "nonce": asked["nonce"],
            "at_hash": base64.urlsafe_b64encode(half).rstrip(b"=").decode(),
            **self.people[asked["username"]],
            **self.claims,
        }
        claims = {name: value for name, value in usual.items() if value is not None}
        if self.is_signed_with is not None:
            return self.is_signed_with(self, claims)
        return self.signer.sign(claims, {"typ": "JWT", "kid": self.signer.key_id, **self.header})

    def _is_client(self, form: Params, authorization: str) -> bool:
        client_id, secret = form.get("client_id", ""), form.get("client_secret")
        if authorization.startswith("Basic "):
            pair = base64.b64decode(authorization.removeprefix("Basic ")).decode().partition(":")
            client_id, secret = unquote_plus(pair[0]), unquote_plus(pair[2])
        return client_id in self.clients and self.clients[client_id] == secret

    def browse(self, url: str, username: str = PERSON) -> dict[str, str]:
        """Sign in as a person does, and return what the browser is sent back with."""
        # No authority of TLS is needed, and reading them takes longer than all else.
        with httpx.Client(verify=False, trust_env=False) as browser:  # noqa: S501  # by plain HTTP, on loopback
            page = browser.get(url)
            assert page.status_code == httpx.codes.OK, page.text
            answer = browser.post(url, data={"username": username, "password": PASSWORD})
        assert answer.status_code == httpx.codes.FOUND, answer.text
        return {name: values[0] for name, values in parse_qs(urlsplit(answer.headers["Location"]).query).items()}


def hang(idp: Provider, _talk: "_Talk") -> None:
    """Say nothing until the test is over."""
    idp.ended.wait(_PATIENCE)


def drip(idp: Provider, talk: "_Talk") -> None:
    """Say a byte now and then, without end."""
    while not idp.ended.wait(0.05):
        talk.wfile.write(b"H")


def garbage(_idp: Provider, talk: "_Talk") -> None:
    talk.answer(200, b"<html>no JSON\xff")


def huge(_idp: Provider, talk: "_Talk") -> None:
    talk.answer(200, b" " * 600_000)


def status(code: int) -> Fault:
    return lambda _idp, talk: talk.answer(code, b"{}")


def redirect(url: str) -> Fault:
    return lambda _idp, talk: talk.answer(302, b"", Location=url)


class _Talk(BaseHTTPRequestHandler):
    def do_GET(self) -> None:  # the library's name
        self._do("")

    def do_POST(self) -> None:  # likewise
        self._do(self.rfile.read(int(self.headers["Content-Length"])).decode())

    def _do(self, body: str) -> None:
        idp: Provider = self.server.provider  # type: ignore[attr-defined]  # given to it below
        parts = urlsplit(self.path)
        idp.asked.append(parts.path)
        fault = idp.faults.get(parts.path)
        form = {name: values[0] for name, values in parse_qs(body).items()}
        params = {name: values[0] for name, values in parse_qs(parts.query).items()}
        if fault is not None:
            fault(idp, self)
        elif parts.path == DESCRIPTION:
            self.answer(200, idp.description())
        elif parts.path == "/keys":
            self.answer(200, idp.jwks())
        elif parts.path == "/token":
            self.answer(*idp.tokens(form, self.headers.get("Authorization", "")))
        elif parts.path == "/authorize" and params.get("client_id") in idp.clients:
            self._authorize(idp, params, form)
        else:
            self.answer(404, {})

    def _authorize(self, idp: Provider, params: Params, form: Params) -> None:
        if not form:
            page = (
                f"<h1>Hospital sign-in</h1><p>For {escape(params['client_id'])}; the password is: {PASSWORD}</p>"
                f'<form method="post"><input name="username" value="{PERSON}"><input name="password" type="password">'
                "<button>Sign in</button></form>"
            )
            self.answer(200, page.encode(), **{"Content-Type": "text/html; charset=utf-8"})
        elif form.get("username") in idp.people and form.get("password") == PASSWORD:
            self.answer(302, b"", Location=idp.authorize(params, form["username"]))
        else:
            self.answer(403, b"wrong")

    def answer(self, code: int, content: bytes | dict[str, Any], **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(code)
        for name, value in {"Content-Type": "application/json", **headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_words: object) -> None:
        """Keep the tests' output to the tests."""


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True
    block_on_close = False

    def handle_error(self, request: object, client_address: object) -> None:
        """Who hangs up is a part of the tests."""


@contextmanager
def provider(port: int = 0) -> Iterator[Provider]:
    """Give a running provider."""
    state = Provider()
    with _Server(("127.0.0.1", port), _Talk) as server:
        server.provider = state  # type: ignore[attr-defined]  # the talk finds it here
        state.issuer = f"http://127.0.0.1:{server.server_address[1]}"
        running = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        running.start()
        try:
            yield state
        finally:
            state.ended.set()
            server.shutdown()
            running.join()


def unsigned(_idp: Provider, claims: dict[str, Any]) -> str:
    return forged({"alg": "none", "typ": "JWT"}, claims, b"")


if __name__ == "__main__":
    with provider(int(sys.argv[1]) if len(sys.argv) > 1 else 0) as running_one:
        running_one.clients["snose"] = None
        sys.stdout.write(f"{running_one.issuer}\n")
        sys.stdout.flush()
        Event().wait()
