"""Seconds of the Carlini-Wagner L2 attack: ours and CleverHans; interleaved medians.

    python tools/bench_carlini_wagner.py > results/bench_carlini_wagner.json    about 15 minutes on two cores

MLPs trained on MNIST, without and with BN; same images, steps, learning rate, constants and box, all images in one
batch (CleverHans' takes no more than 292). A time says nothing without the distances that it buys: beside it stand the
share of the images with a success, of those that were correct when clean, and the mean L2 norm (pixels) of what was
found, over the `compared` images that all contenders found something for. Both are of the last repetition, and of the
model itself: what is found is projected into the box and predicted again. `ours` attacks a copy with BN folded away, as
`bnvuln attack` does, with XLA; `ours_plain` the model itself, without. `cleverhans` is CleverHans 4 with the repairs of
`attacks.cleverhans`: as it is shipped it does not run with Keras 3. All stop early, each by its own rule;
compiling is part of every time.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from bench import arguments, interleave, print_report, summarize

from bn_vuln import data
from bn_vuln.config import Cell, Data, MinimumNorm, Train
from bn_vuln.data.transforms import pixel_array
from bn_vuln.evaluation import minimum_norm
from bn_vuln.models import bn_folding
from bn_vuln.runtime import backend
from bn_vuln.runtime.distribution import ONE_DEVICE
from bn_vuln.training import train


class Contenders:
    """Every way to run the same attack on one model; `found` keeps what each one found."""

    def __init__(self, model: Any, dataset: data.Dataset, options: MinimumNorm) -> None:
        self.model, self.dataset, self.options = model, dataset, options
        self.space = minimum_norm.threat_model(options, dataset.info)
        self.x = pixel_array(dataset.images, dataset.info.shape[1])
        self.found: dict[str, Any] = {}

    def all(self) -> dict[str, Callable[[], None]]:
        cleverhans_options = self.options.model_copy(update={"backend": "cleverhans"})
        return {
            "ours": self._run("ours", bn_folding.fold(self.model).model, self.options, xla=True),
            "ours_plain": self._run("ours_plain", self.model, self.options, xla=False),
            "cleverhans": self._run("cleverhans", self.model, cleverhans_options, xla=False),
        }

    def _run(self, name: str, model: Any, options: MinimumNorm, *, xla: bool) -> Callable[[], None]:
        predict = functools.partial(model, training=False)
        attack = minimum_norm.bind(predict, options, self.space, ONE_DEVICE)

        def run() -> None:
            labels = self.dataset.labels
            self.found[name] = attack(self.x, labels, batch_size=len(labels), xla=xla, on_progress=lambda done: None)

        return run

    def norms(self) -> dict[str, dict[str, float | None]]:
        """Of what every contender found: see above. No norm where no image was found by all."""
        right = self._correct(self.x)
        images = {name: self.space.project_array(points, self.x) for name, points in self.found.items()}
        success = {name: right & ~self._correct(found) for name, found in images.items()}
        common = np.logical_and.reduce(list(success.values()))
        results: dict[str, dict[str, float | None]] = {}
        for name, found in images.items():
            length = minimum_norm.distances(found, self.x, self.space)[common]
            mean = round(float(length.mean()), 4) if len(length) else None
            share = round(float(success[name].sum() / max(1, right.sum())), 4)
            results[name] = {"mean_norm": mean, "compared": int(common.sum()), "found": share}
        return results

    def _correct(self, images: Any) -> Any:
        return np.asarray(self.model(images, training=False)).argmax(axis=1) == self.dataset.labels


def main() -> None:
    parser = arguments(__doc__, limit=200, repetitions=3, trains=True)
    parser.add_argument("--steps", type=int, default=1000, help="of Adam for each constant (default: %(default)s)")
    parser.add_argument("--step-size", type=float, default=0.01, help="learning rate (default: %(default)s)")
    parser.add_argument("--constants", type=int, default=9, help="that are tried (default: %(default)s)")
    args = parser.parse_args()
    backend.tensorflow()
    options = MinimumNorm(steps=args.steps, step_size=args.step_size, binary_search_steps=args.constants)
    dataset, results = data.load("mnist", "test", limit=args.limit), {}
    for normalization in ("none", "batch"):
        cell = Cell(data=Data(limit=args.train_limit), train=Train(epochs=3, lr=0.1), normalization=normalization)
        contenders = Contenders(train(cell).model, dataset, options)
        seconds = interleave(contenders.all(), args.repetitions)
        results[f"mlp_{normalization}"] = summarize(seconds, "ours", **contenders.norms())
    print_report(results, args.repetitions, examples=args.limit, attack=options.model_dump())


if __name__ == "__main__":
    main()
