"""Measurements of a model besides its accuracy, one file a kind."""
