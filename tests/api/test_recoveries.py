"""The recovery of a lost second factor over HTTP: by the password, the new factor and a colleague, and by nothing less."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import pyotp
import pytest
from httpx2 import Response
from sqlalchemy import update

from app.domain.people import VOUCHING_ROLES, HeldGrant, may_vouch
from app.domain.words import Action, Role, StudyCode
from app.identity.passwords import PLACES
from app.policy import PERMISSIONS
from app.storage import tables
from tests import harness
from tests.api.test_issuers import outsiders
from tests.api.test_passkeys import enrol, step_up
from tests.api.test_passkeys import sign_in as sign_in_by
from tests.authenticator import SETTINGS, Authenticator
from tests.harness import STUDY, Caller, House, Json, expect
from tests.running_study import S, running_study

PATH: Final = "/v1/factor-recoveries"
BREAKS: Final = f"{S}/code-breaks"
ZERO: Final = "00000000-0000-4000-8000-000000000000"
OVERDOSE: Final = {"subject_id": "01-0001", "reason_code": "overdose"}


@dataclass
class Lost:
    """Somebody whose device is gone, with the recovery that was asked for."""

    owner: Caller
    recovery_id: str
    code: str
    secret: str

    @property
    def house(self) -> House:
        return self.owner.house

    def confirmed_by(self, colleague: Caller, **changes: Json) -> Response:
        body = {"username": self.owner.username, "code": self.code, "identity_check": "call_back", **changes}
        return colleague.post(f"{PATH}/confirmation", json=body, step_up=True)

    def completed(self, password: str = "", otp: str = "") -> Response:
        body = {"password": password or self.owner.password, "otp": otp or self.shown()}
        return self.house.send("POST", f"{PATH}/{self.recovery_id}/completion", json=body)

    def shown(self) -> str:
        """Return what the new device shows now."""
        return pyotp.TOTP(self.secret).at(self.house.clock.now)


def ask(house: House, username: str, password: str, device: str | None = None) -> Response:
    headers = {"Snose-Device": device} if device is not None else None
    return house.send("POST", PATH, json={"username": username, "password": password}, headers=headers)


def lost(owner: Caller) -> Lost:
    given = ask(owner.house, owner.username, owner.password)
    told = expect(given, 201)
    assert given.headers["cache-control"] == "no-store"
    return Lost(owner, told["recovery_id"], told["code_for_colleague"], told["totp_secret"])


def refused(response: Response, status: int, code: str) -> None:
    problem = expect(response, status)
    assert problem["code"] == code, problem


@pytest.fixture
def house(migrated_database_url: str, tmp_path: Path) -> Iterator[House]:
    """A house that takes passkeys."""
    with harness.house(migrated_database_url, tmp_path, **SETTINGS) as opened:
        yield opened


def test_a_colleague_at_night_and_a_code_break_at_once(house: House) -> None:
    """Both are named, the new factor is tested, all that was before is void, the code break says so for a day.

    [EUB-15, USR-13, SIG-07, N05, rules D1, D5]
    """
    study = running_study(house)
    doctor, device = study.investigator, Authenticator()
    enrol(doctor, device)
    before, old = doctor.token(), doctor.totp_secret
    colleague = house.person("investigator", site="02")
    gone = lost(doctor)
    entry = house.trail(last=1)[0]
    assert (entry["actor"], entry["action"], entry["outcome"]) == (doctor.username, "factor_recovery:request", "done")
    assert entry["after"] == {"recovery_id": gone.recovery_id}
    refused(gone.completed(), 409, "illegal_transition")
    confirmed = expect(gone.confirmed_by(colleague), 200)
    assert (confirmed["confirmed_by"], confirmed["username"]) == (colleague.username, doctor.username)
    entry = house.trail(last=1)[0]
    assert (entry["actor"], entry["action"]) == (colleague.username, "factor_recovery:confirm")
    assert entry["target"] == {"username": doctor.username, "recovery_id": gone.recovery_id}
    assert entry["after"] == {"identity_check": "call_back"}
    answer = gone.completed()
    given = expect(answer, 201)
    assert (given["acr"], answer.headers["cache-control"]) == ("mfa", "no-store")
    entry = house.trail(last=1)[0]
    assert (entry["actor"], entry["action"]) == (doctor.username, "factor_recovery:complete")
    assert (entry["after"]["confirmed_by"], entry["after"]["identity_check"]) == (colleague.username, "call_back")
    # At once: no further code, no further wait.
    expect(house.send("POST", BREAKS, token=given["access_token"], json=OVERDOSE), 201)
    assert house.trail(STUDY, last=1)[0]["after"]["factor_recovered"] is True
    refused(house.send("GET", S, token=before), 401, "not_authenticated")
    refused(sign_in_by(house, device), 401, "invalid_passkey")
    for secret in (old, gone.secret):
        # The old device's code, and the new one's that was used: neither is good.
        body = {"otp": pyotp.TOTP(secret).at(house.clock.now)}
        refused(house.send("POST", "/v1/sessions/step-up", token=given["access_token"], json=body), 401, "invalid_code")
    doctor.totp_secret = gone.secret
    doctor.forget_token()
    house.clock.advance(hours=24)
    doctor.forget_token()
    expect(doctor.post(BREAKS, json=OVERDOSE, step_up=True), 201)
    assert "factor_recovered" not in house.trail(STUDY, last=1)[0]["after"]
    secrets = (gone.secret, gone.code, gone.shown())
    assert not [secret for secret in secrets for body in house.bodies() if secret.encode() in body]


@pytest.mark.parametrize("database_kind", ["sqlite"])
def test_who_may_not_confirm(house: House) -> None:
    """Oneself, a machine, a role without the duty, another study's, a revoked one, who was vouched for just now.

    Whoever may not vouch for this person hears what one hears who guesses the code. [EUB-15, SIG-07, USR-21, rule B10]
    """
    house.register_study()
    owner, colleague = house.person("investigator"), house.person("investigator")
    gone = lost(owner)
    refused(gone.confirmed_by(owner), 409, "second_person_required")
    # The owner's device showed a code for that: it is not lost.
    expect(gone.confirmed_by(colleague), 200)
    refused(gone.completed(), 409, "illegal_transition")
    gone = lost(owner)
    for role in ("coordinator", "pharmacist", "monitor", "inspector", "statistician", "treating_physician"):
        refused(gone.confirmed_by(house.person(role)), 403, "forbidden")
    body = {"username": owner.username, "code": gone.code, "identity_check": "in_person"}
    refused(house.machine().post(f"{PATH}/confirmation", json=body), 403, "forbidden")
    refused(colleague.post(f"{PATH}/confirmation", json=body), 401, "step_up_required")
    refused(house.send("POST", f"{PATH}/confirmation", json=body), 401, "not_authenticated")
    stranger = house.person("investigator", study="OTHER")
    refused(gone.confirmed_by(stranger), 404, "not_found")
    for wrong in ("ABCD-EFGH-JKMN", gone.code[:-1], "- -", "x" * 40):
        refused(gone.confirmed_by(colleague, code=wrong), 404, "not_found")
    assert house.trail(last=1)[0]["outcome"] == "denied"
    refused(gone.confirmed_by(colleague, code="\u2003"), 422, "invalid")
    refused(gone.confirmed_by(colleague, username=colleague.username), 404, "not_found")
    refused(gone.confirmed_by(colleague, identity_check="hearsay"), 422, "invalid")
    former = house.person("safety_officer")
    proven = former.elevated_token()
    expect(house.admin.delete(f"/v1/people/{former.username}/grants/{former.grant_ids[0]}"), 204)
    refused(house.send("POST", f"{PATH}/confirmation", token=proven, json=body), 403, "forbidden")
    out = outsiders(house)
    out.link("c", {"username": colleague.username})
    refused(house.send("POST", f"{PATH}/confirmation", token=out.proven("c"), json=body), 403, "forbidden")
    # However it is written down, and the same word again is the same; another colleague's is one too many.
    expect(gone.confirmed_by(colleague, code=f" {gone.code.lower().replace('-', ' ')} "), 200)
    refused(gone.confirmed_by(house.person("safety_officer")), 409, "illegal_transition")
    expect(gone.completed(), 201)
    owner.totp_secret, owner._last_step = gone.secret, int(house.clock.now.timestamp()) // 30
    owner.forget_token()
    refused(lost(colleague).confirmed_by(owner), 403, "forbidden")
    admin = lost(house.admin)
    refused(admin.confirmed_by(colleague), 404, "not_found")
    expect(admin.confirmed_by(out.second), 200)
    expect(lost(colleague).confirmed_by(out.second), 200)


@pytest.mark.parametrize("database_kind", ["sqlite"])
def test_what_does_not_complete(house: House) -> None:
    """A wrong password, a wrong code, too many of them, too late, twice, after a reset, by whom nobody vouches any more.

    [EUB-15, USR-13, USR-10, rule D3]
    """
    house.register_study()
    colleague = house.person("investigator")

    def confirmed(owner: Caller | None = None) -> Lost:
        gone = lost(owner or house.person("investigator"))
        expect(gone.confirmed_by(colleague), 200)
        return gone

    gone = confirmed()
    # Who has the id and the code, and not the password; who has the password, and not the new device.
    refused(gone.completed(password=colleague.password), 401, "wrong_credentials")
    assert house.trail(last=1)[0]["target"] == {"username": gone.owner.username, "recovery_id": gone.recovery_id}
    refused(gone.completed(otp=gone.owner.code()), 401, "invalid_code")
    unknown = replace(gone, recovery_id=ZERO)
    entries = len(house.trail())
    refused(unknown.completed(), 401, "wrong_credentials")
    assert len(house.trail()) == entries
    for _ in range(7):
        refused(gone.completed(otp="000000"), 401, "invalid_code")
    expect(gone.completed(), 201)
    refused(gone.completed(), 401, "wrong_credentials")
    gone = confirmed()
    for _ in range(10):
        refused(gone.completed(otp="000000"), 401, "invalid_code")
    refused(gone.completed(), 401, "wrong_credentials")
    gone = confirmed()
    house.clock.advance(minutes=30)
    refused(gone.completed(), 401, "wrong_credentials")
    late = lost(gone.owner)
    house.clock.advance(minutes=30)
    refused(late.confirmed_by(colleague), 404, "not_found")
    for spoil, status, code in (
        (reset, 401, "wrong_credentials"),
        (change_password, 401, "wrong_credentials"),
        (deactivate, 401, "wrong_credentials"),
        (use_the_factor, 409, "illegal_transition"),
        (use_a_passkey, 409, "illegal_transition"),
        (plant_a_word, 503, "integrity_failure"),
    ):
        owner = house.person("investigator")
        passkey = Authenticator(spoil.__name__)
        enrol(owner, passkey)
        gone = confirmed(owner)
        spoil(gone, passkey)
        refused(gone.completed(), status, code)
    gone = confirmed()
    expect(house.admin.delete(f"/v1/people/{colleague.username}/grants/{colleague.grant_ids[0]}"), 204)
    refused(gone.completed(), 409, "illegal_transition")


def reset(gone: Lost, _device: Authenticator) -> None:
    expect(gone.house.admin.post(f"/v1/people/{gone.owner.username}/reset"), 200)


def deactivate(gone: Lost, _device: Authenticator) -> None:
    expect(gone.house.admin.post(f"/v1/people/{gone.owner.username}/deactivation"), 200)


def change_password(gone: Lost, _device: Authenticator) -> None:
    new = "another heron at dusk"
    expect(gone.owner.post("/v1/me/password", json={"current": gone.owner.password, "new": new}), 200)
    gone.owner.password = new


def use_the_factor(gone: Lost, _device: Authenticator) -> None:
    gone.owner.elevated_token()


def use_a_passkey(gone: Lost, device: Authenticator) -> None:
    expect(step_up(gone.owner, device), 201)


def plant_a_word(gone: Lost, _device: Authenticator) -> None:
    with gone.house.deployment.database.transaction() as tx:
        tx.execute(update(tables.factor_recovery).values(confirmed_by="admin"))


@pytest.mark.parametrize("database_kind", ["sqlite"])
def test_who_may_not_ask(house: House) -> None:
    """Who is unknown, switched off or has a wrong password hears one thing, slowed down like a sign-in; nobody resets oneself.

    [USR-10, EUB-15, E1]
    """
    owner, off = house.person("investigator"), house.person("investigator")
    deactivate(Lost(off, "", "", ""), Authenticator())
    for name, password in (("nobody", "x"), (off.username, off.password), (owner.username, "wrong")):
        refused(ask(house, name, password), 401, "wrong_credentials")
        entry = house.trail(last=1)[0]
        assert (entry["actor"], entry["outcome"]) == ("unknown", "denied")
    newcomer = house.register("new.comer")
    refused(ask(house, "new.comer", newcomer.password), 409, "illegal_transition")
    # One count for all that the password of a name is tried for.
    for number in range(4):
        path = (PATH, "/v1/sessions")[number % 2]
        body = {"username": owner.username, "password": "wrong"}
        refused(house.send("POST", path, json=body), 401, "wrong_credentials")
    house.deployment.noise.take()
    refused(ask(house, owner.username, owner.password), 429, "too_many_attempts")
    assert house.deployment.noise.take() == {"unknown": 1}
    with ExitStack() as full:
        for _ in range(PLACES):
            full.enter_context(house.deployment.passwords.place())
        refused(Lost(owner, ZERO, "", "A" * 32).completed(), 503, "busy")
    assert house.deployment.noise.take() == {"unknown": 1}


def test_two_at_once_make_one_factor(house: House) -> None:
    """Two completions of one recovery, and of two: one factor, one session. [USR-13, rule D3]"""
    house.register_study()
    owner, colleague = house.person("investigator"), house.person("investigator")
    both = [lost(owner), lost(owner)]
    for gone in both:
        expect(gone.confirmed_by(colleague), 200)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda gone: gone.completed().status_code, both * 2))
    assert sorted(answers) == [201, 401, 401, 401]


def test_who_vouches_for_whom() -> None:
    """A colleague of a study; no blinded one for somebody unblinded; an administrator only by another one. [SIG-07, B1, B10]"""

    def held(*roles: str) -> list[HeldGrant]:
        """Roles in study A, or in another one where that is said."""
        of = (role.partition("@")[::2] for role in roles)
        return [
            HeldGrant(Role(role), None if role == "service_admin" else StudyCode(study or "A"), None)
            for role, study in of
        ]

    for voucher, owner, may in (
        (["investigator"], ["investigator"], True),
        (["investigator"], ["monitor", "coordinator@B"], True),
        (["study_admin"], ["pharmacist"], True),
        (["safety_officer"], ["statistician"], True),
        (["service_admin"], ["statistician", "investigator@B"], True),
        (["service_admin"], ["service_admin"], True),
        (["service_admin"], [], False),
        (["coordinator"], ["investigator"], False),
        (["investigator@B"], ["investigator"], False),
        (["investigator"], ["statistician"], False),
        (["investigator"], ["investigator", "statistician@B"], False),
        (["safety_officer"], ["statistician", "statistician@B"], False),
        (["investigator"], ["service_admin"], False),
        (["statistician", "safety_officer@B"], ["statistician"], False),
    ):
        assert may_vouch(held(*voucher), held(*owner)) is may, (voucher, owner)
    entitled = {role for role, actions in PERMISSIONS.items() if Action.CONFIRM_FACTOR_RECOVERY in actions}
    assert entitled == VOUCHING_ROLES
