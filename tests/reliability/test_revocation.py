"""What is revoked is refused at once, by every worker and on connections that are kept open, to tokens that are alive (USR-06)."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from app.cli.trial import Machine, Person, Trial, sleep_until_next_step
from app.domain.words import Role
from app.services.people import ASSERTION_TYPE
from tests.authenticator import ORIGIN, RP_ID, Authenticator
from tests.reliability import builds
from tests.reliability.service import Service
from tests.reliability.workers import AFTER, Callers, Probe
from tests.signers import signer

AUDIENCE: Final = "https://snose.hospital.example"
Json = Any
Ask = Callable[[], Probe]
Revoke = Callable[[], None]


@dataclass
class Hospital:
    """A service with a study in draft: there is nothing to break yet, and whoever may ask is told 422 instead of 401 or 404."""

    service: Service
    trial: Trial
    second: Person
    """The other administrator, without whom no outside issuer is in force."""
    _joined: int = 0
    _made: int = 0
    _issuers: dict[str, str] = field(default_factory=dict)

    # -- those who ask

    def person(self) -> Person:
        """Return an investigator who is signed in with a password."""
        self._joined += 1
        return self.trial.join(f"doctor.{self._joined}", Role.INVESTIGATOR)

    def stepped_up(self) -> Person:
        who = self.person()
        self.trial.prove(who)
        return who

    def by_passkey(self) -> tuple[Person, str]:
        """Return an investigator, and the token of a sign-in by a passkey."""
        who, device = self.stepped_up(), Authenticator(f"device {self._joined}")
        options = self.own(who.stepped_up, "POST", "/v1/me/passkeys/challenge")["options"]
        body = {"name": "Phone", "credential": device.create(options)}
        self.own(who.stepped_up, "POST", "/v1/me/passkeys", body)
        options = self.own(None, "POST", "/v1/sessions/challenge", {})["options"]
        signed = {"credential": device.get(options)}
        return who, self.own(None, "POST", "/v1/sessions/passkey", signed)["access_token"]

    def machine(self) -> Machine:
        """Return a machine client with a token that it was given for its secret."""
        machine = self.trial.join_machine("EDC system")
        self.trial._get_machine_token(machine)
        return machine

    def by_key(self) -> tuple[Machine, str]:
        """Return a machine client with a token for what it has signed with its key, and the path of that key."""
        machine, pair = self.trial.join_machine("EDC system"), signer("ES256", "client")
        keys = f"/v1/clients/{machine.client_id}/keys"
        key_id = self.asked("POST", keys, {"jwk": pair.jwk})["key_id"]
        said = {"iss": machine.client_id, "sub": machine.client_id, "aud": self.service.base_url, **self._times()}
        form = {"grant_type": "client_credentials", "client_assertion_type": ASSERTION_TYPE}
        answer = self.trial.client.request("POST", "/oauth2/token", data={**form, "client_assertion": pair.sign(said)})
        machine.token = answer.json()["access_token"]
        return machine, f"{keys}/{key_id}"

    def issuer(self, name: str) -> str:
        """Return the path of an outside issuer that is in force."""
        if name not in self._issuers:
            made = self.asked("POST", "/v1/issuers", self.registration(name))["issuer_id"]
            self._issuers[name] = f"/v1/issuers/{made}"
            self.confirmed(self._issuers[name])
        return self._issuers[name]

    def registration(self, name: str, key: str = "") -> Json:
        keys = {"keys": [signer("ES256", key).jwk]}
        return {"issuer": name, "audience": AUDIENCE, "jwks": keys, "proof_acr_values": ["mfa"]}

    def linked(self, issuer: str, account: Person | Machine) -> tuple[Callable[[], str], str]:
        """Return what gives new tokens of an outside issuer for an account, and the path of the link."""
        self.issuer(issuer)
        named = {"client_id": account.client_id} if isinstance(account, Machine) else {"username": account.username}
        subject = next(iter(named.values()))
        made = self.asked("POST", "/v1/identity-links", {"issuer": issuer, "subject": subject, **named})["link_id"]
        self.confirmed(f"/v1/identity-links/{made}")

        def token() -> str:
            said = {"iss": issuer, "sub": subject, "aud": AUDIENCE, "acr": "mfa", "auth_time": time.time()}
            return signer("ES256", "").sign({**said, **self._times()}, {"typ": "at+jwt"})

        return token, f"/v1/identity-links/{made}"

    # -- what is asked

    def asked(self, method: str, path: str, body: Json = None) -> Json:
        """Return what the first administrator is answered."""
        answer = self.trial.ask(self.trial.admin, method, path, body)
        return answer.json() if answer.content else None

    def confirmed(self, path: str) -> None:
        self.trial.ask(self.second, "POST", f"{path}/confirmation", step_up=True)

    def own(self, token: str | None, method: str, path: str, body: Json = None) -> Json:
        headers = {"Authorization": f"Bearer {token}"} if token is not None else {}
        answer = self.trial.ask(None, method, path, body, headers=headers)
        return answer.json() if answer.content else None

    def signed_in_again(self, who: Person) -> str:
        credentials = {"username": who.username, "password": who.password}
        return str(self.own(None, "POST", "/v1/sessions", credentials)["access_token"])

    def grant_of(self, account: Person | Machine) -> str:
        """Return the path of the one grant of an account."""
        grants = f"{_path_of(account)}/grants"
        [grant] = self.asked("GET", grants)["items"]
        return f"{grants}/{grant['grant_id']}"

    def reading(self, token: str, refused: int = 401) -> Ask:
        return lambda: Probe("GET", self.trial.study, token, 200, refused)

    def reading_anew(self, new: Callable[[], str]) -> Ask:
        """Ask with another token each time, none of which was seen before."""
        return lambda: Probe("GET", self.trial.study, new(), 200, 401)

    def breaking(self, token: str, refused: int = 401) -> Ask:
        return lambda: Probe("POST", f"{self.trial.study}/code-breaks", token, 422, refused)

    def _times(self) -> Json:
        self._made += 1
        now = time.time()
        return {"iat": now, "exp": now + 50, "jti": f"{self._made}-{time.monotonic_ns()}"}


def _path_of(account: Person | Machine) -> str:
    if isinstance(account, Machine):
        return f"/v1/clients/{account.client_id}"
    return f"/v1/people/{account.username}"


# -- every way to take something back, with the tokens that it was taken from


def grant_of_a_password_session(at: Hospital) -> tuple[Ask, Revoke]:
    who = at.person()
    grant = at.grant_of(who)
    return at.reading(who.token, 404), lambda: at.asked("DELETE", grant)


def grant_of_a_stepped_up_session(at: Hospital) -> tuple[Ask, Revoke]:
    who = at.stepped_up()
    grant = at.grant_of(who)
    return at.breaking(who.stepped_up, 404), lambda: at.asked("DELETE", grant)


def grant_of_a_passkey_session(at: Hospital) -> tuple[Ask, Revoke]:
    who, token = at.by_passkey()
    grant = at.grant_of(who)
    return at.breaking(token, 404), lambda: at.asked("DELETE", grant)


def account_of_a_stepped_up_session(at: Hospital) -> tuple[Ask, Revoke]:
    who = at.stepped_up()
    return at.breaking(who.stepped_up), lambda: at.asked("POST", f"/v1/people/{who.username}/deactivation")


def account_of_a_passkey_session(at: Hospital) -> tuple[Ask, Revoke]:
    who, token = at.by_passkey()
    return at.reading(token), lambda: at.asked("POST", f"/v1/people/{who.username}/deactivation")


def factors_after_a_loss(at: Hospital) -> tuple[Ask, Revoke]:
    who, token = at.by_passkey()
    return at.breaking(token), lambda: at.asked("POST", f"/v1/people/{who.username}/reset")


def sessions_by_an_administrator(at: Hospital) -> tuple[Ask, Revoke]:
    who = at.stepped_up()
    return at.breaking(who.stepped_up), lambda: at.asked("DELETE", f"/v1/people/{who.username}/sessions")


def sessions_by_their_owner(at: Hospital) -> tuple[Ask, Revoke]:
    who = at.person()
    other = at.signed_in_again(who)
    return at.reading(who.token), lambda: at.own(other, "DELETE", "/v1/me/sessions")


def the_session_that_was_stepped_up_from(at: Hospital) -> tuple[Ask, Revoke]:
    who = at.stepped_up()
    return at.breaking(who.stepped_up), lambda: at.own(who.token, "DELETE", "/v1/sessions/current")


def password_by_its_owner(at: Hospital) -> tuple[Ask, Revoke]:
    who = at.stepped_up()
    other = at.signed_in_again(who)
    body = {"current": who.password, "new": f"{who.password}, at dusk"}
    return at.breaking(who.stepped_up), lambda: at.own(other, "POST", "/v1/me/password", body)


def grant_of_a_machine(at: Hospital) -> tuple[Ask, Revoke]:
    machine = at.machine()
    grant = at.grant_of(machine)
    return at.reading(machine.token, 404), lambda: at.asked("DELETE", grant)


def machine(at: Hospital) -> tuple[Ask, Revoke]:
    client = at.machine()
    return at.reading(client.token), lambda: at.asked("POST", f"/v1/clients/{client.client_id}/deactivation")


def secret_of_a_machine(at: Hospital) -> tuple[Ask, Revoke]:
    client = at.machine()
    secrets = f"/v1/clients/{client.client_id}/secrets"
    [kept] = at.asked("GET", secrets)["items"]
    return at.reading(client.token), lambda: at.asked("DELETE", f"{secrets}/{kept['fingerprint']}")


def key_of_a_machine(at: Hospital) -> tuple[Ask, Revoke]:
    client, key = at.by_key()
    return at.reading(client.token), lambda: at.asked("DELETE", key)


def link_of_a_person(at: Hospital) -> tuple[Ask, Revoke]:
    new, link = at.linked("https://login.one.example", at.person())
    return at.breaking(new()), lambda: at.asked("DELETE", link)


def link_under_ever_new_tokens(at: Hospital) -> tuple[Ask, Revoke]:
    new, link = at.linked("https://login.one.example", at.person())
    return at.reading_anew(new), lambda: at.asked("DELETE", link)


def grant_of_an_outside_person(at: Hospital) -> tuple[Ask, Revoke]:
    who = at.person()
    new, _link = at.linked("https://login.one.example", who)
    grant = at.grant_of(who)
    return at.breaking(new(), 404), lambda: at.asked("DELETE", grant)


def account_under_ever_new_tokens(at: Hospital) -> tuple[Ask, Revoke]:
    who = at.person()
    new, _link = at.linked("https://login.one.example", who)
    return at.reading_anew(new), lambda: at.asked("POST", f"/v1/people/{who.username}/deactivation")


def machine_of_an_outside_issuer(at: Hospital) -> tuple[Ask, Revoke]:
    client = at.trial.join_machine("EDC system")
    new, _link = at.linked("https://login.one.example", client)
    return at.reading(new()), lambda: at.asked("POST", f"/v1/clients/{client.client_id}/deactivation")


def issuer(at: Hospital) -> tuple[Ask, Revoke]:
    new, _link = at.linked("https://login.two.example", at.person())
    return at.breaking(new()), lambda: at.asked("DELETE", at.issuer("https://login.two.example"))


def issuer_under_ever_new_tokens(at: Hospital) -> tuple[Ask, Revoke]:
    new, _link = at.linked("https://login.three.example", at.person())
    return at.reading_anew(new), lambda: at.asked("DELETE", at.issuer("https://login.three.example"))


def key_of_an_issuer_under_ever_new_tokens(at: Hospital) -> tuple[Ask, Revoke]:
    name = "https://login.four.example"
    new, _link = at.linked(name, at.person())
    made = at.asked("POST", "/v1/issuers", at.registration(name, "next"))["issuer_id"]
    return at.reading_anew(new), lambda: at.confirmed(f"/v1/issuers/{made}")


REVOCATIONS: Final[Mapping[str, Callable[[Hospital], tuple[Ask, Revoke]]]] = {
    made.__name__: made
    for made in (
        grant_of_a_password_session,
        grant_of_a_stepped_up_session,
        grant_of_a_passkey_session,
        account_of_a_stepped_up_session,
        account_of_a_passkey_session,
        factors_after_a_loss,
        sessions_by_an_administrator,
        sessions_by_their_owner,
        the_session_that_was_stepped_up_from,
        password_by_its_owner,
        grant_of_a_machine,
        machine,
        secret_of_a_machine,
        key_of_a_machine,
        link_of_a_person,
        link_under_ever_new_tokens,
        grant_of_an_outside_person,
        account_under_ever_new_tokens,
        machine_of_an_outside_issuer,
        issuer,
        issuer_under_ever_new_tokens,
        key_of_an_issuer_under_ever_new_tokens,
    )
}


@pytest.fixture
def service(database_kind: str, database_url: str, tmp_path: Path) -> Iterator[Service]:
    """A service that takes passkeys, not started yet: two workers on PostgreSQL, one on SQLite."""
    passkeys = {"SNOSE_PASSKEY_RP_ID": RP_ID, "SNOSE_PASSKEY_ORIGIN": ORIGIN}
    workers = 2 if database_kind == "postgresql" else 1
    with Service(tmp_path, database_url, workers, **passkeys) as made:
        yield made


@contextmanager
def opened(service: Service, issued: str) -> Iterator[Hospital]:
    """Give the hospital of a service that runs, over one connection to one of its workers."""
    admin = Person("first.admin", "a heron at dawn", "", (Role.SERVICE_ADMIN,))
    with httpx.Client(base_url=service.base_url, timeout=60, trust_env=False) as client:
        trial = Trial(client, lambda: datetime.now(UTC), sleep_until_next_step, admin)
        trial.own(admin, issued)
        trial.join("study.admin", Role.STUDY_ADMIN)
        trial.register()
        yield Hospital(service, trial, trial.join("second.admin", Role.SERVICE_ADMIN))


def let_in_after(at: Hospital) -> dict[str, int]:
    """Return for each revocation how often somebody was let in who asked after it was answered."""
    passed = {}
    with Callers(at.service) as callers:
        everyone = len(callers.connections)
        for name, prepare in REVOCATIONS.items():
            probe, revoke = prepare(at)
            outcome = callers.ask_during(probe, revoke)
            assert (outcome.passed_before, outcome.others) == (everyone, frozenset()), (name, outcome)
            assert outcome.refused_after + outcome.passed_after >= AFTER * everyone, (name, outcome)
            passed[name] = outcome.passed_after
    return passed


def test_what_is_revoked_is_refused_at_once(service: Service) -> None:
    """From the answer on nobody is let in, on any worker, whatever one came in by: not even for a second [USR-06, USR-13]"""
    issued = service.create()
    service.start()
    with opened(service, issued) as hospital:
        assert let_in_after(hospital) == dict.fromkeys(REVOCATIONS, 0)


@pytest.mark.long
def test_a_build_that_remembers_who_asks(service: Service, tmp_path: Path) -> None:
    """The negative control: a cache of grants of a few seconds is found by every revocation of a token that it knows [USR-06]"""
    issued = service.create()
    service.start(builds.chosen(tmp_path, "remembered callers"))
    with opened(service, issued) as hospital:
        passed = let_in_after(hospital)
    assert {name for name, count in passed.items() if not count} == {name for name in REVOCATIONS if "ever_new" in name}
