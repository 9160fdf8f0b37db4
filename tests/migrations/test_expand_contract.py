"""A migration runs while the previous release still serves: what breaks that is found, all else is served. (INT-11, T24)"""

from pathlib import Path
from typing import Final

import pytest
from sqlalchemy import create_engine

from app.errors import UnsafeSetting
from app.services.startup import unseal
from app.storage import migrate
from app.surroundings import surroundings
from tests.harness import House
from tests.migrations import linter
from tests.migrations.releases import newest_revision
from tests.running_study import running_study

RELEASED: Final = newest_revision()
HEAD: Final = migrate.head()
"""After which a test adds its own: what the next release brings is there already."""

_MIGRATION: Final = '''"""Planted."""

import sqlalchemy as sa
from alembic import op

revision = "{revision}"
down_revision = "{before}"
branch_labels = None
depends_on = None
{more}

def upgrade() -> None:
    {upgrade}
'''

NEWEST: Final = migrate.head()
"""The newest revision that there is, released or not: what is planted follows it."""
_NEXT: Final = f"{int(NEWEST[:4]) + 1:04}_from_{NEWEST[-4:]}"
_AND_NEXT: Final = f"{int(NEWEST[:4]) + 2:04}"

GOOD: Final = """op.add_column("site", sa.Column("phone", sa.Text(), nullable=True))
    op.add_column("site", sa.Column("floor", sa.Integer(), nullable=False, server_default="3"))
    op.create_table("visit", sa.Column("study_id", sa.Uuid(), nullable=False), sa.PrimaryKeyConstraint("study_id"))
    op.create_index("ix_visit", "visit", ["study_id"], unique=True)
    op.execute("INSERT INTO visit VALUES ('00000000-0000-0000-0000-000000000001')")
    op.create_index("ix_site_name", "site", ["name"])"""

BOTH: Final = (
    ('op.drop_table("subject_flag")', "drops a table (subject_flag)"),
    ('op.create_index("uq_x", "session", ["principal_id"], unique=True)', "adds a unique index (session)"),
    ("""op.execute("UPDATE session SET ended_at = NULL")""", "changes rows (session)"),
    ("""op.execute('DELETE FROM "session"')""", "changes rows (session)"),
    ('op.drop_column("session", "ended_at")', "drops a column (session)"),
    ('op.alter_column("session", "proof_at", new_column_name="proven_at")', "renames (session)"),
)
POSTGRESQL: Final = (
    (
        'op.add_column("session", sa.Column("n", sa.Integer(), nullable=False))',
        "adds a column that every insert must name (session)",
    ),
    ('op.alter_column("session", "proof_spent_at", type_=sa.Text())', "changes a type (session)"),
    ('op.alter_column("session", "proof_spent_at", nullable=False)', "forbids NULL (session)"),
    ('op.create_check_constraint("ck_x", "session", "proven_at IS NULL")', "adds a constraint (session)"),
    ('op.drop_constraint("uq_study_study_code", "study")', "drops a constraint (study)"),
    ('op.execute("DROP TRIGGER trail_entry_no_delete ON trail_entry")', "takes a refusal away"),
    ('op.execute("DROP FUNCTION snose_refuse() CASCADE")', "takes a refusal away"),
    ('op.rename_table("session", "sitting")', "renames (session)"),
)
SQLITE: Final = (
    ('op.execute("DROP TRIGGER trail_entry_no_delete")', "takes a refusal away"),
    (
        """with op.batch_alter_table("session") as batch:
        batch.alter_column("proof_spent_at", nullable=False)""",
        "drops a table (session)",
    ),
    ('op.rename_table("credential", "secret")', "renames (credential)"),
)


def plant(migrations: Path, upgrade: str, revision: str = _NEXT, before: str = NEWEST, more: str = "") -> None:
    """Add a migration to a folder of them."""
    content = _MIGRATION.format(revision=revision, before=before, upgrade=upgrade, more=more)
    (migrations / "versions" / f"{revision}_planted.py").write_text(content)


class TestLinter:
    def test_migrations_as_they_stand(self, database_url: str) -> None:
        """Every migration after the newest release leaves that release serving. [INT-11]"""
        assert linter.lint(database_url, RELEASED) == []
        assert linter.lint_names(RELEASED) == []

    @pytest.mark.parametrize("database_kind", ["sqlite"])
    def test_a_refusal_made_anew(self, migrated_database_url: str, tmp_path: Path) -> None:
        """A refusal may be taken away in the migration that makes it again, for a new column."""
        migrations = linter.own(tmp_path)
        anew = "CREATE TRIGGER site_fixed BEFORE UPDATE ON site BEGIN SELECT RAISE(ABORT, 'x'); END"
        plant(migrations, f"""op.execute("DROP TRIGGER site_fixed"); op.execute("{anew}")""")
        assert linter.lint(migrated_database_url, HEAD, migrations) == []

    def test_what_breaks_it(self, migrated_database_url: str, database_kind: str, tmp_path: Path) -> None:
        """Each of the planted faults is found, by the statements that it sends, and nothing else is."""
        migrations = linter.own(tmp_path)
        planted = [*BOTH, *(SQLITE if database_kind == "sqlite" else POSTGRESQL)]
        plant(migrations, "\n    ".join(upgrade for upgrade, _ in planted))
        found = linter.lint(migrated_database_url, HEAD, migrations)
        assert set(found) >= {f"{_NEXT}: {fault}" for _, fault in planted}
        # To change a table in batches is more than one fault.
        assert {one.partition(": ")[2] for one in found} - {fault for _, fault in planted} <= {"renames (session)"}

    @pytest.mark.parametrize(
        ("revision", "more", "fault"),
        [
            ("another", "", "is not called NNNN_from_NNNN"),
            (f"{_AND_NEXT}_from_{_NEXT[-4:]}", "", "in number"),
            (f"{_NEXT[:4]}_from_{_NEXT[:4]}", "", f"it is called {_NEXT}"),
            (f"{_NEXT[:4]}_from_{_NEXT[:4]}", f'contracts = "{_NEXT}"', "was not released before"),
            (f"{_NEXT[:4]}_from_0001", f'contracts = "{HEAD}"', f"serves from {HEAD[:4]} on at the earliest"),
        ],
    )
    def test_names(self, tmp_path: Path, revision: str, more: str, fault: str) -> None:
        """The name of a revision says whom it serves, and a step that takes away names one that was released."""
        migrations = linter.own(tmp_path)
        plant(migrations, "pass", revision, more=more)
        assert fault in " ".join(linter.lint_names(HEAD, migrations))

    @pytest.mark.parametrize("database_kind", ["sqlite"])
    def test_what_may_take_away(self, migrated_database_url: str, tmp_path: Path) -> None:
        """A step that names what was released before it may drop."""
        migrations = linter.own(tmp_path)
        contracts = f'contracts = "{HEAD}"'
        plant(migrations, 'op.drop_table("replacement_release")', f"{_NEXT[:4]}_from_{HEAD[:4]}", more=contracts)
        assert linter.lint(migrated_database_url, HEAD, migrations) == []
        assert linter.lint_names(HEAD, migrations) == []


class TestServing:
    @pytest.mark.parametrize(
        ("found", "is_served"),
        [
            ("0004_from_0002", True),
            ("0005_from_0002", True),
            ("0005_from_0004", True),
            ("0006_from_0005", False),
            ("0003_from_0002", False),
            ("0002", False),
            ("0009", False),
            ("another", False),
        ],
    )
    def test_by_name(self, found: str, is_served: bool) -> None:
        """A release whose newest is the fourth serves it, and what was added to it since, and nothing else."""
        assert migrate.serves("0004_from_0002", found) is is_served

    @pytest.mark.parametrize("database_kind", ["postgresql", pytest.param("sqlite", marks=pytest.mark.long)])
    def test_while_the_schema_grows(self, house: House, tmp_path: Path) -> None:
        """After a migration that only adds, this release goes on, is ready, and starts again. [INT-11]"""
        running = running_study(house, subjects=1)
        migrations = linter.own(tmp_path)
        plant(migrations, GOOD)
        assert linter.lint(house.settings.url(), HEAD, migrations) == []
        running.new_subject()
        assert house.client.get("/readyz").status_code == 200
        house.restart()
        assert house.client.get("/readyz").status_code == 200
        running.new_subject()
        # The negative control: what takes away ends the service of this release.
        plant(migrations, "pass", f"{_AND_NEXT}_from_{_NEXT[:4]}", _NEXT)
        engine = create_engine(house.settings.url())
        linter.take(engine, migrations, "heads")
        engine.dispose()
        assert house.client.get("/readyz").status_code == 503
        around = surroundings(house.settings)
        with pytest.raises(UnsafeSetting, match="snose migrate"):
            unseal(around, house.settings.mode)
        around.database.close()
