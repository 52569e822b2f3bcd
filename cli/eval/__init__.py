"""The command `alignez eval`."""
