"""Seconds of PGD-inf: bnvuln's loop, bare gradients, CleverHans; interleaved medians.

    python tools/bench_attacks.py > results/bench_attacks.json    about 8 minutes on two cores

MLPs trained on MNIST (40 steps), and three convolutional nets with BN on random images of 32x32x3 (10 steps): VGG8, a
narrow net of the widths of a ResNet for CIFAR (16, 32, 64; two convolutions each), and a depthwise separable one as in
MobileNets, where BN is a larger part of the arithmetic. Same models, inputs, steps and
batches; every contender's final accuracy stands beside its time. `ours` attacks a copy with BN folded away, as
`bnvuln attack` does, `ours_unfolded` the model itself. `bare_gradients` is the floor without folding: the compiled
input gradient alone, called once a step. `cleverhans` is CleverHans 4 as it is shipped (a Python loop around compiled
gradients), `cleverhans_compiled` the same inside one tf.function.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from bench import PHOTOS, arguments, interleave, print_report, random_photos, summarize

from bn_vuln import attacks, data, models
from bn_vuln.attacks import cleverhans
from bn_vuln.config import Attack, Cell, Data, Train, validate
from bn_vuln.models import bn_folding
from bn_vuln.runtime import backend
from bn_vuln.training import train

MLP = Attack(attack="bim", eps=0.1, steps=40, step_size=0.01, random_start=False)
CONVOLUTIONAL = Attack(attack="bim", eps=8 / 255, steps=10, step_size=2 / 255, random_start=False)
ATTACKS = {"mlp": MLP, "convolutional": CONVOLUTIONAL}


class Contenders:
    """Every way to run the same attack on one model; `adversarial` keeps what each one found."""

    def __init__(self, model: Any, dataset: data.Dataset, batch: int, options: Attack) -> None:
        self.tf = backend.tensorflow()
        self.model, self.info, self.options = model, dataset.info, options
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
        threat_model, options = attacks.from_config(self.options, self.info), self.options

        def cleverhans_attack(x: Any, y: Any, index: Any) -> Any:
            return cleverhans.attack(
                self.predict, x, y, threat_model=threat_model, steps=options.steps, step_size=options.step_size
            )

        folded = bn_folding.fold(self.model)
        found = {
            "bare_gradients": self._bare_gradients(),
            "ours": self._run("ours", self._compiled_attack(folded.model)),
            "cleverhans": self._run("cleverhans", cleverhans_attack),
            "cleverhans_compiled": self._run("cleverhans_compiled", backend.compile(cleverhans_attack)),
        }
        return (
            {**found, "ours_unfolded": self._run("ours_unfolded", self._compiled_attack(self.model))}
            if folded.folded
            else found
        )

    def _compiled_attack(self, model: Any) -> Callable[..., Any]:
        xla = backend.attack_prefers_xla(model)
        predict = functools.partial(model, training=False)
        return backend.compile(attacks.bind(predict, self.options, self.info, xla=xla))

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
                for _ in range(self.options.steps):
                    compiled(x, y).numpy()

        return run

    def accuracies(self) -> dict[str, dict[str, float]]:
        """The final accuracy of every contender that attacks."""
        logits = {
            name: np.concatenate([self.predict(x).numpy() for x in found]) for name, found in self.adversarial.items()
        }
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
    """VGG8 and a narrow net with BN, untrained: what is timed does not depend on the weights."""
    dataset = random_photos(min(args.limit, 200))
    vgg8 = models.build(validate(Cell, {"arch": "vgg8", "normalization": "batch"}, "bench"), PHOTOS)
    nets = {"vgg8": vgg8, "narrow": narrow(), "separable": separable()}
    return {
        f"{name}_batch_100": measure(net, dataset, 100, CONVOLUTIONAL, args.repetitions) for name, net in nets.items()
    }


def normalized(x: Any, convolution: Any) -> Any:
    """A convolution without bias, BN, ReLU."""
    import keras

    return keras.layers.ReLU()(keras.layers.BatchNormalization()(convolution(padding="same", use_bias=False)(x)))


def narrow() -> Any:
    """Six convolutions of 16 to 64 filters, each with BN."""
    import keras

    x = inputs = keras.Input(PHOTOS.shape)
    for filters in (16, 32, 64):
        for _ in range(2):
            x = normalized(x, functools.partial(keras.layers.Conv2D, filters, 3))
        x = keras.layers.MaxPooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(10)(keras.layers.GlobalAveragePooling2D()(x)))


def separable() -> Any:
    """A convolution and three pairs of a depthwise and a pointwise one, of 32 to 128 filters, each with BN."""
    import keras

    inputs = keras.Input(PHOTOS.shape)
    x = normalized(inputs, functools.partial(keras.layers.Conv2D, 32, 3))
    for filters in (32, 64, 128):
        x = normalized(x, functools.partial(keras.layers.DepthwiseConv2D, 3))
        x = normalized(x, functools.partial(keras.layers.Conv2D, filters, 1))
        x = keras.layers.MaxPooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(10)(keras.layers.GlobalAveragePooling2D()(x)))


def measure(model: Any, dataset: data.Dataset, batch: int, options: Attack, repetitions: int) -> dict[str, Any]:
    contenders = Contenders(model, dataset, batch, options)
    seconds = interleave(contenders.all(), repetitions)
    return summarize(seconds, "ours", **contenders.accuracies())


def main() -> None:
    parser = arguments(__doc__, limit=2000, trains=True)
    parser.add_argument(
        "--batches", type=int, nargs="+", default=[100, 500, 2000], help="batch sizes (default: %(default)s)"
    )
    args = parser.parse_args()
    backend.tensorflow()
    settings = {name: o.model_dump(include={"eps", "steps", "ord"}) for name, o in ATTACKS.items()}
    print_report({**mlps(args), **convolutional(args)}, args.repetitions, examples=args.limit, **settings)


if __name__ == "__main__":
    main()
