"""Roles that are delegated for a time or after a training, and who could do what on which day (USR-08, USR-19, D1)."""

from datetime import timedelta
from typing import Any

from tests.harness import STUDY, Caller, House, Json, expect
from tests.running_study import S, running_study

BREAKS = f"{S}/code-breaks"


def give(house: House, who: Caller, role: str, status: int = 201, /, **more: Json) -> Json:
    """Grant a role, and return what is answered."""
    site = {"site_code": "01"} if role in {"investigator", "coordinator"} else {}
    body = {"role": role, "study_code": STUDY, **site, **more}
    return expect(house.admin.post(f"{house.account_path(who)}/grants", json=body), status)


def later(house: House, **amount: float) -> str:
    return (house.clock.now + timedelta(**amount)).isoformat()


def code_of(who: Caller, path: str = S) -> int:
    return who.get(path).status_code


class TestDates:
    def test_a_role_begins_and_ends_by_its_dates(self, house: House) -> None:
        """Before the start and from the end on it opens nothing, without anybody doing anything; a live token feels it (USR-08)."""
        house.register_study()
        doctor = house.person(None)
        starts, ends = later(house, minutes=5), later(house, minutes=9)
        give(house, doctor, "coordinator", starts_at=starts, ends_at=ends)
        seen = []
        for _ in range(4):
            seen.append((code_of(doctor), len(expect(doctor.get("/v1/me"), 200)["grants"])))
            house.clock.advance(minutes=3)
        assert seen == [(404, 0), (404, 0), (200, 1), (404, 0)]
        entry = [one for one in house.trail(STUDY) if one["action"] == "grant:create"][-1]
        assert (entry["after"]["starts_at"], entry["after"]["ends_at"]) == (
            starts[:19] + "+00:00",
            ends[:19] + "+00:00",
        )
        # Nobody has revoked it, so an administrator still sees it, with its dates.
        [listed] = expect(house.admin.get(f"/v1/people/{doctor.username}/grants"), 200)["items"]
        assert (listed["starts_at"][:19], listed["ends_at"][:19]) == (starts[:19], ends[:19])
        now = expect(house.admin.get(f"/v1/people/{doctor.username}/grants", at=house.clock.now.isoformat()), 200)
        assert now["items"] == []

    def test_dates_that_make_no_sense(self, house: House) -> None:
        """The past, an end before the start, an administrator for a time: 422 with the field (G2)."""
        house.register_study()
        doctor = house.person(None)
        wrong: list[tuple[dict[str, Any], str]] = [
            ({"starts_at": later(house, minutes=-1)}, "starts_at"),
            ({"ends_at": later(house, minutes=-1)}, "ends_at"),
            ({"starts_at": later(house, days=2), "ends_at": later(house, days=1)}, "ends_at"),
            ({"starts_at": "2027-01-01T00:00:00"}, "starts_at"),
            ({"ends_at": "tomorrow"}, "ends_at"),
            (
                {"role": "service_admin", "study_code": None, "site_code": None, "ends_at": later(house, days=9)},
                "ends_at",
            ),
            (
                {"role": "service_admin", "study_code": None, "site_code": None, "starts_at": later(house, days=9)},
                "starts_at",
            ),
        ]
        for more, field in wrong:
            problem = give(house, doctor, "investigator", 422, **more)
            assert [fault["field"] for fault in problem["errors"]] == [field], more

    def test_renewal_and_exclusion(self, house: House) -> None:
        """One role at one place at a time; the next may begin where it ends. An excluded role waits for the revocation (B10)."""
        house.register_study()
        doctor = house.person(None)
        day_1, day_2, day_3 = (later(house, days=days) for days in (1, 2, 3))
        give(house, doctor, "investigator", starts_at=day_1, ends_at=day_2)
        for more in ({}, {"ends_at": day_3}, {"starts_at": day_1}, {"starts_at": day_1, "ends_at": day_3}):
            assert give(house, doctor, "investigator", 409, **more)["code"] == "already_exists", more
        give(house, doctor, "investigator", starts_at=day_2, ends_at=day_3)
        give(house, doctor, "investigator", ends_at=day_1)
        house.clock.advance(days=4)
        assert give(house, doctor, "statistician", 409)["code"] == "grant_conflict"
        path = f"/v1/people/{doctor.username}/grants"
        for grant in expect(house.admin.get(path), 200)["items"]:
            expect(house.admin.delete(f"{path}/{grant['grant_id']}"), 204)
        give(house, doctor, "statistician")

    def test_a_site_is_ready_with_people_who_are_delegated_now(self, house: House) -> None:
        """An investigator of yesterday or of tomorrow is none of the two who can break a code (EUB-16)."""
        house.register_study()
        past, coming, unlimited = (house.person(None) for _ in range(3))
        give(house, past, "investigator", ends_at=later(house, minutes=1))
        give(house, coming, "investigator", starts_at=later(house, days=1))
        give(house, unlimited, "investigator")
        house.clock.advance(minutes=2)
        path = f"{S}/sites/01/activation"
        refused = expect(house.study_admins[STUDY].post(path, step_up=True), 409)
        assert "two investigators" in refused["detail"]
        give(house, past, "investigator")
        refused = expect(house.study_admins[STUDY].post(path, step_up=True), 409)
        assert "two investigators" not in refused["detail"]


class TestEmergency:
    def test_an_ended_delegation_alerts_and_a_revoked_one_blocks(self, house: House) -> None:
        """Nothing else is open to its holder; the break is, and says so in its entry; narrative too (D1, EUB-01, EUB-02)."""
        running_study(house, subjects=1)
        doctor = house.person(None)
        body = {"subject_id": "01-0001", "reason_code": "overdose"}
        granted = give(house, doctor, "investigator", ends_at=later(house, minutes=2))
        within = expect(doctor.post(BREAKS, json=body, step_up=True), 201)
        assert "delegation_ended" not in house.trail(STUDY, last=1)[0]["after"]
        house.clock.advance(days=30)
        assert [code_of(doctor, path) for path in (S, BREAKS, f"{S}/trail", f"{S}/allocations")] == [404] * 4
        assert house.trail(STUDY, last=1)[0]["outcome"] == "denied"
        assert doctor.post(BREAKS, json=body).status_code == 401
        after = expect(doctor.post(BREAKS, json=body, step_up=True), 201)
        assert after["treatment"] == within["treatment"]
        entry = house.trail(STUDY, last=1)[0]
        assert (entry["role"], entry["after"]["delegation_ended"]) == ("investigator", True)
        # By a kit of another site or of nobody it is open as it was before, and is flagged as well.
        kit = {"kit_code": after["kit_codes"][0], "reason_code": "overdose"}
        expect(doctor.post(BREAKS, json=kit, step_up=True), 201)
        assert house.trail(STUDY, last=1)[0]["after"]["delegation_ended"] is True
        told = f"{BREAKS}/{after['code_break_id']}/narrative"
        expect(doctor.post(told, json={"narrative": "The child of the subject took two."}), 201)
        # Whose role has ended at one site and holds at another acts by what has ended where it has ended.
        give(house, doctor, "investigator", site_code="02")
        expect(doctor.post(BREAKS, json=body, step_up=True), 201)
        assert house.trail(STUDY, last=1)[0]["after"]["delegation_ended"] is True
        again = give(house, doctor, "investigator")
        expect(doctor.post(BREAKS, json=body, step_up=True), 201)
        assert "delegation_ended" not in house.trail(STUDY, last=1)[0]["after"]
        # The negative control: what is revoked is closed, the ended one included.
        path = f"/v1/people/{doctor.username}/grants"
        for grant_id in (granted["grant_id"], again["grant_id"]):
            expect(house.admin.delete(f"{path}/{grant_id}"), 204)
        expect(doctor.post(BREAKS, json=body, step_up=True), 404)

    def test_an_ended_role_that_never_broke_a_code_opens_nothing(self, house: House) -> None:
        """Only roles that include the break keep it; a role still to come opens nothing either (D1)."""
        running_study(house, subjects=1)
        body = {"subject_id": "01-0001", "reason_code": "overdose"}
        nurse, coming = house.person(None), house.person(None)
        give(house, nurse, "coordinator", ends_at=later(house, minutes=1))
        give(house, coming, "investigator", starts_at=later(house, days=1))
        house.clock.advance(minutes=2)
        for who in (nurse, coming):
            expect(who.post(BREAKS, json=body, step_up=True), 404)


class TestLog:
    def test_tells_who_could_do_what_on_a_day(self, house: House) -> None:
        """Who, which role, where, from when to when, by whom; with a day, those of that day alone (USR-05, USR-08, USR-19)."""
        house.register_study()
        path = f"{S}/delegations"
        monitor, doctor, nurse, gone = (house.person(role) for role in ("monitor", None, "coordinator", "coordinator"))
        begin = house.clock.now
        give(house, doctor, "investigator", starts_at=later(house, days=1), ends_at=later(house, days=3))
        house.clock.advance(days=2)
        expect(house.admin.delete(f"/v1/people/{nurse.username}/grants/{nurse.grant_ids[0]}"), 204)
        expect(house.admin.post(f"/v1/people/{gone.username}/deactivation"), 200)
        whole = expect(monitor.get(path), 200)["items"]
        assert [one["username"] for one in whole[1:]] == [who.username for who in (monitor, nurse, gone, doctor)]
        line = whole[-1]
        assert (line["role"], line["site_code"], line["granted_by"], line["revoked_at"]) == (
            "investigator",
            "01",
            "admin",
            None,
        )
        assert line["starts_at"] < line["ends_at"]
        assert [one["username"] for one in whole if one["revoked_by"] or one["deactivated_at"]] == [
            nurse.username,
            gone.username,
        ]

        def at(**amount: float) -> set[str]:
            moment = (begin + timedelta(**amount)).isoformat()
            return {one["username"] for one in expect(monitor.get(path, at=moment), 200)["items"]}

        always = {monitor.username, house.study_admins[STUDY].username}
        assert at(hours=1) == always | {nurse.username, gone.username}
        assert at(days=1, hours=1) == always | {nurse.username, gone.username, doctor.username}
        assert at(days=2, hours=1) == always | {doctor.username}
        assert at(days=3, hours=1) == always
        assert at(days=-1) == set()
        day = expect(monitor.get(path, at=begin.date().isoformat()), 200)["items"]
        assert {one["username"] for one in day} == always | {nurse.username, gone.username}

    def test_is_paged_and_of_its_study_alone(self, house: House) -> None:
        """A cursor goes on with the same day; another study's people are not in it, nor does its monitor read it (USR-21)."""
        house.register_study()
        monitor = house.person("monitor")
        stranger = house.person("monitor", "OTHER")
        path = f"{S}/delegations"
        first = expect(monitor.get(path, limit=1), 200)
        assert len(first["items"]) == 1
        second = expect(monitor.get(path, limit=1, cursor=first["next_cursor"]), 200)
        assert [one["username"] for one in second["items"]] == [monitor.username]
        assert second["next_cursor"] is None
        expect(monitor.get(path, limit=1, cursor=first["next_cursor"], at="2026-11-22"), 422)
        expect(stranger.get(path), 404)
        expect(house.person("coordinator").get(path), 403)
        entries = [one for one in house.trail(STUDY) if one["action"] == "delegation:list"]
        assert [one["outcome"] for one in entries] == ["done", "refused", "denied"]


def train(house: House, who: Caller, completed: int, status: int = 201, /, **more: Json) -> Json:
    """Record a training that was completed so many days before today."""
    day = (house.clock.now - timedelta(days=completed)).date()
    body = {"topic": "Protocol 2.1", "completed_on": day.isoformat(), **more}
    return expect(house.admin.post(f"/v1/people/{who.username}/trainings", json=body), status)


def day(house: House, **amount: float) -> str:
    return (house.clock.now + timedelta(**amount)).date().isoformat()


class TestTraining:
    def test_a_role_waits_for_its_training(self, house: House) -> None:
        """Ordinary acts are refused in plain words until it is on record, and again when it is over (USR-08)."""
        house.register_study()
        nurse = house.person(None)
        granted = give(house, nurse, "coordinator", needs_training=True)
        problem = expect(nurse.get(S), 403)
        assert (problem["code"], problem["advice"][:27]) == ("training_required", "Ask the service administrat")
        assert house.trail(STUDY, last=1)[0]["after"] == {"code": "training_required"}
        # What the role does not include anyhow is refused as it was.
        assert expect(nurse.get(f"{S}/delegations"), 403)["code"] == "forbidden"
        train(house, nurse, 1, study_code="OTHER")
        expect(nurse.get(S), 403)
        train(house, nurse, 400, valid_until=day(house, days=-1))
        expect(nurse.get(S), 403)
        trained = train(house, nurse, 2, study_code=STUDY, valid_until=day(house))
        expect(nurse.get(S), 200)
        entry = house.trail(STUDY, last=2)[0]
        assert (entry["action"], entry["actor"], entry["target"]) == (
            "training:record",
            "admin",
            {"username": nurse.username},
        )
        assert entry["after"]["training_id"] == trained["training_id"]
        house.clock.advance(days=1)
        expect(nurse.get(S), 403)
        listed = expect(house.admin.get(f"/v1/people/{nurse.username}/trainings"), 200)["items"]
        assert [(one["study_code"], one["recorded_by"]) for one in listed] == [
            ("OTHER", "admin"),
            (None, "admin"),
            (STUDY, "admin"),
        ]
        train(house, nurse, 0)
        expect(nurse.get(S), 200)
        expect(house.admin.delete(f"/v1/people/{nurse.username}/grants/{granted['grant_id']}"), 204)
        expect(nurse.get(S), 404)

    def test_who_could_do_what_takes_training_into_account(self, house: House) -> None:
        """On a day without a training on record nobody could act by a role that waits for one; nor does it make a site ready."""
        house.register_study()
        monitor, doctor = house.person("monitor"), house.person(None)
        give(house, doctor, "investigator", needs_training=True)
        give(house, house.person(None), "investigator")
        path = f"{S}/sites/01/activation"
        before = house.clock.now
        assert "two investigators" in expect(house.study_admins[STUDY].post(path, step_up=True), 409)["detail"]
        house.clock.advance(hours=1)
        # Whatever day it was completed on, it counts from its record on.
        train(house, doctor, 30)
        assert "two investigators" not in expect(house.study_admins[STUDY].post(path, step_up=True), 409)["detail"]
        for at, there in ((before, False), (house.clock.now, True)):
            listed = expect(monitor.get(f"{S}/delegations", at=at.isoformat()), 200)["items"]
            assert (doctor.username in {one["username"] for one in listed}) is there

    def test_a_missing_training_alerts_and_does_not_block_a_code_break(self, house: House) -> None:
        """Never trained, or no more: the emergency break and its narrative are open, and the entry says so (D1, EUB-01)."""
        running_study(house, subjects=1)
        doctor = house.person(None)
        body = {"subject_id": "01-0001", "reason_code": "overdose"}
        give(house, doctor, "investigator", needs_training=True, ends_at=later(house, days=2))
        expect(doctor.get(BREAKS), 403)
        broken = expect(doctor.post(BREAKS, json=body, step_up=True), 201)
        assert house.trail(STUDY, last=1)[0]["after"]["training_missing"] is True
        told = f"{BREAKS}/{broken['code_break_id']}/narrative"
        expect(doctor.post(told, json={"narrative": "A double dose."}), 201)
        train(house, doctor, 1)
        expect(doctor.post(BREAKS, json=body, step_up=True), 201)
        assert "training_missing" not in house.trail(STUDY, last=1)[0]["after"]
        # Whose delegation has ended as well acts after its end, and that is what the entry says.
        house.clock.advance(days=3)
        expect(doctor.post(BREAKS, json=body, step_up=True), 201)
        after = house.trail(STUDY, last=1)[0]["after"]
        assert (after.get("delegation_ended"), after.get("training_missing")) == (True, None)

    def test_what_is_no_training(self, house: House) -> None:
        """Days that make no sense, roles that wait for nothing, accounts that are not there (G2)."""
        house.register_study()
        nurse, edc = house.person(None), house.machine(None)
        for more, field in (
            ({"completed_on": day(house, days=1)}, "completed_on"),
            ({"valid_until": day(house, days=-9)}, "valid_until"),
            ({"completed_on": "2026-02-30"}, "completed_on"),
            ({"topic": ""}, "topic"),
            ({"study_code": "no/slash"}, "study_code"),
        ):
            problem = train(house, nurse, 1, 422, **more)
            assert [fault["field"] for fault in problem["errors"]] == [field], more
        assert give(house, edc, "edc_client", 422, needs_training=True)["errors"][0]["field"] == "needs_training"
        admin = {"role": "service_admin", "needs_training": True}
        refused = expect(house.admin.post(f"/v1/people/{nurse.username}/grants", json=admin), 422)
        assert refused["errors"][0]["field"] == "needs_training"
        expect(
            house.admin.post("/v1/people/nobody.here/trainings", json={"topic": "x", "completed_on": "2026-01-01"}), 404
        )
        expect(house.admin.get(f"/v1/people/{edc.client_id}/trainings"), 404)

    def test_a_repeated_record_is_answered_from_store(self, house: House) -> None:
        """One training, however often its request arrives (C4)."""
        nurse = house.person(None)
        path, body = f"/v1/people/{nurse.username}/trainings", {"topic": "x", "completed_on": "2026-01-01"}
        headers = {"Idempotency-Key": "one"}
        first = expect(house.admin.post(path, json=body, headers=headers), 201)
        assert expect(house.admin.post(path, json=body, headers=headers), 200) == first
        assert len(expect(house.admin.get(path), 200)["items"]) == 1
