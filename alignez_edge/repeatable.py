"""What makes a build repeatable: seeds that depend on what they are for."""

from __future__ import annotations

import hashlib
import json


def derive_seed(seed: int, *parts: str) -> int:
    """A seed in [0, 2**31) that depends on all of its arguments and on nothing else."""
    text = json.dumps([seed, *parts])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little") >> 1
