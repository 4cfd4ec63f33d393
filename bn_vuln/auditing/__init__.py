"""Audits: from a trained model to what to do about it."""
