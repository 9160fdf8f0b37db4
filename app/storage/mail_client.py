"""Mails to a server of the operator's, by SMTP with TLS; nobody who waits for an answer of the service waits for it."""

import smtplib
import socket
import ssl
from contextlib import suppress
from dataclasses import dataclass, field
from email.message import EmailMessage
from typing import Final

from app.storage.delivery import NotDelivered, hung_up_after

PATIENCE: Final = 10.0
"""Seconds for a connection, and for each answer; a mail as a whole may take twice as long."""


@dataclass(frozen=True, slots=True)
class MailServer:
    """Where mails are handed in, and as whom."""

    host: str
    port: int
    is_tls_at_once: bool
    """TLS from the first byte (port 465), and not by STARTTLS."""
    sender: str
    username: str = ""
    password: str = field(default="", repr=False)
    tls: ssl.SSLContext | None = field(default=None, repr=False)
    """None only where nothing leaves the machine."""


class _Line(smtplib.SMTP):
    """A connection whose socket is known from the first byte, so that it can be hung up."""

    def __init__(self, server: MailServer, patience: float) -> None:
        # The name we greet with: that of the sender's domain, without asking anybody for ours.
        super().__init__(local_hostname=server.sender.rpartition("@")[2], timeout=patience)
        self._server = server
        # STARTTLS looks here for whose certificate it should be; it is set by the base class only when it connects at once.
        self._host = server.host

    def _get_socket(self, host: str, port: int, timeout: float) -> socket.socket:
        line = socket.create_connection((host, port), timeout)
        if self._server.is_tls_at_once and self._server.tls is not None:
            wrapped = self._server.tls.wrap_socket(line, server_hostname=host, do_handshake_on_connect=False)
            self.sock = wrapped
            wrapped.do_handshake()
            return wrapped
        return line


class MailClient:
    """Hands mails to one server."""

    def __init__(self, server: MailServer, patience: float = PATIENCE) -> None:
        """Name the server; nothing is sent yet."""
        self._server = server
        self._patience = patience

    @property
    def sender(self) -> str:
        """The address that its mails come from."""
        return self._server.sender

    def send(self, mail: EmailMessage) -> None:
        """Return once the server has taken the mail; raise ``NotDelivered``, after which it may have taken it all the same."""
        try:
            line = _Line(self._server, self._patience)
            with hung_up_after(2 * self._patience, lambda: line.sock):
                try:
                    self._hand_in(line, mail)
                finally:
                    line.close()
        # An address that has no form in ASCII, or a server that speaks none, is a ``UnicodeError``.
        except (OSError, smtplib.SMTPException, UnicodeError, ValueError) as error:
            raise NotDelivered(_trouble(error)) from None

    def _hand_in(self, line: _Line, mail: EmailMessage) -> None:
        server = self._server
        line.connect(server.host, server.port)
        if server.tls is not None and not server.is_tls_at_once:
            line.starttls(context=server.tls)
        if server.username:
            line.login(server.username, server.password)
        line.send_message(mail)
        # It has the mail; how it says good-bye changes nothing.
        with suppress(OSError, smtplib.SMTPException):
            line.quit()


def _trouble(error: Exception) -> str:
    """Return what went wrong, in one word: what a server says may hold addresses."""
    if isinstance(error, smtplib.SMTPResponseException):
        return f"smtp_{error.smtp_code}"
    if isinstance(error, smtplib.SMTPRecipientsRefused):
        return "smtp_recipient_refused"
    return type(error).__name__
