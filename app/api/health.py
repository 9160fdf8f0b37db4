"""Health checks: no credentials, and no more said than ok or not."""

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from app.services import readiness

router = APIRouter(tags=["Health"])


@router.get("/livez", operation_id="livez", summary="Whether the process answers")
async def livez() -> Response:
    """Whether the process answers."""
    return JSONResponse({"status": "ok"}, headers={"Cache-Control": "no-store"})


@router.get("/readyz", operation_id="readyz", summary="Whether requests can be served now")
def readyz(request: Request) -> Response:
    """Whether database, keys, sink and schema are all there."""
    ready = readiness.is_ready(request.app.state.deployment)
    return JSONResponse(
        {"status": "ok" if ready else "not ready"},
        200 if ready else 503,
        {"Cache-Control": "no-store"},
    )
