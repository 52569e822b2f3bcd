"""Untrusted files read, our own written."""
