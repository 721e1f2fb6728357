"""Conversations over a socket: somebody speaks, the model hears, answers, and is interrupted."""
