"""What a profile adds to a model: a control vector, an exact edit, one made by query, a value
function. Values; NumPy in, NumPy out.
"""
