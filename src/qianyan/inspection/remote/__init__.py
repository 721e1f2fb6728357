"""Models elsewhere: what an endpoint can do, how it counts, and asking it about pictures."""
