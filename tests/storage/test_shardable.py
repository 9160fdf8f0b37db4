"""What lets a distributed PostgreSQL (Citus) keep each study on one node: every key of a study's tables begins with the study.

Looked at twice: in the tables as they are written down, and in a migrated database as it stands. No distributed engine is run here.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Final

import pytest
from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    ForeignKeyConstraint,
    Identity,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    Sequence,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    text,
)

from app.domain.sealed import Column as Sealed
from app.storage.tables import metadata

SERVICE_WIDE: Final[Mapping[str, str]] = {
    "alembic_version": "the revision of the schema",
    "deployment": "one row",
    "signing_key": "signs the logs of every study",
    "principal": "a person works in many studies under one name",
    "credential": "of a person, not of a study",
    "factor_recovery": "of a person, not of a study",
    "known_device": "of a person, not of a study",
    "passkey": "of a person, who may work in many studies",
    "issuer": "of the deployment",
    "identity_link": "of an account, not of a study",
    "former_secret": "of a machine client, which may work in many studies",
    "client_key": "the same",
    "used_assertion": "of a machine client, before it is known for what it asks",
    "sign_in_tries": "of a name, before anybody is known",
    "role_grant": "read by the person at each request, and given before a study is registered",
    "pending_grant": "asked for before a study is registered, as role_grant is given",
    "training": "of a person, who works in many studies",
    "session": "of a person, not of a study",
    "study": "finds the id of a study by its code; few rows, which every node holds a copy of (a reference table)",
}
"""The tables that belong to no study, with the reason; a distributed engine keeps them whole, on every node or on one."""
SHARD: Final = "study_id"


def faults_of(found: MetaData) -> Iterator[str]:
    """Yield everything by which a study could not be moved to a node of its own, or by which an order of rows could be told."""
    for table in found.tables.values():
        yield from _counted(table)
        yield from _sealed_and_indexed(table)
        if table.name not in SERVICE_WIDE:
            yield from _unsharded(table)


def _unsharded(table: Table) -> Iterator[str]:
    if SHARD not in table.c or table.c[SHARD].nullable:
        yield f"{table.name} has no study"
        return
    for constraint in table.constraints:
        name = f"{table.name}: {constraint.name}"
        if isinstance(constraint, PrimaryKeyConstraint | UniqueConstraint) and SHARD not in constraint.columns:
            yield f"{name} does not carry the study"
        if isinstance(constraint, ForeignKeyConstraint):
            pairs = {
                (element.parent.name, element.target_fullname.rpartition(".")[2]) for element in constraint.elements
            }
            if (SHARD, SHARD) not in pairs:
                yield f"{name} refers across studies"
    if not table.primary_key.columns:
        yield f"{table.name} has no primary key"
    for index in table.indexes:
        if index.unique and SHARD not in index.columns:
            yield f"{table.name}: {index.name} is unique over all studies"


def _counted(table: Table) -> Iterator[str]:
    """Serial numbers tell an order, and need one place that gives them out (rule B3)."""
    for column in table.c:
        if (
            column.identity is not None
            or isinstance(column.default, Sequence)
            or "nextval" in str(getattr(column.server_default, "arg", ""))
            or column.autoincrement is True
            or column is table.autoincrement_column
        ):
            yield f"{table.name}.{column.name} is a serial number"


def _sealed_and_indexed(table: Table) -> Iterator[str]:
    sealed = {one.column for one in Sealed if one.table == table.name}
    keyed = [
        constraint
        for constraint in table.constraints
        if isinstance(constraint, PrimaryKeyConstraint | UniqueConstraint)
    ]
    for indexed in (*table.indexes, *keyed):
        for column in indexed.columns:
            if column.name in sealed:
                yield f"{table.name}.{column.name} is sealed and indexed by {indexed.name}"


def copied() -> MetaData:
    """Return the tables once more, to be spoilt."""
    copy = MetaData()
    for table in metadata.sorted_tables:
        table.to_metadata(copy)
    return copy


def test_every_key_of_a_study_carries_it() -> None:
    """Primary keys, unique constraints and references stay within one study, as the tables are written down (issue: scale; T32)."""
    assert list(faults_of(metadata)) == []
    assert set(SERVICE_WIDE) - {"alembic_version"} <= set(metadata.tables)


def test_the_database_stands_as_it_is_written_down(connection: Connection) -> None:
    """After all migrations too, on both databases: nothing there that the tables do not say (T32)."""
    standing = MetaData()
    standing.reflect(connection)
    assert set(standing.tables) == {*metadata.tables, "alembic_version"}
    if connection.dialect.name == "postgresql":
        assert list(faults_of(standing)) == []
        assert connection.execute(text("SELECT count(*) FROM pg_sequences")).scalar_one() == 0
        return
    # SQLite numbers the rows of any table by itself; it is one file, and shards nothing.
    assert [fault for fault in faults_of(standing) if "serial" not in fault] == []
    made = connection.execute(text("SELECT group_concat(sql) FROM sqlite_master")).scalar_one()
    assert "AUTOINCREMENT" not in made.upper()


def _own_key(copy: MetaData) -> None:
    Table("visit", copy, Column(SHARD, Uuid(), nullable=False), Column("visit_id", Uuid(), primary_key=True))


def _no_study(copy: MetaData) -> None:
    Table("visit", copy, Column("visit_id", Uuid(), primary_key=True))


def _unique_everywhere(copy: MetaData) -> None:
    copy.tables["kit"].append_constraint(UniqueConstraint("kit_code", name="uq_kit_code"))


def _unique_index(copy: MetaData) -> None:
    Index("ix_kit_code", copy.tables["kit"].c.kit_code, unique=True)


def _reference(copy: MetaData) -> None:
    copy.tables["allocation"].append_constraint(
        ForeignKeyConstraint(["subject_key"], ["subject_flag.subject_key"], name="fk")
    )


def _serial(copy: MetaData) -> None:
    copy.tables["slot"].append_column(Column("number", Integer(), Identity()))


def _sequence(copy: MetaData) -> None:
    copy.tables["slot"].append_column(Column("number", BigInteger(), server_default=text("nextval('numbers')")))


def _counting_key(copy: MetaData) -> None:
    Table(
        "visit",
        copy,
        Column(SHARD, Uuid(), primary_key=True),
        Column("number", Integer(), primary_key=True, autoincrement=True),
    )


def _sealed_index(copy: MetaData) -> None:
    Index("ix_kit_sealed", copy.tables["kit"].c.study_id, copy.tables["kit"].c.sealed)


def _keyless(copy: MetaData) -> None:
    Table("visit", copy, Column(SHARD, Uuid(), nullable=False), Column("note", Text()))


@pytest.mark.parametrize(
    ("plant", "fault"),
    [
        (_own_key, "visit: None does not carry the study"),
        (_no_study, "visit has no study"),
        (_keyless, "visit has no primary key"),
        (_unique_everywhere, "kit: uq_kit_code does not carry the study"),
        (_unique_index, "kit: ix_kit_code is unique over all studies"),
        (_reference, "allocation: fk refers across studies"),
        (_serial, "slot.number is a serial number"),
        (_sequence, "slot.number is a serial number"),
        (_counting_key, "visit.number is a serial number"),
        (_sealed_index, "kit.sealed is sealed and indexed by ix_kit_sealed"),
    ],
)
def test_a_planted_fault_is_caught(plant: Callable[[MetaData], None], fault: str) -> None:
    """Each way to leave the study, or to tell an order, by itself (T32)."""
    copy = copied()
    plant(copy)
    assert fault in list(faults_of(copy))
