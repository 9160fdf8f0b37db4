"""Wrong passwords are counted by network too: whoever tries many names from one place is slowed down there, and nobody else."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from httpx2 import Response

from tests import harness
from tests.api.test_devices import remembered
from tests.api.test_passkeys import challenge, enrol
from tests.authenticator import SETTINGS, Authenticator
from tests.harness import House, expect

HOSPITAL = "198.51.100.7"


@pytest.fixture
def house(migrated_database_url: str, tmp_path: Path) -> Iterator[House]:
    """A house that takes passkeys."""
    with harness.house(migrated_database_url, tmp_path, **SETTINGS) as opened:
        yield opened


def sign_in(house: House, address: str, name: str, password: str, device: str = "", **more: str) -> Response:
    headers = {"Snose-Device": device} if device else {}
    body = {"username": name, "password": password, **more}
    return house.client.at(address).post("/v1/sessions", json=body, headers=headers)


def spray(house: House, address: str) -> Response:
    """Try a name after the other from a network, until the next one waits; return what it hears."""
    for number in range(30):
        expect(sign_in(house, address, f"nobody{number}", "Summer2026!"), 401)
    answer = sign_in(house, address, "nobody.else", "Summer2026!")
    assert expect(answer, 429)["code"] == "too_many_attempts"
    return answer


def test_a_network_that_tries_many_names_is_slowed_down(house: House) -> None:
    """For every name, at every door of a password, by a few seconds, and there alone. [USR-10, EUB-15; T20, G21]"""
    doctor, device = house.person("investigator"), Authenticator()
    enrol(doctor, device)
    known = remembered(doctor)
    name, password = doctor.username, doctor.password
    assert spray(house, HOSPITAL).headers["retry-after"] == "2"
    house.deployment.noise.take()
    entries = len(house.trail())
    expect(sign_in(house, "198.51.100.250", name, password), 429)
    expect(sign_in(house, f"::ffff:{HOSPITAL}", name, password), 429)
    body = {"username": name, "password": password}
    expect(house.client.at(HOSPITAL).post("/v1/factor-recoveries", json=body), 429)
    assert (len(house.trail()), house.deployment.noise.take()) == (entries, {"198.51.100.0/24": 3})
    # Who is known does not wait: by a device, a code beside the password, a passkey.
    expect(sign_in(house, HOSPITAL, name, password, known), 201)
    expect(sign_in(house, HOSPITAL, name, password, otp=doctor.code()), 201)
    signed = {"credential": device.get(challenge(house))}
    expect(house.client.at(HOSPITAL).post("/v1/sessions/passkey", json=signed), 201)
    for address in ("198.51.101.7", "2001:db8::7", "203.0.113.9", "::ffff:203.0.113.9", "a.unix.socket"):
        expect(sign_in(house, address, name, password), 201)
    house.clock.advance(seconds=2)
    expect(sign_in(house, HOSPITAL, name, password), 201)


@pytest.mark.parametrize("database_kind", ["sqlite"])
def test_a_hospital_behind_one_address_goes_on(house: House) -> None:
    """One who types badly slows the own name and nobody else's; what is right is not counted; no wait is long. [USR-10, EUB-15]"""
    clumsy, doctor = house.person("coordinator"), house.person("investigator")
    for second in range(120):
        sign_in(house, HOSPITAL, clumsy.username, "wrong")
        if second % 4 == 0:
            expect(sign_in(house, HOSPITAL, doctor.username, doctor.password), 201)
        house.clock.advance(seconds=1)
    spray(house, "2001:db8:1::1")
    expect(sign_in(house, "2001:db8:1:ffff::9", doctor.username, doctor.password), 429)
    expect(sign_in(house, "2001:db8:2::1", doctor.username, doctor.password), 201)
    # A new process goes on counting; a clock that was ahead keeps nobody out.
    house.restart()
    answer = sign_in(house, "2001:db8:1::1", doctor.username, doctor.password)
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "2")
    house.clock.advance(hours=-1)
    expect(sign_in(house, "2001:db8:1::1", doctor.username, doctor.password), 201)
