"""One file for each version of the tables, in order; one that shipped is never edited."""
