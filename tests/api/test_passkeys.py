"""Passkeys over HTTP: enrolment, sign-in, step-up, and a proof for one request."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from httpx2 import Response
from sqlalchemy import select, update

from app.services import passkeys as service
from app.storage import passkeys as rows
from app.storage import people as people_rows
from app.storage import tables
from app.storage.database import Transaction
from app.storage.people import Credential
from tests import harness
from tests.authenticator import SETTINGS, Authenticator, header_of
from tests.doors import Fault, failing
from tests.harness import STUDY, Caller, House, Json, expect
from tests.running_study import RunningStudy, S, running_study

BREAK = {"subject_id": "01-0001", "reason_code": "overdose"}
BREAKS = f"{S}/code-breaks"


@pytest.fixture
def house(migrated_database_url: str, tmp_path: Path) -> Iterator[House]:
    """A house that takes passkeys."""
    with harness.house(migrated_database_url, tmp_path, **SETTINGS) as opened:
        yield opened


def refused(response: Response, status: int, code: str) -> None:
    problem = expect(response, status)
    assert problem["code"] == code, problem


def challenge(house: House, token: str | None = None, request: dict[str, Any] | None = None) -> dict[str, Any]:
    body = {} if request is None else {"request": request}
    answer = house.send("POST", "/v1/sessions/challenge", token=token, json=body)
    options: dict[str, Any] = expect(answer, 200)["options"]
    assert answer.headers["cache-control"] == "no-store"
    return options


def enrol(caller: Caller, device: Authenticator, name: str = "Phone") -> dict[str, Any]:
    token = caller.elevated_token()
    options = expect(caller.house.send("POST", "/v1/me/passkeys/challenge", token=token), 200)["options"]
    body = {"name": name, "credential": device.create(options)}
    made: dict[str, Any] = expect(caller.house.send("POST", "/v1/me/passkeys", token=token, json=body), 201)
    return made


def enrolled(house: House, role: str | None = None) -> tuple[Caller, Authenticator]:
    caller, device = house.person(role), Authenticator()
    enrol(caller, device)
    return caller, device


def step_up(caller: Caller, device: Authenticator, **changes: Json) -> Response:
    token = caller.token()
    signed = device.get(challenge(caller.house, token), **changes)
    return caller.house.send("POST", "/v1/sessions/step-up/passkey", token=token, json={"credential": signed})


def sign_in(house: House, device: Authenticator, **changes: Json) -> Response:
    signed = device.get(challenge(house), **changes)
    return house.send("POST", "/v1/sessions/passkey", json={"credential": signed})


def bound(study: RunningStudy, device: Authenticator, body: dict[str, Any], **changes: Json) -> dict[str, str]:
    """Return the header with the investigator's signature for one code break."""
    request = {"method": "POST", "path": BREAKS, "body": body}
    return header_of(device.get(challenge(study.house, study.investigator.token(), request), **changes))


class TestEnrolling:
    def test_by_its_owner_with_a_fresh_proof(self, house: House) -> None:
        """What the device is asked for, what is listed, what is entered; and no attestation. [USR-13, SIG-07]"""
        doctor, device = house.person(None), Authenticator()
        token = doctor.elevated_token()
        options = expect(house.send("POST", "/v1/me/passkeys/challenge", token=token), 200)["options"]
        assert options["rp"]["id"] == "snose.example.org"
        assert options["attestation"] == "none"
        assert options["authenticatorSelection"]["userVerification"] == "required"
        assert options["authenticatorSelection"]["residentKey"] == "required"
        body: Json = {"name": "Phone", "credential": device.create(options)}
        made = expect(house.send("POST", "/v1/me/passkeys", token=token, json=body), 201)
        assert made.keys() == {"passkey_id", "name", "created_at", "last_used_at"}
        entry = house.trail()[-1]
        assert (entry["action"], entry["actor"]) == ("passkey:create", doctor.username)
        assert entry["after"] == {"passkey_id": made["passkey_id"]}
        assert expect(doctor.get("/v1/me/passkeys"), 200)["items"] == [made]
        # The next one is asked of a device that has none yet.
        again = expect(house.send("POST", "/v1/me/passkeys/challenge", token=token), 200)["options"]
        assert [one["id"] for one in again["excludeCredentials"]] == [body["credential"]["id"]]

    def test_not_by_a_stolen_session(self, house: House) -> None:
        """Without a fresh proof nobody brings a factor, or takes one away; a machine never. [SIG-11, USR-13, SIG-12]"""
        doctor, device = enrolled(house)
        [kept] = expect(doctor.get("/v1/me/passkeys"), 200)["items"]
        body = {"name": "Thief", "credential": {}}
        refused(doctor.post("/v1/me/passkeys/challenge"), 401, "step_up_required")
        refused(doctor.post("/v1/me/passkeys", json=body), 401, "step_up_required")
        refused(doctor.delete(f"/v1/me/passkeys/{kept['passkey_id']}"), 401, "step_up_required")
        machine = house.machine(None)
        refused(machine.post("/v1/me/passkeys/challenge"), 403, "forbidden")
        newcomer = house.register("new.comer")
        refused(newcomer.post("/v1/me/passkeys/challenge"), 401, "step_up_required")
        expect(step_up(doctor, device), 201)

    @pytest.mark.parametrize("database_kind", ["sqlite"])
    def test_what_a_device_must_not_say(self, house: House) -> None:
        """Another page, domain or challenge, nobody verified, an attestation, garbage: 422, nothing kept. [T19, SIG-01]"""
        doctor = house.person(None)
        token = doctor.elevated_token()

        def tried(**changes: Json) -> Response:
            options = expect(house.send("POST", "/v1/me/passkeys/challenge", token=token), 200)["options"]
            made = Authenticator(credential_id=changes.pop("credential_id", b"")).create(options, **changes)
            made |= changes.pop("answer", {})
            return house.send("POST", "/v1/me/passkeys", token=token, json={"name": "x", "credential": made})

        other = challenge(house, token)
        wrong: list[dict[str, Any]] = [
            {"origin": "https://elsewhere.example"},
            {"rp_id": "example.org"},
            {"is_verified": False},
            {"is_present": False},
            {"type": "webauthn.get"},
            {"cross_origin": True},
            {"more": {"topOrigin": "https://elsewhere.example"}},
            {"challenge": other["challenge"]},
            {"challenge": "AAAA"},
            {"fmt": "packed", "statement": {"alg": -7, "sig": b"x"}},
            {"cose": {1: 2, 3: -65535}},
            {"credential_id": b"i" * 256},
            {"answer": {"rawId": "AAAA"}},
            {"answer": {"id": "AAAA", "rawId": "AAAA"}},
            {"answer": {"response": {}}},
            {"answer": {"response": {"clientDataJSON": 7}}},
        ]
        for changes in wrong:
            problem = expect(tried(**changes), 422)
            assert [fault["field"] for fault in problem["errors"]] == ["credential"], changes
        assert expect(doctor.get("/v1/me/passkeys"), 200)["items"] == []

    def test_each_key_once_and_not_too_many(self, house: House, monkeypatch: pytest.MonkeyPatch) -> None:
        """A key that ever was is nobody's again, not even its owner's; and ten are enough. [USR-18, USR-13]"""
        doctor, _ = enrolled(house)
        nurse = house.person(None)
        token = nurse.elevated_token()
        options = expect(house.send("POST", "/v1/me/passkeys/challenge", token=token), 200)["options"]
        body = {"name": "Mine", "credential": Authenticator().create(options)}
        refused(house.send("POST", "/v1/me/passkeys", token=token, json=body), 409, "already_exists")
        monkeypatch.setattr(service, "MOST", 1)
        refused(doctor.post("/v1/me/passkeys/challenge", step_up=True), 409, "conflict")
        [kept] = expect(doctor.get("/v1/me/passkeys"), 200)["items"]
        expect(doctor.delete(f"/v1/me/passkeys/{kept['passkey_id']}", step_up=True), 204)
        refused(nurse.delete(f"/v1/me/passkeys/{kept['passkey_id']}", step_up=True), 404, "not_found")
        doctor.forget_token()
        refused(doctor.delete(f"/v1/me/passkeys/{kept['passkey_id']}", step_up=True), 404, "not_found")

    def test_removed_it_opens_nothing_and_ends_other_sessions(self, house: House) -> None:
        """Whoever had the device is out, and stays out. [USR-13, USR-06]"""
        doctor, device = enrolled(house)
        lost = expect(sign_in(house, device), 201)["access_token"]
        [kept] = expect(doctor.get("/v1/me/passkeys"), 200)["items"]
        assert kept["last_used_at"] is not None
        token = doctor.elevated_token()
        expect(house.send("DELETE", f"/v1/me/passkeys/{kept['passkey_id']}", token=token), 204)
        refused(house.send("GET", "/v1/me", token=lost), 401, "not_authenticated")
        expect(house.send("GET", "/v1/me", token=token), 200)
        refused(sign_in(house, device), 401, "invalid_passkey")
        doctor.forget_token()
        refused(step_up(doctor, device), 401, "invalid_passkey")

    def test_a_reset_removes_them_all(self, house: House) -> None:
        """After a loss no old factor opens anything, before and after the new password is taken over. [USR-13, EUB-15]"""
        doctor, device = enrolled(house)
        doctor.password = expect(house.admin.post(f"/v1/people/{doctor.username}/reset"), 200)["password"]
        refused(sign_in(house, device), 401, "invalid_passkey")
        doctor.forget_token()
        token = doctor.token()
        signed = device.get(challenge(house, token))
        answer = house.send("POST", "/v1/sessions/step-up/passkey", token=token, json={"credential": signed})
        refused(answer, 403, "password_change_required")
        house.take_over(doctor)
        refused(sign_in(house, device), 401, "invalid_passkey")
        assert expect(doctor.get("/v1/me/passkeys"), 200)["items"] == []

    def test_a_reset_that_comes_between(self, house: House, monkeypatch: pytest.MonkeyPatch) -> None:
        """A passkey that waits behind a reset is not enrolled after it: the account is looked at again under its lock. [USR-13]"""
        doctor = house.person(None)
        token = doctor.elevated_token()
        options = expect(house.send("POST", "/v1/me/passkeys/challenge", token=token), 200)["options"]
        body = {"name": "Phone", "credential": Authenticator().create(options)}
        real = people_rows.hold_credential

        def reset_first(tx: Transaction, principal_id: UUID) -> Credential:
            people_rows.end_sessions(tx, principal_id, house.clock.now)
            return real(tx, principal_id)

        monkeypatch.setattr(people_rows, "hold_credential", reset_first)
        refused(house.send("POST", "/v1/me/passkeys", token=token, json=body), 401, "not_authenticated")

    def test_without_settings_there_are_none(self, migrated_database_url: str, tmp_path: Path) -> None:
        """No domain is guessed: passkeys are off, and one-time codes go on. [INT-03, F2]"""
        with harness.house(migrated_database_url, tmp_path) as house:
            doctor = house.person(None)
            refused(house.send("POST", "/v1/sessions/challenge", json={}), 409, "passkeys_off")
            refused(doctor.post("/v1/me/passkeys/challenge", step_up=True), 409, "passkeys_off")
            refused(house.send("POST", "/v1/sessions/passkey", json={"credential": {}}), 409, "passkeys_off")
            refused(doctor.post("/v1/me/password", json={}, headers={"Snose-Passkey": "e30"}), 422, "invalid")


class TestSigningIn:
    def test_by_passkey_alone(self, house: House) -> None:
        """A device that verified its owner is two components: a session with a fresh proof, entered. [SIG-01, USR-14]"""
        doctor, device = enrolled(house)
        session = expect(sign_in(house, device), 201)
        assert session["acr"] == "mfa"
        me = expect(house.send("GET", "/v1/me", token=session["access_token"]), 200)
        assert me["username"] == doctor.username
        assert me["proof"]["spent"] is False
        entry = next(one for one in reversed(house.trail()) if one["action"] == "session:create")
        assert entry["actor"] == doctor.username
        assert entry["after"]["passkey_id"] == entry["target"]["passkey_id"]

    def test_while_strangers_guess_at_the_password(self, house: House) -> None:
        """The owner does not wait for anybody who tries the name. [EUB-15, USR-10; T20, N05]"""
        doctor, device = enrolled(house)
        guess = {"username": doctor.username, "password": "not this"}
        for _ in range(6):
            house.send("POST", "/v1/sessions", json=guess)
        refused(house.send("POST", "/v1/sessions", json=guess), 429, "too_many_attempts")
        expect(sign_in(house, device), 201)

    def test_of_nobody_is_noise_and_of_somebody_is_entered(self, house: House) -> None:
        """What no device signed fills no log; a wrong signature of a known key is on record. [E1, USR-14]"""
        _, device = enrolled(house)
        house.deployment.noise.take()
        entries = len(house.trail())
        refused(sign_in(house, Authenticator("another")), 401, "invalid_passkey")
        refused(house.send("POST", "/v1/sessions/passkey", json={"credential": {}}), 401, "invalid_passkey")
        assert len(house.trail()) == entries
        assert sum(house.deployment.noise.take().values()) == 2
        refused(sign_in(house, device, is_verified=False), 401, "invalid_passkey")
        assert house.trail()[-1]["outcome"] == "denied"

    def test_who_was_switched_off(self, house: House) -> None:
        """Deactivated is deactivated, whatever one holds in hand. [USR-18]"""
        doctor, device = enrolled(house)
        expect(house.admin.post(f"/v1/people/{doctor.username}/deactivation"), 200)
        refused(sign_in(house, device), 401, "invalid_passkey")

    def test_a_key_that_was_planted(self, house: House) -> None:
        """Whoever writes to the database cannot make a key somebody else's: it is sealed for its owner. [F1, B3]"""
        _, device = enrolled(house)
        thief = house.person(None)
        with house.deployment.database.transaction() as tx:
            person = tx.execute(
                select(tables.principal.c.principal_id).where(tables.principal.c.name == thief.username)
            ).scalar_one()
            tx.execute(update(tables.passkey).values(principal_id=person))
        refused(sign_in(house, device), 503, "integrity_failure")

    def test_a_row_that_is_another_key(self, house: House) -> None:
        """Nor can they have a key found under another's id. [F1]"""
        doctor, device = enrolled(house)
        other = Authenticator("other")
        enrol(doctor, other, "Other")
        column = tables.passkey.c.credential_digest
        digests = [rows._digest(one.credential_id) for one in (device, other)]
        with house.deployment.database.transaction() as tx:
            for now, then in ((digests[0], bytes(32)), (digests[1], digests[0]), (bytes(32), digests[1])):
                tx.execute(update(tables.passkey).where(column == now).values(credential_digest=then))
        refused(sign_in(house, device), 503, "integrity_failure")


class TestSteppingUp:
    def test_gives_what_a_code_gives(self, house: House) -> None:
        """A fresh proof with the end of the session that it came from; a challenge is good once. [D3, SIG-11]"""
        doctor, device = enrolled(house)
        token = doctor.token()
        house.clock.advance(minutes=10)
        signed = {"credential": device.get(challenge(house, token))}
        session = expect(house.send("POST", "/v1/sessions/step-up/passkey", token=token, json=signed), 201)
        assert (session["acr"], session["expires_in"] <= 8 * 3600 - 600) == ("mfa", True)
        assert house.trail()[-1]["after"]["passkey_id"]
        again = house.send("POST", "/v1/sessions/step-up/passkey", token=token, json=signed)
        refused(again, 401, "invalid_passkey")

    def test_a_device_that_does_not_count(self, house: House) -> None:
        """Many devices say 0 for ever; each challenge is good once all the same. [D3]"""
        doctor, device = enrolled(house)
        device.step = 0
        expect(step_up(doctor, device), 201)
        expect(step_up(doctor, device), 201)
        token = doctor.token()
        earlier, later = challenge(house, token), challenge(house, token)
        for options, status in ((later, 201), (later, 401), (earlier, 401)):
            body = {"credential": device.get(options)}
            expect(house.send("POST", "/v1/sessions/step-up/passkey", token=token, json=body), status)

    def test_somebody_elses(self, house: House) -> None:
        """A colleague's device proves nothing for me. [SIG-06, D3]"""
        doctor, _ = enrolled(house)
        other = Authenticator("other")
        enrol(house.person(None), other)
        refused(step_up(doctor, other), 401, "invalid_passkey")

    def test_too_late(self, house: House) -> None:
        """A challenge is good for five minutes. [D3, T17]"""
        doctor, device = enrolled(house)
        token = doctor.token()
        for later, status in ((299, 201), (301, 401)):
            body = {"credential": device.get(challenge(house, token))}
            house.clock.advance(seconds=later)
            expect(house.send("POST", "/v1/sessions/step-up/passkey", token=token, json=body), status)

    def test_two_at_once(self, house: House) -> None:
        """Of two requests with one signature one is served. [D3]"""
        doctor, device = enrolled(house)
        token = doctor.token()
        body = {"credential": device.get(challenge(house, token))}
        with ThreadPoolExecutor(2) as pool:
            answers = list(
                pool.map(
                    lambda _: house.send("POST", "/v1/sessions/step-up/passkey", token=token, json=body).status_code,
                    range(2),
                )
            )
        assert sorted(answers) == [201, 401]


class TestOneRequest:
    def test_opens_this_one_and_no_other(self, house: House) -> None:
        """The device signed this very code break: no other subject, no second time, and no session with it. [SIG-11, T17]"""
        study = running_study(house, subjects=2)
        device = Authenticator()
        enrol(study.investigator, device)
        headers = bound(study, device, BREAK)
        other = {**BREAK, "subject_id": "01-0002"}
        refused(study.investigator.post(BREAKS, json=other, headers=headers), 401, "step_up_required")
        refused(study.investigator.post(BREAKS, json=BREAK), 401, "step_up_required")
        # Names in another order, and spaces, are the same request.
        turned = dict(reversed(list(BREAK.items())))
        revealed = expect(study.investigator.post(BREAKS, json=turned, headers=headers), 201)
        assert revealed["treatment"]
        assert house.trail(STUDY)[-1]["after"]["passkey_id"]
        refused(study.investigator.post(BREAKS, json=BREAK, headers=headers), 401, "step_up_required")

    def test_a_mistake_does_not_cost_it(self, house: House) -> None:
        """It is spent by the COMMIT of the act: unknown first, it opens once the subject is there. [D3]"""
        study = running_study(house, subjects=0)
        device = Authenticator()
        enrol(study.investigator, device)
        headers = bound(study, device, BREAK)
        refused(study.investigator.post(BREAKS, json=BREAK, headers=headers), 404, "not_found")
        study.allocate("01-0001")
        expect(study.investigator.post(BREAKS, json=BREAK, headers=headers), 201)

    def test_two_at_once(self, house: House) -> None:
        """Of two code breaks with one signature one is answered. [D3]"""
        study = running_study(house, subjects=1)
        device = Authenticator()
        enrol(study.investigator, device)
        headers = bound(study, device, BREAK)
        token = study.investigator.token()
        with ThreadPoolExecutor(2) as pool:
            answers = list(
                pool.map(
                    lambda _: house.send("POST", BREAKS, token=token, json=BREAK, headers=headers).status_code,
                    range(2),
                )
            )
        assert sorted(answers) == [201, 401]

    def test_a_commit_that_went_unheard(self, house: House) -> None:
        """The door's second look at the same request finds the signature used by itself, and answers. [C6, D3]"""
        study = running_study(house, subjects=0)
        admin, device = study.study_admin, Authenticator()
        enrol(admin, device)
        path, body = f"{S}/status", {"status": "suspended", "reason": "A question is open."}
        request = {"method": "POST", "path": path, "body": body}
        headers = header_of(device.get(challenge(house, admin.token(), request))) | {"Idempotency-Key": "once"}
        state = house.app.state
        with failing(house, Fault.UNHEARD) as deployment:
            kept, state.deployment = state.deployment, deployment
            expect(admin.post(path, json=body, headers=headers), 200)
            state.deployment = kept
        refused(admin.post(path, json=body, headers=headers), 401, "step_up_required")

    def test_a_rival_that_came_before(self, house: House, monkeypatch: pytest.MonkeyPatch) -> None:
        """What another request has used up meanwhile is found out at the end, by the row itself. [D3]"""
        study = running_study(house, subjects=1)
        device = Authenticator()
        enrol(study.investigator, device)
        headers = bound(study, device, BREAK)
        monkeypatch.setattr(rows, "claim_challenge", lambda *_: False)
        refused(study.investigator.post(BREAKS, json=BREAK, headers=headers), 401, "step_up_required")

    @pytest.mark.parametrize("database_kind", ["sqlite"])
    def test_of_which_there_is_no_form(self, house: House) -> None:
        """What cannot be written in one way is signed by nobody, and a header that cannot be read proves nothing. [G1]"""
        study = running_study(house, subjects=0)
        token = study.investigator.token()
        request = {"method": "POST", "path": BREAKS, "body": {"subject_id": 2**60}}
        refused(house.send("POST", "/v1/sessions/challenge", token=token, json={"request": request}), 422, "invalid")
        nobody = {"request": {**request, "body": None}}
        refused(house.send("POST", "/v1/sessions/challenge", json=nobody), 401, "not_authenticated")
        for header in ("", "!", "e30", "W10", "eyJyZXNwb25zZSI6IDF9", "A" * 9000):
            answer = study.investigator.post(BREAKS, json={"subject_id": 2**60}, headers={"Snose-Passkey": header})
            refused(answer, 401, "step_up_required")
