"""What every server does with a gRPC call: limits, tokens, access, errors, health; and calls to other services."""
