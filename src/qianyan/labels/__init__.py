"""Labelled photos: what annotators say is in them, read from the formats of their tools."""
