"""Other builds of the service: wrong on purpose, so that a check is seen to find it, slow, or living on another day.

    service.start(builds.chosen(folder, "kept slots"))

Every process of the service loads `sitecustomize` before anything else, and there the build's change is made.
"""

import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import time_machine

if TYPE_CHECKING:
    from app.storage.database import Transaction

BUILD: Final = "RELIABILITY_BUILD"
ROOT: Final = Path(__file__).resolve().parent.parent.parent
A_DAY_AND_AN_HOUR: Final = timedelta(hours=25)
SLOW_SECONDS: Final = 7.0
REMEMBERED_SECONDS: Final = 5.0
_ANSWERED_BEFORE_SECONDS: Final = 0.1


def chosen(folder: Path, build: str) -> Mapping[str, str]:
    """Return what a service's processes are set by to be of a build; a file is put into the folder."""
    assert build in BUILDS
    (folder / "sitecustomize.py").write_text(
        "from tests.reliability import builds\n\nbuilds.install()\n", encoding="utf-8"
    )
    paths = [str(folder), str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {BUILD: build, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}


def install() -> None:
    """Change this process."""
    BUILDS[os.environ[BUILD]]()


def _change(what: object, name: str, value: object) -> None:
    setattr(what, name, value)


def _a_day_later() -> None:
    """The wall clock is a day and an hour ahead."""
    time_machine.travel(datetime.now(UTC) + A_DAY_AND_AN_HOUR, tick=True).start()


def _slow_start() -> None:
    """Every process takes longer to begin than a web server's parent usually waits."""
    time.sleep(SLOW_SECONDS)


def _kept_slots() -> None:
    """Each thread takes two slots at a time and keeps the second for its next subject, as a sequence with a cache does."""
    from app.storage import schedules  # noqa: PLC0415  # a module of the service is loaded only where it is changed

    claim, kept = schedules.claim_slot, dict[Any, Any]()

    def claim_two(tx: "Transaction", study_id: UUID, code: Any) -> Any:  # noqa: ANN401  # what claim_slot takes and gives
        place = (threading.get_ident(), study_id, code)
        if place in kept:
            return kept.pop(place)
        first = claim(tx, study_id, code)
        kept[place] = claim(tx, study_id, code)
        return first

    _change(schedules, "claim_slot", claim_two)


def _stale_readings() -> None:
    """Who was once looked for in vain is not looked for again, as by a cache of misses."""
    from app.errors import Missing  # noqa: PLC0415  # the same
    from app.storage import allocations  # noqa: PLC0415  # the same

    get, missing = allocations.get_allocation, set[Any]()

    def get_unless_missed(tx: "Transaction", study_id: UUID, subject: Any, sites: Any) -> Any:  # noqa: ANN401  # the same
        if subject in missing:
            raise Missing
        try:
            return get(tx, study_id, subject, sites)
        except Missing:
            missing.add(subject)
            raise

    _change(allocations, "get_allocation", get_unless_missed)


def _unclaimed_subjects() -> None:
    """No key is ever found taken; with the unique constraint dropped beside, a repeated request is a second act."""
    from app.storage import answers  # noqa: PLC0415  # the same

    _change(answers, "claim", lambda _tx, _study_id, _scope, _at: None)


def _keys_passed_over() -> None:
    """The ``Idempotency-Key`` is not looked at."""
    from app.services import audited  # noqa: PLC0415  # the same

    _change(audited._Door, "_replay_by_key", lambda _door, _act: None)


def _answers_before_commit() -> None:
    """An allocation is answered a moment before its COMMIT, as with a write-behind."""
    from app.services import allocations  # noqa: PLC0415  # the same
    from app.storage import database  # noqa: PLC0415  # the same

    allocate, commit, here = allocations.allocate, database._commit, threading.local()

    def allocate_early(*arguments: Any) -> Any:  # noqa: ANN401  # what allocate takes and gives
        here.is_early = True
        try:
            return allocate(*arguments)
        finally:
            here.is_early = False

    def commit_later(tx: "Transaction") -> None:
        if not getattr(here, "is_early", False):
            commit(tx)
            return
        close = tx.connection.close

        def finish() -> None:
            commit(tx)
            close()

        _change(tx.connection, "close", lambda: None)
        threading.Timer(_ANSWERED_BEFORE_SECONDS, finish).start()

    _change(allocations, "allocate", allocate_early)
    _change(database, "_commit", commit_later)


def _deaf_to_commit() -> None:
    """A COMMIT that fails is taken for one that went through."""
    from app.storage import database  # noqa: PLC0415  # the same

    commit = database._commit

    def commit_anyhow(tx: "Transaction") -> None:
        with suppress(database.CommitUncertain):
            commit(tx)

    _change(database, "_commit", commit_anyhow)


def _deaf_to_the_sink() -> None:
    """A sync that fails is taken for one that was made; SQLite makes its own."""
    fsync = os.fsync

    def sync_anyhow(descriptor: int) -> None:
        with suppress(OSError):
            fsync(descriptor)

    _change(os, "fsync", sync_anyhow)


def _remembered_callers() -> None:
    """Each process keeps who a token stands for, and with which grants, for some seconds, as a cache of grants does."""
    from app.storage import people  # noqa: PLC0415  # the same

    find, kept = people.find_principal, dict[bytes, tuple[float, Any]]()

    def find_or_remember(tx: "Transaction", token_digest: bytes, *more: Any) -> Any:  # noqa: ANN401  # the same
        until, remembered = kept.get(token_digest, (0.0, None))
        if time.monotonic() >= until:
            remembered = find(tx, token_digest, *more)
            # Not before the first change of a password: else nobody would get so far as to be revoked.
            if remembered is not None and not remembered.must_change_password:
                kept[token_digest] = (time.monotonic() + REMEMBERED_SECONDS, remembered)
        return remembered

    _change(people, "find_principal", find_or_remember)


def _deaf_to_devices() -> None:
    """A code beside the password changes nothing: its owner waits behind strangers."""
    from app.services import people  # noqa: PLC0415  # the same

    _change(people, "_is_shown", lambda *_: False)


BUILDS: Final[Mapping[str, Callable[[], None]]] = {
    "a day later": _a_day_later,
    "slow start": _slow_start,
    "kept slots": _kept_slots,
    "stale readings": _stale_readings,
    "unclaimed subjects": _unclaimed_subjects,
    "keys passed over": _keys_passed_over,
    "answers before commit": _answers_before_commit,
    "deaf to commit": _deaf_to_commit,
    "deaf to the sink": _deaf_to_the_sink,
    "remembered callers": _remembered_callers,
    "deaf to devices": _deaf_to_devices,
}
