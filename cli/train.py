"""`bnvuln train`: one model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import cloup

from bn_vuln import config
from bn_vuln.config import Cell
from bn_vuln.config.options import fields, given, hidden_fields, override
from bn_vuln.errors import UsageError
from bn_vuln.evaluation.settings import EvaluateOptions
from bn_vuln.typing import Plain

from . import options as o

EXAMPLES = """
  bnvuln train --arch mlp                       # with batch norm, c = 1e-5
  bnvuln train --arch mlp --no-bn               # its pair, without
  bnvuln train --arch mlp --c 0.1 --epochs 10   # a larger c
  bnvuln train --arch mlp --normalization l2 --weight-decay 0.01
  bnvuln train --arch linear --no-bn --limit 5000 --out runs/linear
  bnvuln train --arch vgg11 --no-bn             # minutes an epoch on a CPU
  bnvuln train --arch vgg8 --data fashion_mnist --lr 1e-3 \\
      --set train.optimizer=adamw --set train.schedule=cosine
  bnvuln train --arch vgg8 --data cifar10 --crop-pad 4 --flip
  bnvuln train --adversarial pgd --adversarial-eps 0.1 --set train.select=last
  bnvuln train --arch deep --depth 25 --data my.npz
                # user data: arrays x_train, y_train, x_test, y_test

After an interruption the same command goes on from the last checkpoint.
"""
_ADVERSARIAL = [f"--adversarial-{name.replace('_', '-')}=train.adversarial.{name}"
                for name in ("eps", "ord", "unit", "box", "steps", "step_size")]  # fmt: skip
# Fields of adversarial training by attack. The others are the defaults of the config, which are PGD's.
ADVERSARIAL: dict[str, dict[str, object]] = {
    "pgd": {}, "bim": {"random_start": False}, "fgsm": {"random_start": False, "steps": 1}
}  # fmt: skip
_ATTACKS = (
    "Train on adversarial examples: pgd (random start), bim (starts at the image), fgsm (one step); with "
    "--adversarial-eps 8/255."
)
_CHECKPOINTS = "Epochs between checkpoints.  [default: a minute apart, one at the end and one on Ctrl-C]"
_DRY_RUN = "Print the resolved config, checked against its data where they are prepared; train and download nothing."
DEFAULTS: dict[str, Any] = {"data": "mnist", "arch": "mlp", "normalization": "batch"}


@o.command("train", EXAMPLES)
@hidden_fields(Cell, "data", "arch", "normalization", "train")
@cloup.option_group("Data", fields(Cell, "data", "data.width", "data.limit", **DEFAULTS))
@cloup.option_group(
    "Model", fields(Cell, "arch", "normalization", "--no-bn=normalization:none", "normalization.c", **DEFAULTS)
)
@cloup.option_group(
    "Training",
    fields(Cell, "train.epochs", "train.batch_size", "train.lr", "train.momentum", "weight_decay", "seed"),
    fields(Cell, "--crop-pad=train.augment.pad", "--flip=train.augment.flip", pad="none"),
    cloup.option("--adversarial", type=click.Choice([*ADVERSARIAL]), help=_ATTACKS),
    o.set_option,
)
@fields(Cell, "--bn-momentum=normalization.momentum", "--lr-drops=train.schedule.epochs", hidden=True)
@fields(Cell, "--lr-drop-factor=train.schedule.factor", *_ADVERSARIAL, hidden=True)
@cloup.option_group(
    "Run",
    cloup.option("--out", type=o.OUTPUT_FOLDER, help="Run folder.  [default: runs/ID]"),
    cloup.option("--force", is_flag=True, help="Train again a run that is finished; replace another run in --out."),
    cloup.option("--resume/--no-resume", default=None, help="Go on from the checkpoint.  [default: if there is one]"),
    cloup.option("--checkpoint-every", type=click.IntRange(min=1), metavar="EPOCHS", help=_CHECKPOINTS),
    cloup.option("--deterministic", is_flag=True, help="Bit-identical runs on one machine; may be slower."),
    cloup.option("--tensorboard", is_flag=True, help="Event files in RUN/tensorboard."),
    cloup.option("--dry-run", is_flag=True, help=_DRY_RUN),
    fields(EvaluateOptions, "strategy"),
)
@o.measuring_options
def command(out: Path | None, dry_run: bool, as_json: bool, quiet: bool, **options: Any) -> None:
    """Train one model.

    Writes a run folder: config.yaml, model.keras, history.csv, training.json. A finished run of the same config
    is not trained again; an interrupted one goes on from its last checkpoint.

    Every field of the config is an option, also those that are not listed: `bnvuln config fields cell` has them all.
    """
    cell = cell_config(options, dry_run=dry_run)
    from bn_vuln import api
    from bn_vuln.reporting.models import describe_training
    from bn_vuln.training import cell_id, settled

    if dry_run:
        if not api.check_data(cell):
            o.log(f"{cell.data.name} is not prepared here, so the config could not be checked against it")
        o.output(as_json, config.to_plain(cell), config.to_yaml(cell).rstrip())
        return
    cell = settled(cell)
    folder = out or api.RUNS / cell_id(cell)
    names = ("force", "resume", "checkpoint_every", "deterministic", "tensorboard")
    how = {**{name: options[name] for name in names}, **given(EvaluateOptions)}
    record = api.train(cell, folder, progress=o.progress(quiet), **how).record
    plain = {"run": str(folder), **record.model_dump(mode="json")}
    o.output(as_json, plain, f"{describe_training(record)}\nrun: {folder}")
    run = o.quote(folder)
    next_steps = [f"bnvuln attack {run} --eps 8/255", f"bnvuln evaluate {run}"]
    o.closing(folder, *(next_steps if record.state == "trained" else [f"bnvuln show {run}"]), quiet=quiet)


def cell_config(options: o.Options, *, dry_run: bool) -> Cell:
    """Return the config of the cell that the options describe; a dry run prepares no data for it.

    Raises:
        UsageError: Options contradict each other, or have no effect.
        ConfigError: A value is wrong.
    """
    from bn_vuln import data, training

    plain = given(Cell, DEFAULTS)
    plain["train"] = _with_shorthands(plain.get("train", {}), options["adversarial"])
    override(plain, options["overrides"], Cell)
    training.reject_ineffective(config.validate(Cell, plain, "train"))  # before data are looked for
    own: Any = config.expand_name(plain["data"])
    plain["data"] = own
    own["validation"] = data.validation_size(own["name"], own.get("validation"))
    if own.get("width") is None:  # written out, so that the run is the same cell as an experiment's that states it
        name = own["name"]
        own["width"] = (data.describe_dataset(name)["shape"] if dry_run else data.dataset_info(name).shape)[1]
    return config.validate(Cell, plain, "train")


def _with_shorthands(train: Plain, name: str | None) -> Plain:
    """Return the fields of the training with those that options stand for; `name` is that of adversarial training."""
    adversarial = train.get("adversarial", {})
    schedule: Any = config.expand_name(train.get("schedule", {}))
    if name is None and adversarial:
        raise UsageError(f"--adversarial-{next(iter(adversarial)).replace('_', '-')} needs --adversarial, e.g. pgd")
    if name is not None and "eps" not in adversarial:
        raise UsageError(f"--adversarial {name} needs --adversarial-eps, e.g. 8/255")
    if name == "fgsm" and {"steps", "step_size"} & {*adversarial}:
        raise click.UsageError("--adversarial fgsm is one step of size eps: leave its steps out, or use bim")
    if "epochs" not in schedule and (schedule.get("name") == "step" or "factor" in schedule):
        raise UsageError("--schedule step and --lr-drop-factor need --lr-drops EPOCHS,...")
    found: Plain = {"adversarial": ADVERSARIAL[name] | adversarial} if name is not None else {}
    found |= {"augment": {"pad": 0, "flip": False, **train["augment"]}} if "augment" in train else {}
    found |= {"schedule": {"name": "step", **schedule}} if "epochs" in schedule else {}
    return {**train, **found}
