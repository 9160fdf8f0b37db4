"""Malformed and hostile tokens of outside issuers, in one table: each is nobody, whatever is wrong with it.

All are sent to one service in which the very identity that they name stands for a service administrator.
"""

import base64
import hashlib
import hmac
import json
from collections.abc import Iterator
from typing import Any, Final

import pytest
from httpx2 import Response

from tests.api.test_issuers import AUDIENCE, ISSUER, Outside, outsiders, registration
from tests.harness import House, expect
from tests.signers import Signer, encoded, forged, signer

TYPE: Final = {"typ": "at+jwt"}
FEWEST: Final = 250
"""How many of them issue 5 asks for."""
_ODD: Final[tuple[Any, ...]] = (
    None,
    True,
    False,
    0,
    -1,
    1.5,
    "",
    " ",
    "\x00",
    "x" * 300,
    [],
    {},
    ["x"],
    {"x": 1},
    "ü" * 200,
)


def claims_of(now: float, **changes: Any) -> dict[str, Any]:  # noqa: ANN401  # a claim may be anything
    return {"iss": ISSUER, "aud": AUDIENCE, "sub": "admin", "iat": now, "exp": now + 300, **changes}


def wrong_claims(now: float) -> Iterator[dict[str, Any]]:
    """Claims that its own issuer signs, and that are refused all the same."""
    for name in ("iss", "aud", "sub", "exp", "iat"):
        good = claims_of(now)
        del good[name]
        yield good
        for odd in _ODD:
            # As `iat`, the second after 1970 began is a time.
            if (name, odd) != ("iat", 1.5):
                yield claims_of(now, **{name: odd})
    yield from near_misses(now)


def near_misses(now: float) -> Iterator[dict[str, Any]]:
    """Claims that are nearly right."""
    for odd in _ODD[:4]:
        yield claims_of(now, nbf=odd)
        if odd is not None:
            yield claims_of(now, acr=odd)
    for issuer in (
        f"{ISSUER}/",
        ISSUER.upper(),
        f" {ISSUER}",
        f"{ISSUER}\x00",
        ISSUER.replace("https", "http"),
        [ISSUER],
    ):
        yield claims_of(now, iss=issuer)
    for audience in (
        f"{AUDIENCE}/",
        AUDIENCE.upper(),
        [AUDIENCE, "x"],
        [[AUDIENCE]],
        [],
        {AUDIENCE: 1},
        f"{AUDIENCE},x",
    ):
        yield claims_of(now, aud=audience)
    for subject in ("nobody", "ADMIN", "admin ", "admin\n", "' OR 1=1 --", "../admin", ["admin"], "\u0430dmin"):
        yield claims_of(now, sub=subject)
    for moment in (now - 31, now - 3600, str(now + 60), 1e300, 253_402_300_800, [now + 60], {"at": now}):
        yield claims_of(now, exp=moment)
    for name in ("nbf", "iat", "auth_time"):
        for moment in (now + 35, now + 3600, str(now), 1e300, [now], True, -5):
            yield claims_of(now, **{name: moment})


def wrong_headers() -> Iterator[dict[str, Any]]:
    """Headers under a signature that is right, over claims that are."""
    other = signer("ES256", "attacker").jwk
    for kind in (
        "JWT",
        "jwt",
        "id_token",
        "at jwt",
        "at+jwt ",
        "application/application/at+jwt",
        "dpop+jwt",
        "",
        *_ODD,
    ):
        yield {"typ": kind}
    yield {"typ": None}
    for algorithm in (
        "none",
        "None",
        "NONE",
        "nOnE",
        "HS256",
        "HS512",
        "RS256",
        "ES384",
        "ES256K",
        "PS256",
        "EdDSA",
        "es256",
        *_ODD,
    ):
        yield {**TYPE, "alg": algorithm}
    for name, value in (
        ("jwk", other),
        ("jku", "https://attacker.example/jwks.json"),
        ("jku", "http://169.254.169.254/latest/meta-data"),
        ("x5u", "https://attacker.example/cert.pem"),
        ("x5c", ["MIIB"]),
        ("x5t", "AAAA"),
        ("x5t#S256", "AAAA"),
        ("crit", ["exp"]),
        ("crit", []),
        ("b64", False),
        ("zip", "DEF"),
        ("cty", "JWT"),
        ("enc", "A256GCM"),
        ("epk", other),
        ("p2c", 10_000_000),
        ("apu", "x"),
        ("nonce", "x"),
        ("kid", 7),
        ("kid", ["1"]),
        ("kid", {"x": 1}),
        ("kid", None),
        ("http://example.com/is_root", True),
    ):
        yield {**TYPE, name: value}


def wrong_texts(now: float) -> Iterator[str]:
    """What is no token at all, or signed by no key of the issuer's."""
    good, own = claims_of(now), signer("ES256")
    token = own.sign(good, TYPE)
    head, body, seal = token.split(".")
    stranger = signer("ES256", "attacker")
    for kid in ("1", "../../dev/null", "' UNION SELECT 'k", "/dev/null", "x" * 200):
        yield stranger.sign(good, {**TYPE, "kid": kid})
    yield from (signer(other).sign(good, TYPE) for other in ("EdDSA", "PS256"))
    # The public key as the secret of a MAC, in each form that a confused verifier might hold.
    for secret in (json.dumps(own.jwk).encode(), own.key.as_pem(private=False), own.key.as_der(private=False), b""):
        for algorithm in ("HS256", "ES256"):
            signed = f"{encoded({'alg': algorithm, **TYPE})}.{body}"
            yield f"{signed}.{encoded(hmac.digest(secret, signed.encode(), hashlib.sha256))}"
    for signature in (b"\x00" * 64, b"\xff" * 64, b"\x01", b"\x00" * 63, b"\x00" * 65, b"\x00" * 4000, b"0" * 72):
        yield forged({"alg": "ES256", **TYPE}, good, signature)
    yield from (
        f"{head}.{body}.",
        f"{head}.{body}",
        f".{body}.{seal}",
        f"{head}..{seal}",
        "..",
        "...",
        ".",
        f"{token}.",
        f".{token}",
    )
    yield from (
        f"{token}.{seal}",
        f"{head}.{body}.{seal}.{body}.{seal}",
        f"{head}.{body}.{seal[:-2]}",
        f"{token}=",
        f"{token}A",
    )
    yield from (
        f"{head}=.{body}.{seal}",
        f"{head}.{body}==.{seal}",
        f"{head}.{body[:-1]}.{seal}",
        f"{body}.{head}.{seal}",
    )
    yield from (
        token.replace(".", ". "),
        token.replace(".", ".\t"),
        token.replace(".", ","),
        token.swapcase(),
        token[::-1],
    )
    for other in (claims_of(now, sub="Admin"), claims_of(now, exp=now + 9999)):
        yield f"{head}.{encoded(other)}.{seal}"
    yield f"{encoded({**TYPE, 'alg': 'ES256', 'kid': '1'})}.{body}.{seal}"
    # Another spelling of the same bytes.
    last = base64.urlsafe_b64decode(seal + "==")
    yield from (
        f"{head}.{body}.{base64.b64encode(last).decode()}",
        f"{head}.{body}.{seal[:-1]}{chr(ord(seal[-1]) + 1)}",
    )
    for payload in (
        b"",
        b"{",
        b"[]",
        b"null",
        b'"x"',
        b"7",
        b"\xff\xfe",
        b"{}",
        b'{"a":NaN}',
        b'{"exp":Infinity}',
        b"[" * 3000,
        b"{}{}",
    ):
        yield own.sign(payload, TYPE) if payload else f"{head}..{seal}"
    twice = json.dumps(good)[:-1]
    for name, value in good.items():
        # One reader takes the first, another the last.
        yield own.sign(f"{twice}, {json.dumps(name)}: {json.dumps(value)}}}".encode(), TYPE)
    for header in (
        b"",
        b"[]",
        b"null",
        b"{",
        b'{"alg":"ES256","alg":"ES256","typ":"at+jwt"}',
        b'{"typ":"at+jwt"}',
        b"\xff",
    ):
        yield f"{encoded(header)}.{body}.{seal}"
    yield own.sign(claims_of(now, padding="x" * 9000), TYPE)
    yield own.sign({"payload": token}, TYPE)
    yield own.sign(token.encode(), {**TYPE, "cty": "at+jwt"})
    yield f"{head}.{body}.{seal}.{seal}.{seal}"
    yield json.dumps({"payload": body, "protected": head, "signature": seal})
    yield from (
        "a.b.c",
        "é.é.é",
        "\ud800.a.b".encode("utf-8", "replace").decode(),
        "x" * 8193,
        "." * 9000,
        f"{head}.{body}.{'A' * 8000}",
    )


def ask(house: House, token: str) -> Response:
    header = token.encode("utf-8", "replace")
    return house.client.request("GET", "/v1/people", headers={b"Authorization": b"Bearer " + header})


@pytest.mark.parametrize("database_kind", ["sqlite"])
def test_none_passes(house: House) -> None:
    """At least 250 of them, none of which is somebody; the good one, and its lawful variants, are [T19, ASVS 9.1, 9.2]"""
    out: Outside = outsiders(house)
    out.link("admin", {"username": out.second.username})
    now, own = house.clock.now.timestamp(), signer("ES256")
    hostile = [own.sign(claims, TYPE) for claims in wrong_claims(now)]
    hostile += [own.sign(claims_of(now), header) for header in wrong_headers()]
    hostile += wrong_texts(now)
    passed = [token for token in hostile if ask(house, token).status_code != 401]
    assert passed == []
    assert len(set(hostile)) >= FEWEST
    lawful: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({}, {}),
        ({"aud": [AUDIENCE]}, {}),
        ({"exp": now + 0.5}, {"typ": "AT+JWT"}),
        ({"exp": now - 20}, {"typ": "application/at+jwt"}),
        ({"iat": now + 20, "nbf": now + 20}, {"kid": "any"}),
        ({"acr": "mfa", "auth_time": now}, {}),
        ({"roles": ["safety_officer"], "scope": "all", "admin": True}, {}),
    ]
    for number, (changes, header) in enumerate(lawful):
        token = own.sign(claims_of(now, jti=str(number), **changes), {**TYPE, **header})
        expect(ask(house, token), 200)


def confusions(now: float) -> Iterator[tuple[str, str]]:
    """Tokens for an issuer with two keys of RSA, one that signs with RS256 by its word and one with PS256 by its silence."""
    rs, ps = signer("RS256", "own"), signer("PS256", "own")
    good = claims_of(now)
    for own, said in ((rs, "PS256"), (ps, "RS256")):
        other = Signer.of(said, own.key)
        yield f"{own.algorithm} key, {said}", other.sign(good, TYPE)
        yield f"{own.algorithm} key, {said} named", own.sign(good, TYPE, algorithm=said)
        yield f"{own.algorithm} key, signed {said}", other.sign(good, TYPE, algorithm=own.algorithm)
        for algorithm in ("RS384", "RS512", "PS384", "RSA1_5", "rs256", "none", "ES256", "HS256"):
            yield f"{own.algorithm} named {algorithm}", own.sign(good, TYPE, algorithm=algorithm)
        for number, secret in enumerate(
            (own.key.as_pem(private=False), own.key.as_der(private=False), own.jwk["n"].encode())
        ):
            for algorithm in ("HS256", "RS256", "PS256"):
                signed = f"{encoded({'alg': algorithm, **TYPE})}.{encoded(good)}"
                mac = encoded(hmac.digest(secret, signed.encode(), hashlib.sha256))
                yield f"{algorithm} of public key {number}", f"{signed}.{mac}"
        for size in (0, 1, 255, 256, 257):
            for byte in (b"\x00", b"\x01", b"\xff"):
                yield f"{size} of {byte!r}", forged({"alg": own.algorithm, **TYPE}, good, byte * size)
        head, body, seal = own.sign(good, TYPE).split(".")
        raw = base64.urlsafe_b64decode(f"{seal}==")
        for other_seal in (b"\x00" + raw, raw[1:], raw[:-1], raw + b"\x00", raw[::-1]):
            yield "another length", f"{head}.{body}.{encoded(other_seal)}"
        yield "a stranger's", signer(own.algorithm, "attacker").sign(good, TYPE)


@pytest.mark.parametrize("database_kind", ["sqlite"])
def test_no_key_of_rsa_is_taken_for_another_kind(house: House) -> None:
    """A key has one algorithm, the one that it names: PKCS #1 and PSS are not taken for each other, nor a key for a secret [T19]"""
    out: Outside = outsiders(house)
    keys = [{**signer("RS256", "own").jwk, "alg": "RS256"}, signer("PS256", "own").jwk]
    made = expect(house.admin.post("/v1/issuers", json=registration(jwks={"keys": keys})), 201)["issuer_id"]
    expect(out.second.post(f"/v1/issuers/{made}/confirmation", step_up=True), 200)
    out.link("admin", {"username": out.second.username})
    now = house.clock.now.timestamp()
    assert [why for why, token in confusions(now) if ask(house, token).status_code != 401] == []
    for algorithm in ("RS256", "PS256"):
        expect(ask(house, signer(algorithm, "own").sign(claims_of(now), TYPE)), 200)
