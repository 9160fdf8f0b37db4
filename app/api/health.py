"""Health checks: no credentials, and no more said than ok or not."""

from typing import Annotated, Literal

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import JSONResponse, Response

from app.api.schemas import Answer
from app.services import readiness

router = APIRouter(tags=["Health"])


class AliveRead(Answer):
    """The process answers."""

    status: Literal["ok"]


class ReadyRead(Answer):
    """Requests can be served now, or not."""

    status: Annotated[Literal["ok", "not ready"], Field(examples=["ok"])]


class NotReadyRead(Answer):
    """Something is missing: the operator finds out what by `snose doctor` and in the log."""

    status: Annotated[Literal["not ready"], Field(examples=["not ready"])]


@router.get(
    "/livez",
    operation_id="livez",
    summary="Whether the process answers",
    description="Right: nobody's is needed.",
    response_model=AliveRead,
    openapi_extra={"security": []},
)
async def livez() -> Response:
    """Whether the process answers."""
    return JSONResponse({"status": "ok"}, headers={"Cache-Control": "no-store"})


@router.get(
    "/readyz",
    operation_id="readyz",
    summary="Whether requests can be served now",
    description="Right: nobody's is needed. Database, keys, checkpoint sink and schema are looked at.",
    response_model=ReadyRead,
    responses={503: {"model": NotReadyRead}},
    openapi_extra={"security": []},
)
def readyz(request: Request) -> Response:
    """Whether database, keys, sink and schema are all there."""
    ready = readiness.is_ready(request.app.state.deployment)
    return JSONResponse(
        {"status": "ok" if ready else "not ready"},
        200 if ready else 503,
        {"Cache-Control": "no-store"},
    )
