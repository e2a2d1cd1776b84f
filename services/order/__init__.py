"""The bills: what customers owe, and which payment settled each."""
