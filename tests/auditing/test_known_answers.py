"""What an audit says of made-up models whose answers are known; `test_made_up.py` proves that these are the answers."""

from __future__ import annotations

import functools

import pytest
from auditing import made_up
from auditing.made_up import Maker

import bn_vuln
from bn_vuln import api
from bn_vuln.auditing.findings import Advice, Findings, ModelFindings

NO_TRAINING = ("statistics", "raise c")


@functools.cache
def audited(make: Maker, limit: int, time: float | None = None) -> Findings:
    """The findings of a made-up model, audited once."""
    made = make()
    before = [weights.copy() for weights in made.model.get_weights()]
    found = api.audit(made.model, made.images, made.labels, limit=limit, time=time).findings
    assert all((a == b).all() for a, b in zip(before, made.model.get_weights(), strict=True)), "it is never changed"
    return found


def model_of(findings: Findings) -> ModelFindings:
    """The only model."""
    (model,) = findings.models
    return model


def without_training(model: ModelFindings) -> list[Advice]:
    """What is advised that needs no training."""
    return [advice for advice in model.advice if advice.kind in NO_TRAINING]


# ---------------------------------------------------------------- a cause is named where there is one


@pytest.mark.slow
def test_three_channels_of_high_gain_are_found_and_named() -> None:
    findings = audited(made_up.three_high_gains, 200)
    model = model_of(findings)
    first, second, third = model.layers
    assert second.gain[-1] == pytest.approx(100, rel=0.02)
    assert second.low_variance_channels == made_up.HIGH_GAINS
    assert second.low_variance_share > 0.9
    assert third.low_variance_share < 0.2
    # The first has gains of thirty, too, and its what-if shows that it is no cause.
    assert first.gain[-1] == pytest.approx(30, rel=0.02)
    (advice,) = without_training(model)
    assert advice == model.advice[0]
    assert advice.kind == "raise c"
    assert "bn2" in advice.text
    assert not any(name in advice.text for name in ("bn1", "bn3", "all"))
    assert advice.mend is not None
    assert advice.mend.layers == ("bn2",)
    (confirmed,) = (finalist for finalist in model.finalists if finalist.gains)
    assert confirmed.mend == advice.mend
    assert confirmed.strong.difference.low > 0.2
    assert confirmed.beyond_statistics is not None
    assert confirmed.beyond_statistics.difference.low > 0.2
    assert confirmed.clean.difference.value >= -0.01
    assert findings.n_choosing == findings.n_reporting == confirmed.strong.n == 100
    # Statistics are right, and so is the model as it is.
    assert max(layer.statistics_distance or 0 for layer in model.layers) < 0.1
    assert not model.upper_bounds


@pytest.mark.slow
def test_stale_statistics_are_found_and_repaired() -> None:
    model = model_of(audited(made_up.stale_statistics, 200))
    assert min(layer.statistics_distance or 0 for layer in model.layers) > 1
    (advice,) = without_training(model)  # raising c on top wins nothing beyond it
    assert advice == model.advice[0]
    assert advice.kind == "statistics"
    assert all(name in advice.text for name in ("bn1", "bn2", "bn3"))
    assert advice.mend is not None
    assert advice.mend.reestimate
    assert not advice.mend.changes_c
    (confirmed,) = (finalist for finalist in model.finalists if finalist.mend == advice.mend)
    assert confirmed.clean.difference.value > 0.3
    assert confirmed.clean.difference.low > 0
    (by_batch,) = (one for one in model.batch_statistics if one.name == "clean")
    assert by_batch.accuracy.value > 0.9


# ---------------------------------------------------------------- and none where there is none


def test_nothing_helps() -> None:
    findings = audited(made_up.nothing_helps, 100)
    model = model_of(findings)
    assert without_training(model) == []
    advice = model.advice[0]
    assert advice.kind == "nothing"
    assert f"Nothing that these {findings.n_reporting} images can show" in advice.text
    assert f"{len(model.candidates)} changes" in advice.text
    # Of 50 images 8 must be won and none lost, for an interval at 1 - .05 / 6 that lies above 0.
    assert "Gains under about 16 points would be missed" in advice.text
    assert model.finalists, "it was tried"
    assert not any(finalist.gains for finalist in model.finalists)
    assert all(finalist.strong.difference.low <= 0 <= finalist.strong.difference.high for finalist in model.finalists)
    assert model.half_eps is not None
    assert max(gain for layer in model.layers for gain in layer.gain) < 1.05


@pytest.mark.parametrize(
    "make", [made_up.no_normalization, pytest.param(made_up.folded_batch_norm, marks=pytest.mark.slow)]
)
def test_no_normalization_layer_may_be_a_folded_one(make: Maker) -> None:
    model = model_of(audited(make, 60))
    assert any("folded at export; audit the model before it" in note for note in model.notes)
    assert "folded at export; audit the model before it" in model.advice[0].text
    assert [advice.kind for advice in model.advice] == ["nothing", "adversarial training"]
    assert model.layers == model.candidates == model.finalists == model.batch_statistics == ()
    assert model.refused == ""
    # And the rest of the audit.
    assert model.strong is not None
    assert model.half_eps is not None
    assert {"clean", "noise 0.1", "gaussian_noise 3"} <= {one.name for one in model.accuracies}


@pytest.mark.slow
def test_group_norm_has_c_alone() -> None:
    model = model_of(audited(made_up.group_normalization, 60))
    assert [(layer.name, layer.kind) for layer in model.layers] == [
        ("gn1", "group"),
        ("gn2", "group"),
        ("gn3", "group"),
    ]
    for layer in model.layers:
        assert layer.statistics_distance is layer.low_variance_share is layer.dead is layer.momentum is None
        assert layer.gain == ()
        assert layer.c == pytest.approx(1e-5)
        assert layer.variance[2] == 1
    assert model.candidates
    assert not any(candidate.mend.reestimate for candidate in model.candidates)
    assert model.batch_statistics == ()
    assert model.refused == ""
    assert without_training(model) == []
    assert model.advice[0].kind == "nothing"
    assert "batch norm" not in model.advice[0].text
    assert not any(advice.kind == "train" for advice in model.advice), "to train it with group norm"


# ---------------------------------------------------------------- numbers that are upper bounds


def test_masked_gradients_make_numbers_upper_bounds() -> None:
    model = model_of(audited(made_up.masked_gradients, 40))
    assert model.upper_bounds
    assert any(flag.check == 4 and flag.value == 1 for flag in model.flags)
    assert "upper bound" in model.advice[0].text
    assert without_training(model) == []


def test_sound_gradients_do_not() -> None:
    assert not model_of(audited(made_up.nothing_helps, 100)).upper_bounds


# ---------------------------------------------------------------- models of all kinds


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "names"),
    [
        (made_up.mixed, ["bn1", "ln2", "gn3"]),
        (made_up.softmax_0_255, ["bn1", "bn2", "bn3"]),
        (made_up.subclassed, ["bn1", "bn2", "bn3"]),
        (made_up.shared_and_nested, ["bn1", "bn2", "bn3"]),
        (made_up.frozen, ["bn1", "bn2", "bn3"]),
        (made_up.channels_first, ["bn1", "bn2", "bn3"]),
        (made_up.dead_channels, ["bn1", "bn2", "dead", "bn3"]),
    ],
)
def test_all_kinds_of_models_are_audited(make: Maker, names: list[str]) -> None:
    findings = audited(make, 40, time=1)
    model = model_of(findings)
    assert [layer.name for layer in model.layers] == names
    assert [layer.place for layer in model.layers] == list(range(1, len(names) + 1))
    assert without_training(model) == []
    assert model.finalists or model.refused, "what is said is confirmed, however short the time is"
    assert findings.skipped, "and what was left out is named"


@pytest.mark.slow
def test_what_they_are_is_said() -> None:
    assert all(layer.frozen for layer in model_of(audited(made_up.frozen, 40, time=1)).layers)
    (dead,) = (one for one in model_of(audited(made_up.dead_channels, 40, time=1)).layers if one.name == "dead")
    assert dead.dead == dead.channels == 16
    assert dead.variance == dead.gain == ()
    assert model_of(audited(made_up.shared_and_nested, 40, time=1)).refused != "", "two calls, two statistics"
    found = dict(model_of(audited(made_up.softmax_0_255, 40, time=1)).found)
    assert any("0-255" in text for text in found.values())


def test_a_second_audit_in_one_process() -> None:
    assert callable(bn_vuln.audit), "a package of this name would take its place once it is imported"
