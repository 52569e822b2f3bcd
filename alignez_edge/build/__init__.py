"""From an axis to a profile, step by step."""
