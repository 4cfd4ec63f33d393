"""Statistics of measured numbers, and the theory that explains them. NumPy and SciPy only."""
