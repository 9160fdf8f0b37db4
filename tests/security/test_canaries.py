"""What must not stand in the service's own output: words that were typed, given out or treated with (rules E1, G1; BLD-13, T14)."""

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import pytest
import structlog

from app.domain.words import Role
from app.process import configure_logs
from app.services import stock
from tests.security.conftest import Places
from tests.security.script import Output, Play, listening, running

TYPED: Final = {
    "reason": "CANARY-REASON-7Q2",
    "narrative": "CANARY-NARRATIVE-4Z",
    "arm code": "CANARYARM-X",
    "label": "Canary label of an arm",
    "treatment": "Canary treatment 80 mg",
    "subject": "CANARY-SUBJECT-1",
    "visit": "CANARY-VISIT-9",
    "reported user": "canary.nurse",
    "password": "canary password of nobody",
    "token": "snose_CANARYCANARYCANARYCANARYCANARYCANARYCANAR",
    "one-time code": "814159",
    "unknown field": "canary_field",
    "lot": "CANARYLOT7",
    "contact": "Canary desk, +00 111",
}
"""Words that are sent in, none of which may come out in a log line, a metric, on stdout or on stderr."""


class Aboard:
    """The output of a service that was sent every canary, and what secrets it gave out on the way."""

    def __init__(self, play: Play, output: Output, printed: str, problems: list[bytes], codes: set[str]) -> None:
        self.written = {"log": "\n".join(output.log()), "metrics": output.metrics(), "stdout and stderr": printed}
        self.problems = problems
        self.trail = b"\n".join(play.house.bodies()).decode()
        self.codes = codes
        people = [play.admin, *(person for held in play.people.values() for person in held)]
        self.secrets = {
            text for one in people for text in (one.password, one.totp_secret, one.token, one.stepped_up) if text
        }
        assert play.edc is not None
        self.secrets |= {play.edc.client_secret, play.edc.token}


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def aboard(request: pytest.FixtureRequest, places: Places) -> Iterator[Aboard]:
    """A study of canaries: acted in, refused, sent rubbish, and with a fault of our own in its middle."""
    capture = pytest.MonkeyPatch()
    with (
        places(request.param) as (url, folder),
        listening() as output,
        running(url, folder) as house,
        capture.context(),
    ):
        printed = (folder / "printed").open("w+")
        capture.setattr(sys, "stdout", printed)
        capture.setattr(sys, "stderr", printed)
        play = Play.in_house(house)
        arms = [dict(arm) for arm in play.protocol.arms]
        arms[0] |= {"arm_code": TYPED["arm code"], "label": TYPED["label"], "treatment": TYPED["treatment"]}
        object.__setattr__(play.protocol, "arms", arms)
        play.prepare()
        for number in range(1, 5):
            play.enrol(number)
        play.refuse_allocations(4)
        send_canaries(play)
        fail_inside(play)
        printed.flush()
        problems = [one.body for one in play.recorder.exchanges if one.status >= 400]
        codes = {one["kit_code"] for one in play.allocations} | {
            one["randomization_number"] for one in play.allocations
        }
        capture.undo()
        yield Aboard(play, output, (folder / "printed").read_text(), problems, codes)
        printed.close()


def send_canaries(play: Play) -> None:
    """Send every canary where it belongs and where it does not."""
    study, coordinator, pharmacist = play.study, play.who(Role.COORDINATOR), play.who(Role.PHARMACIST)
    kit = play.kits_of(1)[0]["kit_code"]
    play.allocate(play.edc, 50, subject_id=TYPED["subject"], reported_user=TYPED["reported user"])
    play.allocate(coordinator, 51, consent_confirmed=TYPED["reason"])
    play.allocate(coordinator, 51, strata={TYPED["arm code"]: TYPED["reason"]})
    play.allocate(coordinator, 51, **{TYPED["unknown field"]: TYPED["reason"]})
    play.tell(pharmacist, "POST", f"{study}/subjects/{TYPED['subject']}/kits", {"visit": TYPED["visit"]})
    play.tell(pharmacist, "GET", f"{study}/subjects/{TYPED['subject']}/nothing")
    play.at_kit(kit, "replacement", reason_code="other", reason=TYPED["reason"])
    play.at_kit(kit, "replacement", reason_code=TYPED["reason"], reason=TYPED["reason"])
    play.at_kit(TYPED["subject"], "quarantine", reason=TYPED["reason"])
    broken = play.break_code(2)
    path = f"{study}/code-breaks/{broken['code_break_id']}/narrative"
    play.tell(play.who(Role.INVESTIGATOR), "POST", path, {"narrative": TYPED["narrative"]})
    body = {"kits": [{"kit_code": "x", "arm_code": TYPED["arm code"], "lot": TYPED["lot"], "expires_on": "never"}]}
    play.tell(play.who(Role.SUPPLY_MANAGER), "POST", f"{study}/consignments/C7/kits", body, step_up=True)
    list_csv = f"stratum_code,position,arm_code,block,block_size\n{TYPED['label']},0,{TYPED['arm code']},0,2\n"
    digest = hashlib.sha256(list_csv.encode()).hexdigest()
    specification = {"block_sizes": [2], "length_per_stratum": 2, "fill": "exact", "reason": TYPED["reason"]}
    sent = {"specification": specification, "list_csv": list_csv, "digest": digest}
    play.tell(play.who(Role.STATISTICIAN), "POST", f"{study}/schedules/imports", sent, step_up=True)
    play.tell(None, "POST", "/v1/sessions", {"username": "admin", "password": TYPED["password"]})
    play.tell(None, "POST", "/v1/sessions", {"username": TYPED["password"], "password": TYPED["password"]})
    play.tell(coordinator, "POST", "/v1/sessions/step-up", {"otp": TYPED["one-time code"]})
    for headers in ({"Authorization": f"Bearer {TYPED['token']}"}, {"Authorization": TYPED["token"]}):
        play.tell(None, "GET", study, headers=headers)
    play.tell(coordinator, "GET", f"{study}/allocations?cursor={TYPED['token']}")
    play.tell(coordinator, "POST", f"{study}/allocations", headers={"Idempotency-Key": TYPED["token"]}, body={})
    play.tell(coordinator, "POST", f"{study}/allocations", content=json.dumps(TYPED).encode()[:-1])
    play.tell(play.who(Role.STUDY_ADMIN), "POST", "/v1/studies", {"backup_contact": TYPED["contact"], "arms": []})


class Fault(Exception):
    """A fault of our own, whose message and variables hold what they should not."""


def fail_inside(play: Play) -> None:
    """Have the service fail where it knows an arm, a kit and a subject."""

    def fail(act: Any, consignment_id: Any, sample: int) -> Any:  # noqa: ANN401  # as it is
        secret = dict(TYPED)
        message = f"{secret} {act.caller} {consignment_id} {sample}"
        raise Fault(message)

    # The harness raises what the application raises; a real server does not.
    unforgiving, play.recorder._client = (
        play.recorder._client,
        play.house.client.forgiving(),
    )
    with patch.object(stock, "_in_random_order", fail):
        response = play.allocate(play.edc, 60, subject_id=TYPED["subject"] + "2", reported_user=TYPED["reported user"])
    play.recorder._client = unforgiving
    assert response.status_code == 500


class TestCanaries:
    def test_output_of_the_service(self, aboard: Aboard) -> None:
        """No word that was sent in stands in a log line, a metric or on stdout. [BLD-13, T14]"""
        found = [
            (sink, name)
            for sink, text in aboard.written.items()
            for name, word in TYPED.items()
            if word.lower() in text.lower()
        ]

        assert found == []
        assert '"fault"' in aboard.written["log"]

    def test_secrets_and_codes(self, aboard: Aboard) -> None:
        """No password, factor, token, kit code or randomization number stands there either. [BLD-13, SIG-07, T14]"""
        assert len(aboard.secrets) > 40
        assert len(aboard.codes) == 8
        found = [
            (sink, word)
            for sink, text in aboard.written.items()
            for word in aboard.secrets | aboard.codes
            if word in text
        ]
        assert found == []

    def test_public_trail(self, aboard: Aboard) -> None:
        """Nothing free that was typed, and no secret, is entered in clear: no name of a field either. [AUD-08, E1, E3]"""
        free = ("reason", "narrative", "password", "token", "unknown field", "lot", "label", "treatment", "contact")
        assert [name for name in free if TYPED[name].lower() in aboard.trail.lower()] == []
        assert [secret for secret in aboard.secrets if secret in aboard.trail] == []
        assert '"fields":"?"' in aboard.trail

    def test_problems(self, aboard: Aboard) -> None:
        """A problem echoes nothing that was sent, and a fault of our own says nothing but its request id. [rule G1]"""
        assert len(aboard.problems) > 20
        # The name of a field that does not belong there is told, so that it can be found; never a value.
        values = {name: word.encode() for name, word in TYPED.items() if name != "unknown field"}
        found = [(name, body) for body in aboard.problems for name, word in values.items() if word in body]
        assert found == []
        crashes = [json.loads(body) for body in aboard.problems if json.loads(body)["status"] == 500]
        assert [set(crash) for crash in crashes] == [{"type", "title", "status", "detail", "code", "request_id"}]

    def test_as_the_service_configures_its_log(
        self, aboard: Aboard, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        """The format of production adds a time and a level, and nothing that was sent. [BLD-13]"""
        configure_logs()
        try:
            structlog.get_logger("snose.canary").info("request", route="/v1/studies/{study}", status=200)
        finally:
            structlog.reset_defaults()
        assert set(json.loads(capsys.readouterr().out)) == {"event", "level", "timestamp", "route", "status"}
