"""What a profile adds to a model, as values."""
