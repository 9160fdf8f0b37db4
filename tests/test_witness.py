"""The witness over HTTP: what it cosigns, what it refuses and how, and that it forgets nothing. [AUD-18, C2SP tlog-witness]"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from typer.testing import CliRunner, Result

from app.cli.witness import command
from app.domain.notes import join_note, parse_signatures, split_note
from app.domain.witnessing import Submission
from app.domain.words import Mode
from app.errors import SnoseError, UnsafeSetting
from app.sealing.cosigning import Cosigner, verify_cosignature
from app.settings import Settings
from app.storage.witness_state import WitnessState
from app.surroundings import surroundings
from tests.security.evidence_builders import DEPLOYMENT, ORIGIN, SIGNER, THIEF, Signer, handover
from tests.security.evidence_builders import NAME as LOG_NAME
from tests.witnesses import Log, WitnessAtWork, new_folder, stranger_line, two_signatures

ROOT: Final = Path(__file__).parent.parent
WITNESS_KEY: Final = Cosigner("witness.example.org/w1", bytes(32)).vkey
LOG: Final = Log(SIGNER, ORIGIN)
FORK: Final = Log(SIGNER, ORIGIN, other=6)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a new witness."""
    new_folder(tmp_path / "w")
    return tmp_path / "w"


@pytest.fixture
def witness(folder: Path) -> Iterator[WitnessAtWork]:
    """A witness of one deployment's logs."""
    with WitnessAtWork(folder, [SIGNER.vkey]) as working:
        yield working


def ask(method: str, url: str, body: bytes = b"", **query: str) -> httpx.Response:
    # Without TLS there is no authority to be read, which takes longer than the asking.
    with httpx.Client(trust_env=False, verify=url.startswith("https:")) as client:
        return client.request(method, url, content=body, params=query or None)


def send(url: str, body: bytes) -> httpx.Response:
    return ask("POST", f"{url}/add-checkpoint", body)


def record(witness: WitnessAtWork, name: str = "") -> list[dict[str, Any]]:
    """Return the newest cosigned checkpoints that the witness shows."""
    lines = ask("GET", f"{witness.url}/checkpoints", name=name).text.splitlines()
    return [json.loads(line) for line in lines]


def stands_at(url: str) -> str:
    """Return where the witness says to stand."""
    return send(url, Submission(399, (), LOG.note(400)).text().encode()).text.strip()


class TestCosigning:
    def test_of_a_log_that_grows(self, witness: WitnessAtWork) -> None:
        """Each step is answered by one line that the key of the witness verifies, and stands in its own record."""
        old = 0
        for new in (5, 5, 6, 17, 32, 40):
            answer = send(witness.url, LOG.request(old, new))
            assert answer.status_code == 200
            text = LOG.checkpoint(new).text()
            line, seconds = verify_cosignature(answer.text, witness.vkey, text)
            assert answer.text.count("\n") == 1
            (kept,) = record(witness)
            assert (kept["origin"], kept["size"]) == (ORIGIN, new)
            assert kept["note"] == join_note(text, [*split_note(LOG.note(new)).signatures, line])
            assert seconds > 1_600_000_000
            old = new

    def test_of_logs_apart(self, witness: WitnessAtWork) -> None:
        """Each log has its own history; the record of one name is asked for by the name."""
        other = Log(SIGNER, f"{LOG_NAME}/service")
        assert send(witness.url, LOG.request(0, 5)).status_code == 200
        assert send(witness.url, other.request(0, 9)).status_code == 200

        assert [row["origin"] for row in record(witness, LOG_NAME)] == [ORIGIN, f"{LOG_NAME}/service"]
        assert record(witness, "snose/another") == []
        assert ask("GET", f"{witness.url}/livez").text == "ok\n"

    def test_passes_over_lines_of_strangers(self, witness: WitnessAtWork) -> None:
        """A checkpoint may bear other signatures; they are neither asked nor kept."""
        text = LOG.checkpoint(5).text()
        note = join_note(text, [stranger_line(text), SIGNER.line(text)])
        assert send(witness.url, Submission(0, (), note).text().encode()).status_code == 200
        (kept,) = record(witness)
        assert "somebody.else" not in kept["note"]

    def test_with_extension_lines(self, witness: WitnessAtWork) -> None:
        """They are cosigned with the rest."""
        text = f"{LOG.checkpoint(5).text()}more\n"
        answer = send(witness.url, Submission(0, (), SIGNER.note(text)).text().encode())
        assert verify_cosignature(answer.text, witness.vkey, text)
        assert send(witness.url, LOG.request(5, 6)).status_code == 200

    def test_after_the_log_changed_its_key(self, folder: Path) -> None:
        """Old and new key are both given, and either counts."""
        new = Signer(2)
        with WitnessAtWork(folder, [SIGNER.vkey, new.vkey]) as witness:
            assert send(witness.url, LOG.request(0, 5)).status_code == 200
            assert send(witness.url, Log(new, ORIGIN).request(5, 9)).status_code == 200
            note = two_signatures(LOG.checkpoint(12).text(), SIGNER, new)
            assert send(witness.url, Submission(9, LOG.proof(9, 12), note).text().encode()).status_code == 200


class TestRefusals:
    def test_of_another_beginning(self, witness: WitnessAtWork) -> None:
        """409 with the size at which it stands, as C2SP says: then the log knows from where to prove."""
        send(witness.url, LOG.request(0, 12))
        for old, new in ((0, 20), (5, 20), (13, 20), (0, 5), (5, 5)):
            answer = send(witness.url, LOG.request(old, new))
            assert (answer.status_code, answer.text) == (409, "12\n"), (old, new)
            assert answer.headers["content-type"].startswith("text/x.tlog.size")
        assert stands_at(witness.url) == "12"

    def test_of_a_smaller_log(self, witness: WitnessAtWork) -> None:
        """A log that was rolled back gets no cosignature, whatever it claims."""
        send(witness.url, LOG.request(0, 12))
        assert send(witness.url, LOG.request(0, 7)).status_code == 409
        assert send(witness.url, Submission(12, (), LOG.note(7)).text().encode()).status_code == 400

    def test_of_a_fork(self, folder: Path, witness: WitnessAtWork) -> None:
        """The stolen signing key does not help: 422 at another size, 409 at the same, and both are kept as evidence. [T9]"""
        send(witness.url, LOG.request(0, 12))
        assert send(witness.url, FORK.request(12, 20)).status_code == 422
        assert send(witness.url, FORK.request(12, 12)).status_code == 409
        kept = [json.loads(line) for line in (folder / "refused.jsonl").read_text().splitlines()]
        assert [row["size"] for row in kept] == [20, 12]
        assert [row["note"] for row in kept] == [FORK.note(20), FORK.note(12)]
        assert send(witness.url, LOG.request(12, 20)).status_code == 200

    def test_of_a_proof_that_does_not_hold(self, witness: WitnessAtWork) -> None:
        """422, with every kind of wrong proof; from nothing none is asked for."""
        assert send(witness.url, Submission(0, (bytes(32),), LOG.note(5)).text().encode()).status_code == 422
        send(witness.url, LOG.request(0, 5))
        proof = LOG.proof(5, 12)
        for wrong in ((), proof[1:], proof[::-1], (*proof, bytes(32)), LOG.proof(4, 12)):
            assert send(witness.url, Submission(5, wrong, LOG.note(12)).text().encode()).status_code == 422
        assert stands_at(witness.url) == "5"

    def test_of_unknown_logs_and_keys(self, witness: WitnessAtWork) -> None:
        """404 for a log that nobody told it of, 403 for a checkpoint without a known signature."""
        assert send(witness.url, Log(SIGNER, "snose/another/S1").request(0, 5)).status_code == 404
        assert send(witness.url, Log(SIGNER, f"{ORIGIN}/deeper").request(0, 5)).status_code == 404
        assert send(witness.url, Log(THIEF, ORIGIN).request(0, 5)).status_code == 403
        forged = LOG.note(5).replace("\n5\n", "\n6\n")
        assert send(witness.url, Submission(0, (), forged).text().encode()).status_code == 403
        assert stands_at(witness.url) == "0"

    @pytest.mark.parametrize("body", [b"", b"\xff", b"old 0\n\nnothing\n", b"old x\n\n", b"old 0\n" + b"A" * 70_000])
    def test_of_what_is_no_request(self, witness: WitnessAtWork, body: bytes) -> None:
        """400, or 413 for too much of it."""
        assert send(witness.url, body).status_code == (413 if len(body) > 2**16 else 400)

    def test_of_any_changed_byte(self, witness: WitnessAtWork) -> None:
        """A request of which one byte was changed is cosigned in no case but one: what was changed is no part of the checkpoint."""
        send(witness.url, LOG.request(0, 12))
        whole, chance = LOG.request(12, 29), random.Random(3)
        for _ in range(100):
            at = chance.randrange(len(whole))
            changed = whole[:at] + bytes([whole[at] ^ (1 << chance.randrange(8))]) + whole[at + 1 :]
            assert send(witness.url, changed).status_code in {400, 403, 404, 409, 422}, at
        assert stands_at(witness.url) == "12"

    def test_when_it_cannot_write(self, folder: Path, witness: WitnessAtWork) -> None:
        """Nothing is cosigned that is not remembered: 503, and it stands where it stood."""
        send(witness.url, LOG.request(0, 5))
        (folder / "cosigned.jsonl.new").mkdir()
        assert send(witness.url, LOG.request(5, 9)).status_code == 503
        (folder / "cosigned.jsonl.new").rmdir()
        assert stands_at(witness.url) == "5"
        assert send(witness.url, LOG.request(5, 9)).status_code == 200

    def test_beside_each_other(self, witness: WitnessAtWork) -> None:
        """Of two histories that arrive at once, one is cosigned: never both. [C2SP: atomically]"""
        send(witness.url, LOG.request(0, 5))
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda n: send(witness.url, (LOG, FORK)[n % 2].request(5, 20 + n // 2)), range(16)))
        assert [answer.status_code for answer in answers].count(200) == 1


def hand_over(url: str, note: str) -> int:
    return ask("POST", f"{url}/add-handover", note.encode()).status_code


class TestHandover:
    NEW: Final = Signer(2)
    NEWER: Final = Signer(3)

    def test_under_a_running_witness(self, folder: Path) -> None:
        """Key follows key without a restart; the witness that comes back knows them, and the old one still counts. [SIG, AUD-18]"""
        new, newer = self.NEW, self.NEWER
        with WitnessAtWork(folder, [SIGNER.vkey]) as witness:
            assert send(witness.url, LOG.request(0, 5)).status_code == 200
            assert send(witness.url, Log(new, ORIGIN).request(5, 9)).status_code == 403
            assert hand_over(witness.url, handover(SIGNER, new)) == 200
            assert send(witness.url, Log(new, ORIGIN).request(5, 9)).status_code == 200
            assert hand_over(witness.url, handover(new, newer)) == 200
            assert send(witness.url, LOG.request(9, 12)).status_code == 200
        with WitnessAtWork(folder, [SIGNER.vkey]) as witness:
            assert send(witness.url, Log(newer, ORIGIN).request(12, 17)).status_code == 200
            assert hand_over(witness.url, handover(newer, Signer(4))) == 200

    def test_again(self, folder: Path, witness: WitnessAtWork) -> None:
        """A handover that is sent again changes nothing: neither keys nor memory."""
        assert hand_over(witness.url, handover(SIGNER, self.NEW)) == 200
        kept = (folder / "handovers.jsonl").read_bytes()
        for _ in range(3):
            assert hand_over(witness.url, handover(SIGNER, self.NEW)) == 200
        assert (folder / "handovers.jsonl").read_bytes() == kept
        assert kept.count(b"\n") == 1

    def test_forged(self, folder: Path, witness: WitnessAtWork) -> None:
        """Not signed by the known key, or not by the new one; of a key nobody knows; no handover at all."""
        new = self.NEW
        for signers in ([THIEF, new], [new], [SIGNER]):
            assert hand_over(witness.url, handover(SIGNER, new, signers)) == 403
        assert hand_over(witness.url, handover(THIEF, new)) == 403
        assert hand_over(witness.url, handover(SIGNER, SIGNER)) == 403
        foreign = Signer(2, "snose/another")
        text = f"snose/v1/key-handover\n{DEPLOYMENT}\n{SIGNER.vkey}\n{foreign.vkey}\n"
        for note in (two_signatures(text, SIGNER, foreign), LOG.note(5), "", SIGNER.note("a\nb\nc\nd\n")):
            assert hand_over(witness.url, note) == 400
        assert ask("POST", f"{witness.url}/add-handover", b"\xff").status_code == 400
        assert ask("POST", f"{witness.url}/add-handover", b"A" * 70_000).status_code == 413
        assert not (folder / "handovers.jsonl").exists()
        assert send(witness.url, Log(new, ORIGIN).request(0, 5)).status_code == 403

    def test_forked(self, witness: WitnessAtWork) -> None:
        """A key has one successor: whoever steals it later is refused, and the right one goes on."""
        assert hand_over(witness.url, handover(SIGNER, self.NEW)) == 200
        assert hand_over(witness.url, handover(SIGNER, THIEF)) == 409
        assert send(witness.url, Log(THIEF, ORIGIN).request(0, 5)).status_code == 403
        assert send(witness.url, Log(self.NEW, ORIGIN).request(0, 5)).status_code == 200

    def test_that_is_not_remembered(self, folder: Path, witness: WitnessAtWork) -> None:
        """What cannot be kept does not count."""
        (folder / "handovers.jsonl.new").mkdir()
        assert hand_over(witness.url, handover(SIGNER, self.NEW)) == 503
        assert send(witness.url, Log(self.NEW, ORIGIN).request(0, 5)).status_code == 403
        (folder / "handovers.jsonl.new").rmdir()
        assert hand_over(witness.url, handover(SIGNER, self.NEW)) == 200

    def test_up_to_a_measure(self, witness: WitnessAtWork, monkeypatch: pytest.MonkeyPatch) -> None:
        """A thief of the newest key cannot fill the disk with successors."""
        monkeypatch.setattr("app.witness._MOST_HANDOVERS", 1)
        assert hand_over(witness.url, handover(SIGNER, self.NEW)) == 200
        assert hand_over(witness.url, handover(self.NEW, self.NEWER)) == 503

    @pytest.mark.parametrize("content", ["nonsense\n", '"nonsense"\n', json.dumps(handover(SIGNER, THIEF, [THIEF]))])
    def test_damaged_memory(self, folder: Path, content: str) -> None:
        """A memory that holds what is no handover is refused, not begun anew."""
        (folder / "handovers.jsonl").write_text(content, encoding="utf-8")
        finished = snose_witness("serve", "--log", SIGNER.vkey, "--data", str(folder))
        assert isinstance(finished.exception, UnsafeSetting)
        assert "memory of the witness" in finished.exception.message


class TestSettings:
    @pytest.mark.parametrize(
        ("url", "key", "said"),
        [
            ("http://127.0.0.1:8010", None, "SNOSE_WITNESS_KEY"),
            ("http://127.0.0.1:8010", SIGNER.vkey, "SNOSE_WITNESS_KEY"),
            (None, WITNESS_KEY, "SNOSE_WITNESS_URL"),
            ("ftp://127.0.0.1", WITNESS_KEY, "SNOSE_WITNESS_URL"),
        ],
    )
    def test_half_said(self, tmp_path: Path, url: str | None, key: str | None, said: str) -> None:
        """A witness needs an address and its own kind of key; else the service does not start without one unseen. [F2]"""
        settings = Settings(
            mode=Mode.TEST, database_url=f"sqlite:///{tmp_path / 'x'}", witness_url=url, witness_key=key
        )
        with pytest.raises(UnsafeSetting, match=said):
            surroundings(settings)


class Command:
    """`snose witness serve` as its own process."""

    def __init__(self, folder: Path, *logs: str) -> None:
        keys = [part for vkey in logs for part in ("--log", vkey)]
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "app.cli",
                "witness",
                "serve",
                "--data",
                str(folder),
                *keys,
                "--port",
                "0",
                "--json",
            ],
            cwd=ROOT,
            env={name: value for name, value in os.environ.items() if not name.startswith("SNOSE_")},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.told: dict[str, str] = json.loads(self.process.stdout.readline())

    def end(self, how: signal.Signals) -> None:
        self.process.send_signal(how)
        self.process.communicate(timeout=30)


def snose_witness(*arguments: str) -> Result:
    return CliRunner().invoke(command, arguments)


def kill_and_return(folder: Path, times: int, chance: random.Random) -> None:
    """Kill the witness while it answers; show that it never goes back, and never cosigns the other history."""
    acknowledged = 0
    for _ in range(times):
        command = Command(folder, SIGNER.vkey)
        url = command.told["url"]
        stands = int(stands_at(url))
        assert stands >= acknowledged
        if stands > 6:
            assert send(url, FORK.request(stands, stands + 1)).status_code == 422
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(send, url, LOG.request(stands, stands + 1))
            time.sleep(chance.uniform(0, 0.02))
            command.end(signal.SIGKILL)
            if answer.exception() is None:
                assert answer.result().status_code == 200
                acknowledged = stands + 1


class TestCommand:
    def test_from_key_to_cosignature(self, tmp_path: Path) -> None:
        """`init` shows the key, `serve` tells where it listens, and ends in order; state outlives kill -9."""
        made = snose_witness("init", "--data", str(tmp_path / "w"), "--name", "witness.example.org/w1", "--json")
        assert made.exit_code == 0, made.output
        vkey = json.loads(made.stdout)["key"]
        serving = Command(tmp_path / "w", SIGNER.vkey)
        assert serving.told["key"] == vkey
        assert serving.told["url"].startswith("http://127.0.0.1:")
        answer = send(serving.told["url"], LOG.request(0, 12))
        assert verify_cosignature(answer.text, vkey, LOG.checkpoint(12).text())
        assert parse_signatures(answer.text)
        serving.end(signal.SIGKILL)
        serving = Command(tmp_path / "w", SIGNER.vkey)
        assert send(serving.told["url"], FORK.request(12, 20)).status_code == 422
        assert send(serving.told["url"], LOG.request(0, 20)).text == "12\n"
        serving.end(signal.SIGTERM)
        assert serving.process.returncode in {0, -signal.SIGTERM}

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (("init", "--name", "two words"), "cannot have this name"),
            (("serve", "--log", SIGNER.vkey), "cannot be read"),
        ],
    )
    def test_says_what_is_wrong(self, tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
        """One plain sentence of the tree of errors, which the command prints and ends with status 1."""
        finished = snose_witness(*arguments, "--data", str(tmp_path / "w"))
        assert isinstance(finished.exception, SnoseError)
        assert said in finished.exception.message

    def test_with_a_key_that_is_none(self, folder: Path) -> None:
        """What is no verification key is said so, and another process can be the witness after it."""
        finished = snose_witness("serve", "--data", str(folder), "--log", "w+00000000+AAAA")
        assert isinstance(finished.exception, UnsafeSetting)
        assert "--log takes" in finished.exception.message
        WitnessState(folder).close()

    @pytest.mark.long
    @pytest.mark.timeout(0)
    def test_killed_a_hundred_times(self, folder: Path) -> None:
        """At any moment: it never goes back and never cosigns another history."""
        kill_and_return(folder, 100, random.Random(5))
