"""A study with a list and kits, and the people who move them: what tests about kits and subjects begin with.

``trial(house)`` is open, its list is active, site 01 is active and holds consignment C1 with 20 kits of each arm. Then
``trial.allocate("01-0001")`` answers an allocation, ``trial.stock("C2", per_arm=5, expires_on="2027-01-31")`` adds a consignment,
and ``trial.arms_of("C1")`` tells the arm of each kit code, opened as the service itself does.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from httpx2 import Response

from app.domain.words import Action, ArmCode, ConsignmentCode, KitCode, StudyCode
from app.identity.tokens import token_digest
from app.services.audited import Act, T, audited
from app.services.context import RequestContext
from app.services.evidence import open_kit
from app.storage import kits
from tests.harness import STUDY, Caller, House, Json, drill, expect
from tests.memory import remembered

S = f"/v1/studies/{STUDY}"
ARMS = ("CONTROL", "HUCMSC")
LATE = "2028-12-31"


@dataclass
class Trial:
    """A running study, seen from outside."""

    house: House
    study_admin: Caller
    supply_manager: Caller
    statistician: Caller
    list_approver: Caller
    investigator: Caller
    pharmacist: Caller
    _others: dict[str, Caller] = field(default_factory=dict)

    def another(self, role: str, site: str | None = None) -> Caller:
        """Return one more person of a role (at a site), the same one each time."""
        name = f"{role}@{site}"
        if name not in self._others:
            self._others[name] = self.house.person(role, site=site)
        return self._others[name]

    # -- stock

    def create(
        self, code: str, per_arm: int | Mapping[str, int] = 20, expires_on: str | Mapping[str, str] = LATE
    ) -> Json:
        """Return the answer to a new consignment, registered and not sent."""
        counts = per_arm if isinstance(per_arm, Mapping) else dict.fromkeys(ARMS, per_arm)
        days = expires_on if isinstance(expires_on, Mapping) else dict.fromkeys(ARMS, expires_on)
        lines = [
            {"arm_code": arm, "lot": f"L-{arm}", "expires_on": days[arm], "count": count}
            for arm, count in counts.items()
        ]
        body = {"consignment_code": code, "kits": lines}
        return expect(self.supply_manager.post(f"{S}/consignments", json=body, step_up=True), 201)

    def dispatch(self, code: str, site: str = "01") -> None:
        """Send a consignment."""
        expect(self.supply_manager.post(f"{S}/consignments/{code}/dispatch", json={"site_code": site}), 200)

    def receive(
        self, code: str, received: Sequence[str], missing: Sequence[str] = (), by: Caller | None = None
    ) -> Json:
        """Return the answer to a receipt."""
        body = {"received": list(received), "missing": list(missing)}
        return expect((by or self.pharmacist).post(f"{S}/consignments/{code}/receipt", json=body), 200)

    def stock(
        self,
        code: str,
        per_arm: int | Mapping[str, int] = 20,
        expires_on: str | Mapping[str, str] = LATE,
        site: str = "01",
        by: Caller | None = None,
    ) -> None:
        """Make, send and receive a consignment in full."""
        self.create(code, per_arm, expires_on)
        self.dispatch(code, site)
        self.receive(code, list(self.arms_of(code)), by=by)

    # -- subjects

    def post_allocation(self, subject: str, site: str = "01", by: Caller | None = None) -> Response:
        """Return the response to an allocation."""
        body = {
            "subject_id": subject,
            "site_code": site,
            "strata": {},
            "consent_confirmed": True,
            "eligibility_confirmed": True,
        }
        return (by or self.investigator).post(f"{S}/allocations", json=body)

    def allocate(self, subject: str, site: str = "01", by: Caller | None = None) -> Json:
        """Return the answer to an allocation."""
        return expect(self.post_allocation(subject, site, by), 201)

    # -- what only the service can see

    def act(self, work: Callable[[Act], T]) -> T:
        """Return what ``work`` returns behind the door, as a reading of the study by its administrator."""
        digest = token_digest(self.study_admin.token())
        ctx = RequestContext(self.house.deployment, Action.READ_STUDY, digest, "request", "unknown")
        return audited(ctx, Action.READ_STUDY, work, study=StudyCode(STUDY))

    def arms_of(self, code: str) -> dict[KitCode, ArmCode]:
        """Return the arm of every kit of a consignment, in the order of the codes."""

        def work(act: Act) -> dict[KitCode, ArmCode]:
            found = kits.find_consignment(act.tx, act.study.study_id, ConsignmentCode(code))
            assert found is not None
            sealed = kits.list_sealed_kits(act.tx, act.study.study_id, found.consignment_id)
            return {kit.kit_code: kit.arm_code for kit in (open_kit(act, one) for one in sealed)}

        return self.act(work)

    def left_of(self, code: str) -> Counter[str]:
        """Return how many kits of each arm are in stock in a consignment."""
        arms = self.arms_of(code)
        return Counter(arms[kit] for kit, status in self.statuses(code).items() if status == "in_stock")

    def statuses(self, code: str) -> dict[KitCode, str]:
        """Return the status of every kit of a consignment."""
        codes = list(self.arms_of(code))

        def work(act: Act) -> dict[KitCode, str]:
            found = kits.find_consignment(act.tx, act.study.study_id, ConsignmentCode(code))
            assert found is not None
            return {
                kit: status.value
                for kit, status in kits.list_statuses(act.tx, act.study.study_id, found.consignment_id, codes).items()
            }

        return self.act(work)

    def consignment_status(self, code: str) -> str:
        """Return the status of a consignment."""

        def work(act: Act) -> str:
            found = kits.find_consignment(act.tx, act.study.study_id, ConsignmentCode(code))
            assert found is not None
            return found.status.value

        return self.act(work)

    def site_kits(self, site: str = "01", by: Caller | None = None) -> list[dict[str, Any]]:
        """Return everything that a pharmacist sees of the stock, page by page."""
        items: list[dict[str, Any]] = []
        query: dict[str, str] = {"limit": "500"}
        while True:
            page = expect((by or self.pharmacist).request("GET", f"{S}/sites/{site}/kits", query=query), 200)
            items += page["items"]
            if page["next_cursor"] is None:
                return items
            query["cursor"] = page["next_cursor"]

    def entries(self, action: str) -> list[dict[str, Any]]:
        """Return the entries of one action in the study's log."""
        return [entry for entry in self.house.trail(STUDY) if entry["action"] == action]


def trial(house: House, per_arm: int | Mapping[str, int] = 20, length: int = 40, **study: Json) -> Trial:
    """Return a study that is open, with an active list of ``length`` subjects, and site 01 active and stocked."""
    key = ("trial", repr(per_arm), length, repr(study))
    return remembered(house, key, lambda: _begun(house, per_arm, length, **study))


def _begun(house: House, per_arm: int | Mapping[str, int], length: int, **study: Json) -> Trial:
    sites: tuple[str, ...] = study.pop("sites", ("01",))
    house.register_study(sites=sites, **study)
    running = Trial(
        house,
        house.study_admins[STUDY],
        house.person("supply_manager"),
        house.person("statistician"),
        house.person("list_approver"),
        house.person("investigator"),
        house.person("pharmacist"),
    )
    drill(running.investigator, house.person("investigator"))
    body = {"block_sizes": [2, 4], "length_per_stratum": length, "fill": "exact"}
    made = expect(running.statistician.post(f"{S}/schedules", json=body, step_up=True), 201)
    approval = {"commitment": made["commitment"], "meaning": "approval"}
    schedule = f"{S}/schedules/{made['schedule_id']}"
    expect(running.list_approver.post(f"{schedule}/approval", json=approval, step_up=True), 200)
    expect(running.study_admin.post(f"{schedule}/activation", step_up=True), 200)
    running.stock("C1", per_arm)
    expect(running.study_admin.post(f"{S}/sites/01/activation", step_up=True), 200)
    status = {"status": "open", "reason": "All sites are ready."}
    expect(running.study_admin.post(f"{S}/status", json=status, step_up=True), 200)
    return running
