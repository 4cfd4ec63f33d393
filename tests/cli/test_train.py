"""`bnvuln train`: the config that its options make, and what it asks of the api."""

from __future__ import annotations

import json

import pytest

from bn_vuln import api, records
from bn_vuln.config import Cell, Data, digest, identity_of, to_yaml
from bn_vuln.errors import BnvulnError, UsageError
from bn_vuln.runtime import lease
from bn_vuln.training import TrainingResult

MNIST = {
    "name": "mnist", "width": 28, "validation": 5000, "limit": None, "digest": None, "classes": None,
    "balanced": False, "subset_seed": "fixed",
}  # fmt: skip
PLAIN_TRAIN = {
    "epochs": 20, "batch_size": 128, "optimizer": "sgd", "lr": 0.01, "momentum": 0.0, "nesterov": False,
    "betas": [0.9, 0.999], "schedule": {"name": "constant"}, "warmup": 0.0, "label_smoothing": 0.0, "select": "best",
    "adversarial": None, "augment": None,
}  # fmt: skip
ADVERSARIAL = {
    "ord": "inf", "eps": 0.1, "unit": "pixel", "box": [0.0, 1.0], "steps": 10, "step_size": 0.025, "random_start": True
}  # fmt: skip

# (options, field of the cell, its value)
FIELDS = [
    ([], "data", MNIST),
    (["--width", "56"], "data", {**MNIST, "width": 56}),
    (
        ["--classes", "3,7", "--limit", "200", "--balanced", "--subset-seed", "seed"],
        "data",
        {**MNIST, "classes": [3, 7], "limit": 200, "balanced": True, "subset_seed": "seed"},
    ),
    (["--arch", "linear", "--one-logit", "--classes", "3,7"], "arch", {"name": "linear", "one_logit": True}),
    (["--arch", "nearest_centroid"], "arch", {"name": "nearest_centroid"}),
    (["--hidden", "10,20", "--normalized", "0,1"], "arch", {"name": "mlp", "hidden": [10, 20], "normalized": [0, 1]}),
    (["--arch", "deep", "--depth", "3", "--units", "9"], "arch", {"name": "deep", "depth": 3, "units": 9}),
    (["--arch", "vgg13"], "init", "he"),
    (["--arch", "vgg13", "--init", "torch"], "init", "torch"),
    (["--no-standardize"], "standardize", False),
    (["--no-bn"], "normalization", {"name": "none"}),
    (["--normalization", "l2", "--weight-decay", "1/100"], "weight_decay", 0.01),
    (["--normalization", "l2", "--weight-decay", "1/100"], "normalization", {"name": "none"}),
    (
        ["--c", "1e-3", "--bn-momentum", "0.99", "--no-affine", "--synchronized"],
        "normalization",
        {"name": "batch", "c": 1e-3, "momentum": 0.99, "affine": False, "synchronized": True, "gamma": "ones"},
    ),
    (["--normalization", "group", "--groups", "4"], "normalization", {"name": "group", "groups": 4, "c": 1e-5}),
    (["--decay-on", "all"], "decay_on", "all"),
    (["--seed", "7"], "seed", 7),
    (["--arch", "vgg11", "--optimizer", "adam"], "train", {**PLAIN_TRAIN, "epochs": 5, "optimizer": "adam"}),
    (
        ["--epochs", "3", "--lr", "1/10", "--momentum", "0.9", "--nesterov", "--batch-size", "64", "--select", "last",
         "--lr-drops", "1,2", "--lr-drop-factor", "0.5"],
        "train",
        {**PLAIN_TRAIN, "epochs": 3, "batch_size": 64, "lr": 0.1, "momentum": 0.9, "nesterov": True, "select": "last",
         "schedule": {"name": "step", "epochs": [1, 2], "factor": 0.5}},
    ),
    (
        ["--optimizer", "adamw", "--betas", "0.8,0.95", "--schedule", "cosine", "--warmup", "1/2",
         "--label-smoothing", "0.1", "--crop-pad", "3"],
        "train",
        {**PLAIN_TRAIN, "optimizer": "adamw", "betas": [0.8, 0.95], "schedule": {"name": "cosine", "final": 0.0},
         "warmup": 0.5, "label_smoothing": 0.1, "augment": {"pad": 3, "flip": False}},
    ),
    (["--flip"], "train", {**PLAIN_TRAIN, "augment": {"pad": 0, "flip": True}}),
    (["--adversarial", "pgd", "--adversarial-eps", "0.1"], "train", {**PLAIN_TRAIN, "adversarial": ADVERSARIAL}),
    (
        ["--adversarial", "fgsm", "--adversarial-eps", "0.1", "--adversarial-ord", "2", "--adversarial-box", "none"],
        "train",
        {**PLAIN_TRAIN, "adversarial": {
            **ADVERSARIAL, "ord": "2", "box": "none", "steps": 1, "step_size": 0.1, "random_start": False}},
    ),
    (["--set", "train.epochs=3", "--set", "normalization=none"], "train", {**PLAIN_TRAIN, "epochs": 3}),
]  # fmt: skip

# (options, what the message must say): rules of the command, one of the config, and those of the data
MISTAKES = [
    (["--arch", "mpl"], ["arch", "'mpl'", "did you mean 'mlp'"]),
    (["--units", "5", "--arch", "mpl"], ["arch", "did you mean 'mlp'"]),
    (["--units", "5"], ["--units is for --arch deep, not for mlp\n"]),
    (["--depth", "3"], ["--depth is for --arch deep or wrn, not for mlp\n"]),
    (["--one-logit"], ["--one-logit is for --arch linear, not for mlp\n"]),
    (["--groups", "5"], ["--groups is for --normalization group or ws_group, not for batch\n"]),
    (["--no-bn", "--c", "0.1"], ["--c is for --normalization batch or group", "not for none\n"]),
    (["--no-bn", "--no-affine"], ["--no-affine is for --normalization batch, not for none\n"]),
    (["--no-bn", "--normalization", "batch"], ["contradict"]),
    (["--c", "x"], ["--c", "'x'"]),
    (["--hidden", "a,b"], ["--hidden", "'a,b'"]),
    (["--betas", "0.9;0.99"], ["--betas", "'0.9;0.99'"]),
    (["--sed", "1"], ["--seed"]),
    (["--set", "trian.epochs=3"], ["did you mean 'train'"]),
    (["--set", "train.epochs"], ["key=value"]),
    (["--schedule", "step"], ["--schedule step", "--lr-drops"]),
    (["--schedule", "cosine", "--lr-drops", "3"], ["--lr-drops is for --schedule step, not for cosine\n"]),
    (["--lr-drop-factor", "0.5"], ["--lr-drop-factor need --lr-drops"]),
    (["--lr-drops", "3", "--epochs", "3"], ["--lr-drops: epoch 3 never begins: of 3 epochs", "the last is 2\n"]),
    (["--subset-seed", "seed"], ["--subset-seed seed needs a --limit"]),
    (["--adversarial-eps", "0.1"], ["--adversarial-eps needs --adversarial, e.g. pgd"]),
    (["--adversarial", "pgd"], ["--adversarial pgd needs --adversarial-eps, e.g. 8/255"]),
    (["--adversarial", "fgsm", "--adversarial-eps", "0.1", "--adversarial-steps", "3"], ["fgsm is one step", "bim"]),
    (["--resume"], ["--resume", "no checkpoint"]),
    (["--checkpoint-every", "0"], ["--checkpoint-every"]),
    (["--strategy", "mirrored"], ["synchronized", "2 replicas", "--strategy none"]),
    (["--data", "mnits"], ["'mnits'", "did you mean 'mnist'"]),
    (["--data", "nothing.npz"], ["nothing.npz"]),
]
# Those that the data refuse, in a dry run too.
MISTAKES_WITH_DATA = [
    (["--width", "10"], "expected >= 28, received 10"),
    (["--limit", "100"], "train.batch_size: expected at most the 100 training examples"),
    (["--arch", "nearest_centroid", "--classes", "3,77"], "has classes 0 to 9, received 77"),
]


def test_options_reach_the_config(bnvuln, monkeypatch):
    monkeypatch.setattr("bn_vuln.api.check_data", lambda _: True)
    found = []
    for options, key, _ in FIELDS:
        code, out, err = bnvuln("train", "--dry-run", "--json", *options)
        assert (code, err) == (0, "")
        found.append(json.loads(out)[key])
    assert found == [value for _, _, value in FIELDS]


def test_mistakes_exit_2_with_one_clear_message(bnvuln, tmp_path):
    for options, fragments in MISTAKES:
        code, out, err = bnvuln("train", *options, "--out", tmp_path / "run")
        assert (code, out) == (2, ""), options
        assert "Traceback" not in err
        assert [fragment for fragment in fragments if fragment not in err] == [], err
        assert not (tmp_path / "run" / "config.yaml").exists()


def test_a_dry_run_refuses_what_the_run_refuses(bnvuln, tmp_path):
    for options, fragment in MISTAKES_WITH_DATA:
        for run in (["--dry-run"], ["--out", tmp_path / "run"]):
            code, out, err = bnvuln("train", *options, *run)
            assert (code, out) == (2, "")
            assert fragment in err


def test_settings_that_have_an_effect_are_taken(bnvuln):
    for options in (
        ["--lr-drops", "1", "--epochs", "2"],
        ["--subset-seed", "seed", "--limit", "200"],
        ["--subset-seed", "seed", "--data", "toy", "--arch", "linear"],
    ):
        assert bnvuln("train", *options, "--dry-run")[0] == 0


def test_a_dry_run_prints_yaml_and_trains_nothing(bnvuln, tmp_path):
    code, out, _ = bnvuln("train", "--limit", "1000", "--dry-run", "--out", tmp_path / "run")
    assert code == 0
    assert "normalization:\n  name: batch" in out
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------- the call of the api


RECORD = records.TrainingRecord(
    cell_id="id", state="trained", best_epoch=2, epochs=3, validation_accuracy=0.875, parameters=1234,
    images_per_second=5678.0, versions={}, device="cpu", seconds=1.0,
)  # fmt: skip


def made_up(calls):
    """A function that trains nothing, and adds its arguments to calls."""

    def train(cell, folder, **options):
        calls.append((cell, folder, options))
        return TrainingResult(lambda: None, [], RECORD)

    return train


@pytest.fixture
def trained(monkeypatch, tmp_path):
    """The calls of `api.train`; the command runs in an empty folder."""
    calls = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("bn_vuln.api.train", made_up(calls))
    return calls


@pytest.fixture
def begun(monkeypatch):
    """The trainings that `api.train` begins."""
    calls = []
    monkeypatch.setattr("bn_vuln.training.train", made_up(calls))
    return calls


def test_train_asks_the_api_for_one_training(bnvuln, trained):
    code, out, _ = bnvuln(
        "train", "--no-bn", "--out", "run", "--checkpoint-every", "3", "--tensorboard", "--strategy", "none", "-q"
    )
    assert code == 0
    assert out == "validation accuracy 87.50% (epoch 2 of 3), 1,234 parameters, 5,678 images/s\nrun: run\n"
    ((cell, folder, options),) = trained
    assert cell == Cell(data=Data(width=28))
    assert str(folder) == "run"
    progress = options.pop("progress")
    assert options == {
        "force": False, "resume": None, "checkpoint_every": 3, "deterministic": False, "tensorboard": True,
        "strategy": "none",
    }  # fmt: skip
    assert type(progress).__name__ == "Quiet"


def test_without_out_the_run_goes_to_its_id(bnvuln, trained):
    code, out, err = bnvuln("train", "--no-resume", "--json", "-q")
    ((cell, folder, options),) = trained
    assert (code, err) == (0, "")
    assert str(folder) == f"runs/{digest(identity_of(cell))}"
    assert json.loads(out)["run"] == str(folder)
    assert options["resume"] is False


def test_a_run_that_another_process_works_on_is_waited_for(bnvuln, begun, tmp_path, monkeypatch):
    lock = tmp_path / "run" / lease.LOCK
    lock.parent.mkdir()
    lock.write_text(json.dumps({"host": "elsewhere", "pid": 1, "time": 0}))

    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(lease.time, "sleep", interrupt)
    code, _, err = bnvuln("train", "--out", tmp_path / "run")
    assert code == 130
    assert f"waiting for process 1 on elsewhere, which works in {tmp_path / 'run'}" in err
    assert begun == []
    assert lock.exists()


def test_a_folder_that_cannot_be_made_is_named(bnvuln, begun):
    code, out, err = bnvuln("train", "--out", "/proc/nowhere/run")
    assert (code, out) == (1, "")
    assert err.startswith("Error: /proc/nowhere")
    assert "Traceback" not in err


def test_a_finished_run_is_trained_again_by_force_alone(begun, tmp_path, monkeypatch):
    cell, other = Cell(data=Data(limit=500)), Cell(data=Data(limit=500), seed=1)
    finished = RECORD.model_copy(update={"cell_id": digest(identity_of(cell))})
    (tmp_path / "config.yaml").write_text(to_yaml(cell))
    (tmp_path / "training.json").write_text(records.to_json(finished))
    assert api.train(cell, tmp_path).record == finished
    with pytest.raises(UsageError, match="holds a run of another config"):
        api.train(other, tmp_path)
    assert begun == []
    seeds = []
    monkeypatch.setattr("bn_vuln.runtime.backend.make_deterministic", seeds.append)
    with pytest.raises(UsageError, match="no checkpoint after --force"):
        api.train(other, tmp_path, force=True, resume=True)
    api.train(other, tmp_path, force=True, deterministic=True, strategy="none")
    assert [(cell, folder, options["resume"]) for cell, folder, options in begun] == [(other, tmp_path, True)]
    assert (seeds, [path.name for path in tmp_path.iterdir()]) == ([1], [lease.GUARD])


def test_what_the_api_raises_is_one_line(bnvuln, monkeypatch, tmp_path):
    def fail(*_, **__):
        raise BnvulnError("no data here")

    monkeypatch.setattr("bn_vuln.api.train", fail)
    assert bnvuln("train", "--out", tmp_path / "run") == (1, "", "Error: no data here\n")
