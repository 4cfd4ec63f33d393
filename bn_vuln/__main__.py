"""`python -m bn_vuln` is `bnvuln`."""

from bn_vuln.cli.main import main

main()
