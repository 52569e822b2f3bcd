"""Profiles: the value, its file, the library, mixing, verifying."""

from alignez_edge.profile.profile import Profile

__all__ = ["Profile"]
