"""The program `bnvuln`, also as `python -m bn_vuln`."""

from bn_vuln.runtime import signals


def main() -> None:
    """Run the command line; a signal that comes while it is imported is handled as any later one."""
    signals.remember()
    from bn_vuln.cli.main import main as run  # type: ignore[import-not-found]  # cli/ is this package once installed

    run()


if __name__ == "__main__":
    main()
