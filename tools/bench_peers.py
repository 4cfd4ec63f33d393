"""Attacks against the other libraries, on the same weights, images, steps and batches; interleaved medians.

    bash tools/environment.sh dev && source .venv/bin/activate
    python tools/bench_peers.py --into results/bench_peers.json       over an hour on two cores
    python tools/bench_peers.py --only last --limit 200 --repetitions 1

Contenders: ours; CleverHans 4, Foolbox 3 and ART (TensorFlow); torchattacks and plain PyTorch (CPU) on a copy of the
same weights. Four comparisons, each on the MNIST pair of table6_matched (seed 0; results/paper/dd15bd2a8efa with BN
and df28a7b8f872 without):

last      PGD-40, eps .05, without a random start, the last point counts: everybody does the same. In batches of
          500, and (last_in_batches_of_100) of 100.
any       PGD-100, eps .1, where most attacks on the net with BN succeed, and (any_at_0.3) eps .3, as is customary on
          MNIST: ours keeps the first success (an active set), while others take all of their steps.
eps_grid  our grid of eight eps up to .05 against eight attacks of ours without one (the plain loop, `keep: best_loss`).
strong    `strong`, eps .05, against AutoAttack of torchattacks, and what stands, with the 100 steps of APGD and FAB
          that were published (as it is shipped it gives them 10); also, at eps .1, on the net without BN of
          adversarial_training that was trained on adversarial examples (seed 0; results/beyond/df32af4acab5).
          strong_of_art: ART's own set (APGD-CE, APGD-DLR and Square of five starts each, DeepFool), which takes
          minutes: once, on a fifth.

and `convolutional`: PGD-10 on VGG8 with and without BN, random weights, random images of 32x32x3, labels as predicted.
There `cleverhans_tensorflow_default` is CleverHans in a process of its own with TensorFlow's own setting of oneDNN,
which is off on some machines, where all others here have it on. `rates`: what bounds ours.

With --into each comparison is written as soon as it is there, with its own repetitions, examples, settings, device and
versions; what stands outside of `results` is then of the last run alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from bench import PAIR, PHOTOS, RESULTS, arguments, interleave, machine, print_report, summarize
from numpy.typing import NDArray
from torch_copy import copy

from bn_vuln import attacks, data, models
from bn_vuln.attacks import active_set, cleverhans, ensemble
from bn_vuln.config import Attack, Cell, validate
from bn_vuln.evaluation import classifier
from bn_vuln.evaluation.classifier import from_model
from bn_vuln.experiments import cost_estimate
from bn_vuln.models import bn_folding
from bn_vuln.runtime import backend

# adversarial_training, none, seed 0
TRAINED_ON_ADVERSARIAL_EXAMPLES = {"adversarial": RESULTS / "beyond" / "df32af4acab5"}
EPS, LARGE, BATCH = 0.05, 0.1, 500
EPS_GRID = [EPS * k / 8 for k in range(1, 9)]
AUTOATTACK_STEPS = 100  # of APGD and FAB, as published
VARIABLE = "BNVULN_BENCH_TENSORFLOW_DEFAULT"
ALONE = VARIABLE in os.environ  # CleverHans alone, see `by_default`
Images = NDArray[np.float32]


class Subject:
    """One model with images that it is attacked on; `found` keeps the images that each contender made of them."""

    def __init__(self, owner: classifier.Classifier, images: Images, labels: NDArray[np.int32], batch: int) -> None:
        self.owner, self.x, self.y, self.batch = owner, images, labels, batch
        self.index = np.arange(len(images), dtype=np.int32)
        self.folded = bn_folding.fold(owner.model).model
        self.predict = functools.partial(self.folded, training=False)
        self.found: dict[str, Images] = {}

    def batches(self) -> list[slice]:
        return [slice(i, i + self.batch) for i in range(0, len(self.x), self.batch)]

    def keep(self, name: str, attack: Callable[[slice], Any]) -> Callable[[], None]:
        """`attack` batch by batch, and what it made."""

        def run() -> None:
            self.found[name] = np.concatenate([np.asarray(attack(piece)) for piece in self.batches()])

        return run

    def accuracies(self) -> dict[str, dict[str, Any]]:
        """Return the accuracy on the images that each contender made."""
        predict = backend.compile(functools.partial(self.owner.model, training=False))
        logits = {name: np.concatenate([predict(x[p]) for p in self.batches()]) for name, x in self.found.items()}
        return {name: {"accuracy": float(np.mean(z.argmax(1) == self.y))} for name, z in logits.items()}

    def made_with(self, repetitions: int, options: Attack, **settings: Any) -> dict[str, Any]:
        """Return the settings that a comparison records: those of one file may be of different times."""
        attack = {"batch": self.batch, "attack": options.model_dump(mode="json"), **settings}
        return {"repetitions": repetitions, "examples": len(self.x), "settings": attack, **machine()}

    def torch(self) -> tuple[Any, Any, Any]:
        """(the copy, images [n, channels, height, width], labels) in PyTorch."""
        import torch

        torch.set_num_threads(len(os.sched_getaffinity(0)))
        x = torch.tensor(np.ascontiguousarray(self.x.transpose(0, 3, 1, 2)))
        return copy(self.owner.model), x, torch.tensor(self.y.astype(np.int64))


def ours(subject: Subject, options: Attack) -> Callable[[slice], Any]:
    """The plain loop, compiled, on the folded copy."""
    xla = backend.attack_prefers_xla(subject.folded)
    run = backend.compile(attacks.bind(subject.predict, options, subject.owner.info, xla=xla))
    return lambda p: run(subject.x[p], subject.y[p], subject.index[p])


def active(subject: Subject, name: str, options: Attack) -> Callable[[], None]:
    """The active set, or an ensemble, as `bnvuln attack` runs it."""
    threat_model = attacks.from_config(options, subject.owner.info)
    plain = backend.compile(functools.partial(subject.owner.model, training=False))

    def logits(images: Images) -> Images:
        return np.concatenate([plain(images[i : i + subject.batch]) for i in range(0, len(images), subject.batch)])

    def confirm(points: Images, who: NDArray[np.int64], eps: NDArray[np.float64]) -> NDArray[np.bool_]:
        projected = threat_model.with_eps(eps).project_array(points, subject.x[who])
        return np.asarray(logits(projected).argmax(1) != subject.y[who])

    xla = backend.attack_prefers_xla(subject.folded)
    # Compiled before, as all contenders are: the first turn does not count.
    stages = [
        dataclasses.replace(stage, attack=active_set.CompiledAttack(stage.attack, xla=xla))
        for stage in ensemble.stages(subject.predict, options, threat_model, subject.y, logits(subject.x))
    ]

    def run() -> None:
        clean = logits(subject.x).argmax(1) == subject.y
        done = ensemble.run(
            iter(stages), options, subject.x, subject.y, clean=clean, confirm=confirm, batch_size=subject.batch
        )
        subject.found[name] = done.result.points
        subject.min_eps = done.result.eps  # type: ignore[attr-defined]

    return run


def hans(subject: Subject, options: Attack) -> Callable[[slice], Any]:
    """CleverHans as it is shipped, on the model as it is."""
    threat_model, predict = attacks.from_config(options, subject.owner.info), subject.owner.predict
    tf = backend.tensorflow()
    return lambda p: cleverhans.attack(
        predict,
        tf.constant(subject.x[p]),
        subject.y[p],
        threat_model=threat_model,
        steps=options.steps,
        step_size=options.step_size,
    )


def foolbox(subject: Subject, options: Attack) -> Callable[[slice], Any]:
    """Foolbox's linf PGD without a random start."""
    import foolbox as fb

    tf = backend.tensorflow()
    wrapped = fb.TensorFlowModel(subject.owner.model, bounds=(0, 1))
    attack = fb.attacks.LinfPGD(abs_stepsize=options.step_size, steps=options.steps, random_start=False)
    labels = subject.y.astype(np.int64)
    return lambda p: attack(wrapped, tf.constant(subject.x[p]), tf.constant(labels[p]), epsilons=options.eps)[1].numpy()


def art(subject: Subject, options: Attack) -> Callable[[slice], Any]:
    """ART's PGD on TensorFlow."""
    from art.attacks.evasion import ProjectedGradientDescentTensorFlowV2
    from art.estimators.classification import TensorFlowV2Classifier

    tf = backend.tensorflow()
    loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    wrapped = TensorFlowV2Classifier(
        subject.owner.model, nb_classes=10, input_shape=subject.x.shape[1:], loss_object=loss, clip_values=(0, 1)
    )
    attack = ProjectedGradientDescentTensorFlowV2(
        wrapped, eps=options.eps, eps_step=options.step_size, max_iter=options.steps, batch_size=subject.batch,
        verbose=False,
    )  # fmt: skip
    return lambda p: attack.generate(subject.x[p], np.eye(10, dtype=np.float32)[subject.y[p]])


def torchattacks(subject: Subject, options: Attack) -> Callable[[slice], Any]:
    """Torchattacks' PGD on the copy in PyTorch."""
    import torchattacks as ta

    net, x, y = subject.torch()
    attack = ta.PGD(net, eps=options.eps, alpha=options.step_size, steps=options.steps, random_start=False)
    return lambda p: attack(x[p], y[p]).detach().numpy().transpose(0, 2, 3, 1)


def pytorch(subject: Subject, options: Attack) -> Callable[[slice], Any]:
    """The shortest loop of PyTorch: gradient, step, two clips."""
    import torch

    net, x, y = subject.torch()
    for parameter in net.parameters():
        parameter.requires_grad_(False)

    def run(p: slice) -> Any:
        clean = point = x[p]
        for _ in range(options.steps):
            point = point.detach().requires_grad_(True)
            loss = torch.nn.functional.cross_entropy(net(point), y[p], reduction="sum")
            moved = point + options.step_size * torch.autograd.grad(loss, point)[0].sign()
            point = torch.clamp(torch.minimum(torch.maximum(moved, clean - options.eps), clean + options.eps), 0, 1)
        return point.detach().numpy().transpose(0, 2, 3, 1)

    return run


PEERS = {"cleverhans": hans, "foolbox": foolbox, "art": art, "torchattacks": torchattacks, "pytorch": pytorch}


def pgd(steps: int, **options: Any) -> Attack:
    fields = {"attack": "bim", "eps": EPS, "steps": steps, "step_size": 2.5 * EPS / steps, "keep": "last"}
    return Attack(**{**fields, **options})


def against_peers(subject: Subject, options: Attack, ourselves: Callable[[], None], repetitions: int) -> dict[str, Any]:
    peers = {name: subject.keep(name, make(subject, options)) for name, make in PEERS.items()}
    seconds = interleave({"ours": ourselves, **peers}, repetitions)
    return {**subject.made_with(repetitions, options), **summarize(seconds, "ours", **subject.accuracies())}


def last(subject: Subject, repetitions: int) -> dict[str, Any]:
    options = pgd(40)
    return against_peers(subject, options, subject.keep("ours", ours(subject, options)), repetitions)


def last_in_batches_of_100(subject: Subject, repetitions: int) -> dict[str, Any]:
    smaller = Subject(subject.owner, subject.x, subject.y, 100)
    return last(smaller, repetitions)


def any_iterate(subject: Subject, repetitions: int, eps: float = LARGE) -> dict[str, Any]:
    larger = {"eps": eps, "step_size": 2.5 * eps / 100}
    run = active(subject, "ours", pgd(100, keep="first_success", **larger))
    found = against_peers(subject, pgd(100, **larger), run, repetitions)
    return {**found, "settings": {**found["settings"], "iterate_of_ours": "any"}}


def eps_grid(subject: Subject, repetitions: int) -> dict[str, Any]:
    """Ours with an eps grid, and eight times the plain loop with the same eps, any of whose iterates counts."""
    options = pgd(40, keep="first_success", eps_grid=tuple(EPS_GRID[:-1]))
    plain = [
        subject.keep(f"{eps:.4f}", ours(subject, pgd(40, eps=eps, step_size=eps / 16, keep="best_loss")))
        for eps in EPS_GRID
    ]
    seconds = interleave(
        {"ours": active(subject, "ours", options), "eight_plain_loops": lambda: [run() for run in plain]}, repetitions
    )
    apart = {name: of["accuracy"] for name, of in subject.accuracies().items() if name != "ours"}
    smallest = subject.min_eps  # type: ignore[attr-defined]
    curve = {f"{eps:.4f}": float(np.mean(smallest > eps)) for eps in EPS_GRID}
    found = summarize(seconds, "ours", ours={"accuracies": curve}, eight_plain_loops={"accuracies": apart})
    return {**subject.made_with(repetitions, options), **found}


def strong(subject: Subject, repetitions: int, eps: float = EPS) -> dict[str, Any]:
    """AutoAttack of torchattacks beside our ensemble."""
    options = Attack(attack="strong", eps=eps)
    theirs = subject.keep("torchattacks_autoattack", autoattack(subject, eps))
    seconds = interleave({"ours": active(subject, "ours", options), "torchattacks_autoattack": theirs}, repetitions)
    made_with = subject.made_with(repetitions, options, autoattack_steps=AUTOATTACK_STEPS)
    return {**made_with, **summarize(seconds, "ours", **subject.accuracies())}


def autoattack(subject: Subject, eps: float) -> Callable[[slice], Any]:
    """Torchattacks' AutoAttack of the standard version.

    It has no argument for the steps of APGD and FAB, and its own number is a tenth of the published one.
    """
    import torchattacks as ta

    net, x, y = subject.torch()
    whole = ta.AutoAttack(net, norm="Linf", eps=eps, version="standard", n_classes=10, seed=0)
    for attack in whole._autoattack.attacks:
        if hasattr(attack, "steps"):  # Square has queries
            attack.steps = AUTOATTACK_STEPS
    return lambda p: whole(x[p], y[p]).detach().numpy().transpose(0, 2, 3, 1)


def strong_of_art(subject: Subject, _: int, eps: float = EPS) -> dict[str, Any]:
    """Time ART's AutoAttack beside our ensemble, once, on a fifth of the examples: it takes minutes.

    It is another set than the standard one.
    """
    import torch
    from art.attacks.evasion import AutoAttack
    from art.estimators.classification import PyTorchClassifier

    fifth = len(subject.x) // 5
    subject = Subject(subject.owner, subject.x[:fifth], subject.y[:fifth], fifth)
    net, x, y = subject.torch()
    loss, shape = torch.nn.CrossEntropyLoss(), tuple(x.shape[1:])
    wrapped = PyTorchClassifier(net, loss=loss, input_shape=shape, nb_classes=10, clip_values=(0, 1))
    attack = AutoAttack(wrapped, norm=np.inf, eps=eps, eps_step=eps / 4, batch_size=subject.batch)
    art_auto = subject.keep(
        "art_autoattack", lambda p: attack.generate(x[p].numpy(), y[p].numpy()).transpose(0, 2, 3, 1)
    )
    options = Attack(attack="strong", eps=eps)
    run = active(subject, "ours", options)
    run()  # compiled
    seconds: dict[str, list[float]] = {}
    for name, contender in {"ours": run, "art_autoattack": art_auto}.items():
        begun = time.perf_counter()
        with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stderr(nowhere):
            contender()
        seconds[name] = [time.perf_counter() - begun]
    return {**subject.made_with(1, options), **summarize(seconds, "ours", **subject.accuracies())}


COMPARISONS = {
    "last": last,
    "last_in_batches_of_100": last_in_batches_of_100,
    "any": any_iterate,
    "any_at_0.3": functools.partial(any_iterate, eps=0.3),
    "eps_grid": eps_grid,
    "strong": strong,
    "strong_of_art": strong_of_art,
}
OTHERS = ("convolutional", "rates")


def mnist(run: Path, limit: int) -> Subject:
    owner = classifier.from_run(run)
    examples = data.load("mnist", "test", limit=limit)
    return Subject(owner, (examples.images / np.float32(255)).astype(np.float32), examples.labels, BATCH)


def photographs(normalization: str, limit: int) -> Subject:
    """VGG8 with random weights on random images, at most 200."""
    generator = np.random.default_rng(0)
    n = min(limit, 200)
    net = models.build(validate(Cell, {"arch": "vgg8", "normalization": normalization}, "bench"), PHOTOS)
    images = generator.random((n, *PHOTOS.shape), np.float32)
    labels = np.asarray(net(images, training=False)).argmax(axis=1).astype(np.int32)
    return Subject(from_model(net, PHOTOS, {"weights": "random"}), images, labels, 100)


def convolutional(normalization: str, limit: int, repetitions: int) -> dict[str, Any]:
    subject = photographs(normalization, limit)
    options = pgd(10, eps=1 / 255, step_size=0.25 / 255)
    if ALONE:
        seconds = interleave({"cleverhans": subject.keep("cleverhans", hans(subject, options))}, repetitions)
        return summarize(seconds, "cleverhans", **subject.accuracies())
    found = against_peers(subject, options, subject.keep("ours", ours(subject, options)), repetitions)
    alone = dict(by_default(limit, repetitions)[f"convolutional_{normalization}"]["cleverhans"])
    del alone["times_cleverhans"]
    ratio = round(alone["median_s"] / found["ours"]["median_s"], 2)
    return {**found, "cleverhans_tensorflow_default": {**alone, "times_ours": ratio}}


@functools.cache
def by_default(limit: int, repetitions: int) -> Any:
    """CleverHans on the convolutional nets, with TensorFlow's own setting of oneDNN: the results of a process."""
    command = [sys.executable, __file__, "--only", "convolutional", "--limit", str(limit)]
    environment = {key: value for key, value in os.environ.items() if key != "TF_ENABLE_ONEDNN_OPTS"}
    done = subprocess.run(
        [*command, "--repetitions", str(repetitions)], env={**environment, VARIABLE: "1"}, stdout=subprocess.PIPE,
        check=True,
    )  # fmt: skip
    return json.loads(done.stdout)["results"]


def rates(limit: int, repetitions: int) -> dict[str, Any]:
    """Measure what bounds our attacks: operations a second of PGD beside those of a product of large matrices.

    A gradient is two forward passes. Both take turns.
    """
    options, photos = pgd(40), pgd(10, eps=1 / 255, step_size=0.25 / 255)
    subjects = {f"mlp_{arm}": (mnist(run, limit), options) for arm, run in PAIR.items()}
    subjects |= {f"vgg8_{arm}": (photographs(arm, limit), photos) for arm in PAIR}
    tf = backend.tensorflow()
    matrix = tf.ones((cost_estimate.MATRIX_SIZE, cost_estimate.MATRIX_SIZE)) / cost_estimate.MATRIX_SIZE
    product = backend.compile(lambda a: tf.matmul(a, a))
    work = {name: s.keep("ours", ours(s, o)) for name, (s, o) in subjects.items()}
    seconds = interleave({"matrix_product": lambda: [product(matrix).numpy() for _ in range(10)], **work}, repetitions)
    flops = {
        name: 2 * cost_estimate.forward_flops(s.folded) * len(s.x) * o.steps for name, (s, o) in subjects.items()
    } | {"matrix_product": 10 * 2 * cost_estimate.MATRIX_SIZE**3}  # fmt: skip
    found = {name: flops[name] / statistics.median(of) / 1e9 for name, of in seconds.items()}
    peak = found["matrix_product"]
    made_with = {name: s.made_with(repetitions, o) for name, (s, o) in subjects.items()}
    settings = {name: {"examples": of["examples"], **of["settings"]} for name, of in made_with.items()}
    return {"repetitions": repetitions, "settings": settings, **machine()} | {
        name: {"gflop_per_s": round(rate, 1), "of_the_product": round(rate / peak, 2)} for name, rate in found.items()
    }


def main() -> None:
    parser = arguments(__doc__, limit=1000)
    parser.add_argument("--into", type=Path, help="an output of this file, whose other comparisons are kept")
    parser.add_argument("--only", nargs="+", choices=[*COMPARISONS, *OTHERS], help="some of the comparisons")
    args = parser.parse_args()
    if ALONE:  # TensorFlow decides
        backend.prepare_environment = lambda: os.environ.update({"KERAS_BACKEND": "tensorflow"})
    backend.tensorflow()
    wanted = args.only or [*COMPARISONS, *OTHERS]
    results: dict[str, Any] = {}
    for name, compare in comparisons(wanted, args.limit).items():
        results[name] = compare(args.repetitions)
        if args.into is not None:
            keep(args.into, results, args.repetitions, args.limit)
    if args.into is None:
        print_report(results, args.repetitions, examples=args.limit, eps=EPS, batch=BATCH)


def comparisons(wanted: Sequence[str], limit: int) -> dict[str, Callable[[int], dict[str, Any]]]:
    """Return the comparisons that are wanted, each on its models, as functions of the number of repetitions."""
    found: dict[str, Callable[[int], dict[str, Any]]] = {}
    for name in wanted:
        for arm, run in PAIR.items():
            if name in COMPARISONS:
                found[f"{name}_{arm}"] = lambda n, of=COMPARISONS[name], run=run: of(mnist(run, limit), n)
            elif name == "convolutional":
                found[f"{name}_{arm}"] = lambda n, arm=arm: convolutional(arm, limit, n)
        if name.startswith("strong"):
            for arm, run in TRAINED_ON_ADVERSARIAL_EXAMPLES.items():
                found[f"{name}_{arm}"] = lambda n, of=COMPARISONS[name], run=run: of(mnist(run, limit), n, LARGE)
        if name == "rates":
            found[name] = lambda n: rates(limit, n)
    return found


def keep(path: Path, results: dict[str, Any], repetitions: int, limit: int) -> None:
    """Write results beside what the file holds already. What says nothing of its machine was made on the file's."""
    if path.exists():
        held = json.loads(path.read_text(encoding="utf-8"))
        made_on = {key: held[key] for key in ("device", "versions") if key in held}
        results = {name: {**made_on, **found} for name, found in held["results"].items()} | results
    with path.open("w", encoding="utf-8") as file, contextlib.redirect_stdout(file):
        print_report(results, repetitions, examples=limit, eps=EPS, batch=BATCH)


if __name__ == "__main__":
    main()
