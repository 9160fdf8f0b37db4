"""The two ways in which values become bytes that are hashed, signed or bound: length-prefixed fields and canonical JSON."""

from collections.abc import Mapping
from typing import Any

import rfc8785


def encode(*fields: str | int | bytes) -> bytes:
    """Return the fields as one byte string that no other fields can give.

    Each field is a 4-byte big-endian length followed by its bytes: text as UTF-8, an integer as decimal ASCII.
    """
    parts = []
    for field in fields:
        content = field if isinstance(field, bytes) else str(field).encode()
        parts.append(len(content).to_bytes(4, "big"))
        parts.append(content)
    return b"".join(parts)


def canonical_json(value: Mapping[str, Any]) -> bytes:
    """Return the RFC 8785 bytes of a JSON object, the form in which entries and specifications are hashed.

    Raises ``ValueError`` (``rfc8785.CanonicalizationError``) for what JSON cannot hold exactly, such as an integer beyond 2**53.
    """
    return rfc8785.dumps(value)
