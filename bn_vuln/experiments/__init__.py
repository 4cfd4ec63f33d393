"""Experiments: the shipped configs, runs of what is missing, and estimates of their cost."""
