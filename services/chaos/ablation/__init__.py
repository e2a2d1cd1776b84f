"""Which guard stops which fault, shown by switching each of them off."""
