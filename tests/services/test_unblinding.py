"""The final package in a study that does not hold still, or that somebody has been at."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch
from uuid import UUID

import pytest
from sqlalchemy import create_engine, text

from app.domain.words import ArmCode, KitCode
from app.services.unblinding import CodeBreak, ReleasedPackage
from app.storage import database
from tests import harness
from tests.harness import BEGINNING, STUDY, Caller, TickingClock, expect
from tests.running_study import TREATMENTS, RunningStudy, S, consignment, execute, running_study, tampering

FINAL = f"{S}/final-unblinding-requests"
RELEASE = "final_unblinding:release"


class InterruptingClock(TickingClock):
    """A clock that does something when it is asked for the ``n``-th time from now on: in the middle of a request."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.then: Callable[[], None] | None = None

    def interrupt(self, calls: int, then: Callable[[], None]) -> None:
        self.calls, self.then = calls, then

    def __call__(self) -> datetime:
        if self.then is not None:
            self.calls -= 1
            if self.calls == 0:
                then, self.then = self.then, None
                then()
        return super().__call__()


@pytest.fixture
def clock() -> InterruptingClock:
    return InterruptingClock()


@pytest.fixture
def running(migrated_database_url: str, tmp_path: Path, clock: InterruptingClock) -> Iterator[RunningStudy]:
    """A closed study; whoever meets a lock need not wait long."""
    with (
        patch.object(database, "LOCK_TIMEOUT_MS", 500),
        harness.house(migrated_database_url, tmp_path, clock=clock) as house,
    ):
        made = running_study(house, subjects=2, length=4)
        made.set_status("closed")
        yield made


def asked(running: RunningStudy) -> str:
    """Return the path by which a request of the statistician is released."""
    body = {"database_lock_statement": "Locked."}
    answer = expect(running.people["statistician"].post(FINAL, json=body, step_up=True), 201)
    return f"{FINAL}/{answer['request_id']}/release"


def release(approver: Caller, path: str, clock: InterruptingClock, then: Callable[[], None]) -> Any:  # noqa: ANN401  # a response
    """Release, and do something else once the release is committed and its documents are made, before the trail is read."""
    token = approver.elevated_token()
    # The door looks at the clock when it begins, and again for the checkpoint.
    clock.interrupt(2, then)
    return approver.house.send("POST", path, token=token)


class TestFinalPackage:
    def test_consignment_made_meanwhile(self, running: RunningStudy, clock: InterruptingClock) -> None:
        """A package whose trail tells more than its documents is not given out; the next one is whole. [E4, CUS-06]"""
        made: list[list[str]] = []
        path = asked(running)
        response = release(
            running.people["list_approver"],
            path,
            clock,
            lambda: made.append(consignment(running, "C2", 4, received=False)),
        )
        assert len(made[0]) == 8
        assert expect(response, 503)["code"] == "database_unavailable"
        done, withheld = [entry for entry in running.house.trail(STUDY) if entry["action"] == RELEASE]
        assert (done["outcome"], withheld["outcome"]) == ("done", "withheld")
        assert (withheld["target"], withheld["after"]) == (done["target"], done["after"])
        again = running.people["list_approver"].post(asked(running), step_up=True)
        assert again.status_code == 200

    def test_database_busy(self, running: RunningStudy, clock: InterruptingClock) -> None:
        """Somebody holds the trail: nothing leaves, that is entered, and a new request gives the package. [D4, C6]"""
        path = asked(running)
        with ExitStack() as stack:

            def hold() -> None:
                stack.enter_context(holding_the_trail(running))
                # Let go when the door looks at the clock again, to enter that the package was withheld.
                clock.interrupt(1, stack.close)

            response = release(running.people["list_approver"], path, clock, hold)
        assert expect(response, 503)["code"] == "database_unavailable"
        entries = [entry for entry in running.house.trail(STUDY) if entry["action"] == RELEASE]
        assert [entry["outcome"] for entry in entries] == ["done", "withheld"]
        again = running.people["list_approver"].post(asked(running), step_up=True)
        assert again.status_code == 200

    @pytest.mark.parametrize(
        ("table", "column", "good", "bad"),
        [
            pytest.param("kit_assignment", "subject_key", "01-0001", "nobody", id="an allocation without its kit"),
            pytest.param("allocation", "strata_used", "{}", "nothing", id="strata that are none"),
        ],
    )
    def test_rows_of_somebody_else(self, running: RunningStudy, table: str, column: str, good: str, bad: str) -> None:
        """The release is rolled back, and entered as a matter of integrity; with the row as it was it goes through. [CUS-10, D4]"""
        path = asked(running)
        approver = running.people["list_approver"]
        change = f"UPDATE {table} SET {column} = :new WHERE {column} = :old"  # noqa: S608  # the test's own names
        with tampering(running, table):
            execute(running, change, new=bad, old=good)
            problem = expect(approver.post(path, step_up=True), 503)
            assert problem["code"] == "integrity_failure"
            assert running.house.trail(STUDY)[-1]["outcome"] == "integrity"
            execute(running, change, new=good, old=bad)
        assert approver.post(path, step_up=True).status_code == 200

    def test_sink_full(self, running: RunningStudy) -> None:
        """Withheld like every reveal; the request is spent. [D4]"""
        path = asked(running)
        approver = running.people["list_approver"]
        token = approver.elevated_token()
        sink = running.house.settings.checkpoint_file
        kept = sink.with_suffix(".kept")
        sink.rename(kept)
        sink.symlink_to("/dev/full")
        response = running.house.send("POST", path, token=token)
        sink.unlink()
        kept.rename(sink)
        assert expect(response, 503)["code"] == "audit_unavailable"
        assert [entry["outcome"] for entry in running.house.trail(STUDY)[-2:]] == ["done", "withheld"]
        expect(approver.post(path, step_up=True), 409)


@contextmanager
def holding_the_trail(running: RunningStudy) -> Iterator[None]:
    """Hold the trail in another connection, so that nobody reads it for longer than the service waits."""
    engine = create_engine(running.house.settings.url(), isolation_level="AUTOCOMMIT")
    lock = (
        "BEGIN; LOCK TABLE trail_entry IN ACCESS EXCLUSIVE MODE"
        if engine.dialect.name == "postgresql"
        else "BEGIN EXCLUSIVE"
    )
    with engine.connect() as connection:
        connection.execute(text(lock))
        try:
            yield
        finally:
            connection.execute(text("ROLLBACK"))
    engine.dispose()


class TestDanger:
    def test_nothing_prints_itself(self) -> None:
        """A treatment does not slip into a log with the object that holds it. [BLD-09, B1]"""
        arm_code, treatment = next(iter(TREATMENTS.items()))
        shown = CodeBreak(UUID(int=1), None, ArmCode(arm_code), treatment, (KitCode("22222222A"),), BEGINNING)
        assert arm_code not in repr(shown)
        assert treatment not in repr(shown)
        assert "opened" not in repr(ReleasedPackage(b"opened", "application/zip", "final.zip"))
