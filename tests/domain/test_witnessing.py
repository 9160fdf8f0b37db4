"""What a log sends to a witness, and when it may be cosigned: C2SP tlog-witness. [AUD-18]"""

import base64
from typing import Final

import pytest

from app.domain.merkle import EMPTY_ROOT
from app.domain.notes import (
    Checkpoint,
    NoteMalformed,
    VerificationKey,
    cosigned_text,
    parse_signatures,
    parse_size,
    parse_verification_key,
    parse_witness_key,
)
from app.domain.witnessing import (
    Stale,
    Submission,
    check_step,
    parse_extended_checkpoint,
    parse_submission,
)
from app.errors import ProofInvalid
from tests.security.evidence_builders import ORIGIN, SIGNER
from tests.witnesses import Log

LOG: Final = Log(SIGNER, ORIGIN)
ROOT: Final = base64.b64encode(bytes(32)).decode()
NOTE: Final = f"{ORIGIN}\n1\n{ROOT}\n\n\u2014 snose/d1 AAAAAAAA\n"


class TestSubmission:
    def test_round_trip(self) -> None:
        """The old size, the proof line by line, a blank line and the note; and back."""
        submission = Submission(3, LOG.proof(3, 7), LOG.note(7))
        lines = submission.text().split("\n")
        assert lines[0] == "old 3"
        assert lines[1 : 1 + len(submission.proof)] == [base64.b64encode(step).decode() for step in submission.proof]
        assert lines[1 + len(submission.proof)] == ""
        assert submission.text().endswith(LOG.note(7))
        assert parse_submission(submission.text()) == submission
        assert parse_submission(Submission(0, (), LOG.note(1)).text()).proof == ()

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "old 0\n",
            f"old 00\n\n{NOTE}",
            f"old -1\n\n{NOTE}",
            f"new 0\n\n{NOTE}",
            f"old 1\nAAAA\n\n{NOTE}",
            f"old 1\n!{ROOT}\n\n{NOTE}",
            "old 1\n" + f"{ROOT}\n" * 64 + f"\n{NOTE}",
        ],
    )
    def test_malformed(self, text: str) -> None:
        """What is not in the form of C2SP is no request."""
        with pytest.raises(NoteMalformed):
            parse_submission(text)

    def test_longest_proof(self) -> None:
        """Sixty-three lines may be sent."""
        assert len(parse_submission("old 1\n" + f"{ROOT}\n" * 63 + f"\n{NOTE}").proof) == 63


class TestExtendedCheckpoint:
    def test_extension_lines(self) -> None:
        """A log may add lines; the witness says nothing of them, and reads the three."""
        assert parse_extended_checkpoint(f"o\n1\n{ROOT}\nmore\nand more\n") == Checkpoint("o", 1, bytes(32))
        assert parse_extended_checkpoint(f"o\n1\n{ROOT}\n") == Checkpoint("o", 1, bytes(32))

    @pytest.mark.parametrize("text", [f"o\n1\n{ROOT}\n\nx\n", f"o\n1\n{ROOT}\nx", "o\n1\n", "o", ""])
    def test_malformed(self, text: str) -> None:
        """An empty line, or one without its end, is no extension."""
        with pytest.raises(NoteMalformed):
            parse_extended_checkpoint(text)


class TestStep:
    @pytest.mark.parametrize(("old", "new"), [(0, 0), (0, 5), (1, 5), (4, 8), (5, 5), (7, 33)])
    def test_that_continues(self, old: int, new: int) -> None:
        """From the empty log, or from where the witness stands."""
        held = LOG.checkpoint(old) if old else None
        check_step(held, Submission(old, LOG.proof(old, new), ""), LOG.checkpoint(new))

    def test_backwards(self) -> None:
        """An old size beyond the new one is no request at all."""
        with pytest.raises(NoteMalformed):
            check_step(LOG.checkpoint(7), Submission(7, (), ""), LOG.checkpoint(5))

    @pytest.mark.parametrize("old", [0, 4, 6])
    def test_from_elsewhere(self, old: int) -> None:
        """The witness tells where it stands."""
        with pytest.raises(Stale) as told:
            check_step(LOG.checkpoint(5), Submission(old, LOG.proof(old, 9), ""), LOG.checkpoint(9))
        assert told.value.size == 5

    def test_another_root_of_the_same_size(self) -> None:
        """What stands there is not changed; an empty log has one root."""
        for size in (5, 0):
            held = Checkpoint(ORIGIN, size, LOG.root(size)) if size else None
            with pytest.raises(Stale) as told:
                check_step(held, Submission(size, (), ""), Checkpoint(ORIGIN, size, bytes(32)))
            assert told.value.size == size
        assert LOG.root(0) == EMPTY_ROOT

    @pytest.mark.parametrize("proof", [(), (bytes(32),), (bytes(32),) * 9])
    def test_without_a_proof_that_holds(self, proof: tuple[bytes, ...]) -> None:
        """A fork has no proof."""
        with pytest.raises(ProofInvalid):
            check_step(LOG.checkpoint(5), Submission(5, proof, ""), LOG.checkpoint(9))

    def test_fork(self) -> None:
        """The honest proof of another history does not lead from what was cosigned."""
        fork = Log(SIGNER, ORIGIN, other=4)
        with pytest.raises(ProofInvalid):
            check_step(LOG.checkpoint(5), Submission(5, fork.proof(5, 9), ""), fork.checkpoint(9))


class TestCosignatures:
    def test_what_is_signed(self) -> None:
        """The example of C2SP tlog-cosignature."""
        text = "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n"
        assert cosigned_text(text, 1679315147) == f"cosignature/v1\ntime 1679315147\n{text}"
        line = (
            "\u2014 witness.example.com/w1 jWbPPwAAAABkGFDLEZMHwSRaJNiIDoe9DYn/zXcrtPHeolMI5OWXEhZCB9dlrDJsX3b2oyin1nPZ"
            "qhf5nNo0xUe+mbIUBkBIfZ+qnA==\n"
        )
        (signature,) = parse_signatures(line)
        assert int.from_bytes(signature.signature[:8], "big") == 1679315147
        assert len(signature.signature) == 8 + 64
        with pytest.raises(NoteMalformed):
            parse_signatures(line[:-1])

    def test_keys_of_two_kinds(self) -> None:
        """The key of a witness is none of a log, nor the other way round: their ids differ too."""
        log = VerificationKey("w", bytes(32))
        witness = log._replace(kind=b"\x04")
        assert parse_witness_key(witness.text()) == witness
        assert log.key_id != witness.key_id
        with pytest.raises(NoteMalformed):
            parse_witness_key(log.text())
        with pytest.raises(NoteMalformed):
            parse_verification_key(witness.text())

    def test_size(self) -> None:
        """One spelling."""
        assert parse_size("0") == 0
        for text in ("", "01", "+1", "1 ", "\u0661", "10000000000000000000"):
            with pytest.raises(NoteMalformed):
                parse_size(text)
