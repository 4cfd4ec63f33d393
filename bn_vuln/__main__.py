"""`python -m bn_vuln` is `bnvuln`."""

from bn_vuln.cli.main import main  # type: ignore[import-not-found]  # cli/ is this package once installed

main()
