"""After a code break machines are told by signed webhooks, over real HTTP on loopback: at least once, and never inside."""

import json
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import pytest
from standardwebhooks.webhooks import Webhook

from app.domain.words import Mode
from app.services import outbox
from app.services.postoffice import PostOffice
from app.storage.delivery import NotDelivered
from app.storage.webhook_client import WebhookClient
from tests.api.test_notices import UNKNOWN, break_code, outbox_of, send
from tests.envelopes import writing_when_told
from tests.harness import STUDY, House, expect
from tests.hooks import Receiver, hook_receiver
from tests.running_study import TREATMENTS, RunningStudy, S, running_study
from tests.sealing.test_vault import certificate

WEBHOOKS: Final = f"{S}/webhooks"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with hook_receiver() as running:
        yield running


@pytest.fixture
def study(house: House) -> Iterator[RunningStudy]:
    running = running_study(house, subjects=2)
    with writing_when_told():
        house.restart()
        yield running


def add(study: RunningStudy, url: str) -> dict[str, Any]:
    issued: dict[str, Any] = expect(study.study_admin.post(WEBHOOKS, json={"url": url}), 201)
    return issued


def listed(study: RunningStudy) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = expect(study.person("monitor").get(WEBHOOKS), 200)["items"]
    return items


@contextmanager
def at_the_time(moment: datetime) -> Iterator[None]:
    """Have the library think that it is this time: it refuses what is older than five minutes."""
    with patch("standardwebhooks.webhooks.datetime") as clock:
        clock.now.return_value = moment
        clock.fromtimestamp = datetime.fromtimestamp
        yield


class TestTold:
    def test_signed(self, study: RunningStudy, receiver: Receiver) -> None:
        """The receiver verifies it with the library and learns whose code was broken and when, no arm. [EUB-25, BLD-14]"""
        answer = study.study_admin.post(WEBHOOKS, json={"url": receiver.url})
        issued = expect(answer, 201)
        assert answer.headers["cache-control"] == "no-store"
        broken = break_code(study, subject_id="01-0001")
        break_code(study, kit_code=study.free_kit())
        send(study.house)
        (path, headers, body), (_, _, other) = receiver.got
        with at_the_time(study.house.clock.now):
            told = Webhook(issued["secret"]).verify(body.decode(), headers)
        assert path == "/hook"
        assert told == {
            "type": "code_break.recorded",
            "timestamp": broken["revealed_at"],
            "data": {
                "study_code": STUDY,
                "mode": "test",
                "site_code": "01",
                "subject_id": "01-0001",
                "code_break_id": broken["code_break_id"],
            },
        }
        secret = [word for pair in TREATMENTS.items() for word in pair] + ["overdose"] + study.kit_codes
        assert [word for word in secret if word in body.decode() + other.decode() + str(headers)] == []
        (item,) = listed(study)
        assert (item["delivered"], item["webhook_id"]) == (2, issued["webhook_id"])
        assert "secret" not in item
        said = json.dumps(study.house.trail(STUDY))
        assert receiver.url not in said
        assert issued["secret"] not in said

    def test_flaky_slow_and_gone(self, study: RunningStudy, receiver: Receiver) -> None:
        """An error and a redirect are tried again under the same id; 410 ends it, and is entered. [EUB-12, T31]"""
        add(study, receiver.url)
        break_code(study, subject_id="01-0001")
        with hook_receiver() as elsewhere:
            for status in (500, 302, 307):
                receiver.status, receiver.headers = status, {"Location": elsewhere.url}
                send(study.house)
                study.house.clock.advance(hours=3)
            receiver.drips = True
            study.house.deployment.office.webhooks._patience = 0.2
            send(study.house)
            assert elsewhere.got == []
        receiver.drips, receiver.status, receiver.headers = False, 410, {}
        study.house.clock.advance(hours=9)
        send(study.house)
        assert len({headers["webhook-id"] for _, headers, _ in receiver.got}) == 1
        assert len(receiver.got) == 5
        entry = study.house.trail(STUDY, last=1)[0]
        assert (entry["action"], entry["after"]["trouble"]) == (outbox.GIVEN_UP, "http_410")
        break_code(study, subject_id="01-0002")
        send(study.house)
        assert len(receiver.got) == 5
        (item,) = listed(study)
        assert item["disabled_at"] is not None
        assert len(outbox_of(study.house)) == item["given_up"] == 1
        # It may come back, as another one.
        add(study, receiver.url)

    def test_removed_and_refused(self, study: RunningStudy, receiver: Receiver) -> None:
        """A contact is no webhook; an address inside or the same one again is refused; the removed is told no more. [T31]"""
        issued, admin = add(study, receiver.url), study.study_admin
        for url in ("https://10.0.0.1/", "https://[::ffff:10.0.0.1]/", "http://edc.example.org", "x", 7, None):
            expect(admin.post(WEBHOOKS, json={"url": url}), 422)
        assert expect(admin.post(WEBHOOKS, json={"url": receiver.url}), 409)["code"] == "already_exists"
        expect(admin.delete(f"{S}/contacts/{issued['webhook_id']}"), 404)
        expect(admin.delete(f"{WEBHOOKS}/{UNKNOWN}"), 404)
        expect(admin.delete(f"{WEBHOOKS}/{issued['webhook_id']}"), 204)
        break_code(study, subject_id="01-0001")
        assert outbox_of(study.house) == []

    def test_live(self, study: RunningStudy, receiver: Receiver) -> None:
        """A live deployment sends nothing to its own machine, whatever stands in its database. [T31]"""
        add(study, receiver.url)
        break_code(study, subject_id="01-0001")
        office = study.house.deployment.office
        assert PostOffice().webhooks._may_stay_here is False
        office.webhooks = PostOffice().webhooks
        send(study.house)
        assert receiver.got == []
        assert outbox_of(study.house)[0]["failures"] == 1
        assert study.house.deployment.mode is Mode.TEST


def client(receiver: Receiver, *names: str, **options: Any) -> tuple[WebhookClient, list[int]]:  # noqa: ANN401  # its own
    """Return a client for which every name has these addresses, one after the other, and how often it asked."""
    asked: list[int] = []

    def resolve(_host: str, port: int, **_options: object) -> list[Any]:
        asked.append(port)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (name, port)) for name in names[len(asked) - 1].split()]

    return WebhookClient(resolve=resolve, patience=1.0, **options), asked


class TestClient:
    def test_name_that_turns_inside(self, receiver: Receiver) -> None:
        """A name is resolved once, all of its addresses must be outside, and the connection goes to what was looked at. [T31]"""
        port = receiver.url.rpartition(":")[2].partition("/")[0]
        url = f"http://edc.example.org:{port}/hook"
        for addresses in ("127.0.0.1", "8.8.8.8 127.0.0.1", "10.0.0.1 8.8.8.8", "::ffff:127.0.0.1", "0.1.2.3", "::1"):
            asking, _ = client(receiver, addresses, may_stay_here=False)
            with pytest.raises(NotDelivered, match="address_refused"):
                asking.post(url, b"{}", {})
        assert receiver.got == []
        # Rebinding: a second look would give another address, and there is none.
        asking, asked = client(receiver, "127.0.0.1", "10.0.0.1", may_stay_here=True)
        assert asking.post(url, b"{}", {}) == 204
        assert asked == [int(port)]
        assert receiver.got[0][1]["host"] == f"edc.example.org:{port}"

    def test_tls(self, tmp_path: Path) -> None:
        """Whoever has the address must prove to have the name; else nothing of the notice is sent. [T31]"""
        ours = certificate(tmp_path, "ours")
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(ours)
        known = ssl.create_default_context(cafile=ours)
        with hook_receiver(tls) as receiver:
            assert WebhookClient(may_stay_here=True, tls=known).post(receiver.url, b"{}", {}) == 204
            port = receiver.url.rpartition(":")[2]
            asking, _ = client(receiver, "127.0.0.1", may_stay_here=True, tls=known)
            with pytest.raises(NotDelivered, match="SSLCertVerificationError"):
                asking.post(f"https://edc.example.org:{port}", b"{}", {})
            with pytest.raises(NotDelivered, match="SSLCertVerificationError"):
                WebhookClient(may_stay_here=True).post(receiver.url, b"{}", {})
            assert len(receiver.got) == 1

    def test_nobody_there(self) -> None:
        """No such name, nobody at the port, no address at all: one word each. [T31]"""
        for url in ("https://nowhere.invalid/", "http://127.0.0.1:9/", f"https://{'a' * 70}.example.org/"):
            with pytest.raises(NotDelivered):
                WebhookClient(may_stay_here=True, patience=1.0).post(url, b"{}", {})
