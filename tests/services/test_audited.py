"""The one door: one entry on every path, each outcome told for what it is, and a stored answer for those who may hear it."""

import hashlib
import json
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
from sqlalchemy import delete, event, insert, select
from structlog.testing import capture_logs

from app.domain.words import Action, SiteCode, StudyCode, subject_key
from app.errors import (
    AlreadyExists,
    AuditUnavailable,
    DatabaseUnavailable,
    Forbidden,
    InProgress,
    IntegrityBroken,
    Invalid,
    KeyReused,
    Missing,
    NotAuthenticated,
    OutcomeUnknown,
    SnoseError,
    StepUpRequired,
    StockInsufficient,
)
from app.services.audited import Act, admit_invalid, audited, describe, uncovered
from app.services.context import RequestContext
from app.storage import people, tables
from app.storage.database import Transaction
from tests.doors import NETWORK, Fault, Made, context, failing
from tests.harness import STUDY, Caller, House, Json

LIST = Action.LIST_PEOPLE
"""An ordinary act of the service's administrator."""
SCOPE = hashlib.sha256(b"natural").digest()
CODE = StudyCode(STUDY)


def made(word: str = "made") -> Callable[[Act], Made]:
    return lambda _act: Made(word)


def refusing(error: SnoseError) -> Callable[[Act], Made]:
    def work(act: Act) -> Made:
        act.claim(SCOPE, SCOPE, Made)
        raise error

    return work


def last(house: House, study: str | None = None) -> dict[str, Any]:
    return house.trail(study)[-1]


def rows(house: House) -> int:
    with house.deployment.database.transaction() as tx:
        return len(tx.execute(select(tables.stored_answer.c.scope)).all())


class TestUnreadableRow:
    """Stored values that cannot be what the service wrote."""

    @pytest.mark.parametrize("fault", [ValueError("arm"), KeyError("arm"), TypeError("arm"), ZeroDivisionError("arm")])
    def test_at_a_revealing_door(self, house: House, fault: Exception) -> None:
        """A code break over it is an integrity failure that says nothing of the value, and is entered as one. [rule D4, BLD-13]"""
        house.register_study()
        doctor = house.person("investigator")

        def unreadable(_act: Act) -> Made:
            raise fault

        ctx = context(house, Action.BREAK_CODE, doctor, elevated=True)
        with capture_logs() as logs, pytest.raises(IntegrityBroken):
            audited(ctx, Action.BREAK_CODE, unreadable, study=CODE)
        assert [line["kind"] for line in logs if line["event"] == "unreadable row"] == [type(fault).__name__]
        assert "arm" not in str(logs)
        assert last(house, STUDY)["outcome"] == "integrity"

    def test_elsewhere(self, house: House) -> None:
        """A fault of ours is told as a fault, and nothing is done. [rule G2]"""

        def faulty(_act: Act) -> Made:
            message = "ours"
            raise ValueError(message)

        with pytest.raises(ValueError, match="ours"):
            audited(context(house, LIST, house.admin), LIST, faulty)


class TestOneEntry:
    def test_of_what_was_done(self, house: House) -> None:
        """Who, by which right, when, what, before and after, and the request. [AUD-01, AUD-05]"""
        ctx = context(house, LIST, house.admin)

        def work(act: Act) -> Made:
            act.note(target={"name": "x"}, before={"a": 1}, after={"a": 2})
            return Made("done")

        answer = audited(ctx, LIST, work)
        entry = last(house)
        assert answer.receipt is not None
        assert answer.receipt.log_index == entry["index"]
        assert {name: entry[name] for name in entry if name not in {"at", "log", "index"}} == {
            "v": 1, "actor": "admin", "role": "service_admin", "organisation": None, "client": None,
            "action": LIST, "outcome": "done", "target": {"name": "x"}, "before": {"a": 1}, "after": {"a": 2},
            "request_id": "0123456789abcdef", "restricted": None,
        }  # fmt: skip
        assert datetime.fromisoformat(entry["at"]).utcoffset() == timedelta(0)
        assert ctx.checkpoint is not None
        assert ctx.checkpoint.split()[0] == str(entry["index"] + 1)

    def test_names_the_machine_as_client(self, house: House) -> None:
        """A machine client is named as such. [AUD-01]"""
        house.register_study()
        edc = house.machine()
        audited(context(house, Action.READ_STUDY, edc), Action.READ_STUDY, made(), study=CODE)
        entry = last(house, STUDY)
        assert entry["actor"] == entry["client"] == edc.client_id

    def test_names_the_role_that_is_held_at_the_site(self, house: House) -> None:
        """Somebody of two roles at two sites acts at each by the one held there, in refusals too. [AUD-01, USR-03]"""
        house.register_study(sites=("01", "02"))
        doctor = house.person("investigator")
        house.grant(doctor, "coordinator", STUDY, "02")
        error: SnoseError | None = None

        def work(act: Act) -> Made:
            act.at_site(SiteCode("02"))
            if error is not None:
                raise error
            return Made("done")

        audited(context(house, Action.ALLOCATE, doctor), Action.ALLOCATE, work, study=CODE)
        assert last(house, STUDY)["role"] == "coordinator"
        error = StockInsufficient()
        with pytest.raises(StockInsufficient):
            audited(context(house, Action.ALLOCATE, doctor), Action.ALLOCATE, work, study=CODE)
        assert (last(house, STUDY)["role"], last(house, STUDY)["outcome"]) == ("coordinator", "refused")

    def test_time_never_goes_backwards(self, house: House) -> None:
        """A clock that is set back does not set the trail back. [AUD-05, rule E1]"""
        audited(context(house, LIST, house.admin), LIST, made())
        before = last(house)["at"]
        house.clock.advance(hours=-1)
        audited(context(house, LIST, house.admin), LIST, made())
        assert last(house)["at"] == before

    def test_of_an_act_that_rule_e1_leaves_out(self, house: House) -> None:
        """Reading one's own account leaves no entry, and later pages of a list do not. [rule E1]"""
        count = len(house.trail())

        def later_page(act: Act) -> Made:
            act.is_entered = False
            return Made("page 2")

        ctx = context(house, Action.READ_SELF, house.admin)
        assert audited(ctx, Action.READ_SELF, made()).receipt is None
        assert audited(context(house, LIST, house.admin), LIST, later_page).receipt is None
        assert ctx.checkpoint is None
        assert len(house.trail()) == count

    def test_is_written_under_the_action_of_the_route(self, house: House) -> None:
        """A route cannot enter another action than the one its right was asked for. [AUD-03]"""
        with pytest.raises(RuntimeError, match="the route says"):
            audited(context(house, Action.READ_SELF, house.admin), LIST, made())


class TestRefusal:
    @pytest.mark.parametrize(
        ("error", "outcome"),
        [
            (StockInsufficient(), "refused"),
            (Invalid("No.", "name"), "refused"),
            (Missing(), "denied"),
            (Forbidden(), "denied"),
            (IntegrityBroken(), "integrity"),
        ],
    )
    def test_has_its_own_transaction(self, house: House, error: SnoseError, outcome: str) -> None:
        """What was refused is rolled back, its entry is not. [AUD-13]"""
        before = rows(house)
        with pytest.raises(type(error)):
            audited(context(house, LIST, house.admin), LIST, refusing(error), target={"name": "x"})
        entry = last(house)
        assert (entry["action"], entry["outcome"], entry["actor"]) == (LIST, outcome, "admin")
        assert entry["after"]["code"] == error.code
        assert entry["after"].get("fields") == ("name" if isinstance(error, Invalid) else None)
        assert entry["target"] == {"name": "x"}
        assert rows(house) == before

    def test_by_a_stranger_is_not_told_to_the_study(self, house: House) -> None:
        """What concerns a study unknown or foreign to the caller goes to the service's log. [rule E1]"""
        house.register_study()
        stranger = house.person("investigator", study="OTHER")
        count = len(house.trail(STUDY))
        for code in (CODE, StudyCode("NOWHERE")):
            with pytest.raises(Missing):
                audited(context(house, Action.READ_STUDY, stranger), Action.READ_STUDY, made(), study=code)
            assert (last(house)["actor"], last(house)["outcome"]) == (stranger.username, "denied")
        assert len(house.trail(STUDY)) == count

    def test_without_right_names_the_role(self, house: House) -> None:
        """A known caller without the right is entered in the study, with a role. [AUD-13]"""
        house.register_study()
        monitor = house.person("monitor")
        with pytest.raises(Forbidden):
            audited(context(house, Action.ADD_SITE, monitor), Action.ADD_SITE, made(), study=CODE)
        entry = last(house, STUDY)
        assert (entry["actor"], entry["role"], entry["outcome"]) == (monitor.username, "monitor", "denied")

    def test_of_invalid_values_comes_after_every_other(self, house: House) -> None:
        """422 is for those who may hear it, and its entry has the fields and no values. [rule G2]"""
        house.register_study()
        admin = house.study_admins[STUDY]
        admit_invalid(context(house, Action.ADD_SITE, admin), CODE, ["name", "timezone"])
        entry = last(house, STUDY)
        assert (entry["outcome"], entry["after"]) == ("refused", {"code": "invalid", "fields": "name, timezone"})
        with pytest.raises(Forbidden):
            admit_invalid(context(house, Action.ADD_SITE, house.person("monitor")), CODE, ["name"])

    @pytest.mark.parametrize("study", [None, CODE, StudyCode("NOWHERE")])
    def test_of_nobody_known_is_counted_only(self, house: House, study: StudyCode | None) -> None:
        """Noise is counted by network and leaves no entry of its own. [rule E1]"""
        house.register_study()
        count = len(house.bodies())
        house.deployment.noise.take()
        with pytest.raises(NotAuthenticated):
            audited(context(house, Action.READ_STUDY), Action.READ_STUDY, made(), study=study)
        admit_invalid(context(house, Action.SIGN_IN), None, ["username"])
        assert house.deployment.noise.take() == {NETWORK: 2}
        assert len(house.bodies()) == count

    def test_of_a_sign_in_holds_nothing_that_was_typed(self, house: House) -> None:
        """A failed login records the account or `unknown`, never what was typed. [rule E1, AUD-13]"""
        typed = "My secret, in the wrong field"
        house.send("POST", "/v1/sessions", json={"username": typed, "password": typed})
        house.send("POST", "/v1/sessions", json={"username": "admin", "password": typed})
        assert not [body for body in house.bodies() if b"My secret" in body or b"my secret" in body]
        assert last(house)["outcome"] == "denied"

    def test_that_cannot_be_entered_stands_and_is_logged(self, house: House) -> None:
        """The refusal is raised all the same; the service's own output says what is missing, without values. [AUD-13]"""
        with failing(house, Fault.NONE, Fault.DOWN) as deployment, capture_logs() as logs:
            ctx = context(house, LIST, house.admin, deployment=deployment)
            with pytest.raises(StockInsufficient):
                audited(ctx, LIST, refusing(StockInsufficient()), target={"name": "value"})
        assert [(log["event"], log["action"], log["kind"]) for log in logs] == [
            ("not entered", LIST, "DatabaseUnavailable")
        ]
        assert "value" not in repr(logs)

    def test_is_entered_once_the_database_lets_it(self, house: House) -> None:
        """The entry of a refusal is tried again like any act. [AUD-13]"""
        count = len(house.trail())
        with failing(house, Fault.NONE, Fault.AGAIN, Fault.RIVAL) as deployment:
            ctx = context(house, LIST, house.admin, deployment=deployment)
            with pytest.raises(StockInsufficient):
                audited(ctx, LIST, refusing(StockInsufficient()))
        assert len(house.trail()) == count + 1

    def test_that_is_never_let_in_is_logged(self, house: House) -> None:
        """Past the limit of tries the output says so. [AUD-13]"""
        with failing(house, Fault.NONE, *[Fault.AGAIN] * 8) as deployment, capture_logs() as logs:
            ctx = context(house, LIST, house.admin, deployment=deployment)
            with pytest.raises(StockInsufficient):
                audited(ctx, LIST, refusing(StockInsufficient()))
        assert [log["kind"] for log in logs] == ["TryAgain"]

    def test_does_what_must_be_kept_beside_it(self, house: House) -> None:
        """What a refusal changes (a count of wrong tries, an alert) is in the transaction of its entry. [AUD-04]"""
        kept: list[str] = []

        def beside(tx: Transaction, error: SnoseError) -> None:
            kept.append(error.code)

        with pytest.raises(StockInsufficient):
            audited(context(house, LIST, house.admin), LIST, refusing(StockInsufficient()), on_refusal=beside)
        assert kept == ["stock_insufficient"]

    def test_of_an_act_without_caller_or_study(self, house: House) -> None:
        """A use case that needs somebody, or a study, refuses without."""

        def needs_caller(act: Act) -> Made:
            return Made(act.principal.name)

        def needs_study(act: Act) -> Made:
            return Made(act.study.study_code)

        with pytest.raises(NotAuthenticated):
            audited(context(house, Action.SIGN_IN), Action.SIGN_IN, needs_caller)
        with pytest.raises(Missing):
            audited(context(house, LIST, house.admin), LIST, needs_study)


class TestAgain:
    @pytest.mark.parametrize("fault", [Fault.AGAIN, Fault.RIVAL])
    def test_after_a_rollback(self, house: House, fault: Fault) -> None:
        """The work is run again after 40001, 40P01, 55P03, BUSY or a rival's row, and entered once. [ASG-05]"""
        runs = []
        count = len(house.trail())

        def work(act: Act) -> Made:
            runs.append(1)
            return Made("again")

        with failing(house, fault, fault) as deployment:
            audited(context(house, LIST, house.admin, deployment=deployment), LIST, work)
        assert len(runs) == 3
        assert len(house.trail()) == count + 1

    def test_for_ever(self, house: House) -> None:
        """What was rolled back every time is known not to have been done. [rule C6]"""
        with failing(house, *[Fault.AGAIN] * 8) as deployment, pytest.raises(DatabaseUnavailable):
            audited(context(house, LIST, house.admin, deployment=deployment), LIST, made())
        assert last(house)["after"] == {"code": "database_unavailable"}

    def test_against_a_row_that_stays(self, house: House) -> None:
        """A row that is there at every try is a conflict, not an unknown outcome. [rule G2]"""
        with failing(house, *[Fault.RIVAL] * 8) as deployment, pytest.raises(AlreadyExists):
            audited(context(house, LIST, house.admin, deployment=deployment), LIST, made())

    def test_while_the_first_request_runs(self, house: House, database_kind: str) -> None:
        """The same key waits for the first request, and says 409 only past the lock limit. [rule C4]"""
        if database_kind == "sqlite":
            pytest.skip("SQLite has one writer: the second request waits before it can claim anything")
        held, release = Event(), Event()

        def first(act: Act) -> Made:
            held.set()
            release.wait(20)
            return Made("first")

        ctx = context(house, LIST, house.admin, key="k")
        thread = Thread(target=lambda: audited(ctx, LIST, first, answer_type=Made))
        thread.start()
        held.wait(20)
        with failing(house) as deployment:
            event.listen(
                deployment.database.engine,
                "begin",
                lambda connection: connection.exec_driver_sql("SET LOCAL lock_timeout = '20ms'"),
            )
            second = context(house, LIST, house.admin, key="k", deployment=deployment)
            with pytest.raises(InProgress):
                audited(second, LIST, made(), answer_type=Made)
        release.set()
        thread.join()
        again = context(house, LIST, house.admin, key="k")
        assert audited(again, LIST, made("second"), answer_type=Made).word == "first"

    def test_database_down(self, house: House) -> None:
        """Nothing was decided, and that is said at once. [rule C6]"""
        with failing(house, Fault.DOWN) as deployment, pytest.raises(DatabaseUnavailable):
            audited(context(house, LIST, house.admin, deployment=deployment), LIST, made())


class TestStoredAnswer:
    def ask(self, house: House, caller: Caller, word: str, **more: Json) -> tuple[Made, RequestContext]:
        ctx = context(house, LIST, caller, key="key", **more)
        return audited(ctx, LIST, made(word), answer_type=Made), ctx

    def test_is_given_again(self, house: House) -> None:
        """The same key gives the stored answer with its receipt, does nothing, and is entered. [rule C4, ASG-08]"""
        first, ctx = self.ask(house, house.admin, "first")
        again, second = self.ask(house, house.admin, "second")
        assert again == first
        assert (ctx.replayed, second.replayed) == (False, True)
        assert last(house)["outcome"] == "replayed"

    def test_is_not_for_other_content(self, house: House) -> None:
        """422 for another body under the same key, and it is entered. [rule C4]"""
        self.ask(house, house.admin, "first")
        with pytest.raises(KeyReused):
            self.ask(house, house.admin, "second", body=b'{"other": 1}')
        assert last(house)["after"]["code"] == "idempotency_key_reused"

    def test_is_not_for_another_method(self, house: House) -> None:
        """The scope of a key is principal, method, path and key. [rule C4]"""
        self.ask(house, house.admin, "first")
        assert self.ask(house, house.admin, "second", method="DELETE")[0].word == "second"

    def test_is_not_for_who_lost_the_right(self, house: House) -> None:
        """Policy is asked before a replay. [rule C4, USR-06]"""
        house.register_study()
        doctor = house.person("investigator")

        def ask() -> Made:
            ctx = context(house, Action.ALLOCATE, doctor, key="key")
            return audited(ctx, Action.ALLOCATE, made(), study=CODE, answer_type=Made)

        ask()
        house.admin.delete(f"/v1/people/{doctor.username}/grants/{doctor.grant_ids[0]}")
        with pytest.raises(Missing):
            ask()

    def test_is_not_for_who_has_another_site_now(self, house: House) -> None:
        """Policy is asked before a replay, about the site of the act too. [rule C4, USR-21]"""
        house.register_study(sites=("01", "02"))
        doctor = house.person("investigator")
        runs = []

        def work(act: Act) -> Made:
            runs.append(1)
            act.note(target={"subject_id": "01-0001"}, subject_key=subject_key("01-0001"))
            act.at_site(SiteCode("01"))
            return Made("at 01")

        def ask() -> Made:
            ctx = context(house, Action.ALLOCATE, doctor, key="key")
            return audited(ctx, Action.ALLOCATE, work, study=CODE, answer_type=Made)

        first = ask()
        assert ask() == first
        # The entry of a replay is about the same subject and site, although the work was not run.
        with house.deployment.database.transaction() as tx:
            entry = tables.trail_entry.c
            found = tx.execute(select(entry.subject_key, entry.site_code).where(entry.action == Action.ALLOCATE)).all()
        assert [tuple(row) for row in found] == [("01-0001", "01")] * 2
        house.grant(doctor, "investigator", site="02")
        house.admin.delete(f"/v1/people/{doctor.username}/grants/{doctor.grant_ids[0]}")
        with pytest.raises(Missing):
            ask()
        assert runs == [1]

    def test_leaves_only_after_its_own_entry_is_committed(self, house: House) -> None:
        """When the COMMIT of the replay's entry fails, there is no answer. [rule C4]"""
        self.ask(house, house.admin, "first")
        with failing(house, Fault.LOST) as deployment, pytest.raises(OutcomeUnknown):
            self.ask(house, house.admin, "second", deployment=deployment)
        assert last(house)["outcome"] == "unknown"

    def test_under_a_key_of_its_own_and_one_of_the_request(self, house: House) -> None:
        """Both keys lead to the one answer, whichever comes back. [rule C4]"""
        runs = []

        def work(act: Act) -> Made:
            stored = act.claim(SCOPE, SCOPE, Made)
            if stored is not None:
                return stored
            runs.append(1)
            return Made("once")

        first = audited(context(house, LIST, house.admin, key="a"), LIST, work, answer_type=Made)
        for key in ("a", "b", "b", None):
            ctx = context(house, LIST, house.admin, key=key)
            assert audited(ctx, LIST, work, answer_type=Made) == first
            assert ctx.replayed
        assert runs == [1]

    def test_of_any_size_up_to_the_limit(self, house: House) -> None:
        """Long answers lie in the column for long ones; a longer one is refused before anything is kept. [rule B3]"""
        long = "x" * 5000
        first, _ = self.ask(house, house.admin, long)
        assert self.ask(house, house.admin, "second")[0] == first
        before = rows(house)
        with pytest.raises(Invalid, match="too large") as refused:
            audited(context(house, LIST, house.admin, key="2"), LIST, made("x" * 40_000), answer_type=Made)
        assert refused.value.field == "Idempotency-Key"
        assert rows(house) == before

    def test_that_is_missing_under_its_key(self, house: House) -> None:
        """A claim without answer is never committed; one that is found is a broken record. [rule A9]"""
        with house.deployment.database.transaction() as tx:
            tx.execute(
                insert(tables.stored_answer),
                {"study_id": tables.SERVICE_LOG, "scope": SCOPE, "claimed_at": house.clock()},
            )

        def work(act: Act) -> Made:
            return act.claim(SCOPE, SCOPE, Made) or Made("new")

        with pytest.raises(IntegrityBroken):
            audited(context(house, LIST, house.admin), LIST, work)


class TestUncertainCommit:
    @pytest.mark.parametrize(("fault", "runs"), [(Fault.UNHEARD, 1), (Fault.LOST, 2)])
    def test_with_a_key(self, house: House, fault: Fault, runs: int) -> None:
        """The same key on a fresh connection tells the truth: the stored answer, or the act done now, once. [rule C6]"""
        seen: list[int] = []

        def work(act: Act) -> Made:
            seen.append(1)
            return Made(f"run {len(seen)}")

        with failing(house, fault) as deployment:
            ctx = context(house, LIST, house.admin, key="key", deployment=deployment)
            answer = audited(ctx, LIST, work, answer_type=Made)
        assert (answer.word, len(seen)) == (f"run {runs}", runs)
        done = [entry for entry in house.trail() if entry["action"] == LIST and entry["outcome"] == "done"]
        assert len(done) == 1

    def test_without_a_key(self, house: House) -> None:
        """Nobody can tell: 503 `outcome_unknown`, entered as such. [rule C6]"""
        with failing(house, Fault.UNHEARD) as deployment, pytest.raises(OutcomeUnknown):
            audited(context(house, LIST, house.admin, deployment=deployment), LIST, made())
        assert [entry["outcome"] for entry in house.trail() if entry["action"] == LIST] == ["done", "unknown"]

    def test_and_then_no_database(self, house: House) -> None:
        """An act that may have been committed is never said not to have been. [rule C6]"""
        with failing(house, Fault.UNHEARD, *[Fault.DOWN] * 20) as deployment:
            ctx = context(house, LIST, house.admin, key="key", deployment=deployment)
            with pytest.raises(OutcomeUnknown):
                audited(ctx, LIST, made(), answer_type=Made)


class TestPrivileged:
    ACTION = Action.REGISTER_PERSON

    def break_sink(self, house: House) -> None:
        path = house.settings.checkpoint_file
        path.rename(path.with_suffix(".kept"))
        path.mkdir()

    def mend_sink(self, house: House) -> None:
        path: Path = house.settings.checkpoint_file
        path.rmdir()
        path.with_suffix(".kept").rename(path)

    def test_is_answered_after_its_checkpoint(self, house: House) -> None:
        """The checkpoint stands in the sink before the answer. [AUD-02, custody "The trail"]"""
        answer = audited(context(house, self.ACTION, house.admin), self.ACTION, made())
        line = json.loads(house.settings.checkpoint_file.read_text().splitlines()[-1])
        assert answer.receipt is not None
        assert line["size"] == answer.receipt.log_index + 1

    def test_without_sink(self, house: House) -> None:
        """503, and an entry that the answer was withheld, with what is to be kept beside it. [rule D4]"""
        kept: list[str] = []
        self.break_sink(house)
        with pytest.raises(AuditUnavailable):
            audited(
                context(house, self.ACTION, house.admin),
                self.ACTION,
                made("secret"),
                on_withheld=lambda _tx, result: kept.append(result.word),
            )
        assert [entry["outcome"] for entry in house.trail()][-2:] == ["done", "withheld"]
        with pytest.raises(AuditUnavailable):
            audited(context(house, self.ACTION, house.admin), self.ACTION, made())
        assert kept == ["secret"]
        self.mend_sink(house)

    def test_others_go_on_for_an_interval(self, house: House) -> None:
        """Ordinary acts stop when no checkpoint could be written for 60 s, readings go on. [custody "The trail"]"""
        self.break_sink(house)
        with pytest.raises(AuditUnavailable):
            audited(context(house, self.ACTION, house.admin), self.ACTION, made())
        audited(context(house, LIST, house.admin), LIST, made())
        house.clock.advance(seconds=61)
        with pytest.raises(AuditUnavailable):
            audited(context(house, LIST, house.admin), LIST, made())
        assert audited(context(house, LIST, house.admin, method="GET"), LIST, made()).word == "made"
        self.mend_sink(house)
        house.deployment.checkpoints.publish_all(house.deployment.database, house.clock())
        assert audited(context(house, LIST, house.admin), LIST, made()).word == "made"

    def test_spends_the_proof_with_its_commit(self, house: House) -> None:
        """A proof that was spent meanwhile is none. [rule D3]"""
        house.register_study()
        statistician = house.person("statistician")

        def spent_by_another(act: Act) -> Made:
            assert people.spend_proof(act.tx, act.principal.session_id, act.now)
            return Made("part")

        ctx = context(house, Action.READ_RESTRICTED, statistician, elevated=True)
        with pytest.raises(StepUpRequired):
            audited(ctx, Action.READ_RESTRICTED, spent_by_another, study=CODE)
        assert audited(ctx, Action.READ_RESTRICTED, made("mine"), study=CODE).word == "mine"
        with pytest.raises(StepUpRequired):
            audited(ctx, Action.READ_RESTRICTED, made("again"), study=CODE)


class TestRestrictedPart:
    def test_is_outside_of_the_hashed_body(self, house: House, database_kind: str) -> None:
        """Free text stands in the restricted part, of which the body holds a salted hash. [AUD-07, rule E3]"""

        def work(act: Act) -> Made:
            act.note(restricted={"reason": "canary in a coal mine"})
            return Made("kept")

        audited(context(house, LIST, house.admin), LIST, work)
        assert len(last(house)["restricted"]) == 64
        assert not [body for body in house.bodies() if b"canary" in body]

    def test_that_is_too_long(self, house: House) -> None:
        """What cannot be kept is refused, never cut, and the longest text is named. [AUD-01, G2]"""

        def work(act: Act) -> Made:
            act.note(restricted={"category": "other", "reason": "x" * 10_000, "requested_by": None})
            return Made("kept")

        with pytest.raises(Invalid, match="too long") as refused:
            audited(context(house, LIST, house.admin), LIST, work)
        assert refused.value.field == "reason"


class TestWords:
    def test_every_action_is_covered(self) -> None:
        """A route that the policy does not know is not built. [USR-02]"""
        assert not [action for action in Action if uncovered(action)]

    def test_rights_are_told(self) -> None:
        """The documentation says who may do what. [EXP-12]"""
        assert describe(Action.SIGN_IN).startswith("nobody")
        assert describe(Action.READ_SELF) == "anyone signed in"
        assert describe(Action.EXPORT_TRAIL) == "inspector with a fresh one-time code"
        assert describe(Action.ADD_SITE) == "study_admin"


class TestAppendOnly:
    def test_entries_stay(self, house: House) -> None:
        """The application's own statements cannot take an entry away. [AUD-02]"""
        count = len(house.bodies())
        with pytest.raises(IntegrityBroken), house.deployment.database.transaction() as tx:
            tx.execute(delete(tables.trail_entry))
        assert len(house.bodies()) == count
