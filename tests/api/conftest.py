"""A running deployment for each test, on SQLite and on PostgreSQL."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import harness
from tests.harness import House


@pytest.fixture
def house(migrated_database_url: str, tmp_path: Path) -> Iterator[House]:
    """A new deployment with its first service admin."""
    with harness.house(migrated_database_url, tmp_path) as opened:
        yield opened
