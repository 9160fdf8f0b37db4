"""Everything wrong gets a plain problem of the right status, in the order of rule G2, and nothing is written but its entry."""

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, Final
from urllib.parse import quote

import pytest
from httpx2 import Response

from app.domain.words import Action
from app.policy import ELEVATED, PERMISSIONS
from tests import harness
from tests.authenticator import SETTINGS
from tests.databases import Postgres
from tests.harness import STUDY, STUDY_BODY, Caller, House, Json, expect
from tests.running_study import RunningStudy, S, consignment, running_study

CANARY: Final = "Canary7Qx9"
FITTING: Final = {
    "subject_id": "01-0009",
    "site_code": "01",
    "strata": {},
    "consent_confirmed": True,
    "eligibility_confirmed": True,
}
UNKNOWN_ID: Final = "3f0c9b5e-6f0e-4c5e-9a59-3d1c6a4f2b10"


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def house(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """One deployment for all: what is refused leaves nothing behind."""
    folder = tmp_path_factory.mktemp("bad-input")
    with ExitStack() as stack:
        if request.param == "sqlite":
            shutil.copyfile(request.getfixturevalue("migrated_sqlite"), folder / "snose.sqlite")
            url = f"sqlite:///{folder / 'snose.sqlite'}"
        else:
            server: Postgres = request.getfixturevalue("postgres")
            url = stack.enter_context(server.database(template=request.getfixturevalue("migrated_postgres")))
        yield stack.enter_context(harness.house(url, folder, **SETTINGS))


@pytest.fixture(scope="module")
def study(house: House) -> RunningStudy:
    """A study under way with two subjects."""
    return running_study(house)


def refused(response: Response, status: int, code: str | None = None) -> dict[str, Any]:
    """Return the problem, when it is plain and of this status."""
    assert response.status_code == status, (response.request.url, response.status_code, response.text)
    assert response.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = response.json()
    assert problem.keys() >= {"type", "title", "status", "detail", "code", "request_id"}
    assert problem["status"] == status
    assert problem["type"] == f"urn:snose:problem:{problem['code']}"
    assert problem["request_id"] == response.headers["x-request-id"]
    assert CANARY.lower() not in response.text.lower()
    assert "Traceback" not in response.text
    if code is not None:
        assert problem["code"] == code, problem
    return problem


def send(
    caller: Caller | None, house: House, path: str, content: bytes, *, step_up: bool = False, **headers: str
) -> Response:
    """Return the response to exactly these bytes."""
    given = {"Content-Type": "application/json"}
    if caller is not None:
        given["Authorization"] = f"Bearer {caller.elevated_token() if step_up else caller.token()}"
    given.update({name.replace("_", "-"): value for name, value in headers.items()})
    return house.client.post(path, content=content, headers=given)


def untouched(house: House) -> list[bytes]:
    return house.bodies()


NOT_JSON: Final = {
    "nothing but a word": b"word",
    "cut off": b'{"subject_id": "01-0009"',
    "NaN": b'{"subject_id": NaN}',
    "Infinity": b'{"subject_id": Infinity}',
    "minus Infinity": b'{"subject_id": -Infinity}',
    "1e400": b'{"subject_id": 1e400}',
    "minus 1e400": b"[-1e400]",
    "a key twice": b'{"subject_id": "01-0009", "subject_id": "01-0010"}',
    "a key twice, spelt with an escape": b'{"site_code": "01", "site_\\u0063ode": "02"}',
    "a key twice, deep inside": b'{"strata": {"a": {"b": 1, "b": 2}}}',
    "a number of 5000 digits": b'{"subject_id": ' + b"9" * 5000 + b"}",
    "invalid UTF-8": b'{"subject_id": "01-\xff\xfe"}',
    "an overlong encoding": b'{"subject_id": "\xc0\xaf"}',
    "an encoded surrogate": b'{"subject_id": "\xed\xa0\x80"}',
    "UTF-16": '{"subject_id": "01-0009"}'.encode("utf-16"),
    "a byte order mark": b"\xef\xbb\xbf{}",
    "a raw NUL": b'{"subject_id": "01\x00"}',
    "a raw line feed in a string": b'{"subject_id": "01\n"}',
    "a comment": b"{} // no",
    "a trailing comma": b'{"subject_id": "01-0009",}',
    "single quotes": b"{'subject_id': '01-0009'}",
    "two texts": b"{}{}",
    "deep arrays": b"[" * 100_000,
    "deep closed arrays": b"[" * 50_000 + b"]" * 50_000,
    "deep objects": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "white space only": b" \r\n\t",
    "gzip": b"\x1f\x8b\x08\x00\x00\x00\x00\x00",
}


class TestWhatIsNoRequest:
    def test_what_is_no_json_is_400_for_everybody(self, house: House, study: RunningStudy) -> None:
        """Malformed JSON is told before anything is asked about the caller; it never becomes a 500 (G2)."""
        for case, content in NOT_JSON.items():
            for caller in (study.investigator, None):
                before = untouched(house)
                problem = refused(send(caller, house, f"{S}/allocations", content), 400, "malformed_request")
                assert problem["advice"], case
                assert untouched(house) == before, case

    def test_noise_before_anybody_is_known_is_counted(self, house: House) -> None:
        """What cannot be read has no author: one entry per network and minute, with a count (E1)."""
        house.deployment.noise.take()
        for _ in range(3):
            refused(send(None, house, f"{S}/allocations", b"{"), 400)
        assert sum(house.deployment.noise.take().values()) == 3

    @pytest.mark.parametrize(
        "kind", ["", "text/plain", "application/xml", "text/json", "application/jsonx", "text/csv"]
    )
    def test_another_media_type_is_415(self, house: House, study: RunningStudy, kind: str) -> None:
        """The body's type is looked at before its content (G2)."""
        refused(send(study.investigator, house, f"{S}/allocations", b"{", Content_Type=kind), 415)
        refused(send(None, house, f"{S}/allocations", b"{", Content_Type=kind), 415)

    def test_a_body_above_one_mebibyte_is_413_and_an_import_may_be_larger(
        self, house: House, study: RunningStudy
    ) -> None:
        """Too large is 413, whatever it holds (G2)."""
        full = b'{"subject_id": "' + b"a" * (1_048_576 - 18) + b'"}'
        assert len(full) == 1_048_576
        refused(send(study.investigator, house, f"{S}/allocations", full), 422)
        refused(send(study.investigator, house, f"{S}/allocations", full + b" "), 413)
        refused(send(None, house, f"{S}/allocations", full + b" ", Content_Type="text/plain"), 413)
        supply = study.people["supply_manager"]
        path = f"{S}/consignments/C9/kits"
        refused(send(supply, house, path, b"[]" + b" " * 2_000_000, step_up=True), 422)
        refused(send(supply, house, path, b" " * 16_777_217, step_up=True), 413)

    def test_a_missing_body_is_422_and_names_the_body(self, house: House, study: RunningStudy) -> None:
        """Nothing is a value that is missing (G2)."""
        refused(send(study.investigator, house, f"{S}/allocations", b""), 422, "invalid")

    @pytest.mark.parametrize("content", [b"[]", b'"text"', b"1", b"null", b"true", b"[{}]"])
    def test_another_json_type_for_an_object_is_422(self, house: House, study: RunningStudy, content: bytes) -> None:
        """JSON it is, but no object (G2)."""
        problem = refused(send(study.investigator, house, f"{S}/allocations", content), 422, "invalid")
        assert problem["errors"]

    @pytest.mark.parametrize("key", ["", "k" * 201, "tab\tkey"])
    def test_an_impossible_idempotency_key_is_400(self, house: House, study: RunningStudy, key: str) -> None:
        """A header that cannot be read is told first (C4, G2)."""
        content = json.dumps(FITTING).encode()
        refused(send(study.investigator, house, f"{S}/allocations", content, Idempotency_Key=key), 400)

    def test_a_very_long_or_strange_token_is_nobody(self, house: House, study: RunningStudy) -> None:
        """Headers of any length are read and refused, not crashed upon (G1)."""
        for token in ("x" * 100_000, "snose_" + "A" * 43 + "é", " ", "a b", "snose_\x7f"):
            raw = f"Bearer {token}".encode("latin-1")
            refused(house.client.get(S, headers={b"Authorization": raw}), 401, "not_authenticated")


def wrong_values(example: Json, value: Json, place: tuple[str | int, ...] = ()) -> Iterator[tuple[str, Json]]:
    """Give the example once for each string in it, with ``value`` in its place."""
    if isinstance(example, str):
        yield ".".join(map(str, place)), value
    elif isinstance(example, dict):
        for name, part in example.items():
            for where, changed in wrong_values(part, value, (*place, name)):
                yield where, {**example, name: changed}
    elif isinstance(example, list):
        for index, part in enumerate(example):
            for where, changed in wrong_values(part, value, (*place, index)):
                yield where, [*example[:index], changed, *example[index + 1 :]]


def jsons(house: House) -> Iterator[tuple[str, Action, Json]]:
    """Give path, action and example of every operation that takes JSON."""
    document = expect(house.client.get("/openapi.json"), 200)
    for path, methods in document["paths"].items():
        operation = methods.get("post", {})
        content = operation.get("requestBody", {}).get("content", {}).get("application/json")
        if content is not None:
            yield path, Action(operation["x-action"]), content["example"]


def entitled(study: RunningStudy, action: Action) -> Caller:
    """Return somebody who may do it."""
    role = next((role for role, actions in PERMISSIONS.items() if action in actions), None)
    if role is None or role == "service_admin":
        return study.house.admin
    return study.study_admin if role == "study_admin" else study.person(role)


class TestStrings:
    @pytest.mark.parametrize(
        "value", ["\ud800", f"{CANARY}\u0000", f"{CANARY}\udfff", f"\u202e{CANARY}\x1b[2J", "x" * 5000, ""]
    )
    def test_no_string_field_takes_what_no_text_holds(self, house: House, study: RunningStudy, value: str) -> None:
        """Lone surrogates, NUL, control characters, nothing, too much: 422 in every field of every body (G1, G2)."""
        tried = 0
        token: dict[str, str] = {}
        for path, action, example in jsons(house):
            address = path.format(**PATHS)
            caller = entitled(study, action)
            for where, body in wrong_values(example, value):
                if where.startswith("request.body."):
                    # Of a request to come, of which a challenge holds the digest: it is looked at when it comes.
                    continue
                if action not in ELEVATED:
                    token[action] = caller.token()
                elif action not in token:
                    token[action] = caller.elevated_token()
                headers = {"Authorization": f"Bearer {token[action]}", "Content-Type": "application/json"}
                response = house.client.post(address, content=json.dumps(body).encode(), headers=headers)
                # Whether a password, a code or what a device has signed is right is told by 401, whatever they hold.
                credential = where.partition(".")[0] in {"username", "password", "otp", "current", "new", "credential"}
                assert response.status_code in ({401, 422, 429} if credential else {422}), (path, where, response.text)
                refused(response, response.status_code)
                tried += 1
        assert tried > 60


PATHS: Final = {
    "study": STUDY,
    "site": "01",
    "subject": "01-0001",
    "kit_code": "K7XQ4M2PF",
    "code": "C9",
    "schedule_id": UNKNOWN_ID,
    "request_id": UNKNOWN_ID,
    "code_break_id": UNKNOWN_ID,
    "recovery_id": UNKNOWN_ID,
    "username": "spare",
    "client_id": "spare",
}

SAME_AS_FIRST: Final = {
    "fullwidth digits": "\uff10\uff11-\uff10\uff10\uff10\uff11",
    "spaces around": "  01-0001\t",
    "a no-break space before": "\u00a001-0001",
    "superscript": "01-000\u00b9",
    "small hyphen": "01\ufe630001",
}
NO_SUBJECT: Final = {
    "dot": ".",
    "two dots": "..",
    "one dot leader": "\u2024",
    "slash": "01/0001",
    "encoded slash": "01%2F0001",
    "backslash": "01\\0001",
    "right-to-left mark": "01-0001\u200f",
    "right-to-left override": "\u202e01-0001",
    "zero-width joiner": "01\u200d-0001",
    "zero-width space": "01-0001\u200b",
    "soft hyphen": "01\u00ad-0001",
    "a combining mark alone": "q\u0323\u0323",
    "an emoji": "01-\U0001f600",
    "41 characters": "a" * 41,
    "41 after case folding": "\u00df" * 20 + "a",
    "81 characters": "a" * 81,
    "en dash": "01\u20130001",
    "quote": "01'0001",
    "a noncharacter": "01\uffff",
    "a private character": "01\ue000",
    "a wildcard": "01-*",
    "a percent sign": "01-%",
    "a list": "01-0001,01-0002",
    "empty": "",
    "spaces": "   ",
}


class TestSubjects:
    def test_odd_spellings_of_a_subject_are_that_subject(self, house: House, study: RunningStudy) -> None:
        """Normalised before it is compared; the answer shows the first spelling (C4, ASG-07)."""
        for case, spelling in SAME_AS_FIRST.items():
            response = study.investigator.post(f"{S}/allocations", json={**FITTING, "subject_id": spelling})
            assert expect(response, 200)["subject_id"] == "01-0001", case
            path = f"{S}/subjects/{quote(spelling)}/allocation"
            assert expect(study.investigator.get(path), 200)["subject_id"] == "01-0001", case

    def test_composed_and_decomposed_letters_are_one_subject(self, house: House, study: RunningStudy) -> None:
        """NFKC and case folding (C4)."""
        first = study.allocate("Caf\u00e9-1")
        again = study.investigator.post(f"{S}/allocations", json={**FITTING, "subject_id": "CAFE\u0301-1"})
        assert expect(again, 200)["kit_code"] == first["kit_code"]
        assert first["subject_id"] == "Caf\u00e9-1"

    def test_forty_characters_are_taken(self, house: House, study: RunningStudy) -> None:
        """1 to 40 after normalising (api.md)."""
        assert study.allocate("\uff21" * 40)["subject_id"] == "A" * 40

    @pytest.mark.parametrize("case", NO_SUBJECT)
    def test_what_is_no_identifier_is_422_in_body_and_path(self, house: House, study: RunningStudy, case: str) -> None:
        """Marks, joiners, slashes, dots and wildcards name nobody, at no door (ASG-07, EUB-06, G2)."""
        spelling = NO_SUBJECT[case]
        before = len(study.house.trail(STUDY))
        body = {**FITTING, "subject_id": spelling}
        problem = refused(study.investigator.post(f"{S}/allocations", json=body), 422, "invalid")
        assert problem["errors"][0]["field"] == "subject_id"
        said = study.house.trail(STUDY)
        assert len(said) == before + 1
        assert said[-1]["outcome"] == "refused"
        assert spelling.strip() in ("", ".", "..") or spelling not in json.dumps(said[-1], ensure_ascii=False)
        token = study.investigator.elevated_token()
        broken = {"subject_id": spelling, "reason_code": "overdose"}
        refused(house.send("POST", f"{S}/code-breaks", token=token, json=broken), 422, "invalid")
        response = study.investigator.get(f"{S}/subjects/{quote(spelling, safe='')}/allocation")
        # A slash or a dot makes another path of it, at which there is nothing.
        refused(response, 404 if "/" in spelling or spelling in {"", ".", ".."} else 422)

    @pytest.mark.parametrize("part", ["%00", "%ED%A0%80", "%FF", "%C0%AF", "%0A", "%F0%9F%98%80", "%25", "%7F"])
    def test_bytes_that_are_no_text_in_a_path_are_refused(self, house: House, study: RunningStudy, part: str) -> None:
        """A path part is a value like any other (G1)."""
        for path in (
            f"{S}/subjects/{part}/allocation",
            f"{S}/sites/{part}/kits",
            f"{S}/kits/{part}/quarantine",
            f"{S}/trail/proofs/{part}",
        ):
            role = "pharmacist" if "kits" in path else "investigator"
            response = study.people[role].request("POST" if "quarantine" in path else "GET", path, json=None)
            refused(response, 422)
        refused(study.investigator.get(f"/v1/studies/{part}"), 404, "not_found")


class TestCodeBreaks:
    @pytest.mark.parametrize(
        "body",
        [
            {"subject_id": "*"},
            {"subject_id": "%"},
            {"subject_id": ["01-0001", "01-0002"]},
            {"subject_id": {"in": ["01-0001"]}},
            {"subject_ids": ["01-0001"]},
            {"subject_id": "01-0001", "subject_ids": ["01-0002"]},
            {"subject_id": "01-0001", "all": True},
            {"subject_id": "01-0001", "reason_code": "curiosity"},
            {"subject_id": "01-0001", "reason_code": ["overdose"]},
            {"subject_id": True},
            {"subject_id": 1},
            {"subject_id": None},
            {"kit_code": "*********"},
            {"kit_code": "K7XQ4M2PX"},
            {},
        ],
        ids=json.dumps,
    )
    def test_one_subject_by_its_name_and_no_pattern_or_list(
        self, house: House, study: RunningStudy, body: Json
    ) -> None:
        """No wildcard, list or further key is a subject; nothing is revealed and the proof is not spent (EUB-06, D3)."""
        token = study.investigator.elevated_token()
        given = {"reason_code": "overdose", **body}
        register = study.investigator.get(f"{S}/code-breaks").json()["items"]
        refused(house.send("POST", f"{S}/code-breaks", token=token, json=given), 422, "invalid")
        assert expect(study.investigator.get(f"{S}/code-breaks"), 200)["items"] == register
        fitting = {"reason_code": "overdose", "subject_id": "01-0001"}
        expect(house.send("POST", f"{S}/code-breaks", token=token, json=fitting), 201)


class TestValues:
    @pytest.mark.parametrize("number", [2**63, -(2**63), 2**64, 10**30, 0, -1, 1.5, "1", True, None, [], {}])
    def test_numbers_that_fit_no_column_are_422(self, house: House, study: RunningStudy, number: Json) -> None:
        """Every number has its bounds, and is no text and no truth value (G2)."""
        statistician, supply = study.people["statistician"], study.people["supply_manager"]
        admin = house.person("study_admin", "NEXT")
        body = {**STUDY_BODY, "study_code": "NEXT"}
        for name in ("planned_subjects", "stock_floor"):
            refused(admin.post("/v1/studies", json={**body, name: number}), 422, "invalid")
        arms = [{**STUDY_BODY["arms"][0], "ratio": number}, STUDY_BODY["arms"][1]]
        refused(admin.post("/v1/studies", json={**body, "arms": arms}), 422, "invalid")
        token = statistician.elevated_token()
        for wrong in (
            {"length_per_stratum": number},
            {"block_sizes": [number], "length_per_stratum": 8},
            {"block_size_weights": [number], "length_per_stratum": 8},
            {"lengths": [{"strata": {}, "length": number}]},
        ):
            if wrong.get("length_per_stratum", 0) is None:
                continue
            specification = {"block_sizes": [4], "fill": "exact", "reason": "Another.", **wrong}
            problem = refused(house.send("POST", f"{S}/schedules", token=token, json=specification), 422)
            assert problem["errors"], wrong
        kits = [{"arm_code": "CONTROL", "lot": "L", "expires_on": "2027-12-31", "count": number}]
        token = supply.elevated_token()
        consigned = {"consignment_code": "C9", "kits": kits}
        refused(house.send("POST", f"{S}/consignments", token=token, json=consigned), 422, "invalid")

    @pytest.mark.parametrize(
        "query",
        [
            "limit=1e400",
            "limit=NaN",
            "limit=0",
            "limit=-1",
            "limit=501",
            "limit=9223372036854775808",
            "limit=",
            "limit=" + "9" * 5000,
            "limit=%F1%00",
            f"cursor={CANARY}",
            "cursor=%00",
            "cursor=" + "A" * 401,
            "from=9999-12-31T23:59:59-23:59",
            "from=0001-01-01T00:00:00%2B23:59",
            "to=0000-01-01T00:00:00Z",
            "to=2026-02-30T00:00:00Z",
            "to=1e400",
            "from=2026-11-22T09:00:00",
            f"action={CANARY}",
            "actor=%ED%A0%80",
            "subject=..",
            "subject=%00",
        ],
    )
    def test_queries_that_make_no_sense_are_422(self, house: House, study: RunningStudy, query: str) -> None:
        """A filter, a limit or a cursor is a value like any other (G2)."""
        problem = refused(study.study_admin.get(f"{S}/trail?{query}"), 422, "invalid")
        assert problem["errors"][0]["field"] in {"limit", "cursor", "from", "to", "action", "actor", "subject"}

    @pytest.mark.parametrize(
        "at", ["9999-12-31T23:59:59-23:59", "0001-01-01T00:00:01%2B23:59", "1e400", "2026-02-30", "121", "1763800000.5"]
    )
    def test_a_moment_outside_of_time_is_422(self, house: House, at: str) -> None:
        """The grants of a day that never was (G2)."""
        refused(house.admin.get(f"/v1/people/admin/grants?at={at}"), 422, "invalid")

    @pytest.mark.parametrize("moment", [1763800000, 1763800000.5, "1763800000", True, "2026-11-22"])
    def test_a_number_is_no_moment_and_no_day(self, house: House, moment: Json) -> None:
        """What the document calls a moment is written as one: a number is no count of seconds (rule G1)."""
        grant = {"role": "investigator", "study_code": STUDY, "site_code": "01", "ends_at": moment}
        refused(house.admin.post("/v1/people/admin/grants", json=grant), 422, "invalid")
        if moment != "2026-11-22":
            training = {"topic": "Protocol 2.1", "completed_on": moment}
            refused(house.admin.post("/v1/people/admin/trainings", json=training), 422, "invalid")

    def test_proofs_of_places_that_are_not_there_are_refused(self, house: House, study: RunningStudy) -> None:
        """An index beyond the log is missing, one beyond all numbers is invalid (G2)."""
        auditor = study.investigator
        refused(auditor.get(f"{S}/trail/proofs/{2**53}"), 422)
        refused(auditor.get(f"{S}/trail/proofs/-1"), 422)
        for path in (f"{S}/trail/proofs/{2**53 - 1}", f"{S}/trail/proofs/0?segment={2**53 - 1}"):
            assert auditor.get(path).status_code in {404, 422}
        for query in (f"from=0&to={2**53 - 1}", "from=9&to=3", f"from={2**53 - 1}", "from=0&segment=7"):
            assert auditor.get(f"{S}/trail/consistency?{query}").status_code in {404, 422}, query

    @pytest.mark.parametrize(
        "kit", ["K7XQ4M2PX", "7KXQ4M2PF", "K7XQ4M2P", "K7XQ4M2PFF", "O7XQ4M2PF", "%E2%84%AA7XQ4M2PF"]
    )
    def test_a_wrong_check_character_is_422_before_anything_is_looked_up(
        self, house: House, study: RunningStudy, kit: str
    ) -> None:
        """A mistyped code is told apart from a kit of another (api.md, B9)."""
        pharmacist = study.people["pharmacist"]
        body = {"subject_id": "01-0001", "scanned_code": "K7XQ4M2PF"}
        problem = refused(pharmacist.post(f"{S}/kits/{kit}/dispensation", json=body), 422, "invalid")
        assert problem["errors"][0]["field"] == "kit_code"
        refused(pharmacist.post(f"{S}/kits/K7XQ4M2PF/dispensation", json={**body, "scanned_code": "K7XQ4M2PX"}), 422)
        refused(pharmacist.post(f"{S}/kits/K7XQ4M2PF/dispensation", json=body), 409, "kit_mismatch")

    def test_unknown_keys_are_named_and_not_repeated(self, house: House, study: RunningStudy) -> None:
        """Unknown keys in a body are 422; a name that was made up is not echoed (G1, api.md)."""
        allocated = study.study_admin.get(f"{S}/allocations").json()["items"]
        for key in ("arm_code", "randomization_number", "dry_run", "visit", "\ud800", "\u0000", "é" * 10, "k" * 1000):
            problem = refused(
                study.investigator.post(f"{S}/allocations", json={**FITTING, key: CANARY}), 422, "invalid"
            )
            named = [fault["field"] for fault in problem["errors"]]
            if key == "\ud800":
                assert named == ["body"]
            else:
                assert named == [key if key.isascii() and key.isprintable() and len(key) < 60 else "?"]
        assert study.study_admin.get(f"{S}/allocations").json()["items"] == allocated

    def test_an_import_with_one_wrong_line_in_a_thousand_names_that_line(
        self, house: House, study: RunningStudy
    ) -> None:
        """Refused whole, every fault named by its line; nothing is stored (SEQ, KIT)."""
        lines = ["kit_code,arm_code,lot,expires_on"]
        codes = consignment(study, "C7", 500, received=False)
        lines += [f"{code},{('CONTROL', 'HUCMSC')[number % 2]},L1,2027-06-30" for number, code in enumerate(codes)]
        lines[700] = lines[700].replace(",L1,", ",L1,").replace("2027-06-30", "2027-02-30")
        supply = study.people["supply_manager"]
        text = "\r\n".join(lines).encode()
        response = send(supply, house, f"{S}/consignments/C9/kits", text, step_up=True, Content_Type="text/csv")
        problem = refused(response, 422, "faulty_import")
        assert any("701" in fault["field"] or "700" in fault["field"] for fault in problem["errors"])


class TestOrder:
    """The order of rule G2: every request here has all the faults that come later as well."""

    def test_400_413_and_415_stand_before_who_is_asking(self, house: House, study: RunningStudy) -> None:
        """No token, unknown study: the body is looked at first (G2)."""
        path = "/v1/studies/UNKNOWN/code-breaks"
        refused(send(None, house, path, b"{"), 400, "malformed_request")
        refused(send(None, house, path, b"{" * 1_048_577), 413)
        refused(send(None, house, path, b"{", Content_Type="text/plain"), 415)
        refused(send(None, house, path, b"{}", Idempotency_Key="k" * 201), 400)

    def test_401_stands_before_the_study(self, house: House, study: RunningStudy) -> None:
        """Nobody learns which studies there are (G2, E1)."""
        house.deployment.noise.take()
        for path in ("/v1/studies/UNKNOWN/code-breaks", f"{S}/code-breaks", "/v1/studies/%00/code-breaks"):
            entries = len(house.bodies())
            assert refused(send(None, house, path, b'{"x": 1}'), 401, "not_authenticated")
            assert len(house.bodies()) == entries
        assert sum(house.deployment.noise.take().values()) == 3

    def test_404_of_the_study_stands_before_the_right(self, house: House, study: RunningStudy) -> None:
        """A stranger to the study is told the same as of a study that is not there; its log says nothing (G2, E1)."""
        house.register_study("OTHER")
        stranger = house.person("coordinator", "OTHER")
        for code in (STUDY, "UNKNOWN", "%00"):
            of_study, of_service = len(house.trail(STUDY)), len(house.trail())
            problem = refused(send(stranger, house, f"/v1/studies/{code}/code-breaks", b'{"x": 1}'), 404, "not_found")
            assert problem["detail"] == "Nothing is here for you"
            assert len(house.trail(STUDY)) == of_study
            said = house.trail()
            assert len(said) == of_service + 1, code
            assert (said[-1]["actor"], said[-1]["outcome"]) == (stranger.username, "denied")

    def test_403_stands_before_the_step_up(self, house: House, study: RunningStudy) -> None:
        """Without the right no proof is asked for; the attempt is entered; machines too (G2, D3)."""
        for caller in (study.person("coordinator"), house.machine()):
            refused(send(caller, house, f"{S}/code-breaks", b'{"x": 1}'), 403, "forbidden")
            said = house.trail(STUDY)[-1]
            assert (said["actor"], said["outcome"], said["after"]["code"]) == (
                caller.client_id or caller.username,
                "denied",
                "forbidden",
            )

    def test_the_step_up_stands_before_the_values(self, house: House, study: RunningStudy) -> None:
        """The challenge of RFC 9470 comes first, and is entered (G2, D3)."""
        response = send(study.investigator, house, f"{S}/code-breaks", b'{"subject_id": "..", "x": 1}')
        refused(response, 401, "step_up_required")
        challenge = response.headers["www-authenticate"]
        assert challenge.startswith('Bearer error="insufficient_user_authentication"')
        assert 'acr_values="mfa"' in challenge
        assert 'max_age="300"' in challenge
        said = house.trail(STUDY)[-1]
        assert (said["outcome"], said["after"]) == ("denied", {"code": "step_up_required"})

    def test_422_stands_before_the_object(self, house: House, study: RunningStudy) -> None:
        """A wrong value is told before an unknown subject, site or id (G2)."""
        path = f"{S}/subjects/UNKNOWN/error-mark"
        refused(send(study.investigator, house, path, b'{"category": "ineligible"}', step_up=True), 422, "invalid")
        said = house.trail(STUDY)[-1]
        assert (said["outcome"], said["after"]) == ("refused", {"code": "invalid", "fields": "reason"})
        body = {**FITTING, "site_code": "99", "strata": {"x": "y"}, "consent_confirmed": False}
        assert study.investigator.post(f"{S}/allocations", json=body).status_code == 422

    def test_404_of_an_object_stands_before_its_state(self, house: House, study: RunningStudy) -> None:
        """Unknown and foreign are one answer, in path and body, also where the state would refuse (G2, USR-21)."""
        study.set_status("suspended")
        for site in ("99", "02"):
            response = study.investigator.post(f"{S}/allocations", json={**FITTING, "site_code": site})
            assert refused(response, 404, "not_found")["detail"] == "Nothing is here for you"
            assert house.trail(STUDY)[-1]["outcome"] == "denied"
        elsewhere = study.person("investigator", "02")
        subjects = [elsewhere.get(f"{S}/subjects/{one}/allocation") for one in ("01-0001", "UNKNOWN")]
        study.set_status("open")
        first, second = (refused(response, 404, "not_found") for response in subjects)
        del first["request_id"], second["request_id"]
        assert first == second

    def test_409_comes_last(self, house: House, study: RunningStudy) -> None:
        """The state of things is told to those who may know of them (G2)."""
        study.set_status("suspended")
        refused(study.investigator.post(f"{S}/allocations", json=FITTING), 409, "study_not_open")
        said = house.trail(STUDY)[-1]
        assert (said["outcome"], said["after"]["code"]) == ("refused", "study_not_open")
        study.set_status("open")


class TestAddresses:
    @pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "PUT", "PATCH", "TRACE", "PROPFIND"])
    def test_a_method_that_is_not_there_is_405_with_those_that_are(
        self, house: House, study: RunningStudy, method: str
    ) -> None:
        """Nothing is done by another method (G1)."""
        for path in (f"{S}/allocations", f"{S}/code-breaks", "/v1/people"):
            # First, for whose session is over signs in anew, which is entered.
            headers = {"Authorization": f"Bearer {study.investigator.token()}"}
            before = house.bodies()
            response = house.client.request(method, path, headers=headers)
            assert response.status_code == 405, (method, path)
            assert set(response.headers["allow"].replace(",", " ").split()) <= {"GET", "POST"}
            if method != "HEAD":
                refused(response, 405, "method_not_allowed")
            assert house.bodies() == before

    @pytest.mark.parametrize(
        "path",
        [
            f"{S}/allocations/",
            f"{S}//allocations",
            f"//v1/studies/{STUDY}",
            f"/v1/studies/../studies/{STUDY}/",
            f"/V1/studies/{STUDY}",
            f"{S}/allocations;x=1",
            f"{S}/allocations%2F",
            "/v1",
            "/",
            "/docs/",
            "/docs/../openapi.json/",
            "/%2e%2e/%2e%2e/etc/passwd",
            "/v1/studies",
        ],
    )
    def test_what_is_almost_an_address_is_nothing(self, house: House, study: RunningStudy, path: str) -> None:
        """No redirect, which could lead to a host that the caller named (T11)."""
        headers = {"Authorization": f"Bearer {study.investigator.token()}", "Host": "evil.example"}
        response = house.client.get(path, headers=headers, follow_redirects=False)
        assert response.status_code in {404, 405}, response.text
        refused(response, response.status_code)
        assert "evil" not in response.text + str(response.headers)

    @pytest.mark.parametrize(
        "headers",
        [
            {"Host": "evil.example"},
            {"Host": "evil.example/v1/people?"},
            {"Host": "a" * 10_000},
            {"Host": ""},
            {"X-Forwarded-Host": "evil.example", "X-Forwarded-Prefix": "/v1/people", "X-Original-URL": "/v1/people"},
            {"X-HTTP-Method-Override": "DELETE"},
            {"X-Request-Id": CANARY},
            {"Forwarded": "for=10.0.0.1;host=evil.example"},
        ],
        ids=str,
    )
    def test_headers_change_neither_address_nor_answer(
        self, house: House, study: RunningStudy, headers: dict[str, str]
    ) -> None:
        """What is authorised is the route, not what a header says of it (T11, E3)."""
        plain = study.investigator.get(S)
        response = study.investigator.get(S, headers=headers)
        assert expect(response, 200) == expect(plain, 200)
        assert "evil" not in str(response.headers)
        assert response.headers["x-request-id"] != CANARY
        assert house.trail(STUDY)[-1]["request_id"] == response.headers["x-request-id"]
