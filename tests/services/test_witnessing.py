"""The second sink: what the witness has seen counts, whatever becomes of database and file; nobody waits for it. [D4, INT-07]"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic, sleep
from typing import Final

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from structlog.testing import capture_logs

from app.domain.notes import Checkpoint, join_note, parse_checkpoint, split_note
from app.sealing.cosigning import Cosigner, verify_cosignature
from app.services import keys
from app.services.checkpoints import INTERVAL
from app.services.keeper import Keeper
from app.services.readiness import is_ready
from app.services.witnessing import FALSE, PATIENCE, REFUSED, SILENT, WitnessKeeper
from tests.doors import Fault, failing
from tests.harness import STUDY, House
from tests.security.evidence_builders import Signer
from tests.witnesses import NAME, SEED, Served, WitnessAtWork, new_folder

WITHIN_SECONDS: Final = 30


def until(reached: Callable[[], bool]) -> None:
    """Wait for what another thread does."""
    ends_at = monotonic() + WITHIN_SECONDS
    while not reached():
        assert monotonic() < ends_at
        sleep(0.01)


def keeper_of(house: House) -> WitnessKeeper:
    assert house.deployment.witness is not None
    return house.deployment.witness


def work(house: House) -> None:
    """Have the database looked at, checkpoints written and sent, an interval later."""
    house.clock.advance(INTERVAL)
    keeper = Keeper(house.deployment)
    keeper.round()
    keeper.witness_round()


def cosigned(house: House, vkey: str) -> dict[str, int]:
    """Return, by origin, the largest size in the sink file that bears a cosignature of the witness."""
    found: dict[str, int] = {}
    for line in house.settings.checkpoint_file.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        text, signatures = split_note(row["note"])
        if len(signatures) > 1:
            verify_cosignature(row["note"].removeprefix(f"{text}\n"), vkey, text)
            found[row["origin"]] = max(row["size"], found.get(row["origin"], 0))
    return found


def sizes(house: House) -> dict[str, int]:
    return {origin: one.size for origin, one in house.deployment.checkpoints.held().items()}


def entered(house: House) -> list[str | None]:
    """Return what the service's log tells about its witness."""
    return [one["after"]["trouble"] for one in house.trail() if one["action"] == "checkpoint:witness"]


class Scripted(Served):
    """A witness that answers what a test says."""

    def __init__(self) -> None:
        self.record: list[str] = []
        self.answers: list[tuple[int, str]] = []
        self.asked = 0
        self.sent: list[str] = []

        async def checkpoints(_request: Request) -> Response:
            self.asked += 1
            return PlainTextResponse("".join(f"{line}\n" for line in self.record))

        async def add(request: Request) -> Response:
            self.sent.append((await request.body()).decode())
            status, text = self.answers.pop(0) if self.answers else (403, "")
            return PlainTextResponse(text, status)

        super().__init__(
            Starlette(routes=[Route("/checkpoints", checkpoints), Route("/add-checkpoint", add, methods=["POST"])])
        )


COSIGNER: Final = Cosigner(NAME, SEED)


def line_of(note: str, by: Cosigner = COSIGNER) -> str:
    """Return a line of a witness's record, over the checkpoint of a note."""
    text, signatures = split_note(note)
    checkpoint = parse_checkpoint(text)
    cosigned = join_note(text, [*signatures, by.cosign(text, 5)])
    return json.dumps({"origin": checkpoint.origin, "size": checkpoint.size, "root": "", "note": cosigned, "at": ""})


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    """A witness that says what it is told to say."""
    with Scripted() as served:
        yield served


@pytest.fixture
def witnessed(house: House, tmp_path: Path) -> Iterator[tuple[House, WitnessAtWork]]:
    """A deployment and its witness."""
    vkey = new_folder(tmp_path / "witness")
    with WitnessAtWork(tmp_path / "witness", house.deployment.signing.vkeys()) as witness:
        house.restart(witness_url=witness.url, witness_key=vkey)
        yield house, witness
        house.restart(witness_url=None, witness_key=None)


class TestCosignatures:
    def test_stand_beside_the_checkpoints(self, witnessed: tuple[House, WitnessAtWork]) -> None:
        """Everything that the sink holds is cosigned there, an interval later and again as the log grows. [custody "The trail"]"""
        house, witness = witnessed
        house.register_study()
        for _ in range(2):
            work(house)
            assert cosigned(house, witness.vkey) == sizes(house)
            assert len(sizes(house)) == 2
            house.study_admins[STUDY].get(f"/v1/studies/{STUDY}")
        assert keeper_of(house).trouble is None
        assert entered(house) == []

    def test_come_after_a_privileged_act(self, witnessed: tuple[House, WitnessAtWork]) -> None:
        """The act wakes the thread that sends; it does not wait for it. [D4]"""
        house, witness = witnessed
        work(house)
        before = cosigned(house, witness.vkey)[house.deployment.origin(None)]
        house.register("somebody")
        until(lambda: cosigned(house, witness.vkey)[house.deployment.origin(None)] > before)

    def test_after_a_restart(self, witnessed: tuple[House, WitnessAtWork]) -> None:
        """What was written while the witness was away is sent by the next process."""
        house, witness = witnessed
        work(house)
        url, key = house.settings.witness_url, house.settings.witness_key
        house.restart(witness_url=None, witness_key=None)
        assert house.deployment.witness is None
        Keeper(house.deployment).witness_round()
        house.register_study()
        work(house)
        assert cosigned(house, witness.vkey) != sizes(house)
        house.restart(witness_url=url, witness_key=key)
        work(house)
        assert cosigned(house, witness.vkey) == sizes(house)


class TestHandover:
    def test_goes_on_under_a_running_witness(self, witnessed: tuple[House, WitnessAtWork]) -> None:
        """A new signing key, twice: the witness is told, and nobody restarts it. [custody "The trail"]"""
        house, witness = witnessed
        for _ in range(2):
            work(house)
            keys.rotate_signing_key(house.deployment)
            work(house)
            assert keeper_of(house).trouble is None
            assert cosigned(house, witness.vkey) == sizes(house)
        assert len(witness.state.handovers()) == 2
        assert entered(house) == []

    def test_is_refused(self, house: House, tmp_path: Path) -> None:
        """A witness whose log's key a thief has handed over does not go on, and that is alarmed."""
        vkey = new_folder(tmp_path / "witness")
        with WitnessAtWork(tmp_path / "witness", [Signer(1, house.deployment.signing.name).vkey]) as witness:
            house.restart(witness_url=witness.url, witness_key=vkey)
            keys.rotate_signing_key(house.deployment)
            work(house)
            assert keeper_of(house).trouble == REFUSED
            assert witness.state.handovers() == []
            house.restart(witness_url=None, witness_key=None)


class TestMissingWitness:
    def test_withholds_nothing(self, house: House, scripted: Scripted) -> None:
        """Acts go on; it is alarmed and entered, once; /readyz tells after a while, and no more when it is back. [D4]"""
        house.restart(witness_url=f"{scripted.url}/nowhere", witness_key=COSIGNER.vkey)
        with capture_logs() as logs:
            work(house)
            work(house)
        alarms = [log for log in logs if log["event"] == "not witnessed"]
        assert [(log["witness"], log["trouble"]) for log in alarms] == [(NAME, SILENT)]
        assert entered(house) == [SILENT]
        house.register("somebody")
        assert is_ready(house.deployment)
        house.clock.advance(PATIENCE)
        assert not is_ready(house.deployment)
        house.register("somebody.else")
        house.restart(witness_url=scripted.url)
        work(house)
        assert entered(house) == [SILENT, REFUSED]

    def test_comes_back(self, witnessed: tuple[House, WitnessAtWork]) -> None:
        """What was missed is made up for, and entered."""
        house, witness = witnessed
        work(house)
        witness.stop()
        house.register_study()
        work(house)
        assert entered(house) == [SILENT]
        witness.start()
        work(house)
        assert entered(house) == [SILENT, None]
        work(house)
        assert cosigned(house, witness.vkey) == sizes(house)

    def test_while_the_database_is_down(self, witnessed: tuple[House, WitnessAtWork]) -> None:
        """The round fails, is logged, and the next one tries again."""
        house, _ = witnessed
        with failing(house, *[Fault.DOWN] * 3) as deployment, capture_logs() as logs:
            keeper = WitnessKeeper(
                keeper_of(house)._client, COSIGNER.vkey, NAME, deployment.checkpoints, deployment.database, house.clock
            )
            deployment.witness.__init__(  # type: ignore[misc]  # the same keeper, on the failing database
                keeper._client, keeper._vkey, keeper._name, deployment.checkpoints, deployment.database, house.clock
            )
            Keeper(deployment).witness_round()
        assert [(log["step"], log["kind"]) for log in logs] == [("witness", "DatabaseUnavailable")]


def trouble_with(house: House, scripted: Scripted, *answers: tuple[int, str]) -> str | None:
    """Return what a round says of a witness that answers so; the service's own thread waits meanwhile."""
    house.clock.advance(INTERVAL)
    Keeper(house.deployment).round()
    keeper = keeper_of(house)
    with keeper.turn:
        scripted.answers = list(answers)
        keeper.round()
        return keeper.trouble


class TestFalseWitness:
    def note(self, house: House) -> str:
        work(house)
        return house.deployment.checkpoints.held()[house.deployment.origin(None)].note

    def restart(self, house: House, scripted: Scripted) -> None:
        house.restart(witness_url=scripted.url, witness_key=COSIGNER.vkey)

    @pytest.mark.parametrize(
        "answers",
        [
            [(403, "")],
            [(404, "")],
            [(422, "")],
            [(503, "")],
            [(409, "")],
            [(409, "many\n")],
            [(409, "0\n")],
            [(409, "999999\n")],
            [(409, "1\n"), (409, "2\n"), (409, "3\n")],
        ],
    )
    def test_refuses(self, house: House, scripted: Scripted, answers: list[tuple[int, str]]) -> None:
        """Whatever it says instead of a cosignature is a refusal, and its bare word about a size is none of a rollback."""
        self.note(house)
        self.restart(house, scripted)
        assert trouble_with(house, scripted, *answers) == REFUSED
        assert house.deployment.checkpoints.suspicions == {}

    def test_answers_what_is_no_cosignature(self, house: House, scripted: Scripted) -> None:
        """A line that its key did not sign is not kept."""
        note = self.note(house)
        self.restart(house, scripted)
        for text in ("", "thanks\n", note.rpartition("\n\n")[2]):
            assert trouble_with(house, scripted, (200, text)) == FALSE
        assert cosigned(house, COSIGNER.vkey) == {}

    @pytest.mark.parametrize("record", ["nonsense", "of another witness", "no note"])
    def test_shows_a_false_record(self, house: House, scripted: Scripted, record: str) -> None:
        """What it shows counts only under its cosignature; a line that is none is passed over."""
        line = line_of(self.note(house), Cosigner(NAME, bytes(32)))
        if record == "no note":
            line = json.dumps({**json.loads(line), "note": "none"})
        scripted.record = ["nonsense" if record == "nonsense" else line]
        self.restart(house, scripted)
        assert trouble_with(house, scripted) == (REFUSED if record == "nonsense" else FALSE)

    def test_shows_logs_of_others(self, house: House, scripted: Scripted) -> None:
        """A cosigned checkpoint of another deployment is nothing to this one."""
        signing = house.deployment.signing
        other = signing.sign_note(Checkpoint("snose/another/service", 10**6, bytes(32)).text())
        scripted.record = [line_of(other)]
        self.restart(house, scripted)
        assert scripted.asked == 1
        assert dict(house.deployment.checkpoints.witnessed) == {}

    def test_beside_another_worker(self, house: House, scripted: Scripted) -> None:
        """When another process has sent more in between, there is nothing to do."""
        self.note(house)
        self.restart(house, scripted)
        service = house.deployment.origin(None)
        assert trouble_with(house, scripted, (409, "999999\n")) == REFUSED
        scripted.record = [line_of(one.note) for one in house.deployment.checkpoints.held().values()]
        keeper = keeper_of(house)
        with keeper.turn:
            scripted.answers = [(409, "999999\n")]
            keeper.round()
        assert keeper.trouble is None
        assert house.deployment.checkpoints.witnessed[service].size == sizes(house)[service]
