"""`create_app`: the only place where the API is put together."""

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Final, cast

import anyio.to_thread
import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import Response

from app.api import (
    access_reviews,
    accidents,
    allocations,
    clients,
    consignments,
    devices,
    disclosures,
    documentation,
    drills,
    envelopes,
    health,
    interim,
    issuers,
    kits,
    notices,
    passkeys,
    people,
    recalls,
    recoveries,
    residual,
    schedules,
    sign_ins,
    studies,
    third_party,
    trail,
    unblinding,
    unblinding_log,
)
from app.api.description import DescribedService
from app.api.doors import BREAKING, Door, DoorRoute, context_of, deployment_of, study_of
from app.api.edge import Edge
from app.api.problems import entered_field_of, of_error, of_http, of_validation, request_id_of
from app.errors import KeyUnavailable, ProviderUnavailable, RevealUnavailable, SnoseError, Unavailable
from app.process import configure_logs, refuse_core_dumps
from app.services import audited, outside
from app.services.keeper import Keeper
from app.services.startup import Surroundings, unseal
from app.settings import Settings
from app.surroundings import surroundings

DOORS: Final = (
    people.door,
    people.token_door,
    clients.door,
    issuers.door,
    sign_ins.door,
    passkeys.door,
    devices.door,
    recoveries.door,
    studies.door,
    schedules.door,
    consignments.door,
    kits.door,
    allocations.door,
    unblinding.door,
    accidents.door,
    access_reviews.door,
    drills.door,
    recalls.door,
    third_party.door,
    interim.door,
    unblinding_log.door,
    residual.door,
    envelopes.door,
    notices.door,
    trail.door,
    disclosures.door,
)
"""Every feature's routes."""
_log: Final = structlog.get_logger("snose.main")


def create_from_environment() -> FastAPI:
    """Return the application as the environment sets it; what a worker process runs."""
    refuse_core_dumps()
    configure_logs()
    return create_app(Settings())


def create_app(settings: Settings, around: Surroundings | None = None) -> FastAPI:
    """Return the application; without its keys it is sealed and answers health checks only (rule F2).

    Raises ``UnsafeSetting`` for what may not be served, ``RuntimeError`` for a route that no policy entry covers.
    """
    around = around or surroundings(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        # As many threads as connections: more would only wait (goals, "What the measurements taught").
        anyio.to_thread.current_default_thread_limiter().total_tokens = settings.threads
        keeper = Keeper(app.state.deployment) if app.state.deployment is not None else None
        if keeper is not None:
            keeper.start()
        yield
        if keeper is not None:
            await run_in_threadpool(keeper.stop)
        around.database.close()

    app = DescribedService(
        title="snose",
        summary="Randomization, blinding and code breaks for clinical trials",
        version="0.1.0",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
        # A redirect would lead to the host that the caller named in a header.
        redirect_slashes=False,
    )
    app.state.backup_contact = settings.backup_contact
    around.database.be_the_only_process()
    try:
        app.state.deployment = unseal(around, settings.mode)
    except KeyUnavailable as error:
        app.state.deployment = None
        # For the operator alone; callers hear that the service is sealed, and no more.
        _log.error("sealed", because=error.message)
    app.include_router(health.router)
    app.include_router(documentation.router)
    for door in DOORS:
        app.include_router(door.router)
    _require_cover(DOORS)
    app.add_exception_handler(SnoseError, _on_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_middleware(Edge, entropy=around.entropy)
    return app


def _require_cover(doors: Iterable[Door]) -> None:
    """Refuse to build an application with a route that the policy does not know.

    The doors are looked at, not the application: it holds included routers, whose routes it does not list.
    """
    for route in (route for door in doors for route in door.router.routes):
        if not isinstance(route, DoorRoute) or audited.uncovered(route.action):
            message = f"no policy entry for {route}"
            raise RuntimeError(message)


async def _on_error(request: Request, error: Exception) -> Response:
    said = cast("SnoseError", error)
    action = getattr(request.scope.get("route"), "action", None)
    if isinstance(said, Unavailable) and action in BREAKING and "backup_contact" not in said.extra:
        # Whoever needs a treatment now must hear whom to ask, from the settings when nothing else is there (rule D4).
        contact = request.app.state.backup_contact
        by_own_password = isinstance(said, ProviderUnavailable)
        # Without the provider the quickest way is one's own password, which its advice names beside the contact.
        said = (
            ProviderUnavailable(backup_contact=contact)
            if by_own_password
            else RevealUnavailable(backup_contact=contact)
        )
    return of_error(said, request_id_of(request))


async def _on_http(request: Request, error: Exception) -> Response:
    return of_http(cast("HTTPException", error), request_id_of(request))


async def _on_invalid(request: Request, error: Exception) -> Response:
    """Answer 422 only to those who may hear it: who asks, and the right, come first (rule G2)."""
    invalid = cast("RequestValidationError", error)
    try:
        deployment_of(request)
        context = getattr(request.state, "context", None) or await context_of(request)
        await run_in_threadpool(outside.admit, context)
        fields = sorted({entered_field_of(fault) for fault in invalid.errors()})
        await run_in_threadpool(audited.admit_invalid, context, study_of(request), fields)
    except SnoseError as refusal:
        return await _on_error(request, refusal)
    return of_validation(invalid, request_id_of(request))
