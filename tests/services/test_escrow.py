"""The key provider's key is lost and the deployment comes back out of escrow, on both databases (CUS-08, CUS-12)."""

import json
from base64 import b64decode, b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from app.domain.words import Action, Mode, StudyCode
from app.errors import KeyUnavailable, RollbackSuspected, UnsafeSetting
from app.sealing.escrow import EscrowProvider
from app.sealing.escrow import escrow_secret as seal_escrow
from app.sealing.providers import KeyFileProvider, KeyProvider
from app.sealing.vault import TokenFile, VaultTransitProvider
from app.services import keys
from app.services.checkpoints import SMALLER, Suspicion
from app.services.context import SystemEntropy
from app.services.startup import Surroundings
from app.storage.keys import get_deployment
from app.storage.sink import FileSink, SunkCheckpoint
from app.surroundings import surroundings
from tests import harness
from tests.harness import STUDY, House, expect
from tests.running_study import RunningStudy, S, running_study

PRIVATE: Final = b64encode(bytes(range(32))).decode()
PUBLIC: Final = b64encode(
    X25519PrivateKey.from_private_bytes(b64decode(PRIVATE)).public_key().public_bytes_raw()
).decode()


def stopped(house: House, act: Callable[[Surroundings], object]) -> None:
    """Do something at the command line while the service is stopped, and start it again."""
    house.close()
    around = surroundings(house.settings, house.clock, house.entropy)
    try:
        act(around)
    finally:
        around.database.close()
        house.open()


def exported(house: House) -> bytes:
    """Return an escrow of the house."""
    found: list[bytes] = []
    stopped(house, lambda around: found.append(keys.escrow_secret(around, Mode.TEST, PUBLIC)))
    return found[0]


def new_key_file(house: House) -> Callable[[], KeyProvider]:
    """Return what makes the key file anew, as the command does."""

    def make() -> KeyProvider:
        KeyFileProvider.create(house.settings.key_file, b"n" * 32)
        return KeyFileProvider(house.settings.key_file, SystemEntropy())

    return make


def restore(house: House, content: bytes, private: str = PRIVATE) -> None:
    escrow = EscrowProvider.of(content, private)
    stopped(house, lambda around: keys.restore_secret(around, Mode.TEST, escrow, new_key_file(house)))


def lose_the_key(house: House) -> None:
    house.settings.key_file.unlink()
    house.restart()
    assert house.client.get("/readyz").status_code == 503


def treatment_of(running: RunningStudy, subject: str) -> str:
    body = {"subject_id": subject, "reason_code": "overdose"}
    return str(expect(running.investigator.post(f"{S}/code-breaks", json=body, step_up=True), 201)["treatment"])


def wrapped(around: Surroundings) -> str:
    with around.database.transaction() as tx:
        return get_deployment(tx).wrapped_secret


class TestRehearsal:
    def test_the_key_is_lost(self, house: House) -> None:
        """Sealed; restored from an escrow older than every rotation; the code break shows what it showed. [CUS-08, F2, EUB-05]"""
        running = running_study(house, subjects=2)
        content = exported(house)
        before = [treatment_of(running, f"01-{number:04}") for number in (1, 2)]
        keys.rotate_study_key(house.deployment, StudyCode(STUDY))
        keys.rotate_signing_key(house.deployment)
        lose_the_key(house)
        sealed = running.investigator.post(f"{S}/code-breaks", json={})
        assert (sealed.status_code, sealed.json()["code"]) == (503, "reveal_unavailable")
        restore(house, content)
        assert house.client.get("/readyz").status_code == 200
        assert [treatment_of(running, f"01-{number:04}") for number in (1, 2)] == before
        running.new_subject()
        entries = [entry for entry in house.trail() if entry["action"].startswith("key:")]
        assert [entry["action"] for entry in entries] == ["key:escrow", Action.ROTATE_KEYS, "key:restore"]
        assert entries[0]["after"]["recipient_key"] == PUBLIC
        assert entries[2]["after"] == {"rotation": "wrapping", "from": "escrow", "to": "file"}
        assert json.loads(content)["box"] not in json.dumps(house.trail())

    def test_what_does_not_open_changes_nothing(self, house: House, tmp_path: Path, migrated_sqlite: Path) -> None:
        """Another recipient's key, and another deployment's escrow: said in plain words, no key file made. [CUS-12]"""
        content = exported(house)
        file = tmp_path / "other.sqlite"
        file.write_bytes(migrated_sqlite.read_bytes())
        with harness.house(f"sqlite:///{file}", tmp_path, seed="another") as other:
            foreign = exported(other)
        lose_the_key(house)
        kept: list[str] = []
        stopped(house, lambda around: kept.append(wrapped(around)))
        stranger = b64encode(b"s" * 32).decode()
        for sent, private, words in (
            (content, stranger, "does not open this escrow"),
            (foreign, PRIVATE, "not of this one"),
        ):
            with pytest.raises(KeyUnavailable, match=words):
                restore(house, sent, private)
        stopped(house, lambda around: kept.append(wrapped(around)))
        assert kept[0] == kept[1]
        assert not house.settings.key_file.exists()
        assert house.client.get("/readyz").status_code == 503

    def test_another_secret_in_the_box(self, house: House) -> None:
        """A box of the right name that holds a wrong secret is found out by the keys under it. [F2]"""
        around = surroundings(house.settings, house.clock, house.entropy)
        with around.database.transaction() as tx:
            record = get_deployment(tx)
        content = seal_escrow(_Constant(), str(record.deployment_id), Mode.TEST, "", PUBLIC)
        around.database.close()
        with pytest.raises(KeyUnavailable, match="do not open with the secret"):
            restore(house, content)


class _Constant:
    """A provider that answers garbage of the right length."""

    name = "constant"
    weakness = None

    def wrap(self, secret: bytes, context: bytes) -> str:
        raise AssertionError

    def unwrap(self, wrapped: str, context: bytes) -> bytes:
        return bytes(32)


class TestLimits:
    def test_under_suspicion(self, house: House) -> None:
        """After a suspected rollback nothing is exported; a lost key is restored all the same, for the code breaks. [D5, INT-07]"""
        running = running_study(house, subjects=1)
        content = exported(house)
        treatment = treatment_of(running, "01-0001")
        origin = house.deployment.origin(None)
        grow_the_sink(house, origin)
        lose_the_key(house)
        restore(house, content)
        assert house.deployment.checkpoints.suspicions[origin] == Suspicion(origin, 10_000, SMALLER)
        assert treatment_of(running, "01-0001") == treatment
        assert house.trail()[-1]["log"].endswith("~2")
        with pytest.raises(RollbackSuspected):
            exported(house)

    def test_to_what_live_mode_refuses(self, house: House) -> None:
        """A provider behind plain HTTP gets no secret. [F2]"""
        vault = VaultTransitProvider("http://vault.example.org:8200", TokenFile(house.settings.key_file))
        with pytest.raises(UnsafeSetting, match="plain HTTP"):
            keys._refuse_weak(Mode.LIVE, vault)


def grow_the_sink(house: House, origin: str) -> None:
    """Have the sink hold a checkpoint of more entries than a log has."""
    root = b64encode(bytes(32)).decode()
    note = house.deployment.signing.sign_note(f"{origin}\n10000\n{root}\n")
    FileSink(house.settings.checkpoint_file).append(
        SunkCheckpoint(origin, 10_000, root, note, house.clock().isoformat())
    )
