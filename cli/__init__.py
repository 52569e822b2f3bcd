"""The commands of `alignez`."""
