"""`bnvuln transfer`: adversarial examples of one model, tested on others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import cloup

from bn_vuln.config import Attack

from . import options as o
from . import targets as t

EXAMPLES = """
  bnvuln transfer runs/SRC runs/DST --eps 8/255
  bnvuln transfer runs/A runs/B runs/C --matrix   # from each to all
  bnvuln transfer runs/SRC model.keras --data mnist --input-scale 0-255 \\
      --limit 1000 --json
"""
_OUT = "Folder of the tables and heat maps.  [default: RUNS/report with --matrix, else none]"


@o.command("transfer", EXAMPLES)
@cloup.argument("models", nargs=-1, required=True, type=t.PATH, metavar="SRC DST [DST ...]")
@t.model_options("limit")
@t.attack_options(Attack)
@cloup.option_group(
    "Results",
    cloup.option("--matrix", is_flag=True, help="Every model as a source and a target."),
    t.runs_option,
    cloup.option("--out", type=o.OUTPUT_FOLDER, help=_OUT),
)
@t.computing_options
def command(models: tuple[Path, ...], matrix: bool, runs: Path, out: Path | None, **options: Any) -> None:
    """Attack SRC (a run or any .keras classifier), and evaluate its adversarial examples on SRC and on each DST.

    The transfer rate is the share that the target misclassifies among the examples that both classify correctly when
    clean and that are adversarial for the source. The models must take the same images. Options of external models
    hold for all of them. Without --keep, bim and pgd go on to their last iterate. The other iterative attacks stop at
    the first one that is adversarial for SRC: near SRC's boundary, where examples transfer less.
    """
    from bn_vuln import api
    from bn_vuln.reporting import transfer as report

    shared = t.asked({**options, "runs": runs})
    transfers = api.transfer(models, attack=t.attack_fields(options), matrix=matrix, **shared)
    folder = out or (runs / "report" if matrix else None)
    files = report.write(transfers, folder) if folder else []
    if options["as_json"]:
        o.print_json({**report.to_json(transfers), "files": [str(path) for path in files]})
    else:
        click.echo(report.text(transfers, matrix=matrix))
    for path in files[-1:]:
        o.log(f"report: {path}")
    folders = list(dict.fromkeys(path if path.is_dir() else runs for path in models))
    o.closing(", ".join(map(str, folders)), f"bnvuln show {o.quote(models[-1])}", quiet=options["quiet"])
