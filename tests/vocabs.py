"""Real tokenizers for tests: the vocabulary files inside llama-cpp-python's source distribution.

They are fetched once with pip into `.cache/vocabs` (not in the repository). A test that needs one
asks `real_vocab`, which skips the test where there is neither a cached copy nor a network.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

import pytest

CACHE = Path(__file__).parent.parent / ".cache" / "vocabs"
NAMES = ("llama-bpe", "llama-spm", "qwen2", "gemma-4", "phi-3", "gpt-2")
TEMPLATES = (
    "meta-llama-Llama-3.1-8B-Instruct",
    "Qwen-Qwen2.5-7B-Instruct",
    "Qwen-Qwen3-0.6B",
    "google-gemma-2-2b-it",
    "microsoft-Phi-3.5-mini-instruct",
    "mistralai-Mistral-Nemo-Instruct-2407",
    "llama-cpp-deepseek-r1",
)


def real_vocab(name: str) -> Path:
    """The GGUF file (tokenizer only) of one of `NAMES`."""
    return _fetched(f"ggml-vocab-{name}.gguf")


def real_template(name: str) -> str:
    """The source of one of the chat templates `TEMPLATES`."""
    return _fetched(f"{name}.jinja").read_text(encoding="utf-8")


def _fetched(file: str) -> Path:
    path = CACHE / file
    if not path.exists():
        try:
            _fetch()
        except (OSError, subprocess.SubprocessError) as error:
            pytest.skip(f"no copy of {file} and none to be had: {error}")
    return path


def _fetch() -> None:
    """Take the wanted files out of the source distribution of the installed version."""
    CACHE.mkdir(parents=True, exist_ok=True)
    wanted = {f"ggml-vocab-{n}.gguf" for n in NAMES} | {f"{n}.jinja" for n in TEMPLATES}
    package = "llama-cpp-python"
    with tempfile.TemporaryDirectory() as folder:
        # pip prepares the metadata of a source distribution (seconds); it does not compile it.
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps",
             "--no-binary", package, f"{package}=={version(package)}", "--dest", folder],
            check=True, timeout=300, capture_output=True,
        )  # fmt: skip
        (archive,) = Path(folder).glob("*.tar.gz")
        with tarfile.open(archive) as tar:
            for member in tar:
                name = Path(member.name).name
                if name in wanted and "vendor/llama.cpp/models/" in member.name:
                    source = tar.extractfile(member)
                    assert source is not None
                    partial = CACHE / (name + ".part")
                    partial.write_bytes(source.read())
                    partial.replace(CACHE / name)
