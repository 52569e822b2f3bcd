"""Strangers' files read, our own written."""
