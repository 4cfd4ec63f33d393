"""`strong` is as strong as AutoAttack at its published settings, on convolutional nets with and without batch norm.

`pytest -m slow -rP tests/attacks/test_autoattack.py` prints the accuracies and seconds of both.
"""

import importlib
import time
from pathlib import Path

import numpy as np
import pytest
from helpers_attacks import keras

import bn_vuln as bnv
from bn_vuln import data

TOOLS = Path(__file__).parents[2] / "tools"
EPS = {("batch", "inf"): 0.06, ("none", "inf"): 0.07, ("batch", "2"): 0.85, ("none", "2"): 1.1}  # half are broken
N, STEPS, TARGETS, QUERIES = 200, 100, 9, 5000

pytestmark = pytest.mark.slow


def trained(normalization):
    """A net of two convolutions, as Wong and Kolter 2018 have it but half as wide, trained on 10,000 images."""
    layers = keras.layers
    keras.utils.set_random_seed(0)
    blocks = []
    for filters in (8, 16):
        blocks.append(layers.Conv2D(filters, 4, strides=2, use_bias=normalization == "none"))
        if normalization == "batch":
            blocks.append(layers.BatchNormalization(momentum=0.9))
        blocks.append(layers.ReLU())
    model = keras.Sequential([keras.Input((28, 28, 1)), *blocks, layers.Flatten(), layers.Dense(10)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.002), loss)
    examples = data.load("mnist", "train", limit=10_000)
    model.fit(examples.images / np.float32(255), examples.labels, batch_size=100, epochs=3, verbose=0)
    return model


def autoattack(torchattacks, net, norm, eps):
    """The standard version of AutoAttack (Croce and Hein 2020).

    `torchattacks.AutoAttack` is another: APGD and FAB take 10 steps, and the schedule of Square is rescaled. Its APGDT
    takes the first example's step size for the whole batch where the norm is L2, so here it has the run of APGD.
    """

    class APGDT(torchattacks.APGDT):
        loss = "dlr"

        def attack_single_run(self, x, y):
            self.targets = self.get_logits(x).argsort(1)[:, -self.target_class]
            return torchattacks.APGD.attack_single_run(self, x, y)

        def dlr_loss(self, logits, y):
            return self.dlr_loss_targeted(logits, y, self.targets)

    common = {"norm": norm, "eps": eps, "seed": 0}
    return torchattacks.MultiAttack(
        [
            torchattacks.APGD(net, steps=STEPS, loss="ce", **common),
            APGDT(net, steps=STEPS, n_classes=TARGETS + 1, **common),
            torchattacks.FAB(net, steps=STEPS, multi_targeted=True, n_classes=TARGETS + 1, **common),
            torchattacks.Square(net, n_queries=QUERIES, resc_schedule=False, **common),
        ]
    )


@pytest.fixture(scope="module", params=["batch", "none"])
def pair(request):
    """(normalization, a net, the same in PyTorch, test images in [0, 1], their labels)."""
    reason = "PyTorch or torchattacks, of the extra bench, is not installed: make environment"
    torch, _ = (pytest.importorskip(library, reason=reason) for library in ("torch", "torchattacks"))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(TOOLS))
        copy = importlib.import_module("torch_copy").copy
    model, examples = trained(request.param), data.load("mnist", "test", limit=N)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # beside other tests, threads that wait for each other take several times as long
    yield request.param, model, copy(model), examples.images / np.float32(255), examples.labels
    torch.set_num_threads(threads)


def in_torch(x):
    """Images with channels first, as a tensor."""
    return importlib.import_module("torch").tensor(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))


def lengths(differences, ord):
    flat = differences.reshape(N, -1).astype(np.float64)
    return np.linalg.norm(flat, np.inf if ord == "inf" else 2, axis=1)


@pytest.mark.parametrize("ord", ["inf", "2"])
def test_strong_leaves_at_most_half_a_point_more_than_autoattack(pair, ord):
    normalization, model, net, x, y = pair
    import torch
    import torchattacks

    eps, images, labels = EPS[normalization, ord], in_torch(x), torch.tensor(y.astype(np.int64))
    with torch.no_grad():
        np.testing.assert_allclose(net(images), model.predict(x, verbose=0), atol=1e-4)

    begun = time.perf_counter()
    options = {"input_scale": "0-1", "output": "logits", "checks": "none"}
    ours = bnv.attack(model, x, y, attack="strong", ord=ord, eps=eps, **options)
    between = time.perf_counter()
    found = autoattack(torchattacks, net, {"inf": "Linf", "2": "L2"}[ord], eps)(images, labels).detach()
    seconds = between - begun, time.perf_counter() - between

    with torch.no_grad():  # the copy judges both
        resists = {
            name: (net(points).argmax(1) == labels).numpy()
            for name, points in {"ours": in_torch(ours.images), "theirs": found}.items()
        }
    for points in (ours.images, found.numpy().transpose(0, 2, 3, 1)):
        np.testing.assert_array_equal(points, np.clip(points, 0, 1))
        assert lengths(points - x, ord).max() <= eps * (1 + 1e-5)
    print(
        f"{normalization}, ord {ord}, eps {eps}, {N} images, clean {ours.clean.correct.mean():.3f}: strong "
        f"{ours.correct.mean():.3f} ({resists['ours'].mean():.3f} by the copy), {seconds[0]:.1f} s; "
        f"AutoAttack {resists['theirs'].mean():.3f}, {seconds[1]:.1f} s; broken by one alone: "
        f"{np.sum(~ours.correct & resists['theirs'])}, {np.sum(ours.correct & ~resists['theirs'])}"
    )
    assert 0.3 <= resists["theirs"].mean() <= 0.7
    for correct in (ours.correct, resists["ours"]):
        assert np.mean(correct) <= np.mean(resists["theirs"]) + 0.005
