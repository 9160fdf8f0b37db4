"""`snose sign-in`: a person signs in at their OpenID provider in a browser, and gets an access token for the next calls.

The browser comes back to this command itself, on the person's own machine (RFC 8252, 7.3). What it brings is handed to the service
with the key of the sign-in, which never leaves the command; a page that calls it without the state of the sign-in is ignored.
"""

import json
import webbrowser
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, HTTPServer
from ipaddress import ip_address
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Annotated, Any, Final, Self
from urllib.parse import parse_qs, urlsplit

import httpx
import typer

from app.errors import UnsafeSetting

_PATIENCE: Final = 600.0
"""Seconds; the key of a sign-in is good for no longer."""
_WELCOME: Final = b"<!doctype html><title>snose</title><p>You can close this window and go back to the command."
_LATER: Final = "The service cannot be reached there: {}."

command = typer.Typer()


@command.command(name="sign-in")
def sign_in(  # one for each thing to say
    url: Annotated[str, typer.Option(help="Address of the service, https://snose.hospital.example.")],
    issuer: Annotated[str, typer.Option(help="The OpenID provider, as it was registered.")],
    path: Annotated[str, typer.Option(help="Path of the redirect_uri registered for 127.0.0.1.")] = "/",
    *,
    step_up: Annotated[bool, typer.Option("--step-up", help="Ask for a second proof there, given anew.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON on stdout.")] = False,
) -> None:
    """Sign in at your OpenID provider; prints an access token."""
    _refuse_plain(url)
    with _Receiver(path) as receiver:
        asked = {"issuer": issuer, "redirect_uri": receiver.address, "step_up": step_up}
        begun = _post(url, "/v1/sign-ins", asked)
        page = str(begun["authorization_url"])
        receiver.state = parse_qs(urlsplit(page).query)["state"][0]
        typer.echo(f"Sign in here, in a browser on this machine: {page}", err=True)
        # Where there is a browser it is opened; some stand in this command's way until they are closed.
        Thread(target=webbrowser.open, args=(page,), daemon=True).start()
        brought = receiver.wait()
    if "code" not in brought:
        message = f"Nobody was signed in there: {brought.get('error', 'no answer')}."
        raise UnsafeSetting(message)
    given = _post(
        url,
        "/v1/sign-ins/completion",
        {
            "sign_in_key": begun["sign_in_key"],
            **{name: brought[name] for name in ("code", "state", "iss") if name in brought},
        },
    )
    typer.echo(json.dumps(given) if as_json else given["access_token"])


class _Receiver:
    """Where the browser comes back to, once, on this machine."""

    def __init__(self, path: str) -> None:
        """Listen; on which port the system says."""
        self.state = ""
        self._path = path
        self._brought: SimpleQueue[Mapping[str, str]] = SimpleQueue()
        self._server = HTTPServer(("127.0.0.1", 0), self._talk())
        self.address = f"http://127.0.0.1:{self._server.server_port}{path}"

    def __enter__(self) -> Self:
        Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def wait(self) -> Mapping[str, str]:
        """Return what the browser brought back; nothing when it never came."""
        try:
            return self._brought.get(timeout=_PATIENCE)
        except Empty:
            return {}

    def _talk(self) -> type[BaseHTTPRequestHandler]:
        receiver = self

        class Talk(BaseHTTPRequestHandler):
            timeout = 10

            def do_GET(self) -> None:  # the library's name
                parts = urlsplit(self.path)
                brought = {name: values[0] for name, values in parse_qs(parts.query).items()}
                is_ours = parts.path == receiver._path and bool(receiver.state)  # its own
                is_ours = is_ours and brought.get("state") == receiver.state
                self.send_response(httpx.codes.OK if is_ours else httpx.codes.NOT_FOUND)
                self.send_header("Content-Type", "text/html; charset=utf-8")
                self.end_headers()
                if is_ours:
                    self.wfile.write(_WELCOME)
                    receiver._brought.put(brought)  # likewise

            def log_message(self, *_words: object) -> None:
                """Say nothing: a code is in what would be said."""

        return Talk


def _refuse_plain(url: str) -> None:
    """Raise ``UnsafeSetting`` for an address to which an access token would go in clear."""
    parts = urlsplit(url)
    try:
        is_here = ip_address(parts.hostname or "").is_loopback
    except ValueError:
        is_here = parts.hostname == "localhost"
    if parts.scheme != "https" and not (parts.scheme == "http" and is_here):
        message = "The address of the service is https://host, or http:// on this machine."
        raise UnsafeSetting(message)


def _post(url: str, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the answer; raise ``UnsafeSetting`` with what the service says instead."""
    try:
        answer = httpx.post(f"{url.rstrip('/')}{path}", json=body, timeout=30, trust_env=False)
        told = answer.json()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise UnsafeSetting(_LATER.format(type(error).__name__)) from None
    if answer.status_code != httpx.codes.CREATED:
        message = f"{told.get('detail')} {told.get('advice', '')}"
        raise UnsafeSetting(message)
    return dict(told)
