"""Adversarial training: exact steps of linear models, robust nets, random starts, resume, replicas, options."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from helpers_attacks import norm, pgd, tf
from helpers_runs import check_resume, small_cell

from bn_vuln import data, models
from bn_vuln.attacks import ThreatModel
from bn_vuln.config import Adversarial, Cell, Train, describe_cell, identity_of, validate
from bn_vuln.data.transforms import pixel_array
from bn_vuln.errors import ConfigError
from bn_vuln.runtime.distribution import choose
from bn_vuln.runtime.progress import Quiet
from bn_vuln.training import TrainingLoop, train
from bn_vuln.training.adversarial import inner_attack

LINEAR, DENSE = {"name": "linear", "one_logit": True}, {"name": "mlp", "hidden": [64]}
FEW = {"name": "mnist", "limit": 200, "validation": 500}


def cell_of(adversarial, **changes):
    """A small cell; `adversarial` None is plain training."""
    options = {"epochs": 1, "batch_size": 50, "lr": 0.1, **changes.pop("train", {}), "adversarial": adversarial}
    return small_cell(train=options, **changes)


# ---------------------------------------------------------------- one step of a linear model


def one_step(adversarial, normalization="none"):
    """(the loop after its one step, kernel [784] and bias before it, images [50, 784] in pixels, labels 0 and 1)."""
    two = {"name": "mnist", "classes": [3, 7], "limit": 50, "validation": 50}
    cell = cell_of(adversarial, data=two, arch=LINEAR, normalization=normalization)
    examples = data.load_training_data(cell.data, "train", 0)
    loop = TrainingLoop(cell, models.build(cell, examples.info), examples, examples)
    kernel, bias = (np.array(v, np.float64) for v in loop.model.get_layer("logit").trainable_variables)
    loop.epoch(0, Quiet())
    return loop, kernel.ravel(), bias, pixel_array(examples.images, 28).reshape(50, -1), examples.labels


def worst_case(loop, kernel, x, y, *, ord="inf", eps, unit="pixel", box=(0, 1), **_):
    """The worst case of a linear model in the eps ball, standardized (exact with the box for inf)."""
    mean, std = loop.training.info.mean[0], loop.training.info.std[0]
    away = np.sign(kernel) if ord == "inf" else kernel / np.linalg.norm(kernel)
    moved = x - np.where(y == 1, 1.0, -1.0)[:, None] * eps * (std if unit == "standardized" else 1.0) * away
    return ((moved if box == "none" else np.clip(moved, *box)) - mean) / std


@pytest.mark.parametrize(
    "adversarial",
    [
        {"eps": 0.1},  # the default steps, 2.5 eps in all, reach the corner from any start
        {"eps": 0.2, "unit": "standardized", "box": "none", "steps": 5},
        {"eps": 0.1, "steps": 1, "random_start": False},
        {"eps": 2, "ord": 2, "box": "none", "steps": 2, "random_start": False},
    ],
    ids=["pgd", "standardized", "fgsm", "two"],
)
def test_a_step_of_a_linear_model_is_one_on_its_worst_cases(eagerly, adversarial):
    loop, kernel, bias, x, y = one_step(adversarial)
    worst = worst_case(loop, kernel, x, y, **adversarial)
    error = 1 / (1 + np.exp(-(worst @ kernel + bias))) - y
    after = [np.array(v).ravel() for v in loop.model.trainable_variables]
    np.testing.assert_allclose(after[0], kernel - 0.1 * worst.T @ error / 50, atol=1e-6)
    np.testing.assert_allclose(after[1], bias - 0.1 * error.mean(), atol=1e-6)


def test_the_attack_uses_the_moving_statistics_and_the_update_those_of_its_batch(eagerly):
    """At the first step the moving statistics are 0 and 1, so that the worst case is that of the kernel alone."""
    loop, kernel, _, x, y = one_step({"eps": 0.1}, {"name": "batch", "momentum": 0.75})
    mean = worst_case(loop, kernel, x, y, eps=0.1).mean(0)
    np.testing.assert_allclose(loop.model.get_layer("normalization").moving_mean, 0.25 * mean, atol=1e-5)


# ---------------------------------------------------------------- random starts


def starts(cell, updates, shape=(50, 4, 4, 2), replicas=1):
    """The starting points of an attack, whose steps here have no length."""
    info = SimpleNamespace(mean=(0.5, 0.5), std=(0.25, 0.25))
    optimizer = SimpleNamespace(iterations=tf.Variable(updates, dtype=tf.int64))
    attack = inner_attack(cell, cell.train.adversarial, lambda x, training: x[:, 0, 0], optimizer, info, replicas)
    n = shape[0] // replicas
    return attack(tf.fill((n, *shape[1:]), 0.5), tf.zeros(n, tf.int32)).numpy() - 0.5


def test_random_starts_are_those_of_the_seed_the_update_and_the_place():
    ord, eps = "2", 0.4
    options = {"ord": ord, "eps": eps, "steps": 1, "step_size": 0}
    first = starts(cell_of(options), 7)
    assert 0.9 * eps < norm(first, ord).max() <= eps * (1 + 1e-6)
    assert len(np.unique(first[:, 0, 0, 0])) == 50
    np.testing.assert_array_equal(starts(cell_of(options, normalization="batch", weight_decay=0.1), 7), first)
    np.testing.assert_array_equal(starts(cell_of(options), 7, replicas=2), first[:25])
    for other in (starts(cell_of(options), 8), starts(cell_of(options, seed=1), 7)):
        assert np.isin(other, first).mean() < 0.01  # single numbers may coincide


# ---------------------------------------------------------------- whole trainings


def test_an_eps_of_zero_is_plain_training(eagerly):
    plain, trained = (train(cell_of(options, arch=DENSE, data=FEW)) for options in (None, {"eps": 0, "steps": 2}))
    for a, b in zip(plain.model.get_weights(), trained.model.get_weights(), strict=True):
        np.testing.assert_allclose(b, a, atol=1e-5)
    assert trained.history[0].train_accuracy == pytest.approx(plain.history[0].train_accuracy, abs=0.01)


@pytest.mark.slow
def test_it_makes_nets_robust():
    """In 3 epochs, against PGD at eps .1: about .2 and .1 (plain) against .5."""
    held = data.load("mnist", "test", limit=300)
    x, threat_model, accuracies = pixel_array(held.images, 28), ThreatModel("inf", 0.1, 1.0, 0.0, 1.0), []
    for options in (None, {"eps": 0.1, "steps": 5}):
        trained = train(cell_of(options, arch=DENSE, normalization="batch", train={"epochs": 3}))
        assert trained.record.state == "trained"
        found = pgd(
            trained.model,
            x,
            held.labels,
            threat_model=threat_model,
            steps=10,
            step_size=0.025,
        )
        accuracies.append(np.mean(np.argmax(trained.model(found), axis=1) == held.labels))
    assert accuracies[1] > accuracies[0] + 0.15
    assert trained.history[-1].train_accuracy < trained.history[-1].validation_accuracy  # that is on clean images


@pytest.mark.slow
def test_two_replicas_train_what_one_device_trains():
    """In the 2-ball: the sign of a gradient that is nearly zero is rounding alone, and moves its pixel either way."""
    options = {"ord": "2", "eps": 1, "steps": 2}
    cell = cell_of(options, arch=DENSE, data=FEW, normalization={"name": "batch", "synchronized": True})
    one, two = train(cell), train(cell, distribution=choose("mirrored"))
    assert two.history[0].loss == pytest.approx(one.history[0].loss, rel=1e-5)
    for a, b in zip(one.model.get_weights(), two.model.get_weights(), strict=True):
        np.testing.assert_allclose(b, a, atol=1e-5 * np.abs(a).max())


def test_a_resumed_training_ends_with_the_same_bits(eagerly, tmp_path, monkeypatch):
    """Short steps end where the random start lets them, so it must go on, too."""
    options = {"epochs": 2, "batch_size": 50, "lr": 0.1, "select": "last"}
    cell = cell_of(
        {"eps": 0.1, "steps": 1, "step_size": 0.02}, arch=DENSE, data=FEW, normalization="batch", train=options
    )
    check_resume(cell, tmp_path, monkeypatch)


# ---------------------------------------------------------------- config and options


def test_plain_cells_keep_their_ids_and_others_have_their_own():
    assert "adversarial" not in identity_of(cell_of(None))["train"]
    assert identity_of(cell_of({"eps": 0.1}))["train"]["adversarial"]["step_size"] == 0.025
    short, written = cell_of({"eps": "1/10", "ord": 2}), cell_of({"eps": 0.1, "ord": "2", "step_size": 0.025})
    assert short == written
    assert identity_of(short) == identity_of(written) != identity_of(cell_of({"eps": 0.1}))


def test_the_step_size_follows_from_eps_and_steps():
    for fields, step_size in (
        ({}, 0.025),
        ({"steps": 1}, 0.1),
        ({"step_size": None}, 0.025),
        ({"step_size": "1/8"}, 0.125),
    ):
        assert validate(Adversarial, {"eps": 0.1, **fields}, "x").step_size == pytest.approx(step_size)


@pytest.mark.parametrize(
    ("fields", "fragments"),
    [
        ("pgd", ["train.adversarial: expected a mapping", "received 'pgd'"]),
        ({}, ["train.adversarial.eps: missing"]),
        ({"eps": 0.1, "ord": 1}, ["train.adversarial.ord: expected 'inf' or '2'", "received '1'"]),
        ({"eps": 0.1, "stps": 3}, ["unknown key 'stps'", "did you mean 'steps'?"]),
    ],
)
def test_mistakes_are_explained_once(fields, fragments):
    with pytest.raises(ConfigError) as caught:
        validate(Cell, {"train": {"adversarial": fields}}, "x")
    assert [fragment for fragment in fragments if fragment not in str(caught.value)] == [], caught.value
    assert len(str(caught.value).splitlines()) == 1


def test_it_is_described():
    assert "batch c=1e-05 adversarial inf eps 0.1 pixel, 10 steps, lr 0.1," in describe_cell(
        cell_of({"eps": 0.1}, normalization="batch")
    )
    assert "adversarial 2 eps 1 standardized, 1 step, lr" in describe_cell(
        cell_of({"eps": 1, "ord": 2, "unit": "standardized", "steps": 1})
    )
    assert "adversarial" not in describe_cell(cell_of(None))


def test_a_gradient_of_the_attack_costs_two_forward_passes():
    assert Train().forward_passes == 3
    assert validate(Train, {"adversarial": {"eps": 0.1, "steps": 7}}, "x").forward_passes == 17


PGD = ["--adversarial", "pgd", "--adversarial-eps", "1/10"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], None),
        (
            [*PGD, "--adversarial-unit", "standardized", "--adversarial-ord", "2", "--adversarial-box", "none"],
            {"eps": 0.1, "unit": "standardized", "ord": "2", "box": "none"},
        ),
        (["--adversarial", "fgsm", "--adversarial-eps", "1"], {"eps": 1, "steps": 1, "random_start": False}),
    ],
)  # fmt: skip
def test_options_reach_the_config(bnvuln, options, expected):
    code, out, err = bnvuln("train", *options, "--dry-run", "--json")
    assert (code, err) == (0, "")
    written = None if expected is None else validate(Adversarial, expected, "x").model_dump(mode="json")
    assert json.loads(out)["train"]["adversarial"] == written


@pytest.mark.parametrize(
    ("options", "fragments"),
    [
        (["--adversarial", "pgd"], ["--adversarial pgd needs --adversarial-eps"]),
        (["--adversarial-eps", "0.1"], ["--adversarial-eps needs --adversarial"]),
        (["--adversarial", "fgsm", "--adversarial-eps", "0.1", "--adversarial-steps", "2"], ["fgsm is one step"]),
    ],
)
def test_bad_options_are_explained(bnvuln, options, fragments):
    code, out, err = bnvuln("train", *options, "--dry-run")
    assert (code, out) == (2, "")
    assert [fragment for fragment in fragments if fragment not in err] == [], err
