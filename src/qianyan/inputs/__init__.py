"""What a user sends becomes model inputs: fetched, decoded, templated, tokenised."""
