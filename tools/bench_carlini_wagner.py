"""Seconds of the Carlini-Wagner L2 attack, as it is executed and stepped from the host; interleaved medians.

    python tools/bench_carlini_wagner.py > results/bench_carlini_wagner.json    about 5 minutes on two cores

MLPs trained on MNIST, without and with BN; all images in one batch. `ours` is executed as `bnvuln attack` does it,
`ours_plain` without XLA and one step a call. A time says nothing without the distances that it buys: beside it stand
the share of the images with a success, of those that were correct when clean, and the mean L2 norm (pixels) of what was
found, over the `compared` images that both found something for. Both are of the last repetition, and of the record that
is made of it. Compiling is part of every time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from bench import arguments, interleave, print_report, summarize

from bn_vuln.config import Cell, Data, Evaluation, MinimumNorm, Train
from bn_vuln.data.mnist import INFO
from bn_vuln.evaluation.attack_runner import AttackRunner
from bn_vuln.evaluation.classifier import from_model
from bn_vuln.evaluation.evaluator import Evaluator
from bn_vuln.runtime import backend
from bn_vuln.runtime.backend import ExecutionPolicy
from bn_vuln.runtime.progress import Quiet
from bn_vuln.training import train


class PlainRunner(AttackRunner):
    """One step a call, without XLA."""

    def _policy(self, steps: int) -> ExecutionPolicy:
        return backend.ONE_STEP_A_CALL


class Contenders:
    """Both ways to run the same attack on one model; `distances` keeps what each one found, infinite for nothing."""

    def __init__(self, model: Any, limit: int, options: MinimumNorm) -> None:
        self.evaluator, self.options = Evaluator(from_model(model, INFO, {}), Evaluation(limit=limit)), options
        self.distances: dict[str, Any] = {}

    def all(self) -> dict[str, Callable[[], None]]:
        return {"ours": self._run("ours", AttackRunner), "ours_plain": self._run("ours_plain", PlainRunner)}

    def _run(self, name: str, runner: type[AttackRunner]) -> Callable[[], None]:
        def run() -> None:
            found = runner(self.evaluator.eval_set).run(self.options, Quiet())
            self.distances[name] = found.min_eps

        return run

    def norms(self) -> dict[str, dict[str, float | None]]:
        """Of what both found: see above. No norm where no image was found by both."""
        common = np.logical_and.reduce([(d > 0) & np.isfinite(d) for d in self.distances.values()])
        results: dict[str, dict[str, float | None]] = {}
        for name, distance in self.distances.items():
            mean = round(float(distance[common].mean()), 4) if common.any() else None
            share = round(float(np.isfinite(distance[distance > 0]).mean()), 4)
            results[name] = {"mean_norm": mean, "compared": int(common.sum()), "found": share}
        return results


def main() -> None:
    parser = arguments(__doc__, limit=200, repetitions=3, trains=True)
    parser.add_argument("--steps", type=int, default=1000, help="of Adam for each constant (default: %(default)s)")
    parser.add_argument("--step-size", type=float, default=0.01, help="learning rate (default: %(default)s)")
    parser.add_argument("--constants", type=int, default=9, help="that are tried (default: %(default)s)")
    args = parser.parse_args()
    options = MinimumNorm(steps=args.steps, step_size=args.step_size, binary_search_steps=args.constants)
    results = {}
    for normalization in ("none", "batch"):
        cell = Cell(data=Data(limit=args.train_limit), train=Train(epochs=3, lr=0.1), normalization=normalization)
        contenders = Contenders(train(cell).model, args.limit, options)
        seconds = interleave(contenders.all(), args.repetitions)
        results[f"mlp_{normalization}"] = summarize(seconds, "ours", **contenders.norms())
    print_report(results, args.repetitions, examples=args.limit, attack=options.model_dump())


if __name__ == "__main__":
    main()
