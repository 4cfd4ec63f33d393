"""The experiments and suites that ship with bnvuln, by name; the path of a YAML file works as well."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from importlib import resources
from pathlib import Path

from bn_vuln import config, data
from bn_vuln.config import Experiment, Plan, Scale, Suite, digest, nearest
from bn_vuln.errors import ConfigError, UsageError
from bn_vuln.runtime import backend

KINDS = ("paper", "beyond", "commands")  # folders of experiments


def folder(kind: str) -> Path:
    """Return the folder of the configs of a kind: one of `KINDS`, `suites` or `plans`."""
    return Path(str(resources.files("bn_vuln.configs"))) / kind


def names(kind: str = "paper") -> list[str]:
    """Return the names of the configs of a kind.

    Args:
        kind: `paper`, experiments of the paper; `beyond`, other experiments; `commands`, those behind commands of their
            own; `suites`; or `plans`.
    """
    return sorted(path.stem for path in folder(kind).glob("*.yaml"))


def _find(name: str, kinds: Iterable[str], noun: str) -> Path:
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        if not path.exists():
            raise UsageError(f"{name}: no such file")
        return path
    found = {known: kind for kind in kinds for known in names(kind)}
    if name not in found:
        offered = [known for known, kind in found.items() if kind != "commands"]
        raise UsageError(f"{noun} {name!r} is not known (known: {', '.join(offered)}){nearest(name, offered)}")
    return folder(found[name]) / f"{name}.yaml"


def experiment(name: str, scale: Scale = "full", overrides: Iterable[str] = ()) -> Experiment:
    """Load an experiment; on other backends than TensorFlow its initial kernels are drawn by NumPy.

    Args:
        name: Its name, or the path of its YAML file.
        scale: `full`, or one of its scales.
        overrides: Assignments `key=value` on top.

    Raises:
        UsageError: There is no such experiment or file.
        ConfigError: The file, the scale or an override is wrong, or a file has the name of a shipped experiment.
    """
    path = _find(name, KINDS, "experiment")
    found = _with_data_digest(config.load_experiment(path, scale, overrides))
    for shipped in (folder(kind) / f"{found.name}.yaml" for kind in KINDS):
        if shipped.exists() and shipped.read_bytes() != path.read_bytes():
            raise ConfigError(
                f"{path.name}: name: {found.name!r} is a shipped experiment, whose results would mix with these; "
                "choose another name"
            )
    if backend.name() == "tensorflow":
        return found
    return found.model_copy(update={"base": {**found.base, "init_generator": "numpy"}})


def _with_data_digest(experiment: Experiment) -> Experiment:
    """Return the experiment with the digest of the user data that its base names, if it names such."""
    source = experiment.base.get("data")
    if not source:
        return experiment
    fields = {"name": source} if isinstance(source, str) else source
    checked = data.with_digest(config.validate(config.Data, fields, f"{experiment.name}: data"))
    if checked.digest is None:
        return experiment
    fields = {**fields, "name": checked.name, "digest": checked.digest}
    return experiment.model_copy(update={"base": {**experiment.base, "data": fields}})


def file_stem(experiment: Experiment) -> str:
    """Return the name, without suffix, of the files of an experiment in a results folder.

    It is NAME-SCALE, followed by a hash of the overrides if there are any.
    """
    parts = [experiment.name, experiment.scale]
    return "-".join([*parts, digest(list(experiment.overrides))[:6]] if experiment.overrides else parts)


def command(experiment: Experiment) -> str:
    """Return the command that makes an experiment again; one that does not ship is named by its file."""
    shipped = [name for kind in KINDS for name in names(kind)]
    name = experiment.name if experiment.name in shipped else f"{experiment.name}.yaml"
    scale = "" if experiment.scale == "full" else f" --scale {experiment.scale}"
    overrides = "".join(f" --set {shlex.quote(override)}" for override in experiment.overrides)
    return f"bnvuln reproduce {name}{scale}{overrides}"


def suite(name: str) -> Suite:
    """Load a suite of perturbations, by name or by the path of its YAML file."""
    path = _find(name, ("suites",), "suite")
    return config.validate(Suite, config.read_yaml(path), path.name)


def plan(name: str) -> Plan:
    """Load a plan, by name or by the path of its YAML file."""
    path = _find(name, ("plans",), "plan")
    return config.validate(Plan, config.read_yaml(path), path.name)
