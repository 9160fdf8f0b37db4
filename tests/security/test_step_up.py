"""The table of step-up: whatever is not the caller's own, fresh, unspent second proof for this request opens nothing. (T17)

Every negative is tried at the service as it runs; those of a code break are tried with everything else right. At the end the
register shows exactly the positives.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Final

import pyotp
import pytest
from httpx2 import Response

from app.services import proofs
from tests import harness
from tests.authenticator import SETTINGS, Authenticator, b64, header_of, unb64
from tests.harness import Caller, House, Json, expect
from tests.running_study import RunningStudy, S, running_study

BREAKS: Final = f"{S}/code-breaks"
BODY: Final = {"subject_id": "01-0001", "reason_code": "overdose"}
NEGATIVES: Final = 120
POSITIVES: Final = 20
CHANGES: Final[Mapping[str, Json]] = {
    **{
        f"origin {other}": {"origin": other}
        for other in (
            *("http://snose.example.org", "https://snose.example.org:444", "https://snose.example.org/"),
            *(
                "https://snose.example.org.evil.example",
                "https://evil.example",
                "https://SNOSE.example.org",
                "null",
                "",
            ),
        )
    },
    **{f"rp {other}": {"rp_id": other} for other in ("example.org", "evil.example", "SNOSE.example.org", "")},
    "of an enrolment": {"type": "webauthn.create"},
    "of a payment": {"type": "payment.get"},
    "nobody verified": {"is_verified": False},
    "nobody present": {"is_present": False},
    "in a frame": {"cross_origin": True},
    "in a frame, said as text": {"cross_origin": "false"},
    "in another page": {"more": {"topOrigin": "https://evil.example"}},
    "empty challenge": {"challenge": ""},
    "no base64": {"challenge": "!!!!"},
    "challenge is a number": {"challenge": 7},
    "a challenge of its own": {"challenge": b64(bytes(56))},
    "count that stands": {"count": 1},
    "count that falls": {"count": 0},
}


@pytest.fixture
def study(migrated_database_url: str, tmp_path: Path) -> Iterator[RunningStudy]:
    """A study under way at a service that takes passkeys."""
    with harness.house(migrated_database_url, tmp_path, **SETTINGS) as house:
        yield running_study(house, subjects=2)


@dataclass
class Table:
    """An investigator with a device, a thief, and what was tried so far."""

    study: RunningStudy
    device: Authenticator = field(default_factory=Authenticator)
    tried: list[str] = field(default_factory=list)
    passed: list[str] = field(default_factory=list)
    opened: int = 0

    @property
    def house(self) -> House:
        return self.study.house

    @property
    def owner(self) -> Caller:
        return self.study.investigator

    def enrol(self, caller: Caller, device: Authenticator) -> str:
        token = caller.elevated_token()
        options = expect(self.house.send("POST", "/v1/me/passkeys/challenge", token=token), 200)["options"]
        body = {"name": device.label, "credential": device.create(options)}
        return str(expect(self.house.send("POST", "/v1/me/passkeys", token=token, json=body), 201)["passkey_id"])

    def options(self, token: str | None, **request: Json) -> Json:
        body = {"request": request} if request else {}
        return expect(self.house.send("POST", "/v1/sessions/challenge", token=token, json=body), 200)["options"]

    def bound_options(self, token: str, **changes: Json) -> Json:
        return self.options(token, **{"method": "POST", "path": BREAKS, "body": BODY, **changes})

    def breaking(self, token: str | None, signed: Json = None, body: Json = None, **headers: str) -> Response:
        sent = {**headers, **(header_of(signed) if signed is not None else {})}
        return self.house.send("POST", BREAKS, token=token, json=body or BODY, headers=sent)

    def step_up(self, token: str, signed: Json) -> Response:
        return self.house.send("POST", "/v1/sessions/step-up/passkey", token=token, json={"credential": signed})

    def by_code(self, code: str) -> Response:
        # Past every delay, and in a session without wrong ones: it is looked at.
        self.house.clock.advance(seconds=31)
        self.owner.forget_token()
        return self.house.send("POST", "/v1/sessions/step-up", token=self.owner.token(), json={"otp": code})

    def no(self, what: str, answer: Response) -> None:
        self.tried.append(what)
        if answer.status_code not in {401, 403, 404, 422} or "treatment" in answer.text:
            self.passed.append(f"{what}: {answer.status_code}")

    def yes(self, answer: Response) -> None:
        assert expect(answer, 201)["treatment"]
        self.opened += 1


def flipped(text: str, place: int) -> str:
    return text[:place] + ("A" if text[place] != "A" else "Q") + text[place + 1 :]


def tokens(table: Table) -> None:
    """Tokens that are not the owner's, or whose proof is old, spent, ended or never was."""
    house, owner = table.house, table.owner
    good = owner.elevated_token()
    for place in range(6, len(good), 2):
        table.no(f"token changed at {place}", table.breaking(flipped(good, place)))
    for text in (
        "",
        "x",
        good[:-1],
        good + "A",
        good.swapcase(),
        good.removeprefix("snose_"),
        f"snose_client_{good[6:]}",
    ):
        table.no(f"token of {len(text)}", table.breaking(text))
    table.no("no token", table.breaking(None))
    table.no("no proof", table.breaking(owner.token()))
    table.yes(table.breaking(good))
    table.no("spent", table.breaking(good))
    for age in (301, 3_000):
        old = owner.elevated_token()
        house.clock.advance(seconds=age)
        table.no(f"{age} s old", table.breaking(old))
        owner.forget_token()
    ended = owner.elevated_token()
    expect(house.send("DELETE", "/v1/sessions/current", token=ended), 204)
    table.no("signed out", table.breaking(ended))
    owner.forget_token()
    ahead = owner.elevated_token()
    house.clock.advance(seconds=-60)
    table.no("proof of the future", table.breaking(ahead))
    house.clock.advance(seconds=60)
    for role in ("coordinator", "pharmacist", "monitor", "statistician", "study_admin"):
        table.no(role, table.breaking(house.person(role).elevated_token()))
    table.no("another site's", table.breaking(house.person("investigator", site="02").elevated_token()))
    table.no("nobody's", table.breaking(house.person(None).elevated_token()))
    table.no("a machine", table.breaking(house.machine().token()))
    gone = house.person("investigator")
    proven = gone.elevated_token()
    expect(house.admin.delete(f"/v1/people/{gone.username}/grants/{gone.grant_ids[0]}"), 204)
    table.no("revoked", table.breaking(proven))
    for act in ("reset", "deactivation"):
        gone = house.person("investigator")
        proven = gone.elevated_token()
        expect(house.admin.post(f"/v1/people/{gone.username}/{act}"), 200)
        table.no(act, table.breaking(proven))


def codes(table: Table) -> None:
    """One-time codes of other steps, people and alphabets, and one that was used."""
    owner = table.owner

    def shown(step: int) -> str:
        return pyotp.TOTP(owner.totp_secret).at(table.house.clock.now + timedelta(seconds=31 + 30 * step))

    for step in (*range(-12, -2), *range(2, 8)):
        table.no(f"code of {step}", table.by_code(shown(step)))
    other = table.house.person("investigator")
    wrong = [
        other.code(),
        "00000",
        "0000000",
        "abcdef",
        "-12345",
        "\u0661\u0662\u0663\u0664\u0665\u0666",
        "1e5",
        "      ",
    ]
    for code in wrong:
        table.no(f"code {code!r}", table.by_code(code))
    used = owner.code()
    table.house.clock.advance(seconds=31)
    table.no("earlier code", table.by_code(used))
    table.house.clock.advance(seconds=31)
    code = owner.code()
    table.yes(table.breaking(expect(post_code(table, code), 201)["access_token"]))
    table.no("used code", post_code(table, code))


def post_code(table: Table, code: str) -> Response:
    return table.house.send("POST", "/v1/sessions/step-up", token=table.owner.token(), json={"otp": code})


def passkeys(table: Table) -> None:
    """What a device must not say at a step-up, and devices that are not the owner's."""
    token = table.owner.token()
    table.device.count = 10
    expect(table.step_up(token, table.device.get(table.options(token))), 201)
    for what, changes in CHANGES.items():
        table.no(what, table.step_up(token, table.device.get(table.options(token), **changes)))
    given = table.options(token)["challenge"]
    for place in range(0, 56, 7):
        raw = bytearray(unb64(given))
        raw[place] ^= 1
        table.no(
            f"challenge changed at {place}", table.step_up(token, table.device.get({"challenge": b64(bytes(raw))}))
        )
    for what, options in (
        ("of a sign-in", table.options(None)),
        ("of a request", table.bound_options(token)),
        ("of another session", table.options(table.owner.elevated_token())),
        ("of a colleague", table.options(table.house.person("investigator").token())),
    ):
        table.no(f"challenge {what}", table.step_up(token, table.device.get(options)))
    thief = Authenticator("thief")
    thief.user_handle = table.device.user_handle
    table.no("unknown key", table.step_up(token, thief.get(table.options(token))))
    thief.credential_id = table.device.credential_id
    thief.count = 99
    table.no("another key under its id", table.step_up(token, thief.get(table.options(token))))
    colleague, removed = Authenticator("colleague"), Authenticator("removed")
    table.enrol(table.house.person("investigator"), colleague)
    table.no("a colleague's key", table.step_up(token, colleague.get(table.options(token))))
    passkey_id = table.enrol(table.owner, removed)
    expect(table.owner.delete(f"/v1/me/passkeys/{passkey_id}", step_up=True), 204)
    table.owner.forget_token()
    token = table.owner.token()
    table.no("a key removed", table.step_up(token, removed.get(table.options(token))))
    parts(table, token)


def parts(table: Table, token: str) -> None:
    """A good answer of a device with one part of it changed or missing."""
    for name in ("id", "rawId", "type", "response"):
        signed = table.device.get(table.options(token))
        del signed[name]
        table.no(f"without {name}", table.step_up(token, signed))
    for name in ("clientDataJSON", "authenticatorData", "signature", "userHandle"):
        for content in (b"", b"x", bytes(200)):
            signed = table.device.get(table.options(token))
            signed["response"][name] = b64(content)
            table.no(f"{name} of {len(content)}", table.step_up(token, signed))
    for place in (4, 20, 40, 60):
        signed = table.device.get(table.options(token))
        signed["response"]["signature"] = flipped(signed["response"]["signature"], place)
        table.no(f"signature changed at {place}", table.step_up(token, signed))
    signed = table.device.get(table.options(token))
    expect(table.step_up(token, signed), 201)
    table.no("a second time", table.step_up(token, signed))


def requests(table: Table) -> None:
    """What was signed for one request, sent with another one, by somebody else, again, or late."""
    token, house = table.owner.token(), table.house

    def signed(**changes: Json) -> Json:
        return table.device.get(table.bound_options(token, **changes))

    for what, body in (
        ("another subject", {**BODY, "subject_id": "01-0002"}),
        ("another reason", {**BODY, "reason_code": "other_safety"}),
        ("one field more", {**BODY, "requested_by": "Dr Thief"}),
        ("another spelling", {**BODY, "subject_id": "01-0001 "}),
    ):
        table.no(what, table.breaking(token, signed(), body))
        table.no(f"signed for {what}", table.breaking(token, signed(body=body)))
    others: tuple[Json, ...] = (
        *({"method": method} for method in ("GET", "DELETE")),
        *({"path": path} for path in (f"{BREAKS}/", f"{BREAKS}?x=1", BREAKS.lower(), f"{S}/safety-unblindings", "/")),
        {"body": None},
        {"body": [BODY]},
        {"body": {}},
    )
    for changes in others:
        table.no(f"signed for {changes}", table.breaking(token, signed(**changes)))
    table.no("query added", house.send("POST", f"{BREAKS}?x=1", token=token, json=BODY, headers=header_of(signed())))
    for what, changes in CHANGES.items():
        table.no(f"request {what}", table.breaking(token, table.device.get(table.bound_options(token), **changes)))
    table.no("a step-up's", table.breaking(token, table.device.get(table.options(token))))
    table.no("a sign-in's", table.breaking(token, table.device.get(table.options(None))))
    table.no("of another session", table.breaking(table.house.person("investigator").token(), signed()))
    table.no("without a token", table.breaking(None, signed()))
    late = signed()
    house.clock.advance(seconds=301)
    table.no("late", table.breaking(token, late))
    for header in ("", "e30", "W10", "!!", "A" * 10_000, "bnVsbA"):
        table.no(f"header {header[:9]!r}", table.breaking(token, **{"Snose-Passkey": header}))
    again = signed()
    table.yes(table.breaking(token, again))
    table.no("a request a second time", table.breaking(token, again))


def positives(table: Table) -> None:
    """Each kind of proof, new and nearly five minutes old."""
    owner, device, clock = table.owner, table.device, table.house.clock

    def by_passkey(token: str) -> str:
        return str(expect(table.step_up(token, device.get(table.options(token))), 201)["access_token"])

    def by_sign_in(_: str) -> str:
        body = {"credential": device.get(table.options(None))}
        return str(expect(table.house.send("POST", "/v1/sessions/passkey", json=body), 201)["access_token"])

    kinds: tuple[Callable[[str], str], ...] = (lambda _: owner.elevated_token(), by_passkey, by_sign_in)
    for age in (0, 60, 120, 180, 240, 299):
        for prove in kinds:
            token = prove(owner.token())
            clock.advance(seconds=age)
            table.yes(table.breaking(token))
        token = owner.token()
        signed = device.get(table.bound_options(token))
        clock.advance(seconds=age)
        table.yes(table.breaking(token, signed, dict(reversed(BODY.items()))))


def filled(study: RunningStudy) -> Table:
    table = Table(study)
    table.enrol(table.owner, table.device)
    for part in (tokens, codes, passkeys, requests, positives):
        part(table)
    return table


def test_table(study: RunningStudy) -> None:
    """At least 120 negatives and none passes, 20 positives and all do; the register shows these. [SIG-01, SIG-11, SIG-12; T17]"""
    table = filled(study)
    assert table.passed == []
    assert len(table.tried) == len(set(table.tried)) >= NEGATIVES
    assert table.opened >= POSITIVES
    register = expect(table.owner.get(BREAKS, limit=500), 200)["items"]
    assert len(register) == table.opened


@pytest.mark.parametrize("database_kind", ["sqlite"])
def test_a_build_whose_challenges_are_for_anything(study: RunningStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: the table notices a service whose challenges say nothing of their request. [T17]"""
    real = proofs._seal
    monkeypatch.setattr(proofs, "_seal", lambda ctx, purpose, _, given: real(ctx, purpose, b"", given))
    table = Table(study)
    table.enrol(table.owner, table.device)
    requests(table)
    assert any(what.startswith("another subject") for what in table.passed)
