"""How work runs: the backend, devices, processes, progress, files and batch sizes."""
