"""Sign-in at an OpenID provider, a real one on loopback: whom it lets in, and that nothing else that comes back does."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Event
from typing import Any, Final
from unittest.mock import patch
from urllib.parse import parse_qs, urlsplit

import pytest

from app.identity import id_tokens
from app.services import issuers, providers, sign_ins
from tests.api.test_issuers import S, registration
from tests.harness import Caller, House, expect
from tests.provider import PERSON, Provider, drip, garbage, hang, provider, redirect, status, unsigned
from tests.running_study import running_study
from tests.signers import signer

CLIENT: Final = "snose:trial+1"
SECRET: Final = "a:secret+of%100"  # of the tests' own provider
BACK: Final = "http://127.0.0.1:50123/back"
ON_SITE: Final = "https://snose.hospital.example/back"

Changes = dict[str, Any]


@pytest.fixture
def idp() -> Iterator[Provider]:
    with provider() as running:
        running.clients[CLIENT] = SECRET
        yield running


@dataclass
class Hospital:
    """A provider in force at a house, and the one person of it who is somebody here."""

    house: House
    idp: Provider
    second: Caller
    doctor: Caller
    issuer_id: str
    link_id: str

    def begin(self, code: int = 201, **changes: Any) -> Any:  # noqa: ANN401  # the answer's JSON
        body = {"issuer": self.idp.issuer, "redirect_uri": BACK, **changes}
        return expect(self.house.send("POST", "/v1/sign-ins", json=body), code)

    def come_back(self, begun: Changes, brought: Changes, code: int = 201) -> Any:  # noqa: ANN401  # likewise
        body = {"sign_in_key": begun["sign_in_key"], **brought}
        sent = {name: value for name, value in body.items() if value is not None}
        return expect(self.house.send("POST", "/v1/sign-ins/completion", json=sent), code)

    def sign_in(self, code: int = 201, **changes: Any) -> Any:  # noqa: ANN401  # likewise
        begun = self.begin(**changes)
        return self.come_back(begun, self.idp.browse(begun["authorization_url"]), code)

    def why(self) -> str:
        """Return the one word of the last entry of the service's own log."""
        entry = self.house.trail(last=1)[0]
        assert (entry["action"], entry["actor"]) == ("session:create", "unknown")
        return str(entry["after"]["why"])


def register(house: House, second: Caller, idp: Provider, **changes: Any) -> str:  # noqa: ANN401  # a field may be anything
    known = {"client_id": CLIENT, "client_secret": SECRET, "redirect_uris": ["http://127.0.0.1/back", ON_SITE]}
    usual = {"jwks": None, "discovery": True, "proof_acr_values": ["mfa", "phr"], "sign_in": known}
    body = registration(issuer=idp.issuer, **usual | changes)
    issuer_id = str(expect(house.admin.post("/v1/issuers", json=body), 201)["issuer_id"])
    expect(second.post(f"/v1/issuers/{issuer_id}/confirmation", step_up=True), 200)
    return issuer_id


def hospital(house: House, idp: Provider, **changes: Any) -> Hospital:  # noqa: ANN401  # likewise
    idp.clock = lambda: house.clock.now.timestamp()  # noqa: PLW0108  # the clock goes on
    second = house.person("service_admin", study=None)
    issuer_id = register(house, second, idp, **changes)
    doctor = house.person("investigator")
    link = {"issuer": idp.issuer, "subject": idp.people[PERSON]["sub"], "username": doctor.username}
    link_id = str(expect(house.admin.post("/v1/identity-links", json=link), 201)["link_id"])
    expect(second.post(f"/v1/identity-links/{link_id}/confirmation", step_up=True), 200)
    return Hospital(house, idp, second, doctor, issuer_id, link_id)


class TestSignIn:
    def test_session_of_the_linked_person(self, house: House, idp: Provider) -> None:
        """Authorization code with PKCE; what it opens is a session like any other, entered [USR-01, USR-06]"""
        at = hospital(house, idp)
        begun = at.begin()
        asked = {name: values[0] for name, values in parse_qs(urlsplit(begun["authorization_url"]).query).items()}
        assert (asked["response_type"], asked["code_challenge_method"]) == ("code", "S256")
        assert (asked["client_id"], asked["redirect_uri"], asked["scope"]) == (CLIENT, BACK, "openid")
        given = at.come_back(begun, idp.browse(begun["authorization_url"]))
        assert (given["acr"], given["expires_in"]) == ("pwd", 8 * 3600)
        me = expect(house.send("GET", "/v1/me", token=given["access_token"]), 200)
        assert me["username"] == at.doctor.username
        entry = house.trail(last=1)[0]
        assert (entry["actor"], entry["action"]) == (at.doctor.username, "session:create")
        assert entry["target"]["subject"] == "248289761001"
        assert entry["after"]["link_id"] == at.link_id
        # Neither the secret nor anything that was sent there or came back stands in any entry.
        written = str(house.bodies())
        for secret in (SECRET, begun["sign_in_key"], idp.forms[0]["code"], idp.forms[0]["code_verifier"]):
            assert secret not in written
        assert asked["state"] not in written
        listed = expect(house.send("GET", "/v1/me/sessions", token=given["access_token"]), 200)["items"]
        assert sum(one["is_current"] for one in listed) == 1
        expect(house.send("DELETE", "/v1/sessions/current", token=given["access_token"]), 204)
        expect(house.send("GET", "/v1/me", token=given["access_token"]), 401)
        # No factor of the local account is touched by it.
        other = at.sign_in()["access_token"]
        expect(house.send("POST", "/v1/sessions/step-up", token=other, json={"otp": at.doctor.code()}), 403)

    def test_out_at_once(self, house: House, idp: Provider) -> None:
        """A link ended, an issuer revoked or registered anew, an account deactivated, or too long a pause [USR-06, USR-12]"""
        at = hospital(house, idp)

        def open_to(token: str) -> int:
            return int(house.send("GET", "/v1/me", token=token).status_code)

        token = at.sign_in()["access_token"]
        house.clock.advance(minutes=16)
        assert open_to(token) == 401
        token = at.sign_in()["access_token"]
        begun = at.begin()
        brought = idp.browse(begun["authorization_url"])
        at.issuer_id = register(house, at.second, idp)
        assert open_to(token) == 401
        at.come_back(begun, brought, 401)
        assert at.why() == "issuer"
        token = at.sign_in()["access_token"]
        grants = expect(house.admin.get(f"/v1/people/{at.doctor.username}/grants"), 200)["items"]
        expect(house.send("GET", f"{S}/allocations", token=token), 404)
        path = f"/v1/people/{at.doctor.username}/grants/{grants[0]['grant_id']}"
        expect(house.admin.delete(path), 204)
        expect(house.admin.delete(f"/v1/identity-links/{at.link_id}"), 204)
        assert open_to(token) == 401
        at.sign_in(401)
        assert at.why() == "unknown"
        expect(house.admin.delete(f"/v1/issuers/{at.issuer_id}"), 204)
        at.begin(404)

    @pytest.mark.parametrize("database_kind", ["sqlite"])
    def test_revoked_while_the_provider_is_asked(self, house: House, idp: Provider) -> None:
        """What ends between the look at a link and its session begins none; a machine does not sign in [USR-06, USR-15]"""
        at = hospital(house, idp)
        found = sign_ins._known
        token = house.admin.token()

        def meanwhile(*given: Any) -> Any:  # noqa: ANN401  # as the service takes them
            known = found(*given)
            expect(house.send("DELETE", f"/v1/identity-links/{at.link_id}", token=token), 204)
            return known

        with patch.object(sign_ins, "_known", meanwhile):
            at.sign_in(401)
        assert at.why() == "revoked"
        link = {"issuer": idp.issuer, "subject": "248289761001", "client_id": house.machine().client_id}
        link_id = expect(house.admin.post("/v1/identity-links", json=link), 201)["link_id"]
        expect(at.second.post(f"/v1/identity-links/{link_id}/confirmation", step_up=True), 200)
        at.sign_in(401)
        assert at.why() == "machine"

    def test_second_proof_given_there(self, house: House, idp: Provider) -> None:
        """`acr` and a fresh `auth_time` break a code, once; never `iat`, and not what was not asked for and given [SIG-11, D3]"""
        running_study(house, subjects=2)
        at = hospital(house, idp)

        def reveal(token: str, subject: str) -> int:
            body = {"subject_id": subject, "reason_code": "overdose"}
            return int(house.send("POST", f"{S}/code-breaks", token=token, json=body).status_code)

        begun = at.begin(step_up=True)
        asked = {name: values[0] for name, values in parse_qs(urlsplit(begun["authorization_url"]).query).items()}
        assert (asked["acr_values"], asked["max_age"], asked["prompt"]) == ("mfa phr", "300", "login")
        given = at.come_back(begun, idp.browse(begun["authorization_url"]))
        assert given["acr"] == "mfa"
        assert [reveal(given["access_token"], "01-0001"), reveal(given["access_token"], "01-0002")] == [201, 401]
        now = house.clock.now.timestamp()
        for changes in (
            {"acr": "pwd"},
            {"acr": None},
            {"auth_time": None},
            {"auth_time": now - 400},
            {"acr": "pwd", "amr": ["mfa"]},
        ):
            idp.claims = changes
            at.sign_in(401, step_up=True)
            assert at.why() == "acr"
            given = at.sign_in()
            assert given["acr"] == "pwd"
            assert reveal(given["access_token"], "01-0002") == 401
        idp.claims = {"acr": "phr"}
        assert at.sign_in()["acr"] == "mfa"

    @pytest.mark.parametrize("database_kind", ["sqlite"])
    def test_groups(self, house: House, idp: Provider) -> None:
        """Whoever is in none of the groups, or not any longer, is refused, by a token too [USR-03]"""
        at = hospital(house, idp, required_groups=["trial-staff", "trial-lead"], groups_claim="roles")
        for told in (["trial-staff"], "trial-lead", ["x", "trial-lead"]):
            idp.claims = {"roles": told}
            at.sign_in()
        for wrong in (None, [], ["x"], "x", 7, {"trial-staff": True}, [["trial-staff"]], "trial-staff trial-lead"):
            idp.claims = {"roles": wrong, "groups": ["trial-staff"]}
            at.sign_in(401)
            assert at.why() == "groups"
        now = house.clock.now.timestamp()
        claims = {"iss": idp.issuer, "aud": "https://snose.hospital.example", "sub": "248289761001", "iat": now}
        token = idp.signer.sign({**claims, "exp": now + 60}, {"typ": "at+jwt", "kid": idp.signer.key_id})
        expect(house.send("GET", "/v1/me", token=token), 401)

    @pytest.mark.parametrize("database_kind", ["sqlite"])
    def test_public_client_and_secret_in_the_form(self, house: House, idp: Provider) -> None:
        """With no secret, and with one that the provider wants posted; keys changed in between are followed [T19]"""
        idp.described = {"token_endpoint_auth_methods_supported": ["client_secret_post"]}
        at = hospital(house, idp)
        at.sign_in()
        assert idp.forms[-1]["client_secret"] == SECRET
        idp.rotate("ES256")
        house.clock.advance(seconds=61)
        at.sign_in()
        idp.clients = {"public": None}
        idp.described = {"authorization_endpoint": f"{idp.issuer}/authorize?tenant=1"}
        register(house, at.second, idp, sign_in={"client_id": "public", "redirect_uris": [ON_SITE]})
        idp.rotate("EdDSA")
        idp.claims = {"at_hash": None, "azp": "public"}
        at.sign_in(redirect_uri=ON_SITE)
        at.begin(422)

    @pytest.mark.parametrize("database_kind", ["sqlite"])
    def test_what_is_no_sign_in(self, house: House, idp: Provider) -> None:
        """Registrations, issuers and addresses that are none; on its own machine a program has any port [G2, RFC 8252]"""
        at = hospital(house, idp)
        for uri in (ON_SITE, "http://127.0.0.1/back", "http://127.0.0.1:9/back"):
            at.begin(redirect_uri=uri)
        for uri in (
            "http://127.0.0.1:50123/other",
            "http://127.0.0.1:50123/back?x=1",
            "http://127.0.0.1:50123/back#x",
            "http://127.0.0.1.evil.example/back",
            "http://127.0.0.1:1@evil.example/back",
            "http://[::1]:50123/back",
            "http://localhost:50123/back",
            "https://127.0.0.1/back",
            f"{ON_SITE}/",
            "https://snose.hospital.example:8443/back",
            "https://evil.example/back",
        ):
            assert at.begin(422, redirect_uri=uri)["errors"][0]["field"] == "redirect_uri", uri
        at.begin(404, issuer="https://nobody.example")
        known = {"client_id": CLIENT, "redirect_uris": [ON_SITE]}
        wrong: list[Changes] = [
            {"sign_in": known},
            {"jwks": None, "jwks_uri": "https://a.example/keys", "sign_in": known},
            *(
                {"jwks": None, "discovery": True, "sign_in": {**known, "redirect_uris": [uri]}}
                for uri in ("http://snose.example/", "https://a.example/#x", "javascript:alert(1)", "myapp:/x", "x")
            ),
            {"jwks": None, "discovery": True, "sign_in": {**known, "redirect_uris": []}},
        ]
        for changes in wrong:
            expect(house.admin.post("/v1/issuers", json=registration(**changes)), 422)
        idp.described = {"authorization_endpoint": "javascript:alert(1)"}
        register(house, at.second, idp, proof_acr_values=[])
        assert at.begin(422, step_up=True)["errors"][0]["field"] == "step_up"
        assert at.begin(503)["code"] == "provider_unavailable"


class TestNegatives:
    @pytest.mark.parametrize("database_kind", ["sqlite"])
    def test_what_comes_back_by_a_browser(self, house: House, idp: Provider) -> None:
        """A code without its key, in another browser, from another provider, twice, or too late: refused, and entered why [T19]"""
        at = hospital(house, idp)

        def brought_for(begun: Changes) -> Changes:
            return dict(idp.browse(begun["authorization_url"]))

        cases: list[tuple[str, Callable[[Changes, Changes], Changes]]] = [
            ("state", lambda mine, other: {**mine, "state": other["state"]}),
            ("state", lambda mine, _: {**mine, "state": "x"}),
            # Login CSRF: somebody else's code and state at my key, or their code alone.
            ("state", lambda _, other: other),
            ("code", lambda mine, other: {**mine, "code": other["code"]}),
            ("code", lambda mine, _: {**mine, "code": "x"}),
            ("iss", lambda mine, _: {**mine, "iss": "https://attacker.example"}),
            ("iss", lambda mine, _: {**mine, "iss": f"{mine['iss']}/"}),
            ("iss", lambda mine, _: {**mine, "iss": None}),
        ]
        for why, change in cases:
            mine, other = at.begin(), at.begin()
            refused = at.come_back(mine, change(brought_for(mine), brought_for(other)), 401)
            assert refused["code"] == "sign_in_refused"
            assert at.why() == why
        begun = at.begin()
        brought = brought_for(begun)
        at.come_back(begun, brought)
        at.come_back(begun, brought, 401)
        assert at.why() == "used"
        begun = at.begin()
        brought = brought_for(begun)
        house.clock.advance(minutes=11)
        at.come_back(begun, brought, 401)
        assert at.why() == "expired"
        entries = len(house.trail())
        good = at.begin()["sign_in_key"]
        for key in ("x", "x.y", ".", f"{good}x", good[1:], good.partition(".")[0], "W10=.x", "e30=.x"):
            at.come_back({"sign_in_key": key}, brought, 401)
        assert len(house.trail()) == entries

    @pytest.mark.parametrize("database_kind", ["sqlite"])
    def test_what_the_provider_says(self, house: House, idp: Provider) -> None:
        """An ID token with anything wrong in it, or none; one table of what a confused or taken provider says [T19, API10]"""
        at = hospital(house, idp)
        stranger = signer("RS256", "attacker")
        now = house.clock.now.timestamp()
        cases: list[tuple[str, Changes]] = [
            ("nonce", {"claims": {"nonce": "another"}}),
            ("nonce", {"claims": {"nonce": None}}),
            ("nonce", {"claims": {"nonce": 7}}),
            ("aud", {"claims": {"aud": "another"}}),
            ("aud", {"claims": {"aud": [CLIENT, "another"]}}),
            ("aud", {"claims": {"aud": None}}),
            ("azp", {"claims": {"azp": "another"}}),
            ("iss", {"claims": {"iss": "https://attacker.example"}}),
            ("iss", {"claims": {"iss": f"{idp.issuer}/"}}),
            ("iss", {"claims": {"iss": None}}),
            ("exp", {"claims": {"exp": now - 60}}),
            ("exp", {"claims": {"exp": None}}),
            ("iat", {"claims": {"iat": None}}),
            ("iat", {"claims": {"iat": now + 9000}}),
            ("sub", {"claims": {"sub": None}}),
            ("sub", {"claims": {"sub": ["248289761001"]}}),
            ("unknown", {"claims": {"sub": "248289761002"}}),
            ("auth_time", {"claims": {"auth_time": now + 9000}}),
            ("acr", {"claims": {"acr": ["mfa"]}}),
            ("at_hash", {"claims": {"at_hash": "AAAA"}}),
            ("at_hash", {"said": {"access_token": "another"}}),
            ("at_hash", {"said": {"access_token": None}}),
            ("signature", {"is_signed_with": lambda _, claims: stranger.sign(claims, {"typ": "JWT"})}),
            ("signature", {"is_signed_with": lambda idp, claims: idp.signer.sign(claims, algorithm="PS256")}),
            ("alg", {"is_signed_with": lambda idp, claims: idp.signer.sign(claims, algorithm="HS256")}),
            ("form", {"is_signed_with": unsigned}),
            ("header", {"header": {"jku": "https://attacker.example/keys"}}),
            ("typ", {"header": {"typ": "at+jwt"}}),
            ("id_token", {"said": {"id_token": None}}),
            ("id_token", {"said": {"id_token": 7}}),
            ("form", {"said": {"id_token": "x"}}),
            ("size", {"said": {"id_token": "x" * 70_000}}),
        ]
        for why, changes in cases:
            with patch.multiple(idp, **changes):
                assert at.sign_in(401)["code"] == "sign_in_refused"
            assert at.why() == why, changes
        idp.header = {"x5t": "AAAA"}
        at.sign_in()

    @pytest.mark.parametrize("database_kind", ["sqlite"])
    def test_provider_that_gives_no_answer(self, house: House, idp: Provider) -> None:
        """Hanging, down, an error, garbage, another address: 503 that says to sign in locally, entered why [T18e, D5]"""
        at = hospital(house, idp)
        with provider() as other:
            for why, fault in (
                ("http_500", status(500)),
                ("form", garbage),
                ("form", redirect(f"{other.issuer}/token")),
            ):
                idp.faults = {"/token": fault}
                assert at.sign_in(503)["code"] == "provider_unavailable"
                assert at.why() == why
            assert other.asked == []
        idp.faults = {}
        idp.clients[CLIENT] = "changed there"
        at.sign_in(503)
        assert at.why() == "http_401"
        house.deployment.providers.client._client._patience = 0.1
        for fault in (hang, drip):
            idp.faults = {"/token": fault}
            at.sign_in(503)
            assert at.why()
        idp.faults = {}
        with patch.object(providers, "PATIENCE", 0.0):
            at.sign_in(503)
        assert at.why() == "timeout"
        sent = {"username": at.doctor.username, "password": at.doctor.password}
        expect(house.send("POST", "/v1/sessions", json=sent), 201)

    def test_code_break_while_sign_ins_hang(self, house: House, idp: Provider) -> None:
        """A local session breaks the code while every place for providers is held by a sign-in that hangs [T18e, EUB-05, N01]"""
        study = running_study(house, subjects=1)
        at = hospital(house, idp)
        release, places = Event(), house.settings.threads // 4

        def wait(_idp: Provider, _talk: object) -> None:
            release.wait(30)

        idp.faults["/token"] = wait
        house.deployment.providers.client._client._patience = 30.0
        begun = [at.begin() for _ in range(places + 1)]
        brought = [idp.browse(one["authorization_url"]) for one in begun]
        with patch.object(providers, "PATIENCE", 30.0), ThreadPoolExecutor(places) as pool:
            hanging = [pool.submit(at.come_back, *one, 503) for one in list(zip(begun, brought, strict=True))[:places]]
            while idp.asked.count("/token") < places:
                release.wait(0.01)
            at.come_back(begun[-1], brought[-1], 503)
            assert at.why() == "busy"
            study.investigator.forget_token()
            body = {"subject_id": "01-0001", "reason_code": "overdose"}
            assert expect(study.investigator.post(f"{S}/code-breaks", json=body, step_up=True), 201)["treatment"]
            assert not any(one.done() for one in hanging)
            release.set()

    @pytest.mark.parametrize("database_kind", ["sqlite"])
    def test_a_network_that_only_fails_is_slowed_down(self, house: House, idp: Provider) -> None:
        """Neither the log nor the provider is flooded by strangers; passwords of that network go on [E1, USR-10]"""
        at = hospital(house, idp)
        begun, stranger = at.begin(), house.client.at("198.51.100.7")
        body = {"sign_in_key": begun["sign_in_key"], "code": "x", "state": "x"}
        for _ in range(30):
            expect(stranger.post("/v1/sign-ins/completion", json=body), 401)
        entries, asked = len(house.trail()), len(idp.asked)
        house.deployment.noise.take()
        assert expect(stranger.post("/v1/sign-ins/completion", json=body), 429)["code"] == "too_many_attempts"
        assert house.deployment.noise.take() == {"198.51.100.0/24": 1}
        assert (len(house.trail()), len(idp.asked)) == (entries, asked)
        sent = {"username": at.doctor.username, "password": at.doctor.password}
        expect(stranger.post("/v1/sessions", json=sent), 201)
        at.come_back(begun, idp.browse(begun["authorization_url"]))

    @pytest.mark.parametrize("database_kind", ["sqlite"])
    def test_each_provider_has_its_own_way_back(self, house: House, idp: Provider) -> None:
        """Else one could be brought the codes of another that does not name itself (RFC 9700, 4.4.2) [T19; ASVS 10.2.2]"""
        at = hospital(house, idp)

        def other(uri: str, status: int) -> str:
            known = {"client_id": "other", "redirect_uris": ["http://127.0.0.1/other", uri]}
            body = registration(issuer="https://other.example.org", jwks=None, discovery=True, sign_in=known)
            return str(expect(house.admin.post("/v1/issuers", json=body), status).get("issuer_id"))

        for uri in ("http://127.0.0.1/back", "http://127.0.0.1:50123/back", "http://127.0.0.1/back?x=1", ON_SITE):
            other(uri, 422)
        apart = other("https://front.example.org/back", 201)
        expect(at.second.post(f"/v1/issuers/{apart}/confirmation", step_up=True), 200)
        # One that was let in before, or at the same moment, is looked at again.
        with patch.object(issuers, "come_back_together", return_value=False):
            shared = other(ON_SITE, 201)
        expect(at.second.post(f"/v1/issuers/{shared}/confirmation", step_up=True), 422)
        at.sign_in()

    @pytest.mark.parametrize("database_kind", ["sqlite"])
    def test_a_build_that_checks_no_nonce_is_caught(self, house: House, idp: Provider) -> None:
        """Negative control: with any nonce taken for the right one, a token of another sign-in opens [T19]"""
        at = hospital(house, idp)
        idp.claims = {"nonce": "another"}
        at.sign_in(401)
        verify = id_tokens.verify

        def careless(token: Any, keys: Any, expected: Any, demands: Any, now: Any) -> Any:  # noqa: ANN401  # as it takes them
            nonce = str(token.claims["nonce"])
            return verify(
                token,
                keys,
                id_tokens.Expected(expected.issuer, expected.client_id, nonce, expected.access_token),
                demands,
                now,
            )

        with patch.object(id_tokens, "verify", careless):
            at.sign_in()
