"""What a stack consists of."""
