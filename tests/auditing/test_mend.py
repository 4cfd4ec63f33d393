"""Mending: a copy of a model is changed, saved, opened again and compared with the original."""

import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest

import bn_vuln as bnv
from bn_vuln.auditing import findings
from bn_vuln.auditing import mend as mending
from bn_vuln.auditing.mend_request import Threat
from bn_vuln.config import AWGN, Attack, Clean, FineTuning, Mend
from bn_vuln.errors import BnvulnError, UsageError
from bn_vuln.runtime import backend

backend.start()
import keras  # noqa: E402

RNG = np.random.default_rng(0)
LABELS = (np.arange(120) % 2).astype(np.int32)


def made_images():
    """Images uint8 [120, 6, 6, 1]: in class 1 the left half is brighter, in class 0 the right one."""
    images = RNG.integers(60, 100, (120, 6, 6, 1))
    images[LABELS == 1, :, :3] += 100
    images[LABELS == 0, :, 3:] += 100
    return images.astype(np.uint8)


IMAGES = made_images()


def net(mean=0.48, variance=0.04, norm=None):
    """BN, ReLU, and a softmax of left less right: right on all images while BN's statistics are."""
    keras.utils.set_random_seed(0)
    norm = keras.layers.BatchNormalization(name="bn") if norm is None else norm
    last = keras.layers.Dense(2, activation="softmax", name="last")
    model = keras.Sequential([keras.Input((6, 6, 1)), norm, keras.layers.ReLU(), keras.layers.Flatten(), last])
    if hasattr(norm, "moving_mean"):
        norm.moving_mean.assign([mean])
        norm.moving_variance.assign([variance])
    left = np.where(np.arange(36) % 6 < 3, 0.05, -0.05)
    last.set_weights([np.stack([-left, left], 1), np.zeros(2)])
    return model


@pytest.fixture
def stale(tmp_path):
    """A model whose statistics are far off: all of its channels are dead behind the ReLU."""
    path = tmp_path / "stale.keras"
    net(mean=50.0).save(path)
    return path


@pytest.fixture
def quick(monkeypatch):
    """One step of FGSM in place of strong."""
    attacks = {"clean": Clean(), "noise": AWGN(std=0.1), "strong": Attack(attack="fgsm", eps=0.02)}
    monkeypatch.setattr(Threat, "perturbations", lambda self, classes: attacks)


def made(model, tmp_path, mend, **options):
    options = {"out": tmp_path / "mended.keras", "input_scale": "0-1", **options}
    return bnv.mend(model, IMAGES, LABELS, mend=mend, **options)


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_stale_statistics_are_repaired_and_judged_by_strong(stale, tmp_path):
    before = sha256(stale)
    result = made(stale, tmp_path, {"reestimate": True})
    found = result.mended
    clean, _, strong = found.table
    assert [one.name for one in found.table] == ["clean", "noise", "strong"]
    assert (clean.before, clean.after, clean.n) == (0.5, 1.0, 60)
    assert clean.difference.value == 0.5
    assert clean.difference.low > 0.3
    assert strong.after > strong.before
    assert all(flag.startswith("before: ") for flag in found.flags)  # its gradients are gone, those after are not
    assert found.flags
    assert found.strong.startswith("strong inf eps 8/255 pixel, 50 steps")
    assert (sha256(stale), found.source_sha256) == (before, before)
    assert found.sha256 == sha256(tmp_path / "mended.keras")
    assert found.fitted_on == ("statistics on 60 images: the choosing half",)
    np.testing.assert_allclose(result.model.get_layer("bn").moving_mean, [IMAGES.mean() / 255], atol=0.01)
    assert result.model.get_layer("bn").epsilon == 1e-3  # c is what it was


def test_the_mended_file_is_a_plain_model_with_its_softmax(stale, tmp_path, quick):
    made(stale, tmp_path, {"reestimate": True})
    code = (
        "import sys, numpy as np, keras\nmodel = keras.saving.load_model(sys.argv[1])\n"
        "images = np.load(sys.argv[2])\nprint(model.predict(images / 255, verbose=0).tolist())\n"
        "assert not any(name.startswith('bn_vuln') for name in sys.modules)"
    )
    np.save(tmp_path / "images.npy", IMAGES)
    command = [sys.executable, "-c", code, tmp_path / "mended.keras", tmp_path / "images.npy"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    probabilities = np.array(json.loads(done.stdout.splitlines()[-1]))
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-6)
    np.testing.assert_array_equal(probabilities.argmax(1), LABELS)


def test_another_c_is_in_the_config_and_keeps_the_median_gain(tmp_path, quick):
    model = net()
    weights = [np.array(w) for w in model.get_weights()]
    result = made(model, tmp_path, Mend(relative_c=2.0))
    layer = keras.saving.load_model(tmp_path / "mended.keras").get_layer("bn")
    assert layer.epsilon == pytest.approx(0.001 + 2 * 0.04)
    np.testing.assert_allclose(layer.gamma, [np.sqrt((0.04 + layer.epsilon) / 0.041)], rtol=1e-5)
    (changed,) = result.mended.layers
    assert (changed.name, changed.kind, changed.before) == ("bn", "batch", pytest.approx(0.001))
    assert changed.after == pytest.approx(layer.epsilon)
    for weight, value in zip(model.get_weights(), weights, strict=True):  # the model in memory stays as it was
        np.testing.assert_array_equal(weight, value)
    assert model.get_layer("bn").epsilon == 1e-3


def test_the_c_of_group_norm_is_in_the_config(tmp_path, quick):
    made(net(norm=keras.layers.GroupNormalization(1, name="gn")), tmp_path, {"c": 0.3, "keep_gain": False})
    assert keras.saving.load_model(tmp_path / "mended.keras").get_layer("gn").epsilon == pytest.approx(0.3)


def test_fine_tuning_is_on_images_that_are_not_judged(stale, tmp_path, quick, monkeypatch):
    seen = []
    monkeypatch.setattr(mending, "fine_tune", lambda model, options, examples, **_: seen.append((options, examples)))
    found = made(stale, tmp_path, {"reestimate": True, "finetune": {"epochs": 2}}, limit=50).mended
    ((options, examples),) = seen
    assert options == FineTuning(epochs=2)
    assert (found.n, len(examples)) == (25, 95)
    rest = {image.tobytes() for image in np.asarray(examples.images)}
    assert len({image.tobytes() for image in IMAGES} - rest) == 25
    assert found.fitted_on[1].startswith("fine-tuned on 95 images: the choosing half and ")


def test_fine_tuning_changes_what_the_file_computes(stale, tmp_path, quick):
    model = made(stale, tmp_path, {"finetune": {"epochs": 1, "lr": 0.1}}).model
    assert not np.array_equal(model.get_layer("bn").moving_mean, [50.0])


def test_an_h5_file_and_a_run_become_keras_files(tmp_path, runs, quick):
    net().save(tmp_path / "net.h5")
    assert made(tmp_path / "net.h5", tmp_path, {"c": 0.1}).mended.source == str(tmp_path / "net.h5")
    found = bnv.mend(runs["batch"], mend={"c": 0.1}, out=tmp_path / "run.keras", limit=20).mended
    assert found.source_sha256 == sha256(runs["batch"] / "model.keras")
    assert {layer.after for layer in found.layers} == {0.1}
    reopened = keras.saving.load_model(tmp_path / "run.keras")
    assert reopened.get_layer(found.layers[0].name).epsilon == 0.1


@keras.saving.register_keras_serializable("made-up")
class Multiplied(keras.layers.Layer):
    """Multiplies by a number that its config does not have: loaded it is another."""

    factor = 1.0

    def call(self, x):
        return self.factor * x


def test_a_model_that_does_not_survive_saving_is_refused(tmp_path, quick):
    layer = Multiplied()
    layer.factor = 3.0
    model = keras.Sequential([keras.Input((6, 6, 1)), layer, net()])
    with pytest.raises(BnvulnError, match="saved and loaded by Keras it computes something else"):
        made(model, tmp_path, {"c": 0.1})
    assert not (tmp_path / "mended.keras").exists()


def test_the_card_says_what_was_done(stale, tmp_path, quick):
    made(stale, tmp_path, {"relative_c": 0.5, "reestimate": True}, command="bnvuln mend stale.keras ...")
    text = (tmp_path / "mended.md").read_text()
    for part in (
        "    bnvuln mend stale.keras ...",
        f"sha256 {sha256(stale)}",
        "- c + 0.5 m in all layers, median gain kept, statistics estimated again",
        "| clean | 50.0 | 100.0 | +50.0 |",
        "60 images of arrays in memory (all), none of which it was fitted on",
        "| `bn` | batch | 0.001 |",
    ):
        assert part in text, part


@pytest.mark.parametrize(
    ("mend", "options", "message"),
    [
        ({}, {}, "nothing is to be changed"),
        ({"c": 0.1, "layers": ("bn_7",)}, {}, "no normalization layer 'bn_7'; the model has bn"),
        ({"c": 0.1, "relative_c": 0.1}, {}, "give one"),
        ({"reestimate": True}, {"split": "train"}, "split train is what a change is fitted on"),
        ({"c": 0.1}, {"out": "mended.h5"}, "expected a file name ending in .keras"),
        ({"c": 0.1}, {"ord": "2"}, "--ord 2 needs an --eps"),
        ({"c": 0.1}, {"eps": "-1"}, "eps: expected greater than 0, received -1.0"),
        ({"c": 0.1}, {"noise": "0"}, "noise: expected greater than 0, received 0.0"),
    ],
)
def test_refusals(stale, tmp_path, mend, options, message):
    with pytest.raises(UsageError, match=message):
        made(stale, tmp_path, mend, **options)
    assert not (tmp_path / "mended.keras").exists()


def test_nothing_is_overwritten(stale, tmp_path, quick):
    for force in (False, True):
        with pytest.raises(UsageError, match="this is the original"):
            made(stale, tmp_path, {"c": 0.1}, out=stale, force=force)
    (tmp_path / "mended.md").write_text("mine")
    with pytest.raises(UsageError, match=r"mended.md: is there already"):
        made(stale, tmp_path, {"c": 0.1})
    made(stale, tmp_path, {"c": 0.1}, force=True)
    assert "mine" not in (tmp_path / "mended.md").read_text()


def test_too_few_images(stale):
    with pytest.raises(UsageError, match="19 images are measured, 20 are needed"):
        bnv.mend(stale, IMAGES[:19], LABELS[:19], mend={"c": 0.1}, input_scale="0-1")


def test_a_model_without_normalization(tmp_path):
    model = net(norm=keras.layers.Rescaling(1.0))
    with pytest.raises(UsageError, match="no normalization layer: BN may have been folded"):
        made(model, tmp_path, {"reestimate": True})


# ---------------------------------------------------------------- after an audit


def audit_of(model, folder, *advice, **options):
    """An audit with made-up findings."""
    opened = bnv.open_classifier(model, IMAGES, LABELS, input_scale="0-1")
    one = findings.ModelFindings(source=str(model), id=opened.id, parameters=1, advice=advice)
    findings.write(
        folder,
        findings.Findings(
            models=(one,), data="made up", split="all", n_choosing=20, n_reporting=20, statistics_from="", ord="2",
            eps=0.25, strong_about="", noise_std=0.2, level=0.95, max_clean_cost=1, command="", date="", seconds=0,
            versions={}, device="", options={"limit": 40, "input_scale": "0-1", "dataset": opened.dataset, **options},
        ),
    )  # fmt: skip


ADVICE = findings.Advice(kind="raise c", text="", mend=Mend(relative_c=0.5, layers=("bn",), keep_gain=False))


def test_the_advice_of_an_audit_is_followed_on_its_images(stale, tmp_path, monkeypatch):
    audit_of(stale, tmp_path / "audit", findings.Advice(kind="train", text=""), ADVICE)
    asked = []
    monkeypatch.setattr(mending, "mend", lambda opened, options, threat, **_: asked.append((opened, options, threat)))
    bnv.mend(from_audit=tmp_path / "audit")
    bnv.mend(from_audit=tmp_path / "audit", mend={"finetune": {"epochs": 2}}, eps="1/2", limit=60)
    (opened, options, threat), (other, others, another) = asked
    assert (options, threat) == (ADVICE.mend, Threat(ord="2", eps=0.25, noise=0.2))
    assert (opened.classifier.label, opened.evaluation.limit, opened.classifier.input_scale.name) == (
        str(stale),
        40,
        "0-1",
    )
    assert others == replace_mend(ADVICE.mend, finetune=FineTuning(epochs=2))
    assert (another.eps, other.evaluation.limit) == (0.5, 60)


def replace_mend(mend, **fields):
    return mend.model_copy(update=fields)


def test_an_audit_that_advises_nothing_or_is_of_another_model(stale, tmp_path):
    audit_of(stale, tmp_path / "audit", findings.Advice(kind="nothing", text=""))
    with pytest.raises(UsageError, match="the audit advises no change that mend can make"):
        bnv.mend(stale, from_audit=tmp_path / "audit")
    audit_of(stale, tmp_path / "audit", ADVICE)
    with pytest.raises(UsageError, match="not the model of"):
        bnv.mend(net(), from_audit=tmp_path / "audit")
    with pytest.raises(BnvulnError, match="no audit here"):
        bnv.mend(stale, from_audit=tmp_path)
