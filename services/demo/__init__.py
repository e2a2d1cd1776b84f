"""The demonstration: acts in which things go wrong on a real stack, and the proof that every bill was settled once."""
