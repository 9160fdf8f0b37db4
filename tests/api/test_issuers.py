"""Outside issuers over HTTP: whom their tokens stand for, and that no administrator becomes somebody else by one."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final
from unittest.mock import patch

import pytest

from app.identity import jose
from app.services import audited, outside
from app.storage.database import TryAgain
from tests.harness import STUDY, Caller, House, expect
from tests.running_study import running_study
from tests.signers import forged, signer

ISSUER: Final = "https://login.hospital.example"
AUDIENCE: Final = "https://snose.hospital.example"
S: Final = f"/v1/studies/{STUDY}"


@dataclass
class Outside:
    """An issuer in force, by the word of two administrators."""

    house: House
    second: Caller
    issuer_id: str
    _made: int = 0

    def token(self, subject: str, **changes: Any) -> str:  # noqa: ANN401  # a claim may be anything
        """Return a token of the issuer's; each is another one."""
        self._made += 1
        now = self.house.clock.now.timestamp()
        usual = {"iss": ISSUER, "aud": AUDIENCE, "sub": subject, "iat": now, "exp": now + 300, "jti": str(self._made)}
        claims = {name: value for name, value in {**usual, **changes}.items() if value is not None}
        return signer("ES256").sign(claims, {"typ": "at+jwt"})

    def proven(self, subject: str, age: float = 0, **changes: Any) -> str:  # noqa: ANN401  # likewise
        return self.token(subject, acr="mfa", auth_time=self.house.clock.now.timestamp() - age, **changes)

    def ask(self, subject: str, body: Mapping[str, Any] | None = None) -> str:
        """Return a link that is asked for."""
        sent = {"issuer": ISSUER, "subject": subject, **(body or {})}
        return str(expect(self.house.admin.post("/v1/identity-links", json=sent), 201)["link_id"])

    def link(self, subject: str, body: Mapping[str, Any]) -> str:
        """Return a link in force."""
        link_id = self.ask(subject, body)
        expect(self.second.post(f"/v1/identity-links/{link_id}/confirmation", step_up=True), 200)
        return link_id

    def me(self, token: str, status: int = 200) -> Any:  # noqa: ANN401  # the answer's JSON
        return expect(self.house.send("GET", "/v1/me", token=token), status)


def registration(**changes: Any) -> dict[str, Any]:  # noqa: ANN401  # a field may be anything
    keys = {"keys": [{**signer("ES256").jwk, "kid": "1", "use": "sig"}]}
    return {"issuer": ISSUER, "audience": AUDIENCE, "jwks": keys, "proof_acr_values": ["mfa"], **changes}


def outsiders(house: House) -> Outside:
    second = house.person("service_admin", study=None, username="second.admin")
    issuer_id = str(expect(house.admin.post("/v1/issuers", json=registration()), 201)["issuer_id"])
    expect(second.post(f"/v1/issuers/{issuer_id}/confirmation", step_up=True), 200)
    return Outside(house, second, issuer_id)


class TestIssuers:
    def test_one_administrator_puts_no_issuer_in_force(self, house: House) -> None:
        """Whoever could would vouch for everybody: the same person twice is refused, and tokens open nothing [USR-04, T19]"""
        made = expect(house.admin.post("/v1/issuers", json=registration()), 201)
        path = f"/v1/issuers/{made['issuer_id']}"
        assert made["confirmed_at"] is None
        assert expect(house.admin.post(f"{path}/confirmation", step_up=True), 409)["code"] == "second_person_required"
        expect(house.admin.post(f"{path}/confirmation"), 401)
        body = {"issuer": ISSUER, "subject": "x", "username": "admin"}
        expect(house.admin.post("/v1/identity-links", json=body), 404)
        second = house.person("service_admin", study=None)
        assert expect(second.post(f"{path}/confirmation", step_up=True), 200)["confirmed_by"] == second.username
        assert expect(second.post(f"{path}/confirmation", step_up=True), 409)["code"] == "illegal_transition"

    def test_new_keys_take_the_place_of_the_old_by_two_persons(self, house: House) -> None:
        """One administrator changes no key; with two the old key, and its sessions, are worth nothing [USR-06]"""
        out = outsiders(house)
        doctor = house.person("investigator")
        out.link("d", {"username": doctor.username})
        token = out.token("d")
        out.me(token)
        keys = {"keys": [signer("EdDSA").jwk]}
        made = expect(house.admin.post("/v1/issuers", json=registration(jwks=keys)), 201)
        out.me(token)
        expect(out.second.post(f"/v1/issuers/{made['issuer_id']}/confirmation", step_up=True), 200)
        out.me(token, 401)
        out.me(out.token("d"), 401)
        now = house.clock.now.timestamp()
        claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "d", "iat": now, "exp": now + 60}
        assert out.me(signer("EdDSA").sign(claims, {"typ": "at+jwt"}))["username"] == doctor.username
        listed = expect(house.admin.get("/v1/issuers"), 200)["items"]
        assert [one["revoked_at"] is None for one in listed] == [False, True]
        expect(house.admin.delete(f"/v1/issuers/{made['issuer_id']}"), 204)
        expect(house.admin.delete(f"/v1/issuers/{made['issuer_id']}"), 404)
        out.me(signer("EdDSA").sign({**claims, "jti": "2"}, {"typ": "at+jwt"}), 401)
        waiting = expect(house.admin.post("/v1/issuers", json=registration()), 201)["issuer_id"]
        expect(house.admin.delete(f"/v1/issuers/{waiting}"), 204)
        assert expect(out.second.post(f"/v1/issuers/{waiting}/confirmation", step_up=True), 409)

    @pytest.mark.parametrize("database_kind", ["sqlite"])
    def test_what_is_no_issuer(self, house: House) -> None:
        """Named in the field's words [G2]"""
        wrong: list[dict[str, Any]] = [
            {"jwks": {"keys": []}},
            {"jwks": {"keys": [signer("ES256").jwk] * 11}},
            {"jwks": {"keys": [{"kty": "oct", "k": "AAAA"}]}},
            {"issuer": "login"},
            {"audience": ""},
            {"proof_acr_values": ["x"] * 11},
        ]
        for changes in wrong:
            expect(house.admin.post("/v1/issuers", json=registration(**changes)), 422)


class TestLinks:
    def test_one_administrator_becomes_nobody_else(self, house: House) -> None:
        """A link waits for its owner or a second administrator; neither asker, stranger nor machine confirms it [USR-04, SIG-07]"""
        out = outsiders(house)
        doctor, stranger = house.person("investigator"), house.person("monitor")
        link_id = out.ask("mine", {"username": doctor.username})
        out.me(out.token("mine"), 401)
        answer = house.admin.post(f"/v1/identity-links/{link_id}/confirmation", step_up=True)
        assert expect(answer, 409)["code"] == "second_person_required"
        own = f"/v1/me/identity-links/{link_id}/confirmation"
        for other in (stranger, house.admin):
            expect(other.post(own, step_up=True), 404)
        expect(house.machine().post(own), 403)
        expect(doctor.post(own), 401)
        [listed] = expect(doctor.get("/v1/me/identity-links"), 200)["items"]
        assert (listed["link_id"], listed["subject"], listed["confirmed_at"]) == (link_id, "mine", None)
        assert expect(stranger.get("/v1/me/identity-links"), 200)["items"] == []
        assert expect(doctor.post(own, step_up=True), 200)["confirmed_by"] == doctor.username
        assert out.me(out.token("mine"))["username"] == doctor.username
        assert expect(doctor.post(own, step_up=True), 409)["code"] == "illegal_transition"

    def test_one_identity_stands_for_one_account(self, house: House) -> None:
        """Two links of one identity confirmed at once leave one [USR-01]"""
        out = outsiders(house)
        people = [house.person("monitor"), house.person("inspector")]
        links = [out.ask("same", {"username": one.username}) for one in people]
        tokens = [one.elevated_token() for one in people]

        def confirm(number: int) -> int:
            path = f"/v1/me/identity-links/{links[number]}/confirmation"
            return int(house.send("POST", path, token=tokens[number]).status_code)

        with ThreadPoolExecutor(2) as pool:
            assert sorted(pool.map(confirm, (0, 1))) == [200, 409]
        out.me(out.token("same"))

    def test_an_ended_link_and_a_deactivated_account_are_out_at_once(self, house: House) -> None:
        """A live token opens nothing from that moment, nor does a new one [USR-06]"""
        out = outsiders(house)
        doctor = house.person("investigator")
        link_id = out.link("d", {"username": doctor.username})
        token = out.token("d")
        out.me(token)
        expect(house.admin.delete(f"/v1/identity-links/{link_id}"), 204)
        expect(house.admin.delete(f"/v1/identity-links/{link_id}"), 404)
        expect(house.admin.delete(f"/v1/identity-links/{link_id[:-4]}0000"), 404)
        for one in (token, out.token("d")):
            out.me(one, 401)
        again = out.link("d", {"username": doctor.username})
        out.me(token, 401)
        token = out.token("d")
        out.me(token)
        expect(house.admin.post(f"/v1/people/{doctor.username}/deactivation"), 200)
        for one in (token, out.token("d")):
            out.me(one, 401)
        listed = expect(house.admin.get("/v1/identity-links"), 200)["items"]
        assert [one["link_id"] for one in listed] == [link_id, again]

    @pytest.mark.parametrize("database_kind", ["sqlite"])
    def test_what_is_no_link(self, house: House) -> None:
        """Two accounts, none, or one that is not there [G2]"""
        outsiders(house)
        path = "/v1/identity-links"
        for body in ({}, {"username": "admin", "client_id": "client-x"}, {"username": "X"}):
            expect(house.admin.post(path, json={"issuer": ISSUER, "subject": "x", **body}), 422)
        expect(house.admin.post(path, json={"issuer": ISSUER, "subject": "x", "username": "nobody"}), 404)


class TestTokens:
    def test_a_machine_allocates_by_its_own_issuer(self, house: House) -> None:
        """Grants stay local: without one it may nothing, with one it may at once; the entry names the client [USR-15]"""
        study, out = running_study(house, subjects=1), outsiders(house)
        edc = house.machine(None)
        out.link("edc", {"client_id": edc.client_id})
        token = out.token("edc")
        expect(house.send("GET", f"{S}/allocations", token=token), 404)
        house.grant(edc, "edc_client")
        expect(house.send("GET", f"{S}/allocations", token=token), 200)
        begun = [entry for entry in house.trail() if entry["action"] == "token:create"][-1]
        assert (begun["actor"], begun["target"]) == (edc.client_id, {"client_id": edc.client_id})
        assert begun["after"]["issuer"] == ISSUER
        assert study.house.trail(STUDY, last=1)[0]["client"] == edc.client_id
        house.clock.advance(minutes=6)
        expect(house.send("GET", f"{S}/allocations", token=token), 401)

    def test_a_proof_given_there_breaks_a_code_here_once(self, house: House) -> None:
        """RFC 9470: `acr` and `auth_time` of the last 300 s; one proof is one break in whatever tokens it stands [SIG-11, D3]"""
        running_study(house, subjects=2)
        out = outsiders(house)
        doctor = house.person("investigator")
        out.link("d", {"username": doctor.username})

        def reveal(token: str, subject: str = "01-0001") -> int:
            body = {"subject_id": subject, "reason_code": "overdose"}
            return int(house.send("POST", f"{S}/code-breaks", token=token, json=body).status_code)

        now = house.clock.now.timestamp()
        for token in (
            out.token("d"),
            out.token("d", acr="mfa"),
            out.token("d", auth_time=now),
            out.token("d", acr="pwd", auth_time=now),
            out.token("d", acr=None, auth_time=now, amr=["mfa"]),
            out.proven("d", 301),
        ):
            answer = house.send(
                "POST", f"{S}/code-breaks", token=token, json={"subject_id": "01-0001", "reason_code": "overdose"}
            )
            assert expect(answer, 401)["code"] == "step_up_required"
            assert 'error="insufficient_user_authentication"' in answer.headers["WWW-Authenticate"]
        given = house.clock.now.timestamp() - 10
        first = out.token("d", acr="mfa", auth_time=given - 1)
        other = out.token("d", acr="mfa", auth_time=given)
        same = out.token("d", acr="mfa", auth_time=given)
        out.me(other)
        assert [reveal(other), reveal(same, "01-0002"), reveal(other, "01-0002")] == [201, 401, 401]
        assert reveal(first) == 401
        house.clock.advance(seconds=30)
        assert reveal(out.proven("d", -20)) == 201

    def test_an_outside_token_touches_no_local_factor(self, house: House) -> None:
        """Neither password nor device is changed, used or added to by it, and it confirms no link [SIG-07, USR-13]"""
        out = outsiders(house)
        newcomer = house.register("new.comer")
        out.link("n", {"username": "new.comer"})
        token = out.proven("n")
        assert out.me(token)["must_change_password"] is False
        body = {"current": newcomer.password, "new": "seven quiet herons at dawn"}
        expect(house.send("POST", "/v1/me/password", token=token, json=body), 403)
        expect(house.send("POST", "/v1/sessions/step-up", token=token, json={"otp": "000000"}), 403)
        waiting = out.ask("n2", {"username": "new.comer"})
        expect(house.send("POST", f"/v1/me/identity-links/{waiting}/confirmation", token=token), 403)
        expect(newcomer.post("/v1/me/password", json=body), 200)

    def test_a_token_at_once_and_after_a_race_is_one_session(self, house: House) -> None:
        """Its first use by many requests begins one; one that cannot begin in time is not refused as nobody's [INT-01]"""
        out = outsiders(house)
        doctor = house.person("investigator")
        out.link("d", {"username": doctor.username})
        token = out.token("d")
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda _: house.send("GET", "/v1/me", token=token).status_code, range(4)))
        assert found == [200] * 4
        assert (
            sum(
                entry["action"] == "session:create"
                and entry["actor"] == doctor.username
                and "issuer" in (entry["after"] or {})
                for entry in house.trail()
            )
            == 1
        )
        with patch.object(outside, "enter_by_service", side_effect=TryAgain):
            out.me(out.token("d"), 503)

    def test_revoked_while_it_is_looked_at(self, house: House) -> None:
        """What ends between the look at a token and its session begins none [USR-06]"""
        out = outsiders(house)
        doctor = house.person("investigator")
        for act in ("link", "issuer", "account"):
            link_id = out.link(act, {"username": doctor.username})
            paths = {
                "link": ("DELETE", f"/v1/identity-links/{link_id}"),
                "issuer": ("DELETE", f"/v1/issuers/{out.issuer_id}"),
                "account": ("POST", f"/v1/people/{doctor.username}/deactivation"),
            }
            admin, enter = house.admin.token(), audited.enter_by_service

            def meanwhile(*given: Any, act: str = act, **named: Any) -> Any:  # noqa: ANN401  # as the service takes them
                house.send(*paths[act], token=admin)  # noqa: B023  # called before the loop goes on
                return enter(*given, **named)  # noqa: B023  # likewise

            with patch.object(outside, "enter_by_service", meanwhile):
                out.me(out.token(act), 401)
            if act == "issuer":
                out.issuer_id = outsiders_again(house, out)

    @pytest.mark.parametrize("database_kind", ["sqlite"])
    def test_a_build_that_does_not_check_the_signature_is_caught(self, house: House) -> None:
        """Negative control: with the look at the signature taken out, a forged token opens [T19]"""
        out = outsiders(house)
        out.link("d", {"username": house.person("investigator").username})
        now = house.clock.now.timestamp()
        claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "d", "iat": now, "exp": now + 60}
        token = forged({"alg": "ES256", "typ": "at+jwt"}, claims)
        out.me(token, 401)
        with patch.object(jose, "verify", lambda _token, keys: keys[0]):
            out.me(token)


def outsiders_again(house: House, out: Outside) -> str:
    issuer_id = str(expect(house.admin.post("/v1/issuers", json=registration()), 201)["issuer_id"])
    expect(out.second.post(f"/v1/issuers/{issuer_id}/confirmation", step_up=True), 200)
    return issuer_id
