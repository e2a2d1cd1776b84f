"""The orders: what customers owe, and which payment settled each."""
