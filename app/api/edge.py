"""The outermost layer: gives each request its id, logs one line without anything that was sent, counts, and catches our own faults.

Pure ASGI, so that nothing of FastAPI's stands between a fault and its plain 500. The path is never logged: it holds subjects and
kit codes. The route's template is.
"""

import time
import traceback
from typing import Final

import structlog
from prometheus_client import Counter, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.problems import of_crash
from app.domain.entropy import Entropy

_log: Final = structlog.get_logger("snose.api")

REQUESTS: Final = Counter(
    "snose_requests_total",
    "Requests by route template, method and status class.",
    ["route", "method", "status"],
)
SECONDS: Final = Histogram(
    "snose_request_seconds",
    "Time of a request by method.",
    ["method"],
    buckets=(0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0),
)

SECURITY_HEADERS: Final = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"strict-transport-security", b"max-age=31536000; includeSubDomains"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
)
_POLICY: Final = (
    b"content-security-policy",
    b"default-src 'none'; object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; sandbox",
)
"""Of whatever is no page: a browser that is led to an answer shows it in nobody's frame and runs nothing of it."""


class Edge:
    """Wraps the application."""

    def __init__(self, app: ASGIApp, entropy: Entropy) -> None:
        """Name the application and where request ids come from: the server's own randomness (rule E3)."""
        self._app = app
        self._entropy = entropy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = self._entropy.draw("request id", 16).hex()
        scope.setdefault("state", {})["request_id"] = request_id
        begun = time.perf_counter()
        status = 500
        started = False

        async def send_on(message: Message) -> None:
            nonlocal status, started
            if message["type"] == "http.response.start":
                started = True
                status = message["status"]
                message["headers"] = [
                    *message["headers"],
                    (b"x-request-id", request_id.encode()),
                    *SECURITY_HEADERS,
                    # The page has a policy of its own, by which it may have a style.
                    *([] if any(name == _POLICY[0] for name, _ in message["headers"]) else [_POLICY]),
                ]
            await send(message)

        try:
            await self._app(scope, receive, send_on)
        except Exception as error:  # noqa: BLE001  # the last line: no caller may see our insides, whatever they are
            _log.error("fault", request_id=request_id, kind=type(error).__name__, at=_where(error))
            if not started:
                await of_crash(request_id)(scope, receive, send_on)
        finally:
            _account(scope, status, time.perf_counter() - begun, request_id)


def _where(error: BaseException) -> list[str]:
    """Return the places of a traceback; neither its message nor its variables, which may hold what was sent."""
    return [
        f"{frame.filename.rsplit('/', 1)[-1]}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)
    ]


def _account(scope: Scope, status: int, seconds: float, request_id: str) -> None:
    route = getattr(scope.get("route"), "path", "none")
    method = scope["method"] if scope["method"] in {"GET", "POST", "DELETE"} else "OTHER"
    REQUESTS.labels(route, method, f"{status // 100}xx").inc()
    SECONDS.labels(method).observe(seconds)
    _log.info(
        "request",
        method=method,
        route=route,
        status=status,
        ms=round(seconds * 1000, 1),
        request_id=request_id,
    )
