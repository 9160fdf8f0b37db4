"""What a thief of the database holds: every row, as text and bytes, seen by one who knows the truth (rules B3, F1; T13, T32)."""

import base64
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import psycopg
import pyotp
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import event, inspect, select
from sqlalchemy.engine import Engine

from app.domain.sealed import Column, SealContext, Sealed
from app.domain.words import Role, StudyCode
from app.storage import tables
from tests.authenticator import Authenticator
from tests.envelopes import SIZE
from tests.harness import _ROOT_KEY, SeededEntropy
from tests.security.conftest import Places
from tests.security.script import Play, listening, running
from tests.security.truth import KitTruth, SlotTruth, open_kits, open_slots

DEFINITION: Final = "arm"
"""The one table that names arms, and nothing of who has which."""


@dataclass(frozen=True)
class Dump:
    """A database after the whole script, with what must not be in it."""

    rows: dict[str, list[dict[str, Any]]]
    text: dict[str, str]
    """Every table as COPY writes it."""
    raw: bytes
    """The file of SQLite; nothing on PostgreSQL."""
    statements: Sequence[tuple[str, str]]
    secrets: dict[str, bytes]
    words: tuple[str, ...]
    kits: dict[str, KitTruth]
    slots: list[SlotTruth]
    indexes: dict[str, list[Sequence[str | None]]]


def enrol_passkey(play: Play, length: int) -> None:
    """Have somebody keep a passkey, with an id of so many bytes: devices differ in that."""
    who, path = play.who(Role.MONITOR), "/v1/me/passkeys"
    options = play.ask(who, "POST", f"{path}/challenge", step_up=True).json()["options"]
    device = Authenticator()
    device.credential_id = bytes(range(length))
    play.ask(who, "POST", path, {"name": "Phone", "credential": device.create(options)}, step_up=True)


def lose_a_device(play: Play) -> None:
    """Have somebody ask for the recovery of a second factor."""
    who = play.who(Role.MONITOR)
    play.ask(None, "POST", "/v1/factor-recoveries", {"username": who.username, "password": who.password})


def register_provider(play: Play, length: int) -> None:
    """Keep a secret of so many characters for a provider of people's sign-ins."""
    client = {"client_id": "snose", "client_secret": "s" * length, "redirect_uris": ["http://127.0.0.1/"]}
    body = {"issuer": "https://login.example.org", "audience": "x", "discovery": True, "sign_in": client}
    play.ask(play.admin, "POST", "/v1/issuers", body)


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def dump(request: pytest.FixtureRequest, places: Places) -> Iterator[Dump]:
    """The whole script, 24 subjects to the final unblinding, and then a thief's copy."""
    with places(request.param) as (url, folder), listening(), captured() as statements, running(url, folder) as house:
        play = Play.in_house(house)
        play.run()
        for length in (16, 64):
            enrol_passkey(play, length)
            register_provider(play, length)
        lose_a_device(play)
        deployment, study = house.deployment, StudyCode(play.protocol.study_code)
        with deployment.database.transaction() as tx:
            rows = {
                table.name: [dict(row._mapping) for row in tx.execute(select(table))]
                for table in tables.metadata.sorted_tables
            }
        inspector = inspect(deployment.database.engine)
        indexes: dict[str, list[Sequence[str | None]]] = {
            table: [
                *(index["column_names"] for index in inspector.get_indexes(table)),
                *(constraint["column_names"] for constraint in inspector.get_unique_constraints(table)),
                inspector.get_pk_constraint(table)["constrained_columns"],
            ]
            for table in inspector.get_table_names()
        }
        raw = b"" if request.param == "postgresql" else Path(url.removeprefix("sqlite:///")).read_bytes()
        text = copied(url) if request.param == "postgresql" else {name: repr(found) for name, found in rows.items()}
        yield Dump(
            rows,
            text,
            raw,
            list(statements),
            secrets_of(play),
            tuple(word for arm in play.protocol.arms for word in (arm["arm_code"], arm["label"], arm["treatment"])),
            open_kits(deployment, study),
            open_slots(deployment, study),
            indexes,
        )


def copied(url: str) -> dict[str, str]:
    """Return every table as pg_dump would write it, those that the service does not know included."""
    with psycopg.connect(url) as connection:
        names = [
            name
            for (name,) in connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        ]
        found = {}
        for name in names:
            with (
                connection.cursor() as cursor,
                cursor.copy(psycopg.sql.SQL("COPY {} TO STDOUT").format(psycopg.sql.Identifier(name))) as copy,
            ):
                found[name] = b"".join(bytes(chunk) for chunk in copy).decode()
    return found


@contextmanager
def captured() -> Iterator[list[tuple[str, str]]]:
    """Collect every statement with its parameters, of whatever engine."""
    statements: list[tuple[str, str]] = []

    def listen(_connection: object, _cursor: object, statement: str, parameters: object, *_more: object) -> None:
        statements.append((statement, repr(parameters)))

    event.listen(Engine, "before_cursor_execute", listen)
    try:
        yield statements
    finally:
        event.remove(Engine, "before_cursor_execute", listen)


def secrets_of(play: Play) -> dict[str, bytes]:
    """Return everything that opens something, by what it is."""
    ring, signing = play.house.deployment.ring, play.house.deployment.signing
    found = {"root key": _ROOT_KEY, "deployment secret": ring._deployment_secret.key}
    for study, keys in ring._keys.items():
        found |= {f"key {name} of {study}": kept.key for name, kept in keys.items()}
    found |= {f"purpose {name}": kept.key for name, kept in ring._purpose_keys.items()}
    seed = SeededEntropy("rest").draw("signing key", 32)
    public = Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()
    assert [key.rpartition("+")[2] for key in signing.vkeys()] == [base64.b64encode(b"\x01" + public).decode()]
    found["signing seed"] = seed
    people = [play.admin, *(person for held in play.people.values() for person in held)]
    for person in people:
        found[f"password of {person.username}"] = person.password.encode()
        found[f"factor of {person.username}"] = person.totp_secret.encode()
        found[f"factor of {person.username}, decoded"] = pyotp.TOTP(person.totp_secret).byte_secret()
        found[f"token of {person.username}"] = person.token.encode()
        found[f"stepped-up token of {person.username}"] = person.stepped_up.encode()
    assert play.edc is not None
    found |= {"client secret": play.edc.client_secret.encode(), "client token": play.edc.token.encode()}
    ((context, sealed),) = sealed_seeds(play)
    found["seed of the list"], found["salt of the list"] = (opened := ring.open(context, sealed))[:32], opened[32:]
    return {name: value for name, value in found.items() if value}


def sealed_seeds(play: Play) -> list[tuple[SealContext, Sealed]]:
    """Return every seed of a list, sealed, with its place."""
    schedule, study = tables.schedule.c, StudyCode(play.protocol.study_code)
    with play.house.deployment.database.transaction() as tx:
        rows = tx.execute(select(schedule.schedule_id, schedule.sealed_seed)).all()
    return [(SealContext(Column.SEED, study, (str(row.schedule_id),)), Sealed(row.sealed_seed)) for row in rows]


def spellings(secret: bytes) -> set[str]:
    """Return how a secret may be written in text."""
    written = {
        secret.hex(),
        base64.b64encode(secret).decode().rstrip("="),
        base64.urlsafe_b64encode(secret).decode().rstrip("="),
    }
    try:
        written.add(secret.decode("ascii"))
    except UnicodeDecodeError:
        written.add(repr(secret)[2:-1])
    return written


class TestDump:
    def test_no_arm_outside_its_definition(self, dump: Dump) -> None:
        """No code, label or treatment of an arm stands in any table but that of the arms. [BLD-05, rule B3]"""
        assert [word for word in dump.words if word not in dump.text[DEFINITION]] == []
        found = [
            (table, word)
            for table, text in dump.text.items()
            if table != DEFINITION
            for word in dump.words
            if re.search(rf"(?<![A-Za-z]){re.escape(word)}(?![A-Za-z])", text)
        ]
        assert found == []

    def test_no_arm_in_the_file(self, dump: Dump) -> None:
        """The file itself holds the words once for each arm, free pages and journal included. [BLD-05, CUS-04]"""
        if dump.raw:
            assert {word: dump.raw.count(word.encode()) for word in dump.words if "therapy" in word} == {
                word: 1 for word in dump.words if "therapy" in word
            }

    def test_no_key_seed_or_credential(self, dump: Dump) -> None:
        """No seed, key, password, second factor or token, in any spelling. [CUS-04, CUS-05, rule F1]"""
        assert len(dump.secrets) > 60
        for name, secret in dump.secrets.items():
            for spelling in spellings(secret):
                assert all(spelling not in text for text in dump.text.values()), name
            assert secret not in dump.raw, name
            for rows in dump.rows.values():
                assert all(secret not in value for row in rows for value in row.values() if isinstance(value, bytes)), (
                    name
                )

    def test_one_length_for_each_sealed_column(self, dump: Dump) -> None:
        """Every sealed value of a column is as long as the others: a length tells nothing. [BLD-10, rule B3]"""
        lengths = {
            column.name: {len(row[column.column]) for row in dump.rows[column.table] if row[column.column] is not None}
            for column in Column
        }
        assert {name for name, found in lengths.items() if not found} <= {"ANSWER_LARGE"}
        assert {name: found for name, found in lengths.items() if len(found) > 1} == {}
        # Under keys that are not ours, so no column of the ring's; of one length all the same.
        assert {len(row["content"]) for row in dump.rows["envelope"]} == {SIZE}
        assert len(dump.rows["envelope"]) == len(dump.rows["kit_assignment"])

    def test_no_serial_ids_and_no_index_on_what_is_sealed(self, dump: Dump) -> None:
        """Row ids are random; nothing sealed is indexed. [BLD-11, rule B3]"""
        ids = [
            value
            for rows in dump.rows.values()
            for row in rows
            for value in row.values()
            if isinstance(value, UUID) and value.int
        ]
        assert {value.version for value in ids} == {4}
        sealed = {(column.table, column.column) for column in Column}
        assert [
            (table, names)
            for table, found in dump.indexes.items()
            for names in found
            for name in names
            if (table, name) in sealed
        ] == []

    def test_no_arm_is_a_parameter(self, dump: Dump) -> None:
        """No statement of the whole script carries an arm, but the one that defines the arms. [T32, rule B3]"""
        assert len(dump.statements) > 5000
        for statement, parameters in dump.statements:
            if re.match(r"INSERT INTO arm\b", statement) is None:
                for word in dump.words:
                    pattern = rf"(?<![A-Za-z]){re.escape(word)}(?![A-Za-z])"
                    assert not re.search(pattern, statement + parameters), statement

    def test_every_statement_stays_within_a_study_and_a_transaction(self, dump: Dump) -> None:
        """No advisory lock, no SKIP LOCKED but in a rotation, no state of a session, and the study named in each. [T32, C5]"""
        assert [fault for statement, _ in dump.statements for fault in constructs_of(statement)] == []

    def test_orders_and_times_tell_nothing_of_the_arm(self, dump: Dump) -> None:
        """In the order of row, id, code, place in the map or insertion, arms come as by chance. [BLD-11, T13]"""
        kits = {row["kit_code"]: row for row in dump.rows["kit"]}
        truth = [(kits[kit.kit_code], kit.arm_code) for kit in dump.kits.values()]
        orders: dict[str, list[str]] = {
            "row": [dump.kits[row["kit_code"]].arm_code for row in dump.rows["kit"]],
            **{
                column: [
                    arm for row, arm in sorted(truth, key=lambda one: (str(one[0]["consignment_id"]), one[0][column]))
                ]
                for column in ("kit_id", "kit_code", "map_index", "sealed")
            },
        }
        by_position = sorted(dump.slots, key=lambda slot: slot.randomization_number)
        orders["randomization number"] = [slot.arm_code for slot in by_position]
        stored = {row["position"]: row["sealed"] for row in dump.rows["slot"]}
        orders["sealed slot"] = [slot.arm_code for slot in sorted(dump.slots, key=lambda slot: stored[slot.position])]
        of_kit = {kit.kit_id: kit.arm_code for kit in dump.kits.values()}
        orders["envelope"] = [
            of_kit[row["kit_id"]] for row in sorted(dump.rows["envelope"], key=lambda row: row["content"])
        ]
        orders["envelope, nonce and box"] = [
            of_kit[row["kit_id"]] for row in sorted(dump.rows["envelope"], key=lambda row: row["content"][256:])
        ]
        assert {name: z for name, order in orders.items() if abs(z := rank_score(order)) > 3.5} == {}
        times = {row["consignment_id"]: set[datetime]() for row in dump.rows["consignment"]}
        assert all(not any(isinstance(value, datetime) for value in row.values()) for row in dump.rows["kit"])
        assert len(times) >= 4


OF_A_STUDY: Final = re.compile(
    rf"\b({'|'.join(sorted(name for name, table in tables.metadata.tables.items() if 'study_id' in table.c))})\b"
)
FORBIDDEN: Final = (
    ("an advisory lock, which poolers and distributed engines do not know", re.compile("advisory", re.IGNORECASE)),
    # A rotation takes what lies under an older key, and the outbox what is due, in whatever order; slots are handed out in theirs
    # (rule C5).
    (
        "SKIP LOCKED outside of a rotation and the outbox",
        re.compile(r"^(?!.*key_version < |.*FOR NO KEY UPDATE OF notice ).*SKIP LOCKED", re.IGNORECASE | re.DOTALL),
    ),
    ("state of a session", re.compile(r"^\s*(SET (?!LOCAL)|LISTEN|NOTIFY|PREPARE|DISCARD|CREATE TEMP)", re.IGNORECASE)),
    ("a number out of a sequence", re.compile("nextval|currval|lastval", re.IGNORECASE)),
    ("a lock on a whole table", re.compile(r"^\s*LOCK ", re.IGNORECASE)),
)


def constructs_of(statement: str) -> list[str]:
    """Return what a statement has that one of a study, spread over nodes and behind a pooler, may not have."""
    found = [f"{what}: {statement}" for what, pattern in FORBIDDEN if pattern.search(statement)]
    is_about_rows = statement.lstrip().startswith(("SELECT", "WITH", "INSERT", "UPDATE", "DELETE"))
    if is_about_rows and OF_A_STUDY.search(statement) and "study_id" not in statement:
        found.append(f"no study: {statement}")
    return found


class TestConstructs:
    @pytest.mark.parametrize(
        "planted",
        [
            "SELECT pg_advisory_xact_lock(1)",
            "SELECT position FROM slot WHERE study_id = %(s)s ORDER BY position LIMIT 1 FOR UPDATE SKIP LOCKED",
            "SET search_path = study",
            "LISTEN allocations",
            "SELECT nextval('numbers')",
            "LOCK TABLE kit",
            "UPDATE kit SET status = 'dispensed' WHERE kit_code = %(code)s",
        ],
    )
    def test_each_is_caught(self, planted: str) -> None:
        """The look has teeth. [T32]"""
        assert len(constructs_of(planted)) == 1


def rank_score(arms: Sequence[str]) -> float:
    """Return how far the ranks of the first arm are from chance, in standard deviations (Wilcoxon rank sum)."""
    one = min(arms)
    n, m = arms.count(one), len(arms) - arms.count(one)
    ranks = sum(rank for rank, arm in enumerate(arms, start=1) if arm == one)
    deviation: float = (n * m * (n + m + 1) / 12) ** 0.5
    return (ranks - n * (n + m + 1) / 2) / deviation


class TestRankScore:
    def test_sorted_by_arm(self) -> None:
        """Rows in the order of the arm are caught: the score has teeth. [T13]"""
        assert abs(rank_score(["A"] * 30 + ["B"] * 30)) > 6
