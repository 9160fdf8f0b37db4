"""Every error has its status; every problem is plain."""

import json

import pytest
from starlette.exceptions import HTTPException

from app import errors
from app.api.problems import CHALLENGE, MalformedRequest, field_of, of_error, of_http, status_of
from app.errors import SnoseError

BRANCHES = {
    errors.Invalid: 422,
    errors.NotAuthenticated: 401,
    errors.StepUpRequired: 401,
    errors.TooManyAttempts: 429,
    errors.Forbidden: 403,
    errors.Missing: 404,
    errors.Conflict: 409,
    errors.Unavailable: 503,
    errors.UnsafeSetting: 503,
}


def tree(kind: type[SnoseError]) -> list[type[SnoseError]]:
    children = [child for child in kind.__subclasses__() if child.__module__ == "app.errors"]
    return children + [one for child in children for one in tree(child)]


def made(kind: type[SnoseError]) -> SnoseError:
    if kind is errors.TooManyAttempts:
        return errors.TooManyAttempts("Too many wrong tries.", 7)
    return errors.FaultyImport("Wrong.", (("kits.0", "Wrong."),), "kits") if kind is errors.FaultyImport else kind()


@pytest.mark.parametrize("kind", tree(SnoseError), ids=lambda kind: kind.__name__)
def test_every_error_is_a_plain_problem_of_its_branch(kind: type[SnoseError]) -> None:
    """One table gives each branch its status; type, title, code and advice are there (RFC 9457, G1)."""
    error = made(kind)
    response = of_error(error, "r1")
    body = json.loads(bytes(response.body))
    assert response.status_code == status_of(error) == next(BRANCHES[one] for one in kind.__mro__ if one in BRANCHES)
    assert response.media_type == "application/problem+json"
    assert response.headers["cache-control"] == "no-store"
    assert body["type"] == f"urn:snose:problem:{kind.code}"
    assert (body["status"], body["code"], body["request_id"]) == (response.status_code, kind.code, "r1")
    assert all(isinstance(body[member], str) and body[member] for member in ("title", "detail", "advice"))
    assert kind.code.replace("_", "").isalpha()
    assert kind.code.islower()


def test_no_two_situations_share_a_code_but_a_kind_and_its_own() -> None:
    """A code is stable and means one thing (api.md)."""
    owners: dict[str, type[SnoseError]] = {}
    for kind in tree(SnoseError):
        owner = owners.setdefault(kind.code, kind)
        assert issubclass(kind, owner), (kind, owner)


def test_a_401_carries_the_challenge_that_fits() -> None:
    """Bearer for nobody, RFC 9470 for a missing proof; nothing beside 401 (RFC 9110, D3)."""
    assert of_error(errors.NotAuthenticated(), "r").headers["www-authenticate"] == "Bearer"
    assert of_error(errors.WrongOneTimeCode(), "r").headers["www-authenticate"] == "Bearer"
    assert of_error(errors.StepUpRequired(), "r").headers["www-authenticate"] == CHALLENGE
    assert "www-authenticate" not in of_error(errors.Forbidden(), "r").headers
    assert of_error(made(errors.TooManyAttempts), "r").headers["retry-after"] == "7"
    assert of_error(errors.HashingBusy(), "r").headers["retry-after"] == "2"


@pytest.mark.parametrize("status", [400, 413, 415])
def test_a_malformed_request_has_the_status_of_its_fault(status: int) -> None:
    """400, 413, 415 are one kind of problem (G2)."""
    response = of_error(MalformedRequest("The body is too large.", status), "r")
    assert (response.status_code, json.loads(bytes(response.body))["code"]) == (status, "malformed_request")


def test_the_frameworks_own_refusals_are_problems_too() -> None:
    """No such address, no such method (G1)."""
    missing = json.loads(bytes(of_http(HTTPException(404, "/secret"), "r").body))
    assert missing["code"] == "not_found"
    assert "/secret" not in json.dumps(missing)
    refused = of_http(HTTPException(405, headers={"Allow": "GET"}), "r")
    assert json.loads(bytes(refused.body))["code"] == "method_not_allowed"
    assert refused.headers["allow"] == "GET"


def test_a_field_is_named_in_the_words_of_the_request_and_nothing_else() -> None:
    """Made-up names are not echoed (G1)."""
    assert field_of(("body", "kits", 3, "arm_code")) == "kits.3.arm_code"
    assert field_of(("query", "limit")) == "limit"
    assert field_of(("body",)) == "body"
    assert field_of(("body", "\ud800")) == "?"
    assert field_of(("body", "x" * 61)) == "?"
    assert field_of(("body", "")) == "?"
    assert field_of(("body", "a\nb")) == "?"


def test_a_members_text_outside_of_ascii_is_escaped() -> None:
    """No text of anybody's can break the encoding of an answer (G1)."""
    response = of_error(errors.Conflict("\ud800 \u202e é"), "r")
    assert bytes(response.body).isascii()
    assert json.loads(bytes(response.body))["detail"] == "\ud800 \u202e é"
