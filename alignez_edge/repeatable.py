"""What makes a build repeatable: seeds that depend on what they are for."""

from __future__ import annotations

import hashlib
import json
import os
from datetime import datetime, timezone


def derive_seed(seed: int, *parts: str) -> int:
    """A seed in [0, 2**31) that depends on all of its arguments and on nothing else."""
    text = json.dumps([seed, *parts])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little") >> 1


def digest(value: object) -> str:
    """Equal values have equal ones."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]


def timestamp() -> str:
    """The time now, or `SOURCE_DATE_EPOCH` where it is set, as ISO 8601 in UTC to the second."""
    pinned = os.environ.get("SOURCE_DATE_EPOCH", "")
    moment = (
        datetime.fromtimestamp(int(pinned), timezone.utc)
        if pinned.isdecimal()
        else datetime.now(timezone.utc)
    )
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
