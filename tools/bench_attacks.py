"""Seconds of PGD-inf: bnvuln's engine, bare gradients, CleverHans; interleaved medians.

    python tools/bench_attacks.py > results/bench_attacks.json    about 15 minutes on two cores

MLPs trained on MNIST (40 steps), and convolutional nets with BN on random images (10 steps): VGG8, ResNet-20 and a
narrow net of the widths of a ResNet for CIFAR (16, 32, 64; two convolutions each) at 32x32x3, MobileNetV2 at 96x96x3.
Same models, inputs, steps and batches; every contender's final accuracy stands beside its time. `ours` is what `bnvuln
attack` runs: BN is folded into convolutions while the attack is traced, and the time of the final projection and
prediction is counted. `bare_gradients` is the floor without folding: the compiled input gradient alone, called once a
step. `cleverhans` is CleverHans 4 as it is shipped (a Python loop around compiled gradients).
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from bench import PHOTOS, arguments, engine, interleave, print_report, random_photos, summarize

from bn_vuln import attacks, data, models
from bn_vuln.attacks import cleverhans
from bn_vuln.config import Attack, Cell, Data, Train, validate
from bn_vuln.data.info import DatasetInfo
from bn_vuln.evaluation.classifier import from_model
from bn_vuln.runtime import backend
from bn_vuln.training import train

MLP = Attack(attack="bim", eps=0.1, steps=40, step_size=0.01, random_start=False, keep="last")
CONVOLUTIONAL = Attack(attack="bim", eps=8 / 255, steps=10, step_size=2 / 255, random_start=False, keep="last")
ATTACKS = {"mlp": MLP, "convolutional": CONVOLUTIONAL}
LARGE_PHOTOS = DatasetInfo("random", (96, 96, 3), PHOTOS.classes, (0.5,) * 3, (0.25,) * 3, {})


class Contenders:
    """Every way to run the same attack on one model; `adversarial` keeps what each one found."""

    def __init__(self, model: Any, dataset: data.Dataset, batch: int, options: Attack) -> None:
        self.tf = backend.tensorflow()
        self.model, self.info, self.options, self.batch = model, dataset.info, options, batch
        self.pixels, self.labels = dataset.images.astype(np.float32) / 255, dataset.labels
        pieces = range(0, len(self.pixels), batch)
        self.batches = [tuple(self.tf.constant(a[i : i + batch]) for a in (self.pixels, self.labels)) for i in pieces]
        self.adversarial: dict[str, Any] = {}

    def predict(self, x: Any) -> Any:
        return self.model(x, training=False)

    def all(self) -> dict[str, Callable[[], Any]]:
        classifier = from_model(self.model, self.info, {"weights": "bench"})
        ours = engine(classifier, self.pixels, self.labels, self.batch)

        def run() -> None:
            self.adversarial["ours"] = ours(self.options).images

        return {"bare_gradients": self._bare_gradients(), "ours": run, "cleverhans": self._cleverhans()}

    def _cleverhans(self) -> Callable[[], Any]:
        threat_model, options = attacks.from_config(self.options, self.info), self.options

        def run() -> None:
            found = [
                cleverhans.attack(
                    self.predict, x, y, threat_model=threat_model, steps=options.steps, step_size=options.step_size
                )
                for x, y in self.batches
            ]
            self.adversarial["cleverhans"] = np.concatenate([np.asarray(points) for points in found])

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
            for x, y in self.batches:
                for _ in range(self.options.steps):
                    compiled(x, y).numpy()

        return run

    def accuracies(self) -> dict[str, dict[str, float]]:
        """The final accuracy of every contender that attacks."""
        predict = backend.compile(self.predict)
        pieces = [slice(i, i + self.batch) for i in range(0, len(self.pixels), self.batch)]
        logits = {name: np.concatenate([predict(x[p]) for p in pieces]) for name, x in self.adversarial.items()}
        return {name: {"accuracy": float(np.mean(v.argmax(1) == self.labels))} for name, v in logits.items()}


def mlps(args: argparse.Namespace) -> dict[str, Any]:
    """Trained on MNIST, with and without BN."""
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
            results[f"mlp_{normalization}_batch_{batch}"] = measure(model, dataset, batch, MLP, args.repetitions)
    return results


def convolutional(args: argparse.Namespace) -> dict[str, Any]:
    """Nets with BN, untrained: what is timed does not depend on the weights."""
    results = {}
    for name, make in NETS.items():
        net, large = make(), name == "mobilenetv2"
        for batch in args.batches:
            n = min(args.limit, batch // 2 if large else batch)
            dataset = random_photos(n, LARGE_PHOTOS if large else PHOTOS)
            results[f"{name}_batch_{n}"] = measure(net, dataset, n, CONVOLUTIONAL, args.repetitions)
    return results


def of_cell(arch: str) -> Any:
    return models.build(validate(Cell, {"arch": arch, "normalization": "batch"}, "bench"), PHOTOS)


def narrow() -> Any:
    """Six convolutions of 16 to 64 filters, each with BN."""
    import keras

    x = inputs = keras.Input(PHOTOS.shape)
    for filters in (16, 32, 64):
        for _ in range(2):
            x = keras.layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
            x = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
        x = keras.layers.MaxPooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(10)(keras.layers.GlobalAveragePooling2D()(x)))


def mobilenetv2() -> Any:
    """MobileNetV2 as Keras has it, without its softmax."""
    import keras

    return keras.applications.MobileNetV2(
        input_shape=LARGE_PHOTOS.shape, weights=None, classes=10, classifier_activation=None
    )


NETS: dict[str, Callable[[], Any]] = {
    "narrow": narrow,
    "vgg8": functools.partial(of_cell, "vgg8"),
    "resnet20": functools.partial(of_cell, "resnet20"),
    "mobilenetv2": mobilenetv2,
}


def measure(model: Any, dataset: data.Dataset, batch: int, options: Attack, repetitions: int) -> dict[str, Any]:
    contenders = Contenders(model, dataset, batch, options)
    seconds = interleave(contenders.all(), repetitions)
    return summarize(seconds, "ours", **contenders.accuracies())


def main() -> None:
    parser = arguments(__doc__, limit=2000, repetitions=9, trains=True)
    parser.add_argument("--batches", type=int, nargs="+", default=[100, 500], help="batch sizes (default: %(default)s)")
    args = parser.parse_args()
    backend.tensorflow()
    settings = {name: o.model_dump(include={"eps", "steps", "ord"}) for name, o in ATTACKS.items()}
    print_report({**mlps(args), **convolutional(args)}, args.repetitions, examples=args.limit, **settings)


if __name__ == "__main__":
    main()
