"""After a code break somebody of the sponsor is told, by real SMTP on loopback: that it happened, never what it showed."""

import json
import re
import ssl
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from email.message import EmailMessage
from pathlib import Path
from typing import Any, Final

import pytest
from sqlalchemy import select
from structlog.testing import capture_logs

from app.domain.notices import PAUSES
from app.errors import DatabaseUnavailable, UnsafeSetting
from app.services import outbox
from app.services.keeper import Keeper
from app.settings import Settings
from app.storage import notices, tables
from app.storage.database import AlreadyThere
from app.storage.delivery import NotDelivered
from app.storage.mail_client import MailClient, MailServer
from app.surroundings import surroundings
from tests.api.test_recoveries import lost
from tests.doors import Fault, failing
from tests.envelopes import envelope_study, writing_when_told
from tests.harness import STUDY, House, Json, expect
from tests.mail import MailServer as Server
from tests.mail import mail_server
from tests.running_study import TREATMENTS, RunningStudy, S, execute, running_study
from tests.sealing.test_vault import certificate

CONTACTS: Final = f"{S}/contacts"
SENDER: Final = "snose@hospital.example.org"
SAFETY: Final = "safety@sponsor.example.org"
WRONG: Final = ("", "nobody", "a@b", "ä@example.org", "a@example.org\nBcc: x@example.org", 7, f"a@{'x' * 300}.org")
UNKNOWN: Final = "00000000-0000-4000-8000-000000000000"


def test_a_recovered_factor_is_told_to_every_study_of_its_owner(told: RunningStudy, server: Server) -> None:
    """Whose it is, and by whose word: nobody who knew a password and a colleague's code goes unseen. [EUB-15, SIG-07, EUB-22]"""
    house, doctor = told.house, told.investigator
    house.grant(doctor, "monitor", "UNREGISTERED")
    expect(told.study_admin.post(f"{S}/webhooks", json={"url": "http://127.0.0.1:9/"}), 201)
    colleague = house.person("safety_officer")
    gone = lost(doctor)
    expect(gone.confirmed_by(colleague), 200)
    assert outbox_of(house) == []
    expect(gone.completed(), 201)
    # By e-mail alone: what a machine is told is about subjects.
    assert len(outbox_of(house)) == 1
    send(house)
    mail = server.wait()
    text = text_of(mail)
    assert mail["Subject"] == f"[test] {STUDY}: second factor"
    assert text.startswith("A lost second factor was recovered.")
    assert f"Person: {doctor.username}" in text
    assert f"Confirmed by: {colleague.username}" in text
    assert gone.secret not in text


@pytest.fixture
def server() -> Iterator[Server]:
    with mail_server() as running:
        yield running


@pytest.fixture
def told(house: House, server: Server) -> Iterator[RunningStudy]:
    """A study whose sponsor is told when the test says so."""
    with mailing(house, server.address) as study:
        expect(study.study_admin.post(CONTACTS, json={"email": SAFETY}), 201)
        yield study


@contextmanager
def mailing(house: House, address: str, subjects: int = 2) -> Iterator[RunningStudy]:
    study = running_study(house, subjects=subjects)
    with writing_when_told():
        house.restart(smtp_url=address, smtp_sender=SENDER)
        yield study


def break_code(study: RunningStudy, **target: str) -> dict[str, Any]:
    body = {"reason_code": "overdose", **target}
    answer: dict[str, Any] = expect(study.investigator.post(f"{S}/code-breaks", json=body, step_up=True), 201)
    return answer


def send(house: House) -> timedelta:
    """Have the keeper do a round."""
    return Keeper(house.deployment).notice_round()


def outbox_of(house: House) -> list[dict[str, Any]]:
    """Return what stands in the outbox, in the order of its making."""
    with house.deployment.database.transaction() as tx:
        query = select(tables.notice).order_by(tables.notice.c.posted_at, tables.notice.c.receiver_id)
        return [dict(row) for row in tx.execute(query).mappings()]


def text_of(mail: EmailMessage) -> str:
    return str(mail.get_content())


def contact(study: RunningStudy) -> dict[str, Any]:
    """Return the first contact, as the monitor sees it."""
    item: dict[str, Any] = expect(study.person("monitor").get(CONTACTS), 200)["items"][0]
    return item


class TestRefused:
    def test_who_may_not_is_told_of_at_once(self, told: RunningStudy, server: Server) -> None:
        """By mail, once an hour for each person; neither machines nor those are told of who only begin. [EUB-22, SIG-10]"""
        house = told.house
        expect(told.study_admin.post(f"{S}/webhooks", json={"url": "http://127.0.0.1:9/"}), 201)
        coordinator, doctor = house.person("coordinator"), told.investigator
        body = {"subject_id": "01-0001", "reason_code": "overdose"}
        breaks = f"{S}/code-breaks"
        # How a client begins, and one in whose study it is not.
        expect(doctor.post(breaks, json=body), 401)
        expect(house.person("investigator", "OTHER-STUDY").post(breaks, json=body), 404)
        assert outbox_of(house) == []
        for _ in range(3):
            expect(coordinator.post(breaks, json=body), 403)
        expect(coordinator.post(f"{S}/safety-unblindings", json={"subject_id": "01-0001", "reason": "SUSAR"}), 403)
        assert len(outbox_of(house)) == 1
        send(house)
        mail = server.wait()
        text = text_of(mail)
        assert mail["Subject"] == f"[test] {STUDY}: signing"
        assert f"Person: {coordinator.username}" in text
        assert "Tried: code_break:create" in text
        assert "01-0001" not in text
        old = doctor.elevated_token()
        house.clock.advance(hours=1)
        # A proof that was good an hour ago is in the log; that is no news for the sponsor.
        expect(house.send("POST", breaks, token=old, json=body), 401)
        assert len(outbox_of(house)) == 1
        expect(coordinator.post(breaks, json=body), 403)
        assert len(outbox_of(house)) == 2

    def test_an_outbox_that_fails(self, told: RunningStudy, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is entered all the same, and said in the log. [EUB-22, AUD-13]"""
        coordinator = told.house.person("coordinator")

        def fails(*_: object) -> None:
            raise DatabaseUnavailable

        monkeypatch.setattr(notices, "add_notice", fails)
        with capture_logs() as logs:
            expect(coordinator.post(f"{S}/code-breaks", json={"subject_id": "01-0001", "reason_code": "overdose"}), 403)
        assert "notice not written" in [line["event"] for line in logs]
        entry = told.house.trail(STUDY)[-1]
        assert (entry["action"], entry["outcome"]) == ("code_break:create", "denied")


class TestTold:
    def test_same_words_for_every_arm(self, told: RunningStudy, server: Server) -> None:
        """A notice says where, whose and when: the same words for every arm, no kit, no reason. [EUB-12, BLD-14]"""
        arms = {break_code(told, subject_id=one["subject_id"])["arm_code"] for one in told.allocations}
        while len(arms) < len(TREATMENTS):
            arms.add(break_code(told, subject_id=told.new_subject()["subject_id"])["arm_code"])
        break_code(told, kit_code=told.free_kit())
        rows = outbox_of(told.house)
        send(told.house)
        mails = [server.wait() for _ in rows]
        bodies = [json.loads(row["body"]) for row in rows]
        for body in bodies:
            assert set(body) == {"type", "timestamp", "data"}
            assert set(body["data"]) == {"study_code", "mode", "site_code", "subject_id", "code_break_id"}
        assert bodies[-1]["data"]["subject_id"] is None
        said = [f"{mail.as_string()}{text_of(mail)}{row['body']}" for mail, row in zip(mails, rows, strict=True)]
        secret = [word for pair in TREATMENTS.items() for word in pair] + ["overdose"] + told.kit_codes
        assert [(word, one) for one in said for word in secret if word in one] == []
        masked = {mask(text_of(mail)) for mail in mails[:-1]}
        assert len(masked) == 1, masked
        assert [mail["Subject"] for mail in mails] == [f"[test] {STUDY}: code break"] * len(mails)
        assert {(mail["From"], mail["To"]) for mail in mails} == {(SENDER, SAFETY)}
        assert contact(told) | {"delivered": len(rows), "waiting": 0, "given_up": 0} == contact(told)

    def test_in_a_moment(self, house: House, server: Server) -> None:
        """The service itself sends it, a moment after the answer. [EUB-12]"""
        study = running_study(house, subjects=1)
        house.restart(smtp_url=server.address, smtp_sender=SENDER)
        expect(study.study_admin.post(CONTACTS, json={"email": SAFETY}), 201)
        answer = break_code(study, subject_id="01-0001")
        assert answer["code_break_id"] in text_of(server.wait())

    def test_an_envelope_that_was_opened(self, migrated_database_url: str, tmp_path: Path, server: Server) -> None:
        """A code that an envelope broke is told when it is entered. [EUB-05, EUB-12]"""
        with envelope_study(migrated_database_url, tmp_path) as (study, desk):
            study.house.restart(smtp_url=server.address, smtp_sender=SENDER)
            expect(study.study_admin.post(CONTACTS, json={"email": SAFETY}), 201)
            kit = study.new_subject()["kit_code"]
            desk.write()
            opened = {
                "kit_code": kit,
                "opened_at": study.house.clock.now.isoformat(),
                "opened_by": "The desk",
                "reason_code": "overdose",
                "reason": "The service was down",
            }
            entered = expect(study.study_admin.post(f"{S}/envelope-openings", json=opened, step_up=True), 201)
            send(study.house)
            assert entered["code_break_id"] in text_of(server.wait())


def mask(text: str) -> str:
    """Return a mail without what differs from subject to subject."""
    without_ids = re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}|01-\d{4}", "-", text)
    return re.sub(r"\d{4}-\d\d-\d\dT[0-9:.+]+", "-", without_ids)


class TestTrouble:
    def test_nobody_takes_it(self, told: RunningStudy, server: Server) -> None:
        """With the mail server down the code is broken all the same; the notice is tried for a day and a half. [EUB-12, T31]"""
        house = told.house
        server.says["EHLO"] = server.says["HELO"] = "451 later"
        break_code(told, subject_id="01-0001")
        for number, pause in enumerate(PAUSES, start=1):
            begun = house.clock.now
            send(house)
            (row,) = outbox_of(house)
            assert row["failures"] == number
            assert 0.79 * pause < row["next_try_at"] - begun < 1.21 * pause
            assert contact(told)["waiting"] == 1
            # Not before its time, however often somebody looks.
            send(house)
            assert outbox_of(house)[0]["failures"] == number
            house.clock.advance(row["next_try_at"] - house.clock.now)
        send(house)
        assert contact(told)["given_up"] == 1
        entry = house.trail(STUDY, last=2)[0]
        assert (entry["action"], entry["actor"], entry["outcome"]) == (outbox.GIVEN_UP, "snose", "done")
        assert entry["after"] == {"channel": "contact", "failures": 8, "trouble": "smtp_451"}
        server.says.clear()
        house.clock.advance(days=9)
        send(house)
        assert server.mails.empty()

    def test_comes_back(self, told: RunningStudy, server: Server) -> None:
        """What failed is delivered as soon as somebody takes it, once. [EUB-12]"""
        server.says["RCPT"] = "450 busy"
        break_code(told, subject_id="01-0001")
        assert timedelta(seconds=3) < send(told.house) < timedelta(seconds=7)
        server.says.clear()
        told.house.clock.advance(seconds=10)
        for _ in range(2):
            send(told.house)
        server.wait()
        assert server.mails.empty()
        assert contact(told)["delivered"] == 1

    def test_killed_before_it_could_say_so(self, told: RunningStudy, server: Server) -> None:
        """A notice that was sent and not recorded is sent again after its lease, under the same id: none is lost. [EUB-12, T31]"""
        break_code(told, subject_id="01-0001")
        with failing(told.house, Fault.NONE, Fault.DOWN) as deployment:
            Keeper(deployment).notice_round()
        first = server.wait()
        send(told.house)
        assert server.mails.empty(), "claimed by somebody who may be sending it"
        told.house.clock.advance(outbox.LEASE)
        send(told.house)
        assert server.wait()["Message-ID"] == first["Message-ID"]
        assert outbox_of(told.house)[0]["failures"] == 0

    def test_two_senders_at_once(self, told: RunningStudy, server: Server) -> None:
        """Several workers share the outbox: each notice leaves once. [EUB-12, T31]"""
        for _ in range(3):
            for subject in ("01-0001", "01-0002"):
                break_code(told, subject_id=subject)
            # So that they are not told of as unusually many.
            told.house.clock.advance(days=1)
        with ThreadPoolExecutor(3) as pool:
            for sent in [pool.submit(send, told.house) for _ in range(3)]:
                sent.result()
        ids = [server.wait()["Message-ID"] for _ in range(6)]
        assert len(set(ids)) == 6
        assert server.mails.empty()

    def test_said_twice(self, told: RunningStudy, server: Server) -> None:
        """Whoever comes late with a failure changes nothing of what was delivered or given up meanwhile. [EUB-12]"""
        break_code(told, subject_id="01-0001")
        house = told.house
        with house.deployment.database.transaction() as tx:
            due = notices.claim_due(tx, house.clock(), house.clock())
        assert due is not None
        send(house)
        server.wait()
        outbox._put_off(house.deployment, due, NotDelivered("late"))
        with pytest.raises(AlreadyThere):
            outbox._give_up(house.deployment, due, "late")
        assert contact(told) | {"delivered": 1, "given_up": 0} == contact(told)

    def test_outbox_that_cannot_be_written(self, told: RunningStudy) -> None:
        """No trouble with the outbox stands before a treatment; the entry tells that nobody was told. [EUB-12, rule D6]"""
        execute(told, "ALTER TABLE notice RENAME TO elsewhere")
        answer = break_code(told, subject_id="01-0001")
        assert answer["treatment"] in TREATMENTS.values()
        entry = told.house.trail(STUDY, last=1)[0]
        assert (entry["action"], entry["after"]["notice"]) == ("code_break:create", "not_written")
        assert send(told.house) == timedelta(seconds=60)
        execute(told, "ALTER TABLE elsewhere RENAME TO notice")

    def test_without_a_mail_server_any_more(self, told: RunningStudy) -> None:
        """What waits when the setting is taken away is tried, and told as trouble. [EUB-12]"""
        break_code(told, subject_id="01-0001")
        told.house.restart(smtp_url=None)
        send(told.house)
        assert outbox_of(told.house)[0]["failures"] == 1

    def test_end_of_the_service(self, told: RunningStudy, server: Server) -> None:
        """A service that ends sends no more; what waits stays in the outbox. [EUB-12]"""
        break_code(told, subject_id="01-0001")
        keeper = Keeper(told.house.deployment)
        keeper._stopped.set()
        keeper.notice_round()
        assert server.mails.empty()
        assert contact(told)["waiting"] == 1


class TestContacts:
    def test_added_and_removed(self, told: RunningStudy, server: Server) -> None:
        """Who was removed is told nothing more, not even what waited; the address stands in the restricted part alone. [EUB-12]"""
        admin, house = told.study_admin, told.house
        entry = house.trail(STUDY, last=1)[0]
        assert SAFETY not in json.dumps(entry)
        assert entry["restricted"] is not None
        break_code(told, subject_id="01-0001")
        path = f"{CONTACTS}/{contact(told)['contact_id']}"
        expect(admin.delete(path), 204)
        expect(admin.delete(path), 404)
        expect(admin.delete(f"{CONTACTS}/{UNKNOWN}"), 404)
        break_code(told, subject_id="01-0002")
        send(house)
        assert server.mails.empty()
        assert contact(told)["removed_at"] is not None
        assert len(outbox_of(house)) == contact(told)["given_up"] == 1
        expect(admin.post(CONTACTS, json={"email": SAFETY}), 201)

    def test_what_cannot_be(self, told: RunningStudy, monkeypatch: pytest.MonkeyPatch) -> None:
        """No address, the same one again, too many, or no mail server: each is refused in plain words. [EUB-12]"""
        admin = told.study_admin
        for wrong in (
            "",
            "nobody",
            "a@b",
            "a b@example.org",
            "ä@example.org",
            "a@example.org\nBcc: x@example.org",
            7,
            "a@" + "x" * 300 + ".org",
        ):
            expect(admin.post(CONTACTS, json={"email": wrong}), 422)
        assert expect(admin.post(CONTACTS, json={"email": SAFETY.upper()}), 409)["code"] == "already_exists"
        key = {"Idempotency-Key": "once"}
        expect(admin.post(CONTACTS, json={"email": "b@example.org"}, headers=key), 201)
        expect(admin.post(CONTACTS, json={"email": "b@example.org"}, headers=key), 200)
        monkeypatch.setattr("app.services.notices.MOST", 2)
        assert expect(admin.post(CONTACTS, json={"email": "c@example.org"}), 409)["code"] == "illegal_transition"
        told.house.restart(smtp_url=None)
        expect(admin.post(CONTACTS, json={"email": "d@example.org"}), 409)
        told.house.register_study("OTHER")
        other = told.house.study_admins["OTHER"]
        assert expect(other.get("/v1/studies/OTHER/contacts"), 200)["items"] == []
        expect(other.delete(f"/v1/studies/OTHER/contacts/{contact(told)['contact_id']}"), 404)

    def test_two_at_once(self, told: RunningStudy) -> None:
        """Two who add the same address at once: one of them has. [EUB-12]"""
        admin = told.study_admin
        admin.token()

        def add(_number: int) -> int:
            return admin.post(CONTACTS, json={"email": "both@example.org"}).status_code

        with ThreadPoolExecutor(3) as pool:
            assert sorted(pool.map(add, range(3))) == [201, 409, 409]


def mail(to: str = SAFETY) -> EmailMessage:
    made = EmailMessage()
    made["From"], made["To"], made["Subject"] = SENDER, to, "test"
    made.set_content("text")
    return made


def client(server: Server, patience: float = 5.0, **fields: Any) -> MailClient:  # noqa: ANN401  # of a mail server
    host, port = server.address.partition("://")[2].split(":")
    return MailClient(MailServer(host, int(port), server.at_once, SENDER, **fields), patience)


class TestMailClient:
    @pytest.mark.parametrize("at_once", [True, False])
    def test_tls(self, tmp_path: Path, at_once: bool) -> None:  # a way of two
        """The mail and the password go to a server that has proved who it is, and to no other. [EUB-12]"""
        ours, foreign = certificate(tmp_path, "ours"), certificate(tmp_path, "foreign")
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(ours)
        with mail_server(tls, at_once=at_once) as server:
            known = ssl.create_default_context(cafile=ours)
            client(server, username="snose", password="secret", tls=known).send(mail())
            assert server.wait()["To"] == SAFETY
            assert len(server.accounts) == 1
            for context in (ssl.create_default_context(cafile=foreign), ssl.create_default_context()):
                with pytest.raises(NotDelivered, match="SSLCertVerificationError"):
                    client(server, username="snose", password="secret", tls=context).send(mail())
            assert len(server.accounts) == 1

    def test_what_goes_wrong(self, server: Server) -> None:
        """Each trouble is one word, and none of them holds what was said. [EUB-12, BLD-14]"""
        for word, said, trouble in (
            ("EHLO", "", "SMTPServerDisconnected"),
            ("RCPT", "550 no safety@sponsor.example.org here", "smtp_recipient_refused"),
            ("MAIL", "530 who are you", "smtp_530"),
            ("DATA", "", "SMTPServerDisconnected"),
            ("after", "552 too large", "smtp_552"),
        ):
            server.says = {word: said}
            with pytest.raises(NotDelivered) as caught:
                client(server).send(mail())
            assert str(caught.value) == trouble, word
        server.says = {"QUIT": ""}
        client(server).send(mail())
        with pytest.raises(NotDelivered):
            client(server, tls=ssl.create_default_context()).send(mail())
        with pytest.raises(NotDelivered, match="SMTPNotSupportedError"):
            client(server).send(mail("ä@example.org"))

    def test_server_that_is_not_there(self, server: Server) -> None:
        """Nobody at the port, or no such name. [EUB-12]"""
        for host, port in (("127.0.0.1", 9), ("nowhere.invalid", 25), ("a" * 70 + ".invalid", 25)):
            with pytest.raises(NotDelivered):
                MailClient(MailServer(host, port, is_tls_at_once=False, sender=SENDER), 1.0).send(mail())

    def test_server_that_drips(self, server: Server) -> None:
        """A greeting byte by byte, without end, is hung up on: nobody holds the sender for ever. [EUB-12, T31]"""
        server.drips.set()
        with pytest.raises(NotDelivered):
            client(server, 0.3).send(mail())


class TestSettings:
    @pytest.mark.parametrize(
        "wrong",
        [
            {"smtp_url": "mail.example.org"},
            {"smtp_url": "http://mail.example.org"},
            {"smtp_url": "smtp://"},
            {"smtp_url": "smtp://host:port"},
            {"smtp_url": "smtp://snose:secret@host"},
            {"smtp_sender": ""},
            {"smtp_username": "snose"},
            {"smtp_password_file": "nowhere"},
            {"smtp_username": "snose", "smtp_password_file": "nowhere"},
            {"smtp_ca_file": "nowhere"},
        ],
    )
    def test_half_said(self, wrong: dict[str, Json], tmp_path: Path) -> None:
        """A mail server that is named by half is told at the start, and not at the first code break. [INT-03]"""
        said: dict[str, Any] = {"smtp_url": "smtps://mail.example.org", "smtp_sender": SENDER} | wrong
        with pytest.raises(UnsafeSetting, match="SNOSE_SMTP"):
            surroundings(Settings(database_url=f"sqlite:///{tmp_path / 'x'}", **said))

    def test_well_said(self, tmp_path: Path) -> None:
        """TLS everywhere but on this machine; ports as they are usual. [EUB-12]"""
        password = tmp_path / "password"
        password.write_text("secret\n")
        for url, port, has_tls in (
            ("smtp://127.0.0.1:25", 25, False),
            ("smtp://mail.example.org", 587, True),
            ("smtps://mail.example.org", 465, True),
            ("smtps://localhost", 465, True),
        ):
            around = surroundings(
                Settings(
                    database_url=f"sqlite:///{tmp_path / 'x'}",
                    smtp_url=url,
                    smtp_sender=SENDER,
                    smtp_username="snose",
                    smtp_password_file=password,
                )
            )
            assert around.mail is not None
            server = around.mail._server
            assert (server.port, server.tls is not None, server.password) == (port, has_tls, "secret")
            assert "secret" not in repr(server)
