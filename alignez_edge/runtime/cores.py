"""How many cores this process may use."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path


def usable_cores() -> int:
    """How many threads help: the physical cores that this process may run on, at least 1.

    Two hardware threads of one core share the units that matter here, so siblings count once;
    a container's CPU quota (cgroup v2) is respected. On Apple Silicon the performance cores count:
    a pass waits for its slowest thread, which the other cores would be.
    """
    if not hasattr(os, "sched_getaffinity"):
        return _performance_cores() or os.cpu_count() or 1
    cpus = os.sched_getaffinity(0)
    cores = set()
    for cpu in cpus:
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        try:
            cores.add(siblings.read_text().strip())
        except OSError:
            cores.add(str(cpu))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        allowed = len(cores) if quota == "max" else -(-int(quota) // int(period))
    except (OSError, ValueError, ZeroDivisionError):
        allowed = len(cores)
    return max(1, min(len(cores), allowed))


def _performance_cores() -> int:
    """The cores of the first performance level that macOS tells of; 0 where nobody tells."""
    if sys.platform != "darwin":
        return 0
    count, size = ctypes.c_int32(0), ctypes.c_size_t(4)
    for name in (b"hw.perflevel0.physicalcpu", b"hw.physicalcpu"):
        told = ctypes.CDLL(None).sysctlbyname(
            name, ctypes.byref(count), ctypes.byref(size), None, ctypes.c_size_t(0)
        )
        if told == 0:
            return count.value
    return 0
