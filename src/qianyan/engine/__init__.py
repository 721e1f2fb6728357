"""Many requests, one model: plan, run, sample, settle."""
