"""Roles that are delegated for a time, and the log that tells who could do what on which day (USR-08, USR-19, D1)."""

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
