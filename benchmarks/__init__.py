"""Figures of this machine: scripts, run as `python -m benchmarks.<name>` from the repository.

NumPy's BLAS has one thread in them, as in `alignez`, unless `OMP_NUM_THREADS` says otherwise.
"""

import os

if "OMP_NUM_THREADS" not in os.environ:
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
