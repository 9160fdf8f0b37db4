"""The OpenAPI document: what the framework knows of the routes, made complete (SYS-08).

The framework writes down parameters, bodies and answers. Added here: the problems that each route can really answer, with their
codes; who may call it and what it asks for; the headers; and an example of every body and answer. What many routes have in
common stands once, under ``components``, so that the document stays small enough to be read.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Final

from fastapi import FastAPI

from app import errors
from app.api.doors import BREAKING, HONOURING_KEY, MAX_KEY
from app.api.examples import example_of, text_example
from app.api.problems import CHALLENGE, MEDIA_TYPE, MalformedRequest, body_of
from app.api.schemas import Problem
from app.domain.words import Action
from app.errors import SnoseError
from app.services import audited

_SCHEMA_ROOT: Final = "#/components/schemas/"
_REQUEST_ID: Final = "5b0f6a5d0d1e4d7f8a7c2b9e3f4a1c6d"
_CONFLICTING_WITH_ONESELF: Final = frozenset({Action.CHALLENGE_PASSKEY, Action.CONFIRM_OWN_IDENTITY})
"""Acts on one's own account that what stands there already can refuse; those of passkeys and recoveries besides."""
_THROTTLED: Final = frozenset(
    {Action.SIGN_IN, Action.ISSUE_TOKEN, Action.STEP_UP, Action.CHANGE_PASSWORD, Action.REQUEST_FACTOR_RECOVERY}
)
_NAMING_IN_BODY: Final = frozenset({Action.BEGIN_SIGN_IN, Action.LINK_IDENTITY, Action.CONFIRM_FACTOR_RECOVERY})
"""What is about an account, or an issuer, that the body names."""
_SAYS_NOTHING: Final = frozenset({"Successful Response", "Service Unavailable"})
"""What the framework writes where nobody said anything."""


class DescribedService(FastAPI):
    """An application whose OpenAPI document is complete."""

    def openapi(self) -> dict[str, Any]:
        """Return the document; it is put together once."""
        if self.openapi_schema is None:
            _complete(super().openapi())
        return super().openapi()


def _complete(document: dict[str, Any]) -> None:
    components = document["components"]
    schemas = components["schemas"]
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    schemas.update(_problem_schemas())
    _drop_titles(document)
    document["info"]["description"] = _GUIDE
    components["securitySchemes"] = _SCHEMES
    components["responses"] = _RESPONSES
    components["headers"] = _HEADERS
    components["parameters"] = {"IdempotencyKey": _KEY}
    document["security"] = [{"bearer": []}]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            for answer in operation["responses"].values():
                answer["description"] = _said(answer, schemas)
            if "x-action" in operation:
                _describe(operation, Action(operation["x-action"]), method.upper(), path)
            _give_examples(operation, schemas)
    _share_parameters(document)


def _describe(operation: dict[str, Any], action: Action, method: str, path: str) -> None:
    """Write down what the door does around a route."""
    answers = {status: answer for status, answer in operation["responses"].items() if status[0] == "2"}
    acts = method == "POST"
    for status, answer in answers.items():
        answer["headers"] = {"X-Request-Id": _header("RequestId"), "Cache-Control": _header("CacheControl")}
        if acts:
            answer["headers"]["Audit-Checkpoint"] = _header("AuditCheckpoint")
        if status == "200" and acts and action in HONOURING_KEY:
            answer["headers"]["Idempotency-Replayed"] = _header("IdempotencyReplayed")
    if acts and action in HONOURING_KEY:
        operation.setdefault("parameters", []).append({"$ref": "#/components/parameters/IdempotencyKey"})
        if "201" in answers:
            # The same answer again; which status it had tells who was first (rule C4).
            answers["200"] = {
                **answers["201"],
                "description": "The stored answer of the same request, sent before",
                "headers": {**answers["201"]["headers"], "Idempotency-Replayed": _header("IdempotencyReplayed")},
            }
    own = {status: answer for status, answer in operation["responses"].items() if "x-own" in answer}
    problems = {
        status: {"$ref": f"#/components/responses/{name}"}
        for status, name in _problems_of(operation, action, method, path)
    }
    for status, answer in own.items():
        del answer["x-own"]
        problems[status] = answer
    operation["responses"] = dict(sorted({**answers, **problems}.items()))
    if audited.is_public(action):
        operation.setdefault("security", [])


def _said(answer: Mapping[str, Any], schemas: Mapping[str, Any]) -> str:
    """Return what an answer is: its own words, or its model's."""
    if answer["description"] not in _SAYS_NOTHING:
        return str(answer["description"])
    named = next((content.get("schema", {}).get("$ref") for content in answer.get("content", {}).values()), None)
    return str(schemas[named.rsplit("/", 1)[1]].get("description", "Done")) if named else "Done"


def _problems_of(operation: Mapping[str, Any], action: Action, method: str, path: str) -> Iterator[tuple[str, str]]:
    """Give status and component of each problem that a route can answer, in the order of rule G2."""
    is_public, is_own = audited.is_public(action), audited.is_own(action)
    yield "400", "Malformed"
    if method == "POST":
        yield "413", "TooLarge"
        yield "415", "UnsupportedMediaType"
    if action in {Action.SIGN_IN, Action.REQUEST_FACTOR_RECOVERY}:
        yield "401", "WrongCredentials"
    elif action in {Action.STEP_UP, Action.CHANGE_PASSWORD, Action.COMPLETE_FACTOR_RECOVERY}:
        yield "401", "WrongProof"
    else:
        yield "401", "StepUpRequired" if audited.is_elevated(action) else "NotAuthenticated"
    if not is_public and action not in {Action.READ_SELF, Action.SIGN_OUT}:
        yield "403", "Forbidden"
    if "{" in path or action in _NAMING_IN_BODY:
        yield "404", "NotFound"
    if operation.get("parameters") or operation.get("requestBody"):
        yield "422", "Invalid"
    can_conflict = "passkey" in path or "recoveries" in path or action in _CONFLICTING_WITH_ONESELF
    if action is Action.READ_PREPARATION or (method != "GET" and (can_conflict or not (is_public or is_own))):
        # Of the readings one alone conflicts: a subject may have no usable kit.
        yield "409", "Conflict"
    if action in _THROTTLED:
        yield "429", "TooManyAttempts"
    yield "503", "RevealUnavailable" if action in BREAKING else "Unavailable"


def _header(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/headers/{name}"}


def _operations(document: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for methods in document["paths"].values():
        yield from methods.values()


def _give_examples(operation: dict[str, Any], schemas: Mapping[str, Any]) -> None:
    """Show a whole body and a whole answer, told as one story (`app.api.examples`)."""
    bodies = [operation["requestBody"]] if "requestBody" in operation else []
    answers = [answer for status, answer in operation["responses"].items() if status[0] == "2" or "content" in answer]
    for holder in (*bodies, *answers):
        for media_type, content in holder.get("content", {}).items():
            if "example" in content or "examples" in content:
                continue
            if media_type == "application/json":
                content["example"] = example_of(content["schema"], schemas)
            elif (text := text_example(operation["operationId"], media_type)) is not None:
                content["example"] = text


def _drop_titles(document: Mapping[str, Any]) -> None:
    """Leave out the titles that the framework makes from the names of fields: they say nothing more."""
    for schema in document["components"]["schemas"].values():
        _untitle(schema)
    for operation in _operations(document):
        for parameter in operation.get("parameters", []):
            _untitle(parameter["schema"])
        for holder in (operation.get("requestBody", {}), *operation["responses"].values()):
            for content in holder.get("content", {}).values():
                _untitle(content.get("schema", {}))


def _untitle(schema: dict[str, Any]) -> None:
    schema.pop("title", None)
    for part in (
        *schema.get("properties", {}).values(),
        *(schema.get(name) for name in ("items", "additionalProperties")),
    ):
        if isinstance(part, dict):
            _untitle(part)
    for name in ("anyOf", "oneOf", "allOf"):
        for part in schema.get(name, []):
            _untitle(part)


def _share_parameters(document: dict[str, Any]) -> None:
    """Write a parameter that several routes have once."""
    kept = document["components"]["parameters"]
    written = Counter(
        json.dumps(parameter, sort_keys=True)
        for operation in _operations(document)
        for parameter in operation.get("parameters", [])
        if "$ref" not in parameter
    )
    names: dict[str, str] = {}
    for text, count in written.items():
        if count > 1:
            parameter = json.loads(text)
            name = "".join(part.capitalize() for part in parameter["name"].split("_"))
            while name in kept:
                name += "_"
            kept[name] = parameter
            names[text] = name
    for operation in _operations(document):
        for place, parameter in enumerate(operation.get("parameters", [])):
            shared = names.get(json.dumps(parameter, sort_keys=True))
            if shared is not None:
                operation["parameters"][place] = {"$ref": f"#/components/parameters/{shared}"}


# -- what stands once ------------------------------------------------------------------------------------------------

_GUIDE: Final = (
    "Problems are RFC 9457 documents of type `application/problem+json` with a stable `code`. Several faults at once are told in "
    "this order: 400, 413 or 415; 401; 404 for the study; 403; 401 with a step-up challenge; 422; 404 for an object; 409.\n\n"
    'Where a right is "with a fresh one-time code", the second proof may be at most five minutes old. Without it the answer is '
    '401 with the challenge of RFC 9470: `WWW-Authenticate: Bearer error="insufficient_user_authentication", acr_values="mfa", '
    'max_age="300"`. Send the code to `POST /v1/sessions/step-up` and repeat the request with the new token.\n\n'
    "A passkey does the same at `POST /v1/sessions/step-up/passkey`. Or it signs one request: name it at `POST "
    "/v1/sessions/challenge`, have the options signed, and send the request with the header `Snose-Passkey`, the base64url of "
    "what `PublicKeyCredential.toJSON()` gives. That proof is good for this request and no other."
)

_SCHEMES: Final[dict[str, Any]] = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "an opaque token of `POST /v1/sessions`, `POST /v1/sessions/step-up` or `POST /oauth2/token`",
    },
    "basic": {
        "type": "http",
        "scheme": "basic",
        "description": "client id and secret of a machine client, at `POST /oauth2/token` only (RFC 6749, 2.3.1)",
    },
}

_HEADERS: Final[dict[str, Any]] = {
    "RequestId": {
        "description": "the server's own id of the request, which its entry in the trail and its line in the log carry",
        "schema": {"type": "string"},
        "example": _REQUEST_ID,
    },
    "CacheControl": {
        "description": "`no-store` where an answer reveals or holds a credential, else `private, no-cache`",
        "schema": {"type": "string"},
        "example": "private, no-cache",
    },
    "AuditCheckpoint": {
        "description": "size, root and signature of the log after this act, where the act was entered",
        "schema": {"type": "string"},
        "example": "1842 n2xvCh5de3vIepPmL8a5GQd2pXBvEoFqvKk0cXW4bzs= kZ3p...",
    },
    "IdempotencyReplayed": {
        "description": "`true` on a stored answer",
        "schema": {"type": "string", "const": "true"},
        "example": "true",
    },
    "Challenge": {
        "description": "how to become known (RFC 6750), or which proof is missing (RFC 9470)",
        "schema": {"type": "string"},
        "example": CHALLENGE,
    },
    "RetryAfter": {
        "description": "seconds to wait",
        "schema": {"type": "string", "pattern": "^[0-9]+$"},
        "example": "2",
    },
}

_KEY: Final[dict[str, Any]] = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": (
        "any text of the client's for one act: the same request with the same key again is answered from store, 422 "
        "`idempotency_key_reused` with other content, 409 `in_progress` while the first one runs"
    ),
    "schema": {"type": "string", "minLength": 1, "maxLength": MAX_KEY, "pattern": "^[ -~]+$"},
    "example": "8e03978e-40d5-43e8-bc93-6894a57f9324",
}


def _problem_schemas() -> dict[str, Any]:
    schema = Problem.model_json_schema(ref_template=f"{_SCHEMA_ROOT}{{model}}")
    return {**schema.pop("$defs"), "Problem": schema}


def _branch(kind: type[SnoseError]) -> list[type[SnoseError]]:
    """Return an error and all that are kinds of it, each code once."""
    found = {kind.code: kind}
    for child in kind.__subclasses__():
        for one in _branch(child):
            found.setdefault(one.code, one)
    return list(found.values())


def _made(kind: type[SnoseError]) -> SnoseError:
    if kind is errors.TooManyAttempts:
        return errors.TooManyAttempts("Too many wrong tries; wait 2 seconds.", 2)
    if kind is errors.FaultyImport:
        return errors.FaultyImport(
            "1 line is wrong.", (("kits.3.kit_code", "The last character does not check the others."),), "kits"
        )
    if kind is errors.RevealUnavailable:
        return kind(backup_contact="Pharmacy on call, +86 10 5550 0100")
    if issubclass(kind, errors.Invalid):
        return kind(field="site_code")
    return kind()


def _response(description: str, *problems: SnoseError, **headers: str) -> dict[str, Any]:
    shown = {error.code: {"value": body_of(error, _REQUEST_ID)} for error in problems}
    schema = {"$ref": f"{_SCHEMA_ROOT}Problem"}
    response: dict[str, Any] = {
        "description": description,
        "content": {MEDIA_TYPE: {"schema": schema, "examples": shown}},
        "headers": {"X-Request-Id": _header("RequestId")},
    }
    response["headers"].update({name.replace("_", "-"): _header(header) for name, header in headers.items()})
    return response


def _of_branch(kind: type[SnoseError]) -> list[SnoseError]:
    return [_made(one) for one in _branch(kind)]


_nobody: Final = errors.NotAuthenticated()
_RESPONSES: Final[dict[str, Any]] = {
    "Malformed": _response(
        "The request cannot be read", MalformedRequest("The body is not JSON in UTF-8, or is nested too deeply.", 400)
    ),
    "TooLarge": _response("The body is too large", MalformedRequest("The body is larger than 1048576 bytes.", 413)),
    "UnsupportedMediaType": _response(
        "The body is of another media type", MalformedRequest("The body must be application/json.", 415)
    ),
    "NotAuthenticated": _response("No token, or one that has ended", _nobody, WWW_Authenticate="Challenge"),
    "StepUpRequired": _response(
        "No token, or a fresh one-time code is missing (the challenge of RFC 9470)",
        _nobody,
        errors.StepUpRequired(),
        WWW_Authenticate="Challenge",
    ),
    "WrongCredentials": _response(
        "User name or password is wrong, or the passkey or the provider proves nothing",
        errors.WrongCredentials(),
        errors.WrongPasskey(),
        errors.SignInRefused(),
        WWW_Authenticate="Challenge",
    ),
    "WrongProof": _response(
        "No token, or the proof is wrong",
        _nobody,
        errors.WrongCredentials(),
        errors.WrongOneTimeCode(),
        errors.WrongPasskey(),
        WWW_Authenticate="Challenge",
    ),
    "Forbidden": _response("The role does not include this; the attempt was entered", *_of_branch(errors.Forbidden)),
    "NotFound": _response("No such thing, or not the caller's", errors.Missing()),
    "Conflict": _response("The present state does not allow this", *_of_branch(errors.Conflict)),
    "Invalid": _response("A value is wrong; each field is named", *_of_branch(errors.Invalid)),
    "TooManyAttempts": _response("Too many wrong tries", *_of_branch(errors.TooManyAttempts), Retry_After="RetryAfter"),
    "Unavailable": _response(
        "Not now; nothing was decided, or the outcome is not known",
        *(one for one in _of_branch(errors.Unavailable) if not isinstance(one, errors.RevealUnavailable)),
    ),
    "RevealUnavailable": _response(
        "Nothing was revealed; the back-up contact is named", *_of_branch(errors.Unavailable)
    ),
}
