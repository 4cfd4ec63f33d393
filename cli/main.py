"""`bnvuln`: the group of commands. Each command's module is imported only when it is asked for."""

from __future__ import annotations

import importlib
import sys

import click
import cloup

from bn_vuln.errors import BnvulnError, explain
from bn_vuln.version import __version__

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
        "list": "List the models of a results folder.",
        "show": "Show a run or an external model with its records.",
        "report": "Write tables and figures from existing records.",
        "publish": "Pack finished experiments for review.",
        "unpack": "Unpack published results into a working folder.",
    },
}
# Commands that are not in a module of their own name.
MODULES = {
    **dict.fromkeys(("attack", "evaluate", "transfer", "audit", "mend"), "measure"),
    **dict.fromkeys(("compare", "list", "show", "report", "publish", "unpack"), "results"),
    "scale-input": "reproduce",
}


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


def main(args: list[str] | None = None) -> None:
    """Run the command line: exit code 0, 1 (the work failed) or 2 (usage); no traceback for a user's mistake."""
    try:
        # Outside standalone mode click returns an exit code rather than raising it.
        code = bnvuln.main(args, prog_name="bnvuln", standalone_mode=False) or 0
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (BnvulnError, MemoryError, OSError, KeyboardInterrupt, click.Abort) as error:
        code, message = explain(error)
        click.echo(message, err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
