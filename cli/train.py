"""`bnvuln train`: one cell."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args

import click

from . import options as o
from .adversarial import adversarial_fields, adversarial_options

data, model, norm = o.option("Data"), o.option("Model"), o.option("Normalization")
training, result = o.option("Training"), o.option("Result")

EXAMPLES = """
Examples:

\b
  bnvuln train --arch mlp                            # with batch norm, c = 1e-5
  bnvuln train --arch mlp --no-bn                    # its pair, without
  bnvuln train --arch mlp --c 0.1 --epochs 10        # a larger c
  bnvuln train --arch mlp --normalization l2 --weight-decay 0.01
  bnvuln train --arch linear --no-bn --limit 5000 --out runs/linear
  bnvuln train --arch vgg11 --no-bn                  # a convolutional net: minutes an epoch on a CPU
  bnvuln train --arch vgg8 --data fashion_mnist --optimizer adamw --lr 1e-3 --schedule cosine --warmup 1
  bnvuln train --arch vgg8 --data cifar10 --crop-pad 4 --flip
  bnvuln train --arch mlp --adversarial pgd --adversarial-eps 0.1 --select last
  bnvuln train --arch deep --depth 25 --data my.npz  # user data: x_train, y_train, x_test, y_test

After an interruption the same command goes on from the last checkpoint.
"""


@click.command("train", cls=o.GroupedCommand, epilog=EXAMPLES)
@data(
    "--data",
    "dataset",
    default="mnist",
    show_default=True,
    metavar="NAME",
    help="mnist, toy, another data set by name (bnvuln data list), FILE.npz, or folder:PATH.",
)
@data("--width", type=int, help="Image width in pixels, >= the native one (bilinear).  [default: native]")
@data("--limit", type=int, help="Train on N examples.  [default: all]")
@data("--balanced", is_flag=True, help="Equally many of each class, where there is a --limit.")
@data("--classes", type=o.INTEGERS, help="These classes alone (numbers), e.g. 3,7.  [default: all]")
@data(
    "--subset-seed",
    older=["--draw"],
    type=click.Choice(["fixed", "seed"]),
    help="--limit takes others for each seed.  [default: fixed]",
)
@data("--validation", type=int, default=5000, show_default=True, help="Examples held out to choose the epoch.")
@model(
    "--arch",
    default="mlp",
    show_default=True,
    metavar="NAME",
    help="Architecture: linear, mlp, deep, vgg8, vgg11, vgg13, vgg16, vgg19, resnet20, resnet32, resnet44, resnet56, "
    "resnet110, wrn, nearest_centroid.",
)
@model("--hidden", type=o.INTEGERS, help="Hidden units of the mlp.  [default: two of half the input dimension]")
@model("--depth", type=int, help="Hidden layers of deep, or layers of wrn (6 n + 4).  [default: 10; wrn: 28]")
@model("--widening", type=int, help="Widening factor of wrn.  [default: 10]")
@model("--units", type=int, help="Units of each layer of deep.  [default: 384]")
@model(
    "--normalized", type=o.INTEGERS, help="Hidden layers (from 0) of the mlp that get the normalization.  [default: 0]"
)
@model("--one-logit", is_flag=True, help="linear, two classes: one output w x + b instead of two.")
@model(
    "--init",
    metavar="NAME",
    help="Initialization: torch, he, zeros (linear).  [default: torch; deep and convolutional: he]",
)
@model("--no-standardize", is_flag=True, help="The model takes pixels as they are.")
@norm(
    "--normalization",
    default="batch",
    show_default=True,
    metavar="NAME",
    help="batch, none, l2 (none plus --weight-decay), group, layer; for convolutional nets instance, ws_group (weight "
    "standardization and group), frn (filter response); for residual nets fixup.",
)
@norm("--no-bn", is_flag=True, help="The same as --normalization none.")
@norm("--c", type=o.NUMBER, help="The constant c under the square root.  [default: 1e-5; frn: 1e-6]")
@norm("--groups", type=int, help="Groups of channels of group and ws_group.  [default: 8]")
@norm("--bn-momentum", type=o.NUMBER, help="Weight of BN's old statistics.  [default: 0.9]")
@norm("--no-affine", is_flag=True, help="BN without gamma and beta.")
@norm("--synchronized", is_flag=True, help="BN statistics over all replicas.")
@training("--epochs", type=int, help="Epochs.  [default: 20; convolutional: 5]")
@training("--batch-size", type=int, help="Examples a step, over all devices.  [default: 128]")
@training("--optimizer", metavar="NAME", help="sgd, adam, adamw.  [default: sgd]")
@training("--lr", type=o.NUMBER, help="Learning rate.  [default: 0.01]")
@training("--momentum", type=o.NUMBER, help="Momentum of sgd.  [default: 0; convolutional: 0.9]")
@training("--nesterov", is_flag=True, help="Nesterov's momentum.")
@training("--betas", type=o.NUMBERS, help="Decay rates of adam and adamw.  [default: 0.9,0.999]")
@training("--schedule", metavar="NAME", help="constant, step (--lr-drops), cosine.  [default: constant]")
@training("--warmup", type=o.NUMBER, help="Epochs in which the rate climbs to --lr.  [default: 0]")
@training("--label-smoothing", type=o.NUMBER, help="Share of the target spread over all classes.  [default: 0]")
@training("--lr-drops", type=o.INTEGERS, help="Epochs (from 0) at which the rate is multiplied by --lr-drop-factor.")
@training("--lr-drop-factor", type=o.NUMBER, default=0.1, show_default=True, help="Factor of --lr-drops.")
@training(
    "--weight-decay",
    type=o.NUMBER,
    default=0.0,
    help="lambda w is added to gradients (adamw: decoupled).  [default: 0]",
)
@training(
    "--decay-on", type=click.Choice(["kernels", "all"]), default="kernels", show_default=True, help="What decays."
)
@training(
    "--select",
    type=click.Choice(["best", "last"]),
    default="best",
    show_default=True,
    help="Epoch kept: best by validation.",
)
@training("--crop-pad", type=int, metavar="N", help="Train on random crops, with N black pixels (e.g. 4) around.")
@training("--flip", is_flag=True, help="Train on images of which a random half is flipped, left and right.")
@training("--seed", type=int, default=0, show_default=True, help="Seed of initial weights, order and augmentation.")
@adversarial_options
@result("--out", type=o.FOLDER, help="Run folder.  [default: runs/ID]")
@result("--force", is_flag=True, help="Train again even if this run is finished; replace another run in --out.")
@result("--resume/--no-resume", default=None, help="Go on from the run's checkpoint.  [default: where it has one]")
@result(
    "--checkpoint-every",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="EPOCHS",
    help="Epochs between checkpoints; after the last one there always is one.",
)
@result("--deterministic", is_flag=True, help="Equal bits in every run on one machine; may be slower.")
@result("--tensorboard", is_flag=True, help="Write event files to RUN/tensorboard.")
@result("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Any field of the config, e.g. train.epochs=3.")
@result(
    "--dry-run",
    is_flag=True,
    help="Print the resolved config, checked against its data where they are prepared; run and download nothing.",
)
@o.strategy_option
@o.data_options
@o.output_options
def command(
    out: Path | None, force: bool, dry_run: bool, as_json: bool, quiet: bool, verbose: bool, **given: Any
) -> None:
    """Train one model.

    Writes a run folder: config.yaml, model.keras, history.csv, training.json. A finished run of the same config
    is not trained again; an interrupted one goes on from its last checkpoint.
    """
    o.set_up(verbose)
    cell = _cell(given, dry_run)
    from bn_vuln import config

    if dry_run:
        _check(cell)
        o.print_json(config.to_plain(cell)) if as_json else click.echo(config.to_yaml(cell), nl=False)
        return
    from bn_vuln import data
    from bn_vuln.api import RUNS

    cell = cell.model_copy(update={"data": data.with_digest(cell.data)})
    folder = out or RUNS / config.digest(config.identity_of(cell))
    record = _train(cell, folder, force, quiet, given)
    if as_json:
        o.print_json({"run": str(folder), **record.model_dump(mode="json")})
    else:
        click.echo(_summary(folder, record))


def _train(cell: Any, folder: Path, force: bool, quiet: bool, given: dict[str, Any]) -> Any:
    """The training record of the run folder, trained now or before."""
    from bn_vuln import api, records
    from bn_vuln.errors import BnvulnError, UsageError
    from bn_vuln.runtime import backend
    from bn_vuln.training import check_folder

    existing = records.read_training(folder)
    if not force:
        check_folder(cell, folder)
        if existing is not None:
            o.say(f"{folder} is finished already (--force trains it again)")
            return existing
    if given["resume"] and (force or not (folder / "checkpoint.npz").exists()):
        raise UsageError(f"--resume: {folder} has no checkpoint" + (" after --force" if force else ""))
    with records.locked(folder) as mine:
        if not mine:
            raise BnvulnError(f"{folder} is being worked on by another process (see {folder}/lock.json)")
        if force:
            records.clear_run(folder)
        if given["deterministic"]:
            backend.make_deterministic(cell.seed)
        return api.train(
            cell,
            folder,
            resume=given["resume"] is not False,
            checkpoint_every=given["checkpoint_every"],
            tensorboard=given["tensorboard"],
            strategy=given["strategy"],
            progress=o.progress(quiet),
        ).record


def _check(cell: Any) -> None:
    """Refuse in a dry run what the training would refuse, where the data are here."""
    from bn_vuln import api

    if not api.check_data(cell):
        o.say(f"{cell.data.name} is not prepared here, so the config could not be checked against it")


def _cell(given: dict[str, Any], dry_run: bool) -> Any:
    """Options -> a validated cell; a dry run prepares no data for it."""
    from bn_vuln import config, data
    from bn_vuln.errors import UsageError

    normalization, arch = _normalization(given), _arch(given)
    train = _given(given, "epochs", "batch_size", "optimizer", "lr", "momentum", "betas", "warmup", "label_smoothing")
    train |= {"nesterov": True} if given["nesterov"] else {}
    train |= _augment(given) | adversarial_fields(given)
    plain = {
        "data": {
            "name": given["dataset"],
            "width": given["width"],
            "validation": given["validation"],
            **_given(given, "limit", "classes", "subset_seed"),
            **({"balanced": True} if given["balanced"] else {}),
        },
        "arch": arch,
        **_given(given, "init"),
        **({"standardize": False} if given["no_standardize"] else {}),
        "normalization": normalization,
        "weight_decay": given["weight_decay"],
        "decay_on": given["decay_on"],
        "train": {**train, "schedule": _schedule(given), "select": given["select"]},
        "seed": given["seed"],
    }
    for assignment in given["overrides"]:
        key, value = config.parse_assignment(assignment)
        if key.split(".")[0] not in config.Cell.model_fields:
            raise UsageError(
                f"--set {assignment}: unknown key{config.nearest(key.split('.')[0], config.Cell.model_fields)}"
            )
        config.apply_override(plain, key, value)
    _refuse_idle(config.validate(config.Cell, plain, "train"))  # before data are looked for
    if plain["data"]["width"] is None:
        # Written out, so that the run is the same cell as an experiment's that states the width.
        name = plain["data"]["name"]
        plain["data"]["width"] = (
            data.describe_dataset(name)["shape"][1] if dry_run else data.dataset_info(name).shape[1]
        )
    return config.validate(config.Cell, plain, "train")


def _refuse_idle(cell: Any) -> None:
    """Raise `UsageError` for settings that can have no effect. The config itself takes them: experiments shorten their
    epochs with --scale and --set, and configs of runs stay readable."""
    from bn_vuln.errors import UsageError

    data, epochs = cell.data, cell.train.epochs
    late = [drop for drop in getattr(cell.train.schedule, "epochs", ()) if drop >= epochs]
    if late:
        raise UsageError(
            f"--lr-drops: epoch {late[0]} never begins: of {epochs} epochs, counted from 0, the last is {epochs - 1}"
        )
    if data.subset_seed == "seed" and data.limit is None and data.name != "toy":  # whose points are drawn
        raise UsageError("--subset-seed seed needs a --limit: all examples are the same for every seed")


def _arch(given: dict[str, Any]) -> dict[str, Any]:
    """The architecture's config. Raises `UsageError` for an option that belongs to another one."""
    from bn_vuln import config

    fields = _given(given, "hidden", "normalized", "depth", "widening", "units")
    fields |= {"one_logit": True} if given["one_logit"] else {}
    _refuse_foreign("arch", given["arch"], fields, config.Arch)
    return {"name": given["arch"], **fields}


def _refuse_foreign(option: str, name: str, fields: Iterable[str], union: Any) -> None:
    """Raise `UsageError` for fields that `name`, which `option` chose of a union of configs, has not, but others have;
    a name that none of them has is left to the config."""
    from bn_vuln.errors import UsageError

    models = get_args(get_args(union)[0])  # of Annotated[A | B, ...]
    kinds = {kind: model for model in models for kind in get_args(model.model_fields["name"].annotation)}
    for field in fields if name in kinds else ():
        if field not in kinds[name].model_fields:
            owners = " or ".join(kind for kind, model in kinds.items() if field in model.model_fields)
            raise UsageError(f"--{field.replace('_', '-')} is for --{option} {owners}, not for {name}")


def _augment(given: dict[str, Any]) -> dict[str, Any]:
    """The field `augment` of a training's config, where --crop-pad or --flip is given."""
    pad, flip = given["crop_pad"], given["flip"]
    return {"augment": {"pad": pad or 0, "flip": flip}} if flip or pad is not None else {}


def _schedule(given: dict[str, Any]) -> Any:
    """The schedule: step where --lr-drops says so."""
    from bn_vuln.errors import UsageError

    name, drops = given["schedule"], given["lr_drops"]
    explicit = click.get_current_context().get_parameter_source("lr_drop_factor")
    if explicit is click.core.ParameterSource.COMMANDLINE and not drops:
        raise UsageError("--lr-drop-factor needs --lr-drops EPOCHS,...")
    if (drops and name not in (None, "step")) or (name == "step" and not drops):
        raise UsageError("--schedule step and --lr-drops EPOCHS,... need one another")
    return {"name": "step", "epochs": drops, "factor": given["lr_drop_factor"]} if drops else name or "constant"


def _normalization(given: dict[str, Any]) -> dict[str, Any] | str:
    from bn_vuln import config
    from bn_vuln.errors import UsageError

    name = "none" if given["no_bn"] else given["normalization"]
    explicit = click.get_current_context().get_parameter_source("normalization")
    if given["no_bn"] and given["normalization"] != "none" and explicit is click.core.ParameterSource.COMMANDLINE:
        raise UsageError(f"--no-bn and --normalization {given['normalization']} contradict each other")
    fields = _some(momentum=given["bn_momentum"], affine=False if given["no_affine"] else None)
    fields |= {"synchronized": True} if given["synchronized"] else {}
    if fields and name != "batch":
        raise UsageError(f"--bn-momentum, --no-affine and --synchronized belong to batch norm, not to {name!r}")
    if given["c"] is not None and name in ("none", "l2", "fixup"):
        raise UsageError(f"--c is the constant of a normalization, which {name!r} has not")
    fields |= _given(given, "c", "groups")
    _refuse_foreign("normalization", "none" if name == "l2" else name, fields, config.Normalization)
    return {"name": name, **fields}


def _given(given: dict[str, Any], *names: str) -> dict[str, Any]:
    """Those of these options that were given."""
    return _some(**{name: given[name] for name in names})


def _some(**fields: Any) -> dict[str, Any]:
    """The fields that were given."""
    return {key: value for key, value in fields.items() if value is not None}


def _summary(folder: Path, record: Any) -> str:
    if record.state == "failed":
        return f"failed to train: {record.reason}\nrun: {folder}"
    if not record.epochs:
        return f"validation accuracy {100 * record.validation_accuracy:.2f}% (nothing to train)\nrun: {folder}"
    return (
        f"validation accuracy {100 * record.validation_accuracy:.2f}% (epoch {record.best_epoch} of {record.epochs}), "
        f"{record.parameters:,} parameters, {record.images_per_second:,.0f} images/s\nrun: {folder}"
    )
