"""`bnvuln train`: one model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import cloup

from bn_vuln import config
from bn_vuln.config.fields import fields_of
from bn_vuln.errors import BnvulnError, UsageError

from . import options as o

if TYPE_CHECKING:
    from bn_vuln.records import TrainingRecord
    from bn_vuln.typing import Plain

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
SHOWN = {  # options by group; every other field of a cell is a hidden option, too
    "Data": ("data", "data.width", "data.limit"),
    "Model": ("arch", "normalization", "normalization.c"),
    "Training": ("train.epochs", "train.batch_size", "train.lr", "train.momentum", "weight_decay", "seed"),
}
OTHER_NAMES = (
    "--bn-momentum=normalization.momentum",
    "data.subset_seed",
    "--lr-drops=train.schedule.epochs",
    "--lr-drop-factor=train.schedule.factor",
    *(f"--adversarial-{name}=train.adversarial.{name}" for name in ("eps", "ord", "unit", "box", "steps")),
    "--adversarial-step-size=train.adversarial.step_size",
)
DEFAULTS: dict[str, Any] = {"data": "mnist", "arch": "mlp", "normalization": "batch"}
# Fields of adversarial training by attack. The others are the defaults of the config, which are PGD's.
ADVERSARIAL: dict[str, dict[str, object]] = {
    "pgd": {}, "bim": {"random_start": False}, "fgsm": {"random_start": False, "steps": 1}
}  # fmt: skip


def _hidden() -> list[str]:
    """Return the fields of a cell that no option above has, named by the last part of their keys."""
    taken = {name.rpartition("=")[2] for name in (*OTHER_NAMES, *(name for names in SHOWN.values() for name in names))}
    keys = [field.key for field in fields_of(config.Cell) if not field.members or field.choices]
    return [key for key in keys if key not in taken and key.count(".") < 2 and not key.startswith("mend.")]


@o.command("train", EXAMPLES)
@o.options(*(cloup.option_group(title, o.fields(config.Cell, *names, **DEFAULTS)) for title, names in SHOWN.items()))
@cloup.option_group(
    "More of the training",
    cloup.option("--no-bn", is_flag=True, help="The same as --normalization none."),
    cloup.option(
        "--crop-pad", type=int, metavar="N", help="Random crops of images with N black pixels around (e.g. 4)."
    ),
    cloup.option("--flip", is_flag=True, help="Random flips of the images, left and right."),
    cloup.option(
        "--adversarial",
        type=click.Choice(list(ADVERSARIAL)),
        help="Train on adversarial examples: pgd (random start), bim (starts at the image), fgsm (one step); with "
        "--adversarial-eps 8/255.",
    ),
    o.set_option,
)
@o.fields(config.Cell, *OTHER_NAMES, *_hidden(), hidden=True)
@cloup.option_group(
    "Run",
    cloup.option("--out", type=o.OUTPUT_FOLDER, help="Run folder.  [default: runs/ID]"),
    cloup.option("--force", is_flag=True, help="Train again a run that is finished; replace another run in --out."),
    cloup.option("--resume/--no-resume", default=None, help="Go on from the checkpoint.  [default: if there is one]"),
    cloup.option(
        "--checkpoint-every",
        type=click.IntRange(min=1),
        metavar="EPOCHS",
        help="Epochs between checkpoints.  [default: a minute apart, one at the end and one on Ctrl-C]",
    ),
    cloup.option("--deterministic", is_flag=True, help="Bit-identical runs on one machine; may be slower."),
    cloup.option("--tensorboard", is_flag=True, help="Event files in RUN/tensorboard."),
    cloup.option(
        "--dry-run",
        is_flag=True,
        help="Print the resolved config, checked against its data where they are prepared; train and download nothing.",
    ),
    o.strategy_option,
)
@o.data_options
@o.measuring_output_options
def command(out: Path | None, dry_run: bool, as_json: bool, **options: Any) -> None:
    """Train one model.

    Writes a run folder: config.yaml, model.keras, history.csv, training.json. A finished run of the same config
    is not trained again; an interrupted one goes on from its last checkpoint.

    Every field of the config is an option, also those that are not listed: `bnvuln config fields cell` has them all.
    """
    cell = cell_config(options, dry_run=dry_run)
    from bn_vuln import api
    from bn_vuln.reporting.models import describe_training
    from bn_vuln.training import settled

    if dry_run:
        if not api.check_data(cell):
            o.log(f"{cell.data.name} is not prepared here, so the config could not be checked against it")
        o.print_json(config.to_plain(cell)) if as_json else click.echo(config.to_yaml(cell), nl=False)
        return
    cell = settled(cell)
    folder = out or api.RUNS / config.digest(config.identity_of(cell))
    record = _train(cell, folder, options)
    if as_json:
        o.print_json({"run": str(folder), **record.model_dump(mode="json")})
    else:
        click.echo(f"{describe_training(record)}\nrun: {folder}")
    run = o.quote(folder)
    next_steps = [f"bnvuln attack {run} --eps 8/255", f"bnvuln evaluate {run}"]
    o.closing(folder, *(next_steps if record.state == "trained" else [f"bnvuln show {run}"]), quiet=options["quiet"])


def _train(cell: config.Cell, folder: Path, options: o.Options) -> TrainingRecord:
    """Return the record of the training, made now unless the run is finished."""
    from bn_vuln import api, records
    from bn_vuln.runtime import backend
    from bn_vuln.training import check_folder

    force, resume = options["force"], options["resume"]
    if not force:
        check_folder(cell, folder)
        record = records.read_training(folder)
        if record is not None:
            o.log(f"{folder} is finished already (--force trains it again)")
            return record
    if resume and (force or not (folder / "checkpoint.npz").exists()):
        raise UsageError(f"--resume: {folder} has no checkpoint" + (" after --force" if force else ""))
    with records.locked(folder) as acquired:
        if not acquired:
            raise BnvulnError(f"{folder} is being worked on by another process (see {folder / records.LOCK})")
        if force:
            records.clear_run(folder)
        if options["deterministic"]:
            backend.make_deterministic(cell.seed)
        more = {name: options[name] for name in ("checkpoint_every", "tensorboard", "strategy")}
        progress = o.progress(options["quiet"])
        return api.train(cell, folder, resume=resume is not False, progress=progress, **more).record


def cell_config(options: o.Options, *, dry_run: bool) -> config.Cell:
    """Return the config of the cell that the options describe; a dry run prepares no data for it.

    Raises:
        UsageError: Options contradict each other, or have no effect.
        ConfigError: A value is wrong.
    """
    from bn_vuln import data

    if options["no_bn"] and options["normalization"] not in (None, "none"):
        raise UsageError(f"--no-bn and --normalization {options['normalization']} contradict each other")
    fields = o.given(config.Cell, DEFAULTS | ({"normalization": "none"} if options["no_bn"] else {}))
    _add_shorthands(fields, options)
    o.override(fields, options["overrides"], config.Cell)
    _reject_ineffective(config.validate(config.Cell, fields, "train"))  # before data are looked for
    own: Any = config.expand_name(fields["data"])
    fields["data"] = own
    own["validation"] = data.validation_size(own["name"], own.get("validation"))
    if own.get("width") is None:  # written out, so that the run is the same cell as an experiment's that states it
        name = own["name"]
        own["width"] = (data.describe_dataset(name)["shape"] if dry_run else data.dataset_info(name).shape)[1]
    return config.validate(config.Cell, fields, "train")


def _add_shorthands(fields: Plain, options: o.Options) -> None:
    """Add the fields that options stand for which are no fields themselves."""
    if options["crop_pad"] is not None or options["flip"]:
        config.apply_override(fields, "train.augment", {"pad": options["crop_pad"] or 0, "flip": options["flip"]})
    name, adversarial = options["adversarial"], fields.get("train", {}).get("adversarial")
    if name is None and adversarial:
        raise UsageError(f"--adversarial-{next(iter(adversarial)).replace('_', '-')} needs --adversarial, e.g. pgd")
    if name is not None and "eps" not in (adversarial or {}):
        raise UsageError(f"--adversarial {name} needs --adversarial-eps, e.g. 8/255")
    if name is not None:
        if name == "fgsm" and {"steps", "step_size"} & set(adversarial):
            raise click.UsageError("--adversarial fgsm is one step of size eps: leave its steps out, or use bim")
        adversarial.update(ADVERSARIAL[name] | adversarial)
    schedule = fields.get("train", {}).get("schedule")
    if schedule == "step" or (isinstance(schedule, dict) and "factor" in schedule and "epochs" not in schedule):
        raise UsageError("--schedule step and --lr-drop-factor need --lr-drops EPOCHS,...")
    if isinstance(schedule, dict) and "epochs" in schedule:
        schedule.setdefault("name", "step")


def _reject_ineffective(cell: config.Cell) -> None:
    """Raise `UsageError` for settings without any effect.

    The config itself accepts them: experiments shorten their epochs with --scale and --set, and configs of runs stay
    readable.
    """
    data, epochs = cell.data, cell.train.epochs
    late = [drop for drop in getattr(cell.train.schedule, "epochs", ()) if drop >= epochs]
    if late:
        raise UsageError(
            f"--lr-drops: epoch {late[0]} never begins: of {epochs} epochs, counted from 0, the last is {epochs - 1}"
        )
    if data.subset_seed == "seed" and data.limit is None and data.name != "toy":  # whose points depend on it
        raise UsageError("--subset-seed seed needs a --limit: all examples are the same for every seed")
