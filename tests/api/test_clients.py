"""What machine clients prove themselves with over HTTP: secrets that follow each other, and keys that never leave the client."""

from base64 import urlsafe_b64decode
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from typing import Any, Final
from unittest.mock import patch

import pytest
from httpx2 import Response

from app.identity import jose
from tests.harness import Caller, House, expect
from tests.signers import Signer, encoded, forged, signer

BASE: Final = "http://127.0.0.1:8000"
TYPE: Final = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"


def by_secret(house: House, edc: Caller, secret: str) -> Response:
    form = {"grant_type": "client_credentials", "client_id": edc.client_id, "client_secret": secret}
    return house.client.post("/oauth2/token", data=form)


def by_key(house: House, assertion: str, **more: str) -> Response:
    form = {"grant_type": "client_credentials", "client_assertion_type": TYPE, "client_assertion": assertion, **more}
    return house.client.post("/oauth2/token", data=form)


def claims(house: House, edc: Caller, **changes: Any) -> dict[str, Any]:  # noqa: ANN401  # a claim may be anything
    now = house.clock.now.timestamp()
    usual = {"iss": edc.client_id, "sub": edc.client_id, "aud": BASE, "exp": now + 60, "iat": now, "jti": "one"}
    return {name: value for name, value in {**usual, **changes}.items() if value is not None}


def add_key(house: House, edc: Caller, jwk: dict[str, Any], status: int = 201) -> Any:  # noqa: ANN401  # the answer's JSON
    return expect(house.admin.post(f"/v1/clients/{edc.client_id}/keys", json={"jwk": jwk}), status)


def is_nobody(house: House, token: str) -> bool:
    return house.send("GET", "/v1/me", token=token).status_code == 401


class TestSecrets:
    def test_two_secrets_open_until_the_overlap_is_over(self, house: House) -> None:
        """A secret is changed without a gap, and a token does not outlive the one it was given for [USR-11, USR-15]"""
        edc = house.machine()
        old, path = edc.client_secret, f"/v1/clients/{edc.client_id}/secrets"
        response = house.admin.post(path, json={"overlap_hours": 1})
        issued = expect(response, 201)
        assert response.headers["cache-control"] == "no-store"
        assert issued["fingerprint"] == sha256(issued["client_secret"].encode()).hexdigest()[:16]
        assert house.trail(last=1)[0]["after"]["fingerprint"] == issued["fingerprint"]
        house.clock.advance(minutes=45)
        assert expect(by_secret(house, edc, old), 200)["expires_in"] < 900
        assert expect(by_secret(house, edc, issued["client_secret"]), 200)["expires_in"] == 1800
        listed = expect(house.admin.get(path), 200)["items"]
        assert [one["fingerprint"] for one in listed] == [issued["fingerprint"], sha256(old.encode()).hexdigest()[:16]]
        assert [one["ends_at"] is None for one in listed] == [True, False]
        house.clock.advance(minutes=15)
        expect(by_secret(house, edc, old), 401)
        expect(by_secret(house, edc, issued["client_secret"]), 200)
        assert len(expect(house.admin.get(path), 200)["items"]) == 1

    def test_a_revoked_secret_ends_the_tokens_too(self, house: House) -> None:
        """Whoever stole a secret may hold a token by it; the other secret goes on, the last one may go too [USR-06, USR-13]"""
        edc = house.machine()
        old, path = edc.client_secret, f"/v1/clients/{edc.client_id}/secrets"
        issued = expect(house.admin.post(path, json={}), 201)
        token = str(expect(by_secret(house, edc, old), 200)["access_token"])
        former = expect(house.admin.get(path), 200)["items"][1]["fingerprint"]
        expect(house.admin.delete(f"{path}/{former}"), 204)
        assert is_nobody(house, token)
        expect(by_secret(house, edc, old), 401)
        expect(house.admin.delete(f"{path}/{former}"), 404)
        expect(by_secret(house, edc, issued["client_secret"]), 200)
        expect(house.admin.delete(f"{path}/{issued['fingerprint']}"), 204)
        expect(by_secret(house, edc, issued["client_secret"]), 401)
        assert expect(house.admin.get(path), 200)["items"] == []
        again = expect(house.admin.post(path, json={}), 201)
        assert len(expect(house.admin.get(path), 200)["items"]) == 1
        expect(by_secret(house, edc, again["client_secret"]), 200)

    def test_what_an_admin_may_not_ask_for(self, house: House) -> None:
        """Too many at once, an overlap without end, a client that is off, unknown or a person: named each [G2, USR-15]"""
        edc = house.machine()
        path = f"/v1/clients/{edc.client_id}/secrets"
        for hours in (-1, 2161, "1", None):
            expect(house.admin.post(path, json={"overlap_hours": hours}), 422)
        expect(house.admin.post("/v1/clients/client-nobody/secrets", json={}), 404)
        expect(house.admin.get("/v1/clients/admin/secrets"), 404)
        for _ in range(4):
            expect(house.admin.post(path, json={}), 201)
        assert expect(house.admin.post(path, json={}), 409)["code"] == "conflict"
        expect(house.admin.post(f"/v1/clients/{edc.client_id}/deactivation"), 200)
        assert expect(house.admin.post(path, json={}), 409)["code"] == "illegal_transition"

    def test_rotations_at_once_lose_no_secret(self, house: House) -> None:
        """Each of two admins is given a secret that opens [USR-11]"""
        edc = house.machine()
        path, token = f"/v1/clients/{edc.client_id}/secrets", house.admin.token()
        with ThreadPoolExecutor(3) as pool:
            answers = list(pool.map(lambda _: house.send("POST", path, token=token, json={}), range(3)))
        secrets = [expect(answer, 201)["client_secret"] for answer in answers]
        for secret in (*secrets, edc.client_secret):
            expect(by_secret(house, edc, secret), 200)


class TestKeys:
    @pytest.mark.parametrize("algorithm", ["ES256", "EdDSA", "PS256"])
    @pytest.mark.parametrize("database_kind", ["sqlite"])
    def test_a_client_signs_for_its_token(self, house: House, algorithm: str) -> None:
        """RFC 7523, 2.2: a token without a secret; the entry names the client and its key [USR-15, T19]"""
        edc, pair = house.machine(), signer(algorithm)
        added = add_key(house, edc, pair.jwk)
        assert (added["key_id"], added["algorithm"]) == (pair.key_id, algorithm)
        audiences = (BASE, f"{BASE}/oauth2/token", [BASE])
        for number, audience in enumerate(audiences):
            said = claims(house, edc, aud=audience, jti=str(number))
            token = str(expect(by_key(house, pair.sign(said, {"typ": "JWT", "kid": "x"})), 200)["access_token"])
            assert expect(house.send("GET", "/v1/me", token=token), 200)["username"] == edc.client_id
        entry = house.trail(last=1)[0]
        assert (entry["actor"], entry["before"]) == (edc.client_id, {"key_id": pair.key_id})

    def test_an_assertion_is_taken_once(self, house: House) -> None:
        """Sent again, at once or after a restart, it opens nothing; nor does the same id in another one [T19]"""
        edc, pair = house.machine(), signer("ES256")
        add_key(house, edc, pair.jwk)
        sent = pair.sign(claims(house, edc))
        with ThreadPoolExecutor(3) as pool:
            found = sorted(pool.map(lambda _: by_key(house, sent).status_code, range(3)))
        assert found == [200, 401, 401]
        expect(by_key(house, pair.sign(claims(house, edc, exp=house.clock.now.timestamp() + 90))), 401)
        house.restart()
        expect(by_key(house, sent), 401)
        expect(by_key(house, pair.sign(claims(house, edc, jti="two")), client_id=edc.client_id), 200)

    @pytest.mark.parametrize("database_kind", ["sqlite"])
    def test_a_build_that_does_not_check_the_signature_is_caught(self, house: House) -> None:
        """Negative control: with the look at the signature taken out, a forged assertion opens [T19]"""
        edc, pair = house.machine(), signer("ES256")
        add_key(house, edc, pair.jwk)
        sent = forged({"alg": "ES256"}, claims(house, edc))
        expect(by_key(house, sent), 401)
        with patch.object(jose, "verify", lambda _token, keys: keys[0]):
            expect(by_key(house, sent), 200)

    def test_what_is_no_assertion_of_the_client(self, house: House) -> None:
        """Each is `invalid_client`, whatever is wrong with it, and leaves the assertion that is right as it was [T19, USR-15]"""
        edc, other, pair, stranger = house.machine(), house.machine(), signer("ES256"), signer("ES256", "stranger")
        add_key(house, edc, pair.jwk)
        add_key(house, other, stranger.jwk)
        now = house.clock.now.timestamp()
        wrong: list[dict[str, Any]] = [
            {"iss": other.client_id},
            {"iss": None},
            {"sub": other.client_id},
            {"sub": None},
            {"sub": 7},
            {"sub": "\x00"},
            {"aud": None},
            {"aud": "https://elsewhere.example"},
            {"aud": f"{BASE}/"},
            {"aud": [BASE, "https://elsewhere.example"]},
            {"aud": []},
            {"aud": {"is": BASE}},
            {"exp": None},
            {"exp": now - 31},
            {"exp": now + 400},
            {"exp": "soon"},
            {"exp": True},
            {"exp": -1},
            {"exp": 1e300},
            {"nbf": now + 60},
            {"iat": now + 60},
            {"iat": "now"},
            {"jti": None},
            {"jti": ""},
            {"jti": "x" * 201},
            {"jti": "\x00"},
            {"jti": 1},
        ]
        good = claims(house, edc)
        texts = [pair.sign(claims(house, edc, **changes)) for changes in wrong]
        texts += [stranger.sign(good), forged({"alg": "none"}, good, b""), forged({"alg": "HS256"}, good)]
        texts += ["", "a", "a.b.c", "é.é.é", pair.sign(good) + ".", pair.sign(good)[:-4], "x" * 9000]
        texts += [pair.sign(good, {"typ": "at+jwt"}), pair.sign(good, {"jwk": stranger.jwk}), pair.sign(b"[]")]
        for text in texts:
            assert expect(by_key(house, text), 401) == {"error": "invalid_client"}, text
        assert expect(by_key(house, pair.sign(good), client_id=other.client_id), 401) == {"error": "invalid_client"}
        expect(by_key(house, pair.sign(good)), 200)

    @pytest.mark.parametrize("database_kind", ["sqlite"])
    def test_one_way_at_a_time(self, house: House) -> None:
        """RFC 6749, 2.3: two ways at once are no request, nor is half of one [T19]"""
        edc, pair = house.machine(), signer("ES256")
        add_key(house, edc, pair.jwk)
        sent = pair.sign(claims(house, edc))
        for more in ({"client_secret": edc.client_secret}, {"client_assertion_type": "jwt"}):
            assert expect(by_key(house, sent, **more), 400) == {"error": "invalid_request"}
        form = {"grant_type": "client_credentials", "client_assertion_type": TYPE}
        assert expect(house.client.post("/oauth2/token", data=form), 401) == {"error": "invalid_client"}
        form = {"grant_type": "client_credentials", "client_assertion": sent}
        assert expect(house.client.post("/oauth2/token", data=form), 400) == {"error": "invalid_request"}

    @pytest.mark.parametrize("database_kind", ["sqlite"])
    def test_strangers_fill_no_log(self, house: House) -> None:
        """Of a network that goes on failing most is noise; a secret that is right never waits. [E1, USR-15]"""
        edc, stranger = house.machine(), house.client.at("198.51.100.7")
        form = {"grant_type": "client_credentials", "client_id": edc.client_id, "client_secret": "x"}
        before = len(house.trail())
        for _ in range(40):
            expect(stranger.post("/oauth2/token", data=form), 401)
        assert len(house.trail()) - before == 30
        assert house.deployment.noise.take() == {"198.51.100.0/24": 10}
        expect(stranger.post("/oauth2/token", data={**form, "client_secret": edc.client_secret}), 200)
        expect(house.client.at("203.0.113.9").post("/oauth2/token", data=form), 401)
        assert house.trail(last=1)[0]["outcome"] == "denied"

    def test_a_revoked_key_ends_the_tokens_and_never_comes_back(self, house: House) -> None:
        """Effective at once; a key that was ever used is nobody else's [USR-06, USR-13, USR-18]"""
        edc, other, pair = house.machine(), house.machine(), signer("EdDSA")
        path = f"/v1/clients/{edc.client_id}/keys"
        key_id = add_key(house, edc, pair.jwk)["key_id"]
        assert add_key(house, other, pair.jwk, 409)["code"] == "already_exists"
        token = str(expect(by_key(house, pair.sign(claims(house, edc))), 200)["access_token"])
        expect(house.admin.delete(f"/v1/clients/{other.client_id}/keys/{key_id}"), 404)
        assert not is_nobody(house, token)
        expect(house.admin.delete(f"{path}/{key_id}"), 204)
        assert is_nobody(house, token)
        expect(by_key(house, pair.sign(claims(house, edc, jti="two"))), 401)
        expect(house.admin.delete(f"{path}/{key_id}"), 404)
        add_key(house, edc, pair.jwk, 409)
        [listed] = expect(house.admin.get(path), 200)["items"]
        assert (listed["key_id"], listed["added_by"], listed["revoked_by"]) == (key_id, "admin", "admin")
        assert "jwk" not in listed

    def test_a_key_comes_again_under_its_idempotency_key(self, house: House) -> None:
        """A repeated registration is answered from store [C4]"""
        edc, body = house.machine(), {"jwk": signer("EdDSA").jwk}
        path, headers = f"/v1/clients/{edc.client_id}/keys", {"Idempotency-Key": "k"}
        first = house.admin.post(path, json=body, headers=headers)
        again = house.admin.post(path, json=body, headers=headers)
        assert expect(again, 200) == expect(first, 201)

    @pytest.mark.parametrize("database_kind", ["sqlite"])
    def test_what_is_no_public_key(self, house: House) -> None:
        """A private half above all, a weak or symmetric one, one for ciphers: 422, and its value in no entry [T19, G2, E1]"""
        edc = house.machine()
        elliptic, edwards, rsa = signer("ES256"), signer("EdDSA").jwk, signer("PS256").jwk
        private = elliptic.key.as_dict(private=True)
        wrong: list[dict[str, Any]] = [
            dict(private),
            {"kty": "oct", "k": "AAAA"},
            {},
            {"kty": ["EC"]},
            {"kty": "EC"},
            {**elliptic.jwk, "crv": "P-521"},
            {**elliptic.jwk, "x": edwards["x"]},
            {**elliptic.jwk, "x": 7},
            {**elliptic.jwk, "x": "\x00"},
            {**elliptic.jwk, "use": "enc"},
            {**elliptic.jwk, "alg": "HS256"},
            {**elliptic.jwk, "alg": None},
            {**elliptic.jwk, "key_ops": ["sign"]},
            {**edwards, "crv": "X25519"},
            {**edwards, "x": edwards["x"][:-2]},
            {**edwards, "x": f"{str(edwards['x'])[:-1]}{chr(ord(str(edwards['x'])[-1]) + 1)}"},
            {**rsa, "n": rsa["n"][:170]},
            {**rsa, "n": encoded(b"\0" + urlsafe_b64decode(f"{rsa['n']}=="))},
            {**rsa, "e": "Aw"},
            {**edwards, "note": "x" * 5000},
        ]
        for jwk in wrong:
            assert add_key(house, edc, jwk, 422)["code"] == "invalid", jwk
        assert str(private["d"]) not in str(house.bodies())
        for jwk in ({**edwards, "alg": "Ed25519", "use": "sig"}, {**rsa, "alg": "PS256", "key_ops": ["verify"]}):
            add_key(house, edc, jwk)

    @pytest.mark.parametrize("database_kind", ["sqlite"])
    def test_five_keys_are_enough(self, house: House) -> None:
        """What a sign-in looks at is bounded [USR-15]"""
        edc = house.machine()
        made: list[Callable[[], Any]] = [lambda: add_key(house, edc, Signer("EdDSA").jwk) for _ in range(5)]
        for make in made:
            make()
        assert add_key(house, edc, Signer("EdDSA").jwk, 409)["code"] == "conflict"
