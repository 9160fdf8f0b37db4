"""A receiver of webhooks for the tests: real HTTP on loopback, with TLS if wanted, and a memory of what it was sent.

with hook_receiver() as receiver:                      # or hook_receiver(tls=context)
receiver.url                                       # http://127.0.0.1:port/hook
receiver.status = 500; receiver.headers = {"Location": ...}; receiver.drips = True
receiver.got                                       # (path, headers, body) of every request
"""

import socketserver
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from threading import Event, Thread


@dataclass
class Receiver:
    """The state of the receiver, and what a test can do to it."""

    url: str = ""
    status: int = 204
    headers: Mapping[str, str] = field(default_factory=dict)
    drips: bool = False
    """A byte of the answer now and then, without end."""
    got: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)
    ended: Event = field(default_factory=Event)


class _Hook(BaseHTTPRequestHandler):
    def do_POST(self) -> None:  # the library's name
        receiver: Receiver = self.server.receiver  # type: ignore[attr-defined]  # given to it below
        body = self.rfile.read(int(self.headers["Content-Length"]))
        receiver.got.append((self.path, {name.lower(): value for name, value in self.headers.items()}, body))
        with suppress(OSError):
            while receiver.drips and not receiver.ended.wait(0.05):
                self.wfile.write(b"H")
        self.send_response(receiver.status)
        for name, value in receiver.headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_words: object) -> None:
        """Keep the tests' output to the tests."""


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True
    tls: ssl.SSLContext | None = None

    def finish_request(self, request: object, client_address: object) -> None:
        if self.tls is None:
            super().finish_request(request, client_address)  # type: ignore[arg-type]  # the library's own
            return
        with self.tls.wrap_socket(request, server_side=True) as secured:  # type: ignore[arg-type]  # likewise
            super().finish_request(secured, client_address)

    def handle_error(self, request: object, client_address: object) -> None:
        """Who hangs up is a part of the tests."""


@contextmanager
def hook_receiver(tls: ssl.SSLContext | None = None) -> Iterator[Receiver]:
    """Give a running receiver."""
    receiver = Receiver()
    with _Server(("127.0.0.1", 0), _Hook) as server:
        server.receiver = receiver  # type: ignore[attr-defined]  # the hook finds it here
        server.tls = tls
        receiver.url = f"http{'s' if tls else ''}://127.0.0.1:{server.server_address[1]}/hook"
        running = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        running.start()
        try:
            yield receiver
        finally:
            receiver.ended.set()
            server.shutdown()
            running.join()
