"""Short descriptions of config objects, for tables and messages."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter

from bn_vuln.config.arch import WideResNetArch
from bn_vuln.config.cell import Cell
from bn_vuln.config.loading import to_plain, validate
from bn_vuln.config.mend import CellMend
from bn_vuln.config.normalization import BatchNormalization
from bn_vuln.config.perturbation import (
    AWGN,
    PARAMETER_FREE,
    Attack,
    Box,
    Clean,
    Corruption,
    Evaluation,
    MinimumNorm,
    Perturbation,
    StandardizedBox,
    Transfer,
    format_eps,
)
from bn_vuln.config.types import Frozen
from bn_vuln.typing import Plain

# In the order that tables have them.
_BY_KIND: dict[str, type[Frozen]] = {
    "clean": Clean,
    "awgn": AWGN,
    "corruption": Corruption,
    "attack": Attack,
    "minimal": MinimumNorm,
    "transfer": Transfer,
}


def describe_cell(cell: Cell) -> str:
    """Describe a cell: mlp mnist 28 batch c=1e-05 lr 0.01, batch size 128, 20 epochs, seed 0.

    With published weights: vgg11_bn imagenet2012 224 torchvision weights.
    """
    norm, train = cell.normalization, cell.train
    arch, augment = cell.arch, train.augment
    if cell.weights:
        return f"{cell.pretrained_name} {cell.data.name} {cell.data.width or ''} {describe_weights(cell)}"
    parts = [f"wrn-{arch.depth}-{arch.widening}" if isinstance(arch, WideResNetArch) else arch.name]
    parts += [cell.data.name, str(cell.data.width or "")]
    parts += [norm.name + (f" c={norm.c:g}" if isinstance(norm, BatchNormalization) else "")]
    parts += [f"weight decay {cell.weight_decay:g}"] if cell.weight_decay else []
    if train.adversarial:
        a = train.adversarial
        steps = f"{a.steps} step{'s' if a.steps > 1 else ''}"
        parts += [f"adversarial {a.ord} eps {format_eps(a.eps)} {a.unit}, {steps},"]
    parts += [f"crop pad {augment.pad}" + ("" if augment.flip else ",")] if augment and augment.pad else []
    parts += ["flip,"] if augment and augment.flip else []
    parts += [f"lr {train.lr:g}, batch size {train.batch_size}, {train.epochs} epochs,"]
    parts += [f"{describe_mend(cell.mend)},"] if cell.mend else []
    return " ".join([*filter(None, parts), f"seed {cell.seed}"])


def describe_weights(cell: Cell) -> str:
    """Describe the weights of a net that is not trained here: torchvision weights, random weights seed 0."""
    return f"{cell.weights} weights" + (f" seed {cell.seed}" if cell.weights == "random" else "")


def describe_mend(mend: CellMend) -> str:
    """Describe what is changed of a trained model: mended c+0.1m statistics 1 epoch (m: median variance of a layer)."""
    c = f"c={mend.c:g}" if mend.c is not None else f"c+{mend.relative_c:g}m"
    parts = [c if mend.changes_c else "", f"in {','.join(mend.layers)}" if mend.layers else ""]
    parts += ["gains free" if mend.changes_c and not (mend.keep_gain or mend.retrain) else ""]
    parts += ["statistics" if mend.reestimate else ""]
    if mend.finetune is not None:
        parts += [f"{mend.finetune.epochs} epoch{'s' if mend.finetune.epochs > 1 else ''}"]
    return " ".join(["trained with" if mend.retrain else "mended", *filter(None, parts)])


def describe_perturbation(perturbation: Perturbation) -> str:
    """Describe a perturbation: bim inf eps 0.1 standardized, 100 steps of 0.001, box none, keep last."""
    p = perturbation
    if isinstance(p, Clean):
        return "clean"
    if isinstance(p, AWGN):
        return f"AWGN std {format_eps(p.std)} {p.unit}, clip {_box_text(p.clip)}"
    if isinstance(p, Corruption):
        return f"{p.corruption} severity {p.severity}" + (f", {p.source}" if p.source != "auto" else "")
    if isinstance(p, MinimumNorm):
        return _minimal_text(p)
    if isinstance(p, Transfer):
        return f"transfer from {p.source}: {describe_perturbation(p.attack)}"
    steps = f"{p.steps} {'queries' if p.attack == 'square' else 'step' if p.steps == 1 else 'steps'}"
    steps += f" of {format_eps(p.step_size)}" if p.step_size is not None else ""
    steps += f", {p.queries} queries" if p.attack == "strong" else ""
    parts = [f"{p.attack} {p.ord} eps {format_eps(p.eps)} {p.unit}", steps, f"box {_box_text(p.box)}"]
    parts += [f"out of the top {p.top}"] if p.top > 1 else []
    parts += [f"{p.restarts} restarts"] if p.restarts > 1 else []
    parts += [f"target {p.target}"] if p.target != "none" else []
    parts += [f"keep {p.keep}"] if p.keep != "last" and p.attack not in PARAMETER_FREE else []
    parts += [f"grid of {len(p.eps_grid) + 1} eps"] if p.eps_grid else []
    parts += [f"min eps to within {format_eps(p.min_eps_tolerance)}"] if p.min_eps_tolerance is not None else []
    parts += ["CleverHans"] if p.backend == "cleverhans" else []
    return ", ".join(parts)


def describe_fields(fields: Mapping[str, Any]) -> str:
    """Describe the perturbation of a record, with its evaluation: clean (test, 1000, batch BN statistics)."""
    evaluation = {key: fields[key] for key in Evaluation.model_fields}
    perturbation = {key: value for key, value in fields.items() if key not in evaluation}
    text = describe_perturbation(TypeAdapter(Perturbation).validate_python(perturbation))
    evaluated = [fields["split"], *([str(fields["limit"])] if fields["limit"] is not None else [])]
    evaluated += [f"{fields['bn_statistics']} BN statistics"] if fields["bn_statistics"] != "tracked" else []
    return f"{text} ({', '.join(evaluated)})"


def present_perturbation(fields: Mapping[str, Any]) -> Plain:
    """Return the perturbation or measurement of a record under the present names of its fields and values."""
    nested = {"attack": present_perturbation(fields["attack"])} if fields["kind"] == "transfer" else {}
    return {**_BY_KIND.get(fields["kind"], Frozen).with_present_names(fields), **nested}


def is_cell(identity: Mapping[str, Any]) -> bool:
    """Return whether what a record says of its model is the cell of a run, rather than an external model."""
    return "arch" in identity and "train" in identity


def present_cell(fields: Mapping[str, Any]) -> Plain:
    """Return what a record says of its model under the present names, with every field; external models stay."""
    return to_plain(validate(Cell, dict(fields), "the cell of a record")) if is_cell(fields) else dict(fields)


def order_of(fields: Mapping[str, Any]) -> tuple[object, ...]:
    """Return the place of a record's perturbation: clean, noise, corruptions, attacks by name, norm and eps."""
    place = list(_BY_KIND).index(fields["kind"]) if fields["kind"] in _BY_KIND else len(_BY_KIND)
    names = [str(fields.get(key, "")) for key in ("attack", "corruption", "ord", "unit")]
    size = fields.get("eps", fields.get("std", fields.get("severity", 0)))
    return place, names, float(size), json.dumps(fields, sort_keys=True)


def _minimal_text(p: MinimumNorm) -> str:
    """Describe: carlini_wagner 2 pixel, 9 times 1000 steps of 0.01 from constant 0.001, box [0, 1]."""
    search = f"{p.binary_search_steps} times {p.steps} steps of {p.step_size:.4g} from constant {p.initial_const:g}"
    parts = [f"{p.attack} {p.ord} {p.unit}", search, f"box {_box_text(p.box)}"]
    parts += [f"confidence {p.confidence:g}"] if p.confidence else []
    parts += [f"target {p.target}"] if p.target != "none" else []
    return ", ".join(parts)


def _box_text(box: Box) -> str:
    if box == "none":
        return "none"
    low, high = box.standardized if isinstance(box, StandardizedBox) else box
    return f"[{low:g}, {high:g}]" + (" standardized" if isinstance(box, StandardizedBox) else "")
