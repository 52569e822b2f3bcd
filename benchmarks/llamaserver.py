"""llama.cpp's own server, started for one model on this machine and asked by many at once."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from alignez_edge.runtime.requests import Sampling

HOST = "127.0.0.1"
PATIENCE = 300
"""Seconds in which a model must be loaded, and in which an answer must come."""
_CELLS = 256
"""llama.cpp rounds the cells of a slot up to a multiple of this."""


class LlamaServer:
    """A `llama-server` process with `n_slots` slots of `n_ctx` tokens; a context manager.

    What it does beside decoding is switched off: its page, its log, its caches of prompts. All else
    is as it is by default. Its address is of this machine alone.
    """

    def __init__(
        self, program: Path, model: Path, *, n_slots: int, n_ctx: int, threads: int
    ) -> None:
        self._port = _free_port()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (closed in `close`)
        n_cells = n_slots * -(-n_ctx // _CELLS) * _CELLS
        self._process = subprocess.Popen(
            [
                str(program), "--model", str(model), "--host", HOST, "--port", str(self._port),
                "--parallel", str(n_slots), "--ctx-size", str(n_cells),
                "--threads", str(threads), "--threads-batch", str(threads),
                "--no-webui", "--no-cache-prompt", "--cache-ram", "0", "--log-verbosity", "1",
            ],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            self._wait()
        except BaseException:
            self.close()
            raise

    def answers(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[int]:
        """Ask for an answer of exactly `sampling.max_tokens` to each prompt, all at once from as
        many connections, with seeds that count up; how many tokens each has."""

        def ask(index: int) -> int:
            found = self._request("POST", "/completion", {
                "prompt": list(prompts[index]),
                "n_predict": sampling.max_tokens,
                "ignore_eos": True,
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "top_k": sampling.top_k,
                "min_p": 0.0,
                "samplers": ["temperature"],
                "seed": sampling.seed + index,
                "cache_prompt": False,
            })  # fmt: skip
            if found["tokens_evaluated"] != len(prompts[index]):
                raise SystemExit(f"llama-server has read {found['tokens_evaluated']} tokens")
            return int(found["tokens_predicted"])

        with ThreadPoolExecutor(len(prompts)) as pool:
            return list(pool.map(ask, range(len(prompts))))

    def cpu_seconds(self) -> float | None:
        """Seconds that it has computed so far; None if the system does not say."""
        stat = Path(f"/proc/{self._process.pid}/stat")
        if not stat.exists():
            return None
        user, system = stat.read_text().rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        """End the process; a second call does nothing."""
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def __enter__(self) -> LlamaServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _wait(self) -> None:
        """Until the model is loaded."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            if self._process.poll() is not None:
                self._log.seek(0)
                last = self._log.read().decode(errors="replace").splitlines()[-8:]
                raise SystemExit("\n".join(["llama-server has ended:", *last]))
            try:
                self._request("GET", "/health")
                return
            except (OSError, HTTPException):
                time.sleep(0.1)
        raise SystemExit(f"llama-server was not ready after {PATIENCE} seconds")

    def _request(self, method: str, path: str, body: object = None) -> dict[str, int]:
        connection = HTTPConnection(HOST, self._port, timeout=PATIENCE)
        try:
            text = None if body is None else json.dumps(body)
            connection.request(method, path, text, {"Content-Type": "application/json"})
            response = connection.getresponse()
            found = response.read()
            if response.status != 200:
                raise HTTPException(f"{response.status} {found[:200]!r}")
            answer: dict[str, int] = json.loads(found)
            return answer
        finally:
            connection.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port
