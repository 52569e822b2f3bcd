"""The names of the methods that find directions. Light: `--help` imports it."""

from __future__ import annotations

METHODS: dict[str, str] = {
    "alignez": "SVD of the pairs' differences (version 2), displaced by their natural length",
    "alignez-v1": "first singular vectors of each side (version 1): the mean of the papers' edit",
    "mean": "difference of the two sides' means",
}
DEFAULT_METHOD = "alignez"
