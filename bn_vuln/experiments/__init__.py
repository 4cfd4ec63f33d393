"""Experiments: the configs that ship, running what is missing of them, and what that will cost."""
