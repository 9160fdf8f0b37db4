"""Runs the migrations on a connection that `app.storage.migrate` hands over, or on ``SNOSE_DATABASE_URL``."""

import os
from typing import Literal

from alembic import context
from alembic.autogenerate.api import AutogenContext
from sqlalchemy import Connection, TypeDecorator, create_engine, pool

from app.storage.tables import metadata


def render_plainly(kind: str, item: object, _context: AutogenContext) -> str | Literal[False]:
    """Return how a type of our own is written in a new migration: as what it is in the database.

    A migration that is years old must not depend on what our own types have become.
    """
    if kind == "type" and isinstance(item, TypeDecorator):
        return f"sa.{item.impl!r}"
    return False


def run_on(connection: Connection) -> None:
    """Run each migration in a transaction of its own: a failed one leaves those before it standing."""
    context.configure(
        connection=connection,
        target_metadata=metadata,
        transaction_per_migration=True,
        compare_type=True,
        compare_server_default=True,
        # Batch mode copies a table and drops the old one, with the triggers that keep the trail append-only.
        render_as_batch=False,
        render_item=render_plainly,
    )
    with context.begin_transaction():
        context.run_migrations()


given: Connection | None = context.config.attributes.get("connection")
if given is not None:
    run_on(given)
else:
    engine = create_engine(os.environ["SNOSE_DATABASE_URL"], poolclass=pool.NullPool)
    with engine.connect() as own:
        run_on(own)
