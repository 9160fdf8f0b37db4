"""A mail server for the tests: real SMTP on loopback, with TLS if wanted, real refusals, and a memory of what it was handed.

with mail_server() as server:                          # or mail_server(tls=context, at_once=True)
server.address                                     # smtp://127.0.0.1:port
server.wait()                                      # the next mail, as it was parsed
server.says["RCPT"] = "550 no such user"           # from now on, instead of 250; "" hangs up
"""

import socketserver
import ssl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from email import message_from_bytes, policy
from email.message import EmailMessage
from queue import Empty, Queue
from threading import Event, Thread
from typing import Final

PATIENCE: Final = 30.0


class MailServer:
    """The state of the server, and what a test can do to it."""

    def __init__(self, tls: ssl.SSLContext | None, *, at_once: bool) -> None:
        self.tls = tls
        self.at_once = at_once
        self.address = ""
        self.says: dict[str, str] = {}
        self.mails: Queue[EmailMessage] = Queue()
        self.accounts: list[str] = []
        self.drips = Event()
        """Set to greet by a byte now and then, without end."""

    def wait(self) -> EmailMessage:
        """Return the next mail that was handed in."""
        try:
            return self.mails.get(timeout=PATIENCE)
        except Empty:
            message = "no mail came"
            raise AssertionError(message) from None


class _Talk(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        server: MailServer = self.server.mail_server  # type: ignore[attr-defined]  # given to it below
        if server.at_once and server.tls is not None:
            self._secure(server.tls)
        while server.drips.is_set():
            self.wfile.write(b"2")
            self.wfile.flush()
            if not server.drips.wait(0.05):
                return
        self._say("220 test ESMTP")
        while line := self.rfile.readline().decode().strip():
            word = line.partition(" ")[0].upper()
            said = server.says.get(word)
            if said == "":
                return
            if said is not None:
                self._say(said)
            elif not self._answer(server, word, line):
                return

    def _answer(self, server: MailServer, word: str, line: str) -> bool:
        if word == "EHLO":
            self._say("250-test\r\n250-AUTH PLAIN\r\n250 STARTTLS" if server.tls else "250-test\r\n250 AUTH PLAIN")
        elif word == "STARTTLS" and server.tls is not None:
            self._say("220 go on")
            self._secure(server.tls)
        elif word == "AUTH":
            server.accounts.append(line)
            self._say("235 welcome")
        elif word == "DATA":
            self._say("354 go on")
            content = bytearray()
            while (part := self.rfile.readline()) != b".\r\n":
                content += part
            server.mails.put(message_from_bytes(bytes(content), policy=policy.default))
            self._say(server.says.get("after", "250 taken"))
        elif word == "QUIT":
            self._say("221 bye")
            return False
        else:
            self._say("250 well")
        return True

    def _secure(self, tls: ssl.SSLContext) -> None:
        self.rfile.close()
        self.request = tls.wrap_socket(self.request, server_side=True)
        self.setup()

    def finish(self) -> None:
        with suppress(OSError):
            super().finish()
        self.request.close()

    def _say(self, text: str) -> None:
        self.wfile.write(f"{text}\r\n".encode())
        self.wfile.flush()


class _Quiet(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Who hangs up is a part of the tests."""


@contextmanager
def mail_server(tls: ssl.SSLContext | None = None, *, at_once: bool = False) -> Iterator[MailServer]:
    """Give a running mail server."""
    state = MailServer(tls, at_once=at_once)
    with _Quiet(("127.0.0.1", 0), _Talk) as server:
        server.mail_server = state  # type: ignore[attr-defined]  # the talk finds it here
        state.address = f"{'smtps' if at_once else 'smtp'}://127.0.0.1:{server.server_address[1]}"
        running = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        running.start()
        try:
            yield state
        finally:
            state.drips.clear()
            server.shutdown()
            running.join()
