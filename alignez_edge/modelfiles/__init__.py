"""Which model a file is, and what it carries."""
