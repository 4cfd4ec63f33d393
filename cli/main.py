"""`bnvuln`: the group of commands. Each command's module is imported only when it is asked for."""

from __future__ import annotations

import importlib
import sys

import click

from bn_vuln.errors import BnvulnError, UsageError
from bn_vuln.version import __version__

# name -> one line of help; the module bn_vuln.cli.NAME holds the command `command`.
COMMANDS = {
    "audit": "How fragile is a model, why, and what to do about it.",
    "mend": "Change the normalization of a trained model.",
    "train": "Train one model, with or without batch norm.",
    "attack": "Attack a run, or any Keras classifier.",
    "evaluate": "Clean accuracy, noise, attacks and measurements in one table.",
    "list": "List the models of a results folder.",
    "show": "Show a run or an external model with its records.",
    "compare": "Paired differences between two models.",
    "transfer": "Measure how adversarial examples transfer between models.",
    "scale-input": "The pair of Table 6 (or 7) at one input width.",
    "reproduce": "Reproduce a table or figure, beside the paper's values.",
    "data": "List, inspect and prepare data sets.",
    "config": "JSON schemas for editors, and every field of a config.",
    "report": "Write tables and figures from existing records.",
    "publish": "Pack finished experiments for review.",
    "unpack": "Unpack published results into a working folder.",
}


class Commands(click.Group):
    """A group that knows the names of its commands without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Import the module of a command and return the command."""
        if name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"{__package__}.{name.replace('-', '_')}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command of the arguments; for an unknown one name the nearest."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            from difflib import get_close_matches

            close = get_close_matches(args[0], COMMANDS, n=1, cutoff=0.5)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            ctx.fail(f"No such command {args[0]!r}.{hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start: bnvuln audit MODEL --data DATA, or bnvuln reproduce table6 --scale quick. Each command has examples "
    "in its own --help.",
)
@click.version_option(__version__, prog_name="bnvuln")
def bnvuln() -> None:
    """Audit image classifiers and mend them; measure what batch norm costs them in robustness.

    Train matched pairs of models that differ only in their normalization, attack and compare them, and reproduce the
    paper.
    """


def main(args: list[str] | None = None) -> None:
    """Run the command line: exit code 0, 1 (the work failed) or 2 (usage); no traceback for a user's mistake."""
    try:
        # Outside standalone mode click returns an exit code rather than raising it.
        code = bnvuln.main(args, prog_name="bnvuln", standalone_mode=False) or 0
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except UsageError as error:
        click.echo(f"Error: {error}", err=True)
        code = 2
    except BnvulnError as error:
        click.echo(f"Error: {error}", err=True)
        code = 1
    except MemoryError as error:
        click.echo(f"Error: memory is exhausted ({error}): take fewer images with --limit, or smaller ones", err=True)
        code = 1
    except OSError as error:  # a folder that cannot be written, a full disk
        click.echo(f"Error: {error.filename or 'file system'}: {error.strerror or error}", err=True)
        code = 1
    except (KeyboardInterrupt, click.Abort):
        click.echo(
            "Interrupted. What was finished is kept; run the same command again to go on "
            "(a training goes on after its last checkpoint).",
            err=True,
        )
        code = 130
    sys.exit(code)


if __name__ == "__main__":
    main()
