"""llama.cpp's own programs, built from the source that llama-cpp-python ships, and run.

The source distribution of the installed version is fetched with pip once and built with cmake in
`.cache/llama.cpp-<version>` (some minutes).
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

PACKAGE = "llama-cpp-python"
CACHE = Path(__file__).parent.parent / ".cache"
PROGRAMS = ("llama-completion", "llama-cvector-generator", "llama-server")
_OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DLLAMA_CURL=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_SERVER=ON",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
    "-DLLAMA_OPENSSL=OFF",
)
_SESSION = struct.Struct("<4sII")
"""What a prompt cache begins with: magic, version, number of tokens; the tokens follow."""


def folder() -> Path:
    """Where the programs of the installed version are or will be."""
    return CACHE / f"llama.cpp-{version(PACKAGE)}"


def built(name: str) -> Path | None:
    """The program `name`, if it was built already."""
    path = folder() / "build" / "bin" / name
    return path if path.is_file() else None


def programs(jobs: int) -> dict[str, Path]:
    """All of `PROGRAMS` by name, fetched and built with `jobs` processes where they are missing."""
    found = {name: built(name) for name in PROGRAMS}
    if None in found.values():
        source = folder() / "source"
        if not source.is_dir():
            _fetch(source)
        build = folder() / "build"
        generator = ["-G", "Ninja"] if shutil.which("ninja") else []
        options = [*generator, *_OPTIONS, *_without_amx()]
        _run(["cmake", "-S", str(source), "-B", str(build), *options])
        _run(["cmake", "--build", str(build), "-j", str(jobs), "--target", *PROGRAMS])
    return {name: path for name in PROGRAMS if (path := built(name)) is not None}


def _without_amx() -> list[str]:
    """Options that leave out llama.cpp's AMX code where it would run, as the Makefile does: built
    by GCC, it crashes."""
    cpus = Path("/proc/cpuinfo")
    if not cpus.is_file() or "amx_int8" not in cpus.read_text("utf-8"):
        return []
    return [f"-DCMAKE_{language}_FLAGS=-mno-amx-int8" for language in ("C", "CXX")]


def _fetch(target: Path) -> None:
    """Put llama.cpp's source out of the source distribution into the folder `target`."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as place:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary"]
        _run([*pip, PACKAGE, f"{PACKAGE}=={version(PACKAGE)}", "--dest", place])
        (archive,) = Path(place).glob("*.tar.gz")
        with tarfile.open(archive) as tar:
            if hasattr(tarfile, "data_filter"):
                tar.extractall(place, filter="data")
            else:
                tar.extractall(place)
        (source,) = Path(place).glob("*/vendor/llama.cpp")
        source.replace(target)


@dataclass(frozen=True)
class Completion:
    """llama.cpp's completion program with one model, greedy, with one thread."""

    program: Path
    model: Path
    n_tokens: int

    def everywhere(self, prompt: str, arguments: Sequence[str]) -> list[int]:
        """The tokens of prompt and answer as the program is commonly used: `arguments` (a control
        vector, an adapter) act on every token."""
        with tempfile.TemporaryDirectory() as place:
            cache = Path(place) / "cache"
            keep = ["--prompt-cache-all"]
            self._run(cache, ["-p", prompt, "-n", str(self.n_tokens), *keep, *arguments])
            return _tokens(cache)

    def from_the_deciding_token(
        self, prompt: str, deciding: Sequence[str], answer: Sequence[str]
    ) -> list[int]:
        """The same in three runs, so that the prompt stays plain but for its last token.

        1. Without arguments. The program stores the states of all tokens but the last.
        2. With `deciding` it takes these states back, reads the last token again under what was
           given, draws a token and stores the states of the prompt.
        3. With `answer` it does the same with that token, and goes on.
        """
        with tempfile.TemporaryDirectory() as place:
            cache = Path(place) / "cache"
            self._run(cache, ["-p", prompt, "-n", "1"])
            self._run(cache, ["-p", prompt, "-n", "1", "--prompt-cache-all", *deciding])
            rest = str(self.n_tokens - 1)
            self._run(cache, ["-p", "", "-n", rest, "--prompt-cache-all", *answer])
            return _tokens(cache)

    def _run(self, cache: Path, arguments: Sequence[str]) -> None:
        fixed = ["-no-cnv", "--temp", "0", "-t", "1", "--no-warmup", "--no-display-prompt"]
        command = [str(self.program), "-m", str(self.model), "--prompt-cache", str(cache)]
        _run([*command, *fixed, *arguments])


def _tokens(cache: Path) -> list[int]:
    """The tokens of a prompt cache."""
    data = cache.read_bytes()
    magic, _, count = _SESSION.unpack_from(data)
    assert magic == b"nsgg", magic
    return list(struct.unpack_from(f"<{count}i", data, _SESSION.size))


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    if done.returncode:
        last = "\n".join((done.stdout + done.stderr).splitlines()[-8:])
        sys.exit(f"{Path(command[0]).name} failed with {done.returncode}:\n{last}")
