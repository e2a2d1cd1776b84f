"""The demonstration: acts with faults on a real stack, and the verdict of the checker."""
