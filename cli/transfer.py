"""`bnvuln transfer`: adversarial examples of one model, tested on others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from . import options as o
from .attack_options import attack_config, attack_options
from .targets import api_options

if TYPE_CHECKING:
    from bn_vuln.evaluation.transfer import TransferResult

EXAMPLES = """
Examples:

\b
  # PGD-20 on SRC; its examples on SRC and DST
  bnvuln transfer runs/SRC runs/DST --eps 8/255
  # each of them attacked, given to all
  bnvuln transfer runs/A runs/B runs/C runs/D --matrix
  bnvuln transfer runs/SRC model.keras --data mnist --input-scale 0-255 \\
      --limit 1000 --json
"""
_result = o.option("Results")


@click.command("transfer", cls=o.GroupedCommand, epilog=EXAMPLES)
@click.argument("models", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="SRC DST [DST ...]")
@o.option("Model and data")("--matrix", is_flag=True, help="Every model as a source and a target.")
@attack_options()
@_result(
    "--runs", type=o.OUTPUT_FOLDER, default="runs", show_default=True, help="Folder of records of external models."
)
@_result(
    "--out",
    type=o.OUTPUT_FOLDER,
    help="Folder of a page of all tables, transfer.md.  [default: none]",
)
@o.data_options
@o.strategy_option
@o.batch_option
@o.output_options
def command(
    models: tuple[Path, ...], matrix: bool, runs: Path, out: Path | None, as_json: bool, verbose: bool, **options: Any
) -> None:
    """Attack SRC (a run or any .keras classifier), and evaluate its adversarial examples on SRC and on each DST.

    Prints each target's accuracy on the source's adversarial examples, and the transfer rate: the share that the
    target misclassifies among the examples that both classify correctly when clean and that are adversarial for the
    source. The models must take the same images. Options of external models hold for all of them. Records go into
    the targets' run folders; what is recorded is not done again.

    Without --keep, bim and pgd go on to their last iterate. The other iterative attacks stop at the first iterate that
    is adversarial for SRC, which leaves examples near SRC's boundary, where they transfer less.
    """
    o.set_up(verbose)
    from bn_vuln.reporting import transfer as report

    if not o.is_given("keep") and options["name"] in ("bim", "pgd"):
        options["keep"] = "last"
    transfers = _run(models, matrix, runs, options)
    if out is not None:
        from bn_vuln.runtime.files import atomic_write

        atomic_write(out / "transfer.md", report.markdown(transfers))
        o.log(f"report: {out / 'transfer.md'}")
    if as_json:
        o.print_json(report.to_json(transfers))
    else:
        _print(transfers, matrix)
    folders = list(dict.fromkeys(path if path.is_dir() else runs for path in models))
    o.closing(", ".join(map(str, folders)), f"bnvuln show {o.quote(models[-1])}", quiet=options["quiet"])


def _run(models: tuple[Path, ...], matrix: bool, runs: Path, options: o.Options) -> TransferResult:
    """Return the pairs of models, measured now or before."""
    from bn_vuln import api

    return api.transfer(models, attack=attack_config(options), matrix=matrix, **api_options(options, runs))


def _print(transfers: TransferResult, matrix: bool) -> None:
    """Print the matrices, or one source's row of numbers, with what is wrong with them below."""
    from bn_vuln.reporting import transfer as report
    from bn_vuln.reporting.tables import text_table, wrap

    click.echo("\n".join(wrap(report.describe(transfers), 80)))
    for table in report.matrices(transfers) if matrix else [report.pairs_table(transfers)]:
        click.echo(f"\n{table.title}\n{text_table(table)}")
    click.echo()
    for line in report.flag_lines(transfers):
        click.echo("\n".join(wrap(line, 80, indent="    ")))
