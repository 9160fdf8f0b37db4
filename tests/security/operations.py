"""The operations and the errors that a caller can meet, found in the OpenAPI document and in the tree of errors.

Nothing is named here: a new operation or error is among them as soon as it exists, and a test that wants all of them fails until it
is played (`test_twins.py`) or sent every canary (`test_canaries.py`).
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from app import errors
from app.api import problems
from app.api.problems import MalformedRequest
from app.domain.words import Action, Role
from app.errors import SnoseError
from app.policy import ELEVATED, PERMISSIONS, SPENDING

_PARAMETER: Final = re.compile(r"\{[^}]+\}")
Document = Mapping[str, Any]


@dataclass(frozen=True)
class Operation:
    """One operation of the document."""

    name: str
    method: str
    path: str
    action: Action | None
    bodies: Mapping[str, Any]
    """Media type and example of every body that it takes."""

    @property
    def entitled(self) -> frozenset[Role]:
        """The roles whose people the policy lets do it; empty where everybody may."""
        return frozenset(role for role, actions in PERMISSIONS.items() if self.action in actions)

    @property
    def is_elevated(self) -> bool:
        """Whether it asks for a fresh second proof."""
        return self.action in ELEVATED

    @property
    def spends_the_proof(self) -> bool:
        """Whether the proof is good for it once."""
        return self.action in SPENDING

    @property
    def is_act(self) -> bool:
        return self.method != "GET"

    def at(self, known: Mapping[str, str]) -> str:
        """Return its path with what is known in the places of its parameters."""
        return self.path.format_map(_Known(known))

    def fits(self, method: str, path: str) -> bool:
        """Whether a request was one for this operation, or for another that is told by more of its path."""
        pattern = _PARAMETER.sub("[^/]+", self.path)
        return method == self.method and re.fullmatch(pattern, path.partition("?")[0]) is not None


class _Known(dict[str, str]):
    def __missing__(self, name: str) -> str:
        return "00000000-0000-4000-8000-000000000000"


def operations_of(document: Document) -> list[Operation]:
    """Return every operation, those whose path is told by the most words first."""
    found = [
        Operation(
            operation["operationId"],
            method.upper(),
            path,
            Action(operation["x-action"]) if "x-action" in operation else None,
            {kind: content.get("example") for kind, content in _content(operation, document).items()},
        )
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    return sorted(found, key=lambda one: len(_PARAMETER.findall(one.path)))


def _content(operation: Mapping[str, Any], document: Document) -> Mapping[str, Any]:
    body = operation.get("requestBody", {})
    while "$ref" in body:
        at: Any = document
        for name in body["$ref"].removeprefix("#/").split("/"):
            at = at[name]
        body = at
    content: Mapping[str, Any] = body.get("content", {})
    return content


def operation_at(found: Sequence[Operation], method: str, path: str) -> Operation | None:
    """Return the operation that a request was for; None where there is none."""
    return next((one for one in found if one.fits(method, path)), None)


# -- the catalogue of errors -------------------------------------------------------------------------------------------


def catalogue() -> dict[str, str]:
    """Return the code of every error of the tree, and of what the edge says itself, with the name of who says it."""
    kinds: list[type[SnoseError]] = [SnoseError, *_below(SnoseError)]
    own = {kind.code: kind.__name__ for kind in kinds if kind.__module__ == errors.__name__}
    return own | {
        MalformedRequest.code: "MalformedRequest",
        problems._NO_METHOD: "the framework",
        json.loads(bytes(problems.of_crash("").body))["code"]: "the edge",
    }


def _below(kind: type[SnoseError]) -> Iterator[type[SnoseError]]:
    for child in kind.__subclasses__():
        yield child
        yield from _below(child)


def code_of(body: bytes) -> str | None:
    """Return the code that a problem names; None for whatever is no problem."""
    try:
        said = json.loads(body)
    except ValueError:
        return None
    return said.get("code") if isinstance(said, dict) else None
