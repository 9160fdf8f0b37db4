"""Settings that are unsafe: named by `snose doctor`, refused at the start in live mode (rule F2).

What is wrong with the code-break envelopes, and what only makes a bad day worse, is named too and refused never: neither is a
reason to keep back the service, and the code breaks with it (rule D5).
"""

import os
import shutil
import stat
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from app.domain.access_reviews import due_at
from app.domain.words import Mode
from app.errors import AuditUnavailable, KeyUnavailable, SnoseError, UnsafeSetting
from app.sealing.ring import KeyRing
from app.services.enveloping import is_overdue
from app.services.startup import Surroundings
from app.storage import access_reviews, envelopes, keys, migrate, people, server, triggers, unblinding
from app.storage.server import Server

_MEND_KEY: Final = (
    "Give the service its key file, mode 0600, or a way to its provider (SNOSE_VAULT_...), or restore it from escrow: "
    "snose keys restore --escrow FILE --recipient-key FILE"
)
_LOOKED_AT: Final = 100_000
_TWO: Final = 2
_MUST_BE_ON: Final = ("fsync", "full_page_writes", "synchronous_commit")
ROOM: Final = 512 << 20
"""Bytes: head-room that is kept for code breaks (rule D5)."""
_TOLERANCE: Final = timedelta(minutes=5)
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


def weaknesses(around: Surroundings, url_file: Path | None = None) -> list[Finding]:
    """Return what is not refused and yet weak: places, clock, server; ``url_file`` holds the database URL, with its password."""
    return [*_of_places(around, url_file), *_of_clock(around), *_of_server(around)]


def concerns(around: Surroundings, mode: Mode) -> list[Finding]:
    """Return what is left to people: what is overdue, nobody to confirm grants, what is wrong with the code-break envelopes."""
    return [*_of_reviews(around), *_of_code_breaks(around), *_of_grants(around), *_of_envelopes(around, mode)]


def _of_grants(around: Surroundings) -> list[Finding]:
    """Return that a grant which waits for a second service administrator would wait for nobody."""
    if not around.limits.two_person_grants:
        return []
    try:
        with around.database.transaction() as tx:
            admins = people.list_service_admins(tx)
    except SnoseError:
        # Told among the findings.
        return []
    if len(admins) >= _TWO:
        return []
    return [
        Finding(
            "Rights to unblind are given by two service administrators, and fewer than two are active.",
            "Start with SNOSE_TWO_PERSON_GRANTS=false, grant service_admin to a second person, and set it again.",
        )
    ]


def _of_reviews(around: Surroundings) -> list[Finding]:
    try:
        with around.database.transaction() as tx:
            states = access_reviews.list_states(tx)
    except SnoseError:
        # Told among the findings.
        return []
    period, now = around.limits.access_review_period, around.clock()
    late = [one.study_code for one in states if due_at(one.reviewed_at, one.registered_at, period) < now]
    return [
        Finding(
            f"The access review of {study_code} is overdue.",
            f"Have a study administrator sign one: POST /v1/studies/{study_code}/access-reviews.",
        )
        for study_code in late
    ]


def _of_code_breaks(around: Surroundings) -> list[Finding]:
    """Return for each study how many code breaks wait for a narrative or an assessment whose time is over (EUB-09)."""
    try:
        with around.database.transaction() as tx:
            waiting = unblinding.list_late_breaks(tx, around.clock())
    except SnoseError:
        # Told among the findings.
        return []
    return [
        Finding(
            f"{count} code breaks of {study_code} wait for a narrative or an assessment that is overdue.",
            f"Find them under overdue at GET /v1/studies/{study_code}/code-breaks, and have them told.",
        )
        for study_code, count in Counter(one.study_code for one in waiting).items()
    ]


def _of_envelopes(around: Surroundings, mode: Mode) -> list[Finding]:
    """Return what is wrong with them: none are made in live mode, or their files wait or are gone."""
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


def of_sign_in(around: Surroundings, mode: Mode) -> list[Finding]:
    """Return that a password alone opens a live study; not refused, because it is the operator's to weigh (USR-09)."""
    if mode is not Mode.LIVE or around.limits.second_factor_required:
        return []
    what = "A password alone opens what needs no second proof: subjects, allocations and kits."
    return [Finding(what, "Set SNOSE_SECOND_FACTOR_REQUIRED=true.")]


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
            if not migrate.is_served(tx):
                return [Finding("The schema is not of this release.", "Run: snose migrate")]
            record = keys.find_deployment(tx)
            found = _of_role_and_commit(server.look_at_server(tx))
            found += [
                Finding(
                    f"The trigger {name} is gone: what it refuses could be done.",
                    "Find out who took it away, stop, and restore the newest backup that was good.",
                )
                for name in triggers.list_missing(tx)
            ]
    except SnoseError as error:
        return [Finding(f"The database cannot be used: {error.message}.", "Check SNOSE_DATABASE_URL.")]
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


def _of_role_and_commit(at: Server | None) -> list[Finding]:
    """Return under which settings an acknowledged allocation could be lost, and by which role the trail could be changed."""
    if at is None:
        return []
    found = [
        Finding(f"PostgreSQL runs with {name}=off: a crash loses what was acknowledged.", _set(name, "on"))
        for name in _MUST_BE_ON
        if at.settings[name] == "off"
    ]
    if at.settings["synchronous_standby_names"] and at.settings["synchronous_commit"] == "local":
        found.append(
            Finding(
                "PostgreSQL has standbys and runs with synchronous_commit=local: a failover loses what was acknowledged.",
                _set("synchronous_commit", "on"),
            )
        )
    if at.is_superuser or at.may_bypass:
        found.append(
            Finding(
                "The service's database role is a superuser: it may change the trail and everything else."
                if at.is_superuser
                else "The service's database role may change the trail.",
                "Run snose migrate --app-role ROLE as the owner and serve with that role, which owns nothing.",
            )
        )
    return found


def _set(name: str, value: str) -> str:
    system = f"As a superuser: ALTER SYSTEM SET {name} = {value}; SELECT pg_reload_conf();"
    return f"{system} and RESET it where it is set for this database or role."


def _of_server(around: Surroundings) -> list[Finding]:
    try:
        with around.database.transaction() as tx:
            at = server.look_at_server(tx) if migrate.current(tx) else None
    except SnoseError:
        # Told among the findings.
        return []
    return [] if at is None else [*_of_log(at.settings), *_of_network(at)]


def _of_log(settings: Mapping[str, str]) -> list[Finding]:
    """Return where the server's log would hold the values of statements: subjects, and the names of the arms (BLD-13)."""
    found = []
    writes = {
        "log_statement": settings["log_statement"] in {"mod", "all"},
        "log_min_duration_statement": int(settings["log_min_duration_statement"]) >= 0,
        "log_min_duration_sample": int(settings["log_min_duration_sample"]) >= 0,
        "log_transaction_sample_rate": float(settings["log_transaction_sample_rate"]) > 0,
    }
    by = ", ".join(name for name, is_on in writes.items() if is_on)
    if by and settings["log_parameter_max_length"] != "0":
        found.append(
            Finding(
                f"PostgreSQL writes statements with their values into its log ({by}).",
                _set("log_parameter_max_length", "0"),
            )
        )
    if settings["log_parameter_max_length_on_error"] != "0":
        found.append(
            Finding(
                "PostgreSQL writes the values of statements that fail into its log.",
                _set("log_parameter_max_length_on_error", "0"),
            )
        )
    return found


def _of_network(at: Server) -> list[Finding]:
    found = []
    if at.address is not None and not at.is_encrypted:
        found.append(
            Finding(
                f"The database at {at.address} is spoken to without TLS.",
                "Set ssl = on at the server, and add ?sslmode=verify-full to SNOSE_DATABASE_URL.",
            )
        )
    if at.settings["wal_level"] == "minimal":
        found.append(
            Finding(
                "PostgreSQL runs with wal_level=minimal: it can have no standby and no continuous archive.",
                "As a superuser: ALTER SYSTEM SET wal_level = replica; then restart the server.",
            )
        )
    if at.settings["synchronous_standby_names"] and at.settings["synchronous_commit"] == "remote_write":
        found.append(
            Finding(
                "PostgreSQL runs with synchronous_commit=remote_write: a power cut at the standby loses what was acknowledged.",
                _set("synchronous_commit", "on"),
            )
        )
    return found


def _of_places(around: Surroundings, url_file: Path | None) -> list[Finding]:
    """Return what is wrong with where things lie: too little room, two things that must not be lost together, open to others."""
    sink = around.sink.path.absolute().parent
    database = around.database.sqlite_file
    folders = {"the checkpoint file": sink}
    found = []
    if database is not None:
        folders["the database"] = database.parent
        together = database.exists() and sink.is_dir() and sink.stat().st_dev == database.stat().st_dev
        if together and around.witness is None:
            found.append(
                Finding(
                    "The checkpoint file lies on the same disk as the database: they are lost, and put back, together.",
                    "Set SNOSE_CHECKPOINT_FILE to another disk, or have a witness (SNOSE_WITNESS_URL).",
                )
            )
        kind, _, place = around.provider.name.partition(":")
        if kind == "file" and Path(place).absolute().parent == database.parent:
            found.append(
                Finding(
                    "The key file lies beside the database: whoever copies the folder can open every list.",
                    "Set SNOSE_KEY_FILE to a folder that no backup of the database takes along.",
                )
            )
    if around.desk is not None:
        folders["the code-break envelopes"] = around.desk.folder.path
    for what, folder in folders.items():
        if folder.is_dir() and shutil.disk_usage(folder).free < ROOM:
            found.append(
                Finding(
                    f"There is little room left for {what}: less than {ROOM >> 20} MiB at {folder}.",
                    "Make room, or move it to a larger disk: without room nothing is allocated, and no code is broken.",
                )
            )
    if url_file is not None and url_file.exists() and stat.S_IMODE(url_file.stat().st_mode) & _OTHERS:
        found.append(Finding("Others may read the file with the database URL.", f"Run: chmod 600 {url_file}"))
    return found


def _of_clock(around: Surroundings) -> list[Finding]:
    """Return whether the clock stands before the newest checkpoint: proofs, sessions and expiry would be judged by it."""
    try:
        newest = max((at for one in around.sink.checkpoints() if (at := _moment(one.at)) is not None), default=None)
    except AuditUnavailable:
        # Told among the findings.
        return []
    now = around.clock()
    if newest is None or newest <= now + _TOLERANCE:
        return []
    return [
        Finding(
            f"The clock says {now:%Y-%m-%d %H:%M} UTC, and the newest checkpoint was made at {newest:%Y-%m-%d %H:%M} UTC.",
            "Set the clock by a time server (chrony, systemd-timesyncd) before anybody signs in.",
        )
    ]


def _moment(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except ValueError:
        return None


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
