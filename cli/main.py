"""`bnvuln`: the group of commands. Each command's module is imported only when it is asked for."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Sequence

import click
import cloup

from bn_vuln.errors import BnvulnError, explain
from bn_vuln.runtime import signals
from bn_vuln.runtime.escapes import visible
from bn_vuln.version import __version__

from . import options as o

# Section of the help -> name -> one line of help.
COMMANDS = {
    "Models": {
        "audit": "How fragile is a model, why, and what to do about it.",
        "mend": "Change the normalization of a trained model.",
        "train": "Train one model, with or without batch norm.",
        "attack": "Attack a run, or any Keras classifier.",
        "evaluate": "Clean accuracy, noise, attacks and measurements in one table.",
        "compare": "Paired differences between two models.",
        "transfer": "Measure how adversarial examples transfer between models.",
    },
    "Experiments": {
        "reproduce": "Reproduce a table or figure, beside the paper's values.",
        "scale-input": "The pair of Table 6 (or 7) at one input width.",
        "config": "JSON schemas for editors, and every field of a config.",
    },
    "Data and results": {
        "data": "List, inspect and prepare data sets.",
        "weights": "Published weights of nets for ImageNet.",
        "status": "What runs in a results folder, and what is left.",
        "list": "List the models of a results folder.",
        "show": "Show a run or an external model with its records.",
        "verify": "Check every file of a folder, and repair it.",
        "report": "Write tables and figures from existing records.",
        "publish": "Pack finished experiments for review.",
        "unpack": "Unpack published results into a working folder.",
    },
}
# Commands that are not in a module of their own name.
MODULES = {
    **dict.fromkeys(("attack", "evaluate", "transfer", "audit", "mend"), "measure"),
    **dict.fromkeys(("compare", "status", "list", "show", "report", "publish", "unpack", "verify"), "results"),
    "scale-input": "reproduce",
}
# What ends a command without a traceback.
EXPECTED = (click.ClickException, click.Abort, BnvulnError, MemoryError, OSError, KeyboardInterrupt)


class Commands(cloup.Group):
    """A group of commands that are imported when they are asked for; until then there are their names and texts."""

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Import the module of a command and return the command."""
        if name not in self.commands:
            return None
        found = vars(importlib.import_module(f"{__package__}.{MODULES.get(name, name)}")).values()
        return next(one for one in found if isinstance(one, click.Command) and one.name == name)


@cloup.group(
    cls=Commands,
    sections=[
        cloup.Section(title, [cloup.Command(name, short_help=text) for name, text in commands.items()])
        for title, commands in COMMANDS.items()
    ],
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start: bnvuln audit MODEL --data DATA, or bnvuln reproduce table6 --scale quick. Each command has examples "
    "in its own --help.",
)
@cloup.version_option(__version__, prog_name="bnvuln")
def bnvuln() -> None:
    """Audit image classifiers and mend them; measure what batch norm costs them in robustness.

    Train matched pairs of models that differ only in their normalization, attack and compare them, and reproduce the
    paper.
    """


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line: exit code 0, 1 (the work failed), 2 (usage) or 128 + a signal that ended it.

    There is no traceback for a user's mistake. With --json each failure prints its one object too, unless the command
    has printed one: `{"error": MESSAGE, "exit_code": CODE}`.

    Args:
        args: Words of the command line; None: those of this process, which ends with it.
    """
    if args is None:
        signals.remember()
    words, printed = sys.argv[1:] if args is None else list(args), o.Printed()
    try:
        with signals.raised():
            # Outside standalone mode click returns an exit code rather than raising it.
            code = bnvuln.main(words, prog_name="bnvuln", standalone_mode=False, obj=printed) or 0
    except SystemExit:  # click's, where no one reads standard output any more
        raise
    except BaseException as error:
        code, message = _tell(error)
        if "--json" in words and not printed.json:
            with contextlib.suppress(OSError):
                o.print_json({"error": message, "exit_code": code})
        if not isinstance(error, EXPECTED):
            raise
    if sys.stdout is not None:  # as it is where it was closed
        _flush()
    sys.exit(code)


def _tell(error: BaseException) -> tuple[int, str]:
    """Print the line of an error that is expected, for people; return the exit code, and what is said."""
    with contextlib.suppress(OSError):  # a terminal that was closed
        if isinstance(error, click.ClickException):
            error.show()
        elif isinstance(error, EXPECTED):
            code, message = explain(error)
            click.echo(visible(message if code > 2 else f"Error: {message}"), err=True)
    if isinstance(error, click.ClickException):
        return error.exit_code, error.format_message()
    return explain(error) if isinstance(error, EXPECTED) else (1, f"{type(error).__name__}: {error}")


def _flush() -> None:
    """Write what standard output holds; where that fails, nothing is left that the interpreter would try as it ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
