"""Figures of this machine: scripts, run as `python -m benchmarks.<name>` from the repository.

Threads wait in them as in `alignez` (`alignez_edge/threads.py`).
"""

from alignez_edge.threads import calm

calm()
