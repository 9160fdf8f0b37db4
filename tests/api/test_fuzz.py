"""Requests made up from the OpenAPI document, by everybody: nothing breaks, leaves the schema, or is written (rule G1).

The push form makes a few cases for every operation; the long form (`python -m tests.reliability fuzz`, or `pytest -m long -s
tests/api/test_fuzz.py`) more than 20,000 on each database, from another seed in every round.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from traceback import format_exception_only
from typing import Any, Final

import pytest
import requests
import schemathesis
from httpx2 import Response
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from schemathesis.core.result import Ok
from schemathesis.generation import GenerationMode
from schemathesis.schemas import APIOperation
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from sqlalchemy import func, select

from app.domain.words import UNBLINDED_ROLES, Role
from app.storage.tables import metadata
from tests.harness import STUDY, Caller, House, expect
from tests.reliability.tally import Tally
from tests.running_study import RunningStudy, running_study

CHECKS: Final = [
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
]
WRITTEN_BY_REFUSALS: Final = frozenset({"log", "trail_entry", "trail_node", "trail_restricted", "sign_in_tries"})
"""A refusal writes its entry, and nothing else."""
COUNTS: Final = select(
    *(
        select(func.count()).select_from(table).scalar_subquery().label(table.name)
        for table in metadata.sorted_tables
        if table.name not in WRITTEN_BY_REFUSALS
    )
)
"""Made once: it is asked for before and after each case."""
ARM_WORDS: Final = ("HUCMSC", "HUC-MSC", "CONTROL", "placebo")
UNREACHABLE: Final = frozenset({500, 502, 504})
Made = schemathesis.Case[Any]
Operation = APIOperation[Any, Any, Any, Any]


@dataclass
class Asker:
    """Somebody with the newest token that can be had: of a person with a fresh second proof."""

    name: str
    caller: Caller | None
    _token: str | None = None

    def token(self) -> str | None:
        if self.caller is None:
            return None
        if self._token is None:
            # Wrong passwords and codes of the run slow this account down; they do not lock it.
            self.caller.house.clock.advance(minutes=10)
            self.caller.forget_token()
            self._token = self.caller.token() if self.caller.client_id else self.caller.elevated_token()
        return self._token

    def forget(self) -> None:
        self._token = None


@dataclass
class Fuzzer:
    """A study under way, everybody who may ask something of it, and what was answered so far."""

    house: House
    study: RunningStudy
    askers: list[Asker]
    known: Mapping[str, str]
    answered: Counter[tuple[str, int]] = field(default_factory=Counter)

    def request(self, case: Made, asker: Asker) -> Response:
        made = requests.Request(**case.as_transport_kwargs(base_url="http://testserver")).prepare()
        headers = {name: value for name, value in made.headers.items() if name.lower() != "cookie"}
        token = asker.token()
        if token is not None and case.operation.label != "POST /oauth2/token":
            headers["Authorization"] = f"Bearer {token}"
        body = made.body.encode() if isinstance(made.body, str) else made.body
        assert body is None or isinstance(body, bytes)
        raw = {name.encode("latin-1"): str(value).encode("latin-1") for name, value in headers.items()}
        return self.house.client.request(str(made.method), str(made.url), content=body, headers=raw)

    def look(self, case: Made, asker: Asker) -> None:
        """Send a case and hold the answer to everything that rule G1 asks."""
        asker.token()
        before = self.counts()
        response = self.request(case, asker)
        label, status = case.operation.label, response.status_code
        self.answered[label, status] += 1
        said = f"{asker.name}: {case.as_curl_command()} -> {status} {response.text[:500]}"
        assert status not in UNREACHABLE, said
        case.validate_response(response, checks=CHECKS)
        if status >= 400:
            assert self.counts() == before, said
            # Which arm a consignment holds no kit of, the supply manager is told, who sent it (rule B6).
            is_blinded = asker.name not in UNBLINDED_ROLES or '"faulty_import"' not in response.text
            assert not is_blinded or not any(word in response.text for word in ARM_WORDS), said
            if "oauth2" not in label:
                problem = response.json()
                assert problem["status"] == status, said
                assert problem["request_id"] == response.headers["x-request-id"], said
        if status == 401 or "sessions/current" in label or "me/password" in label:
            asker.forget()

    def counts(self) -> dict[str, int]:
        """Return how many rows each table has."""
        with self.house.deployment.database.transaction() as tx:
            return dict(tx.execute(COUNTS).one()._mapping)

    def operations(self) -> Iterator[Operation]:
        """Give every operation, without the token, which each asker brings."""
        document = json.loads(json.dumps(expect(self.house.client.get("/openapi.json"), 200)))
        document.pop("security")
        for methods in document["paths"].values():
            for operation in methods.values():
                operation.pop("security", None)
        for found in schemathesis.openapi.from_dict(document).get_all_operations():
            assert isinstance(found, Ok)
            yield found.ok()

    def entitled(self, operation: Operation) -> list[Asker]:
        """Return who may do it, so that every second case comes past the policy."""
        right = operation.definition.raw["description"].replace(",", " ").replace(".", " ").split()
        return [asker for asker in self.askers if asker.name in right] or self.askers

    def run(self, operation: Operation, examples: int, chance: int = 0) -> None:
        """Try one operation: with fitting and unfitting data, about what is there and about anything."""
        names = {parameter.name for parameter in operation.path_parameters}
        known = {name: value for name, value in self.known.items() if name in names}
        modes = [GenerationMode.POSITIVE]
        if operation.body or operation.query or names:
            modes.append(GenerationMode.NEGATIVE)
        strategies = [operation.as_strategy(generation_mode=mode) for mode in modes]
        strategies += [
            operation.as_strategy(generation_mode=mode, path_parameters=known)
            for mode in modes
            if mode is GenerationMode.POSITIVE or operation.body or operation.query
        ]

        @seed(chance)
        @settings(
            max_examples=examples,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            # How fast a case is made depends on the machine, and unfitting data is often thrown away.
            suppress_health_check=list(HealthCheck),
        )
        @given(
            case=st.one_of(strategies), asker=st.sampled_from(self.entitled(operation)) | st.sampled_from(self.askers)
        )
        def look(case: Made, asker: Asker) -> None:
            self.look(case, asker)

        look()


def fuzzer(house: House) -> Fuzzer:
    study = running_study(house)
    spare, machine = house.person(None, username="spare"), house.machine(None)
    askers = [Asker("nobody", None), Asker("service_admin", house.admin), Asker("study_admin", study.study_admin)]
    askers += [
        Asker(role, study.person(role))
        for role in Role
        if role not in {Role.SERVICE_ADMIN, Role.STUDY_ADMIN, Role.EDC_CLIENT}
    ]
    askers += [Asker("edc_client", house.machine()), Asker("stranger", house.person(None))]
    known = {
        "study": STUDY,
        "site": "01",
        "subject": "01-0001",
        "kit_code": study.allocations[0]["kit_code"],
        "code": "C1",
        "schedule_id": study.schedule_id,
        "username": spare.username,
        "client_id": machine.client_id,
        "index": "3",
    }
    return Fuzzer(house, study, askers, known)


def test_no_made_up_request_breaks_anything(house: House) -> None:
    """A few cases for every operation, by every role and by nobody (G1, G2, T11)."""
    tried = fuzzer(house)
    for operation in tried.operations():
        tried.run(operation, 4)
    statuses = Counter[int]()
    for (_, status), count in tried.answered.items():
        statuses[status] += count
    assert sum(statuses.values()) > 250, statuses
    assert statuses.keys() >= {200, 201, 400, 401, 403, 404, 422}, statuses


@pytest.mark.long
@pytest.mark.timeout(0)
def test_no_made_up_request_breaks_anything_in_20_000(house: House, round_seed: int, tally: Tally) -> None:
    """The long form: 20,000 requests on each database; every operation is tried, whatever another one showed (T11)."""
    tried = fuzzer(house)
    broken = []
    for operation in tried.operations():
        before = tried.answered.copy()
        try:
            tried.run(operation, 200, round_seed)
        except (Exception, BaseExceptionGroup) as error:  # noqa: BLE001  # the other operations are to be seen too
            broken.append(f"BROKEN {operation.label}: {''.join(format_exception_only(error))}"[:4000])
            print(broken[-1])  # noqa: T201  # a quarter of an hour before the end
        told = tried.answered - before
        by_status = Counter(f"status_{status}" for (_, status) in told.elements())
        tally(requests=told.total(), operations=1, **by_status)
    assert broken == []
    assert tried.answered.total() >= 20_000
    asked = {label for label, _ in tried.answered}
    assert asked == {operation.label for operation in tried.operations()}
