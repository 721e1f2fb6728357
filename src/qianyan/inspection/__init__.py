"""The product: what to look for, how to look, what was found, and the report about it."""
