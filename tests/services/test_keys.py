"""The life of the keys: wrapping, study keys and signing keys renewed while the service runs (rule F4, CUS-08)."""

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import pytest
from sqlalchemy import select, text

from app.domain.words import Action, Mode, StudyCode
from app.errors import (
    AlreadyExists,
    Conflict,
    DatabaseUnavailable,
    IntegrityBroken,
    KeyUnavailable,
    Missing,
    RollbackSuspected,
    UnsafeSetting,
)
from app.sealing.notes import verify_handover
from app.sealing.providers import KeyFileProvider
from app.sealing.vault import TokenFile, VaultTransitProvider
from app.services import keys, startup
from app.services.audited import Act, audited
from app.services.checkpoints import SMALLER, Suspicion
from app.services.context import Deployment, SystemEntropy
from app.services.keeper import Keeper
from app.storage import resealing, studies, tables
from app.storage.keys import list_signing_keys
from app.surroundings import surroundings
from tests.doors import Fault, context, failing
from tests.harness import STUDY, House, expect
from tests.running_study import RunningStudy, S, execute, running_study, tampering, value
from tests.transit import TOKEN, transit_engine

CODE: Final = StudyCode(STUDY)
OLD_BODY: Final = "SELECT body FROM trail_entry WHERE study_id = (SELECT study_id FROM study) AND log_index = :at"
NEW_BODY: Final = "UPDATE trail_entry SET body = {} WHERE study_id = (SELECT study_id FROM study) AND log_index = :at"


@contextmanager
def another_process(house: House) -> Iterator[Deployment]:
    """Give the deployment as a command beside the service has it; on SQLite, which has one process, the service's own."""
    if not house.deployment.database.is_postgresql:
        yield house.deployment
        return
    around = surroundings(house.settings, house.clock)
    try:
        yield startup.unseal(around, house.settings.mode)
    finally:
        around.database.close()


def versions(house: House) -> dict[str, set[int]]:
    """Return the key versions that each table names."""
    with house.deployment.database.transaction() as tx:
        return {
            table: set(tx.execute(select(tables.metadata.tables[table].c.key_version)).scalars())
            for table in resealing.TABLES
        }


def key_state(house: House) -> tuple[int, int, list[str]]:
    """Return newest and least version of the study's key, and what each version is wrapped as."""
    with house.deployment.database.transaction() as tx:
        head = studies.find_study(tx, CODE)
        assert head is not None
        wrapped = tx.execute(select(tables.study_key.c.wrapped).order_by(tables.study_key.c.version)).scalars()
        return head.key_version, head.min_key_version, list(wrapped)


def busy_study(house: House) -> RunningStudy:
    """Return a study with a row in every sealed table."""
    running = running_study(house, subjects=2)
    officer = running.person("safety_officer")
    body = {"subject_id": "01-0001", "reason": "SUSAR 7"}
    expect(officer.post(f"{S}/safety-unblindings", json=body, step_up=True), 201)
    manager = running.people["supply_manager"]
    expect(manager.post(f"{S}/consignments/C1/packing-list-requests", json={}, step_up=True), 201)
    return running


def check_everything_opens(running: RunningStudy) -> None:
    """Open what lies in every sealed table, at the doors that people use."""
    broken = {"subject_id": "01-0001", "reason_code": "overdose"}
    expect(running.investigator.post(f"{S}/code-breaks", json=broken, step_up=True), 201)
    officer = running.person("safety_officer")
    (item,) = expect(officer.get(f"{S}/safety-unblindings"), 200)["items"]
    assert item["subject_id"] == "01-0001"
    assert "SUSAR 7" in str(running.restricted(item_index(running)))
    report = f"{S}/schedules/{running.schedule_id}/quality-report"
    expect(running.people["statistician"].get(report), 200)
    running.new_subject()


def item_index(running: RunningStudy) -> int:
    return next(
        int(entry["index"]) for entry in running.house.trail(STUDY) if entry["action"] == Action.UNBLIND_FOR_SAFETY
    )


def rotations(house: House, study: str | None = STUDY) -> list[dict[str, Any]]:
    return [entry["after"] for entry in house.trail(study) if entry["action"] == Action.ROTATE_KEYS]


class TestStudyKey:
    def test_under_load(self, house: House) -> None:
        """All lies under the new key, requests go on all the while, and the old version is destroyed. [F4; T26, done when 5]"""
        running = busy_study(house)
        refusals: list[int] = []
        is_over = threading.Event()

        def load() -> None:
            # Each request is one that opens and seals, and none of them may fail.
            while not is_over.is_set():
                answer = running.investigator.post(
                    f"{S}/code-breaks", json={"subject_id": "01-0002", "reason_code": "overdose"}, step_up=True
                )
                refusals.extend([answer.status_code] if answer.status_code != 201 else [])

        client = threading.Thread(target=load)
        client.start()
        heard: list[tuple[int, int]] = []
        try:
            running.new_subject()
            with another_process(house) as deployment:
                rotated = keys.rotate_study_key(deployment, CODE, lambda *told: heard.append(told), batch=5)
        finally:
            is_over.set()
            client.join()
        assert refusals == []
        assert rotated.version == 2
        assert heard[-1][0] == rotated.rows >= heard[-1][1] > 30
        assert versions(house) == {table: {2} for table in resealing.TABLES}
        newest, least, wrapped = key_state(house)
        assert (newest, least) == (2, 2)
        assert wrapped[0] == ""
        assert wrapped[1]
        steps = [(one["step"], one["version"]) for one in rotations(house)]
        assert steps == [("begun", 2), ("retired", 2)]
        check_everything_opens(running)
        house.restart()
        expect(running.investigator.get(f"{S}/subjects/01-0002/allocation"), 200)

    def test_cut_off_and_begun_again(self, house: House) -> None:
        """Cut off after any page, the next run goes on with the version that was begun. [F4; T26]"""
        running = busy_study(house)
        pages = 0

        def cut_off(_done: int, _total: int) -> None:
            nonlocal pages
            pages += 1
            if pages % 3 == 0:
                raise InterruptedError

        for _ in range(3):
            with another_process(house) as deployment, pytest.raises(InterruptedError):
                keys.rotate_study_key(deployment, CODE, cut_off, batch=4)
            found = versions(house)
            assert {1, 2} == set().union(*found.values())
            # Between two runs everything opens, whichever version it lies under.
            expect(running.investigator.get(f"{S}/subjects/01-0001/allocation"), 200)
        with another_process(house) as deployment:
            keys.rotate_study_key(deployment, CODE)
        assert key_state(house)[:2] == (2, 2)
        assert versions(house) == {table: {2} for table in resealing.TABLES}
        check_everything_opens(running)

    def test_again(self, house: House) -> None:
        """Each rotation is a version of its own, and only the newest one is kept. [F4]"""
        running = busy_study(house)
        with another_process(house) as deployment:
            assert [keys.rotate_study_key(deployment, CODE).version for _ in range(2)] == [2, 3]
        newest, least, wrapped = key_state(house)
        assert (newest, least, [bool(one) for one in wrapped]) == (3, 3, [False, False, True])
        check_everything_opens(running)

    def test_act_in_flight(self, house: House) -> None:
        """What an act sealed before a rotation began is not committed after: the act begins anew. [F4]"""
        if not house.deployment.database.is_postgresql:
            # One writer at a time: no act is in flight while a rotation begins.
            return
        house.register_study()
        seen: list[int] = []
        with another_process(house) as other:

            def work(act: Act) -> int:
                seen.append(act.study.key_version)
                if len(seen) == 1:
                    keys._begun(other, CODE)
                act.note(after={"seen": act.study.key_version})
                return act.study.key_version

            ctx = context(house, Action.READ_STUDY, house.study_admins[STUDY])
            assert audited(ctx, Action.READ_STUDY, work, study=CODE) == 2
        assert seen == [1, 2]
        assert [entry["after"] for entry in house.trail(STUDY)][-2:] == [
            {"rotation": "study key", "step": "begun", "version": 2},
            {"seen": 2},
        ]

    def test_row_put_back(self, house: House) -> None:
        """What a retired version sealed is refused for ever, also when an old row is put back. [F4; T10, T26]"""
        running = running_study(house, subjects=1)
        before = value(running, "SELECT sealed_binding FROM allocation")
        with another_process(house) as deployment:
            keys.rotate_study_key(deployment, CODE)
        with tampering(running, "allocation"):
            execute(running, "UPDATE allocation SET sealed_binding = :before", before=before)
            body = {"subject_id": "01-0001", "reason_code": "overdose"}
            refused = expect(running.investigator.post(f"{S}/code-breaks", json=body, step_up=True), 503)
        assert refused["code"] == "reveal_unavailable"
        assert house.trail(STUDY)[-1]["outcome"] == "integrity"

    def test_broken_row(self, house: House) -> None:
        """A row that is not what was sealed or committed to is left as it is, and no version is retired over it. [A8, F4]"""
        running = running_study(house, subjects=1)
        at = value(running, "SELECT min(log_index) FROM trail_restricted")
        body = value(running, OLD_BODY, at=at)
        values = {
            "at": at,
            "body": body,
            "another_body": body.replace(json.loads(body)["restricted"].encode(), b"00" * 32),
            "first": value(running, "SELECT sealed FROM slot WHERE position = 1"),
            "second": value(running, "SELECT sealed FROM slot WHERE position = 2"),
            "root": value(running, "SELECT commitment FROM schedule"),
        }
        slot = "UPDATE slot SET sealed = {} WHERE position = 1"
        changes = {
            "slot": (slot.format(":second"), slot.format(":first")),
            "trail_restricted": (
                NEW_BODY.format(":another_body"),
                NEW_BODY.format(":body"),
            ),
            "schedule": ("UPDATE schedule SET commitment = 'ff'", "UPDATE schedule SET commitment = :root"),
            "kit": ("UPDATE kit SET map_index = map_index + 1000", "UPDATE kit SET map_index = map_index - 1000"),
        }
        for version, (table, (spoil, mend)) in enumerate(changes.items(), start=2):
            spoilt = "trail_entry" if table == "trail_restricted" else table
            with tampering(running, spoilt):
                execute(running, spoil, **values)
            with (
                another_process(house) as deployment,
                pytest.raises(IntegrityBroken, match=rf"rows \({table}\) do not hold"),
            ):
                keys.rotate_study_key(deployment, CODE)
            assert key_state(house)[:2] == (version, version - 1)
            assert version - 1 in versions(house)[table]
            assert rotations(house)[-1] == {"rotation": "study key", "step": "stopped", "version": version}
            with tampering(running, spoilt):
                execute(running, mend, **values)
            with another_process(house) as deployment:
                keys.rotate_study_key(deployment, CODE)
            assert key_state(house)[:2] == (version, version)
            # What was swapped above is not there any more under its old box.
            values["first"] = value(running, "SELECT sealed FROM slot WHERE position = 1")

    def test_list_that_nobody_approved(self, house: House) -> None:
        """Slots of a list that was not signed are sealed anew like all others."""
        house.register_study()
        statistician = house.person("statistician")
        body = {"block_sizes": [2, 4], "block_size_weights": [1, 1], "length_per_stratum": 12, "fill": "exact"}
        expect(statistician.post(f"{S}/schedules", json=body, step_up=True), 201)
        with another_process(house) as deployment:
            assert keys.rotate_study_key(deployment, CODE).rows >= 13
        assert versions(house)["slot"] == {2}

    def test_unknown_study(self, house: House) -> None:
        """A study that is not there is told."""
        with pytest.raises(Missing, match="no study NOPE"):
            keys.rotate_study_key(house.deployment, StudyCode("NOPE"))

    def test_after_a_suspected_rollback(self, house: House) -> None:
        """While a rollback is suspected nothing is sealed anew. [INT-07]"""
        house.deployment.checkpoints.suspicions = {"x": Suspicion("x", 7, SMALLER)}
        for rotate in (keys.rotate_signing_key, lambda deployment: keys.rotate_study_key(deployment, CODE)):
            with pytest.raises(RollbackSuspected):
                rotate(house.deployment)

    def test_rows_that_stay_locked(self, house: House) -> None:
        """A row that somebody holds is waited for a while, and never for ever; the next run moves it. [F4]"""
        if not house.deployment.database.is_postgresql:
            return
        running_study(house, subjects=1)
        with another_process(house) as deployment:
            with house.deployment.database.transaction() as tx:
                tx.execute(text("SELECT position FROM slot WHERE position = 3 FOR UPDATE"))
                with pytest.raises(DatabaseUnavailable, match="stay locked"):
                    keys.rotate_study_key(deployment, CODE)
            assert keys.rotate_study_key(deployment, CODE).rows == 1

    def test_two_at_once(self, house: House) -> None:
        """Of two runs that begin at once one makes the version, and both go on with it. [F4]"""
        house.register_study()
        with another_process(house) as deployment:
            second = Interposed(lambda: keys._begun(deployment, CODE))
            keys.rotate_study_key(replace(deployment, entropy=second), CODE)
        assert key_state(house)[:2] == (2, 2)
        assert [one["step"] for one in rotations(house)] == ["begun", "retired"]

    def test_database_in_trouble(self, house: House) -> None:
        """What is surely rolled back is done again; what is not clear ends the run, and the next one goes on. [C6]"""
        house.register_study()
        for faults, match in (
            ([Fault.NONE, Fault.AGAIN, Fault.AGAIN], None),
            ([Fault.NONE, Fault.UNHEARD], "goes on where it was"),
            ([Fault.NONE, *[Fault.AGAIN] * 40], "goes on where it was"),
        ):
            with failing(house, *faults) as deployment:
                if match is None:
                    keys.rotate_study_key(deployment, CODE)
                else:
                    with pytest.raises(DatabaseUnavailable, match=match):
                        keys.rotate_study_key(deployment, CODE)


class Interposed:
    """The system's chance; before the first key is drawn something else happens."""

    def __init__(self, act: Callable[[], object]) -> None:
        self._act: Callable[[], object] | None = act

    def draw(self, purpose: str, size: int) -> bytes:
        if purpose in {"study key", "signing key"} and self._act is not None:
            act, self._act = self._act, None
            act()
        return os.urandom(size)


class TestSigningKey:
    def test_handed_over(self, house: House) -> None:
        """The new key is entered with a handover that both signed, and old and new checkpoints stay verifiable. [F4, AUD-18]"""
        running = running_study(house, subjects=1)
        old = house.deployment.signing.vkeys()
        with another_process(house) as deployment:
            assert keys.rotate_signing_key(deployment) == 2
        (entry,) = rotations(house, None)
        (made,) = list_keys(house)[1:]
        assert entry["handover"] == made.handover
        text_ = verify_handover(str(made.handover), old[0], entry["key"])
        assert text_.splitlines()[0] == "snose/v1/key-handover"
        Keeper(house.deployment).round()
        assert house.deployment.signing.newest_version == 2
        running.new_subject()
        inspector = running.person("inspector")
        export = inspector.get(f"{S}/trail/export", step_up=True)
        path = Path(house.settings.key_file).with_name("export.jsonl")
        path.write_bytes(export.content)
        verifier = str(files("app") / "verifier.py")
        sink = str(house.settings.checkpoint_file)
        finished = subprocess.run(
            [sys.executable, "-I", verifier, "trail", str(path), "--sink", sink, "--key", old[0]],
            check=False,
            capture_output=True,
            text=True,
        )
        assert finished.returncode == 0, finished.stdout + finished.stderr

    def test_commitment_of_a_newer_key(self, house: House) -> None:
        """A worker that has not heard of the new key takes it in when it meets what it signed. [A8]"""
        house.register_study()
        around = surroundings(house.settings, house.clock)
        before = startup.unseal(around, house.settings.mode)
        keys.rotate_signing_key(house.deployment)
        approved_list(house)
        with around.database.transaction() as tx:
            head = studies.find_study(tx, CODE)
            assert head is not None
            for version, wrapped in studies.list_study_keys(tx, head.study_id):
                before.ring.add_study_key(CODE, version, wrapped)
            schedule_id = tx.execute(select(tables.schedule.c.schedule_id)).scalar_one()
            before.commitments.verify_list(tx, head, schedule_id)
        assert before.signing.newest_version == 2
        around.database.close()

    def test_two_at_once(self, house: House) -> None:
        """Of two runs at once one makes the version, and the other is told."""
        around = surroundings(house.settings, house.clock)
        other = startup.unseal(around, house.settings.mode)
        second = Interposed(lambda: keys.rotate_signing_key(other))
        with pytest.raises(AlreadyExists, match="Run the command again"):
            keys.rotate_signing_key(replace(house.deployment, entropy=second))
        around.database.close()
        assert len(list_keys(house)) == 2


def list_keys(house: House) -> list[Any]:
    with house.deployment.database.transaction() as tx:
        return list(list_signing_keys(tx))


def approved_list(house: House) -> None:
    """Have a list made and approved."""
    body = {"block_sizes": [2, 4], "block_size_weights": [1, 1], "length_per_stratum": 12, "fill": "exact"}
    made = expect(house.person("statistician").post(f"{S}/schedules", json=body, step_up=True), 201)
    approval = {"commitment": made["commitment"], "meaning": "approval"}
    path = f"{S}/schedules/{made['schedule_id']}/approval"
    expect(house.person("list_approver").post(path, json=approval, step_up=True), 200)


class TestWrapping:
    def test_old_key_destroyed(self, house: House, tmp_path: Path) -> None:
        """The secret moves to a new key file while the service runs; without the old key an old backup is noise. [F4; T26]"""
        running = running_study(house, subjects=1)
        database = house.deployment.database
        backup = tmp_path / "backup.sqlite"
        if database.sqlite_file is not None:
            shutil.copyfile(database.sqlite_file, backup)
        before = value(running, "SELECT wrapped_secret FROM deployment")
        new_file = tmp_path / "new.key"
        KeyFileProvider.create(new_file, os.urandom(32))
        new = KeyFileProvider(new_file, SystemEntropy())
        around = surroundings(house.settings, house.clock)
        assert keys.rewrap_secret(around, Mode.TEST, new) is True
        assert rotations(house, None) == [{"rotation": "wrapping", "from": "file", "to": "file"}]
        running.new_subject()
        house.settings.key_file.unlink()
        # The setting still names the old file: the run that was cut off before that is repeated without harm.
        assert keys.rewrap_secret(around, Mode.TEST, new) is False
        around.database.close()
        house.restart()
        assert house.app.state.deployment is None
        house.restart(key_file=new_file)
        check = {"subject_id": "01-0001", "reason_code": "overdose"}
        expect(running.investigator.post(f"{S}/code-breaks", json=check, step_up=True), 201)
        with pytest.raises(KeyUnavailable):
            new.unwrap(before, b"")
        if database.sqlite_file is not None:
            old = surroundings(house.settings.model_copy(update={"database_url": f"sqlite:///{backup}"}))
            for provider in (new, KeyFileProvider(house.settings.key_file.with_name("key"), SystemEntropy())):
                with pytest.raises(KeyUnavailable):
                    startup.unseal(replace(old, provider=provider), Mode.TEST)
            old.database.close()

    def test_to_vault_and_its_next_version(self, house: House, tmp_path: Path) -> None:
        """The secret moves to Vault, and there to the newest version of the key; older versions can then be retired. [F4]"""
        token_file = tmp_path / "token"
        token_file.write_text(TOKEN)
        token_file.chmod(0o600)
        with transit_engine() as vault:
            there = VaultTransitProvider(vault.address, TokenFile(token_file))
            around = surroundings(house.settings, house.clock)
            assert keys.rewrap_secret(around, Mode.TEST, there)
            vault.rotate("snose")
            assert keys.rewrap_secret(replace(around, provider=there), Mode.TEST, there)
            vault.forget_versions_below("snose", 2)
            startup.unseal(replace(around, provider=there), Mode.TEST)
            around.database.close()
        assert [(one["from"], one["to"]) for one in rotations(house, None)] == [("file", "vault"), ("vault", "vault")]

    def test_neither_opens(self, house: House, tmp_path: Path) -> None:
        """When neither provider opens the secret, what the present one says is told."""
        KeyFileProvider.create(tmp_path / "new.key", os.urandom(32))
        around = surroundings(house.settings, house.clock)
        gone = replace(around, provider=KeyFileProvider(tmp_path / "gone.key", SystemEntropy()))
        with pytest.raises(KeyUnavailable, match=r"gone\.key cannot be read"):
            keys.rewrap_secret(gone, Mode.TEST, KeyFileProvider(tmp_path / "new.key", SystemEntropy()))
        around.database.close()

    def test_two_at_once(self, house: House, tmp_path: Path) -> None:
        """A wrapping that somebody else replaced meanwhile is not replaced again unseen."""
        KeyFileProvider.create(tmp_path / "new.key", os.urandom(32))
        around = surroundings(house.settings, house.clock)

        class Slow(KeyFileProvider):
            def wrap(self, secret: bytes, context: bytes) -> str:
                keys.rewrap_secret(around, Mode.TEST, KeyFileProvider(tmp_path / "new.key", SystemEntropy()))
                return super().wrap(secret, context)

        with pytest.raises(Conflict, match="Somebody else"):
            keys.rewrap_secret(around, Mode.TEST, Slow(tmp_path / "new.key", SystemEntropy()))
        around.database.close()

    def test_in_plain_http(self, house: House, tmp_path: Path) -> None:
        """Live mode moves no secret to where it would travel in clear. [F2]"""
        around = surroundings(house.settings, house.clock)
        with pytest.raises(UnsafeSetting, match="plain HTTP"):
            keys.rewrap_secret(
                around, Mode.LIVE, VaultTransitProvider("http://vault.example.org", TokenFile(tmp_path / "token"))
            )
        around.database.close()
