"""The configs that ship with bnvuln: experiments by name, suites by name; a path to a YAML file works as well."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import resources
from pathlib import Path

from bn_vuln import config, data
from bn_vuln.config import Experiment, Scale, Suite, digest, expand_name, nearest
from bn_vuln.errors import UsageError

KINDS = ("paper", "beyond", "commands")  # folders of experiments


def _folder(name: str) -> Path:
    return Path(str(resources.files("bn_vuln.configs"))) / name


def names(kind: str = "paper") -> list[str]:
    """The names of the shipped experiments of the paper (`paper`), beyond it (`beyond`), behind commands of their own
    (`commands`), or of the suites (`suites`)."""
    return sorted(path.stem for path in _folder(kind).glob("*.yaml"))


def _find(name: str, kinds: Iterable[str], what: str) -> Path:
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        if not path.exists():
            raise UsageError(f"{name}: no such file")
        return path
    found = {known: kind for kind in kinds for known in names(kind)}
    if name not in found:
        raise UsageError(f"{what} {name!r} is not known (known: {', '.join(found)}){nearest(name, found)}")
    return _folder(found[name]) / f"{name}.yaml"


def experiment(name: str, scale: Scale = "full", overrides: Iterable[str] = ()) -> Experiment:
    """An experiment by name, or by the path of its YAML file. Raises `UsageError` or `ConfigError`."""
    return _pinned(config.load_experiment(_find(name, KINDS, "experiment"), scale, overrides))


def _pinned(experiment: Experiment) -> Experiment:
    """The experiment with user data, if its base names such, identified by their content."""
    given = experiment.base.get("data")
    if not given:
        return experiment
    plain = data.with_digest(config.validate(config.Data, expand_name(given), f"{experiment.name}: data"))
    if plain.digest is None:
        return experiment
    fields = {**expand_name(given), "name": plain.name, "digest": plain.digest}
    return experiment.model_copy(update={"base": {**experiment.base, "data": fields}})


def file_stem(experiment: Experiment) -> str:
    """The name of an experiment's files in a results folder: NAME-SCALE, and a hash of its overrides if it has any."""
    parts = [experiment.name, experiment.scale]
    return "-".join([*parts, digest(list(experiment.overrides))[:6]] if experiment.overrides else parts)


def suite(name: str) -> Suite:
    """A suite of perturbations by name, or by the path of its YAML file."""
    path = _find(name, ("suites",), "suite")
    return config.validate(Suite, config.read_yaml(path), path.name)
