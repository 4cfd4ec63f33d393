"""Make bn_vuln/auditing/references.json: half-eps of this package's nets, from the published records.

    python tools/audit_references.py

For each net and seed the accuracies along eps under the strongest attack that was recorded in the box [0, 1] at three
eps or more are interpolated as an audit does it.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import numpy as np

from bn_vuln import records
from bn_vuln.analysis.statistics import estimate
from bn_vuln.auditing.options import half_eps
from bn_vuln.config import Cell

ROOT = Path(__file__).parent.parent
STORES = ("paper", "beyond")
ATTACKS = ("strong", "pgd")  # the strongest first
ARCHITECTURES = {"mlp": "MLP", "vgg8": "VGG8", "resnet20": "ResNet-20"}
NORMALIZATIONS = {"batch": "batch norm", "none": "no normalization", "fixup": "Fixup", "group": "group norm"}
MIN_POINTS = 3


def main() -> None:
    """Write the file."""
    curves: dict[tuple[str, str], dict[int, dict[float, float]]] = defaultdict(dict)
    clean: dict[tuple[str, str], dict[int, float]] = defaultdict(dict)
    for entry in (e for s in STORES for e in records.entries(records.open_store(ROOT / "results" / s))):
        if entry.cell is None or entry.clean is None or entry.cell.arch.name not in ARCHITECTURES:
            continue
        curve = next(filter(None, (_curve(entry, attack) for attack in ATTACKS)), None)
        if curve is not None:
            key = (entry.cell.data.name, _name(entry.cell))
            curves[key][entry.cell.seed], clean[key][entry.cell.seed] = curve, entry.clean.accuracy
    found: dict[str, list[dict[str, object]]] = defaultdict(list)
    for (dataset, name), by_seed in sorted(curves.items()):
        halves = []
        for seed, curve in by_seed.items():
            eps = sorted(curve)
            accuracies = np.array([curve[e] for e in eps])
            lost_at_once = accuracies[0] <= clean[dataset, name][seed] / 2
            halves.append(None if lost_at_once else half_eps(np.array(eps), accuracies, clean[dataset, name][seed]))
        if None in halves:
            continue  # half is lost below the smallest eps that was measured, or not at the largest
        mean = estimate([half for half in halves if half is not None])
        accuracy = float(np.mean(list(clean[dataset, name].values())))
        found[dataset].append(
            {"name": name, "ord": "inf", "half_eps": mean.mean, "sem": mean.sem, "n": mean.n, "clean": accuracy}
        )
    path = ROOT / "bn_vuln" / "auditing" / "references.json"
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def _curve(entry: records.Entry, attack: str) -> dict[float, float] | None:
    """Accuracy by eps under an attack in pixels and the box [0, 1]; None for fewer than three eps."""
    found = {}
    for record in entry.records:
        p = record.perturbation
        kind = [p.get(name) for name in ("kind", "attack", "ord", "unit", "split", "box")]
        if kind == ["attack", attack, "inf", "pixel", "test", [0.0, 1.0]]:
            found[float(p["eps"])] = record.accuracy
    return found if len(found) >= MIN_POINTS else None


def _name(cell: Cell) -> str:
    """`MLP with batch norm, 40 epochs, lr 0.03`, with what else is no default."""
    net = ARCHITECTURES[cell.arch.name]
    words = [f"{net} with {NORMALIZATIONS.get(cell.normalization.name, cell.normalization.name)}"]
    words += [f"{cell.train.epochs} epochs", f"lr {cell.train.lr:g}"]
    words += ["trained on adversarial examples"] if cell.train.adversarial is not None else []
    return ", ".join(words)


if __name__ == "__main__":
    main()
