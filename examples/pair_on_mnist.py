"""A pair of models on MNIST, with and without batch norm: how robust, and why. Two minutes on two cores.

python examples/pair_on_mnist.py [--epochs 10] [--limit 1000] [--runs runs/example]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import bn_vuln as bnv

# Both arms of the pair have the same seed, so the same initial weights and the same order of the data.
MODEL = {"arch": "mlp", "train": {"lr": 0.03, "batch_size": 128}}


def main() -> None:
    """Train, attack and explain both models of a pair."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--limit", type=int, default=1000, help="test images")
    parser.add_argument("--runs", type=Path, default=Path("runs/example"))
    args = parser.parse_args()

    accuracy = {}
    for normalization in ("none", "batch"):
        folder = args.runs / normalization
        cell = {**MODEL, "normalization": normalization, "train": {**MODEL["train"], "epochs": args.epochs}}
        bnv.train(cell, folder)  # a finished run is not trained again

        result = bnv.attack(folder, attack="pgd", eps="8/255", steps=20, limit=args.limit)
        clean, robust = result.records["clean"], result.record
        angle = bnv.measure(folder, suite="mechanism", limit=args.limit)["tilt"].value
        accuracy[normalization] = robust.accuracy

        print(
            f"{normalization}: clean {clean.accuracy:.1%}, PGD 8/255 {robust.accuracy:.1%}, angle {angle:.0f} degrees"
        )
        for flag in robust.flags:  # each says why the number may lie, and what to do
            print(f"        {flag.text}")

    print(f"batch - none under PGD: {100 * (accuracy['batch'] - accuracy['none']):+.1f} points, one pair (n = 1)")


if __name__ == "__main__":
    main()
