"""Alembic runs this file: it works on the connection that ``migrations.upgrade`` hands over."""

from alembic import context

from sparsearch.results.store.migrations import VERSION_TABLE
from sparsearch.results.store.tables import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    version_table=VERSION_TABLE,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
