"""Alarms: what is worth saying of a picture as one sentence, and that sentence read aloud."""
