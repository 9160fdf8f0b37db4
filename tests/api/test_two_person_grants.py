"""Where the operator asks for it, a right to unblind is given by two service administrators; using it takes one person still."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Final
from unittest.mock import patch

import pytest
from httpx2 import Response

from app.domain.words import Mode, Role
from app.services import safety
from app.storage import people
from app.surroundings import surroundings
from tests.api.test_recoveries import ask as ask_for_recovery
from tests.api.test_recoveries import lost
from tests.harness import STUDY, Caller, House, Json, expect
from tests.supply import S, trial

WAITING: Final = (
    *("investigator", "study_admin", "statistician", "safety_officer", "unblinded_pharmacist", "treating_physician"),
)
BREAK: Final = {"subject_id": "01-0001", "reason_code": "overdose"}


def two(house: House) -> Caller:
    """Return the second administrator of a house that asks for two from now on."""
    second = house.person("service_admin", study=None, username="second.admin")
    house.restart(two_person_grants=True)
    return second


def body_of(role: str, **terms: Json) -> Json:
    site = "01" if role in {"investigator", "pharmacist", "unblinded_pharmacist"} else None
    return {"role": role, "study_code": None if role == "service_admin" else STUDY, "site_code": site, **terms}


def ask(by: Caller, name: str, role: str, **terms: Json) -> str:
    """Return the path of a grant that was asked for and waits."""
    answer = expect(by.post(f"/v1/people/{name}/grants", json=body_of(role, **terms)), 202)
    assert answer == {"grant_id": answer["grant_id"], "status": "pending"}
    return f"/v1/people/{name}/grants/{answer['grant_id']}"


def confirm(by: Caller, path: str) -> Response:
    return by.post(f"{path}/confirmation", step_up=True)


def code(response: Response) -> str:
    return str(expect(response, 409)["code"])


def grants(house: House, name: str) -> Json:
    return expect(house.admin.get(f"/v1/people/{name}/grants"), 200)


class TestGrantsByTwo:
    def test_nothing_opens_before_another_has_confirmed(self, house: House) -> None:
        """Neither by the asker's own word nor without a fresh proof; both stand in the log of the study. [USR-05, USR-16]"""
        house.register_study()
        second = two(house)
        doctor = house.person(None)
        path = ask(house.admin, doctor.username, "investigator")
        expect(doctor.get(S), 404)
        assert expect(doctor.get("/v1/me"), 200)["grants"] == []
        listed = grants(house, doctor.username)
        assert listed["items"] == []
        [waiting] = listed["pending"]
        assert (waiting["role"], waiting["site_code"], waiting["requested_by"]) == ("investigator", "01", "admin")
        held = expect(house.admin.get(f"/v1/people/{doctor.username}/grants", at=house.clock.now.isoformat()), 200)
        assert held == {"items": [], "next_cursor": None}

        assert code(confirm(house.admin, path)) == "second_person_required"
        expect(second.post(f"{path}/confirmation"), 401)
        expect(confirm(second, path.replace(doctor.username, "admin")), 404)
        expect(doctor.post(f"{path}/confirmation", step_up=True), 403)
        expect(doctor.get(S), 404)

        made = expect(confirm(second, path), 200)
        expect(doctor.get(S), 200)
        listed = grants(house, doctor.username)
        assert "pending" not in listed
        assert [(one["grant_id"], one["granted_by"]) for one in listed["items"]] == [(made["grant_id"], "second.admin")]
        assert code(confirm(second, path)) == "illegal_transition"
        entered = [
            (entry["action"], entry["actor"], entry["before"], (entry["after"] or {}).get("status"))
            for entry in house.trail(STUDY)
            if entry["action"] in {"grant:create", "grant:confirm"} and entry["outcome"] == "done"
        ]
        asked = {"status": "pending", "requested_by": "admin"}
        assert entered == [
            ("grant:create", "admin", None, "pending"),
            ("grant:confirm", "second.admin", asked, None),
        ]
        expect(house.admin.delete(path), 204)
        expect(doctor.get(S), 404)

    def test_which_roles_wait(self, house: House) -> None:
        """Every one that unblinds, could give such a role or vouch for its holder; no other, and no machine's. [USR-05, USR-15]"""
        house.register_study()
        two(house)
        for number, role in enumerate((*WAITING, "service_admin", "list_approver", "supply_manager")):
            name = house.register(f"waits{number}").username
            ask(house.admin, name, role)
            assert grants(house, name)["items"] == []
        for number, role in enumerate(("pharmacist", "monitor", "inspector")):
            name = house.register(f"held{number}").username
            answer = expect(house.admin.post(f"/v1/people/{name}/grants", json=body_of(role)), 201)
            assert answer.keys() == {"grant_id"}
        machine = house.machine()
        expect(machine.get(S), 200)
        refused = house.admin.post(f"/v1/clients/{machine.client_id}/grants", json=body_of("statistician"))
        expect(refused, 422)
        expect(machine.post("/v1/people/waits0/grants/3f0c9b5e-6f0e-4c5e-9a59-3d1c6a4f2b10/confirmation"), 403)

    def test_one_administrator_makes_no_second_one(self, house: House) -> None:
        """An account of one's own making confirms nothing: its role waits for somebody else. [USR-05]"""
        two(house)
        mine, name = house.person(None, username="my.other.self"), house.register("doctor").username
        own = ask(house.admin, mine.username, "service_admin")
        path = ask(house.admin, name, "statistician")
        expect(confirm(mine, path), 403)
        expect(confirm(mine, own), 403)
        assert code(confirm(house.admin, own)) == "second_person_required"

    def test_a_new_account_is_its_holders_first(self, house: House) -> None:
        """While whoever issued the password could make its first change, nobody gives it such a role. [SIG-07, USR-05]"""
        second = two(house)
        doctor = house.register("doctor")
        path = ask(house.admin, "doctor", "statistician")
        assert code(confirm(second, path)) == "illegal_transition"
        house.take_over(doctor)
        expect(confirm(second, path), 200)

    def test_the_same_request_again(self, house: House) -> None:
        """By its key it is answered from store, waiting as it was, and asked for once. [INT-01, rule C4]"""
        second = two(house)
        name = house.person(None, username="doctor").username
        key = {"Idempotency-Key": "once"}
        made = [
            house.admin.post(f"/v1/people/{name}/grants", json=body_of("statistician"), headers=key) for _ in range(2)
        ]
        assert [one.status_code for one in made] == [202, 200]
        assert made[0].json() == made[1].json()
        [waiting] = grants(house, name)["pending"]
        path = f"/v1/people/{name}/grants/{waiting['grant_id']}/confirmation"
        again = [second.post(path, step_up=True, headers=key).json() for _ in range(2)]
        assert again == [{"grant_id": waiting["grant_id"]}] * 2

    def test_what_changed_meanwhile_is_seen(self, house: House) -> None:
        """A role that excludes it, the same role, an account switched off, an asker who is none: no grant. [B10, USR-16]"""
        house.register_study()
        second = two(house)
        third = ask(second, house.person(None, username="third.admin").username, "service_admin")
        expect(confirm(house.admin, third), 200)
        cases = {}
        for what in ("excluded", "twice", "off", "by.former"):
            name = house.person(None, username=what).username
            by = second if what == "by.former" else house.admin
            cases[what] = ask(by, name, "statistician")
        twin = ask(house.admin, "twice", "statistician")
        expect(house.admin.post("/v1/people/excluded/grants", json=body_of("monitor")), 201)
        expect(confirm(second, twin), 200)
        expect(house.admin.post("/v1/people/off/deactivation"), 200)
        told = {what: code(confirm(second, path)) for what, path in cases.items() if what != "by.former"}
        assert told == {"excluded": "grant_conflict", "twice": "already_exists", "off": "illegal_transition"}
        [held] = grants(house, second.username)["items"]
        expect(house.admin.delete(f"/v1/people/{second.username}/grants/{held['grant_id']}"), 204)
        assert code(confirm(house.admin, cases["by.former"])) == "illegal_transition"
        assert [len(grants(house, name)["items"]) for name in ("excluded", "twice", "off", "by.former")] == [1, 1, 0, 0]

    def test_withdrawn_and_lapsed(self, house: House) -> None:
        """Any administrator withdraws it; after a week, or its own end, it is there no more. A past start is now. [USR-07]"""
        house.register_study()
        second = two(house)
        names = [house.person(None, username=f"p{number}").username for number in range(4)]
        withdrawn = ask(house.admin, names[0], "statistician")
        apart = ask(house.admin, names[0], "service_admin")
        for path in (withdrawn, apart):
            expect(second.delete(path), 204)
            expect(second.delete(path), 404)
            assert code(confirm(second, path)) == "illegal_transition"
        now = house.clock.now
        short = ask(house.admin, names[1], "statistician", ends_at=now.replace(day=now.day + 1).isoformat())
        later = ask(house.admin, names[2], "statistician", starts_at=now.replace(day=now.day + 1).isoformat())
        future = ask(house.admin, names[3], "statistician", starts_at=now.replace(day=now.day + 5).isoformat())
        house.clock.advance(days=2)
        assert code(confirm(second, short)) == "illegal_transition"
        expect(second.delete(short), 404)
        expect(confirm(second, later), 200)
        expect(confirm(second, future), 200)
        starts = [grants(house, name)["items"][0]["starts_at"] for name in names[2:]]
        assert starts[0] is None
        assert starts[1] is not None
        old = ask(house.admin, names[0], "statistician")
        house.clock.advance(days=7)
        assert "pending" not in grants(house, names[0])
        assert code(confirm(second, old)) == "illegal_transition"
        assert grants(house, names[0])["items"] == []

    def test_two_confirm_at_once(self, house: House) -> None:
        """One grant comes of it. [USR-05, rule C1]"""
        second = two(house)
        third = house.person(None, username="third.admin")
        expect(confirm(second, ask(house.admin, third.username, "service_admin")), 200)
        path = ask(house.admin, house.person(None, username="doctor").username, "statistician")
        tokens = [who.elevated_token() for who in (second, third)]
        with ThreadPoolExecutor(2) as pool:
            answers = list(pool.map(lambda token: house.send("POST", f"{path}/confirmation", token=token), tokens))
        assert sorted(one.status_code for one in answers) == [200, 409]
        assert len(grants(house, "doctor")["items"]) == 1

    @pytest.mark.parametrize("database_kind", ["sqlite"])
    def test_a_build_that_forgets_whom_it_holds(self, house: House) -> None:
        """Negative control: were the administrators not looked at again, a former one's wish would come true. [USR-06]"""
        second = two(house)
        path = ask(second, house.person(None, username="doctor").username, "statistician")
        expect(house.admin.post(f"/v1/people/{second.username}/deactivation"), 200)
        assert code(confirm(house.admin, path)) == "illegal_transition"
        with house.deployment.database.transaction() as tx:
            both = [people.get_account(tx, name, is_machine=False).principal_id for name in ("admin", second.username)]
        with patch.object(people, "hold_service_admins", return_value=both):
            expect(confirm(house.admin, path), 200)


class TestResetByTwo:
    def test_who_issues_a_password_has_no_factor_by_it(self, house: House) -> None:
        """Whoever comes first by the issued password unblinds nothing; a colleague vouches, another one. [SIG-07, USR-13]"""
        running = trial(house)
        running.allocate("01-0001")
        doctor, second = running.investigator, two(house)
        taken = reset(house.admin, doctor)
        expect(doctor.post(f"{S}/code-breaks", json=BREAK), 401)
        proof = house.send("POST", "/v1/sessions/step-up", token=doctor.token(), json={"otp": "000000"})
        assert "factor-recoveries" in expect(proof, 401)["detail"]
        later = {"current": doctor.password, "new": f"{doctor.password} again"}
        assert expect(doctor.post("/v1/me/password", json=later), 200) == {"totp_secret": None}
        doctor.password = later["new"]

        recovery = lost(doctor)
        assert code(recovery.confirmed_by(house.admin)) == "second_person_required"
        assert code(recovery.completed()) == "illegal_transition"
        expect(recovery.confirmed_by(second), 200)
        token = expect(recovery.completed(), 201)["access_token"]
        broken = expect(house.send("POST", f"{S}/code-breaks", token=token, json=BREAK), 201)
        assert broken["treatment"]
        assert taken["after"] == {"must_change_password": True, "second_factor": None, "needs_colleague": True}

        house.clock.advance(minutes=31)
        again = lost(doctor)
        expect(again.confirmed_by(house.admin), 200)

    def test_no_administrator_becomes_the_other(self, house: House) -> None:
        """Nor is one both by a reset: it takes a third to vouch for an administrator. [USR-05, SIG-07]"""
        third = house.person("service_admin", study=None, username="third.admin")
        second = two(house)
        own = house.admin.post(f"/v1/people/{second.username}/grants", json=body_of("statistician"))
        assert code(own) == "grant_conflict"
        path = ask(house.admin, house.person(None, username="mine").username, "statistician")
        reset(house.admin, second)
        expect(second.post(f"{path}/confirmation"), 401)
        recovery = lost(second)
        assert code(recovery.confirmed_by(house.admin)) == "second_person_required"
        expect(recovery.confirmed_by(third), 200)
        expect(recovery.completed(), 201)

    def test_who_holds_nothing_is_reset_as_ever(self, house: House) -> None:
        """There is nothing to be had of it, and nobody who could vouch; without the setting everybody is. [USR-13, EUB-15]"""
        doctor = house.person("coordinator")
        second = two(house)
        nobody = house.person(None)
        kept = expect(second.post(f"/v1/people/{nobody.username}/reset"), 200)
        house.restart(two_person_grants=False)
        usual = expect(second.post(f"/v1/people/{doctor.username}/reset"), 200)
        for who, issued in ((nobody, kept), (doctor, usual)):
            assert issued.keys() == {"username", "password"}
            who.password = issued["password"]
            who.forget_token()
            house.take_over(who)
            expect(who.get("/v1/me", step_up=True), 200)

    def test_another_reset_begins_anew(self, house: House) -> None:
        """It is whoever issued the password that stands who may not vouch; before its change nothing is asked for. [SIG-07]"""
        doctor = house.person("coordinator")
        second = two(house)
        issued = expect(house.admin.post(f"/v1/people/{doctor.username}/reset"), 200)
        assert issued["needs_colleague"] is True
        assert code(ask_for_recovery(house, doctor.username, issued["password"])) == "illegal_transition"
        reset(second, doctor)
        recovery = lost(doctor)
        assert code(recovery.confirmed_by(second)) == "second_person_required"
        expect(recovery.confirmed_by(house.admin), 200)
        expect(recovery.completed(), 201)

    def test_a_grant_confirmed_meanwhile(self, house: House) -> None:
        """Either the reset sees the role, or the confirmation the issued password: nobody has both alone. [SIG-07, rule C1]"""
        second = two(house)
        for number in range(4):
            doctor = house.person(None, username=f"doctor{number}")
            path = ask(house.admin, doctor.username, "statistician")
            tokens = second.elevated_token(), house.admin.token()
            paths = f"{path}/confirmation", f"/v1/people/{doctor.username}/reset"
            with ThreadPoolExecutor(2) as pool:
                confirmed, issued = pool.map(lambda way, token: house.send("POST", way, token=token), paths, tokens)
            assert (confirmed.status_code == 200) == ("needs_colleague" in expect(issued, 200))
            house.clock.advance(seconds=30)

    @pytest.mark.parametrize("database_kind", ["sqlite"])
    def test_a_build_that_forgets_who_reset(self, house: House) -> None:
        """Negative control: by one administrator's own word the account would be theirs. [SIG-07]"""
        doctor = house.person("coordinator")
        two(house)
        reset(house.admin, doctor)
        recovery = lost(doctor)
        assert code(recovery.confirmed_by(house.admin)) == "second_person_required"
        with house.deployment.database.transaction() as tx:
            found = people.find_credential(tx, doctor.username, is_machine=False)
        assert found is not None
        forgotten = replace(found, reset_by=None)
        with patch("app.services.recoveries.people.find_credential", return_value=forgotten):
            expect(recovery.confirmed_by(house.admin), 200)


def reset(by: Caller, who: Caller) -> Json:
    """Have an account that holds a role reset, and its password changed by whoever comes first; return what was entered."""
    house = by.house
    issued = expect(by.post(f"/v1/people/{who.username}/reset"), 200)
    assert issued == {"username": who.username, "password": issued["password"], "needs_colleague": True}
    entered = house.trail(last=1)[0]
    who.password = issued["password"]
    who.forget_token()
    new = "curlew at noon over the marsh"
    changed = expect(who.post("/v1/me/password", json={"current": who.password, "new": new}), 200)
    assert changed == {"totp_secret": None}
    who.password = new
    return entered


class TestNothingElseWaits:
    def test_a_code_break_of_somebody_granted_is_one_persons(self, house: House) -> None:
        """The same request, the same answer, at once; a former grant needs nobody's confirmation. [EUB-01, EUB-02, N01]"""
        running = trial(house)
        for subject in ("01-0001", "01-0002"):
            running.allocate(subject)
        before = expect(running.investigator.post(f"{S}/code-breaks", json=BREAK, step_up=True), 201)
        house.restart(two_person_grants=True)
        sent = {**BREAK, "subject_id": "01-0002"}
        broken = expect(running.investigator.post(f"{S}/code-breaks", json=sent, step_up=True), 201)
        assert broken["treatment"]
        assert broken.keys() == before.keys()

    def test_without_the_setting_one_administrator_grants(self, house: House) -> None:
        """The answers have the same fields as ever; what waited before is confirmed or withdrawn still. [USR-05]"""
        house.register_study()
        second = two(house)
        waiting = [
            ask(house.admin, house.person(None, username=name).username, "statistician") for name in ("one", "other")
        ]
        house.restart(two_person_grants=False)
        name = house.register("doctor").username
        answer = expect(house.admin.post(f"/v1/people/{name}/grants", json=body_of("investigator")), 201)
        assert answer.keys() == {"grant_id"}
        assert grants(house, name).keys() == {"items", "next_cursor"}
        expect(confirm(second, waiting[0]), 200)
        expect(house.admin.delete(waiting[1]), 204)

    def test_the_operator_is_told_of_too_few(self, house: House, tmp_path: Path) -> None:
        """`snose doctor` names it while nobody could confirm, and only where the setting is on. [USR-07, INT-03]"""

        def named(*, asked: bool, url: str | None = None) -> int:
            new = {"two_person_grants": asked} | ({} if url is None else {"database_url": url})
            around = surroundings(house.settings.model_copy(update=new))
            try:
                found = safety.concerns(around, Mode.TEST)
            finally:
                around.database.close()
            return sum("SNOSE_TWO_PERSON_GRANTS" in one.mend for one in found)

        assert house.admin.username
        assert [named(asked=asked) for asked in (False, True)] == [0, 1]
        assert named(asked=True, url=f"sqlite:///{tmp_path}/nothing-there/x.sqlite") == 0
        house.person(Role.SERVICE_ADMIN, study=None)
        assert named(asked=True) == 0
