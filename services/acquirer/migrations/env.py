"""Where Alembic begins; see services/runtime/migrations.py."""

from services.runtime.migrations import run_revisions

run_revisions()
