"""Known devices over HTTP: a place kept at the sign-in while strangers guess, and no more than that."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final
from unittest.mock import patch

import pyotp
import pytest
from httpx2 import Response

from app.errors import IntegrityBroken
from app.identity import attempts
from app.services import devices as service
from app.services import people
from app.storage import devices as rows
from app.storage import people as storage
from tests import harness
from tests.api.test_passkeys import enrol
from tests.api.test_passkeys import step_up as step_up_by
from tests.api.test_recoveries import ask, lost
from tests.authenticator import SETTINGS, Authenticator
from tests.harness import STUDY, Caller, House, Json, expect
from tests.running_study import S, running_study

LONG: Final = (pytest.mark.long, pytest.mark.timeout(0))


def remembered(caller: Caller) -> str:
    """Return the secret of a new device of somebody's."""
    body = {"otp": caller.code(), "remember_device": True}
    given = expect(caller.house.send("POST", "/v1/sessions/step-up", token=caller.token(), json=body), 201)
    return str(given["device_secret"])


def sign_in(house: House, name: str, password: str, device: str | None = None) -> Response:
    headers = {"Snose-Device": device} if device is not None else {}
    return house.send("POST", "/v1/sessions", json={"username": name, "password": password}, headers=headers)


def refused(response: Response, status: int, code: str) -> None:
    problem = expect(response, status)
    assert problem["code"] == code, problem


def under_attack(house: House, name: str) -> None:
    """Have strangers try a name until the next try waits."""
    for _ in range(5):
        sign_in(house, name, "wrong")
    refused(sign_in(house, name, "wrong"), 429, "too_many_attempts")


def test_a_device_is_asked_for_listed_and_ended_by_its_owner(house: House) -> None:
    """With a second proof, its secret shown once; the entries name it; one's own alone are seen. [USR-14, USR-10, CUS-04]"""
    doctor, other = house.person("investigator"), house.person("investigator")
    given = house.send("POST", "/v1/sessions/step-up", token=doctor.token(), json={"otp": doctor.code()})
    assert expect(given, 201)["device_secret"] is None
    body = {"otp": "000000", "remember_device": True}
    refused(house.send("POST", "/v1/sessions/step-up", token=doctor.token(), json=body), 401, "invalid_code")
    assert expect(doctor.get("/v1/me/devices"), 200)["items"] == []
    secret = remembered(doctor)
    [device] = expect(doctor.get("/v1/me/devices"), 200)["items"]
    assert device.keys() == {"device_id", "remembered_at", "used_at", "expires_at"}
    assert device["used_at"] is None
    assert datetime.fromisoformat(device["expires_at"]) - datetime.fromisoformat(device["remembered_at"]) == timedelta(
        90
    )
    assert house.trail(last=1)[0]["after"]["device_id"] == device["device_id"]
    session = expect(sign_in(house, doctor.username, doctor.password, secret), 201)
    assert session["acr"] == "pwd"
    assert house.trail(last=1)[0]["after"]["device_id"] == device["device_id"]
    refused(sign_in(house, doctor.username, "wrong", secret), 401, "wrong_credentials")
    assert house.trail(last=1)[0]["after"]["device_id"] == device["device_id"]
    assert expect(doctor.get("/v1/me/devices"), 200)["items"][0]["used_at"] is not None
    path = f"/v1/me/devices/{device['device_id']}"
    refused(other.delete(path), 404, "not_found")
    refused(house.machine().get("/v1/me/devices"), 403, "forbidden")
    expect(doctor.delete(path), 204)
    refused(doctor.delete(path), 404, "not_found")
    assert expect(doctor.get("/v1/me/devices"), 200)["items"] == []
    assert not [body for body in house.bodies() if secret.encode() in body]


@pytest.mark.parametrize("database_kind", ["sqlite"])
def test_what_is_no_known_device(house: House) -> None:
    """Another person's, an ended or expired one, garbage, one that many wrong passwords came from: a try like any other.

    [USR-10, USR-13, EUB-15; T20, G21]
    """
    doctor, thief = house.person("investigator"), house.person("investigator")
    own, foreign = remembered(doctor), remembered(thief)
    under_attack(house, doctor.username)
    for wrong in ("", "x", foreign, own[:-1], own.swapcase(), f"{own}A", own.replace("device", "client")):
        refused(sign_in(house, doctor.username, doctor.password, wrong), 429, "too_many_attempts")
    # It is no factor: with it alone nobody is in, and what needs a second proof still does.
    refused(sign_in(house, doctor.username, "wrong", own), 401, "wrong_credentials")
    token = expect(sign_in(house, f" {doctor.username.upper()}", doctor.password, own), 201)["access_token"]
    refused(house.send("POST", f"{S}/code-breaks", token=token, json={}), 404, "not_found")
    for number in range(service.MOST_WRONG):
        refused(sign_in(house, doctor.username, "wrong", own), 401, "wrong_credentials")
        if number == service.MOST_WRONG // 2:
            # The right one in between begins anew.
            expect(sign_in(house, doctor.username, doctor.password, own), 201)
    for _ in range(service.MOST_WRONG // 2 + 1):
        refused(sign_in(house, doctor.username, "wrong", own), 401, "wrong_credentials")
    refused(sign_in(house, doctor.username, doctor.password, own), 429, "too_many_attempts")
    for spoil in ("reset", "password", "expiry", "deactivation"):
        who = house.person("investigator")
        secret = remembered(who)
        under_attack(house, who.username)
        if spoil == "expiry":
            house.clock.advance(days=90)
            under_attack(house, who.username)
        elif spoil == "password":
            new = "another heron at dusk"
            expect(who.post("/v1/me/password", json={"current": who.password, "new": new}), 200)
            who.password = new
        else:
            issued = expect(house.admin.post(f"/v1/people/{who.username}/{spoil}"), 200)
            who.password = issued.get("password", who.password)
        refused(sign_in(house, who.username, who.password, secret), 429, "too_many_attempts")


@pytest.mark.parametrize("database_kind", ["sqlite"])
def test_ten_devices_and_one_that_ends_meanwhile(house: House) -> None:
    """The eleventh takes the first one's place; one that is ended while its password is looked at opens nothing. [USR-13]"""
    doctor = house.person(None)
    with patch.object(service, "MOST", 2):
        secrets = [remembered(doctor) for _ in range(3)]
    assert len(expect(doctor.get("/v1/me/devices"), 200)["items"]) == 2
    under_attack(house, doctor.username)
    for secret, status in zip(secrets, (429, 201, 201), strict=True):
        expect(sign_in(house, doctor.username, doctor.password, secret), status)
    with patch.object(rows, "record_use", return_value=False):
        refused(sign_in(house, doctor.username, doctor.password, secrets[1]), 401, "wrong_credentials")


@pytest.mark.parametrize("database_kind", ["sqlite"])
@pytest.mark.parametrize("tries", [300, pytest.param(10_000, marks=LONG)])
def test_strangers_guess_and_the_owner_signs_in_at_once(house: House, tries: int) -> None:
    """Bad passwords from many sides, in every spelling of the name: 80 are looked at, and the device never waits. [T20, G21]"""
    study = running_study(house)
    doctor = study.investigator
    secret = remembered(doctor)
    spellings = (doctor.username, doctor.username.upper(), f" {doctor.username}\t", doctor.username.title())
    looked_at = 0
    for number in range(tries):
        answer = sign_in(house, spellings[number % 4], f"guess {number}")
        assert answer.status_code in {401, 429}
        looked_at += answer.status_code == 401
        house.clock.advance(seconds=10)
        if number % (tries // 10) == 0:
            expect(sign_in(house, doctor.username, doctor.password, secret), 201)
    assert looked_at == 80
    token = expect(sign_in(house, doctor.username, doctor.password, secret), 201)["access_token"]
    proven = expect(house.send("POST", "/v1/sessions/step-up", token=token, json={"otp": doctor.code()}), 201)
    body: Json = {"subject_id": "01-0001", "reason_code": "overdose"}
    expect(house.send("POST", f"{S}/code-breaks", token=proven["access_token"], json=body), 201)
    assert house.trail(STUDY, last=1)[0]["actor"] == doctor.username


@pytest.fixture
def passkey_house(migrated_database_url: str, tmp_path: Path) -> Iterator[House]:
    """A house that takes passkeys."""
    with harness.house(migrated_database_url, tmp_path, **SETTINGS) as opened:
        yield opened


def step_up(house: House, token: str, code: str) -> Response:
    # Past every delay: it is looked at, or never.
    house.clock.advance(seconds=30)
    return house.send("POST", "/v1/sessions/step-up", token=token, json={"otp": code})


def token_of(house: House, who: Caller, device: str | None = None) -> str:
    return str(expect(sign_in(house, who.username, who.password, device), 201)["access_token"])


def guess_codes(house: House, who: Caller, tries: int) -> tuple[int, list[int]]:
    """Guess at somebody's codes with the password in hand; return how many were looked at, and the alarms."""
    looked_at, alarms, token = 0, [], ""
    for number in range(tries):
        if number % 10 == 0:
            token = token_of(house, who)
        answer = step_up(house, token, "000000")
        if answer.status_code == 401:
            looked_at += 1
            if "alarm" in (said := house.trail(last=1)[0]["after"]):
                assert (said["alarm"], said["network"]) == ("many_wrong_codes", "unknown")
                alarms.append(said["wrong_codes"])
        else:
            refused(answer, 429, "too_many_attempts")
    return looked_at, alarms


@pytest.mark.parametrize("database_kind", ["sqlite"])
class TestGuessedCodes:
    def test_a_stolen_session_has_ten(self, house: House) -> None:
        """And keeps the owner from nothing: another session takes the code, and so does this one's sign-in anew. [USR-10, N05]"""
        doctor = house.person("investigator")
        stolen, own = token_of(house, doctor), token_of(house, doctor)
        for _ in range(10):
            refused(step_up(house, stolen, "000000"), 401, "invalid_code")
        for code in ("000000", doctor.code()):
            refused(step_up(house, stolen, code), 429, "too_many_attempts")
        proven = expect(step_up(house, own, doctor.code()), 201)["access_token"]
        for _ in range(9):
            # The second proof makes another token, of the same sign-in.
            refused(step_up(house, proven, "000000"), 401, "invalid_code")
        expect(step_up(house, own, doctor.code()), 201)
        refused(step_up(house, proven, "000000"), 401, "invalid_code")

    def test_a_thief_of_the_password_has_a_hundred(self, passkey_house: House, monkeypatch: pytest.MonkeyPatch) -> None:
        """Then codes are looked at no more, but from a known device; passkey and recovery open as ever. [USR-10, EUB-15, G21]"""
        house = passkey_house
        doctor, colleague, device = house.person("investigator"), house.person("investigator"), Authenticator()
        enrol(doctor, device)
        secret = remembered(doctor)
        assert guess_codes(house, doctor, 105) == (100, [20, 40, 80, 100])
        refused(step_up(house, token_of(house, doctor), doctor.code()), 429, "too_many_attempts")
        house.clock.advance(hours=12)
        refused(step_up(house, token_of(house, doctor), doctor.code()), 429, "too_many_attempts")
        expect(step_up(house, token_of(house, doctor, secret), doctor.code()), 201)
        assert "alarm" not in house.trail(last=1)[0]["after"]
        # A right one ends the count.
        monkeypatch.setattr(attempts, "MOST_CODES", 5)
        assert guess_codes(house, doctor, 6)[0] == 5
        doctor.forget_token()
        expect(step_up_by(doctor, device), 201)
        expect(step_up(house, token_of(house, doctor), doctor.code()), 201)
        assert guess_codes(house, doctor, 6)[0] == 5
        gone = lost(doctor)
        expect(gone.confirmed_by(colleague), 200)
        expect(gone.completed(), 201)
        house.clock.advance(seconds=30)
        expect(step_up(house, token_of(house, doctor), pyotp.TOTP(gone.secret).at(next_step(house))), 201)

    def test_a_known_device_has_twenty_of_its_own(self, house: House) -> None:
        """They neither wait for others nor use up those of others; after them its sessions count like any. [USR-10; G21]"""
        doctor = house.person("investigator")
        secret = remembered(doctor)
        code = doctor.code()

        def at_once(token: str, otp: str = "000000") -> Response:
            return house.send("POST", "/v1/sessions/step-up", token=token, json={"otp": otp})

        token = ""
        for tries in (10, 10, 5):
            token = token_of(house, doctor, secret)
            for _ in range(tries):
                refused(at_once(token), 401, "invalid_code")
        refused(at_once(token, code), 429, "too_many_attempts")
        house.clock.advance(seconds=1)
        expect(at_once(token, code), 201)

    def test_a_right_code_beside_the_password_opens_twenty_guesses(self, house: House) -> None:
        """In a row; so that, with the eighty, a password is guessed at a hundred times at most. [USR-10; G21]"""
        doctor = house.person("investigator")
        under_attack(house, doctor.username)

        def beside(password: str, code: str = "") -> Response:
            body = {"username": doctor.username, "password": password, "otp": code or doctor.code()}
            return house.send("POST", "/v1/sessions", json=body)

        with patch.object(people, "MOST_SHOWN", 3):
            for _ in range(2):
                refused(beside("wrong"), 401, "wrong_credentials")
                refused(beside("wrong"), 401, "wrong_credentials")
                expect(beside(doctor.password), 201)
            for _ in range(3):
                refused(beside("wrong"), 401, "wrong_credentials")
            code = doctor.code()
            under_attack(house, doctor.username)
            refused(beside(doctor.password, code), 429, "too_many_attempts")


def test_strangers_keep_no_known_device_from_a_recovery(house: House) -> None:
    """Neither while they guess nor after all that may be looked at; ended meanwhile, it is known no more. [EUB-15, D5, USR-10]"""
    doctor = house.person("investigator")
    secret = remembered(doctor)
    under_attack(house, doctor.username)
    refused(ask(house, doctor.username, doctor.password), 429, "too_many_attempts")
    refused(ask(house, doctor.username, "wrong", secret), 401, "wrong_credentials")
    expect(ask(house, doctor.username, doctor.password, secret), 201)
    with patch.object(rows, "record_use", return_value=False):
        refused(ask(house, doctor.username, doctor.password, secret), 401, "wrong_credentials")


def test_a_secret_that_does_not_open_shows_nothing(house: House) -> None:
    """A code beside the password is then as none: who is under attack waits, and the door does not fail. [USR-10, D3]"""
    doctor = house.person("investigator")
    under_attack(house, doctor.username)
    body = {"username": doctor.username, "password": doctor.password, "otp": doctor.code()}
    with patch.object(house.deployment.ring, "open", side_effect=IntegrityBroken("altered")):
        refused(house.send("POST", "/v1/sessions", json=body), 429, "too_many_attempts")
    # One that somebody else used in the same moment shows as little.
    with patch.object(storage, "claim_one_time_step", return_value=False):
        refused(house.send("POST", "/v1/sessions", json=body), 429, "too_many_attempts")
    expect(house.send("POST", "/v1/sessions", json=body), 201)


def next_step(house: House) -> datetime:
    """Return when the code that `step_up` sends is looked at."""
    return house.clock.now + timedelta(seconds=30)
