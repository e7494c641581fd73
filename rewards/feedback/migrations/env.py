"""Run by Alembic: migrate the database whose connection it was given."""

from alembic import context

from rewards.feedback.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, render_as_batch=True)
context.run_migrations()
