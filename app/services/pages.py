"""Cursors: where a list goes on, opaque to the caller and bound to who asked for what.

A cursor is ``<base64url(JSON values)>.<HMAC>``. The HMAC covers the action, the caller, the path and the filters, so a cursor of
another person, list or filter is refused like a forged one. Who holds a cursor can read its values: put in nothing that an
answer of the list does not show.

All of these belong inside the work of `audited`: a wrong cursor is a 422, which stands after 401, 404 and 403 (rule G2).
"""

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from app.domain.encoding import encode as fields
from app.errors import IntegrityBroken, Invalid
from app.services.audited import Act


def encode(act: Act, values: Sequence[str | int], filters: Sequence[str | None] = ()) -> str:
    """Return the cursor that says where the next page begins; ``filters`` are those of the query, in a fixed order."""
    text = _text(json.dumps(list(values), separators=(",", ":")).encode())
    return f"{text}.{_text(act.deployment.ring.mac('cursor', _message(act, text, filters)))}"


def decode(act: Act, cursor: str, filters: Sequence[str | None] = ()) -> list[Any]:
    """Return the values of a cursor; raise ``Invalid`` for one that is not this caller's for this list and these filters."""
    text, _, mac = cursor.partition(".")
    try:
        act.deployment.ring.check_mac("cursor", _message(act, text, filters), _bytes(mac))
        return list(json.loads(_bytes(text)))
    except (IntegrityBroken, ValueError):
        message = "The cursor is not one of this list. Begin again without a cursor."
        raise Invalid(message, "cursor") from None


def place_in_time(
    act: Act, cursor: str | None, filters: Sequence[str | None] = ()
) -> tuple[tuple[datetime, UUID] | None, datetime]:
    """Return behind what a page of a list in the order of time begins, and the time of the first page; only that is entered."""
    if cursor is None:
        return None, act.now
    last_at, last_id, pinned = decode(act, cursor, filters)
    # The reading of a list is entered with its first page.
    act.is_entered = False
    return (datetime.fromisoformat(last_at), UUID(last_id)), datetime.fromisoformat(pinned)


def cursor_in_time(act: Act, at: datetime, row_id: UUID, until: datetime, filters: Sequence[str | None] = ()) -> str:
    """Return the cursor behind the last row of a page of such a list."""
    return encode(act, [at.isoformat(), str(row_id), until.isoformat()], filters)


def _message(act: Act, text: str, filters: Sequence[str | None]) -> bytes:
    # A filter that was left out and an empty one are two filters.
    said = ["-" if value is None else f"={value}" for value in filters]
    return fields(act.ctx.action, act.principal.name, act.ctx.path, text, *said)


def _text(content: bytes) -> str:
    return urlsafe_b64encode(content).rstrip(b"=").decode("ascii")


def _bytes(text: str) -> bytes:
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))
