"""The demonstration: acts in which things go wrong on a real stack, and the proof that every order was settled once."""
