"""Hidden states and the mathematics of directions. NumPy and SciPy."""
