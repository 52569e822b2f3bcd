"""The built-in axes (TOML) and the demo model's profiles."""
