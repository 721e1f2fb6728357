"""Training of the bundled models: drawn scenes, labelled photos, detector, judge."""
