"""Registering a study, its sites and its status."""

from typing import Any

import pytest

from app.domain.words import Role
from tests.harness import STUDY, STUDY_BODY, Caller, House, expect
from tests.running_study import S, execute, running_study, tampering

SITE: dict[str, Any] = {"site_code": "03", "name": "Third", "timezone": "Asia/Shanghai"}


def administrator(house: House) -> Caller:
    return house.person(Role.STUDY_ADMIN)


class TestRegisterStudy:
    def test_registered(self, house: House) -> None:
        """A study is registered in draft; the grants that stand already are entered with it. [ASG-24, custody: trail]"""
        admin = administrator(house)
        answer = expect(admin.post("/v1/studies", json=STUDY_BODY), 201)
        assert (answer["status"], answer["mode"]) == ("draft", "test")
        assert answer["arms"] == [{**arm} for arm in STUDY_BODY["arms"]]
        entry = house.trail(STUDY)[0]
        assert entry["action"] == "study:register"
        assert entry["after"]["standing_grants"] == [{"name": admin.username, "role": "study_admin", "site_code": None}]
        assert not any(arm["label"] in str(entry) for arm in STUDY_BODY["arms"])

    def test_twice(self, house: House) -> None:
        """A study code is given once."""
        admin = administrator(house)
        expect(admin.post("/v1/studies", json=STUDY_BODY), 201)
        assert expect(admin.post("/v1/studies", json=STUDY_BODY), 409)["code"] == "already_exists"

    def test_by_the_administrator_of_another_study(self, house: House) -> None:
        """A grant is for its own study code. [ASG-01, USR-02]"""
        other = house.person(Role.STUDY_ADMIN, study="OTHER")
        assert expect(other.post("/v1/studies", json=STUDY_BODY), 403)["code"] == "forbidden"

    def test_impossible_definition(self, house: House) -> None:
        """A definition that cannot be is refused with its field named, and nothing is registered. [SEQ-02, G1]"""
        admin = administrator(house)
        problem = expect(admin.post("/v1/studies", json={**STUDY_BODY, "arms": STUDY_BODY["arms"][:1]}), 422)
        assert problem["errors"][0]["field"] == "arms"
        assert admin.get(S).status_code == 404

    def test_registration_that_failed_leaves_no_key(self, house: House) -> None:
        """After a refused registration the study can be registered and used. [CUS-04]"""
        admin = administrator(house)
        expect(admin.post("/v1/studies", json={**STUDY_BODY, "stock_floor": 1}), 422)
        expect(admin.post("/v1/studies", json=STUDY_BODY), 201)
        expect(admin.post(f"{S}/sites", json=SITE), 201)


class TestSites:
    def test_activated_without_a_back_up_contact(self, house: House) -> None:
        """A study whose contact was cut out of the database opens no further site. [EUB-16, rule D4]"""
        study = running_study(house, subjects=0)
        with tampering(study, "study"):
            execute(study, "UPDATE study SET backup_contact = ''")
        problem = expect(study.study_admin.post(f"{S}/sites/02/activation", step_up=True), 409)
        assert "a back-up contact for code breaks" in problem["detail"]

    def test_activated_twice(self, house: House) -> None:
        """A site is activated once; the second word changes nothing. [ASG-01, rule G2]"""
        study = running_study(house, subjects=0)
        before = expect(study.study_admin.get(S), 200)
        problem = expect(study.study_admin.post(f"{S}/sites/01/activation", step_up=True), 409)
        assert problem["code"] == "illegal_transition"
        assert expect(study.study_admin.get(S), 200) == before

    def test_added_and_listed(self, house: House) -> None:
        """A site is added with its time zone and is not active yet. [ASG-01]"""
        house.register_study(sites=("01",))
        admin = house.study_admins[STUDY]
        assert expect(admin.post(f"{S}/sites", json=SITE), 201)["is_active"] is False
        assert [site["site_code"] for site in expect(admin.get(f"{S}/sites"), 200)["items"]] == ["01", "03"]
        assert expect(admin.post(f"{S}/sites", json=SITE), 409)["code"] == "already_exists"

    @pytest.mark.parametrize("zone", ["Nowhere/City", "../etc/passwd", "/etc/localtime", "x" * 200])
    def test_unknown_time_zone(self, house: House, zone: str) -> None:
        """A zone that is none is refused, because expiry is read in it. [rule B11, KIT-04]"""
        house.register_study()
        problem = expect(house.study_admins[STUDY].post(f"{S}/sites", json={**SITE, "timezone": zone}), 422)
        assert problem["errors"][0]["field"] == "timezone"

    def test_activation_names_everything_missing(self, house: House) -> None:
        """A site without people, list and kits is not activated, and everything missing is named. [EUB-16, VAL-12]"""
        house.register_study()
        admin = house.study_admins[STUDY]
        problem = expect(admin.post(f"{S}/sites/01/activation", step_up=True), 409)
        assert problem["code"] == "site_not_ready"
        for missing in ("two investigators", "allocation list", "consignment"):
            assert missing in problem["detail"]

    def test_one_investigator_is_not_enough(self, house: House) -> None:
        """Two people there must be able to break a code, with factors of their own. [EUB-16]"""
        house.register_study()
        house.person(Role.INVESTIGATOR)
        admin = house.study_admins[STUDY]
        path = f"{S}/sites/01/activation"
        assert "two investigators" in expect(admin.post(path, step_up=True), 409)["detail"]
        house.person(Role.INVESTIGATOR)
        assert "two investigators" not in expect(admin.post(path, step_up=True), 409)["detail"]

    def test_active_site(self, house: House) -> None:
        """A site is activated once; an unknown one is not found. [ASG-01]"""
        study = running_study(house, subjects=0)
        activation = f"{S}/sites/01/activation"
        assert expect(study.study_admin.post(activation, step_up=True), 409)["code"] == "illegal_transition"
        assert study.study_admin.post(f"{S}/sites/77/activation", step_up=True).status_code == 404


class TestStatus:
    @pytest.mark.parametrize(
        ("steps", "legal"),
        [
            (["open"], True),
            (["suspended"], False),
            (["closed"], False),
            (["open", "suspended", "open", "closed"], True),
            (["open", "suspended", "closed"], True),
            (["open", "open"], False),
            (["open", "closed", "open"], False),
            (["open", "closed", "suspended"], False),
        ],
    )
    def test_steps(self, house: House, steps: list[str], legal: bool) -> None:  # a table's column
        """Draft opens, open and suspended change about and close, closed is for ever; the reason is restricted. [E3]"""
        house.register_study()
        admin = house.study_admins[STUDY]
        body = {"reason": "because of the canary"}
        for step in steps[:-1]:
            expect(admin.post(f"{S}/status", json={**body, "status": step}, step_up=True), 200)
        last = admin.post(f"{S}/status", json={**body, "status": steps[-1]}, step_up=True)
        assert last.status_code == (200 if legal else 409)
        assert expect(admin.get(S), 200)["status"] == (steps[-1] if legal else (["draft", *steps])[-2])
        assert not any(b"canary" in entry for entry in house.bodies())
