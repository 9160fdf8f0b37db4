"""The documentation page, made by the service itself from its OpenAPI document; no script, no asset of another host."""

import json
from collections.abc import Mapping
from typing import Any, Final, cast

from fastapi import APIRouter, Request
from jinja2 import Environment, PackageLoader, select_autoescape
from starlette.responses import HTMLResponse, Response

router = APIRouter(include_in_schema=False)

_POLICY: Final = (
    "default-src 'none'; style-src 'self'; img-src 'self'; object-src 'none'; frame-ancestors 'none'; base-uri 'none'; "
    "form-action 'none'"
)
_EVERYWHERE: Final = frozenset({"X-Request-Id", "Cache-Control"})
"""Headers that say nothing about one operation."""
_templates: Final = Environment(
    loader=PackageLoader("app.api", "pages"), autoescape=select_autoescape(), trim_blocks=True, lstrip_blocks=True
)


@router.get("/docs")
def documentation(request: Request) -> Response:
    """Show every operation: who may call it, what it takes, what it answers, what can go wrong."""
    document = request.app.openapi()
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            tag = operation.get("tags", ["Other"])[0]
            groups.setdefault(tag, []).append({"method": method.upper(), "path": path, **_shown(operation, document)})
    page = _templates.get_template("documentation.html").render(info=document["info"], groups=groups)
    return HTMLResponse(page, headers={"Content-Security-Policy": _POLICY, "Cache-Control": "no-cache"})


@router.get("/docs/style.css")
def style() -> Response:
    """Give the page its style."""
    return Response(_templates.get_template("documentation.css").render(), media_type="text/css")


def _shown(operation: Mapping[str, Any], document: Mapping[str, Any]) -> dict[str, Any]:
    body = _resolved(operation.get("requestBody", {}), document)
    return {
        "id": operation["operationId"],
        "summary": operation.get("summary", ""),
        "description": operation.get("description", ""),
        "parameters": [_resolved(parameter, document) for parameter in operation.get("parameters", [])],
        "bodies": _examples(body),
        "answers": [
            {
                "status": status,
                # The same answer as the one that it repeats, which stands beside it.
                "is_replay": status == "200" and "201" in operation["responses"],
                **_answer(_resolved(answer, document)),
            }
            for status, answer in operation["responses"].items()
        ],
    }


def _answer(answer: Mapping[str, Any]) -> dict[str, Any]:
    codes = [code for content in answer.get("content", {}).values() for code in content.get("examples", {})]
    return {
        "description": answer["description"],
        "headers": [name for name in answer.get("headers", {}) if name not in _EVERYWHERE],
        "bodies": _examples(answer),
        "codes": codes,
    }


def _examples(holder: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return media type and example of each form of a body."""
    return [
        (media_type, example if isinstance(example := content.get("example", ""), str) else _printed(example))
        for media_type, content in holder.get("content", {}).items()
    ]


def _printed(example: object) -> str:
    return json.dumps(example, indent=2, ensure_ascii=False)


def _resolved(part: Mapping[str, Any], document: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what stands in this place, or what it refers to."""
    if "$ref" not in part:
        return part
    found: Any = document
    for name in str(part["$ref"]).removeprefix("#/").split("/"):
        found = found[name]
    return cast("Mapping[str, Any]", found)
