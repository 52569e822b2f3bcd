"""Messages and templates."""
