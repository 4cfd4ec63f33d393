"""Analysis of what was measured: statistics, and what explains them."""
