"""Pure domain types and rules: money, ids, time, fences, errors, idempotency. Standard library only."""
