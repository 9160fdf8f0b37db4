"""What holds for every operation, whoever asks and whatever it answers: headers, media types, methods, and nothing said twice."""

import json
import re
from typing import Any, Final

import pytest
from httpx2 import Response

from app.api.doors import IMPORTING, REVEALING, DoorRoute
from app.main import DOORS
from tests.harness import STUDY, House
from tests.security.operations import Operation, operations_of

PLAIN: Final = (
    "/livez",
    "/readyz",
    "/openapi.json",
    "/docs",
    "/docs/style.css",
    "/nothing",
    "/docs/",
    "/.git/config",
    "/app/main.py",
)
METHODS: Final = ("TRACE", "CONNECT", "OPTIONS", "HEAD", "PUT", "PATCH", "DELETE", "POST", "GET")
OVERRIDES: Final = ("X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override")
BODIES: Final[tuple[tuple[bytes | None, str], ...]] = (
    (None, ""),
    (b"{", "application/json"),
    (b"{}", "application/json"),
    (b"{}", "text/plain"),
)
SECRET: Final = re.compile(r"token|password|passwd|secret|otp|code_verifier|assertion|api_?key|session", re.IGNORECASE)


@pytest.fixture(params=["sqlite"])
def database_kind(request: pytest.FixtureRequest) -> str:
    """One database: what is looked at here is said before any is asked, or is the same for both."""
    kind: str = request.param
    return kind


def all_of(house: House) -> list[Operation]:
    found = operations_of(house.app.openapi())
    assert len(found) > 80
    return found


def ask(
    house: House, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
) -> Response:
    answer = house.client.request(method, path, content=body, headers=headers or {})
    assert answer.status_code < 500, (method, path, answer.text)
    return answer


def parameters_of(house: House) -> list[dict[str, Any]]:
    document = house.app.openapi()
    found = [
        one
        for methods in document["paths"].values()
        for operation in methods.values()
        for one in operation.get("parameters", ())
    ]
    return [
        document["components"]["parameters"][one["$ref"].rpartition("/")[2]] if "$ref" in one else one for one in found
    ]


def faults_of(answer: Response) -> list[str]:
    """Return what is wrong with an answer as a browser, a cache or another origin would meet it."""
    told = answer.headers
    policy = dict(part.strip().partition(" ")[::2] for part in told.get("content-security-policy", "").split(";"))
    kind = told.get("content-type", "")
    holds = {
        "hsts": told.get("strict-transport-security") == "max-age=31536000; includeSubDomains",
        "csp": all(policy.get(name) == "'none'" for name in ("default-src", "object-src", "base-uri", "form-action")),
        "script": "script-src" not in policy,
        "frames": policy.get("frame-ancestors") == "'none'",
        "sniffing": told.get("x-content-type-options") == "nosniff",
        "referrer": told.get("referrer-policy") == "no-referrer",
        "embedding": told.get("cross-origin-resource-policy") == "same-origin",
        "opener": told.get("cross-origin-opener-policy") == "same-origin",
        "cors": not [name for name in told if name.startswith("access-control-")],
        "cookie": "set-cookie" not in told,
        "software": not {"server", "x-powered-by"} & set(told),
        "redirect": "location" not in told and not 300 <= answer.status_code < 400,
        "media type": not answer.content or bool(kind),
        "charset": not kind.startswith("text/") or "charset=utf-8" in kind.lower(),
        "length": "content-length" not in told or int(told["content-length"]) == len(answer.content),
        "cache": kind.startswith("text/css")
        or any(word in told.get("cache-control", "") for word in ("no-store", "no-cache")),
    }
    if "json" in kind and answer.content:
        json.loads(answer.content.decode("utf-8"))
    return [name for name, is_so in holds.items() if not is_so]


class TestHeaders:
    def test_every_answer_of_every_operation(self, house: House) -> None:
        """For nobody and for somebody, refused and not: no other origin frames, sniffs, embeds or reads it. [BLD-13; T28]"""
        house.register_study()
        callers = {"nobody": None, "admin": house.admin, "study_admin": house.study_admins[STUDY]}
        seen = set()
        for operation in all_of(house):
            path = operation.at({"study": STUDY, "site": "01", "subject": "01-0001"})
            for who, caller in callers.items():
                for body, media_type in BODIES if operation.method == "POST" else BODIES[:1]:
                    headers = {"Authorization": f"Bearer {caller.token()}"} if caller else {}
                    headers |= {"Content-Type": media_type} if media_type else {}
                    answer = ask(house, operation.method, path, body, {**headers, "Origin": "https://evil.example"})
                    seen.add(answer.status_code)
                    assert not faults_of(answer), (operation.name, who, body, answer.status_code)
                    if caller and answer.status_code == 204:
                        caller.forget_token()
        for path in PLAIN:
            answer = ask(house, "GET", path)
            assert not [fault for fault in faults_of(answer) if fault != "cache"], path
            seen.add(answer.status_code)
        assert {200, 400, 401, 403, 404, 415, 422} <= seen

    def test_a_missing_header_is_found(self, house: House) -> None:
        """Negative control: each header that is taken away, or weakened, is named."""
        for name, weaker, fault in (
            ("strict-transport-security", "max-age=31536000", "hsts"),
            ("content-security-policy", "default-src 'self'", "csp"),
            ("x-content-type-options", "", "sniffing"),
            ("referrer-policy", "origin", "referrer"),
            ("content-type", "text/html", "charset"),
            ("cache-control", "public", "cache"),
            ("access-control-allow-origin", "*", "cors"),
            ("set-cookie", "a=b", "cookie"),
            ("server", "uvicorn", "software"),
            ("location", "https://evil.example", "redirect"),
        ):
            answer = ask(house, "GET", "/v1/me")
            assert not faults_of(answer)
            answer.headers[name] = weaker
            assert fault in faults_of(answer), name

    def test_a_file_that_is_given_has_a_name_of_ours(self, house: House) -> None:
        """What a path holds reaches a file's name in safe characters only: nobody's header is broken, no folder left."""
        named = {
            parameter["schema"].get("pattern")
            for parameter in parameters_of(house)
            if parameter["in"] == "path" and parameter["name"] in {"study", "site", "consignment"}
        }
        assert named
        for pattern in {one for one in named if one}:
            for bad in ('a"b', "a/b", "..", "a\r\nb", "a;b", "ä"):
                assert not re.search(pattern, bad), (pattern, bad)


class TestMethods:
    def test_nothing_but_what_is_declared(self, house: House) -> None:
        """Any other method is 405 at every address, TRACE above all, and its answer repeats nothing of the request. [G1]"""
        found = all_of(house)
        for at in {operation.at({"study": STUDY}) for operation in found}:
            for method in METHODS:
                if any(operation.fits(method, at) for operation in found):
                    continue
                answer = ask(house, method, at, headers={"X-Canary": "c4n4ry"})
                assert answer.status_code == 405, (method, at)
                assert "c4n4ry" not in answer.text

    def test_no_header_stands_for_another_method(self, house: House) -> None:
        """A method is what the request line says; nothing in query or header overrides it."""
        for header in OVERRIDES:
            answer = house.admin.get("/v1/people", headers={header: "POST"})
            assert answer.status_code == 200
        assert house.admin.get("/v1/people?_method=DELETE").status_code == 200

    def test_what_reads_changes_nothing(self) -> None:
        """GET is safe: each act is a POST or a DELETE, so that no link or image does anything. [G1]"""
        routes = [route for door in DOORS for route in door.router.routes if isinstance(route, DoorRoute)]
        reading = {route.action for route in routes if route.methods == {"GET"}}
        acting = {route.action for route in routes if route.methods != {"GET"}}
        assert not reading & acting
        words = {action.value.partition(":")[2].split("_")[0] for action in reading}
        assert words <= {"read", "list", "export"}

    def test_a_body_that_any_page_could_send_is_refused(self, house: House) -> None:
        """No form, text or multipart of another origin acts: a body is JSON or CSV, for which it asks leave."""
        routes = {route.action: route for door in DOORS for route in door.router.routes if isinstance(route, DoorRoute)}
        simple = {"application/x-www-form-urlencoded", "multipart/form-data", "text/plain"}
        taking = {action for action, route in routes.items() if simple & set(route.media_types)}
        # A machine client's own credentials are in that form, and no browser adds any to it.
        assert {action.value for action in taking} == {"token:create"}
        assert {kind for action in IMPORTING for kind in routes[action].media_types} <= {"application/json", "text/csv"}


class TestSaidTwice:
    @pytest.mark.parametrize("query", ["limit=1&limit=2", "cursor=a&limit=1&cursor=b", "limit=1&%6cimit=2"])
    def test_a_parameter(self, house: House, query: str) -> None:
        """A proxy may have looked at the other one. [G1]"""
        answer = house.admin.get(f"/v1/people?{query}")
        assert answer.status_code == 400
        assert answer.json()["code"] == "malformed_request"

    @pytest.mark.parametrize("name", ["Authorization", "Idempotency-Key", "Snose-Passkey", "Content-Type"])
    def test_a_header(self, house: House, name: str) -> None:
        """Which of two tokens, keys or media types is meant is nobody's guess. [G1]"""
        kind = [("Content-Type", "application/json")]
        value = {"Content-Type": "application/json", "Authorization": f"Bearer {house.admin.token()}"}.get(name, "x")
        twice = [(name, value), (name.lower(), value)]
        answer = house.client.request(
            "POST", "/v1/people", content=b"{}", headers=twice if name == "Content-Type" else kind + twice
        )
        assert answer.status_code == 400

    def test_a_name_in_a_body(self, house: House) -> None:
        """Two readers of one JSON object would read two requests; in the form of a machine client too. [G1]"""
        body = b'{"username": "a", "username": "b", "password": "c"}'
        answer = house.client.request(
            "POST", "/v1/sessions", content=body, headers={"Content-Type": "application/json"}
        )
        assert answer.status_code == 400
        form = {"Content-Type": "application/x-www-form-urlencoded"}
        doubled = b"grant_type=client_credentials&client_id=a&client_id=b&client_secret=c"
        assert house.client.request("POST", "/oauth2/token", content=doubled, headers=form).status_code == 400

    def test_a_body_means_the_same_whatever_its_encoding(self, house: House) -> None:
        """JSON is UTF-8: another encoding, or a byte order mark that some readers pass over, is refused. [G1]"""
        for encoding in ("utf-16", "utf-32", "utf-8-sig", "utf-7"):
            body = json.dumps({"username": "ä", "password": "ö"}, ensure_ascii=False).encode(encoding)
            for kind in ("application/json", f"application/json; charset={encoding}"):
                answer = house.client.request("POST", "/v1/sessions", content=body, headers={"Content-Type": kind})
                assert answer.status_code in {400, 401}, encoding
                assert answer.status_code == 400 or encoding == "utf-7"


class TestAddresses:
    def test_no_secret_is_part_of_one(self, house: House) -> None:
        """What must stay secret is in no path and no query: addresses are logged everywhere on the way. [BLD-13]"""
        named = {one["name"] for one in parameters_of(house) if one["in"] in {"path", "query"}}
        assert {name for name in named if SECRET.search(name)} <= {"session_id"}
        token = house.admin.token()
        for query in (f"access_token={token}", f"token={token}", f"Authorization=Bearer%20{token}"):
            assert ask(house, "GET", f"/v1/people?{query}").status_code == 401

    def test_nothing_is_served_from_a_folder(self, house: House) -> None:
        """Every route is an operation or one of the few plain ones: no folder is listed, no file of the service given."""
        for path in (
            "/",
            "/docs/",
            "/static/",
            "/app/",
            "/docs/../app/main.py",
            "/.env",
            "/metrics",
        ):
            assert ask(house, "GET", path).status_code == 404, path
        assert not [route for route in house.app.routes if type(route).__name__ in {"Mount", "StaticFiles"}]
        assert house.app.debug is False

    def test_answers_that_no_cache_may_keep(self, house: House) -> None:
        """What is not found or not allowed is kept by no cache either, whatever its address looks like. [BLD-13]"""
        for path in ("/v1/me/x.css", "/v1/people.js", "/v1/me;.css"):
            answer = house.admin.get(path)
            assert answer.status_code == 404
            assert answer.headers["cache-control"] == "no-store"
        assert REVEALING
