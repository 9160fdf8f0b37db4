"""`snose sign-in` against a service and a provider that are there, with a browser that is a process of its own."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import pytest
import uvicorn

from tests.api.test_sign_ins import CLIENT, SECRET, hospital
from tests.commands import snose
from tests.harness import House, expect
from tests.provider import PASSWORD, PERSON, provider

BROWSER = f"""
import sys, httpx
url = sys.argv[1]
back = httpx.URL(url).params["redirect_uri"]
with httpx.Client(verify=False, trust_env=False) as browser:
    assert browser.get(back.rpartition("/")[0] + "/favicon.ico").status_code == 404
    assert browser.get(back, params={{"code": "x", "state": "of somebody else"}}).status_code == 404
    answer = browser.post(url, data={{"username": {PERSON!r}, "password": {PASSWORD!r}}})
    browser.get(answer.headers["Location"])
"""


@contextmanager
def listening(house: House) -> Iterator[str]:
    """Give the address at which a house answers over HTTP."""
    server = uvicorn.Server(uvicorn.Config(house.app, port=0, lifespan="off", log_level="critical", access_log=False))
    running = Thread(target=server.run, daemon=True)
    running.start()
    while not server.started:
        running.join(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    running.join()


@pytest.mark.parametrize("database_kind", ["sqlite"])
def test_token_by_a_browser(house: House, tmp_path: Path) -> None:
    """The token opens; a stranger's page at the receiver is ignored, and a refusal is said in plain words [USR-01, RFC 8252]"""
    browser = tmp_path / "browser.py"
    browser.write_text(BROWSER)
    shown_by = f"{sys.executable} {browser} %s"
    with provider() as idp, listening(house) as url:
        idp.clients[CLIENT] = SECRET
        at = hospital(house, idp)
        arguments = ["sign-in", "--url", url, "--issuer", idp.issuer, "--path", "/back"]
        told = snose(tmp_path, *arguments, BROWSER=shown_by)
        assert told.returncode == 0, told.stderr
        me = expect(house.send("GET", "/v1/me", token=told.stdout.strip()), 200)
        assert me["username"] == at.doctor.username
        told = snose(tmp_path, *arguments, "--json", "--step-up", BROWSER=shown_by)
        assert json.loads(told.stdout)["acr"] == "mfa"
        told = snose(tmp_path, "sign-in", "--url", url, "--issuer", "https://nobody.example", BROWSER=shown_by)
        assert (told.returncode, told.stdout) == (1, "")
        assert "Nobody signs in here by an issuer of this name." in told.stderr
        told = snose(tmp_path, "sign-in", "--url", "http://snose.example", "--issuer", idp.issuer)
        assert told.returncode == 1
        assert "https://host" in told.stderr
