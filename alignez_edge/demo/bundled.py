"""The files of the bundled model: itself and its queries."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

DEMO_MODEL = "demo-model.gguf"


def demo_file() -> Path:
    """The file of the small model that ships with the package."""
    return Path(str(resources.files("alignez_edge.demo") / DEMO_MODEL))


def demo_queries(name: str) -> list[dict[str, str]]:
    """The demo model's `build` or `unseen` queries: `query` and `topic`."""
    text = resources.files(__package__).joinpath(f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]
