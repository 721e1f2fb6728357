"""Hard cases out: what went wrong, in the formats of other tools, for the next fine-tune."""
