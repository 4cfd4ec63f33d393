"""`bnvuln audit`: how fragile a model is, why, and what to do about it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import cloup

from bn_vuln.auditing.options import AuditOptions
from bn_vuln.evaluation.settings import EvaluateOptions

from . import options as o
from . import targets as t

EXAMPLES = """
  bnvuln audit model.keras --data folder:photos   # one folder a class
  bnvuln audit with_bn.keras without_bn.keras --data images.npz   # a pair
  # in continuous integration: exit code 1 if it is not met
  bnvuln audit model.keras --data images.npz --require 'strong 2/255 >= .4'
  bnvuln mend model.keras --from-audit audits/model -o mended.keras
"""
_REQUIRE = f"{AuditOptions.model_fields['require'].description} Exit code 1 unless it holds. Several are allowed."
_OUT = "Folder of the page; an audit that was interrupted goes on there.  [default: audits/MODEL]"


@o.command("audit", EXAMPLES)
@cloup.argument("model", type=t.PATH, metavar="MODEL")
@cloup.argument("second", required=False, type=t.PATH, metavar="[MODEL2]")
@t.model_options()
@cloup.option_group(
    "Audit",
    o.fields(AuditOptions, "limit", "ord", "max_clean_cost", "time", "thorough", time="10m; thorough: none"),
    cloup.option("--require", multiple=True, metavar="CONDITION", help=_REQUIRE),
    o.setting("ord=2"),
)
@o.fields(EvaluateOptions, "strategy", hidden=True)
@cloup.option_group("Results", cloup.option("--out", type=o.OUTPUT_FOLDER, help=_OUT))
@o.data_options
@o.measuring_output_options
def command(model: Path, second: Path | None, out: Path | None, **options: Any) -> None:
    """Audit a classifier: is it fragile, does its normalization have to do with it, and what can be done?

    MODEL is a run, a .keras or .h5 file, or keras.applications:NAME. Measures noise, corruptions and strong attacks,
    looks at every normalization layer, tries what can be changed without training, and writes one page. With MODEL2
    both are audited as a pair.
    """
    from bn_vuln import api
    from bn_vuln.auditing.findings import folder_name

    how = {"require": options["require"], **o.given(AuditOptions)}
    o.override(how, options["overrides"], AuditOptions)
    how = how if how.get("thorough") else {"time": "10m", **how}
    folder = out or Path("audits") / folder_name([one for one in (model, second) if one is not None])
    result = api.audit(model, second=second, out=folder, command=t.shell(), **t.asked(options) | how)
    o.print_json(result.findings.model_dump(mode="json")) if options["as_json"] else click.echo(str(result))
    if not options["quiet"]:
        o.log(f"page: {result.page}")
    if not result.met:
        click.get_current_context().exit(1)
