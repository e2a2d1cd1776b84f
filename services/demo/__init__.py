"""The demonstration: acts with faults on a real stack, and the proof that every order was settled once."""
