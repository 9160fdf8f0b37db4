"""One investigator before a real service, with all that a code break does without taken away (D1, D5, EUB-04, EUB-15).

with alone(folder, url, workers=2, subjects=["S-1"], mail=HANGING) as person:
    person.sign_in()                                     # password and one-time code, while strangers guess at the password
    answer = person.break_by_code("S-1")                 # subject, reason and the code: three inputs
    answer = person.break_by_passkey("S-1")              # in one request

The mail server refuses connections or never says a word, the outside issuer is nowhere, every other account is switched off, and
no further guess at the password is looked at.
"""

import itertools
import socket
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import httpx
from sqlalchemy import func, select, update

from app.cli.trial import Person
from app.domain.words import Role
from app.identity.codes import code_of_step, step_at
from app.storage import tables
from app.storage.database import Database
from tests.authenticator import ORIGIN, RP_ID, Authenticator, header_of
from tests.reliability import load
from tests.reliability.service import OpenStudy, Service, Sponsor
from tests.signers import signer

HANGING, REFUSING = "hanging", "refusing"
"""What is at the address of the mail server: something that takes connections and never says a word, or nothing."""
_STRANGERS: Final = 3
_GUARD_SECONDS: Final = 120.0
_REASON: Final = "serious_adverse_event"


@dataclass
class Attack:
    """Strangers who guess at one password without a pause."""

    heard: Counter[int] = field(default_factory=Counter)
    _over: threading.Event = field(default_factory=threading.Event)
    _refused: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def begin(self, service: Service, username: str) -> None:
        """Return once the strangers are told that no guess is looked at."""
        for number in range(_STRANGERS):
            self._threads.append(threading.Thread(target=self._guess, args=(service, username, number)))
            self._threads[-1].start()
        assert self._refused.wait(_GUARD_SECONDS), self.heard

    def end(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _guess(self, service: Service, username: str, number: int) -> None:
        with httpx.Client(base_url=service.base_url, timeout=60, trust_env=False) as client:
            for guess in itertools.count():
                if self._over.is_set():
                    return
                body = {"username": username, "password": f"heron {number} {guess}"}
                status = client.post("/v1/sessions", json=body).status_code
                self.heard[status] += 1
                if status == httpx.codes.TOO_MANY_REQUESTS:
                    self._refused.set()


@dataclass
class Alone:
    """The one person who is left."""

    service: Service
    study: OpenStudy
    person: Person
    device: Authenticator
    attack: Attack
    mail_server: socket.socket | None
    """What takes the connections of the one that says nothing."""
    client: httpx.Client

    @property
    def breaks(self) -> str:
        return f"/v1/studies/{self.study.code}/code-breaks"

    def sign_in(self) -> httpx.Response:
        """Ask for a session with the password and the code that the device showed last."""
        body = {"username": self.person.username, "password": self.person.password}
        # The one before, so that the present one is left for the break; when the step ends between, once more.
        answer = self._ask("/v1/sessions", {**body, "otp": self._code(-1)})
        if answer.status_code == httpx.codes.UNAUTHORIZED:
            answer = self._ask("/v1/sessions", {**body, "otp": self._code(-1)})
        self.person.token = answer.json().get("access_token", "")
        return answer

    def break_by_code(self, subject: str) -> httpx.Response:
        """Break a code with subject, reason and the one-time code that the device shows."""
        stepped_up = self._ask("/v1/sessions/step-up", {"otp": self._code(0)}, self.person.token)
        assert stepped_up.status_code == httpx.codes.CREATED, stepped_up.text
        body = {"subject_id": subject, "reason_code": _REASON}
        return self._ask(self.breaks, body, stepped_up.json()["access_token"])

    def sign_in_by_passkey(self) -> httpx.Response:
        """Ask for a session with the device alone."""
        options = self._ask("/v1/sessions/challenge", {}).json()["options"]
        answer = self._ask("/v1/sessions/passkey", {"credential": self.device.get(options)})
        self.person.token = answer.json().get("access_token", "")
        return answer

    def signed_break(self, subject: str) -> tuple[Mapping[str, Any], Mapping[str, str]]:
        """Return the body of a break, and the headers that carry what the device has signed for it."""
        body = {"subject_id": subject, "reason_code": _REASON}
        request = {"request": {"method": "POST", "path": self.breaks, "body": body}}
        options = self._ask("/v1/sessions/challenge", request, self.person.token).json()["options"]
        return body, header_of(self.device.get(options))

    def break_by_passkey(self, subject: str) -> httpx.Response:
        """Break a code with subject, reason and the device, in one request."""
        body, headers = self.signed_break(subject)
        return self.send_break(body, headers)

    def send_break(self, body: Mapping[str, Any], headers: Mapping[str, str]) -> httpx.Response:
        return self._ask(self.breaks, body, self.person.token, headers)

    def notices(self) -> tuple[int, int]:
        """Return how many notices stand in the outbox, and how many of them were delivered."""
        query = select(func.count().label("written"), func.count(tables.notice.c.delivered_at).label("delivered"))
        with _database(self.service) as database, database.transaction() as tx:
            found = tx.execute(query.select_from(tables.notice)).one()
        return found.written, found.delivered

    def _code(self, steps: int) -> str:
        return code_of_step(self.person.totp_secret, step_at(datetime.now(UTC)) + steps)

    def _ask(
        self, path: str, body: Mapping[str, Any], token: str = "", headers: Mapping[str, str] | None = None
    ) -> httpx.Response:
        bearer = {"Authorization": f"Bearer {token}"} if token else {}
        return self.client.post(path, json=body, headers={**bearer, **(headers or {})})


@contextmanager
def alone(
    folder: Path, url: str, workers: int, subjects: Sequence[str], mail: str, more: Mapping[str, str] | None = None
) -> Iterator[Alone]:
    """Give an investigator of a study with these subjects, once all the rest is down; ``more`` sets the service's processes."""
    with ExitStack() as stack:
        nothing_there = stack.enter_context(socket.socket())
        nothing_there.bind(("127.0.0.1", 0))
        mail_server = nothing_there
        if mail == HANGING:
            # The kernel takes the connections; nobody ever says a word.
            mail_server = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=64))
            mail_server.settimeout(_GUARD_SECONDS)
        service = stack.enter_context(
            Service(
                folder,
                url,
                workers,
                SNOSE_PASSKEY_RP_ID=RP_ID,
                SNOSE_PASSKEY_ORIGIN=ORIGIN,
                SNOSE_SMTP_URL=f"smtp://127.0.0.1:{mail_server.getsockname()[1]}",
                SNOSE_SMTP_SENDER="snose@hospital.example.org",
            )
        )
        issued = service.create()
        service.start(more or {})
        sponsor = Sponsor(service, issued)
        stack.callback(sponsor.close)
        study = sponsor.open_study("ALONE", ("01",), len(subjects) + 8, len(subjects) + 8)
        load.run(service.port, load.requests_for(study, subjects), 1)
        person, device = _joined(study, f"http://127.0.0.1:{nothing_there.getsockname()[1]}")
        with _database(service) as database:
            _forsake(database, person)
            attack = Attack()
            stack.callback(attack.end)
            attack.begin(service, person.username)
        client = stack.enter_context(httpx.Client(base_url=service.base_url, timeout=60, trust_env=False))
        yield Alone(service, study, person, device, attack, mail_server if mail == HANGING else None, client)


@contextmanager
def _database(service: Service) -> Iterator[Database]:
    database = Database(service.url)
    try:
        yield database
    finally:
        database.close()


def _joined(study: OpenStudy, issuer: str) -> tuple[Person, Authenticator]:
    """Return an investigator with a passkey, who usually comes by an outside issuer; notices go to the sponsor by mail."""
    trial = study.trial
    trial.ask(trial.who(Role.STUDY_ADMIN), "POST", f"{trial.study}/contacts", {"email": "safety@sponsor.example.org"})
    person, device = trial.join("doctor", Role.INVESTIGATOR), Authenticator()
    options = trial.ask(person, "POST", "/v1/me/passkeys/challenge", step_up=True).json()["options"]
    body = {"name": "Phone", "credential": device.create(options)}
    trial.ask(person, "POST", "/v1/me/passkeys", body, step_up=True)
    second = trial.join("second.admin", Role.SERVICE_ADMIN)
    registration = {
        "issuer": issuer,
        "audience": "https://snose.hospital.example",
        "jwks": {"keys": [signer("ES256").jwk]},
        "proof_acr_values": ["mfa"],
    }
    made = trial.ask(trial.admin, "POST", "/v1/issuers", registration).json()["issuer_id"]
    trial.ask(second, "POST", f"/v1/issuers/{made}/confirmation", step_up=True)
    link = {"issuer": issuer, "subject": "doctor", "username": person.username}
    made = trial.ask(trial.admin, "POST", "/v1/identity-links", link).json()["link_id"]
    trial.ask(second, "POST", f"/v1/identity-links/{made}/confirmation", step_up=True)
    return person, device


def _forsake(database: Database, person: Person) -> None:
    """Switch off every other account, the last administrator's too, and have the guesses of hours made.

    Nobody can over HTTP: the last administrator stays, and wrong tries are slowed down. That the codes of the preparation were
    used, half a minute has made good.
    """
    principal, credential, tries = tables.principal, tables.credential, tables.sign_in_tries
    here = select(principal.c.principal_id).where(principal.c.name == person.username).scalar_subquery()
    with database.transaction() as tx:
        tx.execute(update(principal).where(principal.c.principal_id != here).values(is_active=False))
        tx.execute(update(credential).where(credential.c.principal_id == here).values(totp_last_step=None))
        tx.execute(update(tries).values(guesses=80))
