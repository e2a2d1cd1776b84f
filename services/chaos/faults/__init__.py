"""The fault types, one module for each component of a target."""
