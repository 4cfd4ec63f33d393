"""The config of a cell, made of the options of `bnvuln train`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, get_args

from bn_vuln.errors import UsageError

from . import options as o

if TYPE_CHECKING:
    from bn_vuln.config import Cell
    from bn_vuln.typing import Plain

# Fields of adversarial training by attack. The others are the defaults of the config, which are PGD's.
_ADVERSARIAL: dict[str, Plain] = {
    "pgd": {},
    "bim": {"random_start": False},
    "fgsm": {"random_start": False, "steps": 1},
}
_ADVERSARIAL_FIELDS = ("eps", "ord", "unit", "box", "steps", "step_size")


def cell_config(options: o.Options, *, dry_run: bool) -> Cell:
    """Return the config of the cell that the options describe; a dry run prepares no data for it.

    Raises:
        UsageError: Options contradict each other, or have no effect.
        ConfigError: A value is wrong.
    """
    from bn_vuln import config, data

    fields = _fields(options)
    for assignment in options["overrides"]:
        key, value = config.parse_assignment(assignment)
        config.reject_unknown_key(assignment, key, config.Cell)
        config.apply_override(fields, key, value)
    _reject_ineffective(config.validate(config.Cell, fields, "train"))  # before data are looked for
    fields["data"]["validation"] = _validation(**fields["data"])
    if fields["data"]["width"] is None:
        # Written out, so that the run is the same cell as an experiment's that states the width.
        name = fields["data"]["name"]
        shape = data.describe_dataset(name)["shape"] if dry_run else data.dataset_info(name).shape
        fields["data"]["width"] = shape[1]
    return config.validate(config.Cell, fields, "train")


def _fields(options: o.Options) -> Plain:
    """Return the fields of a cell's config."""
    data = {"name": options["dataset"], "width": options["width"]}
    data |= _given(options, "validation", "limit", "classes", "subset_seed") | _flags(options, "balanced")
    train = _given(options, "epochs", "batch_size", "optimizer", "lr", "momentum", "betas", "warmup", "label_smoothing")
    train |= _flags(options, "nesterov") | _adversarial(options)
    if options["flip"] or options["crop_pad"] is not None:
        train["augment"] = {"pad": options["crop_pad"] or 0, "flip": options["flip"]}
    return {
        "data": data,
        "arch": _arch(options),
        **_given(options, "init"),
        **({"standardize": False} if options["no_standardize"] else {}),
        "normalization": _normalization(options),
        "weight_decay": options["weight_decay"],
        "decay_on": options["decay_on"],
        "train": {**train, "schedule": _schedule(options), "select": options["select"]},
        "seed": options["seed"],
    }


def _validation(name: str, validation: int | None = None, **_: object) -> int:
    """Return the number of validation examples, which is written out into the config.

    Where none is given, it is that of the config; of user data of which it would leave nothing, a tenth.

    Raises:
        UsageError: It is given for data that have a validation split.
    """
    from bn_vuln import config, data

    default = config.Data(name=name).validation
    if not data.is_user_data(name):
        return default if validation is None else validation
    info = data.dataset_info(name)
    published, n = info.sizes.get("validation"), info.sizes.get("train", 0)
    if published and validation is not None:
        raise UsageError(
            f"--validation: {info.label} has a validation split of {published} images, which is taken; leave the "
            "option out"
        )
    return published or validation or (default if n > default else max(n // 10, 1))


def _given(options: o.Options, *names: str) -> Plain:
    """Return those of these options that were given."""
    return {name: options[name] for name in names if options[name] is not None}


def _flags(options: o.Options, *names: str) -> Plain:
    """Return those of these flags that were given."""
    return {name: True for name in names if options[name]}


def _reject_ineffective(cell: Cell) -> None:
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


def _arch(options: o.Options) -> Plain:
    """Return the config of the architecture; raise `UsageError` for an option of another one."""
    from bn_vuln import config

    fields = _given(options, "hidden", "normalized", "depth", "widening", "units") | _flags(options, "one_logit")
    _reject_fields_of_others("arch", options["arch"], fields, config.Arch)
    return {"name": options["arch"], **fields}


def _reject_fields_of_others(option: str, name: str, fields: Iterable[str], union: Any) -> None:
    """Raise `UsageError` for fields that only other members of a union of configs have than `name`.

    A name that none of them has is left to the config.
    """
    models = get_args(get_args(union)[0])  # of Annotated[A | B, ...]
    by_name = {name: model for model in models for name in get_args(model.model_fields["name"].annotation)}
    for field in fields if name in by_name else ():
        if field not in by_name[name].model_fields:
            owners = " or ".join(owner for owner, model in by_name.items() if field in model.model_fields)
            raise UsageError(f"{o.flag_name(field)} is for --{option} {owners}, not for {name}")


def _adversarial(options: o.Options) -> Plain:
    """Return the field `adversarial`, where --adversarial is given."""
    name = options["adversarial"]
    values = {field: options[f"adversarial_{field}"] for field in _ADVERSARIAL_FIELDS}
    fields = {field: value for field, value in values.items() if value is not None}
    if name is None and fields:
        raise UsageError(f"{o.flag_name(f'adversarial_{next(iter(fields))}')} needs --adversarial, e.g. pgd")
    if name is None:
        return {}
    if "eps" not in fields:
        raise UsageError(f"--adversarial {name} needs --adversarial-eps, e.g. 8/255")
    if name == "fgsm" and {"steps", "step_size"} & set(fields):
        raise UsageError(
            "--adversarial fgsm is one step of size eps: leave --adversarial-steps and --adversarial-step-size out, "
            "or use bim"
        )
    return {"adversarial": {**_ADVERSARIAL[name], **fields}}


def _schedule(options: o.Options) -> Plain | str:
    """Return the schedule: step where --lr-drops is given."""
    name, drops = options["schedule"], options["lr_drops"]
    if o.is_given("lr_drop_factor") and not drops:
        raise UsageError("--lr-drop-factor needs --lr-drops EPOCHS,...")
    if (drops and name not in (None, "step")) or (name == "step" and not drops):
        raise UsageError("--schedule step requires --lr-drops EPOCHS,..., and the reverse")
    return {"name": "step", "epochs": drops, "factor": options["lr_drop_factor"]} if drops else name or "constant"


def _normalization(options: o.Options) -> Plain:
    """Return the config of the normalization; raise `UsageError` for an option of another one."""
    from bn_vuln import config

    name = "none" if options["no_bn"] else options["normalization"]
    if options["no_bn"] and options["normalization"] != "none" and o.is_given("normalization"):
        raise UsageError(f"--no-bn and --normalization {options['normalization']} contradict each other")
    fields = {"momentum": options["bn_momentum"]} if options["bn_momentum"] is not None else {}
    fields |= {"affine": False} if options["no_affine"] else {}
    fields |= _flags(options, "synchronized")
    if fields and name != "batch":
        raise UsageError(f"--bn-momentum, --no-affine and --synchronized belong to batch norm, not to {name!r}")
    if options["c"] is not None and name in ("none", "l2", "fixup"):
        raise UsageError(f"--c needs a normalization with a constant; {name!r} has none")
    fields |= _given(options, "c", "groups")
    _reject_fields_of_others("normalization", "none" if name == "l2" else name, fields, config.Normalization)
    return {"name": name, **fields}
