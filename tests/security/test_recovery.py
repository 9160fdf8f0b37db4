"""Restores of an older database, a hundred times over, and the way back as the README has it. [INT-07, T25]"""

import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from app.domain.words import Action
from tests import harness, supply
from tests.harness import STUDY, House, expect
from tests.security.test_rollback import BREAK, STATEMENT, Snapshot, add_site, is_ready, keep_round, kinds
from tests.supply import S, Trial
from tests.witnesses import Served

ROOT: Final = Path(__file__).parents[2]
RESTORES: Final = 50
"""On each database."""


@pytest.fixture
def house(migrated_database_url: str, tmp_path: Path) -> Iterator[House]:
    """A deployment with a study in draft."""
    with harness.house(migrated_database_url, tmp_path) as opened:
        opened.register_study()
        yield opened


def snapshot_of(request: pytest.FixtureRequest, house: House, kind: str, folder: Path) -> Snapshot:
    return Snapshot(house, None if kind == "sqlite" else request.getfixturevalue("postgres"), folder)


def procedure() -> str:
    """Return the commands of the README's recovery, as they stand."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.search(r"^\*\*Recovery\.\*\*.*?^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found.group(1)


@pytest.mark.skipif(shutil.which("curl") is None, reason="the README's commands use curl")
class TestProcedure:
    def test_brings_it_back(
        self, request: pytest.FixtureRequest, house: House, database_kind: str, tmp_path: Path
    ) -> None:
        """The commands of the README, as they stand: not ready, declared, ready; and the study goes on. [Done 7]"""
        snapshot = snapshot_of(request, house, database_kind, tmp_path)
        snapshot.take()
        assert add_site(house, "02") == 201
        keep_round(house)
        house.close()
        snapshot.put_back()
        house.open()
        assert add_site(house, "03") == 503
        tools = tmp_path / "bin"
        tools.mkdir()
        (tools / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        (tools / "python").chmod(0o755)
        with Served(house.app) as served:
            done = subprocess.run(
                ["/bin/bash", "-euo", "pipefail", "-c", procedure()],
                env={
                    "PATH": f"{tools}:{os.environ['PATH']}",
                    "no_proxy": "*",
                    "URL": served.url,
                    "ADMIN": house.admin.username,
                    "PASSWORD": house.admin.password,
                    "CODE": house.admin.code(),
                },
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
        assert done.returncode == 0, done.stderr
        before, declared, after = map(json.loads, done.stdout.split("\n")[:3])
        assert (before["status"], after["status"]) == ("not ready", "ok")
        assert f"/{STUDY}" in " ".join(log["origin"] for log in declared["logs"])
        house.admin.forget_token()
        house.study_admins[STUDY].forget_token()
        assert add_site(house, "03") == 201
        snapshot.forget()


class TestManyRestores:
    @pytest.mark.long
    @pytest.mark.timeout(0)
    def test_each_is_refused(
        self, request: pytest.FixtureRequest, migrated_database_url: str, database_kind: str, tmp_path: Path
    ) -> None:
        """Fifty on each database, at any depth, under a running service and before a start: a hundred of a hundred. [Done 7]"""
        chance = random.Random(7)
        refused = broken = 0
        with harness.house(migrated_database_url, tmp_path) as house:
            trial = supply.trial(house)
            trial.allocate("01-0001")
            for number in range(RESTORES):
                snapshot = snapshot_of(request, house, database_kind, tmp_path)
                house.study_admins[STUDY].token()
                snapshot.take()
                trial.allocate("01-0002")
                for _ in range(chance.randrange(4)):
                    trial.investigator.get(f"{S}/subjects/01-0001/allocation")
                keep_round(house)
                if number % 2:
                    house.close()
                    snapshot.put_back()
                    house.open()
                else:
                    snapshot.put_back()
                refused += is_shut(trial)
                answer = trial.investigator.post(
                    f"{S}/code-breaks", json={**BREAK, "subject_id": "01-0001"}, step_up=True
                )
                broken += bool(expect(answer, 201)["treatment"])
                # The first act after a restore may be what finds it; the comparison finds all that is concerned.
                house.deployment.checkpoints.compare(house.deployment.database)
                assert kinds(house) == {"smaller"}
                expect(house.admin.post("/v1/recovery-statements", json=STATEMENT, step_up=True), 201)
                assert is_ready(house), number
                snapshot.forget()
            assert trial.entries(Action.ALLOCATE)[-1]["outcome"] == "refused"
        assert (refused, broken) == (RESTORES, RESTORES)


def is_shut(trial: Trial) -> bool:
    """Return whether nobody is randomized."""
    answer = trial.post_allocation("01-0003")
    return answer.status_code == 503 and answer.json()["code"] == "rollback_suspected"
