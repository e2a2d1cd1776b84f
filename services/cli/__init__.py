"""The `countinghouse` command: a client of the services, which also starts and stops the embedded stack."""
