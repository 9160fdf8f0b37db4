"""One valid row for each table, so that a test states only the values that matter to it."""

from datetime import UTC, date, datetime, timedelta
from typing import Any, Final
from uuid import UUID, uuid5

from sqlalchemy import Column, Connection, Table, TypeDecorator, insert

from app.storage.tables import metadata

NAMES: Final = UUID("6ba7b812-9dad-11d1-80b4-00c04fd430c8")
NOON: Final = datetime(2027, 3, 1, 12, 0, tzinfo=UTC)
STATUS: Final = {
    "study": "open",
    "schedule": "generated",
    "consignment": "registered",
    "kit": "registered",
    "code_break": "authorised",
    "safety_unblinding": "authorised",
}
DEFAULTS: Final[dict[type, Any]] = {
    int: 1,
    bool: False,
    bytes: b"\x01" * 32,
    datetime: NOON,
    date: NOON.date(),
}


def _kind_of(column: Column[Any]) -> type:
    kind = column.type.impl_instance if isinstance(column.type, TypeDecorator) else column.type
    return kind.python_type


def value_of(column: Column[Any]) -> Any:  # noqa: ANN401  # whatever the column holds
    """Return a valid value; columns of one name have one value, so that foreign keys fit."""
    if column.nullable:
        return None
    kind = _kind_of(column)
    if kind is UUID:
        return uuid5(NAMES, column.name)
    if column.name == "status":
        return STATUS[column.table.name]
    return DEFAULTS.get(kind, column.name)


def another(column: Column[Any], value: Any) -> Any:  # noqa: ANN401  # whatever the column holds
    """Return a value of the column that differs from ``value``."""
    kind = _kind_of(column)
    if kind is UUID:
        return uuid5(NAMES, f"another {value}")
    if kind is bool:
        return not value
    if kind in (datetime, date):
        return (value or DEFAULTS[kind]) + timedelta(days=1)
    if kind is int:
        return (value or 0) + 1
    if kind is bytes:
        return bytes(value or b"") + b"\x02"
    return f"another {value}"


def a_row(table: Table, **values: Any) -> dict[str, Any]:  # noqa: ANN401  # whatever the columns hold
    """Return one valid row of a table."""
    return {column.name: value_of(column) for column in table.columns} | values


def fill(connection: Connection, **values: dict[str, Any]) -> None:
    """Put one row into every table, with the ``values`` given for some."""
    for table in metadata.sorted_tables:
        connection.execute(insert(table), a_row(table, **values.get(table.name, {})))
