"""Seconds of PGD-inf (40 steps) on MNIST MLPs: our loop, bare gradients, CleverHans; interleaved medians.

    python tools/bench_attacks.py > results/bench_attacks.json    about 5 minutes on two cores

Same trained models, inputs, steps and batches; every contender's final accuracy stands beside its time.
`bare_gradients` is the floor: the compiled input gradient alone, called once a step. `cleverhans` is CleverHans 4
as it is shipped (a Python loop around compiled gradients), `cleverhans_compiled` the same inside one tf.function.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
from bench import interleave, print_report, summarize

from bn_vuln import attacks, backend, data
from bn_vuln.attacks import cleverhans
from bn_vuln.config import Attack, Cell, Data, Train
from bn_vuln.train import train

EPS, STEPS = 0.1, 40
OPTIONS = Attack(attack="bim", eps=EPS, steps=STEPS, step_size=0.01, random_start=False)


class Contenders:
    """Every way to run the same attack on one model; `adversarial` keeps what each one found."""

    def __init__(self, model: Any, dataset: data.Dataset, batch: int) -> None:
        self.tf = backend.tensorflow()
        self.model, self.facts = model, dataset.facts
        pixels = dataset.images.astype(np.float32) / 255
        pieces = range(0, len(pixels), batch)
        self.batches = [
            tuple(self.tf.constant(a[i : i + batch]) for a in (pixels, dataset.labels, dataset.index.astype(np.int32)))
            for i in pieces
        ]
        self.labels = dataset.labels
        self.adversarial: dict[str, Any] = {}

    def predict(self, x: Any) -> Any:
        return self.model(x, training=False)

    def all(self) -> dict[str, Callable[[], Any]]:
        ball = attacks.from_config(OPTIONS, self.facts)

        def hans(x: Any, y: Any, index: Any) -> Any:
            return cleverhans.attack(self.predict, x, y, ball=ball, steps=STEPS, step_size=OPTIONS.step_size)

        bound = attacks.bind(self.predict, OPTIONS, self.facts, xla=backend.attack_prefers_xla(self.model))
        return {
            "bare_gradients": self._bare_gradients(),
            "ours": self._run("ours", backend.compile(bound)),
            "cleverhans": self._run("cleverhans", hans),
            "cleverhans_compiled": self._run("cleverhans_compiled", backend.compile(hans)),
        }

    def _run(self, name: str, attack: Callable[..., Any]) -> Callable[[], Any]:
        def run() -> None:
            self.adversarial[name] = [attack(*batch).numpy() for batch in self.batches]

        return run

    def _bare_gradients(self) -> Callable[[], Any]:
        tf = self.tf

        def gradient(x: Any, y: Any) -> Any:
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(x)
                loss = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=y, logits=self.predict(x))
            return tape.gradient(loss, x)

        compiled = backend.compile(gradient)

        def run() -> None:
            for x, y, _ in self.batches:
                for _ in range(STEPS):
                    compiled(x, y).numpy()

        return run

    def accuracies(self) -> dict[str, dict[str, float]]:
        """The final accuracy of every contender that attacks."""
        logits = {
            name: np.concatenate([self.predict(x).numpy() for x in found]) for name, found in self.adversarial.items()
        }
        return {name: {"accuracy": float(np.mean(v.argmax(1) == self.labels))} for name, v in logits.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--limit", type=int, default=2000, help="test images attacked (default: %(default)s)")
    parser.add_argument(
        "--batches", type=int, nargs="+", default=[100, 500, 2000], help="batch sizes (default: %(default)s)"
    )
    parser.add_argument("--train-limit", type=int, help="train the models on N images (default: all)")
    args = parser.parse_args()
    dataset = data.load("mnist", "test", limit=args.limit)
    results = {}
    for normalization in ("none", "batch"):
        options = {
            "data": Data(limit=args.train_limit),
            "train": Train(epochs=3, lr=0.1),
            "normalization": normalization,
        }
        model = train(Cell(**options)).model
        for batch in args.batches:
            contenders = Contenders(model, dataset, batch)
            seconds = interleave(contenders.all(), args.repetitions)
            results[f"mlp_{normalization}_batch_{batch}"] = summarize(seconds, "ours", **contenders.accuracies())
    print_report(results, args.repetitions, examples=len(dataset), eps=EPS, steps=STEPS, ord="inf")


if __name__ == "__main__":
    main()
