"""Checkpoints: signed, written outside of the database, never of a log that does not continue."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import delete, update

from app.domain.merkle import Frontier
from app.domain.notes import parse_checkpoint, split_note
from app.errors import AuditUnavailable, IntegrityBroken, RollbackSuspected, TrailForked
from app.sealing.notes import verify_note
from app.services.checkpoints import INTERVAL, CheckpointKeeper, LogState, head_mac, log_name, segment_number
from app.services.readiness import is_ready
from app.storage import tables, trail
from app.storage.sink import FileSink
from tests.doors import Fault, failing, lift_triggers
from tests.harness import House


def keeper(house: House) -> CheckpointKeeper:
    return house.deployment.checkpoints


def states(house: House) -> dict[str, LogState]:
    with house.deployment.database.transaction() as tx:
        return {head.origin: LogState(head.origin, head.frontier) for head in trail.list_heads(tx)}


def service_state(house: House) -> LogState:
    return states(house)[house.deployment.origin(None)]


def sink_lines(house: House) -> list[dict[str, str]]:
    return [json.loads(line) for line in house.settings.checkpoint_file.read_text(encoding="utf-8").splitlines()]


class TestNames:
    def test_of_segments(self) -> None:
        """A log goes on under its name with a tilde and a number. [custody "The trail"]"""
        assert [log_name(origin) for origin in ("snose/d/S", "snose/d/S~2")] == ["snose/d/S"] * 2
        assert [segment_number(origin) for origin in ("snose/d/S", "snose/d/S~2", "snose/d/S~13")] == [1, 2, 13]


class TestPublishing:
    def test_writes_a_signed_note(self, house: House) -> None:
        """Origin, size and root under the deployment's signature (C2SP tlog-checkpoint). [AUD-02]"""
        state = service_state(house)
        keeper(house).publish(state, house.clock())
        line = sink_lines(house)[-1]
        text = verify_note(line["note"], house.deployment.signing.vkeys())
        checkpoint = parse_checkpoint(text)
        assert (checkpoint.origin, checkpoint.size, checkpoint.root) == (
            state.origin,
            state.frontier.size,
            state.frontier.root(),
        )
        size, root, signature = keeper(house).header(state).split()
        assert (size, root) == (str(line["size"]), line["root"])
        assert line["note"].endswith(f" {signature}\n")

    def test_of_what_has_grown_only(self, house: House) -> None:
        """Every grown log gets a checkpoint, a quiet one none. [AUD-02]"""
        house.register_study()
        database = house.deployment.database
        keeper(house).publish_all(database, house.clock())
        held = keeper(house).held()
        assert {origin: line.size for origin, line in held.items()} == {
            origin: state.frontier.size for origin, state in states(house).items()
        }
        count = len(sink_lines(house))
        keeper(house).publish_all(database, house.clock())
        assert len(sink_lines(house)) == count

    def test_without_sink(self, house: House) -> None:
        """The sink's failure is known until it works again, and /readyz says so at once. [custody "The trail"]"""
        # A process that has entered nothing has nothing to try the sink with.
        house.admin.forget_token()
        house.admin.token()
        path: Path = house.settings.checkpoint_file
        kept = path.with_suffix(".kept")
        path.rename(kept)
        path.mkdir()
        begun = house.clock()
        for _ in range(2):
            with pytest.raises(AuditUnavailable):
                keeper(house).publish(service_state(house), begun)
        assert keeper(house).is_failing
        assert not is_ready(house.deployment)
        assert not keeper(house).has_failed_too_long(begun + INTERVAL / 2)
        assert keeper(house).has_failed_too_long(begun + INTERVAL)
        path.rmdir()
        kept.rename(path)
        # Nothing has grown since: the last checkpoint is written once more, to learn whether the sink works.
        keeper(house).publish(service_state(house), begun)
        keeper(house)._failing_since = begun
        keeper(house).publish_all(house.deployment.database, house.clock())
        assert not keeper(house).is_failing
        assert is_ready(house.deployment)

    def test_before_anything_was_entered_by_this_process(self, house: House) -> None:
        """A new process that has entered nothing has nothing to try the sink with."""
        fresh = CheckpointKeeper(
            house.deployment.signing, FileSink(house.settings.checkpoint_file), house.deployment.ring
        )
        keeper(house).publish_all(house.deployment.database, house.clock())
        fresh._failing_since = house.clock()
        fresh.publish_all(house.deployment.database, house.clock())
        assert fresh.is_failing


class TestSink:
    def test_lines_of_others_hide_nothing(self, house: House) -> None:
        """A line that this deployment did not sign proves nothing and takes no place. [AUD-02]"""
        keeper(house).publish_all(house.deployment.database, house.clock())
        held = keeper(house).held()
        lines = sink_lines(house)
        forged = {**lines[-1], "size": 10**6}
        unsigned = {**lines[-1], "size": 10**7, "note": "nothing"}
        elsewhere = {**lines[-1], "origin": "snose/other/service"}
        with house.settings.checkpoint_file.open("a", encoding="utf-8") as file:
            for line in (forged, unsigned, elsewhere):
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        assert keeper(house).held() == held
        keeper(house).compare(house.deployment.database)
        assert not keeper(house).suspicions

    def test_tells_the_last_segment_of_a_log(self, house: House) -> None:
        """A name that was used outside of the database is never used again. [E4]"""
        name = house.deployment.origin(None)
        assert keeper(house).highest_segment("snose/none") == 0
        assert keeper(house).highest_segment(name) == 1
        keeper(house).publish(LogState(f"{name}~4", Frontier(0)), house.clock())
        assert keeper(house).highest_segment(name) == 4


class TestContinuing:
    def test_is_checked_against_memory(self, house: House) -> None:
        """What this process saw committed is not forgotten by the database. [INT-07]"""
        state = service_state(house)
        shorter = replace(state, frontier=Frontier(0))
        keeper(house).saw(state)
        keeper(house).saw(shorter)
        last_at = house.clock()
        mac = head_mac(house.deployment.ring, state.origin, shorter.frontier, last_at)
        with pytest.raises(RollbackSuspected):
            keeper(house).check_continues(state.origin, shorter.frontier, last_at, mac)
        with pytest.raises(TrailForked):
            keeper(house).check_continues("snose/x/unknown", state.frontier, last_at, mac)
        assert {one.kind for one in keeper(house).suspicions.values()} == {"smaller", "altered"}
        keeper(house).compare(house.deployment.database)
        assert not keeper(house).suspicions

    def test_of_a_log_whose_hashes_are_gone(self, house: House) -> None:
        """A checkpoint that can no longer be computed from what is stored is not met. [INT-07]"""
        keeper(house).publish_all(house.deployment.database, house.clock())
        with house.deployment.database.transaction() as tx:
            lift_triggers(tx, "trail_node")
            tx.execute(delete(tables.trail_node))
        keeper(house).compare(house.deployment.database)
        assert {one.kind for one in keeper(house).suspicions.values()} == {"smaller"}
        keeper(house).suspicions = {}

    def test_of_a_log_whose_hashes_were_rewritten(self, house: House) -> None:
        """Other hashes give another root: a fork. [INT-07]"""
        keeper(house).publish_all(house.deployment.database, house.clock())
        with house.deployment.database.transaction() as tx:
            lift_triggers(tx, "trail_node")
            tx.execute(update(tables.trail_node).values(hash=bytes(32)))
        keeper(house).compare(house.deployment.database)
        assert {one.kind for one in keeper(house).suspicions.values()} == {"forked"}
        assert not is_ready(house.deployment)


class TestReadiness:
    def test_of_a_sealed_service(self) -> None:
        """Without keys nothing is ready. [rule F2]"""
        assert not is_ready(None)

    def test_without_database(self, house: House) -> None:
        """Without database neither; /readyz says no more than that."""
        assert is_ready(house.deployment)
        with failing(house, Fault.DOWN, Fault.AGAIN) as deployment:
            assert not is_ready(deployment)
            assert not is_ready(deployment)
            assert is_ready(deployment)

    def test_of_a_note_that_is_none(self, house: House) -> None:
        """The note of a checkpoint holds its three lines."""
        note = keeper(house).note(service_state(house))
        assert split_note(note).text.count("\n") == 3
        with pytest.raises(IntegrityBroken):
            verify_note(note.replace("service", "another"), house.deployment.signing.vkeys())
