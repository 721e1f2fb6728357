"""Training of the bundled pair: drawn scenes, the detector, the judge, and what mines for both."""
