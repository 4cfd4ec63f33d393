"""Measurements of a model besides its accuracy, one file a kind; `run` is their loop."""
