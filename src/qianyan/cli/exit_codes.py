"""Exit codes of every verb; a verb stopped by signal n ends with 128 + n."""

DONE = 0
FINDINGS = 1
"""Findings at or above --fail-on."""
WRONG_USAGE = 2
UNUSABLE = 3
"""The model or the endpoint cannot be used."""
IN_PART = 4
"""Some pictures failed; the others are complete."""
