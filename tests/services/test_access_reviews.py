"""Who holds what is reviewed every so often and signed for; a review that is overdue is told and blocks nothing (USR-07)."""

import json
from datetime import timedelta
from typing import Any, Final

import pytest
from sqlalchemy import select, update

from app.domain.notices import mail_text
from app.services import access_reviews, safety
from app.services.keeper import Keeper
from app.services.startup import Surroundings
from app.storage import notices, tables
from app.surroundings import surroundings
from tests.harness import STUDY, Caller, House, Json, expect, signed_as
from tests.running_study import S, running_study

REVIEWS: Final = f"{S}/access-reviews"


def current(caller: Caller) -> Json:
    return expect(caller.get(f"{REVIEWS}/current"), 200)


def decided(seen: Json, revoke: str = "") -> dict[str, Any]:
    """Return the sign-off of what was seen: all is kept but the grants of one account."""
    decisions = [
        {"grant_id": one["grant_id"], "verdict": "revoke", "reason": "left"}
        if one["username"] == revoke
        else {"grant_id": one["grant_id"], "verdict": "keep"}
        for one in seen["items"]
    ]
    return {"content_hash": seen["content_hash"], "decisions": decisions}


def outstanding(house: House) -> Json:
    return expect(house.admin.get("/v1/access-reviews"), 200)["items"]


def findings(house: House) -> list[str]:
    """Return what `snose doctor` says of reviews."""
    around: Surroundings = surroundings(house.settings, house.clock)
    try:
        return [one.what for one in safety.concerns(around, house.settings.mode) if "review" in one.what]
    finally:
        around.database.close()


class TestReview:
    def test_what_is_looked_at(self, house: House) -> None:
        """Who holds which role since when and by whom, their training, when they were last here; administrators too. [USR-07]"""
        house.register_study()
        admin, doctor, gone, idle = (
            house.study_admins[STUDY],
            house.person(None),
            house.person("monitor"),
            house.person(None),
        )
        body = {"role": "investigator", "study_code": STUDY, "site_code": "01", "needs_training": True}
        for one in (doctor, idle):
            expect(house.admin.post(f"/v1/people/{one.username}/grants", json=body), 201)
        training = {"topic": "Protocol 1", "completed_on": str(house.clock.now.date())}
        expect(house.admin.post(f"/v1/people/{doctor.username}/trainings", json=training), 201)
        edc = house.machine()
        expect(house.admin.delete(f"/v1/people/{gone.username}/grants/{gone.grant_ids[0]}"), 204)
        off = house.person("coordinator")
        expect(house.admin.post(f"/v1/people/{off.username}/deactivation"), 200)
        house.clock.advance(minutes=5)
        doctor.forget_token()
        expect(doctor.get(S), 200)
        seen = current(admin)
        lines = {one["username"]: one for one in seen["items"]}
        assert lines.keys() == {"admin", admin.username, doctor.username, idle.username, edc.client_id}
        assert lines["admin"]["role"] == "service_admin"
        assert [lines[one.username]["training"] for one in (admin, doctor, idle)] == ["not_asked", "valid", "missing"]
        assert lines[doctor.username]["granted_by"] == "admin"
        assert lines[doctor.username]["last_sign_in_at"] > lines[idle.username]["last_sign_in_at"]
        assert (lines[edc.client_id]["is_machine"], lines[edc.client_id]["last_sign_in_at"]) == (True, None)
        assert (seen["last_reviewed_at"], seen["is_overdue"]) == (None, False)
        # Whoever was here since changes nothing of what is signed for; a training does.
        expect(idle.get("/v1/me"), 200)
        assert current(admin)["content_hash"] == seen["content_hash"]
        expect(house.admin.post(f"/v1/people/{idle.username}/trainings", json=training), 201)
        assert current(admin)["content_hash"] != seen["content_hash"]

    def test_signed_and_what_is_to_be_revoked(self, house: House) -> None:
        """A signature bound to what was looked at; a service administrator is told what to revoke, and does it. [USR-07, SIG-04]"""
        house.register_study()
        admin, doctor = house.study_admins[STUDY], house.person("investigator")
        inspector = house.person("inspector")
        body = decided(current(admin), revoke=doctor.username)
        assert expect(admin.post(REVIEWS, json=body), 401)["code"] == "step_up_required"
        made = expect(admin.post(REVIEWS, json=body, step_up=True), 201)
        assert (made["is_signed"], made["signatures"][0]["meaning"]) == (True, "review")
        entry = house.trail(STUDY)[made["receipt"]["log_index"]]
        said = {"review_id": made["review_id"], "content_hash": body["content_hash"], "to_revoke": doctor.grant_ids}
        assert entry["after"] == {**said, **signed_as(admin, "review")}
        # The reviewer administers no account, so the role is there until somebody has revoked it.
        expect(doctor.get(S), 200)
        [left] = outstanding(house)
        assert [(one["username"], one["reason"]) for one in left["to_revoke"]] == [(doctor.username, "left")]
        expect(house.admin.delete(f"/v1/people/{doctor.username}/grants/{doctor.grant_ids[0]}"), 204)
        assert outstanding(house)[0]["to_revoke"] == []
        again = expect(admin.post(REVIEWS, json=decided(current(admin)), step_up=True), 201)
        page: Json = {}
        for reader in (admin, inspector, house.person("monitor")):
            page = expect(reader.get(REVIEWS, limit=1), 200)
            assert [one["review_id"] for one in page["items"]] == [made["review_id"]]
            rest = expect(reader.get(REVIEWS, limit=1, cursor=page["next_cursor"]), 200)
            assert ([one["review_id"] for one in rest["items"]], rest["next_cursor"]) == ([again["review_id"]], None)
            assert all(one["is_signed"] for one in page["items"] + rest["items"])
        verdicts = {one["username"]: one["verdict"] for one in page["items"][0]["items"]}
        assert verdicts.pop(doctor.username) == "revoke"
        assert set(verdicts.values()) == {"keep"}

    def test_what_is_not_signed(self, house: House) -> None:
        """What has changed since it was looked at; a grant without a decision, or with two; a reason amiss. [USR-07]"""
        house.register_study()
        admin, doctor = house.study_admins[STUDY], house.person("investigator")
        seen = current(admin)
        good = decided(seen)
        one, *others = good["decisions"]
        strange = {"grant_id": seen["content_hash"][:8] + "-0000-4000-8000-000000000000", "verdict": "keep"}
        wrong: list[list[Json]] = [
            [],
            others,
            [one, one, *others],
            [strange, *others],
            [one, strange, *others],
            [{**one, "reason": "left"}, *others],
            [{**one, "verdict": "revoke"}, *others],
            [{**one, "verdict": "perhaps"}, *others],
            [{**one, "reason": "because"}, *others],
        ]
        token = admin.elevated_token()
        for decisions in wrong:
            body = {**good, "decisions": decisions}
            expect(house.send("POST", REVIEWS, token=token, json=body), 422)
        expect(house.admin.delete(f"/v1/people/{doctor.username}/grants/{doctor.grant_ids[0]}"), 204)
        refused = expect(house.send("POST", REVIEWS, token=token, json=good), 409)
        assert refused["code"] == "review_outdated"
        assert expect(admin.get(REVIEWS), 200)["items"] == []

    @pytest.mark.parametrize("database_kind", ["sqlite"])
    def test_an_altered_review_is_unsigned(self, house: House) -> None:
        """Whoever changes the register as the owner of the database is seen: the signature no longer stands. [SIG-05]"""
        house.register_study()
        admin = house.study_admins[STUDY]
        expect(admin.post(REVIEWS, json=decided(current(admin)), step_up=True), 201)
        table = tables.access_review
        with house.deployment.database.engine.begin() as connection:
            lines = json.loads(connection.execute(select(table.c.lines)).scalar_one())
            connection.exec_driver_sql("DROP TRIGGER access_review_no_update")
            connection.execute(update(table).values(lines=json.dumps(lines[1:])))
        [shown] = expect(admin.get(REVIEWS), 200)["items"]
        assert (shown["is_signed"], shown["signatures"][0]["stands"]) == (False, False)


class TestOverdue:
    def test_is_told_and_blocks_nothing(self, house: House, monkeypatch: pytest.MonkeyPatch) -> None:
        """In the delegation log, to administrators, by `snose doctor`, and once by a notice; until it is signed. [USR-07, D5]"""
        study = running_study(house, subjects=1)
        admin, doctor = study.study_admin, study.investigator
        # Nobody listens there; what is put into the outbox is looked at.
        house.restart(smtp_url="smtp://127.0.0.1:9", smtp_sender="snose@hospital.example.org")
        expect(admin.post(f"{S}/contacts", json={"email": "access@sponsor.example.org"}), 201)
        keeper = Keeper(house.deployment)

        def told() -> list[Any]:
            # Two rounds, as of two workers.
            for _ in range(2):
                keeper.round()
            with house.deployment.database.transaction() as tx:
                return [json.loads(row.body) for row in tx.execute(select(tables.notice.c.body))]

        house.clock.advance(days=179)
        assert (told(), findings(house)) == ([], [])
        assert expect(admin.get(f"{S}/delegations"), 200)["is_access_review_overdue"] is False
        house.clock.advance(days=2)
        log = expect(admin.get(f"{S}/delegations", limit=1), 200)
        assert log["is_access_review_overdue"] is True
        [late] = outstanding(house)
        assert (late["study_code"], late["is_overdue"], late["due_at"]) == (STUDY, True, log["access_review_due_at"])
        assert findings(house) == [f"The access review of {STUDY} is overdue."]
        [notice] = told()
        assert notice["type"] == "access_review.overdue"
        assert set(notice["data"]) == {"study_code", "mode", "due_at"}
        mail = mail_text(notice["type"], notice["timestamp"], notice["data"])
        assert mail.startswith("The review of who has access to the study is overdue.")
        assert f"Due: {notice['data']['due_at']}" in mail
        assert "code" not in mail
        body = {"subject_id": "01-0001", "reason_code": "overdose"}
        expect(doctor.post(f"{S}/code-breaks", json=body, step_up=True), 201)
        expect(admin.post(REVIEWS, json=decided(current(admin)), step_up=True), 201)
        assert (outstanding(house)[0]["is_overdue"], findings(house)) == (False, [])
        house.clock.advance(days=181)
        assert [one["type"] for one in told()].count("access_review.overdue") == 2
        # Another worker that is at it in the same moment: the outbox has it already.
        monkeypatch.setattr(notices, "is_posted", lambda *_: False)
        access_reviews.tell_overdue(house.deployment)
        assert [one["type"] for one in told()].count("access_review.overdue") == 2
        study.set_status("closed")
        assert (outstanding(house), findings(house)) == ([], [])

    @pytest.mark.parametrize("database_kind", ["sqlite"])
    def test_when_is_a_setting(self, house: House) -> None:
        """Whoever reviews every quarter says so. [USR-07]"""
        house.register_study()
        house.clock.advance(timedelta(days=91))
        assert findings(house) == []
        house.restart(access_review_days=90)
        assert len(findings(house)) == 1
        # What is wrong with the database itself is told elsewhere, and hides nothing else.
        house.settings = house.settings.model_copy(update={"database_url": "sqlite:////nowhere/at/all.db"})
        assert findings(house) == []
