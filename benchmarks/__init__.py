"""Figures of this machine: scripts, run as `python -m benchmarks.<name>` from the repository."""
