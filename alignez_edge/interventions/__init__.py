"""What a profile adds to a model: a control vector, and what may be injected in its place.

`intervention.py` is the seam behind which the kinds differ, `kinds.py` names them all.
"""
