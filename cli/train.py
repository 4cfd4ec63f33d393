"""`bnvuln train`: one model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bn_vuln.errors import BnvulnError, UsageError

from . import options as o
from .cell_config import cell_config
from .train_options import train_options

if TYPE_CHECKING:
    from bn_vuln.config import Cell
    from bn_vuln.records import TrainingRecord

EXAMPLES = """
Examples:

\b
  bnvuln train --arch mlp                       # with batch norm, c = 1e-5
  bnvuln train --arch mlp --no-bn               # its pair, without
  bnvuln train --arch mlp --c 0.1 --epochs 10   # a larger c
  bnvuln train --arch mlp --normalization l2 --weight-decay 0.01
  bnvuln train --arch linear --no-bn --limit 5000 --out runs/linear
  bnvuln train --arch vgg11 --no-bn             # minutes an epoch on a CPU
  bnvuln train --arch vgg8 --data fashion_mnist --optimizer adamw --lr 1e-3 \\
      --schedule cosine --warmup 1
  bnvuln train --arch vgg8 --data cifar10 --crop-pad 4 --flip
  bnvuln train --adversarial pgd --adversarial-eps 0.1 --select last
  bnvuln train --arch deep --depth 25 --data my.npz
                # user data: arrays x_train, y_train, x_test, y_test

After an interruption the same command goes on from the last checkpoint.
"""
_result = o.option("Results")


@click.command("train", cls=o.GroupedCommand, epilog=EXAMPLES)
@train_options
@_result("--out", type=o.OUTPUT_FOLDER, help="Run folder.  [default: runs/ID]")
@_result("--force", is_flag=True, help="Train again a run that is finished; replace another run in --out.")
@_result("--resume/--no-resume", default=None, help="Go on from the run's checkpoint.  [default: where it has one]")
@_result(
    "--checkpoint-every",
    type=click.IntRange(min=1),
    metavar="EPOCHS",
    help="Epochs between checkpoints; there always is one after the last epoch.  [default: a minute apart, and one on "
    "Ctrl-C]",
)
@_result("--deterministic", is_flag=True, help="Bit-identical runs on one machine; may be slower.")
@_result("--tensorboard", is_flag=True, help="Event files in RUN/tensorboard.")
@_result(
    "--dry-run",
    is_flag=True,
    help="Print the resolved config, checked against its data where they are prepared; train and download nothing.",
)
@o.data_options
@o.strategy_option
@o.output_options
def command(out: Path | None, dry_run: bool, as_json: bool, verbose: bool, **options: Any) -> None:
    """Train one model.

    Writes a run folder: config.yaml, model.keras, history.csv, training.json. A finished run of the same config
    is not trained again; an interrupted one goes on from its last checkpoint.
    """
    o.set_up(verbose)
    cell = cell_config(options, dry_run=dry_run)
    from bn_vuln import api, config
    from bn_vuln.training import settled

    if dry_run:
        if not api.check_data(cell):
            o.log(f"{cell.data.name} is not prepared here, so the config could not be checked against it")
        o.print_json(config.to_plain(cell)) if as_json else click.echo(config.to_yaml(cell), nl=False)
        return
    cell = settled(cell)
    folder = out or api.RUNS / config.digest(config.identity_of(cell))
    record = _finished(cell, folder, options) or _train(cell, folder, options)
    if as_json:
        o.print_json({"run": str(folder), **record.model_dump(mode="json")})
    else:
        click.echo(_summary(folder, record))
    run = o.quote(folder)
    steps = (
        [f"bnvuln attack {run} --eps 8/255", f"bnvuln evaluate {run}"]
        if record.state == "trained"
        else [f"bnvuln show {run}"]
    )
    o.closing(folder, *steps, quiet=options["quiet"])


def _finished(cell: Cell, folder: Path, options: o.Options) -> TrainingRecord | None:
    """Return the record of a training that is finished, unless it is to be replaced."""
    from bn_vuln import records
    from bn_vuln.training import check_folder

    if options["force"]:
        return None
    check_folder(cell, folder)
    record = records.read_training(folder)
    if record is not None:
        o.log(f"{folder} is finished already (--force trains it again)")
    return record


def _train(cell: Cell, folder: Path, options: o.Options) -> TrainingRecord:
    from bn_vuln import api, records
    from bn_vuln.runtime import backend

    force, resume = options["force"], options["resume"]
    if resume and (force or not (folder / "checkpoint.npz").exists()):
        raise UsageError(f"--resume: {folder} has no checkpoint" + (" after --force" if force else ""))
    with records.locked(folder) as acquired:
        if not acquired:
            raise BnvulnError(f"{folder} is being worked on by another process (see {folder / records.LOCK})")
        if force:
            records.clear_run(folder)
        if options["deterministic"]:
            backend.make_deterministic(cell.seed)
        return api.train(
            cell,
            folder,
            resume=resume is not False,
            checkpoint_every=options["checkpoint_every"],
            tensorboard=options["tensorboard"],
            strategy=options["strategy"],
            progress=o.progress(options["quiet"]),
        ).record


def _summary(folder: Path, record: TrainingRecord) -> str:
    if record.state == "failed":
        kept = f" (epoch {record.best_epoch} of {record.epochs} is kept)" if record.best_epoch else ""
        remedy = "try another --lr, more --epochs, or --select last where few validation images choose the epoch"
        return f"failed to train{kept}: {record.reason}\n{remedy}\nrun: {folder}"
    accuracy = f"validation accuracy {100 * (record.validation_accuracy or 0):.2f}%"
    if not record.epochs:
        return f"{accuracy} (nothing to train)\nrun: {folder}"
    return (
        f"{accuracy} (epoch {record.best_epoch} of {record.epochs}), {record.parameters:,} parameters, "
        f"{record.images_per_second:,.0f} images/s\nrun: {folder}"
    )
