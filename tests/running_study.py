"""A study under way, made over HTTP: an active list, a site with stock, and subjects who were allocated.

study = running_study(house, subjects=3)
study.investigator.post(f"{S}/code-breaks", json={...}, step_up=True)
"""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import pytest
from httpx2 import Response
from sqlalchemy import text

from app.domain.words import Role
from tests import harness
from tests.harness import STUDY, STUDY_BODY, Caller, House, Json, drill, expect
from tests.memory import remembered

S: Final = f"/v1/studies/{STUDY}"
TREATMENTS: Final = {arm["arm_code"]: arm["treatment"] for arm in STUDY_BODY["arms"]}


def allocation_of(subject: str, strata: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return the body that asks for the allocation of a subject at site 01."""
    return {
        "subject_id": subject,
        "site_code": "01",
        "strata": dict(strata or {}),
        "consent_confirmed": True,
        "eligibility_confirmed": True,
    }


@dataclass
class RunningStudy:
    """Who works in the study, and what was answered when it was set up."""

    house: House
    people: dict[str, Caller]
    schedule_id: str
    kit_codes: list[str]
    allocations: list[dict[str, Any]] = field(default_factory=list)

    @property
    def investigator(self) -> Caller:
        return self.people["investigator"]

    @property
    def study_admin(self) -> Caller:
        return self.house.study_admins[STUDY]

    def person(self, role: Role | str, site: str | None = None) -> Caller:
        """Return somebody with this role, the same person each time."""
        name = f"{role}{site or ''}"
        if name not in self.people:
            self.people[name] = self.house.person(role, site=site)
        return self.people[name]

    def new_subject(self) -> dict[str, Any]:
        """Return the allocation of one more subject."""
        return self.allocate(f"01-{len(self.allocations) + 1:04}")

    def allocate(self, subject: str, strata: Mapping[str, str] | None = None) -> dict[str, Any]:
        body = allocation_of(subject, strata)
        answer: dict[str, Any] = expect(self.investigator.post(f"{S}/allocations", json=body), 201)
        self.allocations.append(answer)
        return answer

    def ask(self, subject: str) -> Response:
        """Ask once for the allocation of a subject, with a key."""
        headers = {"Idempotency-Key": f"key-{subject}"}
        return self.investigator.post(f"{S}/allocations", json=allocation_of(subject), headers=headers)

    def ask_until_told(self, subject: str, tries: int) -> dict[str, Any]:
        """Return what a patient client is told in the end; anything but "later" on the way fails."""
        said = ""
        for _ in range(tries):
            answer = self.ask(subject)
            if answer.status_code in {200, 201}:
                return dict(answer.json())
            said = answer.text
            assert answer.status_code == 503 or answer.json()["code"] == "in_progress", said
        raise AssertionError(said)

    def free_kit(self) -> str:
        """Return the code of a kit that nobody was given."""
        taken = {allocation["kit_code"] for allocation in self.allocations}
        return next(code for code in reversed(self.kit_codes) if code not in taken)

    def restricted(self, log_index: int) -> Json:
        """Return the restricted part of an entry, read by the safety officer."""
        path = f"{S}/trail/{log_index}/restricted"
        return expect(self.person("safety_officer").get(path, step_up=True), 200)

    def set_status(self, status: str) -> None:
        body = {"status": status, "reason": "as the test wants it"}
        expect(self.study_admin.post(f"{S}/status", json=body, step_up=True), 200)


def running_study(
    house: House, subjects: int = 2, kits_per_arm: int = 10, length: int = 12, list_csv: str = "", **fields: Json
) -> RunningStudy:
    """Return a study that is open, with site 01 active and so many subjects ``01-0001``, ``01-0002`` ... allocated.

    Its list is generated, or imported where one is given.
    """
    key = ("running study", kits_per_arm, length, list_csv, repr(fields))
    running = remembered(house, key, lambda: _begun(house, kits_per_arm, length, list_csv, **fields))
    for number in range(1, subjects + 1):
        running.allocate(f"01-{number:04}")
    return running


def _begun(house: House, kits_per_arm: int, length: int, list_csv: str, **fields: Json) -> RunningStudy:
    """Return a study that is open, with site 01 active and nobody allocated."""
    house.register_study(sites=("01", "02"), **fields)
    people = {
        role: house.person(role)
        for role in ("statistician", "list_approver", "supply_manager", "pharmacist", "investigator")
    }
    drill(people["investigator"], house.person(Role.INVESTIGATOR))
    admin = house.study_admins[STUDY]
    specification = {"block_sizes": [2, 4], "block_size_weights": [1, 1], "length_per_stratum": length, "fill": "exact"}
    path, body = f"{S}/schedules", specification
    if list_csv:
        path, body = f"{path}/imports", import_of(list_csv, specification)
    made = expect(people["statistician"].post(path, json=body, step_up=True), 201)
    schedule = f"{S}/schedules/{made['schedule_id']}"
    approval = {"commitment": made["commitment"], "meaning": "approval"}
    expect(people["list_approver"].post(f"{schedule}/approval", json=approval, step_up=True), 200)
    expect(admin.post(f"{schedule}/activation", step_up=True), 200)
    running = RunningStudy(house, people, made["schedule_id"], [])
    running.kit_codes = consignment(running, "C1", kits_per_arm)
    expect(admin.post(f"{S}/sites/01/activation", step_up=True), 200)
    running.set_status("open")
    return running


def import_of(list_csv: str, specification: Json, **fields: Json) -> dict[str, Any]:
    """Return the body by which a statistician hands in a list."""
    digest = hashlib.sha256(list_csv.encode()).hexdigest()
    return {"specification": specification, "list_csv": list_csv, "digest": digest, **fields}


def consignment(running: RunningStudy, code: str, per_arm: int, *, received: bool = True) -> list[str]:
    """Return the kit codes of a new consignment, which is at the site or still in the depot."""
    kits = [
        {"arm_code": arm, "lot": f"L-{number}", "expires_on": "2027-12-31", "count": per_arm}
        for number, arm in enumerate(TREATMENTS)
    ]
    supply = running.people["supply_manager"]
    body = {"consignment_code": code, "kits": kits}
    expect(supply.post(f"{S}/consignments", json=body, step_up=True), 201)
    with running.house.deployment.database.transaction() as tx:
        query = text(
            "SELECT k.kit_code FROM kit k JOIN consignment c ON c.consignment_id = k.consignment_id"
            " WHERE c.consignment_code = :code ORDER BY k.kit_code"
        )
        codes = list(tx.execute(query, {"code": code}).scalars())
    if received:
        expect(supply.post(f"{S}/consignments/{code}/dispatch", json={"site_code": "01"}), 200)
        receipt = {"received": codes, "missing": []}
        expect(running.people["pharmacist"].post(f"{S}/consignments/{code}/receipt", json=receipt), 200)
    return codes


def shared_running_study(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningStudy]:
    """Give one running study to a whole module, on the kind of database that the fixture's parameter names.

    Each test works with subjects of its own and puts right what it broke.
    """
    folder = tmp_path_factory.mktemp("running")
    if request.param == "sqlite":
        path = folder / "snose.sqlite"
        path.write_bytes(request.getfixturevalue("migrated_sqlite").read_bytes())
        with harness.house(f"sqlite:///{path}", folder) as house:
            yield running_study(house, subjects=0, kits_per_arm=60, length=60)
        return
    server = request.getfixturevalue("postgres")
    with (
        server.database(template=request.getfixturevalue("migrated_postgres")) as url,
        harness.house(url, folder) as house,
    ):
        yield running_study(house, subjects=0, kits_per_arm=60, length=60)


# -- the owner of the database -----------------------------------------------------------------------------------------


def execute(running: RunningStudy, *statements: str, **values: object) -> None:
    """Do what only the owner of the database could."""
    with running.house.deployment.database.transaction() as tx:
        for statement in statements:
            known = {name: value for name, value in values.items() if f":{name}" in statement}
            tx.execute(text(statement), known)


def value(running: RunningStudy, query: str, **values: object) -> Any:  # noqa: ANN401  # whatever the column holds
    with running.house.deployment.database.transaction() as tx:
        return tx.execute(text(query), values).scalar_one()


@contextmanager
def tampering(running: RunningStudy, *tables: str) -> Iterator[None]:
    """The owner of the database takes the triggers of some tables away, and puts them back when all is undone."""
    if running.house.deployment.database.is_postgresql:
        query = "SELECT tgname FROM pg_trigger WHERE tgrelid = CAST(:name AS regclass) AND NOT tgisinternal"
        with running.house.deployment.database.transaction() as tx:
            names = {table: list(tx.execute(text(query), {"name": table}).scalars()) for table in tables}
        execute(running, *(f"ALTER TABLE {table} DISABLE TRIGGER USER" for table in tables))
        yield
        for table, triggers in names.items():
            execute(running, *(f"ALTER TABLE {table} ENABLE ALWAYS TRIGGER {trigger}" for trigger in triggers))
        return
    query = "SELECT name, sql FROM sqlite_master WHERE type = 'trigger' AND tbl_name = :table"
    with running.house.deployment.database.transaction() as tx:
        found = [row for table in tables for row in tx.execute(text(query), {"table": table}).all()]
        for row in found:
            tx.execute(text(f'DROP TRIGGER "{row.name}"'))
    yield
    execute(running, *(row.sql for row in found))
