"""`bnvuln attack`: one attack on one classifier."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import cloup

from bn_vuln.config import Attack, MinimumNorm
from bn_vuln.evaluation.settings import EvaluateOptions

from . import options as o
from . import targets as t

EXAMPLES = """
  bnvuln attack --eps 8/255                   # PGD on the newest run
  bnvuln attack runs/ID --attack bim --eps 0.1 --unit standardized \\
      --steps 100 --set box=none --set step_size=1e-3 --set keep=last
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
_SAVE = "File for images, labels, which of them are classified correctly, and distances where there are any."


@o.command("attack", EXAMPLES)
@t.target_argument
@t.model_options("limit")
@t.attack_options(Attack, MinimumNorm, more=("eps_grid",))
@cloup.option_group(
    "Results",
    t.runs_option,
    o.fields(EvaluateOptions, "force", "checks"),
    cloup.option("--save", type=o.OUTPUT_FILE, metavar="FILE.npz", help=_SAVE),
)
@t.computing_options
def command(model: Path | None, save: Path | None, **options: Any) -> None:
    """Attack a run or any Keras classifier; by default the newest run.

    MODEL is a .keras or .h5 file, or keras.applications:NAME. Records go into the run folder, or into RUNS/ID; what is
    recorded is not measured again, unless more is asked (--force, --save, --checks full).

    Every field of an attack is an option, also those that are not listed: `bnvuln config fields attack` has them all.
    """
    if save is not None and save.suffix != ".npz":
        raise click.BadParameter(f"{save}: expected a file name ending in .npz", param_hint="--save")
    from bn_vuln import api

    fields, shared, target = t.attack_fields(options), t.asked(options), t.target_of(model, options["runs"])
    shared |= {"force": True} if save is not None else {}
    result = api.attack(target, attack=fields, keep_images=save is not None, **shared)
    if save is not None:
        result.save(save)
        o.log(f"saved {save}")
    t.finish(target, result.folder or options["runs"], options, result.records, {})
