"""Exports that meet a busy database or a log with a past, and restricted parts that are not what was entered."""

import json

import pytest
from sqlalchemy import select, update

from app.domain.encoding import canonical_json
from app.domain.merkle import Frontier
from app.domain.sealed import Column, SealContext
from app.domain.words import Action, StudyCode
from app.errors import DatabaseUnavailable, IllegalTransition, IntegrityBroken, TrailForked
from app.services import exports, trail
from app.services.audited import Act, audited, is_elevated, is_own, is_public
from app.services.checkpoints import head_mac
from app.storage import studies, tables
from app.storage.studies import StudyHead
from tests.doors import Fault, Made, context, failing, lift_triggers
from tests.harness import STUDY, House

CODE = StudyCode(STUDY)
RECOVERY = Action.DECLARE_RECOVERY


def study(house: House) -> StudyHead:
    with house.deployment.database.transaction() as tx:
        found = studies.find_study(tx, CODE)
    assert found is not None
    return found


def lines(house: House, size: int | None = None) -> list[dict[str, object]]:
    """Return the lines of an export within one transaction, as a final package holds them."""
    head = study(house)
    with house.deployment.database.transaction() as tx:
        return [json.loads(line) for line in exports.export_lines(house.deployment, tx, head, size)]


def alter_head(house: House) -> None:
    with house.deployment.database.transaction() as tx:
        tx.execute(update(tables.log).where(tables.log.c.study_id != tables.SERVICE_LOG).values(mac=bytes(32)))


def recover(house: House) -> None:
    """Give up what is suspected."""
    house.deployment.checkpoints.compare(house.deployment.database)
    trail.declare_recovery(context(house, RECOVERY, house.admin, elevated=True), "Looked into.")
    assert not house.deployment.checkpoints.suspicions


class TestExport:
    def test_of_a_busy_database(self, house: House, monkeypatch: pytest.MonkeyPatch) -> None:
        """Pages are read again; when none can be had the stream breaks off, and its header says that more should follow."""
        house.register_study()
        monkeypatch.setattr(trail, "_PAUSE", 0)
        inspector = house.person("inspector")
        with failing(house, Fault.NONE, Fault.AGAIN, Fault.NONE, Fault.AGAIN) as deployment:
            ctx = context(house, Action.EXPORT_TRAIL, inspector, elevated=True, deployment=deployment)
            content = b"".join(trail.export_trail(ctx, CODE))
        assert len(content.splitlines()) == 1 + len(house.trail(STUDY))
        with failing(house, Fault.NONE, Fault.NONE, *[Fault.AGAIN] * 8) as deployment:
            ctx = context(house, Action.EXPORT_TRAIL, inspector, elevated=True, deployment=deployment)
            stream = trail.export_trail(ctx, CODE)
            assert json.loads(next(stream))["size"] == len(house.trail(STUDY))
            with pytest.raises(DatabaseUnavailable):
                next(stream)

    def test_within_a_transaction(self, house: House, monkeypatch: pytest.MonkeyPatch) -> None:
        """The whole log at the size committed, or at an earlier one. [AUD-09]"""
        monkeypatch.setattr(exports, "PAGE", 2)
        house.register_study(sites=("01", "02", "03"))
        header, *entries = lines(house)
        assert [entry["body"] for entry in entries] == house.trail(STUDY)
        assert header["size"] == len(entries)
        assert lines(house, 3)[1:] == entries[:3]

    def test_of_a_log_that_was_given_up(self, house: House) -> None:
        """A segment that was given up is shown under the last checkpoint that is held elsewhere. [E4]"""
        house.register_study()
        house.deployment.checkpoints.publish_all(house.deployment.database, house.clock())
        held = house.deployment.checkpoints.held()[house.deployment.origin(CODE)]
        alter_head(house)
        with pytest.raises(TrailForked):
            lines(house)
        recover(house)
        headers = [line for line in lines(house) if "origin" in line]
        assert [header["origin"] for header in headers] == [held.origin, f"{held.origin}~2"]
        assert headers[0]["checkpoint"] == held.note

    def test_of_a_given_up_log_that_nobody_holds(self, house: House) -> None:
        """Without any checkpoint elsewhere the segment's own seal decides: one that is not ours is never signed. [E4]"""
        house.register_study()
        sink = house.settings.checkpoint_file
        alter_head(house)
        recover(house)
        sink.unlink()
        with pytest.raises(TrailForked):
            lines(house)
        with house.deployment.database.transaction() as tx:
            lift_triggers(tx, "log")
            log = tables.log.c
            row = tx.execute(select(log.origin, log.frontier, log.last_at).where(log.origin.endswith(STUDY))).one()
            mac = head_mac(house.deployment.ring, row.origin, Frontier.from_bytes(row.frontier), row.last_at)
            tx.execute(update(tables.log).where(log.origin == row.origin).values(mac=mac))
        assert [line["origin"] for line in lines(house) if "origin" in line] == [row.origin, f"{row.origin}~2"]


class TestRestrictedPart:
    def test_that_is_another_one(self, house: House) -> None:
        """A part that opens at its place, and is not the one whose hash was entered, is refused. [AUD-16]"""
        house.register_study()
        statistician = house.person("statistician")

        def work(act: Act) -> Made:
            act.note(restricted={"reason": "the right one"})
            # As far as the door knows: a list is what its maker signs.
            act.is_signed = True
            return Made("generated")

        ctx = context(house, Action.GENERATE_SCHEDULE, statistician, elevated=True)
        receipt = audited(ctx, Action.GENERATE_SCHEDULE, work, study=CODE).receipt
        assert receipt is not None
        index = receipt.log_index

        def read() -> trail.RestrictedPart:
            ctx = context(house, Action.READ_RESTRICTED, statistician, elevated=True)
            return trail.read_restricted(ctx, CODE, index, None)

        assert read().part == {"reason": "the right one"}
        place = SealContext(Column.RESTRICTED, CODE, (1, index))
        other = house.deployment.ring.seal(place, bytes(32) + canonical_json({"reason": "a wrong one"}))
        with house.deployment.database.transaction() as tx:
            lift_triggers(tx, "trail_restricted")
            part = tables.trail_restricted
            tx.execute(update(part).where(part.c.log_index == index).values(sealed=other.token))
        with pytest.raises(IntegrityBroken, match="not the one that was entered"):
            read()


class TestRecovery:
    def test_when_the_database_fails_after_the_statement(self, house: House) -> None:
        """The statement stands; the keeper's next comparison opens the service again. [INT-07]"""
        house.register_study()
        alter_head(house)
        house.deployment.checkpoints.compare(house.deployment.database)
        with failing(house, Fault.NONE, Fault.DOWN) as deployment:
            ctx = context(house, RECOVERY, house.admin, elevated=True, deployment=deployment)
            assert trail.declare_recovery(ctx, "Looked into.").logs
        assert house.deployment.checkpoints.suspicions
        house.deployment.checkpoints.compare(house.deployment.database)
        assert not house.deployment.checkpoints.suspicions

    def test_by_a_statement_that_was_refused_or_rewritten(self, house: House) -> None:
        """Only a statement that was accepted, and stands as it was hashed, lifts a suspicion. [INT-07]"""
        house.register_study()
        trail_entry = tables.trail_entry
        with pytest.raises(IllegalTransition, match="No log is suspected"):
            trail.declare_recovery(context(house, RECOVERY, house.admin, elevated=True), "Nothing.")
        alter_head(house)
        house.deployment.checkpoints.compare(house.deployment.database)
        assert house.deployment.checkpoints.suspicions
        recover(house)
        with house.deployment.database.transaction() as tx:
            lift_triggers(tx, trail_entry.name)
            stated = trail_entry.c.action == RECOVERY
            body = tx.execute(
                select(trail_entry.c.body)
                .where(stated, trail_entry.c.study_id == tables.SERVICE_LOG)
                .order_by(trail_entry.c.log_index.desc())
                .limit(1)
            ).scalar_one()
            rewritten = body.replace(b'"size":', b'"size":9')
            assert rewritten != body
            tx.execute(update(trail_entry).where(stated, trail_entry.c.body == body).values(body=rewritten))
        house.deployment.checkpoints.compare(house.deployment.database)
        assert house.deployment.checkpoints.suspicions


class TestWords:
    def test_say_what_kind_of_right_an_action_needs(self) -> None:
        """The documentation asks the door, which alone asks the policy. [USR-02]"""
        assert [is_public(action) for action in (Action.SIGN_IN, Action.READ_SELF)] == [True, False]
        assert [is_own(action) for action in (Action.READ_SELF, Action.SIGN_IN)] == [True, False]
        assert [is_elevated(action) for action in (Action.EXPORT_TRAIL, Action.READ_TRAIL)] == [True, False]
