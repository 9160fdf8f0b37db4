"""Settings that are unsafe: named by `snose doctor`, refused at the start in live mode (rule F2).

What is wrong with the code-break envelopes is named too and refused never: a missing back-up is no reason to keep back the service,
and the code breaks with it (rule D5).
"""

import os
import stat
from dataclasses import dataclass
from typing import Final

from app.domain.words import Mode
from app.errors import KeyUnavailable, SnoseError, UnsafeSetting
from app.sealing.ring import KeyRing
from app.services.enveloping import is_overdue
from app.services.startup import Surroundings
from app.storage import envelopes, keys, migrate, server

_MEND_KEY: Final = (
    "Give the service its key file, mode 0600, or a way to its provider (SNOSE_VAULT_...), or restore it from escrow: "
    "snose keys restore --escrow FILE --recipient-key FILE"
)
_LOOKED_AT: Final = 100_000
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO


@dataclass(frozen=True, slots=True)
class Finding:
    """An unsafe setting and how to mend it."""

    what: str
    mend: str


def findings(around: Surroundings, plain_host: str | None) -> list[Finding]:
    """Return everything unsafe, in the order in which one would mend it; ``plain_host`` is where plain HTTP leaves the machine."""
    return [*_of_files(around), *_of_database(around), *_of_settings(around, plain_host)]


def refuse_unsafe(around: Surroundings, plain_host: str | None) -> None:
    """Raise ``UnsafeSetting`` with everything that live mode refuses."""
    found = findings(around, plain_host)
    if found:
        raise UnsafeSetting("Live mode refuses to start. " + " ".join(f"{one.what} {one.mend}" for one in found))


def concerns(around: Surroundings, mode: Mode) -> list[Finding]:
    """Return what is wrong with the code-break envelopes: none are made in live mode, or their files wait or are gone."""
    desk = around.desk
    if desk is None:
        off = Finding(
            "No code-break envelopes are made: while the service is down, no code can be broken.",
            "Run snose envelope keys at the emergency desk, and set SNOSE_ENVELOPE_FOLDER and SNOSE_ENVELOPE_DESK_KEY.",
        )
        return [off] if mode is Mode.LIVE else []
    found = []
    if not desk.folder.is_writable():
        found.append(
            Finding(
                "The folder of the code-break envelopes is not there or cannot be written.",
                "Make it, on another disk than the database and writable for the service.",
            )
        )
    try:
        with around.database.transaction() as tx:
            backlog = envelopes.get_backlog(tx)
            written = envelopes.list_written(tx, None, _LOOKED_AT)
    except SnoseError:
        # Told among the findings.
        return found
    if is_overdue(backlog.oldest, around.clock()):
        found.append(
            Finding(
                f"{backlog.waiting} code-break envelopes have no file yet.",
                "See the log for why; they are written by themselves once the folder can be.",
            )
        )
    there = {study: desk.folder.kit_codes(study) for study in {one.study_code for one in written}}
    if missing := sum(one.kit_code not in there[one.study_code] for one in written):
        found.append(
            Finding(
                f"The files of {missing} code-break envelopes are gone.",
                "Find out who took them; the running service puts them back within minutes.",
            )
        )
    return found


def _of_files(around: Surroundings) -> list[Finding]:
    found = []
    folder = around.sink.path.absolute().parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        found.append(
            Finding(
                "The checkpoint file cannot be written: there would be no audit sink.",
                "Make its folder, writable for the service, and set SNOSE_CHECKPOINT_FILE.",
            )
        )
    database_file = around.database.sqlite_file
    if database_file is not None and database_file.exists():
        if stat.S_IMODE(database_file.stat().st_mode) & _OTHERS:
            found.append(Finding("Others may read the database file.", f"Run: chmod 600 {database_file.name}"))
        if database_file.parent == folder:
            found.append(
                Finding(
                    "The checkpoint file lies beside the database: whoever restores the folder restores both.",
                    "Set SNOSE_CHECKPOINT_FILE to a folder on another disk.",
                )
            )
    return found


def _of_database(around: Surroundings) -> list[Finding]:
    try:
        with around.database.transaction() as tx:
            if migrate.current(tx) != migrate.head():
                return [Finding("The schema is not of this release.", "Run: snose migrate")]
            record = keys.find_deployment(tx)
            unsafe = server.list_unsafe_settings(tx)
            owns_trail = server.can_change_the_trail(tx)
    except SnoseError as error:
        return [Finding(f"The database cannot be used: {error.message}.", "Check SNOSE_DATABASE_URL.")]
    found = [
        Finding(f"PostgreSQL runs with {name}=off: a crash loses what was acknowledged.", f"Set {name}=on.")
        for name in unsafe
    ]
    if owns_trail:
        found.append(
            Finding(
                "The service's database role may change the trail.",
                "Run snose migrate --app-role ROLE as the owner and serve with that role.",
            )
        )
    if record is None:
        return [*found, Finding("There is no deployment yet.", "Run: snose init")]
    if around.provider.weakness is not None:
        # Nothing is sent there to find out more.
        mend = "Give SNOSE_VAULT_ADDR an https address, and SNOSE_VAULT_CA_FILE its authority."
        return [*found, Finding(around.provider.weakness, mend)]
    try:
        KeyRing(around.provider, str(record.deployment_id), record.mode, record.wrapped_secret, around.entropy)
    except (KeyUnavailable, UnsafeSetting) as error:
        found.append(Finding(error.message, _MEND_KEY))
    return found


def _of_settings(around: Surroundings, plain_host: str | None) -> list[Finding]:
    found = []
    if not around.limits.backup_contact:
        found.append(
            Finding(
                "There is no back-up contact for code breaks while the database is down.",
                "Set SNOSE_BACKUP_CONTACT to a telephone that is answered day and night.",
            )
        )
    if plain_host is not None:
        found.append(
            Finding(
                f"The service listens on {plain_host} and speaks plain HTTP.",
                "Put a proxy that speaks TLS 1.2 or later before it, and set SNOSE_BEHIND_TLS_PROXY=true.",
            )
        )
    return found
