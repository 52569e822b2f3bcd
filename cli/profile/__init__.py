"""The command `alignez profile`."""
