"""Readable names of models: runs by what trains them, external models by their files."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from bn_vuln.config import (
    Cell,
    WideResNetArch,
    describe_mend,
    describe_weights,
    format_eps,
    is_cell,
    to_plain,
    validate,
)
from bn_vuln.config.normalization import BatchNormalization
from bn_vuln.typing import Plain

_NAMED = ("arch.name", "normalization.name", "normalization.c", "seed", "data.name", "data.digest")


def cell_name(cell: Cell) -> str:
    """Return the name of a run: `mlp batch c=1e-5 seed 0`, and between them what is not at its default.

    The data set is left out. With published weights: `vgg11_bn torchvision weights`.
    """
    if cell.weights:
        return f"{cell.pretrained_name} {describe_weights(cell)}"
    arch, norm, adversarial = cell.arch, cell.normalization, cell.train.adversarial
    default = _flat(to_plain(validate(Cell, {"arch": {**to_plain(arch)}}, "default")))
    own = _flat(to_plain(cell))
    words = [f"wrn-{arch.depth}-{arch.widening}" if isinstance(arch, WideResNetArch) else arch.name, norm.name]
    words += [f"c={_format(norm.c)}"] if isinstance(norm, BatchNormalization) else []
    for field, value in own.items():
        if field not in _NAMED and not field.startswith("mend.") and value != default.get(field):
            words += _field_words(field, value, [own, default])
            words += [f"eps={format_eps(adversarial.eps)}"] if adversarial and field == "train.adversarial.eps" else []
    words += [describe_mend(cell.mend)] if cell.mend else []
    return " ".join([*dict.fromkeys(words), f"seed {cell.seed}"])


def external_name(source: str) -> str:
    """Return the name of an external model: its file's, without the suffix."""
    return Path(source).stem or source


def short_names(identities: Mapping[str, Plain], sources: Mapping[str, str]) -> dict[str, str]:
    """Return the names of models beside each other.

    Args:
        identities: by id, what identifies each model.
        sources: by id, its path or the name that the user calls it by.

    Returns:
        By id: `mlp batch seed 0`, with whatever else of their cells differs among them (`mlp batch c=0.1 seed 0`,
        `mlp none adversarial seed 0`); external models by the names of their files. Each name is another one.
    """
    cells = {key: _flat(identity) for key, identity in identities.items() if is_cell(identity)}
    names = {key: _short_name(cells, key) if key in cells else external_name(sources[key]) for key in identities}
    count = Counter(names.values())
    return {key: f"{name} {key[:6]}" if count[name] > 1 else name for key, name in names.items()}


def _short_name(cells: Mapping[str, Plain], key: str) -> str:
    cell, always = cells[key], ("arch.name", "normalization.name", "seed")
    words = [cell["arch.name"], cell["normalization.name"]]
    for field, value in cell.items():
        words += _field_words(field, value, list(cells.values())) if field not in always else []
    return " ".join([*dict.fromkeys(words), f"seed {cell['seed']}"])


def differing_fields(identities: Mapping[str, Plain]) -> dict[str, list[str]]:
    """Return by id the fields in which models differ, as `input_scale=0-255`, or `no class_names`, each shortened."""
    flat = {key: _flat(identity) for key, identity in identities.items()}
    fields = dict.fromkeys(field for one in flat.values() for field in one)
    differing = [field for field in fields if len({str(one.get(field)) for one in flat.values()}) > 1]
    return {
        key: [f"{field}={_short(one[field])}" if field in one else f"no {field}" for field in differing]
        for key, one in flat.items()
    }


def _short(value: object) -> str:
    """A value, of a digest its beginning, of a list its first item."""
    if isinstance(value, list | tuple) and len(value) > 1:
        return f"{_short(value[0])},..."
    return _format(value[0] if isinstance(value, list | tuple) and value else value)[:12]


def _field_words(field: str, value: object, cells: Sequence[Plain]) -> list[str]:
    """The words of a field in a name: none where the cells are alike in it, else its value.

    Where other cells lack its block (`adversarial`), the name of the block, and the value if those that have it differ.
    """
    block, _, name = field.rpartition(".")
    having = [cell for cell in cells if field in cell]
    alike = len({str(cell[field]) for cell in having}) == 1
    if alike and (len(having) == len(cells) or block in ("arch", "normalization")):  # these are named anyway
        return []
    text = f"{'schedule' if field == 'train.schedule.name' else name}={_format(value)}"
    if block and not all(any(other.startswith(f"{block}.") for other in cell) for cell in cells):
        return [block.rpartition(".")[2], *([] if alike else [text])]
    return [text]


def _format(value: object) -> str:
    """A value without spaces: 1e-5 for 1e-05."""
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return re.sub(r"e([-+])0+", r"e\1", text.replace(" ", ""))


def _flat(fields: Plain, prefix: str = "") -> Plain:
    """Nested fields as one dict with dotted keys."""
    flat: Plain = {}
    for key, value in fields.items():
        inner = _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
        flat.update(inner)
    return flat
