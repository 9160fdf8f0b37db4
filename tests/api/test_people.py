"""Accounts, sign-in, step-up, machine clients and grants over HTTP."""

import base64
import json
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

import pyotp
import pytest
from argon2 import PasswordHasher
from httpx2 import Response
from pydantic import ValidationError
from sqlalchemy import event

from app.domain.words import UNBLINDED_ROLES, Role
from app.identity import attempts
from app.identity.passwords import PLACES
from app.settings import Settings
from app.storage import people as storage
from app.storage.database import Transaction
from app.storage.tables import metadata
from tests import harness
from tests.harness import STUDY, Caller, House, expect

PASSWORD = "seven quiet herons at dawn"


def sign_in(house: House, username: str, password: str, **more: str) -> Response:
    return house.send("POST", "/v1/sessions", json={"username": username, "password": password, **more})


def last(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what the newest entry says, without place and time."""
    kept = ("actor", "role", "action", "outcome", "target", "before", "after")
    return {name: entries[-1][name] for name in kept}


def refused(response: Response, status: int, code: str) -> dict[str, Any]:
    """Return the problem, when it is this one."""
    problem: dict[str, Any] = expect(response, status)
    assert response.headers["content-type"] == "application/problem+json"
    assert problem["code"] == code, problem
    return problem


def work_on(house: House, token: str, hours: int) -> None:
    """Let an administrator's sign-in go on by an act now and then, to its end at the latest."""
    end = house.clock.now + timedelta(hours=hours)
    while house.clock.now < end:
        house.clock.advance(min(timedelta(minutes=13), end - house.clock.now))
        if house.clock.now < end:
            expect(house.send("GET", "/v1/people", token=token, query={"limit": 1}), 200)


class CountingHasher(PasswordHasher):
    """The deployment's hasher, which notes the kind and cost of each hash that it verifies."""

    def __init__(self, like: PasswordHasher) -> None:
        super().__init__(like.time_cost, like.memory_cost, like.parallelism)
        self.verified: list[str] = []

    def verify(self, hash: str | bytes, password: str | bytes) -> Literal[True]:  # noqa: A002  # the library's name
        self.verified.append(str(hash).rsplit("$", 2)[0])
        return super().verify(hash, password)


@contextmanager
def statements(house: House) -> Iterator[list[tuple[str, int]]]:
    """Give the statements that are sent meanwhile, each with how many rows it wrote.

    But for the inner nodes of the trail's tree: how many an entry completes follows from its number.
    """
    done: list[tuple[str, int]] = []

    def note(_connection: object, cursor: sqlite3.Cursor, text: str, *_rest: object) -> None:
        if "trail_node" not in text:
            done.append((text, 0 if text.startswith("SELECT") else cursor.rowcount))

    engine = house.deployment.database.engine
    event.listen(engine, "after_cursor_execute", note)
    try:
        yield done
    finally:
        event.remove(engine, "after_cursor_execute", note)


class TestSigningIn:
    def test_a_password_gives_a_session_that_is_entered_under_the_person(self, house: House) -> None:
        """Sign-in answers an opaque token, and the log of sign-ins names the person (USR-01, USR-14, BLD-13)."""
        doctor = house.person("investigator", username="m.rossi", password=PASSWORD)
        response = sign_in(house, "  M.Rossi ", PASSWORD)
        session = expect(response, 201)
        assert session.keys() == {"access_token", "expires_in", "acr"}
        assert (session["acr"], session["expires_in"]) == ("pwd", 8 * 3600)
        assert response.headers["cache-control"] == "no-store"
        said = last(house.trail())
        assert said["actor"] == doctor.username
        assert (said["action"], said["outcome"]) == ("session:create", "done")
        assert said["target"] == {"username": "m.rossi"}

    @pytest.mark.parametrize("name", ["admin", "nobody", "Not a name \x00"], ids=["known", "unknown", "impossible"])
    def test_a_wrong_password_and_an_unknown_name_are_one_answer(self, house: House, name: str) -> None:
        """An unknown account is refused in the same words; the entry holds the account or `unknown` (E1, USR-10)."""
        typed = "My-real-password-of-another-site"
        problem = refused(sign_in(house, name, typed), 401, "wrong_credentials")
        del problem["request_id"]
        assert problem == {
            "type": "urn:snose:problem:wrong_credentials",
            "title": "User name or password is wrong",
            "status": 401,
            "detail": "User name or password is wrong",
            "code": "wrong_credentials",
            "advice": "Check both and try again.",
        }
        said = last(house.trail())
        assert said == {
            "actor": "unknown",
            "role": None,
            "action": "session:create",
            "outcome": "denied",
            "target": {"username": name if name == "admin" else "unknown"},
            "before": None,
            "after": {"code": "wrong_credentials"},
        }
        assert all(typed.encode() not in body for body in house.bodies())

    @pytest.mark.parametrize("name", ["admin", "nobody"])
    def test_wrong_tries_slow_down_for_known_and_unknown_names_alike(self, house: House, name: str) -> None:
        """After five wrong tries the next waits, longer each time, and is only counted (USR-10, E1)."""
        house.deployment.noise.take()
        for _ in range(5):
            refused(sign_in(house, name, "wrong"), 401, "wrong_credentials")
        entries = len(house.trail())
        response = sign_in(house, name, "wrong")
        refused(response, 429, "too_many_attempts")
        assert response.headers["retry-after"] == "1"
        assert len(house.trail()) == entries
        assert house.deployment.noise.take() == {"unknown": 1}
        house.clock.advance(seconds=1)
        refused(sign_in(house, name, "wrong"), 401, "wrong_credentials")
        assert sign_in(house, name, "wrong").headers["retry-after"] == "2"

    def test_the_right_password_works_again_after_the_delay(self, house: House) -> None:
        """Wrong tries never lock an account out (EUB-15, USR-10)."""
        for _ in range(40):
            sign_in(house, "admin", "wrong")
            house.clock.advance(seconds=30)
        expect(sign_in(house, "admin", house.admin.password), 201)
        expect(sign_in(house, "admin", house.admin.password), 201)

    @pytest.mark.parametrize("database_kind", ["sqlite"])
    @pytest.mark.parametrize("name", ["known", "nobody"])
    def test_guesses_are_bounded_for_ever(self, house: House, name: str) -> None:
        """However long strangers go on, 80 guesses at a password are looked at; a code opens. [USR-10, EUB-15; T20, N05]"""
        doctor = house.person(None, username="known", password=PASSWORD)
        alarms = []
        for _ in range(80):
            house.clock.advance(seconds=30)
            refused(sign_in(house, name, "wrong"), 401, "wrong_credentials")
            if "alarm" in (said := house.trail(last=1)[0]["after"]):
                alarms.append(said["guesses"])
                assert (said["alarm"], said["network"]) == ("many_guesses", "unknown")
        assert alarms == [20, 40, 80]
        for _ in range(3):
            # Not even after a night without any.
            house.clock.advance(hours=12)
            response = sign_in(house, name.upper(), PASSWORD)
            refused(response, 429, "too_many_attempts")
            assert response.headers["retry-after"] == "30"
        token = expect(sign_in(house, "known", PASSWORD, otp=doctor.code()), 201)["access_token"]
        body = {"current": PASSWORD, "new": "another heron at dusk"}
        expect(house.send("POST", "/v1/me/password", token=token, json=body), 200)
        # What was guessed was the old one.
        house.clock.advance(seconds=30)
        expect(sign_in(house, "known", "another heron at dusk"), 201) if name == "known" else None

    @pytest.mark.parametrize("database_kind", ["sqlite"])
    def test_a_reset_and_the_right_password_end_the_count(self, house: House, monkeypatch: pytest.MonkeyPatch) -> None:
        """A password that is known, or a new one, begins at nothing. [USR-10, USR-13]"""
        monkeypatch.setattr(attempts, "MOST_GUESSES", 3)
        doctor = house.person(None)
        for tries, status in ((2, 401), (2, 401), (3, 401), (1, 429)):
            for _ in range(tries):
                house.clock.advance(seconds=30)
                expect(sign_in(house, doctor.username, "wrong"), status)
            house.clock.advance(seconds=30)
            if tries == 2:
                expect(sign_in(house, doctor.username, doctor.password), 201)
        issued = expect(house.admin.post(f"/v1/people/{doctor.username}/reset"), 200)["password"]
        house.clock.advance(seconds=30)
        expect(sign_in(house, doctor.username, issued), 201)

    def test_strangers_hold_up_nobody_who_shows_a_code(self, house: House) -> None:
        """Known by the own device, whatever is tried at the name meanwhile; the code is used up by it (EUB-15, D3; T20)."""
        doctor = house.person("investigator")
        for _ in range(12):
            sign_in(house, doctor.username, "wrong")
            house.clock.advance(seconds=30)
        code = doctor.code()
        sign_in(house, doctor.username, "wrong")
        refused(sign_in(house, doctor.username, doctor.password), 429, "too_many_attempts")
        # A code shows who it is, and no more; it is used up, whatever the password was.
        refused(sign_in(house, doctor.username, "wrong", otp=code), 401, "wrong_credentials")
        refused(sign_in(house, doctor.username, doctor.password, otp=code), 429, "too_many_attempts")
        code = doctor.code()
        sign_in(house, doctor.username, "wrong")
        refused(sign_in(house, doctor.username, doctor.password), 429, "too_many_attempts")
        spaced = f"{code[:3]} {code[3:]}"
        token = expect(sign_in(house, doctor.username.upper(), doctor.password, otp=spaced), 201)
        assert token["acr"] == "pwd"
        again = house.send("POST", "/v1/sessions/step-up", token=token["access_token"], json={"otp": code})
        refused(again, 401, "invalid_code")
        # Nor has it opened new tries for strangers.
        refused(sign_in(house, doctor.username, "wrong"), 429, "too_many_attempts")
        expect(doctor.get("/v1/me", step_up=True), 200)

    def test_a_strangers_code_changes_nothing(self, house: House) -> None:
        """A wrong code beside a password, for whoever it is, is as none (USR-10)."""
        doctor, newcomer = house.person("investigator"), house.register("new.comer")
        expect(sign_in(house, doctor.username, doctor.password, otp="000000"), 201)
        for name in (doctor.username, newcomer.username, "nobody", "Not a name \x00"):
            for _ in range(5):
                refused(sign_in(house, name, "wrong", otp="000000"), 401, "wrong_credentials")
            refused(sign_in(house, name, "wrong", otp="000000"), 429, "too_many_attempts")

    def test_a_guessed_code_tells_no_name(self, house: House) -> None:
        """With a code, too, known and unknown names cost the same statements and the same hash (USR-10, USR-21)."""
        doctor, newcomer = house.person("investigator"), house.register("new.comer")
        work = set()
        for name in (doctor.username, newcomer.username, "nobody", "Not a name \x00"):
            refused(sign_in(house, name, "wrong", otp="000000"), 401, "wrong_credentials")
            with statements(house) as done:
                refused(sign_in(house, name, "wrong", otp="000000"), 401, "wrong_credentials")
            work.add(tuple(done))
        assert len(work) == 1

    def test_wrong_tries_are_remembered_by_a_new_process(self, house: House) -> None:
        """A restart gives no new tries, and tells no names by it (USR-10)."""
        for name in ("admin", "nobody"):
            for _ in range(5):
                sign_in(house, name, "wrong")
        house.restart()
        refused(sign_in(house, "admin", house.admin.password), 429, "too_many_attempts")
        refused(sign_in(house, "nobody", "wrong"), 429, "too_many_attempts")

    def test_wrong_tries_made_at_once_are_counted_each(self, house: House) -> None:
        """Many at once are no more guesses than one after the other (USR-10)."""

        def looked_at(_: int) -> int:
            while (answer := sign_in(house, "admin", "wrong")).status_code == 503:
                # More at once than there are places: nothing was counted.
                pass
            return answer.status_code

        with ThreadPoolExecutor(12) as pool:
            statuses = list(pool.map(looked_at, range(12)))
        assert statuses.count(401) == 5
        assert statuses.count(429) == 7

    def test_known_and_unknown_names_cost_the_same_work(self, house: House) -> None:
        """The time of a refusal tells no name: the same statements, rows written and hash of the same cost (USR-10, USR-21)."""
        house.person(None, username="m.rossi")
        expect(house.admin.post("/v1/people/m.rossi/deactivation"), 200)
        names = ("admin", "m.rossi", "nobody", "Not a name \x00")
        for name in names:
            refused(sign_in(house, name, "wrong"), 401, "wrong_credentials")
        costs = PasswordHasher(time_cost=1, memory_cost=1024, parallelism=1)
        hasher = house.deployment.passwords._hasher = CountingHasher(costs)
        work = {}
        for name in names:
            hasher.verified.clear()
            with statements(house) as done:
                refused(sign_in(house, name, "wrong"), 401, "wrong_credentials")
            work[name] = (tuple(done), tuple(hasher.verified))
        assert set(work.values()) == {work["admin"]}
        sent, verified = work["admin"]
        assert verified == ("$argon2id$v=19$m=1024,t=1,p=1",)
        assert any(text.startswith("UPDATE sign_in_tries") and rows == 1 for text, rows in sent)

    def test_a_full_house_is_told_at_once_and_counts_no_try(self, house: House) -> None:
        """Who must wait for a hash is turned away with a time to come back, as noise; step-up and code breaks go on (D1, E1)."""
        house.register_study()
        doctor = house.person("investigator")
        doctor.token()
        house.deployment.noise.take()
        entries = len(house.trail())
        with ExitStack() as full:
            for _ in range(PLACES):
                full.enter_context(house.deployment.passwords.place())
            expect(sign_in(house, doctor.username, doctor.password, otp=doctor.code()), 201)
            entries = len(house.trail())
            for _ in range(9):
                response = sign_in(house, doctor.username, "wrong")
                refused(response, 503, "busy")
                assert response.headers["retry-after"] == "2"
            assert len(house.trail()) == entries
            assert house.deployment.noise.take() == {"unknown": 9}
            body = {"current": doctor.password, "new": PASSWORD}
            refused(doctor.post("/v1/me/password", json=body), 503, "busy")
            assert last(house.trail())["after"] == {"code": "busy"}
            wanted = {"subject_id": "S-1", "reason_code": "serious_adverse_event"}
            unknown = doctor.post(f"/v1/studies/{STUDY}/code-breaks", json=wanted, step_up=True)
            refused(unknown, 404, "not_found")
        expect(sign_in(house, doctor.username, doctor.password), 201)

    def test_a_turn_that_does_not_come_is_told_too(self, house: House) -> None:
        """Nobody waits for a hash without end (D1): the turns are taken, and the wait is over."""
        passwords = house.deployment.passwords
        passwords._longest_wait = 0.01
        body = {"username": "m.rossi", "display_name": "Dr Rossi", "email": "m@example.org"}
        house.admin.token()
        with passwords._turn, passwords._turn:
            refused(sign_in(house, "admin", house.admin.password), 503, "busy")
            refused(house.admin.post("/v1/people", json=body), 503, "busy")
            assert last(house.trail())["after"] == {"code": "busy"}
        expect(sign_in(house, "admin", house.admin.password), 201)
        expect(house.admin.post("/v1/people", json=body), 201)

    def test_a_session_ends_when_its_time_is_over_and_when_it_is_signed_out(self, house: House) -> None:
        """A token has an absolute end, and is worth nothing after sign-out (USR-12)."""
        doctor = house.person("investigator")
        token = doctor.token()
        house.clock.advance(hours=8)
        refused(house.send("GET", "/v1/me", token=token), 401, "not_authenticated")
        token = doctor.token()
        expect(house.send("DELETE", "/v1/sessions/current", token=token), 204)
        refused(house.send("GET", "/v1/me", token=token), 401, "not_authenticated")
        assert last(house.trail())["action"] == "session:end"

    def test_what_is_no_token_is_nobody(self, house: House) -> None:
        """A missing, malformed or unknown token is 401 with a challenge (G2)."""
        for header in ("", "Bearer", "Bearer x", "Basic eDp5", f"Bearer snose_{'A' * 43}", "Bearer snose_\u00e9"):
            response = house.client.get("/v1/me", headers={b"Authorization": header.encode("latin-1")})
            refused(response, 401, "not_authenticated")
            assert response.headers["www-authenticate"] == "Bearer"


class TestSessionsOfOnesOwn:
    def test_a_session_nobody_uses_is_over(self, house: House) -> None:
        """After 15 minutes without an act; what programs ask by themselves puts it off no more than a refusal does (USR-12)."""
        doctor, admin = house.person("investigator"), house.person("service_admin", None)
        idle, used, machine = doctor.token(), admin.token(), house.machine(None).token()
        proven = admin.elevated_token()
        for _ in range(3):
            house.clock.advance(minutes=4)
            expect(house.send("GET", "/v1/me", token=idle), 200)
            expect(house.send("GET", "/v1/me/sessions", token=idle), 200)
            refused(house.send("GET", "/v1/people", token=idle), 403, "forbidden")
            expect(house.send("GET", "/v1/people", token=used), 200)
        house.clock.advance(minutes=4)
        for path in ("/v1/me", "/v1/me/sessions", "/v1/people"):
            refused(house.send("GET", path, token=idle), 401, "not_authenticated")
        refused(
            house.send("POST", "/v1/sessions/step-up", token=idle, json={"otp": "000000"}), 401, "not_authenticated"
        )
        # The proof is of the sign-in that was used; the machine has no idle limit, its token is short.
        expect(house.send("GET", "/v1/people", token=proven), 200)
        expect(house.send("GET", "/v1/me", token=machine), 200)
        # A sign-in is all that stands between the person and whatever they have to do, a code break above all.
        expect(doctor.get("/v1/me", step_up=True), 200)

    def test_the_limit_is_a_setting(self, migrated_database_url: str, tmp_path: Path) -> None:
        """The operator says how long, within bounds in which a fresh proof never outlives its session (USR-12)."""
        with harness.house(migrated_database_url, tmp_path, session_idle_minutes=5) as house:
            token = house.admin.token()
            house.clock.advance(minutes=5)
            refused(house.send("GET", "/v1/me", token=token), 401, "not_authenticated")
        for minutes in (0, 4, 61):
            with pytest.raises(ValidationError):
                Settings(session_idle_minutes=minutes)

    def test_one_sees_ones_own_and_ends_one_or_all(self, house: House) -> None:
        """The list tells sign-ins, not tokens; another person's is not found, and an ended one neither (USR-06, USR-12)."""
        doctor, other = house.person("investigator"), house.person("investigator")
        first = doctor.token()
        house.clock.advance(minutes=2)
        proven = doctor.elevated_token()
        at_home = expect(sign_in(house, doctor.username, doctor.password), 201)["access_token"]
        listed = expect(house.send("GET", "/v1/me/sessions", token=proven), 200)["items"]
        assert [one["is_current"] for one in listed] == [True, False]
        assert [one["proof_at"] is not None for one in listed] == [True, False]
        assert listed[0]["signed_in_at"] < listed[0]["used_at"] < listed[0]["ends_at"]
        home = f"/v1/me/sessions/{listed[1]['session_id']}"
        refused(other.delete(home), 404, "not_found")
        refused(other.delete("/v1/me/sessions/everything"), 422, "invalid")
        expect(house.send("DELETE", home, token=first), 204)
        said = last(house.trail())
        assert (said["action"], said["target"]) == ("session:end", {"session_id": listed[1]["session_id"]})
        refused(house.send("GET", "/v1/me", token=at_home), 401, "not_authenticated")
        refused(house.send("DELETE", home, token=first), 404, "not_found")
        assert len(expect(house.send("GET", "/v1/me/sessions", token=first), 200)["items"]) == 1
        expect(house.send("DELETE", "/v1/me/sessions", token=proven), 204)
        for token in (first, proven):
            refused(house.send("GET", "/v1/me", token=token), 401, "not_authenticated")
        expect(other.get("/v1/me"), 200)

    def test_the_token_in_hand_outlives_the_one_it_was_stepped_up_from(self, house: House) -> None:
        """After a change of password with a stepped-up token the list still tells its sign-in, and use still counts (USR-13)."""
        admin = house.person("service_admin", None)
        proven = admin.elevated_token()
        body = {"current": admin.password, "new": "eight quiet herons at dusk"}
        expect(house.send("POST", "/v1/me/password", token=proven, json=body), 200)
        work_on(house, proven, hours=1)
        listed = expect(house.send("GET", "/v1/me/sessions", token=proven), 200)["items"]
        assert [one["is_current"] for one in listed] == [True]

    def test_before_the_first_change_there_is_nothing_to_see(self, house: House) -> None:
        """An issued password opens its own change, and the end of what it opened (SIG-07)."""
        new = house.register("m.rossi")
        refused(new.get("/v1/me/sessions"), 403, "password_change_required")
        refused(house.machine(None).get("/v1/me/sessions"), 403, "forbidden")
        expect(new.delete("/v1/me/sessions"), 204)

    def test_an_admin_ends_all_of_a_person(self, house: House) -> None:
        """The sessions of a lost device are over at once; the person signs in again, and nobody else feels it (USR-06)."""
        doctor = house.person("investigator")
        tokens = [doctor.token(), doctor.elevated_token()]
        path = f"/v1/people/{doctor.username}/sessions"
        refused(doctor.delete(path), 403, "forbidden")
        expect(house.admin.delete(path), 204)
        said = last(house.trail())
        assert (said["actor"], said["action"], said["target"]) == (
            "admin",
            "session:end_all",
            {"username": doctor.username},
        )
        for token in tokens:
            refused(house.send("GET", "/v1/me", token=token), 401, "not_authenticated")
        doctor.forget_token()
        expect(doctor.get("/v1/me", step_up=True), 200)
        expect(house.admin.delete(path), 204)
        refused(house.admin.delete("/v1/people/nobody.here/sessions"), 404, "not_found")

    def test_a_step_up_under_way_does_not_outlive_the_end(self, house: House, monkeypatch: pytest.MonkeyPatch) -> None:
        """Whoever ends all sessions while one of them is being proven leaves no token behind (USR-06)."""
        doctor = house.person("investigator")
        token, code = doctor.token(), doctor.code()

        def ended_meanwhile(tx: Transaction, principal_id: UUID, _step: int) -> bool:
            # What a rival did just before the lock was given: it is seen by whatever is read after.
            storage.end_sessions(tx, principal_id, house.clock.now)
            return True

        with monkeypatch.context() as patched:
            patched.setattr(storage, "claim_one_time_step", ended_meanwhile)
            answer = house.send("POST", "/v1/sessions/step-up", token=token, json={"otp": code})
        refused(answer, 401, "not_authenticated")

    def test_the_log_of_sign_ins_is_searched(self, house: House) -> None:
        """Who signed in and out, and when: by action, by name and by time (USR-14)."""
        doctor = house.person("investigator")
        expect(doctor.delete("/v1/sessions/current"), 204)
        sign_in(house, doctor.username, "not this")
        found = {
            action: [
                (entry["actor"], entry["outcome"])
                for entry in expect(house.admin.get("/v1/trail", action=action), 200)["items"]
                if doctor.username in (entry["actor"], (entry["target"] or {}).get("username"))
            ]
            for action in ("session:create", "session:end")
        }
        assert found["session:create"][-2:] == [(doctor.username, "done"), ("unknown", "denied")]
        assert found["session:end"] == [(doctor.username, "done")]
        of_one = expect(house.admin.get("/v1/trail", action="session:create", actor=doctor.username), 200)["items"]
        assert {entry["actor"] for entry in of_one} == {doctor.username}


class TestFirstChange:
    def test_an_issued_password_opens_nothing_but_its_own_change(self, house: House) -> None:
        """Until the first change only the account's own calls work (USR-13, SIG-07)."""
        house.register_study()
        doctor = house.register("m.rossi")
        house.grant(doctor, "investigator")
        assert expect(doctor.get("/v1/me"), 200)["must_change_password"] is True
        refused(doctor.get(f"/v1/studies/{STUDY}"), 403, "password_change_required")
        answer = house.send("POST", "/v1/sessions/step-up", token=doctor.token(), json={"otp": "123456"})
        refused(answer, 403, "password_change_required")
        house.take_over(doctor)
        expect(doctor.get(f"/v1/studies/{STUDY}"), 200)
        expect(doctor.get("/v1/me", step_up=True), 200)

    def test_the_first_change_gives_a_factor_and_ends_the_other_sessions(self, house: House) -> None:
        """The token in hand stays; who signed in with the issued password before is out (USR-13, D3)."""
        doctor = house.register("m.rossi")
        other = expect(sign_in(house, "m.rossi", doctor.password), 201)["access_token"]
        issued, token = doctor.password, doctor.token()
        body = {"current": issued, "new": PASSWORD}
        answer = house.send("POST", "/v1/me/password", token=token, json=body)
        secret = expect(answer, 200)["totp_secret"]
        assert len(base64.b32decode(secret)) == 20
        assert answer.headers["cache-control"] == "no-store"
        expect(house.send("GET", "/v1/me", token=token), 200)
        refused(house.send("GET", "/v1/me", token=other), 401, "not_authenticated")
        refused(sign_in(house, "m.rossi", issued), 401, "wrong_credentials")
        expect(sign_in(house, "m.rossi", PASSWORD), 201)
        changes = [entry for entry in house.trail() if entry["action"] == "password:change"]
        assert changes[-1]["after"] == {"new_second_factor": True}

    def test_a_later_change_keeps_the_factor(self, house: House) -> None:
        """A second factor is given once, to the person alone (SIG-07)."""
        doctor = house.person("investigator")
        answer = doctor.post("/v1/me/password", json={"current": doctor.password, "new": PASSWORD})
        assert expect(answer, 200) == {"totp_secret": None}
        doctor.password = PASSWORD
        expect(doctor.get("/v1/me", step_up=True), 200)

    def test_two_first_changes_at_once_make_one_factor(self, house: House) -> None:
        """The loser of a race hears that the password is another by now, and gets no factor (D3)."""
        doctor = house.register("m.rossi")
        tokens = [expect(sign_in(house, "m.rossi", doctor.password), 201)["access_token"] for _ in range(2)]

        def change(token: str) -> Response:
            body = {"current": doctor.password, "new": f"{PASSWORD} {tokens.index(token)}"}
            return house.send("POST", "/v1/me/password", token=token, json=body)

        with ThreadPoolExecutor(2) as pool:
            answers = list(pool.map(change, tokens))
        assert sorted(answer.status_code for answer in answers) == [200, 401]

    def test_a_weak_password_is_refused_and_costs_no_try(self, house: House) -> None:
        """Short, long, common, named, unchanged: 422 naming the field, without echo (USR-11, G1)."""
        doctor = house.person(None, username="m.rossi", password=PASSWORD)
        weak = (
            "too short",
            "password123456",
            "x" * 129,
            "x" * 201,
            "aaaaaaaaaaaaaaaa",
            "m.rossi is my name",
            "\ud800" * 14,
        )
        for new in (*weak, PASSWORD):
            problem = expect(doctor.post("/v1/me/password", json={"current": PASSWORD, "new": new}), 422)
            assert [fault["field"] for fault in problem["errors"]] == ["new"]
            assert new not in json.dumps(problem)
        expect(sign_in(house, "m.rossi", PASSWORD), 201)

    def test_a_wrong_current_password_is_refused_and_counted(self, house: House) -> None:
        """A token in a stranger's hand is no oracle for the password (USR-10, SIG-01)."""
        doctor = house.person("investigator")
        body = {"current": "not it at all", "new": PASSWORD}
        for _ in range(5):
            refused(doctor.post("/v1/me/password", json=body), 401, "wrong_credentials")
        said = last(house.trail())
        assert (said["actor"], said["outcome"]) == (doctor.username, "denied")
        refused(doctor.post("/v1/me/password", json=body), 429, "too_many_attempts")

    def test_neither_strangers_nor_a_thief_keep_an_owner_from_changing_the_password(self, house: House) -> None:
        """Tries are counted by session: in another the owner changes the password, and the thief is out (USR-13, EUB-15)."""
        doctor = house.person("investigator")
        stolen = expect(sign_in(house, doctor.username, doctor.password), 201)["access_token"]
        guess = {"current": "not it at all", "new": PASSWORD}
        for _ in range(5):
            refused(house.send("POST", "/v1/me/password", token=stolen, json=guess), 401, "wrong_credentials")
        refused(house.send("POST", "/v1/me/password", token=stolen, json=guess), 429, "too_many_attempts")
        doctor.token()
        for _ in range(6):
            sign_in(house, doctor.username, "wrong")
        refused(sign_in(house, doctor.username, doctor.password), 429, "too_many_attempts")
        for _ in range(5):
            refused(
                house.send("POST", "/v1/sessions/step-up", token=stolen, json={"otp": "000000"}), 401, "invalid_code"
            )
        own = house.send("POST", "/v1/sessions/step-up", token=doctor.token(), json={"otp": doctor.code()})
        refused(own, 429, "too_many_attempts")
        expect(doctor.post("/v1/me/password", json={"current": doctor.password, "new": PASSWORD}), 200)
        refused(house.send("GET", "/v1/me", token=stolen), 401, "not_authenticated")
        house.clock.advance(seconds=30)
        expect(doctor.get("/v1/me", step_up=True), 200)

    def test_a_reset_voids_password_factor_and_sessions(self, house: House) -> None:
        """After a loss everything old is void, and the new factor is again the person's alone (USR-13, EUB-15)."""
        doctor = house.person("investigator")
        token, elevated, old_factor = doctor.token(), doctor.elevated_token(), doctor.totp_secret
        issued = expect(house.admin.post(f"/v1/people/{doctor.username}/reset"), 200)
        assert issued.keys() == {"username", "password"}
        assert last(house.trail())["after"] == {"must_change_password": True, "second_factor": None}
        for old in (token, elevated):
            refused(house.send("GET", "/v1/me", token=old), 401, "not_authenticated")
        refused(sign_in(house, doctor.username, doctor.password), 401, "wrong_credentials")
        doctor.password = issued["password"]
        doctor.forget_token()
        house.take_over(doctor)
        assert doctor.totp_secret != old_factor
        expect(doctor.get("/v1/me", step_up=True), 200)


class TestSteppingUp:
    def step_up(self, house: House, doctor: Caller, code: str) -> Response:
        return house.send("POST", "/v1/sessions/step-up", token=doctor.token(), json={"otp": code})

    def test_a_code_gives_a_fresh_proof_and_keeps_the_first_end(self, house: House) -> None:
        """The new session is of acr mfa with its own time, and ends when the first would have (D3, USR-12)."""
        doctor = house.person("service_admin", None)
        token = doctor.token()
        work_on(house, token, hours=2)
        response = house.send("POST", "/v1/sessions/step-up", token=token, json={"otp": doctor.code()})
        session = expect(response, 201)
        assert session["acr"] == "mfa"
        assert session["auth_time"].startswith("2026-11-22T10:00:")
        assert session["expires_in"] <= 6 * 3600
        assert response.headers["cache-control"] == "no-store"
        house.clock.advance(seconds=45)
        me = expect(house.send("GET", "/v1/me", token=session["access_token"]), 200)
        assert me["proof"] == {"at": session["auth_time"], "age_seconds": 45, "spent": False}
        assert expect(doctor.get("/v1/me"), 200)["proof"] is None
        work_on(house, token, hours=6)
        refused(house.send("GET", "/v1/me", token=session["access_token"]), 401, "not_authenticated")

    def test_the_code_of_this_and_of_the_previous_step_is_taken(self, house: House) -> None:
        """Somebody who types slowly is not turned away (D3)."""
        doctor = house.person("investigator")
        for steps_ago in (1, 0):
            code = pyotp.TOTP(doctor.totp_secret).at(house.clock.now - timedelta(seconds=30 * steps_ago))
            expect(self.step_up(house, doctor, f"{code[:3]} {code[3:]}"), 201)

    def test_an_older_or_future_code_is_refused(self, house: House) -> None:
        """Only two steps are looked at (D3)."""
        doctor = house.person("investigator")
        for seconds in (-60, 30, 3600):
            code = pyotp.TOTP(doctor.totp_secret).at(house.clock.now + timedelta(seconds=seconds))
            refused(self.step_up(house, doctor, code), 401, "invalid_code")

    def test_a_code_works_once_also_after_a_restart(self, house: House) -> None:
        """A code that was seen over the shoulder is worth nothing (D3)."""
        doctor = house.person("investigator")
        code = doctor.code()
        expect(self.step_up(house, doctor, code), 201)
        refused(self.step_up(house, doctor, code), 401, "invalid_code")
        house.restart()
        refused(self.step_up(house, doctor, code), 401, "invalid_code")
        said = last(house.trail())
        assert (said["actor"], said["action"], said["outcome"]) == (doctor.username, "session:step_up", "denied")

    def test_after_a_code_the_one_before_it_is_used_too(self, house: House) -> None:
        """A step not later than the last used is refused (D3)."""
        doctor = house.person("investigator")
        earlier = pyotp.TOTP(doctor.totp_secret).at(house.clock.now)
        house.clock.advance(seconds=30)
        expect(self.step_up(house, doctor, doctor.code()), 201)
        refused(self.step_up(house, doctor, earlier), 401, "invalid_code")

    def test_one_code_sent_twice_at_once_gives_one_session(self, house: House) -> None:
        """Each code once, whoever is faster (D3)."""
        doctor = house.person("investigator")
        doctor.token()
        code = doctor.code()
        with ThreadPoolExecutor(2) as pool:
            answers = list(pool.map(lambda _: self.step_up(house, doctor, code), range(2)))
        assert sorted(answer.status_code for answer in answers) == [201, 401]

    def test_wrong_codes_slow_down_and_a_good_password_opens_no_new_tries(self, house: House) -> None:
        """Whoever holds a stolen session or password is slowed down at the code (USR-10, D3)."""
        doctor = house.person("investigator")
        for _ in range(4):
            refused(self.step_up(house, doctor, "000000"), 401, "invalid_code")
        expect(sign_in(house, doctor.username, doctor.password), 201)
        refused(self.step_up(house, doctor, "000000"), 401, "invalid_code")
        response = self.step_up(house, doctor, doctor.code())
        refused(response, 429, "too_many_attempts")
        assert response.headers["retry-after"] == "1"
        house.clock.advance(seconds=1)
        expect(self.step_up(house, doctor, doctor.code()), 201)
        refused(self.step_up(house, doctor, "000000"), 401, "invalid_code")

    def test_wrong_passwords_of_a_stranger_delay_no_code(self, house: House) -> None:
        """Whoever knows a name cannot hold up its owner's step-up before an emergency code break (D1, EUB-15)."""
        doctor = house.person("investigator")
        doctor.token()
        for _ in range(12):
            sign_in(house, doctor.username, "wrong")
            house.clock.advance(seconds=30)
        refused(sign_in(house, doctor.username, "wrong"), 401, "wrong_credentials")
        refused(sign_in(house, doctor.username, "wrong"), 429, "too_many_attempts")
        expect(self.step_up(house, doctor, doctor.code()), 201)
        # Nor does a code open new tries at the password.
        refused(sign_in(house, doctor.username, doctor.password), 429, "too_many_attempts")

    def test_a_change_of_password_opens_no_new_tries_at_the_code(self, house: House) -> None:
        """Session and password together are still slowed down at the factor that they lack (USR-10, D3)."""
        doctor = house.person("investigator")
        for _ in range(5):
            refused(self.step_up(house, doctor, "000000"), 401, "invalid_code")
        expect(doctor.post("/v1/me/password", json={"current": doctor.password, "new": PASSWORD}), 200)
        refused(self.step_up(house, doctor, "000000"), 429, "too_many_attempts")

    def test_what_is_no_code_is_named(self, house: House) -> None:
        """An invalid value is 422 with the field (G2)."""
        doctor = house.person("investigator")
        for code in ("", "1" * 21):
            assert refused(self.step_up(house, doctor, code), 422, "invalid")["errors"][0]["field"] == "otp"
        refused(self.step_up(house, doctor, "six figures"), 401, "invalid_code")

    def test_a_machine_has_no_second_proof(self, house: House) -> None:
        """Machine clients can neither sign nor unblind (USR-15, SIG-12)."""
        edc = house.machine()
        refused(edc.post("/v1/sessions/step-up", json={"otp": "123456"}), 403, "forbidden")
        refused(edc.post("/v1/me/password", json={"current": "x", "new": PASSWORD}), 403, "forbidden")


class TestAccounts:
    def test_a_person_is_registered_and_listed_in_pages(self, house: House) -> None:
        """Accounts are personal, and the list is pinned to what stood at the first page (USR-01, USR-05)."""
        for name in ("carol", "alice", "bob"):
            house.register(name)
        first = expect(house.admin.get("/v1/people", limit=2), 200)
        assert [person["username"] for person in first["items"]] == ["admin", "alice"]
        house.register("zoe")
        rest = expect(house.admin.get("/v1/people", limit=2, cursor=first["next_cursor"]), 200)
        assert [person["username"] for person in rest["items"]] == ["bob", "carol"]
        assert rest["next_cursor"] is None
        assert rest["items"][0].keys() == {"username", "display_name", "email", "is_active", "created_at"}

    def test_a_cursor_is_worth_nothing_in_other_hands_or_changed(self, house: House) -> None:
        """Cursors are opaque and bound to their caller (G2)."""
        other = house.person("service_admin", None)
        cursor = expect(house.admin.get("/v1/people", limit=1), 200)["next_cursor"]
        expect(house.admin.get("/v1/people", cursor=cursor), 200)
        for caller, sent in (
            (other, cursor),
            (house.admin, cursor[:-2] + "AA"),
            (house.admin, "x"),
            (house.admin, "x.y"),
        ):
            problem = refused(caller.get("/v1/people", cursor=sent), 422, "invalid")
            assert problem["errors"][0]["field"] == "cursor"

    def test_the_entry_of_a_new_person_names_who_made_it(self, house: House) -> None:
        """Account creation is entered with its author (USR-05), and in the sink before the answer (E4)."""
        house.register("m.rossi")
        assert last(house.trail()) == {
            "actor": "admin",
            "role": "service_admin",
            "action": "person:create",
            "outcome": "done",
            "target": {"username": "m.rossi"},
            "before": None,
            "after": {"display_name": "Person m.rossi", "is_active": True},
        }
        sunk = json.loads(house.settings.checkpoint_file.read_text().splitlines()[-1])
        assert sunk["size"] == len(house.trail())

    def test_a_name_is_never_given_twice(self, house: House) -> None:
        """Names are not reused, after deactivation either (USR-18)."""
        house.register("m.rossi")
        body = {"username": "m.rossi", "display_name": "Another", "email": "a@example.org"}
        refused(house.admin.post("/v1/people", json=body), 409, "already_exists")
        expect(house.admin.post("/v1/people/m.rossi/deactivation"), 200)
        refused(house.admin.post("/v1/people", json=body), 409, "already_exists")

    def test_a_field_that_does_not_fit_is_named(self, house: House) -> None:
        """Invalid values and unknown keys are 422 with the field; nothing is registered (G2)."""
        names = ("M.Rossi", "a", ".rossi", "x" * 41, "snose", "unknown", "client-of-mine", "m.rossi\n", 7)
        wrong: list[tuple[str, object]] = [("username", name) for name in names]
        wrong += [("display_name", ""), ("display_name", "two\nlines"), ("display_name", "\ud800")]
        wrong += [("email", "nowhere"), ("email", 5), ("email", None), ("extra", "x")]
        for field, value in wrong:
            body = {"username": "m.rossi", "display_name": "Dr Rossi", "email": "m@example.org", field: value}
            problem = refused(house.admin.post("/v1/people", json=body), 422, "invalid")
            assert [fault["field"] for fault in problem["errors"]] == [field], value
        assert [person["username"] for person in expect(house.admin.get("/v1/people"), 200)["items"]] == ["admin"]

    def test_a_deactivated_account_is_out_at_once_and_for_good(self, house: House) -> None:
        """Deactivation ends live tokens and is said as a wrong password to who tries again (USR-06, USR-18)."""
        doctor = house.person("investigator")
        token = doctor.token()
        answer = expect(house.admin.post(f"/v1/people/{doctor.username}/deactivation"), 200)
        assert answer["is_active"] is False
        refused(house.send("GET", "/v1/me", token=token), 401, "not_authenticated")
        refused(sign_in(house, doctor.username, doctor.password), 401, "wrong_credentials")
        refused(house.admin.post(f"/v1/people/{doctor.username}/deactivation"), 409, "illegal_transition")
        refused(house.admin.post(f"/v1/people/{doctor.username}/reset"), 409, "illegal_transition")
        body = {"role": "monitor", "study_code": STUDY}
        refused(house.admin.post(f"/v1/people/{doctor.username}/grants", json=body), 409, "illegal_transition")

    def test_the_last_service_admin_stays(self, house: House) -> None:
        """Nobody can leave the deployment without an administrator, who recovers lost factors (EUB-15)."""
        second = house.person("service_admin", None)
        expect(house.admin.post(f"/v1/people/{second.username}/deactivation"), 200)
        refused(house.admin.post("/v1/people/admin/deactivation"), 409, "conflict")
        [grant] = expect(house.admin.get("/v1/people/admin/grants"), 200)["items"]
        refused(house.admin.delete(f"/v1/people/admin/grants/{grant['grant_id']}"), 409, "conflict")
        expect(house.admin.get("/v1/people"), 200)

    def test_two_admins_who_switch_each_other_off_at_once_leave_one(self, house: House) -> None:
        """A race cannot remove the last administrator (EUB-15)."""
        second = house.person("service_admin", None)
        pairs = [(house.admin, second.username), (second, "admin")]
        for caller, _ in pairs:
            caller.token()
        with ThreadPoolExecutor(2) as pool:
            answers = list(pool.map(lambda pair: pair[0].post(f"/v1/people/{pair[1]}/deactivation"), pairs))
        # The slower one is refused: as the last one's remover, or as somebody who is out already.
        statuses = sorted(answer.status_code for answer in answers)
        assert statuses in ([200, 401], [200, 409])

    def test_accounts_belong_to_the_service_admin_alone(self, house: House) -> None:
        """Nobody is 401, another role 403 and entered, both before 422 (USR-02, USR-16, G2)."""
        calls: list[tuple[str, str, dict[str, Any] | None]] = [
            ("POST", "/v1/people", {"username": "x1", "display_name": "X", "email": "x@example.org"}),
            ("GET", "/v1/people", None),
            ("POST", "/v1/people/admin/deactivation", None),
            ("POST", "/v1/people/admin/reset", None),
            ("POST", "/v1/people/admin/grants", {"role": "monitor", "study_code": STUDY}),
            ("GET", "/v1/people/admin/grants", None),
            ("DELETE", "/v1/people/admin/grants/3f0c9b5e-6f0e-4c5e-9a59-3d1c6a4f2b10", None),
            ("POST", "/v1/clients", {"name": "EDC"}),
            ("POST", "/v1/clients/client-x/grants", {"role": "edc_client", "study_code": STUDY}),
            ("POST", "/v1/clients/client-x/deactivation", None),
            ("GET", "/v1/clients/client-x/grants", None),
            ("DELETE", "/v1/clients/client-x/grants/3f0c9b5e-6f0e-4c5e-9a59-3d1c6a4f2b10", None),
        ]
        house.register_study()
        study_admin = house.study_admins[STUDY]
        for method, path, body in calls:
            for sent in (body, {"wrong": 1}) if body is not None else (None,):
                refused(house.send(method, path, json=sent), 401, "not_authenticated")
                refused(study_admin.request(method, path, json=sent), 403, "forbidden")
                said = last(house.trail())
                assert (said["actor"], said["outcome"]) == (study_admin.username, "denied")
                assert said["after"] == {"code": "forbidden"}

    def test_an_unknown_account_is_missing(self, house: House) -> None:
        """An object that is not there is 404, a machine is no person, and the reverse (G2)."""
        edc, body = house.machine(), {"role": "monitor", "study_code": STUDY}
        for path, sent in (("reset", None), ("deactivation", None), ("grants", body)):
            refused(house.admin.post(f"/v1/people/nobody/{path}", json=sent), 404, "not_found")
            refused(house.admin.post(f"/v1/people/{edc.client_id}/{path}", json=sent), 404, "not_found")
            assert last(house.trail())["outcome"] == "denied"
        refused(house.admin.post("/v1/clients/admin/deactivation"), 404, "not_found")
        refused(house.admin.get("/v1/people/nobody/grants"), 404, "not_found")

    def test_an_answer_with_a_secret_is_never_replayed(self, house: House) -> None:
        """POSTs that answer secrets ignore the Idempotency-Key (C4)."""
        body = {"username": "m.rossi", "display_name": "Dr Rossi", "email": "m@example.org"}
        headers = {"Idempotency-Key": "one"}
        expect(house.admin.post("/v1/people", json=body, headers=headers), 201)
        refused(house.admin.post("/v1/people", json=body, headers=headers), 409, "already_exists")


def twice(caller: Caller, path: str, body: dict[str, Any] | None = None) -> tuple[Response, Response]:
    """Send one request twice under one key."""
    headers = {"Idempotency-Key": "one"}
    return caller.post(path, json=body, headers=headers), caller.post(path, json=body, headers=headers)


class TestGrants:
    def test_a_repeated_grant_and_a_repeated_deactivation_are_answered_from_store(self, house: House) -> None:
        """An Idempotency-Key is honoured, for people and machines; the repetition does nothing and is entered (C4)."""
        doctor, edc = house.person(None), house.machine(None)
        roles = ((doctor, {"role": "monitor", "study_code": STUDY}), (edc, {"role": "edc_client", "study_code": STUDY}))
        for caller, body in roles:
            path = house.account_path(caller)
            for part, sent, status in (("grants", body, 201), ("deactivation", None, 200)):
                first, again = twice(house.admin, f"{path}/{part}", sent)
                assert expect(again, 200) == expect(first, status)
                assert again.headers["idempotency-replayed"] == "true"
                assert house.trail()[-1]["outcome"] == "replayed"
            assert len(expect(house.admin.get(f"{path}/grants"), 200)["items"]) == 1

    def test_a_grant_is_effective_at_once_and_so_is_its_end(self, house: House) -> None:
        """A live token feels grant and revocation at its next request (USR-06), and both are in the study's log (USR-05)."""
        house.register_study()
        doctor = house.person(None)
        refused(doctor.get(f"/v1/studies/{STUDY}"), 404, "not_found")
        grant_id = house.grant(doctor, "investigator")
        expect(doctor.get(f"/v1/studies/{STUDY}"), 200)
        given = [entry for entry in house.trail(STUDY) if entry["action"] == "grant:create"][-1]
        role = {"role": "investigator", "study_code": STUDY, "site_code": "01"}
        assert given["actor"] == "admin"
        assert given["target"] == {"username": doctor.username, **role}
        assert given["after"] == {"grant_id": grant_id, **role}
        expect(house.admin.delete(f"/v1/people/{doctor.username}/grants/{grant_id}"), 204)
        refused(doctor.get(f"/v1/studies/{STUDY}"), 404, "not_found")
        taken = house.trail(STUDY)[-1]
        assert (taken["action"], taken["before"]) == ("grant:revoke", role)
        refused(house.admin.delete(f"/v1/people/{doctor.username}/grants/{grant_id}"), 404, "not_found")

    def test_who_was_unblinded_stays_so(self, house: House) -> None:
        """Whoever held an unblinded role in a study cannot hold a blinded one there later; elsewhere they can. (B10, A7, CUS-02)"""
        house.register_study()
        person = house.person("statistician")
        path = f"/v1/people/{person.username}/grants"
        (grant,) = expect(house.admin.get(path), 200)["items"]
        expect(house.admin.delete(f"{path}/{grant['grant_id']}"), 204)
        body = {"role": "coordinator", "study_code": STUDY, "site_code": "01"}
        refused(house.admin.post(path, json=body), 409, "grant_conflict")
        expect(house.admin.post(path, json={"role": "monitor", "study_code": "OTHER"}), 201)
        expect(house.admin.post(path, json={"role": "list_approver", "study_code": STUDY}), 201)

    def test_signing_out_ends_the_whole_family(self, house: House) -> None:
        """Signing out with the password's token ends the stepped-up one too, and the other way about. (USR-12, USR-13)"""
        person = house.person("monitor", study="OTHER")
        for ending in (person.token, person.elevated_token):
            tokens = [person.token(), person.elevated_token()]
            headers = {"Authorization": f"Bearer {ending()}"}
            assert house.client.request("DELETE", "/v1/sessions/current", headers=headers).status_code == 204
            for token in tokens:
                answer = house.client.request("GET", "/v1/me", headers={"Authorization": f"Bearer {token}"})
                assert answer.status_code == 401
            person.forget_token()

    def test_a_grant_in_a_study_yet_to_be_registered_is_in_the_services_log(self, house: House) -> None:
        """The first study administrator can register the study (USR-05, E1)."""
        house.person("study_admin", "FUTURE-1")
        assert last(house.trail())["target"]["study_code"] == "FUTURE-1"
        house.register_study("FUTURE-1", ())

    def test_a_role_must_fit_account_study_and_site(self, house: House) -> None:
        """Site roles have a site, study roles a study, machines one role (USR-02, USR-15)."""
        doctor = house.person(None)
        wrong: list[tuple[dict[str, Any], str]] = [
            ({"role": "investigator", "study_code": STUDY}, "site_code"),
            ({"role": "unblinded_pharmacist", "study_code": STUDY, "site_code": None}, "site_code"),
            ({"role": "monitor", "study_code": STUDY, "site_code": "01"}, "site_code"),
            ({"role": "monitor"}, "study_code"),
            ({"role": "service_admin", "study_code": STUDY}, "study_code"),
            ({"role": "edc_client", "study_code": STUDY}, "role"),
            ({"role": "emperor", "study_code": STUDY}, "role"),
            ({"role": ["monitor"], "study_code": STUDY}, "role"),
            ({"role": "monitor", "study_code": "no/slash"}, "study_code"),
        ]
        for body, field in wrong:
            problem = refused(house.admin.post(f"/v1/people/{doctor.username}/grants", json=body), 422, "invalid")
            assert [fault["field"] for fault in problem["errors"]] == [field], body

    def test_a_site_of_a_registered_study_must_be_there(self, house: House) -> None:
        """An unknown site in the body is 404, after 422 and before 409 (G2)."""
        house.register_study()
        doctor = house.person(None)
        body = {"role": "investigator", "study_code": STUDY, "site_code": "99"}
        refused(house.admin.post(f"/v1/people/{doctor.username}/grants", json=body), 404, "not_found")

    @pytest.mark.parametrize(
        ("first", "second"),
        [("investigator", "statistician"), ("supply_manager", "monitor"), ("safety_officer", "coordinator")],
    )
    def test_blinded_and_unblinded_roles_exclude_each_other_in_one_study(
        self, house: House, first: str, second: str
    ) -> None:
        """In either order, in one study, for one person; another study is another matter (B10, BLD-17)."""
        for one, other in ((first, second), (second, first)):
            person = house.person(one)
            body = {"role": other, "study_code": STUDY}
            if other in {"investigator", "coordinator"}:
                body["site_code"] = "01"
            path = f"/v1/people/{person.username}/grants"
            refused(house.admin.post(path, json=body), 409, "grant_conflict")
            house.grant(person, other, "OTHER-STUDY")
            expect(house.admin.delete(f"{path}/{person.grant_ids[0]}"), 204)
            # Who was blinded may be unblinded from now on; the other way about, what was seen stays known.
            expect(house.admin.post(path, json=body), 201 if Role(other) in UNBLINDED_ROLES else 409)

    def test_administration_excludes_every_role_of_every_study(self, house: House) -> None:
        """Administrators hold no trial role (B10, USR-16)."""
        body = {"role": "monitor", "study_code": STUDY}
        refused(house.admin.post("/v1/people/admin/grants", json=body), 409, "grant_conflict")
        monitor = house.person("monitor")
        path = f"/v1/people/{monitor.username}/grants"
        refused(house.admin.post(path, json={"role": "service_admin"}), 409, "grant_conflict")

    def test_conflicting_grants_at_once_leave_one(self, house: House) -> None:
        """A race cannot make somebody blinded and unblinded (B10)."""
        person = house.person(None)
        house.admin.token()
        bodies = [{"role": role, "study_code": STUDY} for role in ("monitor", "statistician") * 3]
        with ThreadPoolExecutor(6) as pool:
            answers = list(
                pool.map(lambda body: house.admin.post(f"/v1/people/{person.username}/grants", json=body), bodies)
            )
        codes = [answer.json().get("code", answer.status_code) for answer in answers]
        assert codes.count(201) == 1
        assert codes.count("already_exists") == 2
        assert codes.count("grant_conflict") == 3

    def test_a_grant_by_somebody_whose_clock_is_ahead_counts(self, house: House) -> None:
        """An act that began before another one granted something, and waited for it, sees what it granted (B10)."""
        monitor = house.person("monitor")
        house.clock.advance(seconds=-1)
        path = f"/v1/people/{monitor.username}/grants"
        refused(house.admin.post(path, json={"role": "monitor", "study_code": STUDY}), 409, "already_exists")
        refused(house.admin.post(path, json={"role": "statistician", "study_code": STUDY}), 409, "grant_conflict")

    def test_the_same_grant_twice_is_refused(self, house: House) -> None:
        """One grant, one row; at another site it is another grant (USR-05)."""
        doctor = house.person("investigator")
        body = {"role": "investigator", "study_code": STUDY, "site_code": "01"}
        path = f"/v1/people/{doctor.username}/grants"
        refused(house.admin.post(path, json=body), 409, "already_exists")
        expect(house.admin.post(path, json={**body, "site_code": "02"}), 201)

    def test_the_grants_of_any_past_day_can_be_listed(self, house: House) -> None:
        """The list of permissions is reproducible for any past date (USR-19)."""
        doctor = house.person("investigator")
        path = f"/v1/people/{doctor.username}/grants"
        house.clock.advance(days=1)
        expect(house.admin.delete(f"{path}/{doctor.grant_ids[0]}"), 204)
        house.clock.advance(days=1)

        def roles(query: str = "") -> list[str]:
            return [grant["role"] for grant in expect(house.admin.get(path + query), 200)["items"]]

        assert roles() == []
        assert roles("?at=2026-11-21") == []
        assert roles("?at=2026-11-22") == ["investigator"]
        assert roles("?at=2026-11-22T07:00:00Z") == []
        assert roles("?at=2026-11-22T10:00:00%2B00:00") == ["investigator"]
        assert roles("?at=2026-11-23") == []
        [grant] = expect(house.admin.get(path, at="2026-11-22"), 200)["items"]
        assert (grant["granted_by"], grant["revoked_by"]) == ("admin", "admin")
        assert grant["revoked_at"].startswith("2026-11-23T")
        refused(house.admin.get(path, at="yesterday"), 422, "invalid")


class TestMachineClients:
    def token(self, house: House, form: dict[str, str], basic: tuple[str, str] | None = None) -> Response:
        headers = {}
        if basic is not None:
            headers["Authorization"] = "Basic " + base64.b64encode(":".join(basic).encode()).decode()
        return house.client.post("/oauth2/token", data=form, headers=headers)

    def test_credentials_give_a_token_by_form_and_by_basic(self, house: House) -> None:
        """RFC 6749, 4.4 and 5.1; the token names the client in the trail (USR-15)."""
        edc = house.machine()
        grant = {"grant_type": "client_credentials"}
        for response in (
            self.token(house, {**grant, "client_id": edc.client_id, "client_secret": edc.client_secret}),
            self.token(house, grant, (edc.client_id, edc.client_secret)),
        ):
            answer = expect(response, 200)
            assert answer.keys() == {"access_token", "token_type", "expires_in"}
            assert (answer["token_type"], answer["expires_in"]) == ("Bearer", 1800)
            assert response.headers["cache-control"] == "no-store"
        entry = house.trail()[-1]
        assert (entry["actor"], entry["client"], entry["action"]) == (edc.client_id, edc.client_id, "token:create")

    def test_errors_are_those_of_rfc_6749(self, house: House) -> None:
        """RFC 6749, 5.2: `error`, 400 or 401 with a challenge for Basic."""
        edc = house.machine()
        grant = {"grant_type": "client_credentials"}
        good = (edc.client_id, edc.client_secret)
        cases: list[tuple[dict[str, str], tuple[str, str] | None, int, str]] = [
            ({}, good, 400, "invalid_request"),
            ({"grant_type": "password"}, good, 400, "unsupported_grant_type"),
            (grant, None, 401, "invalid_client"),
            (grant, (edc.client_id, "wrong"), 401, "invalid_client"),
            (grant, ("client-nobody", edc.client_secret), 401, "invalid_client"),
            (grant, ("\x00", "\x00"), 401, "invalid_client"),
            ({**grant, "client_secret": edc.client_secret}, good, 400, "invalid_request"),
            ({**grant, "client_id": "admin", "client_secret": house.admin.password}, None, 401, "invalid_client"),
        ]
        for form, basic, status, error in cases:
            response = self.token(house, form, basic)
            assert expect(response, status) == {"error": error}
            assert response.headers["cache-control"] == "no-store"
            assert ("www-authenticate" in response.headers) == (status == 401)
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        twice = house.client.post("/oauth2/token", content="grant_type=a&grant_type=a", headers=headers)
        assert expect(twice, 400) == {"error": "invalid_request"}
        headers["Authorization"] = "Basic ???"
        unreadable = house.client.post("/oauth2/token", content="grant_type=client_credentials", headers=headers)
        assert expect(unreadable, 401) == {"error": "invalid_client"}

    def test_a_wrong_secret_is_entered_under_its_client_and_an_unknown_client_is_noise(self, house: House) -> None:
        """A failed login of a known client is an entry; strangers are counted (E1)."""
        edc = house.machine()
        grant = {"grant_type": "client_credentials"}
        house.deployment.noise.take()
        self.token(house, grant, (edc.client_id, "wrong"))
        said = last(house.trail())
        assert (said["action"], said["outcome"]) == ("token:create", "denied")
        assert said["target"] == {"client_id": edc.client_id}
        entries = len(house.trail())
        self.token(house, grant, ("client-nobody", "wrong"))
        assert len(house.trail()) == entries
        assert house.deployment.noise.take() == {"unknown": 1}

    def test_a_token_ends_after_half_an_hour_and_with_its_client(self, house: House) -> None:
        """Tokens are opaque and revocable at once (USR-06)."""
        edc = house.machine()
        token = edc.token()
        house.clock.advance(minutes=30)
        refused(house.send("GET", "/v1/me", token=token), 401, "not_authenticated")
        token = edc.token()
        expect(house.send("GET", "/v1/me", token=token), 200)
        answer = expect(house.admin.post(f"/v1/clients/{edc.client_id}/deactivation"), 200)
        assert (answer["name"], answer["is_active"]) == ("EDC", False)
        refused(house.send("GET", "/v1/me", token=token), 401, "not_authenticated")
        wrong = self.token(house, {"grant_type": "client_credentials"}, (edc.client_id, edc.client_secret))
        assert expect(wrong, 401) == {"error": "invalid_client"}

    def test_a_machine_holds_edc_client_and_nothing_else(self, house: House) -> None:
        """One credential per system, of narrow scope (USR-15)."""
        edc = house.machine(None)
        path = f"/v1/clients/{edc.client_id}/grants"
        for body in ({"role": "monitor", "study_code": STUDY}, {"role": "service_admin"}):
            refused(house.admin.post(path, json=body), 422, "invalid")
        grant_id = house.grant(edc, "edc_client")
        assert [grant["role"] for grant in expect(house.admin.get(path), 200)["items"]] == ["edc_client"]
        expect(house.admin.delete(f"{path}/{grant_id}"), 204)
        assert expect(house.admin.get(path), 200)["items"] == []


class TestExpiredPasswords:
    def test_an_expired_password_leaves_the_code_break_the_step_up_and_its_own_change(self, house: House) -> None:
        """An expired password stands before nothing that an emergency needs (D1, EUB-15)."""
        house.register_study()
        house.restart(password_max_age_days=90)
        doctor = house.person("investigator")
        house.clock.advance(days=91)
        path = f"/v1/studies/{STUDY}"
        refused(doctor.get(path), 403, "password_change_required")
        assert expect(doctor.get("/v1/me", step_up=True), 200)["password_expired"] is True
        expect(doctor.post("/v1/me/password", json={"current": doctor.password, "new": PASSWORD}), 200)
        doctor.password = PASSWORD
        expect(doctor.get(path), 200)


def test_no_secret_reaches_the_trail_the_sink_the_output_or_the_tables(
    house: House, capsys: pytest.CaptureFixture[str]
) -> None:
    """Passwords, tokens, codes and factors are shown once and kept nowhere in clear (F1, BLD-13, USR-11)."""
    doctor = house.register("m.rossi")
    issued = doctor.password
    house.take_over(doctor)
    house.grant(doctor, "investigator")
    code = doctor.code()
    elevated = expect(house.send("POST", "/v1/sessions/step-up", token=doctor.token(), json={"otp": code}), 201)[
        "access_token"
    ]
    sign_in(house, "m.rossi", "a-wrong-password-typed")
    edc = house.machine()
    secrets = [issued, doctor.password, doctor.totp_secret, doctor.token(), elevated, edc.client_secret, edc.token()]
    secrets += ["a-wrong-password-typed", base64.b32decode(doctor.totp_secret).hex()]
    sink = house.settings.checkpoint_file.read_text()
    output = capsys.readouterr()
    written = b"\n".join(house.bodies()).decode() + sink + output.out + output.err + dump(house)
    for secret in secrets:
        assert secret not in written
    assert f'"{code}"' not in written
    assert doctor.username in written


def dump(house: House) -> str:
    """Return everything that the tables hold, as text."""
    with house.deployment.database.transaction() as tx:
        rows = [row for table in metadata.sorted_tables for row in tx.execute(table.select())]
    return "\n".join(repr(tuple(row)) for row in rows)
