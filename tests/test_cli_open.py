"""`snose open`: what the service encrypts to a recipient is opened by its recipient, and by nobody else."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from typer.testing import CliRunner, Result

from app.cli import command
from app.domain.words import ConsignmentCode, StudyCode
from app.errors import SealBroken, UnsafeSetting
from app.sealing.recipients import encrypt_to, key_text
from app.services.consignments import packing_list_info
from app.services.envelopes import sheets_info
from app.services.interim import interim_info
from app.services.unblinding import final_package_info

STUDY: Final = StudyCode("NCT03033277")
CONSIGNMENT: Final = ConsignmentCode("C1")
CONTENT: Final = b"for the recipient alone"
SENT: Final[dict[str, bytes]] = {
    "final package": final_package_info(STUDY),
    "packing list": packing_list_info(STUDY, CONSIGNMENT),
    "interim package": interim_info(STUDY),
    "sheets": sheets_info(STUDY, CONSIGNMENT),
}


@pytest.fixture
def received(tmp_path: Path) -> Callable[[str], Path]:
    """Gives the file of something that was sent, with the recipient's key beside it."""
    private = X25519PrivateKey.generate()
    key = tmp_path / "recipient.key"
    key.write_text(key_text(private.private_bytes_raw()))
    key.chmod(0o600)

    def receive(what: str) -> Path:
        file = tmp_path / f"{what}.hpke"
        file.write_bytes(encrypt_to(key_text(private.public_key().public_bytes_raw()), CONTENT, SENT[what]))
        return file

    return receive


def opened(file: Path, *more: str, study: str = STUDY) -> Result:
    key, out = file.parent / "recipient.key", file.parent / "out"
    asked = ["open", str(file), "--study", study, "--recipient-key", str(key), "--out", str(out), *more]
    return CliRunner().invoke(command, asked)


@pytest.mark.parametrize("what", SENT)
def test_its_recipient(received: Callable[[str], Path], what: str) -> None:
    """A final package by its study; a packing list or sheets by study and consignment. [BLD-11, CUS-08]"""
    more = [] if what.endswith("package") else ["--consignment", CONSIGNMENT]
    finished = opened(received(what), *more, "--json")
    assert finished.exit_code == 0, finished.output
    out = Path(json.loads(finished.stdout)["opened"])
    assert out.read_bytes() == CONTENT
    assert out.stat().st_mode & 0o777 == 0o600


def test_another_purpose(received: Callable[[str], Path]) -> None:
    """What was sent for another study or consignment is not taken for this one. [CUS-08]"""
    for finished in (
        opened(received("final package"), study="OTHER"),
        opened(received("final package"), "--consignment", CONSIGNMENT),
        opened(received("sheets"), "--consignment", "C2"),
        opened(received("packing list")),
    ):
        assert isinstance(finished.exception, SealBroken)
        assert "not for this purpose" in finished.exception.message


def test_another_key(received: Callable[[str], Path]) -> None:
    """Another key opens nothing, and leaves nothing behind."""
    file = received("final package")
    (file.parent / "recipient.key").write_text(key_text(bytes(range(32))))
    assert isinstance(opened(file).exception, SealBroken)
    assert not (file.parent / "out").exists()


def test_file_that_is_there(received: Callable[[str], Path]) -> None:
    """What stands there already is not written over."""
    file = received("final package")
    (file.parent / "out").write_text("mine")
    assert isinstance(opened(file).exception, UnsafeSetting)
    assert (file.parent / "out").read_text() == "mine"
