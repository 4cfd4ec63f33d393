"""Execution: the backend, devices, processes, progress, files and batch sizes."""
