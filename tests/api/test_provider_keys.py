"""Outside issuers that change their keys by themselves: read at an address, kept for a time, and in nobody's way."""

import json
import socket
import ssl
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any, Final
from unittest.mock import patch

import pytest

from app.domain.notices import may_be_asked
from app.errors import ProviderUnavailable, UnsafeSetting
from app.identity import discovery
from app.services import providers
from app.settings import Settings
from app.storage.delivery import NotDelivered
from app.storage.provider_client import ProviderClient
from app.surroundings import surroundings
from tests.api.test_issuers import AUDIENCE, S, registration
from tests.harness import Caller, House, expect
from tests.provider import DESCRIPTION, Fault, Provider, drip, garbage, hang, huge, provider, redirect, status
from tests.running_study import running_study
from tests.signers import signer

DISCOVERED: Final = {"jwks": None, "discovery": True}


@pytest.fixture
def idp() -> Iterator[Provider]:
    with provider() as running:
        yield running


def trust(house: House, idp: Provider, **changes: Any) -> Caller:  # noqa: ANN401  # a field may be anything
    """Return an investigator whose identity ``d`` of the provider stands for them; the keys are read by discovery."""
    idp.clock = lambda: house.clock.now.timestamp()  # noqa: PLW0108  # the clock goes on
    second = house.person("service_admin", study=None)
    body = registration(issuer=idp.issuer, **DISCOVERED | changes)
    issuer_id = expect(house.admin.post("/v1/issuers", json=body), 201)["issuer_id"]
    expect(second.post(f"/v1/issuers/{issuer_id}/confirmation", step_up=True), 200)
    doctor = house.person("investigator")
    link = {"issuer": idp.issuer, "subject": "d", "username": doctor.username}
    link_id = expect(house.admin.post("/v1/identity-links", json=link), 201)["link_id"]
    expect(second.post(f"/v1/identity-links/{link_id}/confirmation", step_up=True), 200)
    return doctor


def token(idp: Provider, number: int, **header: Any) -> str:  # noqa: ANN401  # likewise
    now = idp.clock()
    claims = {"iss": idp.issuer, "aud": AUDIENCE, "sub": "d", "iat": now, "exp": now + 300, "jti": str(number)}
    return idp.signer.sign(claims, {"typ": "at+jwt", "kid": idp.signer.key_id, **header})


class TestKeys:
    def test_read_where_they_are_and_followed_when_they_change(self, house: House, idp: Provider) -> None:
        """RS256 as its JWK says; a new name is asked for at most once a minute, and the key before it is out [T19]"""
        doctor = trust(house, idp)
        assert idp.asked == []
        me = expect(house.send("GET", "/v1/me", token=token(idp, 1)), 200)
        assert me["username"] == doctor.username
        expect(house.send("GET", "/v1/me", token=token(idp, 2)), 200)
        assert idp.asked == [DESCRIPTION, "/keys"]
        former = idp.signer
        idp.rotate()
        # A stranger who names keys that are not there has nobody asked again.
        for number in range(5):
            expect(house.send("GET", "/v1/me", token=token(idp, 3, kid=str(number))), 401)
        assert len(idp.asked) == 2
        house.clock.advance(seconds=61)
        expect(house.send("GET", "/v1/me", token=token(idp, 4)), 200)
        assert len(idp.asked) == 4
        idp.signer = former
        expect(house.send("GET", "/v1/me", token=token(idp, 5)), 401)
        [listed] = expect(house.admin.get("/v1/issuers"), 200)["items"]
        assert (listed["is_discovered"], listed["jwks_uri"]) == (True, None)

    @pytest.mark.parametrize("database_kind", ["sqlite"])
    def test_read_at_an_address_alone(self, house: House, idp: Provider) -> None:
        """`jwks_uri`, for an issuer that describes itself nowhere; registered anew it is read anew [T19]"""
        trust(house, idp, discovery=False, jwks_uri=f"{idp.issuer}/keys")
        expect(house.send("GET", "/v1/me", token=token(idp, 1)), 200)
        assert idp.asked == ["/keys"]
        idp.rotate("PS256")
        body = registration(issuer=idp.issuer, **DISCOVERED)
        issuer_id = expect(house.admin.post("/v1/issuers", json=body), 201)["issuer_id"]
        second = house.person("service_admin", study=None)
        expect(second.post(f"/v1/issuers/{issuer_id}/confirmation", step_up=True), 200)
        expect(house.send("GET", "/v1/me", token=token(idp, 2)), 200)

    def test_last_good_keys_and_then_none(self, house: House, idp: Provider) -> None:
        """An issuer that is down is not missed for a day; then its tokens are refused, and the local sign-in goes on [T18e, D5]"""
        doctor = trust(house, idp)
        expect(house.send("GET", "/v1/me", token=token(idp, 1)), 200)
        idp.faults[DESCRIPTION] = status(500)
        for hours in (2, 20):
            house.clock.advance(hours=hours)
            expect(house.send("GET", "/v1/me", token=token(idp, hours)), 200)
        house.clock.advance(hours=3)
        problem = expect(house.send("GET", "/v1/me", token=token(idp, 25)), 503)
        assert problem["code"] == "provider_unavailable"
        assert "your own password at /v1/sessions" in problem["advice"]
        body = {"subject_id": "01-0001", "reason_code": "overdose"}
        told = expect(house.send("POST", f"{S}/code-breaks", token=token(idp, 26), json=body), 503)
        assert (told["code"], told["backup_contact"]) == ("provider_unavailable", house.settings.backup_contact)
        sent = {"username": doctor.username, "password": doctor.password}
        # Whoever signs in shows what they like beside it: nobody is asked about it.
        asked = len(idp.asked)
        house.clock.advance(minutes=2)
        expect(house.send("POST", "/v1/sessions", token=token(idp, 27), json=sent), 201)
        assert len(idp.asked) == asked
        idp.faults.clear()
        expect(house.send("GET", "/v1/me", token=token(idp, 28)), 200)

    @pytest.mark.parametrize("database_kind", ["sqlite"])
    def test_answers_that_are_none(self, house: House, idp: Provider) -> None:
        """Whatever it answers instead, it is refused, and nothing else is asked than what it was registered as [T31, API10]"""
        trust(house, idp)
        with provider() as other, patch.object(providers, "PATIENCE", 5.0):
            other.signer, other.keys = idp.signer, idp.keys
            wrong: list[tuple[str, Fault | dict[str, Any], str]] = [
                (DESCRIPTION, status(500), "http_500"),
                (DESCRIPTION, status(204), "http_204"),
                (DESCRIPTION, garbage, "form"),
                (DESCRIPTION, huge, "too_large"),
                (DESCRIPTION, redirect(f"{other.issuer}{DESCRIPTION}"), "http_302"),
                ("/keys", redirect(f"{other.issuer}/keys"), "http_302"),
                ("/keys", garbage, "form"),
                ("/keys", status(200), "keys"),
                ("", {"issuer": other.issuer}, "issuer"),
                ("", {"issuer": f"{idp.issuer}/"}, "issuer"),
                ("", {"jwks_uri": None}, "description"),
                ("", {"jwks_uri": "http://169.254.169.254/latest"}, "address_refused"),
                ("", {"jwks_uri": "https://10.0.0.1/keys"}, "address_refused"),
                ("", {"jwks_uri": "file:///etc/passwd"}, "address_refused"),
            ]
            for number, (path, fault, why) in enumerate(wrong):
                house.clock.advance(minutes=2)
                idp.faults = {} if isinstance(fault, dict) else {path: fault}
                idp.described = fault if isinstance(fault, dict) else {}
                expect(house.send("GET", "/v1/me", token=token(idp, number)), 503)
                kept = house.deployment.providers._kept[idp.issuer]
                assert kept.trouble == why, (path, why)
            assert other.asked == []

    def test_code_break_while_the_issuer_hangs(self, house: House, idp: Provider) -> None:
        """Threads that wait for it are few, and a break in a local session is none of them [T18e, EUB-05, D5, N01]"""
        study = running_study(house, subjects=1)
        trust(house, idp)
        release = Event()

        def wait(_idp: Provider, _talk: object) -> None:
            release.wait(30)

        idp.faults[DESCRIPTION] = wait
        tokens = [token(idp, number) for number in range(6)]
        with patch.object(providers, "PATIENCE", 30.0), ThreadPoolExecutor(6) as pool:
            house.deployment.providers.client._client._patience = 30.0
            waiting = [pool.submit(house.send, "GET", "/v1/me", token=one) for one in tokens]
            at_once = house.settings.threads // 4
            while sum(one.done() for one in waiting) < len(tokens) - at_once:
                release.wait(0.01)
            body = {"subject_id": "01-0001", "reason_code": "overdose"}
            doctor = study.investigator
            doctor.forget_token()
            answer = doctor.post(f"{S}/code-breaks", json=body, step_up=True)
            assert expect(answer, 201)["treatment"]
            # They have been waiting all the time.
            assert sum(one.done() for one in waiting) == len(tokens) - at_once
            release.set()
            assert {one.result().status_code for one in waiting} == {503}
            assert idp.asked == [DESCRIPTION]

    @pytest.mark.parametrize("database_kind", ["sqlite"])
    def test_waiting_ends(self, house: House, idp: Provider) -> None:
        """An issuer that never answers, or never comes to an end, is given up [T18e]"""
        trust(house, idp)
        house.deployment.providers.client._client._patience = 0.1
        for number, fault in enumerate((hang, drip)):
            house.clock.advance(minutes=2)
            idp.faults[DESCRIPTION] = fault
            expect(house.send("GET", "/v1/me", token=token(idp, number)), 503)
        idp.faults[DESCRIPTION] = hang
        house.clock.advance(minutes=2)
        with patch.object(providers, "PATIENCE", 0.01):
            expect(house.send("GET", "/v1/me", token=token(idp, 9)), 503)

    @pytest.mark.parametrize("database_kind", ["sqlite"])
    def test_what_is_no_registration(self, house: House) -> None:
        """One source of keys, at an address of the right form [G2, T31]"""
        wrong: list[dict[str, Any]] = [
            {"jwks": None},
            {"discovery": True},
            {"jwks": None, "discovery": True, "jwks_uri": "https://a.example/keys"},
            {"jwks": None, "jwks_uri": "http://login.hospital.example/keys"},
            {"jwks": None, "jwks_uri": "https://user@login.hospital.example/keys"},
            {"jwks": None, "jwks_uri": "ftp://login.hospital.example/keys"},
            {"jwks": None, "discovery": True, "issuer": "http://login.hospital.example"},
            {"jwks": None, "discovery": True, "issuer": "https://login.hospital.example/#x"},
            {"jwks": {"keys": [{**signer("RS256").jwk, "alg": name} for name in ("RS256", "PS256")]}},
            {"jwks": {"keys": [{**signer("RS256").jwk, "alg": "RS512"}]}},
        ]
        for changes in wrong:
            expect(house.admin.post("/v1/issuers", json=registration(**changes)), 422)


class TestDescription:
    def test_keys(self) -> None:
        """What is not ours to use is passed over; a key has one algorithm, and one of RSA without a name its issuer's [T19]"""
        rsa, curve = signer("RS256").jwk, signer("ES256").jwk

        def read(*given: object, rsa_algorithm: str = "PS256") -> list[tuple[str | None, str]]:
            content = json.dumps({"keys": given}).encode()
            return [(one.key_id, one.key.algorithm) for one in discovery.keys(content, rsa_algorithm)]

        odd: list[object] = [
            None,
            7,
            {},
            {"kty": "oct", "k": "AAAA"},
            {**curve, "use": "enc"},
            {**curve, "crv": "P-384"},
        ]
        odd.append(dict(signer("ES256").key.as_dict(private=True)))
        assert read(*odd, {**curve, "kid": "a"}, {**rsa, "kid": 7}) == [("a", "ES256"), (None, "PS256")]
        assert read(rsa, rsa_algorithm="RS256") == [(None, "RS256")]
        assert read({**rsa, "alg": "PS256"}, {**rsa, "alg": "RS256"}, rsa_algorithm="RS256") == [(None, "PS256")]
        for given in ([], odd, [curve] * 51):
            with pytest.raises(ProviderUnavailable):
                read(*given)

    def test_algorithm_of_keys_that_name_none(self) -> None:
        """The one that the issuer signs with, when it is one [T19]"""
        for named, found in (
            (["RS256"], "RS256"),
            (["PS256", "RS256"], "PS256"),
            (["ES256"], "PS256"),
            ("RS256", "PS256"),
        ):
            told = {"issuer": "i", "jwks_uri": "u", "id_token_signing_alg_values_supported": named}
            content = json.dumps(told).encode()
            assert discovery.description(content, "i").rsa_algorithm == found
        assert discovery.address_of("https://a/") == discovery.address_of("https://a")


class TestAddresses:
    def test_private_network_by_the_operators_word_only(self) -> None:
        """A host of the inside is asked when the operator names it; this machine and its neighbours on the wire never [T31]"""
        inside = frozenset({"login.hospital.example"})
        for address in ("10.1.2.3", "172.16.0.1", "192.168.1.1", "fd00::1"):
            assert may_be_asked("login.hospital.example", address, inside=inside, may_stay_here=False)
            assert not may_be_asked("other.example", address, inside=inside, may_stay_here=True)
        for address in ("127.0.0.1", "169.254.169.254", "::1", "fe80::1", "0.0.0.0", "100.64.0.1", "224.0.0.1", "x"):  # noqa: S104  # one of the refused
            assert not may_be_asked("login.hospital.example", address, inside=inside, may_stay_here=False)
        assert may_be_asked("other.example", "8.8.8.8", inside=inside, may_stay_here=False)

    def test_name_that_turns_inside(self, idp: Provider) -> None:
        """The setting reaches the connection, which goes to what was looked at [T31]"""
        asked: list[str] = []

        def resolve(host: str, port: int, **_options: object) -> list[Any]:
            asked.append(host)
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.255.255.1", port))]

        def refuse(address: tuple[str, int], _patience: float) -> socket.socket:
            raise ConnectionRefusedError(address)

        for inside, why in (
            (frozenset[str](), "address_refused"),
            (frozenset({"a.example"}), "ConnectionRefusedError"),
        ):
            client = ProviderClient(may_stay_here=False, inside=inside, resolve=resolve)
            with patch.object(socket, "create_connection", refuse), pytest.raises(NotDelivered, match=why):
                client.ask("GET", "https://a.example/keys", {})
        assert asked == ["a.example"] * 2
        # Plain HTTP is for this machine in a test, and for nobody else.
        for url in ("http://a.example/keys", idp.issuer):
            with pytest.raises(NotDelivered, match="address_refused"):
                ProviderClient(may_stay_here=False).ask("GET", url, {})
        assert idp.asked == []

    def test_settings(self, tmp_path: Path) -> None:
        """Hosts with commas; an authority that cannot be read is no setting [INT-03]"""
        own: dict[str, Any] = {"database_url": f"sqlite:///{tmp_path / 'x.db'}", "checkpoint_file": tmp_path / "c"}
        around = surroundings(Settings(**own, provider_hosts="Login.Hospital.example, b.example"))
        assert around.issuers._inside == {"login.hospital.example", "b.example"}
        assert around.issuers._may_stay_here is False
        with pytest.raises(UnsafeSetting):
            surroundings(Settings(**own, provider_ca_file=tmp_path / "none"))
        (tmp_path / "ca.pem").write_text("")
        with pytest.raises((UnsafeSetting, ssl.SSLError)):
            surroundings(Settings(**own, provider_ca_file=tmp_path / "ca.pem"))
