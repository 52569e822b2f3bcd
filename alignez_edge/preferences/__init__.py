"""Axes, queries, requests and pairs."""
