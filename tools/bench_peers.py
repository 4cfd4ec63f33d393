"""Attacks against the other libraries, on the same weights, images, steps and batches; interleaved medians.

    bash tools/environment.sh dev && source .venv/bin/activate
    python tools/bench_peers.py --into results/bench_peers.json       over an hour on two cores
    python tools/bench_peers.py --only last --limit 200 --repetitions 1

Contenders: `ours` (bnvuln); CleverHans 4, Foolbox 3 and ART (TensorFlow); torchattacks and plain PyTorch (CPU) on a
copy with the same weights. Four comparisons, each on the MNIST pair of table6_matched (seed 0;
results/paper/dd15bd2a8efa with BN and df28a7b8f872 without):

last      PGD-40, eps .05, without a random start, the last point counts: all do the same. In batches of
          500, and (last_in_batches_of_100) of 100.
any       PGD-100, eps .1, where most attacks on the net with BN succeed, and (any_at_0.3) eps .3, as is customary on
          MNIST: bnvuln keeps the first success (an active set), while others take all of their steps.
eps_grid  an eps grid of eight eps up to .05 against eight plain loops with one eps each (`keep: best_loss`).
strong    `strong`, eps .05, against AutoAttack of torchattacks, with the 100 steps of APGD and FAB
          that were published (as it is shipped it gives them 10); also, at eps .1, on the net without BN of
          adversarial_training that was trained on adversarial examples (seed 0; results/beyond/df32af4acab5).
          strong_of_art: ART's own set (APGD-CE, APGD-DLR and Square of five starts each, DeepFool), which takes
          minutes: once, on a fifth.

and `convolutional`: PGD-10 on VGG8 with and without BN, random weights, random images of 32x32x3, labels as predicted.
There `cleverhans_tensorflow_default` is CleverHans in a process of its own with TensorFlow's own setting of oneDNN,
which is off on some machines, where all others here have it on. `rates`: what bounds bnvuln.

With --into each comparison is written as soon as it is done, with its own repetitions, examples, settings, device and
versions; everything outside of `results` is then of the last run alone.
"""

from __future__ import annotations

import contextlib
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
from bench import PAIR, PHOTOS, RESULTS, arguments, engine, interleave, machine, print_report, summarize
from numpy.typing import NDArray
from torch_copy import copy

from bn_vuln import attacks, data, models
from bn_vuln.attacks import cleverhans
from bn_vuln.config import Attack, Cell, validate
from bn_vuln.evaluation.classifier import Classifier, from_model, from_run
from bn_vuln.experiments import cost_estimate
from bn_vuln.runtime import backend

# adversarial_training, none, seed 0
TRAINED_ON_ADVERSARIAL_EXAMPLES = {"adversarial": RESULTS / "beyond" / "df32af4acab5"}
EPS, LARGE, BATCH = 0.05, 0.1, 500
EPS_GRID = [EPS * k / 8 for k in range(1, 9)]
AUTOATTACK_STEPS = 100  # of APGD and FAB, as published
TF_DEFAULT_VARIABLE = "BNVULN_BENCH_TENSORFLOW_DEFAULT"
CLEVERHANS_ONLY = (
    TF_DEFAULT_VARIABLE in os.environ
)  # this process times CleverHans only, see `cleverhans_with_tensorflow_defaults`
Images = NDArray[np.float32]


class Case:
    """A model with the images on which it is attacked; `adversarial` has the images of each contender, by name."""

    def __init__(self, classifier: Classifier, images: Images, labels: NDArray[np.int32], batch: int) -> None:
        self.classifier, self.x, self.y, self.batch = classifier, images, labels, batch
        self.index = np.arange(len(images), dtype=np.int32)
        self.adversarial: dict[str, Images] = {}
        self.min_eps: NDArray[np.float64] | None = None

    def batches(self) -> list[slice]:
        return [slice(i, i + self.batch) for i in range(0, len(self.x), self.batch)]

    def by_batches(self, name: str, attack: Callable[[slice], Any]) -> Callable[[], None]:
        """Return a function that runs `attack` batch by batch and stores its images."""

        def run() -> None:
            self.adversarial[name] = np.concatenate([np.asarray(attack(piece)) for piece in self.batches()])

        return run

    def accuracies(self) -> dict[str, dict[str, Any]]:
        """Return the accuracy on the images of each contender."""
        predict = backend.compile(functools.partial(self.classifier.model, training=False))
        logits = {name: np.concatenate([predict(x[p]) for p in self.batches()]) for name, x in self.adversarial.items()}
        return {name: {"accuracy": float(np.mean(z.argmax(1) == self.y))} for name, z in logits.items()}

    def provenance(self, repetitions: int, options: Attack, **settings: Any) -> dict[str, Any]:
        """Return what a comparison records of its settings and machine; in one file they may differ."""
        attack = {"batch": self.batch, "attack": options.model_dump(mode="json"), **settings}
        return {"repetitions": repetitions, "examples": len(self.x), "settings": attack, **machine()}

    def torch(self) -> tuple[Any, Any, Any]:
        """Return (a copy of the model, images [n, channels, height, width], labels) in PyTorch."""
        import torch

        torch.set_num_threads(len(os.sched_getaffinity(0)))
        x = torch.tensor(np.ascontiguousarray(self.x.transpose(0, 3, 1, 2)))
        return copy(self.classifier.model), x, torch.tensor(self.y.astype(np.int64))


def bnvuln(case: Case, options: Attack) -> Callable[[], None]:
    """Return bnvuln's attack as `bnvuln attack` runs it."""
    attack = engine(case.classifier, case.x, case.y, case.batch)

    def run() -> None:
        found = attack(options)
        case.adversarial["ours"], case.min_eps = found.images, found.min_eps

    return run


def cleverhans_pgd(case: Case, options: Attack) -> Callable[[slice], Any]:
    """CleverHans as it is shipped, on the model as it is."""
    threat_model, predict = attacks.from_config(options, case.classifier.info), case.classifier.predict
    tf = backend.tensorflow()
    return lambda p: cleverhans.attack(
        predict,
        tf.constant(case.x[p]),
        case.y[p],
        threat_model=threat_model,
        steps=options.steps,
        step_size=options.step_size,
    )


def foolbox_pgd(case: Case, options: Attack) -> Callable[[slice], Any]:
    """Foolbox's linf PGD without a random start."""
    import foolbox as fb

    tf = backend.tensorflow()
    wrapped = fb.TensorFlowModel(case.classifier.model, bounds=(0, 1))
    attack = fb.attacks.LinfPGD(abs_stepsize=options.step_size, steps=options.steps, random_start=False)
    labels = case.y.astype(np.int64)
    return lambda p: attack(wrapped, tf.constant(case.x[p]), tf.constant(labels[p]), epsilons=options.eps)[1].numpy()


def art_pgd(case: Case, options: Attack) -> Callable[[slice], Any]:
    """ART's PGD on TensorFlow."""
    from art.attacks.evasion import ProjectedGradientDescentTensorFlowV2
    from art.estimators.classification import TensorFlowV2Classifier

    tf = backend.tensorflow()
    loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    wrapped = TensorFlowV2Classifier(
        case.classifier.model, nb_classes=10, input_shape=case.x.shape[1:], loss_object=loss, clip_values=(0, 1)
    )
    attack = ProjectedGradientDescentTensorFlowV2(
        wrapped, eps=options.eps, eps_step=options.step_size, max_iter=options.steps, batch_size=case.batch,
        verbose=False,
    )  # fmt: skip
    return lambda p: attack.generate(case.x[p], np.eye(10, dtype=np.float32)[case.y[p]])


def torchattacks_pgd(case: Case, options: Attack) -> Callable[[slice], Any]:
    """Torchattacks' PGD on the copy in PyTorch."""
    import torchattacks as ta

    net, x, y = case.torch()
    attack = ta.PGD(net, eps=options.eps, alpha=options.step_size, steps=options.steps, random_start=False)
    return lambda p: attack(x[p], y[p]).detach().numpy().transpose(0, 2, 3, 1)


def pytorch_pgd(case: Case, options: Attack) -> Callable[[slice], Any]:
    """The shortest loop of PyTorch: gradient, step, two clips."""
    import torch

    net, x, y = case.torch()
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


PEERS = {
    "cleverhans": cleverhans_pgd,
    "foolbox": foolbox_pgd,
    "art": art_pgd,
    "torchattacks": torchattacks_pgd,
    "pytorch": pytorch_pgd,
}


def pgd(steps: int, **options: Any) -> Attack:
    fields = {"attack": "bim", "eps": EPS, "steps": steps, "step_size": 2.5 * EPS / steps, "keep": "last"}
    return Attack(**{**fields, **options})


def compare_with_peers(case: Case, options: Attack, repetitions: int, ours: Attack | None = None) -> dict[str, Any]:
    peers = {name: case.by_batches(name, make(case, options)) for name, make in PEERS.items()}
    seconds = interleave({"ours": bnvuln(case, ours or options), **peers}, repetitions)
    return {**case.provenance(repetitions, options), **summarize(seconds, "ours", **case.accuracies())}


def last(case: Case, repetitions: int) -> dict[str, Any]:
    return compare_with_peers(case, pgd(40), repetitions)


def last_in_batches_of_100(case: Case, repetitions: int) -> dict[str, Any]:
    smaller = Case(case.classifier, case.x, case.y, 100)
    return last(smaller, repetitions)


def first_success(case: Case, repetitions: int, eps: float = LARGE) -> dict[str, Any]:
    larger = {"eps": eps, "step_size": 2.5 * eps / 100}
    result = compare_with_peers(case, pgd(100, **larger), repetitions, pgd(100, keep="first_success", **larger))
    return {**result, "settings": {**result["settings"], "iterate_of_ours": "any"}}


def eps_grid(case: Case, repetitions: int) -> dict[str, Any]:
    """Time bnvuln's eps grid against eight attacks of all steps, one for each eps, with `keep: best_loss`."""
    options = pgd(40, keep="first_success", eps_grid=tuple(EPS_GRID[:-1]))
    attack = engine(case.classifier, case.x, case.y, case.batch)

    def eight() -> None:
        for eps in EPS_GRID:
            found = attack(pgd(40, eps=eps, step_size=eps / 16, keep="best_loss"))
            case.adversarial[f"{eps:.4f}"] = found.images

    seconds = interleave({"ours": bnvuln(case, options), "eight_plain_loops": eight}, repetitions)
    plain = {name: of["accuracy"] for name, of in case.accuracies().items() if name != "ours"}
    assert case.min_eps is not None
    curve = {f"{eps:.4f}": float(np.mean(case.min_eps > eps)) for eps in EPS_GRID}
    times = summarize(seconds, "ours", ours={"accuracies": curve}, eight_plain_loops={"accuracies": plain})
    return {**case.provenance(repetitions, options), **times}


def strong(case: Case, repetitions: int, eps: float = EPS) -> dict[str, Any]:
    """Time `strong` against torchattacks' AutoAttack."""
    options = Attack(attack="strong", eps=eps)
    auto = case.by_batches("torchattacks_autoattack", autoattack(case, eps))
    seconds = interleave({"ours": bnvuln(case, options), "torchattacks_autoattack": auto}, repetitions)
    provenance = case.provenance(repetitions, options, autoattack_steps=AUTOATTACK_STEPS)
    return {**provenance, **summarize(seconds, "ours", **case.accuracies())}


def autoattack(case: Case, eps: float) -> Callable[[slice], Any]:
    """Torchattacks' AutoAttack of the standard version.

    It has no argument for the steps of APGD and FAB, and its own number is a tenth of the published one.
    """
    import torchattacks as ta

    net, x, y = case.torch()
    auto = ta.AutoAttack(net, norm="Linf", eps=eps, version="standard", n_classes=10, seed=0)
    for attack in auto._autoattack.attacks:
        if hasattr(attack, "steps"):  # Square has queries
            attack.steps = AUTOATTACK_STEPS
    return lambda p: auto(x[p], y[p]).detach().numpy().transpose(0, 2, 3, 1)


def strong_of_art(case: Case, _: int, eps: float = EPS) -> dict[str, Any]:
    """Time `strong` against ART's AutoAttack, once, on a fifth of the examples: it takes minutes.

    It is another set than the standard one.
    """
    import torch
    from art.attacks.evasion import AutoAttack
    from art.estimators.classification import PyTorchClassifier

    fifth = len(case.x) // 5
    case = Case(case.classifier, case.x[:fifth], case.y[:fifth], fifth)
    net, x, y = case.torch()
    loss, shape = torch.nn.CrossEntropyLoss(), tuple(x.shape[1:])
    wrapped = PyTorchClassifier(net, loss=loss, input_shape=shape, nb_classes=10, clip_values=(0, 1))
    attack = AutoAttack(wrapped, norm=np.inf, eps=eps, eps_step=eps / 4, batch_size=case.batch)
    art_auto = case.by_batches(
        "art_autoattack", lambda p: attack.generate(x[p].numpy(), y[p].numpy()).transpose(0, 2, 3, 1)
    )
    options = Attack(attack="strong", eps=eps)
    run = bnvuln(case, options)
    run()  # compiled
    seconds: dict[str, list[float]] = {}
    for name, contender in {"ours": run, "art_autoattack": art_auto}.items():
        begun = time.perf_counter()
        with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stderr(nowhere):
            contender()
        seconds[name] = [time.perf_counter() - begun]
    return {**case.provenance(1, options), **summarize(seconds, "ours", **case.accuracies())}


COMPARISONS = {
    "last": last,
    "last_in_batches_of_100": last_in_batches_of_100,
    "any": first_success,
    "any_at_0.3": functools.partial(first_success, eps=0.3),
    "eps_grid": eps_grid,
    "strong": strong,
    "strong_of_art": strong_of_art,
}
RESULT_NAMES = {"eps_grid": "ladder"}  # as in results/bench_peers.json
NO_MNIST = ("convolutional", "rates")  # on other models than the MNIST pair


def mnist_case(run: Path, limit: int) -> Case:
    examples = data.load("mnist", "test", limit=limit)
    return Case(from_run(run), (examples.images / np.float32(255)).astype(np.float32), examples.labels, BATCH)


def vgg8_case(normalization: str, limit: int) -> Case:
    """VGG8 with random weights on random images, at most 200."""
    generator = np.random.default_rng(0)
    n = min(limit, 200)
    net = models.build(validate(Cell, {"arch": "vgg8", "normalization": normalization}, "bench"), PHOTOS)
    images = generator.random((n, *PHOTOS.shape), np.float32)
    labels = np.asarray(net(images, training=False)).argmax(axis=1).astype(np.int32)
    return Case(from_model(net, PHOTOS, {"weights": "random"}), images, labels, 100)


def convolutional(normalization: str, limit: int, repetitions: int) -> dict[str, Any]:
    case = vgg8_case(normalization, limit)
    options = pgd(10, eps=1 / 255, step_size=0.25 / 255)
    if CLEVERHANS_ONLY:
        seconds = interleave({"cleverhans": case.by_batches("cleverhans", cleverhans_pgd(case, options))}, repetitions)
        return summarize(seconds, "cleverhans", **case.accuracies())
    result = compare_with_peers(case, options, repetitions)
    alone = dict(
        cleverhans_with_tensorflow_defaults(limit, repetitions)[f"convolutional_{normalization}"]["cleverhans"]
    )
    del alone["times_cleverhans"]
    ratio = round(alone["median_s"] / result["ours"]["median_s"], 2)
    return {**result, "cleverhans_tensorflow_default": {**alone, "times_ours": ratio}}


@functools.cache
def cleverhans_with_tensorflow_defaults(limit: int, repetitions: int) -> Any:
    """Time CleverHans on the convolutional nets in a process with TensorFlow's default for oneDNN."""
    command = [sys.executable, __file__, "--only", "convolutional", "--limit", str(limit)]
    environment = {key: value for key, value in os.environ.items() if key != "TF_ENABLE_ONEDNN_OPTS"}
    command += ["--repetitions", str(repetitions)]
    environment[TF_DEFAULT_VARIABLE] = "1"
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)["results"]


def rates(limit: int, repetitions: int) -> dict[str, Any]:
    """Measure what bounds bnvuln's attacks: FLOP/s of PGD beside those of a product of large matrices.

    A gradient is two forward passes. Both take turns.
    """
    options, photos = pgd(40), pgd(10, eps=1 / 255, step_size=0.25 / 255)
    cases = {f"mlp_{arm}": (mnist_case(run, limit), options) for arm, run in PAIR.items()}
    cases |= {f"vgg8_{arm}": (vgg8_case(arm, limit), photos) for arm in PAIR}
    tf = backend.tensorflow()
    matrix = tf.ones((cost_estimate.MATRIX_SIZE, cost_estimate.MATRIX_SIZE)) / cost_estimate.MATRIX_SIZE
    product = backend.compile(lambda a: tf.matmul(a, a))
    work = {name: bnvuln(s, o) for name, (s, o) in cases.items()}
    seconds = interleave({"matrix_product": lambda: [product(matrix).numpy() for _ in range(10)], **work}, repetitions)
    flops = {
        name: 2 * cost_estimate.forward_flops(s.classifier.model) * len(s.x) * o.steps for name, (s, o) in cases.items()
    } | {"matrix_product": 10 * 2 * cost_estimate.MATRIX_SIZE**3}  # fmt: skip
    gflops = {name: flops[name] / statistics.median(of) / 1e9 for name, of in seconds.items()}
    peak = gflops["matrix_product"]
    provenance = {name: s.provenance(repetitions, o) for name, (s, o) in cases.items()}
    settings = {name: {"examples": of["examples"], **of["settings"]} for name, of in provenance.items()}
    return {"repetitions": repetitions, "settings": settings, **machine()} | {
        name: {"gflop_per_s": round(rate, 1), "of_the_product": round(rate / peak, 2)} for name, rate in gflops.items()
    }


def main() -> None:
    parser = arguments(__doc__, limit=1000)
    parser.add_argument("--into", type=Path, help="an output of this file, whose other comparisons are kept")
    parser.add_argument("--only", nargs="+", choices=[*COMPARISONS, *NO_MNIST], help="some of the comparisons")
    args = parser.parse_args()
    if CLEVERHANS_ONLY:  # TensorFlow decides
        backend.prepare_environment = lambda: os.environ.update({"KERAS_BACKEND": "tensorflow"})
    backend.tensorflow()
    wanted = args.only or [*COMPARISONS, *NO_MNIST]
    results: dict[str, Any] = {}
    for name, compare in comparisons(wanted, args.limit).items():
        results[name] = compare(args.repetitions)
        if args.into is not None:
            merge_into(args.into, results, args.repetitions, args.limit)
    if args.into is None:
        print_report(results, args.repetitions, examples=args.limit, eps=EPS, batch=BATCH)


def comparisons(wanted: Sequence[str], limit: int) -> dict[str, Callable[[int], dict[str, Any]]]:
    """Return the comparisons by their names in the results, as functions of the number of repetitions."""
    selected: dict[str, Callable[[int], dict[str, Any]]] = {}
    for name in wanted:
        for arm, run in PAIR.items():
            if name in COMPARISONS:
                selected[f"{RESULT_NAMES.get(name, name)}_{arm}"] = lambda n, of=COMPARISONS[name], run=run: of(
                    mnist_case(run, limit), n
                )
            elif name == "convolutional":
                selected[f"{name}_{arm}"] = lambda n, arm=arm: convolutional(arm, limit, n)
        if name.startswith("strong"):
            for arm, run in TRAINED_ON_ADVERSARIAL_EXAMPLES.items():
                selected[f"{name}_{arm}"] = lambda n, of=COMPARISONS[name], run=run: of(
                    mnist_case(run, limit), n, LARGE
                )
        if name == "rates":
            selected[name] = lambda n: rates(limit, n)
    return selected


def merge_into(path: Path, results: dict[str, Any], repetitions: int, limit: int) -> None:
    """Add results to those of a file. Earlier results that name no machine get the file's."""
    if path.exists():
        earlier = json.loads(path.read_text(encoding="utf-8"))
        made_on = {key: earlier[key] for key in ("device", "versions") if key in earlier}
        results = {name: {**made_on, **result} for name, result in earlier["results"].items()} | results
    with path.open("w", encoding="utf-8") as file, contextlib.redirect_stdout(file):
        print_report(results, repetitions, examples=limit, eps=EPS, batch=BATCH)


if __name__ == "__main__":
    main()
