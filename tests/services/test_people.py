"""Accounts below HTTP: the first administrator, cursors, races with a reset, and a trail that cannot be made durable."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from httpx2 import Response
from sqlalchemy import text

from app.domain.words import Action
from app.errors import AlreadyExists, DatabaseUnavailable, Invalid
from app.identity.tokens import token_digest
from app.services import audited, pages, people
from app.services.audited import Act
from app.services.context import RequestContext
from app.storage import people as people_rows
from tests import harness
from tests.doors import Fault, context, failing
from tests.harness import House, SeededEntropy, expect


def in_work(house: House, path: str, work: Callable[[Act], object]) -> None:
    """Run work behind the door, as a list of people does."""
    digest = token_digest(house.admin.token())
    ctx = RequestContext(house.deployment, Action.LIST_PEOPLE, digest, "request", "unknown", "GET", path)
    audited.audited(ctx, Action.LIST_PEOPLE, work)


class TestFirstAdmin:
    def test_the_service_enters_whom_it_made_under_a_checkpoint(self, house: House) -> None:
        """The first account is on record like every other, under the service's own name (USR-05, AUD-17)."""
        first = house.trail()[0]
        assert (first["actor"], first["action"], first["target"]) == ("snose", "person:create", {"username": "admin"})
        assert first["after"]["role"] == "service_admin"
        assert house.settings.checkpoint_file.read_text().count("\n") >= 1

    def test_there_is_one_first_admin_only(self, house: House) -> None:
        """Whoever holds the command line cannot make a second one in silence; nothing is entered or kept (USR-16)."""
        entries = len(house.trail())
        with pytest.raises(AlreadyExists):
            people.register_first_admin(house.deployment, "second", "Second", "second@example.org")
        assert len(house.trail()) == entries
        assert [item["username"] for item in expect(house.admin.get("/v1/people"), 200)["items"]] == ["admin"]

    def test_the_name_obeys_the_rules_of_names(self, house: House) -> None:
        """The same rules for everybody (USR-01)."""
        for name in ("Admin", "snose", "client-1", ""):
            with pytest.raises(Invalid):
                people.register_first_admin(house.deployment, name, "Somebody", "x@example.org")


class TestCursors:
    def test_a_cursor_gives_its_values_back_to_the_same_list_only(self, house: House) -> None:
        """Bound to caller, action, path and filters; no filter and an empty one are two (G2)."""
        kept: list[str] = []
        in_work(house, "/v1/a", lambda act: kept.append(pages.encode(act, ["name", 7], ["x", None])))
        [cursor] = kept
        read: list[object] = []
        in_work(house, "/v1/a", lambda act: read.append(pages.decode(act, cursor, ["x", None])))
        assert read == [["name", 7]]
        wrong: list[tuple[str, list[str | None]]] = [("/v1/b", ["x", None]), ("/v1/a", ["x", ""]), ("/v1/a", ["x"])]
        for path, filters in wrong:
            with pytest.raises(Invalid) as refused:
                in_work(house, path, partial(pages.decode, cursor=cursor, filters=filters))
            assert refused.value.field == "cursor"


class Interrupting(SeededEntropy):
    """Chance that lets something happen when it is drawn for a purpose."""

    def __init__(self) -> None:
        super().__init__()
        self.purpose = ""
        self.happens: Callable[[], object] = list

    def draw(self, purpose: str, size: int) -> bytes:
        if purpose == self.purpose:
            self.purpose = ""
            self.happens()
        return super().draw(purpose, size)


def test_a_reset_during_a_change_of_password_wins(migrated_database_url: str, tmp_path: Path) -> None:
    """What was verified before the transaction is looked at again inside it (USR-13)."""
    entropy = Interrupting()
    with harness.house(migrated_database_url, tmp_path, entropy=entropy) as house:
        doctor = house.person("investigator")
        token, issued = doctor.token(), []
        house.admin.token()

        def reset() -> None:
            issued.append(expect(house.admin.post(f"/v1/people/{doctor.username}/reset"), 200)["password"])

        # The salt of the new password is drawn after the current one was verified.
        entropy.purpose, entropy.happens = "password_salt", reset
        body = {"current": doctor.password, "new": "a new one that comes too late"}
        expect(house.send("POST", "/v1/me/password", token=token, json=body), 401)
        credentials = {"username": doctor.username, "password": "a new one that comes too late"}
        expect(house.send("POST", "/v1/sessions", json=credentials), 401)
        expect(house.send("POST", "/v1/sessions", json={**credentials, "password": issued[0]}), 201)


def test_of_two_changes_from_one_password_the_first_counts(migrated_database_url: str, tmp_path: Path) -> None:
    """The slower one verified a password that is no longer the current one (SIG-01)."""
    entropy = Interrupting()
    with harness.house(migrated_database_url, tmp_path, entropy=entropy) as house:
        doctor = house.register("m.rossi")
        token, factors = doctor.token(), []

        def change(new: str) -> Response:
            body = {"current": doctor.password, "new": new}
            return house.send("POST", "/v1/me/password", token=token, json=body)

        entropy.purpose = "password_salt"
        entropy.happens = lambda: factors.append(expect(change("the faster new password"), 200)["totp_secret"])
        assert expect(change("the slower new password"), 401)["code"] == "wrong_credentials"
        doctor.password, doctor.totp_secret = "the faster new password", factors[0]
        doctor.forget_token()
        expect(doctor.get("/v1/me", step_up=True), 200)


def test_the_last_admin_stays_when_the_other_one_leaves_at_the_same_time(house: House) -> None:
    """Who removes an administrator holds all of them first, and counts after (EUB-15)."""
    second = house.person("service_admin", None)
    house.admin.token()
    database = house.deployment.database
    with ThreadPoolExecutor(1) as pool:
        with database.transaction() as tx:
            people_rows.hold_service_admins(tx)
            leaving = people_rows.get_account(tx, second.username, is_machine=False)
            people_rows.record_deactivation(tx, leaving.principal_id, house.clock.now)
            answer = pool.submit(house.admin.post, "/v1/people/admin/deactivation")
            # On SQLite nothing else begins before this transaction ends; on PostgreSQL the rival must be seen to wait.
            while database.is_postgresql and not answer.done() and not is_anybody_waiting(house):
                time.sleep(0.01)
            waited = not answer.done()
        expect(answer.result(), 409)
    assert waited


def is_anybody_waiting(house: House) -> bool:
    with house.deployment.database.transaction() as tx:
        return bool(tx.execute(text("SELECT count(*) FROM pg_locks WHERE NOT granted")).scalar_one())


def test_no_secret_is_given_out_while_its_entry_cannot_be_made_durable(house: House) -> None:
    """A privileged act is answered only when its checkpoint is kept (custody, E2): here the sink is a folder."""
    sink = house.settings.checkpoint_file
    house.admin.token()
    sink.rename(sink.with_suffix(".away"))
    sink.mkdir()
    body = {"username": "m.rossi", "display_name": "Dr Rossi", "email": "m@example.org"}
    problem = expect(house.admin.post("/v1/people", json=body), 503)
    assert problem["code"] == "audit_unavailable"
    assert "password" not in problem
    sink.rmdir()
    sink.with_suffix(".away").rename(sink)
    # The account is there all the same, and a reset gives its password.
    expect(house.admin.post("/v1/people/m.rossi/reset"), 200)


def test_an_unknown_caller_costs_no_hash(house: House) -> None:
    """Strangers cannot make the service spend memory on passwords of accounts they may not make (G2)."""

    class NoSalt(SeededEntropy):
        def draw(self, purpose: str, size: int) -> bytes:
            assert purpose != "password_salt"
            return super().draw(purpose, size)

    house.deployment.passwords._entropy = NoSalt()
    body = {"username": "m.rossi", "display_name": "Dr Rossi", "email": "m@example.org"}
    expect(house.send("POST", "/v1/people", json=body), 401)
    expect(house.send("POST", "/v1/people/admin/reset"), 401)


class TestLastLines:
    """What other checks refuse first, and the use cases refuse all the same."""

    def test_step_up_without_a_factor(self, house: House) -> None:
        """Where a factor was cut out of the database, no code is taken. [rule D3]"""
        doctor = house.person("investigator")
        token = doctor.token()
        with house.deployment.database.transaction() as tx:
            tx.execute(text("UPDATE credential SET sealed_totp_secret = NULL"))
        answer = house.send("POST", "/v1/sessions/step-up", token=token, json={"otp": doctor.code()})
        assert expect(answer, 401)["code"] == "invalid_code"

    def test_step_that_a_rival_claimed(self, house: House, monkeypatch: pytest.MonkeyPatch) -> None:
        """A step is claimed in the database, too: who comes second has no proof. [rule D3]"""
        doctor = house.person("investigator")
        token, code = doctor.token(), doctor.code()
        monkeypatch.setattr(people_rows, "claim_one_time_step", lambda *_: False)
        answer = house.send("POST", "/v1/sessions/step-up", token=token, json={"otp": code})
        assert expect(answer, 401)["code"] == "invalid_code"

    def test_password_of_a_machine(self, house: House) -> None:
        """A machine has no password to change. [USR-05]"""
        body = {"current": "whatever it may be", "new": "heron at dawn over the water"}
        assert (
            expect(house.machine(study=None, role=None).post("/v1/me/password", json=body), 403)["code"] == "forbidden"
        )

    def test_session_that_ended_between_two_looks(self, house: House, monkeypatch: pytest.MonkeyPatch) -> None:
        """Whoever was nobody when a password was to be issued is given none. [USR-10]"""
        house.admin.token()
        monkeypatch.setattr(people, "_find_caller", lambda *_: None)
        body = {"username": "new.one", "display_name": "New One", "email": "new.one@example.org"}
        assert expect(house.admin.post("/v1/people", json=body), 401)["code"] == "not_authenticated"
        body = {"current": house.admin.password, "new": "heron at dawn over the water"}
        assert expect(house.admin.post("/v1/me/password", json=body), 401)["code"] == "not_authenticated"

    def test_turn_that_never_comes(self, house: House) -> None:
        """Tries that cannot be counted open nothing. [rule D3, USR-10]"""
        doctor = house.person("investigator")
        with failing(house, *[Fault.AGAIN] * 20) as deployment:
            ctx = context(house, Action.STEP_UP, doctor, deployment=deployment)
            with pytest.raises(DatabaseUnavailable):
                people.step_up(ctx, doctor.code())
