"""The trail over HTTP: who reads what of it, that every hash and proof holds, that foreign code verifies the export."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from httpx2 import Response
from sqlalchemy import delete, select, update

from app.domain.merkle import Frontier, check_consistency, check_inclusion, tree_root
from app.domain.notes import parse_checkpoint
from app.domain.words import Action, StudyCode
from app.sealing.notes import verify_note
from app.services import exports
from app.services.checkpoints import LogState
from app.storage import tables
from app.storage.database import Transaction
from tests import supply
from tests.doors import lift_triggers
from tests.harness import STUDY, Caller, House, Json, expect
from tests.supply import S, Trial

T = f"{S}/trail"
VERIFIER = Path(__file__).parents[2] / "app" / "verifier.py"
KEYS = {
    "index", "segment", "at", "actor", "role", "client", "action", "outcome", "target", "before", "after", "request_id",
    "leaf_hash",
}  # fmt: skip


@pytest.fixture
def trial(house: House) -> Trial:
    """A running study with two sites, a subject at each, one of them marked as randomized in error."""
    running = supply.trial(house, sites=("01", "02"))
    running.allocate("01-Aß")
    mark = {"category": "ineligible", "reason": "The canary sang."}
    expect(running.investigator.post(f"{S}/subjects/01-Aß/error-mark", json=mark, step_up=True), 201)
    running.another("investigator", "02").post(
        f"{S}/allocations",
        json={
            "subject_id": "02-0001", "site_code": "02", "strata": {}, "consent_confirmed": True,
            "eligibility_confirmed": True,
        },
    )  # fmt: skip
    running.another("investigator", "02").get(f"{S}/subjects/01-Aß/allocation")
    return running


def read_all(caller: Caller, limit: int = 500, **query: Json) -> list[dict[str, Any]]:
    """Return all pages of what a caller may read."""
    items: list[dict[str, Any]] = []
    page = expect(caller.get(T, limit=limit, **query), 200)
    while True:
        items += page["items"]
        if page["next_cursor"] is None:
            return items
        page = expect(caller.get(T, limit=limit, cursor=page["next_cursor"], **query), 200)


def growth(caller: Caller, sizes: dict[str, int]) -> Response:
    """Return the response to the question whether the log only grew."""
    return caller.request("GET", f"{T}/consistency", query=sizes)


def leaf(body: bytes) -> bytes:
    return hashlib.sha256(b"\x00" + body).digest()


def bodies(house: House) -> list[bytes]:
    """Return the stored bodies of the study's log."""
    return [body for body in house.bodies() if json.loads(body)["log"].endswith(f"/{STUDY}")]


class TestReading:
    def test_gives_the_public_parts_in_order(self, trial: Trial) -> None:
        """Exactly the named keys, derived from the hashed bytes, in order. [AUD-09, AUD-10]"""
        monitor = trial.another("monitor")
        stored = bodies(trial.house)
        items = read_all(monitor)
        assert [item["index"] for item in items] == list(range(len(stored)))
        for item, body in zip(items, stored, strict=True):
            assert item.keys() == KEYS
            assert item["leaf_hash"] == leaf(body).hex()
            said = json.loads(body)
            assert {name: item[name] for name in KEYS - {"leaf_hash", "segment"}} == {
                name: said[name] for name in KEYS - {"leaf_hash", "segment"}
            }
        assert "canary" not in json.dumps(items)

    def test_is_entered_with_its_first_page_and_pinned_to_it(self, trial: Trial) -> None:
        """Later pages add no entry, and show nothing that came after the first. [rule E1]"""
        monitor = trial.another("monitor")
        expect(monitor.get(T, limit=1), 200)
        before = len(bodies(trial.house))
        first = expect(monitor.get(T, limit=before - 1), 200)
        assert len(first["items"]) == before - 1
        trial.allocate("01-0002")
        second = expect(monitor.get(T, limit=before - 1, cursor=first["next_cursor"]), 200)
        assert [item["index"] for item in second["items"]] == [before - 1]
        assert second["next_cursor"] is None
        readings = [entry for entry in trial.house.trail(STUDY) if entry["action"] == Action.READ_TRAIL]
        assert len(readings) == 2

    def test_by_filters(self, trial: Trial) -> None:
        """Action, person, subject in any spelling, and time; the reading says what was asked. [AUD-09, AUD-12]"""
        monitor = trial.another("monitor")
        items = read_all(monitor)
        by_action = read_all(monitor, action="allocation:create")
        assert by_action == [item for item in items if item["action"] == "allocation:create"]
        assert len(by_action) == 2
        doctor = trial.investigator.username
        assert read_all(monitor, actor=doctor) == [item for item in items if item["actor"] == doctor]
        about = read_all(monitor, subject="01-ASS")
        assert [item["action"] for item in about] == ["allocation:create", "allocation:mark_error", "allocation:read"]
        reading = trial.house.trail(STUDY)[-1]
        assert (reading["action"], reading["target"]) == ("trail:read", {"subject": "01-ass"})
        begin, end = items[3]["at"], items[6]["at"]
        between = read_all(monitor, **{"from": begin, "to": end})
        assert between == [item for item in items if begin <= item["at"] < end]
        assert between

    @pytest.mark.parametrize(
        "query",
        [
            {"from": "2026-11-22T09:00:00"},
            {"to": "yesterday"},
            {"action": "ALL"},
            {"actor": "Someone Else"},
            {"subject": "a/b"},
            {"limit": "0"},
            {"cursor": "abc.def"},
        ],
    )
    def test_with_a_filter_that_is_none(self, house: House, query: dict[str, str]) -> None:
        """What cannot be a filter is named. [rule G2]"""
        house.register_study()
        problem = expect(house.study_admins[STUDY].request("GET", T, query=query), 422)
        assert problem["errors"][0]["field"] == next(iter(query))

    def test_goes_on_for_its_own_reader_only(self, trial: Trial) -> None:
        """A cursor of another person, or with other filters, is refused."""
        monitor, inspector = trial.another("monitor"), trial.another("inspector")
        cursor = expect(monitor.get(T, limit=2), 200)["next_cursor"]
        assert inspector.get(T, limit=2, cursor=cursor).status_code == 422
        assert monitor.get(T, limit=2, cursor=cursor, actor="admin").status_code == 422

    def test_at_ones_own_site(self, trial: Trial) -> None:
        """Site roles read of their own site, and what concerns no site and no subject. [USR-21]"""
        everything = read_all(trial.another("monitor"))
        for caller in (trial.investigator, trial.another("coordinator", "01"), trial.pharmacist):
            seen = json.dumps(read_all(caller))
            assert "01-ass" in seen
            assert "02-0001" not in seen
            assert '"site_code": "02"' not in seen
        other = json.dumps(read_all(trial.another("investigator", "02")))
        assert "02-0001" in other
        # Not even the vain request for a foreign subject: its entry belongs to no site.
        assert "01-ass" not in other
        assert "01-ass" in json.dumps(everything)
        assert len(read_all(trial.study_admin)) > len(everything)

    def test_without_subjects(self, trial: Trial) -> None:
        """Who knows lists or stock reads nothing about subjects, and no pair of subject and kit. [rule B10]"""
        kit = trial.entries(Action.ALLOCATE)[0]["after"]["kit_code"]
        trial.pharmacist.post(f"{S}/kits/{kit}/dispensation", json={"subject_id": "01-Aß", "scanned_code": kit})
        trial.pharmacist.post(f"{S}/kits/{kit}/dispensation", json={"subject_id": "none", "scanned_code": kit})
        trial.pharmacist.get(f"{S}/sites/01/worklist")
        for caller in (trial.statistician, trial.list_approver, trial.supply_manager):
            items = read_all(caller)
            seen = json.dumps(items, ensure_ascii=False)
            assert not [word for word in ("01-ass", "02-0001", "none", "subject_id") if word in seen]
            # A code stands in the receipt of its consignment, and nowhere beside what was done to a subject.
            naming = {item["action"] for item in items if kit in json.dumps(item)}
            assert naming <= {"consignment:create", "consignment:receive"}
            assert {"schedule:generate", "consignment:create", "study:register"} <= {item["action"] for item in items}
            assert not [item for item in items if item["action"].startswith(("allocation:", "code_break:"))]
            assert read_all(caller, subject="01-ass") == []

    @pytest.mark.parametrize(("role", "status"), [("edc_client", 403), ("safety_officer", 403), ("service_admin", 404)])
    def test_without_right(self, house: House, role: str, status: int) -> None:
        """Machines, the safety officer and administrators do not read the trail. [USR-02]"""
        house.register_study()
        caller = {"edc_client": house.machine, "service_admin": lambda: house.admin}.get(
            role, lambda: house.person(role)
        )()
        assert caller.get(T).status_code == status

    def test_of_an_entry_that_was_rewritten(self, house: House) -> None:
        """A text without its hash is never shown: 503, and entered. [AUD-02]"""
        house.register_study()
        with house.deployment.database.transaction() as tx:
            lift_triggers(tx, "trail_entry")
            entry = tables.trail_entry.c
            tx.execute(
                update(tables.trail_entry)
                .where(entry.log_index == 0, entry.study_id != tables.SERVICE_LOG)
                .values(body=b'{"index":0}')
            )
        assert expect(house.study_admins[STUDY].get(T), 503)["code"] == "integrity_failure"
        with house.deployment.database.transaction() as tx:
            last = tx.execute(
                select(entry.body).where(entry.study_id != tables.SERVICE_LOG).order_by(entry.log_index.desc()).limit(1)
            ).scalar_one()
        assert json.loads(last)["outcome"] == "integrity"


class TestServiceTrail:
    def test_is_read_by_administrator_and_inspector(self, house: House) -> None:
        """Accounts, sign-ins, keys and settings, for those two. [AUD-14]"""
        house.register_study()
        inspector = house.person("inspector")
        for caller in (house.admin, inspector):
            page = expect(caller.get("/v1/trail", limit=500), 200)
            assert {"person:create", "grant:create", "session:create"} <= {item["action"] for item in page["items"]}
            assert page["items"][0].keys() == KEYS
        page = expect(house.admin.get("/v1/trail", limit=2, action="person:create"), 200)
        following = house.admin.get("/v1/trail", limit=2, action="person:create", cursor=page["next_cursor"])
        assert expect(following, 200)["items"][0]["action"] == "person:create"
        assert house.study_admins[STUDY].get("/v1/trail").status_code == 403


class TestRestrictedParts:
    def index_of(self, trial: Trial, action: Action) -> int:
        return int(trial.entries(action)[-1]["index"])

    def test_are_opened_by_role(self, trial: Trial) -> None:
        """Lists and quantities for the statistician, subjects for the safety officer; each reading is entered. [AUD-16]"""
        mark = self.index_of(trial, Action.MARK_ERROR)
        created = self.index_of(trial, Action.CREATE_CONSIGNMENT)
        safety = trial.another("safety_officer")
        response = safety.get(f"{T}/{mark}/restricted", step_up=True)
        assert expect(response, 200) == {"index": mark, "segment": 1, "part": {"reason": "The canary sang."}}
        assert response.headers["cache-control"] == "no-store"
        reading = trial.house.trail(STUDY)[-1]
        assert (reading["action"], reading["actor"], reading["outcome"]) == (
            Action.READ_RESTRICTED,
            safety.username,
            "done",
        )
        assert reading["target"] == {"index": mark, "segment": 1}
        part = expect(trial.statistician.get(f"{T}/{created}/restricted", step_up=True), 200)["part"]
        assert "CONTROL" in json.dumps(part)
        for caller, index in (
            (trial.statistician, mark),
            (safety, created),
            (safety, 0),
            (safety, self.index_of(trial, Action.ALLOCATE)),
            (safety, 10**6),
        ):
            assert caller.get(f"{T}/{index}/restricted", step_up=True).status_code == 404
        assert safety.get(f"{T}/{mark}/restricted", step_up=True, segment=2).status_code == 404

    def test_of_a_status_are_the_safety_officers(self, trial: Trial) -> None:
        """Why a study was opened or closed is text that may name subjects: no blinded role and no planner opens it. [E3, B10]"""
        changed = self.index_of(trial, Action.SET_STUDY_STATUS)
        opened = trial.another("safety_officer").get(f"{T}/{changed}/restricted", step_up=True)
        assert expect(opened, 200)["part"].keys() == {"reason"}
        assert trial.statistician.get(f"{T}/{changed}/restricted", step_up=True).status_code == 404
        assert trial.another("inspector").get(f"{T}/{changed}/restricted", step_up=True).status_code == 403

    def test_need_the_right_and_a_fresh_proof(self, trial: Trial) -> None:
        """401 with the challenge without proof, 403 without the right; a proof serves once. [rule D3]"""
        mark = self.index_of(trial, Action.MARK_ERROR)
        safety = trial.another("safety_officer")
        assert safety.get(f"{T}/{mark}/restricted").status_code == 401
        assert trial.another("inspector").get(f"{T}/{mark}/restricted", step_up=True).status_code == 403
        token = safety.elevated_token()
        assert trial.house.send("GET", f"{T}/{mark}/restricted", token=token).status_code == 200
        assert trial.house.send("GET", f"{T}/{mark}/restricted", token=token).status_code == 401

    def test_that_were_changed_or_erased(self, trial: Trial) -> None:
        """Another entry's part is refused; an erased one is gone, and the tree stays valid. [AUD-15]"""
        mark = self.index_of(trial, Action.MARK_ERROR)
        safety = trial.another("safety_officer")
        part = tables.trail_restricted
        with trial.house.deployment.database.transaction() as tx:
            lift_triggers(tx, part.name)
            other = tx.execute(select(part.c.sealed).where(part.c.log_index != mark).limit(1)).scalar_one()
            tx.execute(update(part).where(part.c.log_index == mark).values(sealed=other))
        assert safety.get(f"{T}/{mark}/restricted", step_up=True).status_code == 503
        assert trial.house.trail(STUDY)[-1]["outcome"] == "integrity"
        with trial.house.deployment.database.transaction() as tx:
            tx.execute(delete(part).where(part.c.log_index == mark))
        assert safety.get(f"{T}/{mark}/restricted", step_up=True).status_code == 404
        assert trial.another("monitor").get(f"{T}/proofs/{mark}").status_code == 200


class TestProofs:
    def test_of_every_entry(self, house: House) -> None:
        """Each proof leads to the root that is signed; none is entered. [AUD-18]"""
        house.register_study()
        admin = house.study_admins[STUDY]
        stored = bodies(house)
        keys = house.deployment.signing.vkeys()
        response = admin.get(f"{T}/checkpoint")
        assert response.headers["content-type"].startswith("text/plain")
        checkpoint = parse_checkpoint(verify_note(response.text, keys))
        leaves = [leaf(body) for body in stored]
        assert (checkpoint.size, checkpoint.root) == (len(leaves), tree_root(leaves))
        for index, node in enumerate(leaves):
            told = expect(admin.get(f"{T}/proofs/{index}"), 200)
            assert told["leaf_hash"] == node.hex()
            signed = parse_checkpoint(verify_note(told["checkpoint"], keys))
            assert (signed.size, signed.root.hex()) == (told["size"], told["root"])
            proof = [bytes.fromhex(step) for step in told["proof"]]
            check_inclusion(index, told["size"], node, proof, signed.root)
        assert bodies(house) == stored
        for index in (len(leaves) + 3, 2**52):
            assert admin.get(f"{T}/proofs/{index}").status_code == 404
        assert admin.get(f"{T}/proofs/0", segment=2).status_code == 404

    def test_read_beside_a_commit(self, house: House) -> None:
        """A reader whose look was taken just before somebody's COMMIT suspects nobody, and nothing is shut. [C3, INT-07]"""
        house.register_study()
        admin = house.study_admins[STUDY]
        keeper = house.deployment.checkpoints
        ahead = Frontier()
        for body in [*bodies(house), b"an entry that another process has committed by now"]:
            ahead = ahead.append(leaf(body))[0]
        keeper.saw(LogState(house.deployment.origin(StudyCode(STUDY)), ahead))
        assert admin.get(f"{T}/checkpoint").status_code == 200
        assert admin.get(f"{T}/proofs/0").status_code == 200
        assert not keeper.suspicions

    def test_of_growth(self, house: House) -> None:
        """Every earlier size is the beginning of every later one. [AUD-18]"""
        house.register_study(sites=("01", "02", "03"))
        admin = house.study_admins[STUDY]
        leaves = [leaf(body) for body in bodies(house)]
        size = len(leaves)
        for old in range(size + 1):
            told = expect(growth(admin, {"from": old}), 200)
            assert bytes.fromhex(told["from_root"]) == tree_root(leaves[:old])
            assert bytes.fromhex(told["to_root"]) == tree_root(leaves)
            proof = [bytes.fromhex(step) for step in told["proof"]]
            check_consistency(old, size, tree_root(leaves[:old]), tree_root(leaves), proof)
        told = expect(growth(admin, {"from": 1, "to": 3}), 200)
        assert told["to_root"] == tree_root(leaves[:3]).hex()
        assert growth(admin, {"from": 1, "to": size + 1}).status_code == 404
        assert expect(growth(admin, {"from": 3, "to": 1}), 422)["errors"][0]["field"] == "from"

    def test_are_checked_before_they_leave(self, house: House) -> None:
        """A rewritten hash gives no proof: 503, never a wrong one. [custody "The trail"]"""
        house.register_study(sites=("01", "02", "03"))
        with house.deployment.database.transaction() as tx:
            lift_triggers(tx, "trail_node")
            tx.execute(update(tables.trail_node).values(hash=bytes(32)))
        admin = house.study_admins[STUDY]
        assert admin.get(f"{T}/proofs/2").status_code == 503
        assert growth(admin, {"from": 1}).status_code == 503

    def test_of_an_entry_beyond_the_end(self, house: House) -> None:
        """A row behind the sealed end of the log is none of it. [AUD-02]"""
        house.register_study()
        with house.deployment.database.transaction() as tx:
            entry = tables.trail_entry
            row = tx.execute(select(entry).where(entry.c.study_id != tables.SERVICE_LOG).limit(1)).one()
            tx.execute(entry.insert(), {**row._mapping, "log_index": 40})
        assert house.study_admins[STUDY].get(f"{T}/proofs/40").status_code == 404
        statistician = house.person("statistician")
        assert statistician.get(f"{T}/40/restricted", step_up=True).status_code == 404


class TestExport:
    def verify(self, house: House, content: bytes, folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
        path = folder / "trail.jsonl"
        path.write_bytes(content)
        command = [sys.executable, str(VERIFIER), "trail", str(path), *more]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    def test_is_verified_by_code_of_its_own(
        self, house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Key, sink and checkpoint kept elsewhere, and receipts of clients, all agree with the export. [AUD-18, T9]"""
        monkeypatch.setattr(exports, "PAGE", 3)
        house.register_study(sites=("01", "02", "03"))
        admin, inspector = house.study_admins[STUDY], house.person("inspector")
        receipt = admin.post(f"{S}/sites", json={"site_code": "04", "name": "Four", "timezone": "Asia/Shanghai"})
        kept = tmp_path / "receipt.txt"
        kept.write_text(receipt.headers["audit-checkpoint"] + "\n", encoding="utf-8")
        note = tmp_path / "note.txt"
        note.write_text(admin.get(f"{T}/checkpoint").text, encoding="utf-8")
        response = inspector.get(f"{T}/export", step_up=True)
        assert response.headers["content-type"] == "application/x-ndjson"
        lines = response.content.splitlines()
        # The export itself is entered before it leaves, and is its own last line. [EXP-08]
        assert json.loads(lines[-1])["body"]["action"] == Action.EXPORT_TRAIL
        assert len(lines) == 1 + len(bodies(house))
        told = self.verify(
            house, response.content, tmp_path,
            "--key", house.deployment.signing.vkeys()[0],
            "--sink", str(house.settings.checkpoint_file),
            "--checkpoint", str(note), "--checkpoint", str(kept),
        )  # fmt: skip
        assert told.returncode == 0, told.stdout + told.stderr
        assert f"vouched for up to size {len(bodies(house))}" in told.stdout

    def test_shows_what_was_rewritten(self, house: House, tmp_path: Path) -> None:
        """The export hides nothing: the verifier names the entry. [E4]"""
        house.register_study()
        inspector = house.person("inspector")
        entry = tables.trail_entry.c
        with house.deployment.database.transaction() as tx:
            lift_triggers(tx, "trail_entry")
            rewritten = bodies_of(tx)[1].replace(b"Hospital", b"Hostel")
            tx.execute(
                update(tables.trail_entry)
                .where(entry.log_index == 1, entry.study_id != tables.SERVICE_LOG)
                .values(body=rewritten)
            )
        told = self.verify(house, inspector.get(f"{T}/export", step_up=True).content, tmp_path)
        assert told.returncode == 1
        assert "entry_altered" in told.stdout
        assert "entry 1" in told.stdout

    def test_needs_an_inspector_with_a_fresh_proof(self, house: House) -> None:
        """401 without proof, 403 for others. [EXP-08]"""
        house.register_study()
        assert house.person("inspector").get(f"{T}/export").status_code == 401
        assert house.person("monitor").get(f"{T}/export", step_up=True).status_code == 403


def bodies_of(tx: Transaction) -> list[bytes]:
    entry = tables.trail_entry.c
    rows = tx.execute(
        select(entry.body).where(entry.study_id != tables.SERVICE_LOG).order_by(entry.log_index)
    ).scalars()
    return [bytes(row) for row in rows]
