"""The `countinghouse` command: a client of the services, and the switch of the embedded stack."""
