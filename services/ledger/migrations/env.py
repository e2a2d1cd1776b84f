"""Where Alembic begins; see services/runtime/database/migrations.py."""

from services.runtime.database.migrations import run_revisions

run_revisions()
