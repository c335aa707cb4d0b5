"""Alembic's entry: migrates on the connection, and in the transaction, that `Database.upgrade` hands over."""

from __future__ import annotations

from alembic import context

from appliance.storage.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,  # SQLite alters a column by copying its table
)
with context.begin_transaction():
    context.run_migrations()
