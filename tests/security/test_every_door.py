"""Every door of unblinding, played over HTTP on twins whose arms are swapped: whoever has not learnt by it sees nothing of it.

Mail goes by SMTP to a server, and webhooks by HTTP to a receiver that the test starts. After the last door everybody of every role,
here, at another site and in another study, reads all there is; the twins' answers are byte-equal but for what is masked by nature
(`twins.MASKED`), and so are the mails, the webhooks, the log lines and the public trail. The kinds are those of the unblinding log:
a new one without a row in `DOORS` fails.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import pytest
from standardwebhooks.webhooks import Webhook

from app.cli.trial import Machine, Person
from app.domain.notices import Notice
from app.domain.unblinding_log import UNBLINDINGS
from app.domain.words import BLINDED_ROLES, Role
from app.services import accidents, audited, outbox
from app.services.keeper import Keeper
from tests.api.test_notices import SAFETY, SENDER
from tests.api.test_webhooks import at_the_time
from tests.hooks import Receiver, hook_receiver
from tests.mail import MailServer, mail_server
from tests.security.conftest import Places
from tests.security.leaks import _arms_of_subjects
from tests.security.script import ANONYMOUS, LIST_LENGTH, Exchange, listening, name_of, running
from tests.security.twins import (
    BASE,
    PERMUTED,
    ChosenSeed,
    Recording,
    Twin,
    TwinEntropy,
    chosen_seed,
    differences,
    permuted,
)
from tests.security.whole_script import WholePlay

ENROLLED: Final = 9
SUBJECTS: Final = (1, 2, 3, 5, 6, 7)
"""Who is unblinded by one of the doors."""


class Doors(WholePlay):
    """A study with nine subjects, in which every door of unblinding is opened once."""

    only_some: bool = False
    """Whether all read in the end, or some of each group: for a leak, and on PostgreSQL, where `test_twins.py` has all of them."""
    secret: str
    """By which the receiver knows the service."""

    def begin_with(self, receiver: Receiver) -> None:
        """Open the study, enrol, and name who is told of code breaks."""
        self.prepare()
        for number in range(1, ENROLLED + 1):
            self.enrol(number)
        admin = self.who(Role.STUDY_ADMIN)
        self.ask(admin, "POST", f"{self.study}/contacts", {"email": SAFETY})
        self.secret = self.ask(admin, "POST", f"{self.study}/webhooks", {"url": receiver.url}).json()["secret"]

    def unblind_for_safety(self) -> None:
        officer, body = self.who(Role.SAFETY_OFFICER), {"subject_id": self.subject_id(3), "reason": "SUSAR"}
        self.ask(officer, "POST", f"{self.study}/safety-unblindings", body, step_up=True)
        self.prove_anew(officer)

    def record_accident(self) -> None:
        self.ask(self.who(Role.COORDINATOR), "POST", f"{self.study}/accidental-unblindings", self.accident(5))

    def prepare_a_dose(self) -> None:
        pharmacist = self.who(Role.UNBLINDED_PHARMACIST)
        self.ask(pharmacist, "GET", f"{self.study}/subjects/{self.subject_id(2)}/preparation", step_up=True)
        self.prove_anew(pharmacist)

    def end(self) -> None:
        self.close()
        self.unblind()

    def everybody(self) -> list[Person | Machine | None]:
        """Return one of each role, those of another site and of another study, and nobody."""
        people = [one for role in Role if role is not Role.SERVICE_ADMIN for one in self.people.get(role, ())]
        if self.only_some:
            people = [one for role in WATCHED for one in self.people[role][:1]]
            return [self.admin, *people]
        found: dict[str, Person | Machine] = {name_of(one): one for one in (self.admin, *people)}
        if self.edc is not None:
            found[name_of(self.edc)] = self.edc
        return [*(found[name] for name in sorted(found)), None]

    def read_all(self) -> None:
        """Let everybody read, or try to read, all that could tell of an unblinding."""
        study = self.study
        paths = ["/v1/me", study, f"{study}/sites", f"{study}/schedules", f"{study}/allocations?limit=500"]
        paths += [f"{study}/{one}" for one in REGISTERS]
        paths += [f"{study}/sites/{self.site_code}/kits?limit=500", f"{study}/sites/{self.site_code}/worklist"]
        paths += [f"{study}/sites/{self.site_code}/call-backs?limit=500"]
        paths += [f"{study}/trail?limit=500", f"{study}/trail/checkpoint"]
        for number in SUBJECTS[: 1 if self.only_some else None]:
            subject = self.subject_id(number)
            paths += [f"{study}/subjects/{subject}/{one}" for one in ("allocation", "kits", "disclosures")]
        for who in self.everybody():
            for path in paths:
                self.tell(who, "GET", path)
        self.tell(self.who(Role.INSPECTOR), "GET", f"{study}/trail/export", step_up=True)


WATCHED: Final = (
    *(Role.MONITOR, Role.INSPECTOR, Role.STUDY_ADMIN, Role.COORDINATOR, Role.INVESTIGATOR),
    *(Role.SAFETY_OFFICER, Role.SUPPLY_MANAGER),
)
REGISTERS: Final = (
    *("code-breaks", "safety-unblindings", "accidental-unblindings", "third-party-unblindings"),
    *("interim-unblinding-requests", "unblinding-log?limit=500", "unblinding-log/export"),
    *("envelopes", "contacts", "webhooks", "drills", "delegations", "recalls"),
)


@dataclass(frozen=True)
class OneDoor:
    """How one kind of unblinding is played, and whether the sponsor and machines are told of it."""

    play: Callable[[Doors], object]
    is_told: bool = False


DOORS: Final[Mapping[str, OneDoor]] = {
    "emergency": OneDoor(lambda play: play.break_code(1), is_told=True),
    "emergency_envelope": OneDoor(Doors.open_an_envelope, is_told=True),
    "safety": OneDoor(Doors.unblind_for_safety),
    "third_party": OneDoor(lambda play: play.let_a_physician_know(6)),
    "accidental": OneDoor(Doors.record_accident),
    "interim": OneDoor(Doors.show_a_board),
    "packing_list": OneDoor(Doors.pack_and_import),
    "preparation": OneDoor(Doors.prepare_a_dose),
    "recall": OneDoor(Doors.call_back, is_told=True),
    "final": OneDoor(Doors.end),
}
"""By the kind, as the unblinding log calls it; in the order in which they are played."""


@dataclass(frozen=True)
class Played:
    """What came of one twin."""

    recording: Recording
    told: Mapping[str, list[str]]
    """What the mail server and the receiver were sent, by the kind after which it came."""
    kinds: frozenset[str]
    """Which the unblinding log tells of."""
    readers: frozenset[str]
    """Who has read, by role."""


Leak = Callable[[Doors], AbstractContextManager[object]]


def played(  # a place, a twin, and whom it tells
    url: str, folder: Path, twin: Twin, server: MailServer, receiver: Receiver, leak: Leak | None = None
) -> Played:
    chance = {"entropy": TwinEntropy(twin), "list_entropy": ChosenSeed(chosen_seed(twin, LIST_LENGTH))}
    mail = {"smtp_url": server.address, "smtp_sender": SENDER}
    with (
        permuted(LIST_LENGTH) if twin.is_permuted else nullcontext(),
        listening() as output,
        running(url, folder, **chance, **mail) as house,
    ):
        play = Doors.in_house(house)
        play.import_label = twin.kit_label
        play.only_some = leak is not None or not url.startswith("sqlite")
        play.begin_with(receiver)
        told: dict[str, list[str]] = {}
        with leak(play) if leak is not None else nullcontext():
            for kind, door in DOORS.items():
                door.play(play)
                told[kind] = news(play, server, receiver)
            begun = len(play.recorder.exchanges)
            play.read_all()
        read = play.recorder.exchanges[begun:]
        recording = Recording(
            twin,
            [*play.recorder.exchanges[:begun], *(everybodys(one) for one in read)],
            [line.replace(str(folder), "...") for line in output.log()],
            output.metrics(),
            house.bodies(),
            {},
            frozenset(),
            b"",
            (),
        )
        log = next(one for one in read if one.who.startswith(Role.INSPECTOR) and "/unblinding-log?" in one.path)
        kinds = frozenset(item["kind"] for item in json.loads(log.body)["items"])
        return Played(recording, told, kinds, frozenset(one.who.partition(" ")[0] for one in read))


def news(play: Doors, server: MailServer, receiver: Receiver) -> list[str]:
    """Have what waits sent, and return what came, each webhook verified by the library that receivers use."""
    Keeper(play.house.deployment).notice_round()
    came = []
    while not server.mails.empty():
        came.append(str(server.mails.get().get_content()))
    for _, headers, body in receiver.got:
        with at_the_time(play.house.clock.now):
            came.append(json.dumps(Webhook(play.secret).verify(body.decode(), headers)))
    receiver.got.clear()
    return came


def of_unblinding(told: list[str]) -> list[str]:
    """Return the notices but those of who was refused at a door: they come by mail, to each twin alike."""
    return [one for one in told if not one.startswith("Somebody tried")]


def said_at(one: Played, path: str) -> str:
    """Return what acts at a path were answered."""
    acts = (exchange for exchange in one.recording.exchanges if (exchange.method, exchange.status) == ("POST", 201))
    return "".join(exchange.body.decode() for exchange in acts if exchange.path.endswith(path)).replace(": ", ":")


def everybodys(exchange: Exchange) -> Exchange:
    """Return a reading as one that is compared whoever it was: of these, not only what the blinded read."""
    role = exchange.who.partition(" ")[0]
    is_compared = role in {ANONYMOUS, Role.SERVICE_ADMIN, *BLINDED_ROLES}
    return exchange if is_compared else replace(exchange, who=f"{ANONYMOUS} as {exchange.who}")


@contextmanager
def pair(places: Places, kind: str, leak: Leak | None = None) -> Iterator[tuple[Played, Played]]:
    with ExitStack() as stack:
        server, receiver = stack.enter_context(mail_server()), stack.enter_context(hook_receiver())
        both = []
        for twin in (BASE, PERMUTED):
            with places(kind) as (url, folder):
                both.append(played(url, folder, twin, server, receiver, leak))
        yield both[0], both[1]


def test_every_kind_has_its_door() -> None:
    """A kind of unblinding that nobody plays fails the build. [UNB-08]"""
    assert DOORS.keys() == {known.kind for known in UNBLINDINGS.values()}


def test_nobody_else_learns(places: Places, database_kind: str) -> None:
    """Each door was opened; who is told is told that much; all others see twins alike. [UNB-01, UNB-08, BLD-01, BLD-14]"""
    with pair(places, database_kind) as (first, second):
        assert differences(first.recording, second.recording) == []
        assert first.told == second.told
        shown = [re.findall(r'"arm_code":"(\w+)"', said_at(one, "/code-breaks")) for one in (first, second)]
        assert shown[0], "nobody was shown anything"
        assert all(one != other for one, other in zip(*shown, strict=True)), "the twins are no twins"
        assert first.kinds == second.kinds == DOORS.keys()
        for kind, door in DOORS.items():
            # A mail and a webhook for the one, nothing for the others.
            assert len(of_unblinding(first.told[kind])) == (2 if door.is_told else 0), kind
        everybody = {ANONYMOUS, *Role} if database_kind == "sqlite" else {ANONYMOUS, Role.SERVICE_ADMIN, *WATCHED}
        assert first.readers == everybody


@pytest.fixture(scope="module")
def leaky(places: Places) -> Iterator[tuple[Played, Played]]:
    """Both twins of a leaking build, played once for all tests."""
    with pair(places, "sqlite", telling) as both:
        yield both


class TestLeaks:
    """The comparison has teeth: a build that tells the arm of each act is found at each door (rule B2)."""

    def test_entries(self, leaky: tuple[Played, Played]) -> None:
        """Whatever the kind, an entry that holds a letter for the arm is found in the trail and where it is read. [AUD-05, B1]"""
        entries = [
            {text for place, text in one.recording.outputs[0] if place == "the public trail" and '"group"' in text}
            for one in leaky
        ]
        for action, known in UNBLINDINGS.items():
            told = [{text for text in texts if f'"action":"{action}"' in text} for texts in entries]
            assert told[0], known.kind
            assert told[0].isdisjoint(told[1]), known.kind
        found = differences(leaky[0].recording, leaky[1].recording)
        for role in (Role.MONITOR, Role.INVESTIGATOR, Role.SUPPLY_MANAGER):
            assert any(f"{role}.1: GET" in one.partition("\n")[0] and "/trail?" in one for one in found), role

    def test_notices(self, leaky: tuple[Played, Played]) -> None:
        """Mail and webhook that name the treatment beside the site. [EUB-12, EUB-25, BLD-14]"""
        for kind, door in DOORS.items():
            pairs = list(zip(leaky[0].told[kind], leaky[1].told[kind], strict=True))
            assert all(one != other for one, other in pairs), kind
            assert len(of_unblinding(leaky[0].told[kind])) == 2 * door.is_told, kind
        assert any(len(told) > len(of_unblinding(told)) for told in leaky[0].told.values())

    def test_register(self, leaky: tuple[Played, Played]) -> None:
        """A register that shows an arm, to every role that may read it. [BLD-01, UNB-08]"""
        found = differences(leaky[0].recording, leaky[1].recording)
        places = {one.partition("\n")[0] for one in found}
        for role in (Role.MONITOR, Role.INSPECTOR, Role.STUDY_ADMIN, Role.COORDINATOR, Role.SAFETY_OFFICER):
            assert any(f"{role}.1: GET" in one and "/accidental-unblindings" in one for one in places), role


@contextmanager
def telling(play: Doors) -> Iterator[None]:
    """A build that enters with each act that unblinds a letter for an arm, names it in notices, and shows it in a register."""
    deployment, study = play.house.deployment, play.protocol.study_code
    arms = _arms_of_subjects(deployment, study)
    compose, list_accidents = audited._compose, accidents.list_accidents

    def entered(tx: Any, ctx: Any, head: Any, note: Any, now: Any) -> Any:  # noqa: ANN401  # as it is called
        if note.action in UNBLINDINGS:
            note = replace(note, after={**(note.after or {}), "group": arms[play.subject_id(1)][0]})
        return compose(tx, ctx, head, note, now)

    def notice(topic: Any, at: Any, code: Any, mode: Any, about: Any) -> Notice:  # noqa: ANN401  # likewise
        named = {"site_code": f"{about.get('site_code')} {arms.get(about.get('subject_id'), arms[play.subject_id(1)])}"}
        return Notice(topic, at, code, mode, {**about, **named})

    def shown(*asked: Any) -> Any:  # noqa: ANN401  # likewise
        page = list_accidents(*asked)
        return replace(page, items=[replace(one, recorded_by=arms[one.subject_id]) for one in page.items])

    with (
        patch.object(audited, "_compose", entered),
        patch.object(outbox, "Notice", notice),
        patch.object(audited, "Notice", notice),
        patch.object(accidents, "list_accidents", shown),
    ):
        yield
