"""Threads that do the jobs of one context side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor


class Team:
    """`n` threads, started when they are first needed. None is at work any more when `do` returns,
    or, after a `do` that was interrupted, when `rest` does."""

    def __init__(self, n: int) -> None:
        self._n = n
        self._pool: ThreadPoolExecutor | None = None

    def do(self, jobs: Sequence[Callable[[], None]]) -> None:
        """Do all jobs, in any order; what one of them raises is raised."""
        try:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self._n)
            for future in [self._pool.submit(job) for job in jobs]:
                future.result()
        except BaseException:
            self.rest()
            raise

    def rest(self) -> None:
        """Wait for whatever is being done, and end the threads; a second call does nothing."""
        # Forgotten only once it is over: whoever is interrupted here has to wait again. Waiting for
        # the pool, not for its futures, meets also a job that an interrupt kept out of a list.
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None
