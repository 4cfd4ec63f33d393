"""`bnvuln mend`: the change that its options make, what it prints, and how mistakes end."""

import json
from types import SimpleNamespace

import pytest

from bn_vuln.auditing.findings import Difference, Interval
from bn_vuln.auditing.mended import ChangedLayer, Mended
from bn_vuln.config import Mend, validate

CLEAN = Difference(name="clean", before=0.5, after=0.75, difference=Interval(value=0.25, low=0.1, high=0.4), n=60)
MENDED = Mended(
    source="model.keras", source_id="id", source_sha256="0", file="mended.keras", sha256="1",
    mend=Mend(c=0.1, reestimate=True), layers=(ChangedLayer(name="bn", kind="batch", before=0.001, after=0.1),),
    fitted_on=("statistics on 60 images: the choosing half",), data="photos", split="test", n=60,
    table=(CLEAN, CLEAN.model_copy(update={"name": "noise"}), CLEAN.model_copy(update={"name": "strong"})),
    noise_std=0.1, strong="strong inf eps 8/255", flags=("gradients are masked",), command="bnvuln mend", date="",
    seconds=1.0, versions={}, device="cpu",
)  # fmt: skip


@pytest.fixture
def calls(monkeypatch, tmp_path):
    """The calls of `api.mend`, which makes nothing."""
    found = []

    def mend(model, **options):
        found.append((model, options))
        return SimpleNamespace(mended=MENDED)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("bn_vuln.api.mend", mend)
    return found


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--c", "1/10"], {"c": 0.1}),
        (["--relative-c", "3", "--layers", "a, b", "--no-keep-gain"],
         {"relative_c": 3, "layers": ("a", "b"), "keep_gain": False}),
        (["--reestimate"], {"reestimate": True}),
        (["--finetune", "2", "--lr", "1e-2", "--batch-size", "8", "--momentum", "0", "--weight-decay", "1e-4", "--seed",
          "3"],
         {"finetune": {"epochs": 2, "lr": 0.01, "batch_size": 8, "momentum": 0, "weight_decay": 1e-4, "seed": 3}}),
        (["--finetune", "1", "--ord", "2", "--adversarial", "1/2", "--adversarial-steps", "3"],
         {"finetune": {"epochs": 1, "adversarial": {"ord": "2", "eps": 0.5, "steps": 3}}}),
        (["--c", "1", "--set", "finetune.lr=0.1"], {"c": 1, "finetune": {"lr": 0.1}}),
    ],
)  # fmt: skip
def test_options_make_a_change(bnvuln, calls, options, expected):
    assert bnvuln("mend", "model.keras", "--data", "photos.npz", "-o", "mended.keras", *options, "-q")[0] == 0
    ((model, given),) = calls
    assert validate(Mend, given["mend"], "mend") == validate(Mend, expected, "mend")
    assert (str(model), str(given["out"]), given["dataset"]) == ("model.keras", "mended.keras", "photos.npz")
    assert "batch_size" not in given  # that of training is no other


def test_what_comes_of_an_audit_is_left_to_it(bnvuln, calls):
    assert bnvuln("mend", "--from-audit", "audits/model", "-o", "mended.keras", "--force")[0] == 0
    ((model, given),) = calls
    assert (model, given["mend"]) == (None, {})
    assert (str(given["from_audit"]), given["force"]) == ("audits/model", True)
    assert {"dataset", "limit", "split", "eps", "ord", "noise"}.isdisjoint(given)


def test_the_table_and_where_things_are(bnvuln, calls):
    code, out, err = bnvuln("mend", "model.keras", "--c", "0.1", "--reestimate", "-o", "mended.keras")
    assert code == 0
    assert out.splitlines()[0] == "c = 0.1 in all layers, median gain kept, statistics estimated again"
    (noise,) = (line for line in out.splitlines() if line.startswith("noise"))
    assert noise.split() == ["noise", "0.1", "50.0", "75.0", "+25.0", "+10.0", "to", "+40.0"]
    assert "flag: gradients are masked" in out
    assert err.endswith("model: mended.keras\ncard: mended.md\n")


def test_json_has_everything(bnvuln, calls):
    _, out, _ = bnvuln("mend", "model.keras", "--c", "0.1", "-o", "mended.keras", "--json", "-q")
    assert Mended.model_validate(json.loads(out)) == MENDED


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--c", "1", "--lr", "0.1", "--adversarial", "0.1"],
            "when any of --lr, --batch-size, --momentum, --weight-decay, --seed, --adversarial and "
            "--adversarial-steps is set, --finetune is required",
        ),
        (["--finetune", "1", "--adversarial-steps", "3"], "when --adversarial-steps is set, --adversarial is required"),
    ],
)
def test_options_that_do_nothing_are_refused(bnvuln, calls, options, message):
    code, _, err = bnvuln("mend", "model.keras", "-o", "mended.keras", *options)
    assert code == 2
    assert message in err
    assert calls == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "nothing is to be changed: give --c or --relative-c, --reestimate, --finetune or --from-audit"),
        (["--c", "1", "--relative-c", "1"], "c and relative_c are two ways to say one thing: give one"),
        (["--layers", "bn", "--reestimate"], "layers need a c or relative_c that they get"),
        (["--c", "1"], "model.keras: no such file"),
    ],
)
def test_mistakes_end_in_one_line_before_anything_is_loaded(bnvuln, monkeypatch, tmp_path, options, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = bnvuln("mend", "model.keras", "-o", "mended.keras", *options)
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err


def test_a_model_or_an_audit_is_needed(bnvuln):
    assert bnvuln("mend", "-o", "mended.keras", "--c", "1")[2] == (
        "Error: mend needs a model, or the folder of an audit (--from-audit)\n"
    )
