"""Requests to the outside by HTTP: to the very address that was looked at, and to none that may not be asked (T31).

Whoever may name an address of the outside could name one of the inside, by its number or by a name that turns into it a moment
later. So a name is resolved once, every address that it has must be one that may be asked, the connection goes to one of these and
to nothing that is resolved again, TLS proves that it is the name, and no redirect is followed.
"""

import http.client
import socket
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from app.storage.delivery import NotDelivered, hung_up_after

PATIENCE: Final = 5.0
"""Seconds for a connection, and for each part of an answer; a request as a whole may take twice as long."""
_TLS_PORT: Final = 443

Resolve = Callable[..., list[Any]]
"""What gives the addresses of a name: the system's own, as ``socket.getaddrinfo``."""
Allowed = Callable[[str, str], bool]
"""Whether a host may be asked at an address."""


@dataclass(frozen=True, slots=True)
class Said:
    """What was answered, nothing of it verified."""

    status: int
    content: bytes


class OutsideClient:
    """Asks whatever address it is given, as long as that is allowed."""

    def __init__(
        self, allowed: Allowed, patience: float, tls: ssl.SSLContext | None, resolve: Resolve = socket.getaddrinfo
    ) -> None:
        """Say which addresses are; nothing is sent yet."""
        self._allowed = allowed
        self._patience = patience
        self._tls = tls
        self._resolve = resolve

    def ask(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None = None, largest: int = 0
    ) -> Said:
        """Return the answer, whatever it is, with so much of its body; raise ``NotDelivered`` for none, or an address refused.

        A body that is larger than wanted is none; who wants nothing of it gets nothing.
        """
        try:
            return self._ask(method, url, headers, body, largest)
        except (OSError, http.client.HTTPException, ValueError) as error:
            # What a name or an answer made of is of no use to anybody, and not always harmless.
            raise NotDelivered(type(error).__name__) from None

    def _ask(self, method: str, url: str, headers: Mapping[str, str], body: bytes | None, largest: int) -> Said:
        parts = urlsplit(url)
        host, is_tls = parts.hostname or "", parts.scheme == "https"
        address = self._address_of(host, parts.port or (_TLS_PORT if is_tls else 80))
        lines: list[socket.socket] = []
        connection = http.client.HTTPConnection(host, timeout=self._patience)
        with hung_up_after(2 * self._patience, lambda: lines[-1] if lines else None):
            try:
                lines.append(socket.create_connection(address, self._patience))
                if is_tls:
                    # Read when it is first wanted: most deployments ask nobody, and the authorities of the system are many.
                    self._tls = self._tls or ssl.create_default_context()
                    lines.append(self._tls.wrap_socket(lines[-1], server_hostname=host, do_handshake_on_connect=False))
                    lines[-1].do_handshake()  # type: ignore[attr-defined]  # it is the wrapped one
                # A connection that has its line opens no other.
                connection.sock = lines[-1]
                target = f"{parts.path or '/'}{'?' if parts.query else ''}{parts.query}"
                connection.request(method, target, body, {"Host": parts.netloc, "Connection": "close", **headers})
                answer = connection.getresponse()
                content = answer.read(largest + 1) if largest else b""
                if len(content) > largest:
                    message = "too_large"
                    raise NotDelivered(message)
                return Said(answer.status, content)
            finally:
                connection.close()
                for line in lines:
                    line.close()

    def _address_of(self, host: str, port: int) -> tuple[str, int]:
        found = [str(one[4][0]) for one in self._resolve(host, port, type=socket.SOCK_STREAM)]
        # One of them that may not be asked is enough: nobody of the outside has an address of ours.
        if not found or not all(self._allowed(host, address) for address in found):
            message = "address_refused"
            raise NotDelivered(message)
        return found[0], port
