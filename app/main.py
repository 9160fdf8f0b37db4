"""`create_app`: the only place where things are put together."""

import ctypes
import logging
import resource
import sys
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
    allocations,
    consignments,
    documentation,
    health,
    kits,
    people,
    schedules,
    studies,
    trail,
    unblinding,
)
from app.api.description import DescribedService
from app.api.doors import BREAKING, Door, DoorRoute, context_of, deployment_of, study_of
from app.api.edge import Edge
from app.api.problems import entered_field_of, of_error, of_http, of_validation, request_id_of
from app.domain.entropy import Entropy
from app.domain.notes import NoteMalformed, parse_witness_key
from app.errors import KeyUnavailable, RevealUnavailable, SnoseError, Unavailable, UnsafeSetting
from app.sealing.providers import KeyFileProvider, KeyProvider
from app.sealing.vault import AppRole, TokenFile, VaultTransitProvider
from app.services import audited
from app.services.context import Clock, Limits, SystemEntropy, system_clock
from app.services.keeper import Keeper
from app.services.startup import Surroundings, unseal
from app.settings import KeyProviderKind, Settings
from app.storage.database import Database
from app.storage.sink import FileSink
from app.storage.witness_client import WitnessClient

DOORS: Final = (
    people.door,
    people.token_door,
    studies.door,
    schedules.door,
    consignments.door,
    kits.door,
    allocations.door,
    unblinding.door,
    trail.door,
)
"""Every feature's routes."""
_PR_SET_DUMPABLE: Final = 4
"""Of ``linux/prctl.h``."""
_log: Final = structlog.get_logger("snose.main")


def surroundings(
    settings: Settings,
    clock: Clock = system_clock,
    entropy: Entropy | None = None,
    list_entropy: Entropy | None = None,
) -> Surroundings:
    """Return what the settings say a deployment stands on; tests hand in a clock and seeded entropy."""
    chance = entropy or SystemEntropy()
    return Surroundings(
        database=Database(settings.url(), settings.threads),
        provider=key_provider(settings, chance),
        sink=FileSink(settings.checkpoint_file),
        limits=Limits(
            session_length=settings.session_length(),
            password_max_age=settings.password_max_age(),
            backup_contact=settings.backup_contact,
        ),
        clock=clock,
        list_entropy=list_entropy or SystemEntropy(),
        entropy=chance,
        witness=_witness(settings),
    )


def _witness(settings: Settings) -> tuple[WitnessClient, str] | None:
    """Return the witness that the settings name; raise ``UnsafeSetting`` for what is half said or no key."""
    if settings.witness_url is None and settings.witness_key is None:
        return None
    try:
        key = parse_witness_key(settings.witness_key or "")
    except NoteMalformed as error:
        message = f"SNOSE_WITNESS_KEY is not the verification key of a witness: {error}."
        raise UnsafeSetting(message) from None
    if not (settings.witness_url or "").startswith(("http://", "https://")):
        message = "SNOSE_WITNESS_URL is the address of the witness, http://host:port or https://host."
        raise UnsafeSetting(message)
    return WitnessClient(settings.witness_url or ""), key.text()


def key_provider(settings: Settings, entropy: Entropy) -> KeyProvider:
    """Return who keeps the key above all keys, as the settings say; raise ``UnsafeSetting`` for what cannot be or is half said."""
    if settings.key_provider is KeyProviderKind.FILE:
        return KeyFileProvider(settings.key_file, entropy)
    token_file, role_id, secret_id_file = (
        settings.vault_token_file,
        settings.vault_role_id,
        settings.vault_secret_id_file,
    )
    if token_file is not None and role_id is None and secret_id_file is None:
        known_by: TokenFile | AppRole = TokenFile(token_file)
    elif token_file is None and role_id is not None and secret_id_file is not None:
        known_by = AppRole(role_id, secret_id_file)
    else:
        message = "Set SNOSE_VAULT_TOKEN_FILE, or SNOSE_VAULT_ROLE_ID with SNOSE_VAULT_SECRET_ID_FILE, and not both."
        raise UnsafeSetting(message)
    return VaultTransitProvider(
        settings.vault_addr, known_by, settings.vault_mount, settings.vault_key, settings.vault_ca_file
    )


def create_from_environment() -> FastAPI:
    """Return the application as the environment sets it; what a worker process runs."""
    refuse_core_dumps()
    configure_logs()
    return create_app(Settings())


def refuse_core_dumps() -> None:
    """Let no memory of this process reach a disk by a crash: it holds keys, and arms (`custody.md`, "Keys")."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        # Where cores are piped to a program, the limit does not bind; a process that is not dumpable has none (core(5)). The
        # mark ends with exec, so a worker, which is a new program, sets it anew.
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def configure_logs() -> None:
    """Write one JSON object a line to stdout; only declared fields, never a message with values in it (rule E1, BLD-13)."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stdout),
        cache_logger_on_first_use=True,
    )


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
        said = RevealUnavailable(backup_contact=request.app.state.backup_contact)
    return of_error(said, request_id_of(request))


async def _on_http(request: Request, error: Exception) -> Response:
    return of_http(cast("HTTPException", error), request_id_of(request))


async def _on_invalid(request: Request, error: Exception) -> Response:
    """Answer 422 only to those who may hear it: who asks, and the right, come first (rule G2)."""
    invalid = cast("RequestValidationError", error)
    try:
        deployment_of(request)
        context = getattr(request.state, "context", None) or context_of(request)
        fields = sorted({entered_field_of(fault) for fault in invalid.errors()})
        await run_in_threadpool(audited.admit_invalid, context, study_of(request), fields)
    except SnoseError as refusal:
        return await _on_error(request, refusal)
    return of_validation(invalid, request_id_of(request))
