"""What every server shares: bootstrap, interceptors, database, settings, tokens, failpoints."""
