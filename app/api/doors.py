"""How a route is declared, and what every request goes through before and after it.

A route names the `Action` it stands for; without one it cannot be built. Before it: size, media type and JSON are checked, because
they stand first in rule G2. After it: the headers that say how an answer may be kept, and what the trail looked like.
"""

import hashlib
import ipaddress
import json
import math
from base64 import urlsafe_b64decode
from collections.abc import Callable, Coroutine, Mapping
from functools import wraps
from typing import Annotated, Any, Final, cast
from urllib.parse import quote, unquote

from fastapi import APIRouter, Depends, Request
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from app.api.problems import MalformedRequest
from app.api.schemas import STUDY_CODE
from app.domain.encoding import canonical_json
from app.domain.words import Action, StudyCode
from app.errors import Invalid, KeyUnavailable, NotAuthenticated
from app.services import audited, outside
from app.services.context import SEALED_MESSAGE, Deployment, RequestContext, token_digest_of
from app.services.proofs import request_digest
from app.services.tries import UNKNOWN_NETWORK

MAX_BODY: Final = 1_048_576
MAX_IMPORT: Final = 16_777_216
SMALL: Final = 65_536
"""A body of this size is read whatever else is going on: all but lists are far smaller."""
ROOM: Final = 33_554_432
"""Bytes that a worker holds of all larger bodies together: they come before anybody is known (rule G2)."""
MAX_KEY: Final = 200
_ONCE: Final = ("authorization", "content-type", "idempotency-key", "snose-passkey", "snose-device")
MAX_SIGNED: Final = 8_192
"""Characters of what a passkey has signed for one request."""
IMPORTING: Final = frozenset({Action.CREATE_CONSIGNMENT, Action.IMPORT_SCHEDULE})
"""Acts whose bodies hold a whole list, of kits or of slots."""
BREAKING: Final = frozenset({Action.BREAK_CODE, Action.UNBLIND_FOR_SAFETY, Action.OPEN_FOR_THIRD_PARTY})
"""The doors at which every 503 carries the back-up contact (rule D4)."""
REVEALING: Final = frozenset(
    {
        Action.BREAK_CODE,
        Action.DRILL,
        Action.UNBLIND_FOR_SAFETY,
        Action.OPEN_FOR_THIRD_PARTY,
        Action.RELEASE_PACKING_LIST,
        Action.RELEASE_SHEETS,
        Action.RELEASE_INTERIM,
        Action.RELEASE_RECALL,
        Action.RELEASE_FINAL_UNBLINDING,
        Action.READ_PREPARATION,
        Action.READ_RESTRICTED,
        Action.GENERATE_SCHEDULE,
        Action.EXTEND_SCHEDULE,
        Action.IMPORT_SCHEDULE,
        Action.READ_SCHEDULES,
        Action.READ_QUALITY_REPORT,
        Action.READ_RESIDUAL,
        Action.READ_SAFETY_UNBLINDINGS,
        Action.READ_DISCLOSURES,
        Action.REGISTER_PERSON,
        Action.RESET_PERSON,
        Action.REGISTER_CLIENT,
        Action.ISSUE_CLIENT_SECRET,
        Action.ADD_WEBHOOK,
        Action.BEGIN_SIGN_IN,
        Action.SIGN_IN,
        Action.STEP_UP,
        Action.REQUEST_FACTOR_RECOVERY,
        Action.COMPLETE_FACTOR_RECOVERY,
        Action.CHALLENGE_PASSKEY,
        Action.BEGIN_PASSKEY,
        Action.ISSUE_TOKEN,
        Action.CHANGE_PASSWORD,
    }
)
"""Answers that no cache may keep: an arm, or a drill's, whose safety case, a list or its block sizes, a credential (BLD-13, B7)."""

HONOURING_KEY: Final = frozenset(
    {
        Action.GRANT_ROLE,
        Action.CONFIRM_GRANT,
        Action.ADD_CLIENT_KEY,
        Action.RECORD_TRAINING,
        Action.SIGN_ACCESS_REVIEW,
        Action.REGISTER_ISSUER,
        Action.CONFIRM_ISSUER,
        Action.LINK_IDENTITY,
        Action.CONFIRM_IDENTITY,
        Action.CONFIRM_OWN_IDENTITY,
        Action.CONFIRM_FACTOR_RECOVERY,
        Action.DEACTIVATE_PERSON,
        Action.DECLARE_RECOVERY,
        Action.REGISTER_STUDY,
        Action.ADD_SITE,
        Action.ACTIVATE_SITE,
        Action.SET_STUDY_STATUS,
        Action.GENERATE_SCHEDULE,
        Action.EXTEND_SCHEDULE,
        Action.IMPORT_SCHEDULE,
        Action.APPROVE_SCHEDULE,
        Action.REJECT_SCHEDULE,
        Action.ACTIVATE_SCHEDULE,
        Action.CREATE_CONSIGNMENT,
        Action.REQUEST_PACKING_LIST,
        Action.DISPATCH_CONSIGNMENT,
        Action.RECEIVE_CONSIGNMENT,
        Action.ASSIGN_KIT,
        Action.DISPENSE_KIT,
        Action.REPLACE_KIT,
        Action.RELEASE_REPLACEMENT,
        Action.QUARANTINE_KIT,
        Action.RETURN_KIT,
        Action.REPORT_LOSS,
        Action.REPORT_DAMAGE,
        Action.RELEASE_KIT,
        Action.DESTROY_KIT,
        Action.ALLOCATE,
        Action.MARK_ERROR,
        Action.CORRECT_STRATA,
        Action.LINK_DUPLICATE,
        Action.ADD_NARRATIVE,
        Action.ASSESS_BREAK,
        Action.RECORD_ACCIDENT,
        Action.REQUEST_THIRD_PARTY,
        Action.ADD_CONTACT,
        Action.DRILL,
        Action.ENTER_OPENING,
        Action.REQUEST_INTERIM,
        Action.START_RECALL,
        Action.REQUEST_FINAL_UNBLINDING,
    }
)
"""Acts that an ``Idempotency-Key`` answers from store; the document says so, and the tests hold the services to it (rule C4)."""


class DoorRoute(APIRoute):
    """A route behind the one door."""

    action: Action
    media_types: tuple[str, ...] = ("application/json",)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler with what comes before and after it."""
        handle = super().get_route_handler()

        async def pass_through(request: Request) -> Response:
            share = Share()
            try:
                _refuse_doubles(request)
                if request.method == "POST":
                    await _read_body(request, self, share)
                response = await handle(request)
            except MalformedRequest:
                # Told before anybody is known, so it has no author: it is noise (rule E1).
                deployment_of(request).noise.count(_network(request))
                raise
            finally:
                share.give_back()
            context: RequestContext | None = getattr(request.state, "context", None)
            if context is not None:
                _finish(response, context)
            return response

        return pass_through


class Door:
    """A router whose every route names its action."""

    def __init__(self, tag: str, prefix: str = "/v1") -> None:
        """Group the routes of a feature under one word."""
        self.router: Final = APIRouter(prefix=prefix, tags=[tag], route_class=DoorRoute)

    def get(
        self,
        path: str,
        action: Action,
        **options: Any,  # noqa: ANN401  # FastAPI's own options
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Declare a reading route."""
        return self._route("GET", path, action, options)

    def post(
        self,
        path: str,
        action: Action,
        status_code: int = 200,
        **options: Any,  # noqa: ANN401  # FastAPI's own options
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Declare an acting route."""
        return self._route("POST", path, action, {"status_code": status_code, **options})

    def delete(
        self,
        path: str,
        action: Action,
        status_code: int = 204,
        **options: Any,  # noqa: ANN401  # FastAPI's own options
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Declare an ending route."""
        return self._route("DELETE", path, action, {"status_code": status_code, **options})

    def _route(
        self, method: str, path: str, action: Action, options: dict[str, Any]
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        media_types = options.pop("media_types", ("application/json",))

        def declare(function: Callable[..., Any]) -> Callable[..., Any]:
            right = audited.describe(action)
            extra = {"x-action": action.value, "x-right": right, **options.pop("openapi_extra", {})}
            self.router.add_api_route(
                path,
                _in_one_hand_over(function),
                methods=[method],
                operation_id=function.__name__,
                summary=(function.__doc__ or "").split("\n", 1)[0].rstrip("."),
                description=f"Right: {right}.",
                openapi_extra=extra,
                **options,
            )
            route = self.router.routes[-1]
            if not isinstance(route, DoorRoute):
                message = "a door opens door routes only"
                raise TypeError(message)
            route.action = action
            route.media_types = media_types
            return function

        return declare


def _in_one_hand_over(function: Callable[..., Any]) -> Callable[..., Coroutine[Any, Any, Any]]:
    """Return a route that runs in a thread of the pool, and whose answer is looked at on the way out.

    The framework would hand a plain route's answer over to a thread once more, to compare it with its schema: a tenth of the
    time of a reading.
    """

    @wraps(function)
    async def route(**arguments: object) -> object:
        return await run_in_threadpool(admitted, **arguments)

    def admitted(**arguments: Any) -> object:  # noqa: ANN401  # as the route takes them
        outside.admit(arguments["ctx"])
        return function(**arguments)

    return route


def _refuse_doubles(request: Request) -> None:
    """Refuse what is said twice where one value is meant: a proxy, or whoever else reads the request, may take the other one."""
    asked = [name for name, _ in request.query_params.multi_items()]
    if len(set(asked)) != len(asked):
        message = "A parameter stands twice in the query."
        raise MalformedRequest(message, 400)
    if any(len(request.headers.getlist(name)) > 1 for name in _ONCE):
        message = "A header stands twice of which there is one."
        raise MalformedRequest(message, 400)


class Share:
    """What one request takes of the room for large bodies; all are counted in one thread, that of the worker's loop."""

    _left = ROOM

    def __init__(self) -> None:
        """Begin with nothing."""
        self._taken = 0

    def take(self, size: int) -> None:
        """Take so many bytes more; raise `MalformedRequest` when others hold the room."""
        if size > Share._left:
            message = "Too many large bodies are in hand at this moment: send it again a little later."
            raise MalformedRequest(message, 413)
        Share._left -= size
        self._taken += size

    def give_back(self) -> None:
        """Leave the room to others."""
        Share._left += self._taken
        self._taken = 0


async def _read_body(request: Request, route: DoorRoute, share: Share) -> None:
    """Check size, media type and JSON, and keep the fingerprint; raises `MalformedRequest` (rule G2)."""
    limit = MAX_IMPORT if route.action in IMPORTING else MAX_BODY
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit:
                message = f"The body is larger than {limit} bytes."
                raise MalformedRequest(message, 413)
            if len(body) > SMALL:
                share.take(len(chunk))
    except ClientDisconnect:
        message = "The body did not arrive in full."
        raise MalformedRequest(message, 400) from None
    content = bytes(body)
    # The body was read here, within its limit; the framework finds it where it would have kept it itself.
    request._body = content  # noqa: SLF001  # the one place where Starlette keeps a body
    request.state.fingerprint = hashlib.sha256(content).digest()
    if not content:
        return
    media_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if media_type not in route.media_types:
        message = f"The body must be {' or '.join(route.media_types)}."
        raise MalformedRequest(message, 415)
    if media_type == "application/json":
        _check_json(content)


def _check_json(content: bytes) -> None:
    """Refuse what is no JSON text of RFC 8259; a number too large for any field is left to the field."""

    def refuse(name: str) -> float:
        message = f"{name} is not JSON."
        raise MalformedRequest(message, 400)

    def number(text: str) -> float:
        value = float(text)
        if math.isinf(value):
            message = "A number is too large to be read."
            raise MalformedRequest(message, 400)
        return value

    def object_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        members = dict(pairs)
        if len(members) != len(pairs):
            message = "A name stands twice in one JSON object."
            raise MalformedRequest(message, 400)
        return members

    try:
        json.loads(content.decode(), parse_constant=refuse, parse_float=number, object_pairs_hook=object_once)
    except (ValueError, RecursionError):
        message = "The body is not JSON in UTF-8, or is nested too deeply."
        raise MalformedRequest(message, 400) from None


def _finish(response: Response, context: RequestContext) -> None:
    response.headers["Cache-Control"] = "no-store" if context.action in REVEALING else "private, no-cache"
    if context.replayed:
        response.status_code = 200
        response.headers["Idempotency-Replayed"] = "true"
    if context.method == "POST" and context.checkpoint is not None:
        response.headers["Audit-Checkpoint"] = context.checkpoint


def deployment_of(request: Request) -> Deployment:
    """Return the running deployment; raise ``KeyUnavailable`` while the service is sealed (rule F2)."""
    deployment: Deployment | None = request.app.state.deployment
    if deployment is None:
        raise KeyUnavailable(SEALED_MESSAGE)
    return deployment


def study_of(request: Request) -> StudyCode | None:
    """Return the study that a path names; the empty code, which no study has, for what is no code at all.

    A database need not be asked about NUL or a lone surrogate: PostgreSQL would refuse the question.
    """
    named = request.path_params.get("study")
    if named is None:
        return None
    return StudyCode(named if STUDY_CODE.fullmatch(named) else "")


async def context_of(request: Request) -> RequestContext:
    """Return who asks for what by which request; asynchronous, because a plain one would be handed to another thread."""
    deployment = deployment_of(request)
    route: DoorRoute = request.scope["route"]
    key = request.headers.get("idempotency-key")
    if key is not None and not (0 < len(key) <= MAX_KEY and key.isascii() and key.isprintable()):
        message = f"An Idempotency-Key has 1 to {MAX_KEY} printable ASCII characters."
        raise MalformedRequest(message, 400)
    signed = _signed(request)
    context = RequestContext(
        deployment,
        route.action,
        _token_digest(request),
        str(request.state.request_id),
        _network(request),
        request.method,
        request.url.path,
        key,
        getattr(request.state, "fingerprint", b""),
        signed,
        b"" if signed is None else await _digest_of_this(request),
        _outside_token(request),
    )
    request.state.context = context
    return context


Context = Annotated[RequestContext, Depends(context_of)]


def _bearer(request: Request) -> str:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def _outside_token(request: Request) -> str | None:
    """Return a token that may be of an outside issuer; ours hold no dot."""
    token = _bearer(request)
    return token if "." in token else None


def _token_digest(request: Request) -> bytes | None:
    try:
        return token_digest_of(_bearer(request))
    except NotAuthenticated:
        return None


def digest_of(method: str, path: str, body: object) -> bytes:
    """Return what stands for a request that a passkey may sign; raise ``Invalid`` for a body without a canonical form."""
    bare, mark, query = path.partition("?")
    try:
        content = b"" if body is None else canonical_json(cast("Mapping[str, Any]", body))
    except (ValueError, RecursionError):
        message = "The body holds a number or a text that has no canonical form (RFC 8785)."
        raise Invalid(message, "request") from None
    return request_digest(method, unquote(bare) + mark + query, content)


async def _digest_of_this(request: Request) -> bytes:
    """Return what stands for this request; nothing, which no passkey has signed, where it has no JSON body."""
    query = request.scope["query_string"].decode("latin-1")
    content = await request.body()
    try:
        body = json.loads(content) if content else None
        return digest_of(request.method, quote(request.scope["path"]) + ("?" + query if query else ""), body)
    except (ValueError, RecursionError, Invalid):
        return b""


def _signed(request: Request) -> dict[str, Any] | None:
    """Return what a passkey has signed for this request alone; what cannot be read proves nothing."""
    header = request.headers.get("snose-passkey")
    if header is None:
        return None
    try:
        found = json.loads(urlsafe_b64decode(header[:MAX_SIGNED] + "=="))
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _network(request: Request) -> str:
    """Return the caller's network: enough to see where noise comes from, too little to be a person."""
    try:
        address = ipaddress.ip_address(request.client.host if request.client is not None else "")
    except ValueError:
        return UNKNOWN_NETWORK
    # A socket for both kinds shows IPv4 in clothes of IPv6, in which all of it would be one network.
    address = getattr(address, "ipv4_mapped", None) or address
    return str(ipaddress.ip_network((address, 24 if address.version == 4 else 48), strict=False))  # noqa: PLR2004  # IPv4, else IPv6: there is no third
