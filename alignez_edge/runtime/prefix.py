"""What texts have in common."""

from __future__ import annotations


def common_prefix(a: list[int], b: list[int]) -> int:
    """How many tokens two texts share at their beginning."""
    low, high = 0, min(len(a), len(b))
    while low < high:  # comparing slices is a hundred times as fast as comparing tokens
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
