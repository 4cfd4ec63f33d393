"""Attack diagnostics: models built to trip each check, and sound ones that pass."""

import numpy as np
import pytest
from helpers_attacks import keras, tf, wave_classifier

from bn_vuln.config import Attack, Clean, Evaluation
from bn_vuln.data.mnist import INFO as MNIST
from bn_vuln.evaluation import attack_diagnostics, sanity_checks
from bn_vuln.evaluation.classifier import from_model
from bn_vuln.evaluation.evaluator import Evaluator

N = 60
T, F = np.ones(1000, bool), np.zeros(1000, bool)


def share(fraction):
    """Correct, bool [1000], of this fraction of the examples."""
    return np.arange(1000) < round(1000 * fraction)


# ---------------------------------------------------------------- the functions, on made-up arrays


TRIPS_AND_PASSES = [
    (sanity_checks.weaker_than_one_step, (share(0.5), share(0.4)), (share(0.5), share(0.499))),
    (sanity_checks.not_converged, (share(0.5), share(0.49)), (share(0.5), share(0.497))),
    (sanity_checks.not_converged, (share(0.5), share(0.51)), (share(0.5), share(0.5))),
    (sanity_checks.loss_still_moves, (0.1, 1.0, 1.1), (0.1, 1.0, 1.04)),
    (sanity_checks.masked_gradients, (share(0.5), share(0.49)), (share(0.5), share(0.499))),
    (sanity_checks.last_iterate_not_best, (share(0.5), share(0.49)), (share(0.5), share(0.497))),
    (sanity_checks.noise_as_strong, (share(0.5), share(0.5)), (share(0.5), share(0.51))),
    (sanity_checks.noise_as_strong, (share(0.5), share(0.4)), (T, T)),
    (sanity_checks.noise_as_strong, (share(0.9), share(0.8)), (F, F)),
    (sanity_checks.image_is_not_stored_image, (share(0.5), share(0.52)), (share(0.5), share(0.504))),
    (sanity_checks.image_is_not_stored_image, (share(0.5), share(0.48)), (share(0.5), share(0.5))),
    (sanity_checks.too_few_restarts, (share(0.5), share(0.49)), (share(0.5), share(0.6))),
    (
        sanity_checks.accuracy_not_monotone_in_eps,
        ((1, 2, 4), (0.5, 0.4, 0.41)),
        ((1, 2, 4), (0.5, 0.4, 0.404)),
    ),
    (sanity_checks.above_chance_without_eps_limit, (0.2, 0.1), (0.1, 0.1)),
    (sanity_checks.weaker_than_a_short_attack, (np.arange(100) < 4, 510, 1000), (np.arange(100) < 4, 500, 1000)),
    (sanity_checks.weaker_than_a_short_attack, (np.arange(5) < 4, 5, 10), (np.arange(3) < 3, 3, 10)),
    (sanity_checks.weaker_than_a_short_attack, (T[:10], 100, 1000), (T[:0], 0, 1000)),
]


def test_a_check_trips_and_passes():
    for check, trips, passes in TRIPS_AND_PASSES:
        flag = check(*trips)
        assert flag is not None, check
        assert check(*passes) is None, check
        assert f"Check {flag.check}" in check.__doc__
        assert len(flag.message) > 40


def test_one_step_must_be_better_by_two_standard_errors():
    rng = np.random.default_rng(0)
    a, b = rng.random(1000) < 0.5, rng.random(1000) < 0.46
    difference, error = a.mean() - b.mean(), np.std(a.astype(float) - b) / np.sqrt(1000)
    assert (sanity_checks.weaker_than_one_step(a, b) is None) == (difference <= 2 * error)


# ---------------------------------------------------------------- through the evaluator


def linear(seed=0, scale=1.0, before=()):
    """A linear model of MNIST by a random matrix, after layers that mislead."""
    keras.utils.set_random_seed(seed)
    inputs = x = keras.Input((28, 28, 1))
    for layer in before:
        x = layer(x)
    kernel = keras.initializers.RandomNormal(stddev=0.05 * scale, seed=seed)
    return keras.Model(inputs, keras.layers.Dense(10, kernel_initializer=kernel)(keras.layers.Flatten()(x)))


def evaluator(model, checks="full", n=N):
    """Labels are the model's predictions."""
    found = Evaluator(from_model(model, MNIST, {"weights": "made up"}), Evaluation(limit=n), checks=checks)
    found.eval_set.labels[:] = found.eval_set.logits(found.eval_set.pixels).argmax(axis=1)
    return found


def names(subject, **options):
    record = subject.run(Attack(**{"eps": 0.02, "attack": "pgd", "steps": 10, **options})).record
    return {flag.name for flag in record.flags}


class Quantized(keras.layers.Layer):
    """Rounds pixels to eighths: no gradient but where one is made up, which points the wrong way."""

    def call(self, x):
        rounded = tf.round(8.0 * x) / 8.0
        return tf.stop_gradient(rounded + x) - x  # the value of rounded, the slope of -x


@pytest.mark.slow
def test_a_sound_model_passes_them_all():
    assert names(evaluator(linear()), attack="apgd-t", steps=20, targets=3) <= {"the image is not the stored image"}


@pytest.mark.slow
def test_gradients_that_mislead_trip_one_step_or_square():
    found = names(evaluator(linear(before=[Quantized()])), eps=0.1)
    assert "masked gradients" in found
    assert "the budget does not bite" in found
    assert "noise as strong as the attack" in found


@pytest.mark.slow
def test_few_small_steps_trip_convergence():
    found = names(evaluator(linear()), attack="bim", steps=10, step_size=1e-4, keep="last", eps=0.05)
    assert {"not converged", "loss still moves", "weaker than one step", "steps cannot reach the border"} <= found


@pytest.mark.slow
def test_steps_that_overshoot_trip_the_last_iterate():
    class Wave(keras.layers.Layer):
        def call(self, x):
            return tf.sin(40.0 * x)

    found = names(evaluator(linear(before=[Wave()])), attack="bim", steps=10, step_size=0.2, eps=0.1, keep="last")
    assert "the last iterate, not the best" in found


def test_none_and_basic_do_less():
    few = {"attack": "bim", "steps": 10, "step_size": 1e-4, "keep": "last", "eps": 0.05}
    assert names(evaluator(linear(), "none"), **few) == {"steps cannot reach the border"}
    assert "not converged" not in names(evaluator(linear(), "basic"), **few)


def test_a_sample_is_spread_over_the_examples_and_basic_is_small(monkeypatch):
    subject, calls, run = evaluator(linear(), "basic", n=1000), [], Evaluator.run

    def record_call(self, perturbation, **_):
        calls.append((perturbation.attack, len(self.eval_set.dataset)))
        return run(self, perturbation)

    monkeypatch.setattr(Evaluator, "run", record_call)
    subject.run(Attack(attack="bim", eps=0.02, steps=5))
    assert calls == [("bim", 1000), ("fgsm", 250), ("apgd-t", 100)]
    subset = subject.subset(np.array([0, 500, 999]))
    np.testing.assert_array_equal(subset.eval_set.pixels, subject.eval_set.pixels[[0, 500, 999]])
    assert len(subject.eval_set.dataset) == 1000


def test_clean_images_and_targeted_attacks_have_no_diagnostics():
    subject = evaluator(linear())
    assert subject.run(Clean()).record.flags == ()
    assert names(subject, target="next") == set()
    assert names(subject, eps=0) == {"eps is 0"}


@pytest.mark.slow
def test_a_weak_attack_trips_the_short_one():
    """BIM with steps of eps / 4 on a net of sines leaves what another attack finds."""
    found = Evaluator(wave_classifier(MNIST, 0.2), Evaluation(limit=100), checks="basic")
    found.eval_set.labels[:] = found.eval_set.clean_logits.argmax(axis=1)
    weak = found.run(Attack(eps=0.012, attack="bim", steps=2, step_size=0.003)).record
    true = found.run(Attack(eps=0.012, attack="apgd-ce", steps=30)).record.accuracy
    flags = {flag.check: flag for flag in weak.flags}
    assert flags[24].value == pytest.approx(weak.accuracy - true, abs=0.03)
    assert weak.accuracy > true + 0.1
    assert "Report the attack strong" in flags[24].message
    apgd = found.run(Attack(eps=0.012, attack="apgd-t", steps=1, targets=1)).record
    assert 24 not in {flag.check for flag in apgd.flags}


def test_a_short_attack_takes_a_share_of_the_evaluations_or_of_large_models_few_images(monkeypatch):
    subject, calls, run = evaluator(linear(), "basic", n=1000), [], Evaluator.run

    def record_call(self, perturbation, **_):
        calls.append((perturbation.attack, len(self.eval_set)))
        return run(self, perturbation)

    monkeypatch.setattr(Evaluator, "run", record_call)
    assert attack_diagnostics.multiplications(linear()) == 7851  # 784 x 10 and 10, and 1
    large = attack_diagnostics.SHORT_MULTIPLICATIONS
    monkeypatch.setattr(attack_diagnostics, "multiplications", lambda _: large)
    subject.run(Attack(attack="bim", eps=1e-4, steps=10, keep="last"))  # 10,000 evaluations: 2,000 for 20 an image
    subject.run(Attack(attack="fgsm", eps=1e-4))  # 1,000: 200
    assert [n for attack, n in calls if attack == "apgd-t"] == [100, 10]
    convolution = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(5, 3)])
    monkeypatch.undo()
    assert attack_diagnostics.multiplications(convolution) == 1 + (3 * 3 * 3 * 5 + 5) * 36
