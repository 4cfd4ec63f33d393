"""`bnvuln transfer`: adversarial examples of one model, given to others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from . import options as o
from .attack import attack_options, resolve

what, result = o.option("What"), o.option("Result")

EXAMPLES = """
Examples:

\b
  bnvuln transfer runs/SRC runs/DST --eps 8/255              # PGD-20 on SRC; its examples on SRC and DST
  bnvuln transfer runs/A runs/B runs/C runs/D --matrix       # each of them attacked, given to all
  bnvuln transfer runs/SRC model.keras --data mnist --input-scale 0-255 --limit 1000 --json
"""


@click.command("transfer", cls=o.GroupedCommand, epilog=EXAMPLES)
@click.argument("models", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="SRC DST [DST ...]")
@what("--matrix", is_flag=True, help="Every model is a source and a target.")
@attack_options()
@result(
    "--runs",
    type=o.FOLDER,
    default="runs",
    show_default=True,
    help="Where a foreign model's records go.",
)
@result(
    "--out",
    type=o.FOLDER,
    help="Write the tables (Markdown) and heat maps (SVG, PNG) here.  [default: RUNS/report with --matrix, else none]",
)
@o.strategy_option
@o.batch_option
@o.data_options
@o.output_options
def command(
    models: tuple[Path, ...], matrix: bool, runs: Path, out: Path | None, as_json: bool, quiet: bool, verbose: bool,
    **given: Any,
) -> None:  # fmt: skip
    """Attack SRC (a run or any .keras classifier), and evaluate what was found on SRC and on each DST.

    Prints each target's accuracy on the source's adversarial examples, and the transfer rate: the share that fools the
    target among the examples that both classify correctly when clean and that fool the source. The models must take
    the same images. Options of foreign models hold for all of them. Records go into the targets' run folders; what is
    recorded is not done again.

    Without --keep, bim and pgd go on to their last point. The other iterative attacks stop at the first point that
    fools SRC, which leaves examples at SRC's boundary, where they transfer less.
    """
    o.set_up(verbose)
    if click.get_current_context().get_parameter_source("keep") is ParameterSource.DEFAULT:
        from bn_vuln.evaluation.transfer import default_fields

        given |= default_fields(given["name"])
    attack, evaluation = resolve(given)
    found = _run(models, attack, evaluation, runs, quiet, {"matrix": matrix, **given})
    from bn_vuln.reporting import transfer as report

    folder = out or (runs / "report" if matrix else None)
    files = report.write(found, folder) if folder else []
    if as_json:
        o.print_json({**report.to_json(found), "files": [str(path) for path in files]})
    else:
        _print(found, matrix)
    for path in files[-1:]:
        o.say(f"report: {path}")


def _run(models: tuple[Path, ...], attack: Any, evaluation: Any, runs: Path, quiet: bool, given: dict[str, Any]) -> Any:
    """The pairs that were asked for, measured or read."""
    from bn_vuln import api, data

    if given["dataset"] is not None:
        data.prepare(given["dataset"])  # before TensorFlow is started, so that what is missing is said at once
    foreign = o.foreign_options(given)
    if foreign and all(path.is_dir() for path in models):
        raise click.UsageError("these are runs of ours: --input-scale and --from-probabilities are for .keras files")
    return api.transfer(
        models, attack, matrix=given["matrix"], evaluation=evaluation, root=runs, fold=not given["no_fold"],
        strategy=given["strategy"], batch_size=given["batch_size"], progress=o.progress(quiet), **foreign,
    )  # fmt: skip


def _print(found: Any, matrix: bool) -> None:
    """The matrices, or one source's row of numbers, with what is wrong with them below."""
    import sys

    from rich.console import Console

    from bn_vuln.reporting import transfer as report

    tables = [report.matrix_table(found, q) for q in report.QUANTITIES] if matrix else [report.pairs_table(found)]
    # A file or a pipe has no width that a table would have to fit into.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 100_000)
    console.print(f"{report.where(found)}\n", markup=False, soft_wrap=True)
    for table in tables:
        console.print(report.terminal_table(table))
    for remark in report.remarks(found):
        console.print(remark, markup=False, soft_wrap=True)
