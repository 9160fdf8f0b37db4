"""Notices to machines of others, by HTTPS: to addresses of the public network only (T31)."""

import socket
import ssl
from collections.abc import Mapping

from app.domain.notices import may_be_sent_to
from app.storage.outside_client import PATIENCE, OutsideClient, Resolve


class WebhookClient(OutsideClient):
    """Posts to whatever address it is given, as long as that is outside."""

    def __init__(
        self,
        *,
        may_stay_here: bool,
        patience: float = PATIENCE,
        tls: ssl.SSLContext | None = None,
        resolve: Resolve = socket.getaddrinfo,
    ) -> None:
        """Say whether loopback is an address too, as in a test; nothing is sent yet."""
        self._may_stay_here = may_stay_here
        super().__init__(self._may_be_sent_to, patience, tls, resolve)

    def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> int:
        """Return the status of the answer, whatever it is; raise ``NotDelivered`` for none, or for an address inside."""
        return self.ask("POST", url, headers, body).status

    def _may_be_sent_to(self, _host: str, address: str) -> bool:
        return may_be_sent_to(address, may_stay_here=self._may_stay_here)
