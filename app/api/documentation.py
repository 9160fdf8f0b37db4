"""The documentation page: made by the service itself from its OpenAPI document, without a script and without another host's assets."""

import json
from collections.abc import Mapping
from typing import Any, Final

from fastapi import APIRouter, Request
from jinja2 import Environment, PackageLoader, select_autoescape
from starlette.responses import HTMLResponse, Response

router = APIRouter(include_in_schema=False)

_POLICY: Final = "default-src 'none'; style-src 'self'; img-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
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
    body = operation.get("requestBody", {}).get("content", {})
    media_type, content = next(iter(body.items()), (None, {}))
    return {
        "id": operation["operationId"],
        "summary": operation.get("summary", ""),
        "description": operation.get("description", ""),
        "parameters": operation.get("parameters", []),
        "media_type": media_type,
        "example": _example(content, document) if body else None,
        "answers": [
            {
                "status": status,
                "description": answer.get("description", ""),
                "example": next(
                    (_example(kind, document) for kind in answer.get("content", {}).values() if status[0] == "2"), None
                ),
            }
            for status, answer in operation.get("responses", {}).items()
        ],
    }


def _example(content: Mapping[str, Any], document: Mapping[str, Any]) -> str:
    found = content.get("example")
    if found is None:
        found = example_of(content.get("schema", {}), document)
    return found if isinstance(found, str) else json.dumps(found, indent=2, ensure_ascii=False)


def example_of(schema: Mapping[str, Any], document: Mapping[str, Any]) -> Any:  # noqa: ANN401  # whatever JSON holds
    """Return an example of a schema: its own, or one put together from its parts."""
    if "$ref" in schema:
        return example_of(document["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]], document)
    for name in ("example", "default", "const"):
        if name in schema:
            return schema[name]
    for name in ("examples", "enum"):
        if schema.get(name):
            return schema[name][0]
    for name in ("anyOf", "oneOf", "allOf"):
        if schema.get(name):
            return example_of(schema[name][0], document)
    if schema.get("type") == "object" and "properties" in schema:
        return {name: example_of(part, document) for name, part in schema["properties"].items()}
    if schema.get("type") == "array":
        return [example_of(schema["items"], document)] if "items" in schema else []
    return {"integer": 1, "number": 1, "boolean": True, "object": {}}.get(schema.get("type", ""), "...")
