"""Measuring a classifier: clean, noise and attacks, with the checks that say whether a number can be believed."""
