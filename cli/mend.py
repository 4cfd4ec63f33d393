"""`bnvuln mend`: a changed copy of a trained model, with its accuracies before and after."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from . import options as o
from .targets import api_options, data_option, external_model_options, split_option

if TYPE_CHECKING:
    from bn_vuln.auditing.mended import Mended

EXAMPLES = """
Examples:

\b
  # what an audit advises
  bnvuln mend --from-audit audits/model -o mended.keras
  # estimate the statistics of batch norm again
  bnvuln mend model.keras --data folder:photos --reestimate -o mended.keras
  # c + 0.1 times the median variance, in two layers
  bnvuln mend model.keras --data folder:photos --relative-c 0.1 \\
      --layers bn_1,bn_2 --reestimate -o mended.keras
  # c = 1, and an epoch of training afterwards
  bnvuln mend model.keras --data folder:photos --c 1 --finetune 1 \\
      --lr 1e-3 -o mended.keras
"""
_change_option, _training_option, _threat_option, _result_option = (
    o.option("Change"), o.option("Fine-tuning"), o.option("Before and after"), o.option("Results"),
)  # fmt: skip
_FINE_TUNING = ("lr", "batch_size", "momentum", "weight_decay", "adversarial", "adversarial_steps", "seed")
_OPTIONS = (
    data_option,
    split_option,
    _change_option("--c", type=o.NUMBER, help="The new c of the normalization layers, epsilon in Keras."),
    _change_option(
        "--relative-c",
        type=o.NUMBER,
        metavar="R",
        help="Instead: what is added to c, in medians of the layer's variances.",
    ),
    _change_option("--layers", metavar="NAME,NAME", help="Layers that get another c.  [default: all]"),
    _change_option(
        "--no-keep-gain",
        is_flag=True,
        help="Leave gamma as it is, so that all gains get smaller; without this the median channel keeps its gain.",
    ),
    _change_option(
        "--reestimate", is_flag=True, help="Estimate the statistics of batch norm again, from the front to the back."
    ),
    _change_option(
        "--from-audit",
        type=o.FOLDER,
        metavar="FOLDER",
        help="Make the change that an audit advises first. Model, data and eps are those of the audit.",
    ),
    _training_option("--finetune", type=click.IntRange(min=1), metavar="EPOCHS", help="Train it afterwards."),
    _training_option(
        "--lr", type=o.NUMBER, help="Learning rate of SGD, which falls along half a cosine.  [default: 0.001]"
    ),
    _training_option("--batch-size", type=click.IntRange(min=1), metavar="N", help="[default: 64]"),
    _training_option("--momentum", type=o.NUMBER, help="[default: 0.9]"),
    _training_option("--weight-decay", type=o.NUMBER, metavar="LAMBDA", help="Of kernels.  [default: 0]"),
    _training_option(
        "--adversarial",
        type=o.NUMBER,
        metavar="EPS",
        help="Train on adversarial images in this ball, in pixels and the norm of --ord.",
    ),
    _training_option(
        "--adversarial-steps", type=click.IntRange(min=1), metavar="N", help="Their steps of PGD.  [default: 10]"
    ),
    _training_option("--seed", type=click.IntRange(min=0), metavar="N", help="Of the order of images.  [default: 0]"),
    _threat_option(
        "--limit",
        type=click.IntRange(min=20),
        metavar="N",
        help="Images, in a fixed random order. Before and after are measured on half of them, on which nothing is "
        "fitted.  [default: 200]",
    ),
    _threat_option(
        "--ord", type=click.Choice(["inf", "2"]), help="Norm of the attack.  [default: inf, or the audit's]"
    ),
    _threat_option("--eps", type=o.NUMBER, help="Radius of its eps ball, in pixels.  [default: 8/255, or the audit's]"),
    _threat_option(
        "--noise", type=o.NUMBER, metavar="STD", help="Std of the noise, in pixels.  [default: 0.1, or the audit's]"
    ),
    *external_model_options,
    _result_option(
        "-o",
        "--out",
        type=o.OUTPUT_FILE,
        required=True,
        metavar="FILE.keras",
        help="The mended model, never the original; FILE.md beside it says what was done.",
    ),
    _result_option("--force", is_flag=True, help="Overwrite what is there."),
)


@click.command("mend", cls=o.GroupedCommand, epilog=EXAMPLES)
@click.argument("model", required=False, type=click.Path(path_type=Path), metavar="[MODEL]")
@o.options(_OPTIONS)
@o.data_options
@o.output_options
def command(model: Path | None, out: Path, as_json: bool, verbose: bool, **options: Any) -> None:
    """Make a changed copy of a trained model, and measure both under strong attacks.

    MODEL is a run, a .keras or .h5 file, or keras.applications:NAME. The copy is a plain Keras model of the same
    architecture, input and output. It is fitted on the training split where the data have one, else on images that
    before and after are not measured on.
    """
    o.set_up(verbose)
    from bn_vuln import api

    shared = api_options({name: value for name, value in options.items() if name != "batch_size"}, Path("runs"))
    result = api.mend(
        model,
        mend=_changes(options),
        out=out,
        from_audit=options["from_audit"],
        ord=options["ord"],
        eps=options["eps"],
        noise=options["noise"],
        command=shlex.join(["bnvuln", *sys.argv[1:]]),
        **{name: value for name, value in shared.items() if name != "root"},
    )
    if as_json:
        o.print_json(result.mended.model_dump(mode="json"))
    else:
        _print(result.mended)
    if not options["quiet"]:
        o.log(f"model: {out}\ncard: {out.with_suffix('.md')}")


def _changes(options: o.Options) -> dict[str, object]:
    """The fields of a change that were given."""
    fields = {name: options[name] for name in ("c", "relative_c") if options[name] is not None}
    if options["layers"] is not None:
        fields["layers"] = [name.strip() for name in options["layers"].split(",") if name.strip()]
    if options["no_keep_gain"]:
        fields["keep_gain"] = False
    if options["reestimate"]:
        fields["reestimate"] = True
    training = {name: options[name] for name in _FINE_TUNING if options[name] is not None}
    if options["finetune"] is None:
        if training:
            names = ", ".join(o.flag_name(name) for name in training)
            raise click.UsageError(f"{names}: of fine-tuning, which needs --finetune EPOCHS")
        return fields
    steps, eps = training.pop("adversarial_steps", None), training.pop("adversarial", None)
    if eps is not None:
        attack = {"ord": options["ord"] or "inf", "eps": eps}
        training["adversarial"] = attack | ({} if steps is None else {"steps": steps})
    elif steps is not None:
        raise click.UsageError("--adversarial-steps: needs --adversarial EPS")
    return {**fields, "finetune": {"epochs": options["finetune"], **training}}


def _print(found: Mended) -> None:
    """The table of before and after, with what it is of."""
    from bn_vuln.auditing.mended import changes
    from bn_vuln.reporting.tables import TextTable, text_table

    notes = (
        f"{found.n} images of {found.data} ({found.split}), none of which it was fitted on; paired differences",
        found.strong,
        *(f"flag: {flag}" for flag in found.flags),
    )
    title, rows = ". ".join(changes(found.mend)), [list(row) for row in found.rows]
    click.echo(f"{title}\n\n{text_table(TextTable(title, list(found.header), rows, notes=notes))}")
