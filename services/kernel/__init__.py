"""What is true without any machine: money, ids, time, fences, errors, idempotency. Standard library only."""
