"""`bnvuln mend`: a changed copy of a trained model, with its accuracies before and after."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import cloup
from cloup.constraints import AnySet, If, require_all

from bn_vuln.auditing.mend_request import Threat
from bn_vuln.auditing.options import AuditOptions
from bn_vuln.config import Mend

from . import options as o
from . import targets as t

EXAMPLES = """
  bnvuln mend --from-audit audits/model -o mended.keras   # what it advises
  bnvuln mend model.keras --data folder:photos --reestimate -o mended.keras
  # c + 0.1 times the median variance, in two layers
  bnvuln mend model.keras --data folder:photos --relative-c 0.1 \\
      --layers bn_1,bn_2 --reestimate -o mended.keras
  # c = 1, and an epoch of training afterwards
  bnvuln mend model.keras --data mnist --c 1 --finetune 1 -o mended.keras
"""
_AUDIT = "Make the change that an audit advises first. Model, data and eps are those of the audit."
_OUT = "The mended model, never the original; FILE.md beside it says what was done."
_HIDDEN = ("batch_size", "momentum", "weight_decay", "seed")
_OF_TRAINING = ("lr", *_HIDDEN, "adversarial", "adversarial_steps")


@o.command("mend", EXAMPLES)
@cloup.argument("model", required=False, type=t.PATH, metavar="[MODEL]")
@t.model_options()
@cloup.option_group(
    "Change",
    o.fields(Mend, "c", "relative_c", "layers", "keep_gain", "reestimate"),
    cloup.option("--from-audit", type=o.FOLDER, help=_AUDIT),
)
@cloup.option_group(
    "Fine-tuning",
    o.fields(Mend, "--finetune=finetune.epochs", "finetune.lr", epochs="none"),
    o.fields(Mend, "--adversarial=finetune.adversarial.eps"),
    o.setting("finetune.batch_size=32"),
)
@o.fields(Mend, *(f"finetune.{name}" for name in _HIDDEN), hidden=True)
@o.fields(Mend, "--adversarial-steps=finetune.adversarial.steps", hidden=True)
@cloup.option_group("Before and after", o.fields(AuditOptions, "limit"), o.fields(Threat, "ord", "eps", "noise"))
@cloup.option_group(
    "Results",
    cloup.option("-o", "--out", type=o.OUTPUT_FILE, required=True, metavar="FILE.keras", help=_OUT),
    cloup.option("--force", is_flag=True, help="Overwrite what is there."),
)
@o.data_options
@o.measuring_output_options
@cloup.constraint(If(AnySet(*_OF_TRAINING), then=require_all), ["finetune"])
@cloup.constraint(If("adversarial_steps", then=require_all), ["adversarial"])
def command(model: Path | None, from_audit: Path | None, out: Path, force: bool, **options: Any) -> None:
    """Make a changed copy of a trained model, and measure both under strong attacks.

    MODEL is a run, a .keras or .h5 file, or keras.applications:NAME. The copy is a plain Keras model of the same
    architecture, input and output. It is fitted on the training split where the data have one, else on images that
    before and after are not measured on.
    """
    from bn_vuln import api
    from bn_vuln.reporting.models import mended_text

    threat, changes = o.given(Threat), o.given(Mend)
    if "adversarial" in changes.get("finetune", {}):
        changes["finetune"]["adversarial"]["ord"] = threat.get("ord", "inf")
    o.override(changes, options["overrides"], Mend)
    how = t.asked(options) | o.given(AuditOptions) | threat
    result = api.mend(model, mend=changes, out=out, from_audit=from_audit, force=force, command=t.shell(), **how)
    mended = result.mended
    o.print_json(mended.model_dump(mode="json")) if options["as_json"] else click.echo(mended_text(mended))
    if not options["quiet"]:
        o.log(f"model: {out}\ncard: {out.with_suffix('.md')}")
