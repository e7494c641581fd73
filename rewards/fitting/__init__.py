"""From preferences to a reward model, and how calibrated it is."""
