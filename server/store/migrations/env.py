"""Alembic runs this to migrate the connection that server.store.database hands it."""

from alembic import context

from server.store.tables import metadata

connection = context.config.attributes["connection"]
# Two processes that start at once take turns. Held until the transaction ends.
if connection.dialect.name == "postgresql":
    connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7238164301)")
else:
    # The driver would begin no transaction before tables are made, which a kill would leave half done.
    connection.exec_driver_sql("BEGIN IMMEDIATE")
# SQLite cannot alter most of a table in place: batch mode copies it.
context.configure(connection=connection, target_metadata=metadata, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
