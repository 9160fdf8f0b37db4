"""Questions to outside issuers: only by HTTPS, or by plain HTTP to this machine in a test (T31).

An issuer is of the public network, unless the operator names its host as one of the inside: two administrators can register an
issuer, and none of them an address of the hospital's own network that the operator does not know of.
"""

import socket
import ssl
from collections.abc import Mapping
from typing import Final

from app.domain.notices import is_address, may_be_asked
from app.storage.delivery import NotDelivered
from app.storage.outside_client import OutsideClient, Resolve, Said

_PATIENCE: Final = 2.0
_LARGEST: Final = 512 * 1024


class ProviderClient:
    """Asks whatever address an issuer has, as long as that may be asked."""

    def __init__(
        self,
        *,
        may_stay_here: bool,
        inside: frozenset[str] = frozenset(),
        tls: ssl.SSLContext | None = None,
        patience: float = _PATIENCE,
        resolve: Resolve = socket.getaddrinfo,
    ) -> None:
        """Say which hosts may lie in a private network; nothing is asked yet."""
        self._may_stay_here = may_stay_here
        self._inside = inside
        self._client = OutsideClient(self._may_be_asked, patience, tls, resolve)

    def is_address(self, url: str) -> bool:
        """Return whether an address has the form of one that may be asked; what its name turns into is looked at later."""
        return is_address(url, may_stay_here=self._may_stay_here)

    def ask(self, method: str, url: str, headers: Mapping[str, str], body: bytes | None = None) -> Said:
        """Return the answer, whatever it is; raise ``NotDelivered`` for none, or for an address that may not be asked."""
        if not self.is_address(url):
            # Not every address is one that an administrator has written: a provider names some of its own.
            message = "address_refused"
            raise NotDelivered(message)
        return self._client.ask(method, url, {"Accept": "application/json", **headers}, body, _LARGEST)

    def _may_be_asked(self, host: str, address: str) -> bool:
        return may_be_asked(host, address, inside=self._inside, may_stay_here=self._may_stay_here)
