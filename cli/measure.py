"""`bnvuln attack`, `evaluate`, `transfer`, `audit` and `mend`: the commands that measure models."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import cloup
from cloup.constraints import AnySet, If, require_all

from bn_vuln.auditing.mend_request import Threat
from bn_vuln.auditing.options import AuditOptions
from bn_vuln.config import Attack, Mend, MinimumNorm
from bn_vuln.config.options import OptionDecorator, fields, given, hidden_fields, override
from bn_vuln.evaluation.settings import EvaluateOptions, ModelOptions
from bn_vuln.experiments import catalog
from bn_vuln.typing import Plain

from . import options as o

ATTACK = """
  bnvuln attack --eps 8/255                   # PGD on the newest run
  bnvuln attack runs/ID --attack bim --eps 0.1 --unit standardized \\
      --box none --steps 100 --step-size 1e-3 --keep last
  bnvuln attack runs/ID --attack strong --eps 0.1 --limit 1000
  # the robustness curve; the smallest eps of each image; its distance
  bnvuln attack runs/ID --eps 8/255 --eps-grid 1/255,2/255,4/255
  bnvuln attack runs/ID --eps 0.2 --set min_eps_tolerance=1/255
  bnvuln attack runs/ID --attack carlini_wagner --limit 500
  # external models; adversarial images in a file
  bnvuln attack model.keras --data images.npz --save adversarial.npz
  bnvuln attack keras.applications:MobileNetV2 --data folder:photos \\
      --class-names imagenet_class_index.json
"""
EVALUATE = """
  bnvuln evaluate --suite quick                 # the newest run
  bnvuln evaluate runs/ID --suite paper
  bnvuln evaluate runs/ID --suite mechanism     # tilting angle and spectrum
  bnvuln evaluate runs/ID --split validation    # leaves the test set alone
  bnvuln evaluate model.keras --data images.npz --json
"""
TRANSFER = """
  bnvuln transfer runs/SRC runs/DST --eps 8/255
  bnvuln transfer runs/A runs/B runs/C --matrix   # from each to all
  bnvuln transfer runs/SRC model.keras --data mnist --input-scale 0-255 \\
      --limit 1000 --json
"""
AUDIT = """
  bnvuln audit model.keras --data folder:photos   # one folder a class
  bnvuln audit with_bn.keras without_bn.keras --data images.npz   # a pair
  # in continuous integration: exit code 1 if it is not met
  bnvuln audit model.keras --data images.npz --require 'strong 2/255 >= .4'
  bnvuln mend model.keras --from-audit audits/model -o mended.keras
"""
MEND = """
  bnvuln mend --from-audit audits/model -o mended.keras   # what it advises
  bnvuln mend model.keras --data folder:photos --reestimate -o mended.keras
  # c + 0.1 times the median variance, in two layers
  bnvuln mend model.keras --data folder:photos --relative-c 0.1 \\
      --layers bn_1,bn_2 --reestimate -o mended.keras
  # c = 1, and an epoch of training afterwards
  bnvuln mend model.keras --data mnist --c 1 --finetune 1 -o mended.keras
"""
_SAVE = "File for images, labels, which of them are classified correctly, and distances where there are any."
_SUITES = f"Suite: {', '.join(catalog.names('suites'))}, or a YAML file of perturbations and measurements."
_OF_SUITE = dict.fromkeys(("split", "limit", "bn_statistics"), "the suite's")
_suite_option = cloup.option("--suite", default="quick", show_default=True, metavar="NAME", help=_SUITES)
_TRANSFER_OUT = "Folder of a page of all tables, transfer.md.  [default: none]"
_REQUIRE = f"{AuditOptions.model_fields['require'].description} Exit code 1 unless it holds. Several are allowed."
_AUDIT_OUT = "Folder of the page; an audit that was interrupted goes on there.  [default: audits/MODEL]"
_FROM_AUDIT = "Make the change that an audit advises first. Model, data and eps are those of the audit."
_MEND_OUT = "The mended model, never the original; FILE.md beside it says what was done."
_OF_TRAINING = ("lr", "batch_size", "momentum", "weight_decay", "seed", "adversarial", "adversarial_steps")
PATH = click.Path(path_type=Path)
_SHOWN = ("input_scale", "resize", "output", "class_names", "weights")

target_argument = cloup.argument("model", required=False, type=PATH, metavar="[RUN or MODEL]")
computing_options = o.options(
    fields(EvaluateOptions, "batch_size", hidden=True),
    cloup.option_group("Devices", fields(EvaluateOptions, "strategy")),
    o.measuring_options,
)
runs_option = cloup.option("--runs", type=o.OUTPUT_FOLDER, default="runs", show_default=True, help="Results folder.")


def model_options(*names: str, split: str = "test; all of data without one", **defaults: Any) -> OptionDecorator:
    """Return a decorator that adds the options of what is evaluated and, of external models, how it is called."""
    others = [name for name in ModelOptions.model_fields if name not in _SHOWN]
    return o.options(
        cloup.option_group("Data", fields(EvaluateOptions, "--data=dataset", "split", *names, split=split, **defaults)),
        cloup.option_group("Model of your own", fields(EvaluateOptions, *_SHOWN)),
        fields(EvaluateOptions, "--from-probabilities=output:softmax", *others, hidden=True),
    )


def attack_options(*attacks: type[Attack | MinimumNorm], more: tuple[str, ...] = ()) -> OptionDecorator:
    """Return a decorator that adds the options of attacks, which are the fields of these configs; a few are shown."""
    shown = ("attack", "steps", "step_size", "keep", *more)
    return o.options(
        hidden_fields(*attacks),
        cloup.option_group("Threat model", fields(*attacks, "eps", "ord", "unit", "box", eps="8/255", ord="inf")),
        cloup.option_group("Attack", fields(*attacks, *shown, attack="pgd"), o.setting("restarts=5")),
    )


def attack_fields(options: o.Options) -> Plain:
    """Return the fields of the attack that the running command was given."""
    plain = {"attack": "pgd", **given(Attack)}
    override(plain, options["overrides"], Attack, MinimumNorm)
    return plain


def asked(options: o.Options) -> Plain:
    """Return the options of the running command that the functions of `api` share."""
    return {**given(EvaluateOptions), "root": options.get("runs"), "progress": o.progress(options["quiet"])}


def target_of(path: Path | None, runs: Path) -> Path:
    """Return the target, by default the newest run."""
    from bn_vuln import api

    if path is None:
        path = api.newest_run(runs)
        o.log(f"the newest run is {path}")
    return path


def shell() -> str:
    """Return the command line."""
    return shlex.join(["bnvuln", *sys.argv[1:]])


def finish(target: Path, folder: Path, options: o.Options, *found: Mapping[str, Any]) -> None:
    """Print records and measurements, with their flags, and say where they are and what to do next."""
    from bn_vuln.reporting import exports, tables

    if options["as_json"]:
        o.print_json(exports.records_to_json(target, *found))
    else:
        o.echo(tables.records_text(*found))
    name = o.quote(folder)
    o.closing(folder, f"bnvuln show {name}", f"bnvuln compare {name} OTHER", quiet=options["quiet"])


@o.command("attack", ATTACK)
@target_argument
@model_options("limit")
@attack_options(Attack, MinimumNorm, more=("eps_grid",))
@cloup.option_group(
    "Results",
    runs_option,
    fields(EvaluateOptions, "force", "checks"),
    cloup.option("--save", type=o.OUTPUT_FILE, metavar="FILE.npz", help=_SAVE),
)
@computing_options
def attack(model: Path | None, save: Path | None, **options: Any) -> None:
    """Attack a run or any Keras classifier; by default the newest run.

    MODEL is a .keras or .h5 file, keras.applications:NAME or pretrained:NAME. Records go into the run folder, or
    into RUNS/ID; what is recorded is not measured again, unless more is asked (--force, --save, --checks full).

    Every field of an attack is an option, also those that are not listed: `bnvuln config fields attack` has them all.
    """
    if save is not None and save.suffix != ".npz":
        raise click.BadParameter(f"{save}: expected a file name ending in .npz", param_hint="--save")
    from bn_vuln import api
    from bn_vuln.runtime.distribution import is_chief

    asked_attack, shared, target = attack_fields(options), asked(options), target_of(model, options["runs"])
    shared |= {"force": True} if save is not None else {}
    result = api.attack(target, attack=asked_attack, keep_images=save is not None, **shared)
    if save is not None and is_chief():
        result.save(save)
        o.log(f"saved {save}")
    finish(target, result.folder or options["runs"], options, result.records, {})


@o.command("evaluate", EVALUATE)
@target_argument
@cloup.option_group("Suite", _suite_option, o.setting("limit=100"))
@model_options("limit", "bn_statistics", **_OF_SUITE)
@cloup.option_group("Results", runs_option, fields(EvaluateOptions, "force", "checks"))
@computing_options
def evaluate(model: Path | None, suite: str, **options: Any) -> None:
    """Evaluate a run or any Keras classifier with a suite; by default the newest run.

    MODEL is a .keras or .h5 file, keras.applications:NAME or pretrained:NAME. Records go into the run folder, or
    into RUNS/ID; what is recorded is not measured again (--force does).
    """
    from bn_vuln import api
    from bn_vuln.evaluation.opening import folder_of

    catalog.suite(suite)  # before TensorFlow is started, so that mistakes show at once
    shared = asked(options)
    override(shared, options["overrides"], EvaluateOptions)
    target = target_of(model, options["runs"])
    classifier = api.open_classifier(target, **shared)
    found = api.evaluate(classifier, suite=suite, **shared)
    measured = api.measure(classifier, suite=suite, **shared)
    finish(target, folder_of(classifier, options["runs"]), options, found, measured)


@o.command("transfer", TRANSFER)
@cloup.argument("models", nargs=-1, required=True, type=PATH, metavar="SRC DST [DST ...]")
@model_options("limit")
@attack_options(Attack)
@cloup.option_group(
    "Results",
    cloup.option("--matrix", is_flag=True, help="Every model as a source and a target."),
    runs_option,
    cloup.option("--out", type=o.OUTPUT_FOLDER, help=_TRANSFER_OUT),
)
@computing_options
def transfer(models: tuple[Path, ...], matrix: bool, runs: Path, out: Path | None, **options: Any) -> None:
    """Attack SRC (a run or any .keras classifier), and evaluate its adversarial examples on SRC and on each DST.

    The transfer rate is the share that the target misclassifies among the examples that both classify correctly when
    clean and that are adversarial for the source. The models must take the same images. Options of external models
    hold for all of them. Without --keep, bim and pgd go on to their last iterate. The other iterative attacks stop at
    the first one that is adversarial for SRC: near SRC's boundary, where examples transfer less.
    """
    from bn_vuln import api
    from bn_vuln.reporting import transfer as report
    from bn_vuln.runtime.files import atomic_write

    shared = asked({**options, "runs": runs})
    transfers = api.transfer(models, attack=attack_fields(options), matrix=matrix, **shared)
    if out is not None:
        atomic_write(out / "transfer.md", report.markdown(transfers))
        o.log(f"report: {out / 'transfer.md'}")
    o.print_json(report.to_json(transfers)) if options["as_json"] else o.echo(report.text(transfers, matrix=matrix))
    folders = list(dict.fromkeys(path if path.is_dir() else runs for path in models))
    o.closing(", ".join(map(str, folders)), f"bnvuln show {o.quote(models[-1])}", quiet=options["quiet"])


@o.command("audit", AUDIT)
@cloup.argument("model", type=PATH, metavar="MODEL")
@cloup.argument("second", required=False, type=PATH, metavar="[MODEL2]")
@model_options()
@cloup.option_group(
    "Audit",
    fields(AuditOptions, "limit", "ord", "max_clean_cost", "time", "thorough", time="10m; thorough: none"),
    cloup.option("--require", multiple=True, metavar="CONDITION", help=_REQUIRE),
    o.setting("ord=2"),
)
@fields(EvaluateOptions, "strategy", hidden=True)
@cloup.option_group("Results", cloup.option("--out", type=o.OUTPUT_FOLDER, help=_AUDIT_OUT))
@o.measuring_options
def audit(model: Path, second: Path | None, out: Path | None, **options: Any) -> None:
    """Audit a classifier: is it fragile, does its normalization have to do with it, and what can be done?

    MODEL is a run, a .keras or .h5 file, keras.applications:NAME or pretrained:NAME. Measures noise, corruptions
    and strong attacks, looks at every normalization layer, tries what can be changed without training, and writes
    one page. With MODEL2 both are audited as a pair.
    """
    from bn_vuln import api
    from bn_vuln.auditing.findings import folder_name

    how = {"require": options["require"], **given(AuditOptions)}
    override(how, options["overrides"], AuditOptions)
    how = how if how.get("thorough") else {"time": "10m", **how}
    folder = out or Path("audits") / folder_name([one for one in (model, second) if one is not None])
    result = api.audit(model, second=second, out=folder, command=shell(), **asked(options) | how)
    o.print_json(result.findings.model_dump(mode="json")) if options["as_json"] else o.echo(str(result))
    if not options["quiet"]:
        o.log(f"page: {result.page}")
    if not result.met:
        click.get_current_context().exit(1)


@o.command("mend", MEND)
@hidden_fields(Mend, "finetune")
@cloup.argument("model", required=False, type=PATH, metavar="[MODEL]")
@model_options()
@cloup.option_group(
    "Change",
    fields(Mend, "c", "relative_c", "layers", "keep_gain", "reestimate"),
    cloup.option("--from-audit", type=o.FOLDER, help=_FROM_AUDIT),
)
@cloup.option_group(
    "Fine-tuning",
    fields(Mend, "--finetune=finetune.epochs", "finetune.lr", "--adversarial=finetune.adversarial.eps", epochs="none"),
    o.setting("finetune.batch_size=32"),
)
@fields(Mend, "--adversarial-steps=finetune.adversarial.steps", hidden=True)
@cloup.option_group("Before and after", fields(AuditOptions, "limit"), fields(Threat, "ord", "eps", "noise"))
@cloup.option_group(
    "Results",
    cloup.option("-o", "--out", type=o.OUTPUT_FILE, required=True, metavar="FILE.keras", help=_MEND_OUT),
    cloup.option("--force", is_flag=True, help="Overwrite what is there."),
)
@o.measuring_options
@cloup.constraint(If(AnySet(*_OF_TRAINING), then=require_all), ["finetune"])
@cloup.constraint(If("adversarial_steps", then=require_all), ["adversarial"])
def mend(model: Path | None, from_audit: Path | None, out: Path, force: bool, **options: Any) -> None:
    """Make a changed copy of a trained model, and measure both under strong attacks.

    MODEL is a run, a .keras or .h5 file, keras.applications:NAME or pretrained:NAME. The copy is a plain Keras
    model of the same architecture, input and output. It is fitted on the training split where the data have one,
    else on images that before and after are not measured on.
    """
    from bn_vuln import api
    from bn_vuln.reporting.models import mended_text

    threat, changes = given(Threat), given(Mend)
    if "adversarial" in changes.get("finetune", {}):
        changes["finetune"]["adversarial"]["ord"] = threat.get("ord", "inf")
    override(changes, options["overrides"], Mend)
    how = asked(options) | given(AuditOptions) | threat
    result = api.mend(model, mend=changes, out=out, from_audit=from_audit, force=force, command=shell(), **how)
    mended = result.mended
    o.print_json(mended.model_dump(mode="json")) if options["as_json"] else o.echo(mended_text(mended))
    if not options["quiet"]:
        o.log(f"model: {out}\ncard: {out.with_suffix('.md')}")
