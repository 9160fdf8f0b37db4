"""The OpenAPI document says everything that a client needs, and what it says is so."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import jsonschema_rs
import pytest
import schemathesis
from schemathesis.core.result import Ok

from app import errors, main
from app.api.doors import HONOURING_KEY, REVEALING, Door, DoorRoute
from app.api.problems import MalformedRequest
from app.domain.words import Action
from app.errors import SnoseError
from app.policy import ELEVATED, PERMISSIONS
from tests import harness
from tests.declared import is_undeclared
from tests.harness import House, Json, expect
from tests.running_study import S, running_study

BYTES: Final = frozenset({"application/zip", "application/octet-stream"})
"""Archives and sealed boxes: no text could be their example."""
METHODS: Final = frozenset({"get", "post", "delete"})


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory, migrated_sqlite: Path) -> Json:
    """The document as the service gives it."""
    folder = tmp_path_factory.mktemp("openapi")
    copied = folder / "snose.sqlite"
    copied.write_bytes(migrated_sqlite.read_bytes())
    with harness.house(f"sqlite:///{copied}", folder) as house:
        return expect(house.client.get("/openapi.json"), 200)


def operations(document: Json) -> Iterator[tuple[str, Json]]:
    for path, methods in document["paths"].items():
        assert methods.keys() <= METHODS, path
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


def resolved(part: Json, document: Json) -> Json:
    while "$ref" in part:
        found = document
        for name in part["$ref"].removeprefix("#/").split("/"):
            found = found[name]
        part = found
    return part


def bodies(operation: Json, document: Json) -> Iterator[tuple[str, str, Json]]:
    """Give place, media type and content of every body that is asked for or answered."""
    if "requestBody" in operation:
        for media_type, content in operation["requestBody"]["content"].items():
            yield "request", media_type, content
    for status, answer in operation["responses"].items():
        for media_type, content in resolved(answer, document).get("content", {}).items():
            yield status, media_type, content


def examples(content: Json) -> list[Json]:
    return (
        [content["example"]] if "example" in content else [one["value"] for one in content.get("examples", {}).values()]
    )


def validator(schema: Json, document: Json) -> jsonschema_rs.Validator:
    return jsonschema_rs.Draft202012Validator({**schema, "components": document["components"]}, validate_formats=True)


class TestDocument:
    def test_is_openapi_3_1_and_loads_in_a_foreign_tool(self, document: Json) -> None:
        """A generator of clients or tests can read it (SYS-08)."""
        assert document["openapi"].startswith("3.1.")
        schema = schemathesis.openapi.from_dict(document)
        schema.validate()
        loaded = {found.ok().label for found in schema.get_all_operations() if isinstance(found, Ok)}
        assert loaded == {name for name, _ in operations(document)}

    def test_every_reference_leads_somewhere_and_every_component_is_used(self, document: Json) -> None:
        """Nothing is left over, and nothing is missing (SYS-08)."""
        text = json.dumps(document)
        named = {
            f"#/components/{kind}/{name}"
            for kind, components in document["components"].items()
            if kind != "securitySchemes"
            for name in components
        }
        used = {part.split('"')[0] for part in text.split('"$ref": "')[1:]}
        assert used == named
        for reference in used:
            resolved({"$ref": reference}, document)

    def test_stays_small_enough_to_be_read(self, document: Json) -> None:
        """What operations share stands once (SYS-08)."""
        assert len(json.dumps(document, separators=(",", ":"))) < 2_800 * len(list(operations(document)))

    def test_every_operation_says_what_it_is_and_who_may(self, document: Json) -> None:
        """operationId, summary, the right needed (SYS-08, USR-02)."""
        ids = [operation["operationId"] for _, operation in operations(document)]
        assert len(ids) == len(set(ids)) > 60
        for name, operation in operations(document):
            assert operation["summary"][0].isupper(), name
            assert operation["summary"][-1] != ".", name
            assert operation["description"].startswith("Right: "), name
            if "x-action" in operation:
                action = Action(operation["x-action"])
                for role, actions in PERMISSIONS.items():
                    named = role in operation["description"].replace(",", " ").replace(".", " ").split()
                    assert named is (action in actions), (name, role)
                assert ("fresh one-time code" in operation["description"]) is (action in ELEVATED), name

    def test_every_door_is_described(self, document: Json) -> None:
        """No route is hidden from the document (SYS-08)."""
        described = {(operation["operationId"], name) for name, operation in operations(document)}
        routes = [route for door in main.DOORS for route in door.router.routes if isinstance(route, DoorRoute)]
        declared = {(str(route.operation_id), route.path_format) for route in routes}
        assert {(name, label.split(" ")[1]) for name, label in described} == declared | {
            ("livez", "/livez"),
            ("readyz", "/readyz"),
        }

    def test_the_bearer_is_asked_for_everywhere_but_where_one_becomes_known(self, document: Json) -> None:
        """Security is declared for the whole, with its exceptions (RFC 6750, USR-12)."""
        assert document["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"
        assert document["security"] == [{"bearer": []}]
        without = {name for name, operation in operations(document) if "security" in operation}
        assert without == {
            *("GET /livez", "GET /readyz", "POST /v1/sessions", "POST /oauth2/token"),
            *("POST /v1/sessions/challenge", "POST /v1/sessions/passkey"),
            *("POST /v1/factor-recoveries", "POST /v1/factor-recoveries/{recovery_id}/completion"),
            *("POST /v1/sign-ins", "POST /v1/sign-ins/completion"),
        }


class TestExamples:
    def test_every_body_and_answer_has_an_example_that_fits_its_schema(self, document: Json) -> None:
        """An example for every request, answer and problem; none is invented beside the schema (SYS-08, api.md)."""
        seen = 0
        for name, operation in operations(document):
            for place, media_type, content in bodies(operation, document):
                if media_type in BYTES or (place[0] in "45" and "oauth2" in name and media_type != "application/json"):
                    continue
                shown = examples(content)
                assert shown, (name, place, media_type)
                check = validator(content["schema"], document)
                for example in shown:
                    assert example not in ("", [], {}), (name, place)
                    check.validate(example)
                    seen += 1
        assert seen > 500

    def test_every_operation_that_acts_says_what_it_takes(self, document: Json) -> None:
        """A POST without a body takes nothing but its path (SYS-08)."""
        bare = {
            name for name, operation in operations(document) if name[:4] == "POST" and "requestBody" not in operation
        }
        assert all(name.rsplit("/", 1)[1] in BARE for name in bare), bare

    def test_request_examples_are_accepted_as_they_stand(self, house: House, document: Json) -> None:
        """Whoever copies an example and has the right hears nothing about its form (SYS-08)."""
        study = running_study(house)
        tried = 0
        for name, operation in operations(document):
            method, path = name.split(" ")
            if "requestBody" not in operation or "x-action" not in operation or path == "/oauth2/token":
                continue
            action = Action(operation["x-action"])
            role = next((role for role, actions in PERMISSIONS.items() if action in actions), None)
            caller = house.admin if role in {None, "service_admin"} else study.person(str(role))
            if role == "study_admin":
                caller = study.study_admin
            for media_type, content in operation["requestBody"]["content"].items():
                example = content["example"]
                text = example if isinstance(example, str) else json.dumps(example)
                token = caller.elevated_token() if action in ELEVATED else caller.token()
                headers = {"Authorization": f"Bearer {token}", "Content-Type": media_type}
                response = house.client.request(method, at(path, operation, document), content=text, headers=headers)
                assert response.status_code not in {400, 413, 415, 500}, (name, response.text)
                if response.status_code == 422:
                    # Only what this study is not: it has no factor and no other person's password.
                    assert response.json()["code"] in SAID_OF_THE_STUDY, (name, response.text)
                tried += 1
        assert tried > 35


SAID_OF_THE_STUDY: Final = frozenset({"invalid_specification", "faulty_import"})
BARE: Final = frozenset(
    {
        *("activation", "challenge", "confirmation", "deactivation", "opening"),
        *("release", "replacement-release", "reset"),
    }
)


def at(path: str, operation: Json, document: Json) -> str:
    """Return a path with the examples of its parameters in it."""
    for parameter in (resolved(one, document) for one in operation.get("parameters", [])):
        if parameter["in"] == "path":
            schema = parameter["schema"]
            example = {"username": "m.rossi", "code": "C9", "index": 0}.get(parameter["name"]) or schema.get(
                "examples", [0]
            )[0]
            path = path.replace(f"{{{parameter['name']}}}", str(example))
    return path


class TestProblems:
    def test_problems_are_of_their_media_type_and_schema(self, document: Json) -> None:
        """application/problem+json, one schema, right status in each example (RFC 9457, G1)."""
        for name, operation in operations(document):
            if "x-action" not in operation:
                continue
            problems = {status: resolved(answer, document) for status, answer in operation["responses"].items()}
            for status, answer in problems.items():
                if status[0] == "2":
                    continue
                content = answer["content"]["application/problem+json"]
                assert content["schema"] == {"$ref": "#/components/schemas/Problem"}
                if "oauth2" in name and status in {"400", "401"}:
                    continue
                assert answer["content"].keys() == {"application/problem+json"}, (name, status)
                for code, example in content["examples"].items():
                    assert example["value"]["code"] == code
                    assert example["value"]["status"] == int(status), (name, status, code)

    def test_every_error_of_the_service_is_documented_with_its_code(self, document: Json) -> None:
        """No code comes that the document does not know (G1, SYS-08)."""
        shown = {
            code
            for answer in document["components"]["responses"].values()
            for code in answer["content"]["application/problem+json"]["examples"]
        }
        codes = {kind.code for kind in tree(SnoseError)}
        assert shown == codes - {SnoseError.code, errors.UnsafeSetting.code} | {MalformedRequest.code}

    def test_a_missing_second_proof_is_shown_as_its_challenge(self, document: Json) -> None:
        """Step-up calls mention RFC 9470 and its header (D3, SIG-01)."""
        for name, operation in operations(document):
            if "x-action" in operation and Action(operation["x-action"]) in ELEVATED:
                answer = resolved(operation["responses"]["401"], document)
                assert "RFC 9470" in answer["description"], name
                header = resolved(answer["headers"]["WWW-Authenticate"], document)
                assert 'error="insufficient_user_authentication"' in header["example"]
                assert 'max_age="300"' in header["example"]
                assert "step_up_required" in answer["content"]["application/problem+json"]["examples"]

    def test_an_answer_that_is_not_declared_fails_its_test(self, house: House) -> None:
        """Negative control: the harness holds every answer of the suite to the document, and finds one that it lacks (G1, T11)."""
        for method, path, status in (("GET", "/v1/me", 409), ("get", "/v1/studies/S1/subjects/1/kits?limit=1", 418)):
            assert is_undeclared(house.app, method, path, status)
            assert not is_undeclared(house.app, method, path, 401)
        assert not is_undeclared(house.app, "GET", "/v1/nowhere/at/all", 404)

    def test_a_reading_that_conflicts_is_declared(self, house: House, document: Json) -> None:
        """A subject whose kits are out of date has nothing to be prepared, which no client meets unprepared (SYS-08, T11)."""
        study = running_study(house, subjects=1)
        house.clock.advance(days=800)
        answer = study.person("unblinded_pharmacist").get(f"{S}/subjects/01-0001/preparation", step_up=True)
        assert expect(answer, 409)["code"] == "kit_mismatch"
        assert "409" in document["paths"]["/v1/studies/{study}/subjects/{subject}/preparation"]["get"]["responses"]

    def test_a_code_break_that_cannot_be_made_names_the_back_up_contact(self, document: Json) -> None:
        """Every 503 of a code break carries the contact, in the document too (D4)."""
        answer = resolved(document["paths"]["/v1/studies/{study}/code-breaks"]["post"]["responses"]["503"], document)
        example = answer["content"]["application/problem+json"]["examples"]["reveal_unavailable"]["value"]
        assert example["backup_contact"]


def tree(kind: type[SnoseError]) -> set[type[SnoseError]]:
    """Return an error of `app.errors` and all that are kinds of it."""
    return {kind}.union(*(tree(child) for child in kind.__subclasses__() if child.__module__ == "app.errors"))


def members(part: Json, document: Json) -> set[str]:
    """Return the names of all members that a part of the document describes, wherever it refers to."""
    if isinstance(part, list):
        return set().union(*(members(one, document) for one in part))
    if not isinstance(part, dict):
        return set()
    if "$ref" in part:
        return members(resolved(part, document), document)
    named = set(part.get("properties", {}))
    return named.union(*(members(one, document) for one in part.values()))


class TestHeaders:
    def test_the_key_is_declared_exactly_where_it_is_honoured(self, document: Json) -> None:
        """`Idempotency-Key` on the POSTs that it answers from store, with the replay and its header (C4)."""
        for name, operation in operations(document):
            names = {resolved(parameter, document)["name"] for parameter in operation.get("parameters", [])}
            honours = "x-action" in operation and Action(operation["x-action"]) in HONOURING_KEY
            assert ("Idempotency-Key" in names) is honours, name
            if honours:
                assert name.startswith("POST")
                assert "Idempotency-Replayed" in operation["responses"]["200"]["headers"], name

    def test_no_cache_may_keep_an_arm_a_list_or_a_credential(self, document: Json) -> None:
        """`no-store` wherever an answer has a field that could hold one (BLD-13); the public definition of a study is none."""
        secret = {
            *("arm_code", "treatment", "block_sizes", "warnings", "report", "part"),
            *("access_token", "password", "totp_secret", "client_secret"),
        }
        seen: set[Action] = set()
        for name, operation in operations(document):
            if operation.get("tags") == ["Studies and sites"] or "x-action" not in operation:
                continue
            answers = [answer for status, answer in operation["responses"].items() if status[0] == "2"]
            if secret & members(answers, document):
                seen.add(Action(operation["x-action"]))
                assert Action(operation["x-action"]) in REVEALING, name
        assert {Action.READ_SCHEDULES, Action.STEP_UP, Action.BREAK_CODE} <= seen

    def test_every_act_gives_its_checkpoint(self, document: Json) -> None:
        """`Audit-Checkpoint` on 2xx answers of POSTs (AUD-18)."""
        for name, operation in operations(document):
            for status, answer in operation["responses"].items():
                if status[0] == "2" and name.startswith("POST"):
                    assert "Audit-Checkpoint" in answer["headers"], name

    def test_a_repeated_request_is_replayed_as_documented(self, house: House) -> None:
        """The key answers from store where it is declared, and is ignored where it is not (C4)."""
        study = running_study(house)
        key = {"Idempotency-Key": "8e03978e-40d5-43e8-bc93-6894a57f9324"}
        site = {"site_code": "03", "name": "Third", "timezone": "Asia/Shanghai"}
        first = study.study_admin.post(f"{S}/sites", json=site, headers=key)
        again = study.study_admin.post(f"{S}/sites", json=site, headers=key)
        assert (expect(first, 201), "Idempotency-Replayed" in first.headers) == (expect(again, 200), False)
        assert again.headers["Idempotency-Replayed"] == "true"
        assert "Audit-Checkpoint" in again.headers
        other = study.study_admin.post(f"{S}/sites", json={**site, "site_code": "04"}, headers=key)
        assert expect(other, 422)["code"] == "idempotency_key_reused"
        body = {"subject_id": "01-0001", "reason_code": "overdose"}
        broken = [study.investigator.post(f"{S}/code-breaks", json=body, step_up=True, headers=key) for _ in range(2)]
        ids = {expect(response, 201)["code_break_id"] for response in broken}
        assert len(ids) == 2


def test_a_route_that_the_policy_does_not_know_is_not_built() -> None:
    """Absent means no: the application is refused, not the request (USR-02)."""
    main._require_cover(main.DOORS)
    door = Door("Strange")

    def strange() -> Mapping[str, Any]:
        """Do something strange."""
        return {}

    door.get("/strange", Action.READ_STUDY)(strange)
    route = door.router.routes[-1]
    assert isinstance(route, DoorRoute)
    # A word that no entry of the table names: at present every Action has one.
    route.action = "strange:do"  # type: ignore[assignment]  # an action that nobody declared is the point
    with pytest.raises(RuntimeError, match="no policy entry"):
        main._require_cover((*main.DOORS, door))
