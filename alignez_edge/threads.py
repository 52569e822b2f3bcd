"""How threads wait for each other: said in the environment, before the libraries that read it."""

from __future__ import annotations

import os

_SPINS = "4000"
"""Turns of libgomp's loop before a waiting thread sleeps. Its own are 300,000: two llama.cpp
processes on the same cores then wait for each other's spinning threads and come to a near stop.
With 1,000 one process alone is slower too: its threads sleep while others still compute."""


def calm() -> None:
    """Keep waiting threads from spinning on cores that others compute on.

    To be called before NumPy and llama.cpp are loaded. What the user has set stays as it is.
    """
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = _SPINS
    # NumPy's BLAS keeps its threads spinning after each small product: with them an evaluation
    # takes half as long again.
    if "OMP_NUM_THREADS" not in os.environ:
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
