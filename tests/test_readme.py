"""The README is true: its commands run, its settings are the settings, its map is the house."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from typing import Final

import pytest

from app.domain.codes import normalise_kit_code
from app.domain.words import Action, Role
from app.policy import PERMISSIONS
from app.settings import Settings

ROOT: Final = Path(__file__).parent.parent
README: Final = (ROOT / "README.md").read_text(encoding="utf-8")
_APART: Final = (Action.GRANT_ROLE, Action.GENERATE_SCHEDULE, Action.APPROVE_SCHEDULE, Action.ALLOCATE)
"""Duties of which no role may hold two (rules A7, B10)."""

CURL: Final = '''
"""Stands for curl, with the options of the tour, where there is none."""
import base64, sys, urllib.error, urllib.request
headers, data, url, show, words = {}, None, "", False, iter(sys.argv[1:])
for word in words:
    if word == "-H":
        name, _, value = next(words).partition(": ")
        headers[name] = value
    elif word == "-d":
        data = next(words).encode()
    elif word == "-u":
        headers["Authorization"] = "Basic " + base64.b64encode(next(words).encode()).decode()
    elif word == "-i":
        show = True
    elif word != "-s":
        url = word
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
try:
    answer = opener.open(urllib.request.Request(url, data, headers))
except urllib.error.HTTPError as error:
    answer = error
if show:
    print(f"HTTP/1.1 {answer.status} {answer.reason}")
    print(answer.headers)
sys.stdout.write(answer.read().decode())
'''


def section(title: str) -> str:
    """Return the text under a heading of the README."""
    return re.split(r"^## ", README.split(f"## {title}\n", 1)[1], flags=re.MULTILINE)[0]


def free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


BROWSER: Final = '''
"""Stands for a person who signs in at the provider of the tests, in a browser that goes where it is sent."""
import sys, httpx
from tests.provider import PASSWORD, PERSON
said = httpx.post(sys.argv[1], data={"username": PERSON, "password": PASSWORD}, follow_redirects=True, trust_env=False)
said.raise_for_status()
'''


def commands(title: str) -> list[str]:
    """Return the blocks of commands in a section."""
    return re.findall(r"^```sh\n(.*?)^```", section(title), re.MULTILINE | re.DOTALL)


def told_by(script: str, folder: Path, *ports: str) -> str:
    """Return what commands print, run as they stand but for the ports."""
    for port in ports:
        script = script.replace(port, free_port())
    tools = folder / "bin"
    tools.mkdir()
    # Small scripts, not links: by a link Python would not know the environment that it belongs to.
    (tools / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (tools / "snose").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m app.cli "$@"\n')
    if shutil.which("curl") is None:
        (tools / "curl.py").write_text(CURL)
        (tools / "curl").write_text(f'#!/bin/sh\nexec "{sys.executable}" "{tools / "curl.py"}" "$@"\n')
        (tools / "curl").chmod(0o755)
    (tools / "browser").write_text(f"#!{sys.executable}\n{BROWSER}")
    for tool in ("python", "snose", "browser"):
        (tools / tool).chmod(0o755)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("SNOSE_")}
    with subprocess.Popen(
        ["/bin/bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env={
            **inherited,
            "PATH": f"{tools}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "no_proxy": "*",
            "BROWSER": f"{tools / 'browser'} %s",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as shell:
        try:
            told, complaints = shell.communicate(timeout=200)
        finally:
            # A service whose script failed on its way would go on serving for ever.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGTERM)
    assert shell.returncode == 0, complaints
    return told


class TestTour:
    def test_runs_as_it_stands(self, tmp_path: Path) -> None:
        """The five-minute tour ends in an allocation without an arm, a challenge, and a treatment. [EUB-03, USR-15]"""
        script = "\n".join(commands("Five minutes"))
        allocated, _, rest = told_by(script, tmp_path, "8123").partition("HTTP/1.1 401")
        assert json.loads(allocated)["subject_id"] == "01-0001"
        assert "insufficient_user_authentication" in rest
        broken = json.loads(rest[rest.rindex('{"code_break_id"') :])
        assert broken["kit_codes"] == [json.loads(allocated)["kit_code"]]
        assert broken["treatment"].startswith("Hormone replacement therapy + ")
        assert broken["arm_code"] not in allocated

    def test_a_hospital_begins(self, tmp_path: Path) -> None:
        """From an empty folder to a kit for the first subject, after two have practised the code break. [EUB-16, EUB-18]

        Then one of them signs in at the hospital's own provider, practises by a second proof given there, and randomizes. [SIG-02]
        """
        *begin, end = commands("From nothing to a first subject")
        provider, *with_provider = commands("A hospital with an OpenID provider")
        started = f"{provider.strip()} > provider.log 2>&1 &\nuntil [ -s provider.log ]; do sleep 0.2; done\n"
        script = "\n".join([*begin, "echo PROVIDER", started, *with_provider, end.replace("%1", "%1 %2")])
        alone, _, provided = told_by(script, tmp_path, "8124", "9400").partition("PROVIDER\n")
        assert alone.count("TEST DRILL") == 2
        assert alone.split()[-3:-1] == ["True", "open"]
        assert provided.count("TEST DRILL") == 1
        assert "doctor.dan" in provided.splitlines()
        kits = {alone.split()[-1], provided.split()[-1]}
        assert {normalise_kit_code(kit) for kit in kits} == kits
        assert len(kits) == 2


class TestFacts:
    def test_settings(self) -> None:
        """Every setting stands in the README with its default, and no other does."""
        told = dict(re.findall(r"^\| `SNOSE_(\w+)` \| (.*?) \|", section("Configuration"), re.MULTILINE))
        assert {name.lower() for name in told} == set(Settings.model_fields)
        for name, default in told.items():
            value = Settings.model_fields[name.lower()].default
            shown = {None: "", False: "`false`", "": ""}.get(value, f"`{value}`")
            assert default.strip() == shown, name

    def test_roles(self) -> None:
        """Every role stands in the README."""
        assert set(re.findall(r"^\| `(\w+)` \|", section("Roles"), re.MULTILINE)) == {role.value for role in Role}

    def test_duties(self) -> None:
        """The matrix of separated duties is that of the policy, and no role holds two that exclude each other. [USR-04, USR-16]"""
        told = {
            duty: set(re.findall(r"`(\w+)`", holders))
            for duty, holders in re.findall(r"^\| `(\w+:\w+)` \| (.*) \|$", section("Roles"), re.MULTILINE)
        }
        assert told == {duty: {role for role, may in PERMISSIONS.items() if duty in may} for duty in told}
        assert told.keys() >= {*_APART, "code_break:create", "final_unblinding:release", "trail:read"}
        for one, other in combinations(_APART, 2):
            assert not told[one] & told[other], (one, other)

    def test_paths(self) -> None:
        """Every file that the README names is there."""
        named = set(re.findall(r"`((?:app|tests|migrations)/[\w/.]+)`", README))
        assert named
        assert not [path for path in named if not (ROOT / path).exists()]

    @pytest.mark.parametrize("command", ["snose demo --exit", "pytest"])
    def test_two_commands(self, command: str) -> None:
        """The two commands stand on lines of their own, ready to be copied. [Done 1]"""
        lines = [line for line in section("Two commands").splitlines() if line.startswith("pip install")]
        assert any(command in line for line in lines)
