"""The commands: options -> config -> one call of the library. Installed as `bn_vuln.cli`."""
