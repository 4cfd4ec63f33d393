"""The made-up models have the properties that the audit is to find; nothing of the audit is used here."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from auditing import made_up
from auditing.made_up import MadeUp

from bn_vuln import api
from bn_vuln.config import Attack, Mend
from bn_vuln.evaluation.classifier import Classifier
from bn_vuln.evaluation.evaluator import Evaluator
from bn_vuln.models import normalization_layers as normalization
from bn_vuln.models.normalization_layers import Estimator, NormalizationLayer
from bn_vuln.typing import Images

AS_IT_IS, REESTIMATED = Mend(), Mend(reestimate=True)


class Opened:
    """A made-up model, opened as a user's own."""

    def __init__(self, made: MadeUp, limit: int = 100) -> None:
        opened = api._opened(made.model, api.parse({"limit": limit}, made.images, made.labels))
        self.made, self.classifier = made, opened.classifier
        self.evaluator = Evaluator(opened.classifier, opened.evaluation, checks="none")
        self.layers = layers_of(made, opened.classifier)
        self.estimator = Estimator(made.model, self.layers, opened.classifier.predict, made.train_images)

    def clean(self, mend: Mend = AS_IT_IS) -> float:
        """Accuracy of all images after a change."""
        with normalization.adjustable(self.layers), normalization.applied(self.layers, self._states(mend)):
            return accuracy(self.classifier, self.made.images, self.made)

    def attacked(self, attack: Attack, mend: Mend = AS_IT_IS) -> float:
        """Accuracy under an attack after a change."""
        with normalization.applied(self.layers, self._states(mend)):
            evaluator = self.evaluator.subset(np.arange(len(self.evaluator.eval_set)))
            evaluator.model_flags = ()
            return float(evaluator.run(attack).correct.mean())

    def _states(self, mend: Mend) -> dict[str, normalization.LayerState]:
        return {} if mend == AS_IT_IS else self.estimator.states(mend)


def layers_of(made: MadeUp, classifier: Classifier) -> list[NormalizationLayer]:
    """The normalization layers."""
    return normalization.find(made.model, classifier.predict, made.images[:8])


def accuracy(classifier: Classifier, images: Images, made: MadeUp) -> float:
    """Share of images that are classified correctly."""
    return float(np.mean(np.asarray(classifier.predict(images)).argmax(axis=1) == made.labels))


def strong(eps: str) -> Attack:
    """A short `strong`."""
    return Attack.model_validate({"attack": "strong", "eps": eps, "steps": 20, "targets": 3, "queries": 100})


def in_c(layers: Sequence[str] = ()) -> Mend:
    """Another c, with the gain of the median channel kept and statistics estimated again."""
    return Mend(relative_c=0.1, layers=tuple(layers), reestimate=True)


def test_images_are_8_bit_pixels_of_ten_classes() -> None:
    images, labels = made_up.TEST
    assert images.dtype == np.float32
    assert images.shape == (240, 16, 16, 1)
    assert np.allclose(255 * images, np.round(255 * images), atol=1e-4)
    assert np.mean((images > 0.02) & (images < 0.98)) > 0.98, "so that perturbations are hardly clipped"
    assert np.bincount(labels).tolist() == [24] * 10


def test_three_channels_of_the_second_bn_have_a_hundred_times_the_gain() -> None:
    layers = Opened(made_up.three_high_gains()).layers
    assert [layer.name for layer in layers] == ["bn1", "bn2", "bn3"]
    ratios = [np.sort(g / np.median(g)) for g in (layer.state.gain for layer in layers) if g is not None]
    assert ratios[1][-3:] == pytest.approx([100] * 3, rel=0.01)
    assert ratios[1][:-3] == pytest.approx([1] * 16, rel=0.01)
    assert ratios[0][-3:] == pytest.approx([30] * 3, rel=0.01)
    assert ratios[2] == pytest.approx([1] * 32, abs=0.1)


@pytest.mark.slow
def test_another_c_in_the_second_bn_alone_makes_it_robust() -> None:
    opened = Opened(made_up.three_high_gains())
    clean = opened.clean()
    assert clean > 0.95
    assert opened.clean(in_c(["bn2"])) >= clean - 0.01
    for others in ([], ["bn1"]):
        assert opened.clean(in_c(others)) < clean - 0.1
    before = opened.attacked(strong("2/255"))
    assert before < 0.5
    assert opened.attacked(strong("2/255"), REESTIMATED) == pytest.approx(before, abs=0.03)
    assert opened.attacked(strong("2/255"), in_c(["bn3"])) == pytest.approx(before, abs=0.05)
    assert opened.attacked(strong("2/255"), in_c(["bn2"])) > before + 0.4


def test_stale_statistics_are_repaired() -> None:
    opened = Opened(made_up.stale_statistics())
    assert opened.clean() < 0.65
    assert opened.clean(REESTIMATED) > opened.clean() + 0.3
    assert opened.clean(REESTIMATED) == pytest.approx(Opened(made_up.nothing_helps()).clean(), abs=0.01)


@pytest.mark.parametrize("layers", [(), ("bn1",), ("bn2",), ("bn3",)])
def test_no_c_changes_what_nothing_helps_predicts(layers: tuple[str, ...]) -> None:
    opened = Opened(made_up.nothing_helps())
    before = np.asarray(opened.classifier.predict(opened.made.images))
    kept, fallen = (Mend(relative_c=1, keep_gain=keep, layers=layers) for keep in (True, False))
    with normalization.applied(opened.layers, opened.estimator.states(kept)):
        assert np.asarray(opened.classifier.predict(opened.made.images)) == pytest.approx(before, abs=1e-3)
    again = fallen.model_copy(update={"reestimate": True})
    assert opened.clean(again) == pytest.approx(opened.clean(), abs=0.01)


def test_attacks_see_no_c_in_nothing_helps() -> None:
    opened, attack = Opened(made_up.nothing_helps()), strong("8/255")
    before = opened.attacked(attack)
    assert 0.2 < before < 0.8
    assert opened.attacked(attack, in_c()) == pytest.approx(before, abs=0.02)
    assert opened.attacked(attack, REESTIMATED) == pytest.approx(before, abs=0.02)


def test_a_folded_model_is_the_same_function_without_bn() -> None:
    made, before = made_up.folded_batch_norm(), made_up.three_high_gains()
    assert Opened(made).layers == []
    assert np.asarray(made.model(made.images)) == pytest.approx(np.asarray(before.model(made.images)), abs=1e-2)


@pytest.mark.parametrize(
    ("make", "layers"),
    [
        (made_up.no_normalization, []),
        (made_up.group_normalization, [("gn1", "group"), ("gn2", "group"), ("gn3", "group")]),
        (made_up.mixed, [("bn1", "batch"), ("ln2", "layer"), ("gn3", "group")]),
        (made_up.subclassed, [("bn1", "batch"), ("bn2", "batch"), ("bn3", "batch")]),
        (made_up.shared_and_nested, [("bn1", "batch"), ("bn2", "batch"), ("bn3", "batch")]),
        (made_up.softmax_0_255, [("bn1", "batch"), ("bn2", "batch"), ("bn3", "batch")]),
        (made_up.channels_first, [("bn1", "batch"), ("bn2", "batch"), ("bn3", "batch")]),
        (made_up.frozen, [("bn1", "batch"), ("bn2", "batch"), ("bn3", "batch")]),
        (made_up.dead_channels, [("bn1", "batch"), ("bn2", "batch"), ("dead", "batch"), ("bn3", "batch")]),
    ],
)
def test_what_they_are(make: made_up.Maker, layers: list[tuple[str, str]]) -> None:
    opened = Opened(make())
    assert [(layer.name, layer.kind) for layer in opened.layers] == layers
    assert opened.clean() > 0.85
    if opened.estimator.refusal() is None:
        assert opened.clean(REESTIMATED) == pytest.approx(opened.clean(), abs=0.01), "statistics are right"


def test_softmax_and_0_255() -> None:
    opened = Opened(made_up.softmax_0_255())
    assert opened.classifier.input_scale is not None
    assert opened.classifier.input_scale.name == "0-255"
    outputs = np.asarray(opened.made.model(255 * opened.made.images))
    assert outputs.sum(axis=1) == pytest.approx(np.ones(240), abs=1e-5)


def test_frozen_layers() -> None:
    assert [layer.frozen for layer in Opened(made_up.frozen()).layers] == [True] * 3


def test_channels_are_first() -> None:
    assert made_up.channels_first().model.input_shape == (None, 1, 16, 16)
    assert [layer.channels for layer in Opened(made_up.channels_first()).layers] == [8, 16, 32]


def test_all_channels_are_dead() -> None:
    dead = Opened(made_up.dead_channels()).layers[2]
    assert dead.variance.tolist() == [0.0] * 16
    assert normalization.median_variance(dead.variance) == 0


def test_statistics_of_two_calls_are_not_estimated() -> None:
    refusal = Opened(made_up.shared_and_nested()).estimator.refusal()
    assert refusal is not None
    assert "bn3" in refusal


def test_what_the_shared_bn_is_given_differs_between_its_calls() -> None:
    model = made_up.shared_and_nested().model
    one, other = (made_up.outputs(model, name).std(axis=(0, 1, 2)) for name in ("conv3", "other"))
    assert np.median(other / one) > 3


def test_gradients_are_masked() -> None:
    opened = Opened(made_up.masked_gradients())
    (flag,) = (flag for flag in opened.evaluator.model_flags if flag.check == 4)
    assert flag.value == 1
    by_gradients = Attack.model_validate({"attack": "apgd-ce", "eps": "16/255", "steps": 20})
    without = Attack.model_validate({"attack": "square", "eps": "16/255", "steps": 300})
    assert opened.attacked(without) < opened.attacked(by_gradients) - 0.1
