"""Evaluations: what profiles do to answers, judged, with what it costs."""
