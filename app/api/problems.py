"""Everything that goes wrong becomes an RFC 9457 problem: stable ``code``, plain words, no internals (rule G1).

One table gives each branch of `app.errors` its status. Nothing that was sent is echoed: a value of the caller's may be a secret,
a lone surrogate or ``1e400``.
"""

import json
from collections.abc import Mapping
from typing import Any, Final

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from app import errors
from app.errors import SnoseError

STATUS: Final[tuple[tuple[type[SnoseError], int], ...]] = (
    (errors.TooManyAttempts, 429),
    (errors.NotAuthenticated, 401),
    (errors.StepUpRequired, 401),
    (errors.Forbidden, 403),
    (errors.Missing, 404),
    (errors.Invalid, 422),
    (errors.Conflict, 409),
    (errors.Unavailable, 503),
    (errors.UnsafeSetting, 503),
)
"""The first class that fits gives the status; tests show that every error has one."""

CHALLENGE: Final = (
    'Bearer error="insufficient_user_authentication", '
    'error_description="a fresh one-time code is needed", acr_values="mfa", max_age="300"'
)
"""RFC 9470: what the client must get before it repeats the request (rule D3)."""

MEDIA_TYPE: Final = "application/problem+json"
TYPE_PREFIX: Final = "urn:snose:problem:"
_NO_METHOD: Final = "method_not_allowed"
_LONGEST_NAME: Final = 60
"""Longer than any field of ours; a longer one the caller made up."""


class MalformedRequest(SnoseError):
    """The request is no HTTP message that the API understands; ``status`` is 400, 413 or 415."""

    code = "malformed_request"
    title = "The request cannot be read"
    advice = "Send one JSON object in UTF-8 with Content-Type: application/json."

    def __init__(self, message: str, status: int) -> None:
        """Name what is wrong and the status of HTTP's own that says it."""
        super().__init__(message)
        self.status = status


def status_of(error: SnoseError) -> int:
    """Return the HTTP status of an error."""
    if isinstance(error, MalformedRequest):
        return error.status
    return next(status for kind, status in STATUS if isinstance(error, kind))


def problem(status: int, content: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> Response:
    """Return the response of one problem. ASCII only, so that no text of anybody's can break the encoding."""
    return Response(
        json.dumps(content, ensure_ascii=True), status, {"Cache-Control": "no-store", **(headers or {})}, MEDIA_TYPE
    )


def body_of(error: SnoseError, request_id: str) -> dict[str, Any]:
    """Return the members of the problem that an error is to its caller."""
    body = _members(status_of(error), error.code, error.title, error.message, request_id)
    body |= {"advice": error.advice, **error.extra}
    if isinstance(error, errors.FaultyImport):
        body["errors"] = [{"field": place, "message": text} for place, text in error.faults]
    elif isinstance(error, errors.Invalid) and error.field:
        body["errors"] = [{"field": error.field, "message": error.message}]
    return body


def _members(status: int, code: str, title: str, detail: str, request_id: str) -> dict[str, Any]:
    return {
        "type": TYPE_PREFIX + code,
        "title": title,
        "status": status,
        "detail": detail,
        "code": code,
        "request_id": request_id,
    }


def of_error(error: SnoseError, request_id: str) -> Response:
    """Return the problem that an error is to its caller."""
    headers: dict[str, str] = {}
    if isinstance(error, errors.StepUpRequired):
        headers["WWW-Authenticate"] = CHALLENGE
    elif isinstance(error, errors.NotAuthenticated):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, errors.TooManyAttempts | errors.HashingBusy):
        headers["Retry-After"] = str(error.retry_after)
    return problem(status_of(error), body_of(error, request_id), headers)


def of_validation(error: RequestValidationError, request_id: str) -> Response:
    """Return the 422 that names the fields, and says of each what it should be, without echoing what it was."""
    faults = [
        {"field": field_of(fault["loc"]), "message": str(fault["msg"]).encode("ascii", "replace").decode()}
        for fault in error.errors()
    ]
    detail = "One or more fields are not valid; each is named under errors."
    body = _members(422, errors.Invalid.code, errors.Invalid.title, detail, request_id)
    return problem(422, {**body, "advice": errors.Invalid.advice, "errors": faults})


def field_of(location: tuple[int | str, ...]) -> str:
    """Return where a fault lies, in the words of the request: ``kits.3.arm_code``, or ``body`` for the whole of it.

    Names that the caller made up are left out.
    """
    parts = [str(part) for part in location if part not in {"body", "path", "query", "header"}]
    named = [
        part if part.isascii() and part.isprintable() and 0 < len(part) <= _LONGEST_NAME else "?" for part in parts
    ]
    return ".".join(named) or "body"


def entered_field_of(fault: Mapping[str, Any]) -> str:
    """Return what the trail says of a fault: the field of the request that it lies in, and nothing that was typed (rule E1).

    What is below a field may be a key that the caller made up, and so may a field that does not belong there.
    """
    location = [part for part in fault["loc"] if part not in {"body", "path", "query", "header"}]
    is_made_up = fault["type"] == "extra_forbidden" and len(location) == 1
    return "?" if is_made_up else field_of(tuple(location[:1]))


def of_http(error: HTTPException, request_id: str) -> Response:
    """Return the problem of what the framework itself refuses: no such route, no such method."""
    status = error.status_code
    known = {
        404: (errors.Missing.code, "There is nothing at this address"),
        405: (_NO_METHOD, "This method is not known here"),
    }
    code, title = known.get(status, (MalformedRequest.code, MalformedRequest.title))
    body = _members(status, code, title, "Check the path and the method against the documentation.", request_id)
    return problem(status, body, error.headers)


def of_crash(request_id: str) -> Response:
    """Return what a caller hears of a fault of our own: nothing but that it is ours, and the id to ask about."""
    detail = "The fault was logged under this request_id. Repeat the request unchanged; nothing is done twice."
    return problem(500, _members(500, "internal_error", "The service has a fault", detail, request_id))


def request_id_of(request: Request) -> str:
    """Return the id that the outermost layer gave to the request."""
    return str(request.state.request_id)
