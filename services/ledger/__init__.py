"""The ledger: accounts, and balanced journals that are never changed."""
