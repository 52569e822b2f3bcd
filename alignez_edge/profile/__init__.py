"""Profiles: the value, its file, the library, mixes, what one came from, whether it still holds."""

from alignez_edge.profile.profile import Profile

__all__ = ["Profile"]
