"""Where a browser comes back to from a sign-in elsewhere (RFC 6749, 3.1.2; RFC 8252, 7.3)."""

import re
from collections.abc import Sequence
from typing import Final

_LONGEST: Final = 500
_ELSEWHERE: Final = re.compile(r"https://[A-Za-z0-9.-]+(?::[0-9]{1,5})?(?:/[!-~]*)?")
_HERE: Final = re.compile(r"(http://(?:127\.0\.0\.1|\[::1\]))(?::[0-9]{1,5})?((?:/[!-~]*)?)")


def is_redirect_uri(uri: str) -> bool:
    """Return whether a browser may be sent back to an address: by HTTPS, or to a program on its own machine."""
    is_known = _ELSEWHERE.fullmatch(uri) is not None or _HERE.fullmatch(uri) is not None
    return is_known and len(uri) <= _LONGEST and "#" not in uri


def is_registered(uri: str, registered: Sequence[str]) -> bool:
    """Return whether an address is one of those registered, to the letter; on its own machine a program has any port."""
    return uri in registered or (
        is_redirect_uri(uri) and _portless(uri) in {_portless(one) for one in registered} - {None}
    )


def come_back_together(uris: Sequence[str], others: Sequence[str]) -> bool:
    """Return whether a browser from one provider may come back where one from another does.

    Then whoever waits there cannot tell from which it came, and a provider could be brought another one's code (RFC 9700, 4.4).
    What is asked for behind a path is nobody's own.
    """
    return not {_place(uri) for uri in uris}.isdisjoint(map(_place, others))


def _place(uri: str) -> str:
    return (_portless(uri) or uri).partition("?")[0]


def _portless(uri: str) -> str | None:
    found = _HERE.fullmatch(uri)
    return found[1] + found[2] if found is not None else None
