"""A whole audit of a tiny net: what is found, what is kept, how it goes on, and what it leaves as it was."""

import functools
import json
from types import SimpleNamespace

import numpy as np
import pytest

import bn_vuln as bnv
from bn_vuln.auditing import confirmation, findings, fragility, run
from bn_vuln.auditing.findings import Findings
from bn_vuln.auditing.options import AuditOptions, parse_requirement
from bn_vuln.errors import UsageError
from bn_vuln.runtime import backend

backend.start()
import keras  # noqa: E402

RNG = np.random.default_rng(0)
LABELS = (np.arange(240) % 2).astype(np.int32)
BRIGHTER = np.where(LABELS[:, None] == np.arange(6) // 3, 0, RNG.uniform(12, 60, (240, 1)))  # one half is
IMAGES = (RNG.integers(60, 100, (240, 6, 6)) + BRIGHTER[:, None]).astype(np.uint8)[..., None]
OPTIONS = {"limit": 40, "input_scale": "0-1"}
OF_THE_RUN = {"command", "seconds", "date"}


def net(normalization=True):
    """Left less right, with BN before and behind it, or none: right on all images."""
    keras.utils.set_random_seed(0)
    last = keras.layers.Dense(2, use_bias=False, name="last")
    layers = [keras.layers.Flatten(), last]
    if normalization:
        first = keras.layers.BatchNormalization(name="first")
        layers = [first, keras.layers.Flatten(), last, keras.layers.BatchNormalization(name="second", epsilon=1e-3)]
    model = keras.Sequential([keras.Input((6, 6, 1)), *layers])
    left = np.where(np.arange(36) % 6 < 3, 0.05, -0.05)
    last.set_weights([np.stack([-left, left], 1)])
    return model


def state(model):
    """All variables, and c of each layer with its type."""
    constants = [(layer.epsilon, type(layer.epsilon)) for layer in model.layers if hasattr(layer, "epsilon")]
    return [np.asarray(variable).copy() for variable in model.variables], constants


def same(before, after):
    return before[1] == after[1] and all(
        one.dtype == other.dtype and np.array_equal(one, other) for one, other in zip(before[0], after[0], strict=True)
    )


def comparable(found: Findings):
    """Findings without what is another one in each run."""
    plain = found.model_dump(mode="json", exclude=OF_THE_RUN)
    for model in plain["models"]:
        for advice in model["advice"]:
            advice["command"] = advice["command"].replace("resumed", "whole")
    return plain


@functools.cache
def model():
    return net()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(the findings of an undisturbed audit, its folder)."""
    folder = tmp_path_factory.mktemp("audits") / "whole"
    before = state(model())
    found = bnv.audit(model(), IMAGES, LABELS, out=folder, require="clean >= .9", **OPTIONS)
    assert same(before, state(model())), "the model is as it was"
    return found, folder


def test_everything_is_measured(whole):
    found = whole[0].findings
    (one,) = found.models
    assert (found.n_choosing, found.n_reporting, found.skipped) == (20, 20, ())
    assert [layer.name for layer in one.layers] == ["first", "second"]
    assert [layer.channels for layer in one.layers] == [1, 2]
    assert [layer.c for layer in one.layers] == pytest.approx([1e-3, 1e-3])
    assert {a.name for a in one.accuracies} == {
        "clean", "noise 0.05", "noise 0.1", "noise 0.2", "gaussian_noise 3", "shot_noise 3", "impulse_noise 3",
        "speckle_noise 3",
    }  # fmt: skip
    assert [a.name for a in one.batch_statistics] == ["clean", "noise", "PGD"]
    left = [point.accuracy.value for point in one.curve]
    assert len(left) == 11
    assert left == sorted(left, reverse=True)
    assert left[0] == 1
    assert left[-1] < 0.1
    assert one.curve[0].eps < one.half_eps < one.curve[-1].eps
    assert one.strong.n == 20
    assert 1 <= len([c for c in one.candidates if c.finalist]) == len(one.finalists) <= 3
    tried = [(c.mend.layers, c.mend.relative_c, c.mend.keep_gain) for c in one.candidates]
    assert len(tried) == len(set(tried)) == 13 + 2, "statistics, six r with two kinds of gain, then one layer at a time"
    assert all(f.strong.before == one.strong.accuracy.value for f in one.finalists)
    assert {e.label for e in one.examples} == {"0", "1"}
    assert all(e.label == e.clean != e.attacked for e in one.examples)


def test_what_is_found_is_kept(whole):
    result, folder = whole
    assert findings.read(folder) == result.findings
    assert result.page == folder / "index.html"
    assert result.page.read_text().startswith("<!doctype html>")
    assert result.findings.options["dataset"].startswith("arrays:")
    assert result.met
    with np.load(folder / "examples_0.npz") as arrays:
        change = arrays["attacked"] - arrays["clean"]
        assert len(change) == len(result.findings.models[0].examples)
    assert 0 < np.abs(change).max() <= result.findings.eps * (1 + 1e-5)


def test_nothing_is_measured_twice(whole, monkeypatch):
    """Not for another condition either; images that another audit has overwritten are there again."""
    result, folder = whole
    (folder / "examples_0.npz").write_bytes(b"those of another audit")
    monkeypatch.setattr(run.Subject, "costs", None)
    monkeypatch.setattr(run.Subject, "measure", None)
    again = bnv.audit(model(), IMAGES, LABELS, out=folder, require="clean >= .9", **OPTIONS)
    assert comparable(again.findings) == comparable(result.findings)
    assert again.findings.seconds >= result.findings.seconds - 1, "the time of the first run counts"
    assert len(np.load(folder / "examples_0.npz")["clean"])


def test_an_interrupted_audit_goes_on(whole, monkeypatch):
    """It is interrupted in a change; then a file is damaged, and the same command is given again."""
    result, folder = whole
    other, before = folder.with_name("resumed"), state(model())
    with monkeypatch.context() as patch:
        patch.setattr(confirmation, "_confirmed", _interrupted_at(confirmation._confirmed, call=3))
        with pytest.raises(KeyboardInterrupt):
            bnv.audit(model(), IMAGES, LABELS, out=other, require="clean >= .9", **OPTIONS)
    assert same(before, state(model())), "the model is as it was"
    assert not (other / "audit.json").exists()
    kept = {path.name: json.loads(path.read_text())["name"] for path in other.glob("pieces/*/*.json")}
    (noise,) = (name for name, title in kept.items() if title == "noise 0.2")
    (damaged,) = other.glob(f"pieces/*/{noise}")
    damaged.write_text(damaged.read_text()[:-20])
    resumed = bnv.audit(model(), IMAGES, LABELS, out=other, require="clean >= .9", **OPTIONS)
    assert comparable(resumed.findings) == comparable(result.findings)
    assert json.loads(damaged.read_text())["name"] == "noise 0.2"


def test_a_pair_in_no_time():
    """Points of the curve, corruptions and single layers are left out and named, no confirmation is."""
    found = bnv.audit(net(normalization=False), IMAGES, LABELS, second=model(), time=0.1, **OPTIONS).findings
    without, with_bn = found.models
    assert without.layers == without.finalists == ()
    assert with_bn.finalists
    assert without.strong.n == with_bn.strong.n == 20
    assert [p.eps for p in without.curve] == [p.eps for p in with_bn.curve]
    assert found.skipped == (
        "5 of 11 points of the curve",
        "model 1: the corruptions",
        "model 2: the corruptions",
        "model 2: 2 of 2 changes of one layer",
    )
    assert [(d.name, d.n) for d in found.pair] == [
        ("clean", 40), ("noise 0.05", 40), ("noise 0.1", 40), ("noise 0.2", 40), ("strong", 20),
    ]  # fmt: skip
    strong = found.pair[-1]
    assert strong.before == without.strong.accuracy.value
    assert strong.after == with_bn.strong.accuracy.value
    commands = [advice.command for advice in with_bn.advice if "mend" in advice.command]
    assert commands
    assert all(command.startswith("bn_vuln.mend(second, images, labels, ") for command in commands)


# ---------------------------------------------------------------- mistakes


def test_outputs_that_are_not_finite_are_not_correct():
    spoilt = net()
    spoilt.get_layer("second").beta.assign([np.nan, 0.0])  # argmax takes NaN for the largest
    with pytest.raises(UsageError, match="none of 40 images is classified correctly"):
        bnv.audit(spoilt, IMAGES, LABELS, **OPTIONS)


def subject(**changes):
    """What is looked at of a model before anything is measured."""
    fields = {"id": "a", "name": "photos", "labels": np.arange(4), "shape": (6, 6, 1), **changes}
    info = SimpleNamespace(name=fields["name"])
    return SimpleNamespace(
        classifier=SimpleNamespace(id=fields["id"], label="model"),
        clean=np.array([True, False]),
        eval_set=SimpleNamespace(dataset=SimpleNamespace(info=info), labels=fields["labels"]),
        shape=fields["shape"],
    )


@pytest.mark.parametrize(
    ("second", "ord", "message"),
    [
        ({"id": "a"}, "inf", "two different models"),
        ({"id": "b", "name": "mnist"}, "inf", "do not take the same data"),
        ({"id": "b", "labels": np.array([1, 0, 2, 3])}, "inf", "do not take the same data"),
        ({"id": "b", "shape": (8, 8, 1)}, "2", "inputs of 6x6x1 and 8x8x1"),
        ({"id": "b", "shape": (8, 8, 1)}, "inf", None),
    ],
)
def test_pairs_that_are_none(second, ord, message):
    pair, options = [subject(), subject(**second)], AuditOptions(ord=ord)
    if message is None:
        run._check(pair, options)
        return
    with pytest.raises(UsageError, match=message):
        run._check(pair, options)


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("strong 2.04/255 >= .4", "strong 2.04/255", 0.25),
        ("strong 2/255 >= .4", "strong 2/255", 0.25),
        ("noise 0.1 > .2", "noise 0.1", 0.25),
        ("clean > .2", None, 0.75),
        ("half-eps > 1/255", None, 3 / 255),
    ],
)
def test_what_a_condition_is_about(text, name, value):
    """By its exact number: eps are two when they differ in the third digit."""
    asked = []
    one = SimpleNamespace(
        options=AuditOptions(),
        subject=SimpleNamespace(classes=10, clean=np.array([True, True, True, False])),
        outcomes={"clean": np.array([True, True, True, False])},
        grid=[1 / 255, 3 / 255],
        min_eps=np.full(4, np.inf),
        tell=lambda text: None,
        measure_all=lambda name, _: asked.append(name) or np.array([True, False, False, False]),
    )
    found = fragility.requirement(one, parse_requirement(text))
    assert found.value == pytest.approx(value)
    assert asked == ([] if name is None else [name])


def _interrupted_at(function, call):
    """The function, whose so many-th call is interrupted inside of the changed model."""
    calls = []

    def call_or_interrupt(one, chosen, name, mend):
        calls.append(name)
        if len(calls) < call:
            return function(one, chosen, name, mend)
        with one.subject.changed(one.subject.states(mend)):
            raise KeyboardInterrupt

    return call_or_interrupt
