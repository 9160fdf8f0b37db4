"""The process dies at every instant of every act of the API: all of the act is there or nothing, and asked again it is one act."""

import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, cast

import pytest
from httpx2 import Response

from app.api.doors import HONOURING_KEY
from app.domain.words import Action
from tests.databases import memory
from tests.harness import House
from tests.inprocess import InProcessClient
from tests.reliability import fail_points
from tests.reliability.fail_points import KEY, Explored, Explorer, Moment, Sent, Violated
from tests.reliability.tally import Tally
from tests.reliability.zygote import Zygote
from tests.running_study import RunningStudy, S, allocation_of, running_study
from tests.security.operations import Operation, operation_at
from tests.security.script import running
from tests.security.whole_script import WholePlay

LONG: Final = (pytest.mark.long, pytest.mark.timeout(0))

AGAIN: Final[Mapping[Action, str]] = {
    Action.SIGN_IN: "each sign-in is a session; one whose answer was lost ends by itself",
    Action.ISSUE_TOKEN: "each token is a session too",
    Action.REGISTER_CLIENT: "a client has no name of its own: the one whose secret was lost is nobody's, and holds no role",
    Action.ISSUE_CLIENT_SECRET: "each issues another one; the one whose answer was lost ends with the overlap, or is revoked",
    Action.RESET_PERSON: "each reset issues another password",
    Action.STEP_UP: "the code has served: a wrong try is counted",
    Action.CHANGE_PASSWORD: "the old password is wrong by now: a wrong try is counted",
    Action.REQUEST_FACTOR_RECOVERY: "each is another recovery; one whose answer was lost opens nothing, and ends by itself",
    Action.COMPLETE_FACTOR_RECOVERY: "the recovery is over by now: a try is counted",
}
"""What changes something once more when it is sent again: its answer is a secret, which is not kept (rule C4)."""
BESIDE: Final[Mapping[Action, set[str]]] = {
    Action.SIGN_IN: {"sign_in_tries"},
    Action.CHANGE_PASSWORD: {"sign_in_tries"},
    Action.STEP_UP: {"credential", "session", "known_device"},
    Action.REQUEST_FACTOR_RECOVERY: {"sign_in_tries"},
    Action.COMPLETE_FACTOR_RECOVERY: {"factor_recovery"},
}
"""What is written in a transaction of its own before the act: a try is counted before it is looked at (USR-10)."""


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    """The process that everybody who dies is forked from."""
    with Zygote(fail_points.__name__) as process:
        yield process


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder in memory: what is lost with a machine is not the matter here."""
    own = Path(tempfile.mkdtemp(prefix="snose-", dir=memory()))
    yield own
    shutil.rmtree(own)


@contextmanager
def kept(house: House, folder: Path) -> Iterator[Moment]:
    """Give how a house stands, and drop what was made of it."""
    moment = Moment.of(house, folder)
    try:
        yield moment
    finally:
        moment.forget()


def allocation(study: RunningStudy, *, key: str | None = None) -> Sent:
    """Return a request for a new subject; known by its content alone where it has no key."""
    token = {"Authorization": f"Bearer {study.investigator.token()}"}
    return Sent.by(
        study.house.client, "POST", f"{S}/allocations", headers=token, json=allocation_of("01-0009"), key=key
    )


def code_break(study: RunningStudy) -> Sent:
    token = {"Authorization": f"Bearer {study.investigator.elevated_token()}"}
    body = {"subject_id": "01-0001", "reason_code": "overdose"}
    return Sent.by(study.house.client, "POST", f"{S}/code-breaks", headers=token, json=body)


def decisive(instants: list[str]) -> list[int]:
    """Return the instants behind the first write, behind each COMMIT, in the sink's line and before the answer."""
    numbered = list(enumerate(instants, start=1))
    first = ("after INSERT", "after WITH", "in the sink's line", "before the answer")
    chosen = {at for at, name in numbered if name.startswith("after COMMIT")}
    for word in first:
        chosen.update([at for at, name in numbered if name.startswith(word)][:1])
    return sorted(chosen)


@pytest.mark.parametrize("database_kind", ["sqlite", pytest.param("postgresql", marks=LONG)])
def test_death_at_the_decisive_instants(house: House, zygote: Zygote, folder: Path) -> None:
    """An allocation and a code break: all or nothing, and one effect after the retry [C3, C4, C6, D4, INT-01; T2, G2]"""
    study = running_study(house, subjects=1)
    for sent in (allocation(study), code_break(study)):
        with kept(house, folder) as moment:
            found = Explorer(zygote, folder).explore(sent, moment, chosen=decisive)
        assert found.answer["status"] == 201
        assert found.deaths >= 3
        assert not found.is_new_act


@pytest.mark.parametrize("build", ["answer_apart", pytest.param("entry_apart", marks=LONG)])
@pytest.mark.parametrize("database_kind", ["sqlite", pytest.param("postgresql", marks=LONG)])
def test_a_build_with_two_transactions_is_caught(house: House, zygote: Zygote, folder: Path, build: str) -> None:
    """Negative control: the answer, or the entry, in a transaction of its own is found out by the same deaths [C3, E2; T2]"""
    sent = allocation(running_study(house, subjects=1), key=KEY)
    with kept(house, folder) as moment, pytest.raises(Violated, match="after COMMIT"):
        Explorer(zygote, folder, build).explore(sent, moment, chosen=decisive)


@pytest.mark.long
@pytest.mark.timeout(0)
def test_death_at_every_instant_with_a_retry_after_each(house: House, zygote: Zygote, folder: Path) -> None:
    """An allocation with and without a key, and a code break: nothing hangs on what a dead process may still hold [C6; T2]"""
    explorer = Explorer(zygote, folder, at_every_instant=True)
    study = running_study(house, subjects=1)
    for sent in (allocation(study), allocation(study, key=KEY), code_break(study)):
        with kept(house, folder) as moment:
            found = explorer.explore(sent, moment)
        assert found.deaths == found.retries == len(found.instants)


# -- every act of the API ------------------------------------------------------------------------------------------------


@dataclass
class Exploring:
    """A client that dies over every act that it is the first to do."""

    house: House
    explorer: Explorer
    operations: list[Operation]
    chosen: Callable[[list[str]], Iterable[int]] | None
    explored: dict[str, Explored] = field(default_factory=dict)
    tried: Counter[str] = field(default_factory=Counter)
    is_suspected: bool = False

    def request(self, method: str, url: str, **sent: Any) -> Response:  # noqa: ANN401  # as the client takes it
        """Send a request; when it is the first of an operation that succeeds, it was died over at every instant before."""
        operation = operation_at(self.operations, method, url)
        if operation is None or not is_mutating(operation) or operation.name in self.explored:
            return self.house.client.request(method, url, **sent)
        self.tried[operation.name] += 1
        given = {name: value for name, value in sent.items() if value is not None}
        key = KEY if operation.action in HONOURING_KEY else None
        again = Sent.by(self.house.client, method, url, key=key, **given)
        with kept(self.house, self.explorer.folder) as moment:
            response = self.house.client.request(method, url, **sent)
            if response.is_success:
                explorer = replace(self.explorer, is_suspected=self.is_suspected)
                self.explored[operation.name] = explorer.explore(again, moment, chosen=self.chosen)
        return response


def is_mutating(operation: Operation) -> bool:
    return operation.is_act or operation.spends_the_proof


class EveryAct(WholePlay):
    """The whole script without what only reads, and without what fails by itself."""

    def run(self) -> bytes:
        enrolled = self.go_to_the_floor(self.begin())
        self.exhaust(enrolled)
        self.extend()
        self.stop()
        package = self.unblind()
        self.play_what_is_left()
        self.recover()
        return package

    def recover(self) -> None:
        """State how it came that the sink knows more than the database."""
        self.forget_the_end()
        cast("Exploring", self.recorder._client).is_suspected = True
        self.prove_anew(self.admin)
        statement = {"statement": "The backup of 08:00 was restored; the EDC system was compared."}
        self.ask(self.admin, "POST", "/v1/recovery-statements", statement, step_up=True)


@pytest.mark.long
@pytest.mark.timeout(0)
@pytest.mark.parametrize("chosen", [decisive, None], ids=["decisive instants", "all instants"])
def test_death_over_every_act(
    migrated_database_url: str,
    zygote: Zygote,
    folder: Path,
    chosen: Callable[[list[str]], Iterable[int]] | None,
    tally: Tally,
) -> None:
    """Every operation that changes anything; a new one that nobody dies over fails here [C3, C6, INT-01; T2, G2]"""
    with running(migrated_database_url, folder) as house:
        play = EveryAct.in_house(house)
        exploring = Exploring(house, Explorer(zygote, folder), play.operations(), chosen)
        play.recorder._client = cast("InProcessClient", exploring)
        play.run()
    mutating = {one.name: one for one in exploring.operations if is_mutating(one)}
    explored = exploring.explored
    assert explored.keys() == mutating.keys(), f"tried in vain: {exploring.tried - Counter(explored)}"
    assert {mutating[name].action for name, found in explored.items() if found.is_new_act} == set(AGAIN)
    assert {mutating[name].action: found.beside for name, found in explored.items() if found.beside} == BESIDE
    tally(
        operations=len(mutating),
        deaths=sum(found.deaths for found in explored.values()),
        states_asked_again=sum(found.retries for found in explored.values()),
    )
