"""Backups of a stack's books: taken while it runs, all of one moment, and put in place of lost or damaged ones."""
