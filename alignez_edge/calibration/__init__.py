"""What strength 1 means, and whether a profile works."""
