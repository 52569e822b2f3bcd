"""The command `alignez judge`."""
