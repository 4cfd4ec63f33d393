"""The configs that ship: paper/ (one a figure or table) and suites/. Installed as `bn_vuln.configs`."""
