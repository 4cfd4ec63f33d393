"""The commands by hand: good and bad input, exit codes, what goes to which stream."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from bn_vuln.cli.main import COMMANDS, main
from bn_vuln.cli.options import print_json
from helpers_runs import interrupt_before

from bn_vuln import api, records
from bn_vuln.config import digest
from bn_vuln.errors import ConfigError
from bn_vuln.experiments import catalog
from bn_vuln.version import __version__

TRAIN = ["train", "--limit", "1000", "--hidden", "16", "--epochs", "1", "--lr", "0.1", "--batch-size", "50"]


@pytest.fixture
def pair(runs, tmp_path):
    """Copies of the trained pair, to write into."""
    return {name: shutil.copytree(folder, tmp_path / name) for name, folder in runs.items()}


# ---------------------------------------------------------------- help


def test_help_names_every_command_and_imports_nothing_heavy():
    code = (
        "import sys\nfrom bn_vuln.cli.main import main\n"
        "try: main(['--help'])\nexcept SystemExit as e: assert not e.code\n"
        "heavy = {'tensorflow', 'keras', 'pydantic', 'numpy', 'scipy', 'matplotlib', 'yaml', 'rich'}\n"
        "heavy &= set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in COMMANDS:
        assert name in done.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_examples(bnvuln, name):
    code, out, _ = bnvuln(name, "--help")
    assert code == 0
    assert "Examples:" in out
    assert f"bnvuln {name}" in out


def test_help_lists_what_ships_without_anything_heavy():
    code = (
        "import sys\nfrom bn_vuln.cli.main import main\n"
        "try: main(['evaluate', '--help'])\nexcept SystemExit as e: assert not e.code\n"
        "assert not {'tensorflow', 'pydantic', 'numpy', 'yaml'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in catalog.names("suites"):
        assert name in done.stdout.partition("--suite NAME")[2].partition("--data")[0]


@pytest.mark.parametrize(("command", "takes"), [("attack", True), ("transfer", False)])
def test_attacks_are_listed_where_they_are_taken(bnvuln, command, takes):
    listed = bnvuln(command, "--help")[1].partition("--attack NAME")[2].partition("--steps")[0]
    assert "strong" in listed
    assert ("carlini_wagner" in listed) == takes


def test_version(bnvuln):
    assert bnvuln("--version") == (0, f"bnvuln, version {__version__}\n", "")


def test_json_has_null_for_what_is_no_number(capsys):
    print_json({"a": [float("nan"), 1.5], "b": {"c": float("-inf")}, "d": (float("inf"), None, "NaN", 3)})
    assert json.loads(capsys.readouterr().out) == {"a": [None, 1.5], "b": {"c": None}, "d": [None, None, "NaN", 3]}


def test_json_is_written_whole_or_not_at_all(capsys):
    with pytest.raises(TypeError):
        print_json({"a": 1, "b": object()})
    assert capsys.readouterr().out == ""


def test_an_unknown_command_is_met_with_the_nearest(bnvuln):
    code, _, err = bnvuln("atack")
    assert code == 2
    assert "'attack'" in err


# ---------------------------------------------------------------- train


def test_train_writes_a_run_and_says_so(bnvuln, tmp_path):
    code, out, err = bnvuln(*TRAIN, "--no-bn", "--out", tmp_path / "run")
    assert code == 0
    assert "validation accuracy" in out
    assert str(tmp_path / "run") in out
    assert "epoch 1/1" in err
    assert records.read_training(tmp_path / "run").state == "trained"


def test_train_json_is_one_object_and_quiet_is_quiet(bnvuln, tmp_path):
    code, out, err = bnvuln(*TRAIN, "--c", "0.1", "--out", tmp_path / "run", "--json", "--quiet")
    assert (code, err) == (0, "")
    printed = json.loads(out)
    assert printed["run"] == str(tmp_path / "run")
    assert printed["state"] == "trained"


def test_a_finished_run_is_not_trained_again_unless_forced(bnvuln, tmp_path, monkeypatch):
    bnvuln(*TRAIN, "--out", tmp_path / "run")
    before = (tmp_path / "run" / "training.json").read_text()
    assert "finished already" in bnvuln(*TRAIN, "--out", tmp_path / "run")[2]
    assert (tmp_path / "run" / "training.json").read_text() == before
    assert bnvuln(*TRAIN, "--out", tmp_path / "run", "--force")[0] == 0
    assert (tmp_path / "run" / "training.json").read_text() != before


def test_a_run_of_another_config_is_not_overwritten(bnvuln, tmp_path):
    bnvuln(*TRAIN, "--out", tmp_path / "run")
    code, _, err = bnvuln(*TRAIN, "--seed", "1", "--out", tmp_path / "run")
    assert code == 2
    assert "another config" in err
    assert bnvuln(*TRAIN, "--seed", "1", "--out", tmp_path / "run", "--force")[0] == 0


def test_a_folder_that_cannot_be_made_is_named(bnvuln):
    code, out, err = bnvuln(*TRAIN, "--out", "/proc/nowhere/run")
    assert (code, out) == (1, "")
    assert err.startswith("Error: /proc/nowhere")
    assert "Traceback" not in err


def test_a_run_in_progress_elsewhere_is_left_alone(bnvuln, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "lock.json").write_text(json.dumps({"host": "elsewhere", "pid": 1, "time": 0}))
    code, _, err = bnvuln(*TRAIN, "--out", tmp_path / "run")
    assert code == 1
    assert "another process" in err


def test_without_out_the_run_goes_to_its_id(bnvuln, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = bnvuln(*TRAIN, "--json", "-q")
    printed = json.loads(out)
    assert code == 0
    assert printed["run"] == f"runs/{printed['cell_id']}"


def test_dry_run_prints_the_config_and_trains_nothing(bnvuln, tmp_path):
    code, out, _ = bnvuln(*TRAIN, "--dry-run", "--json", "--out", tmp_path / "run")
    assert code == 0
    assert json.loads(out)["normalization"]["name"] == "batch"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "fragment"),
    [
        (["--width", "10"], "expected >= 28, received 10"),
        (["--classes", "3,77"], "has classes 0 to 9, received 77"),
        (["--validation", "70000"], "expected 1 to 59999 examples held out, received 70000"),
        (["--limit", "70000"], "the train split has 55000 examples"),
        (["--limit", "100"], "train.batch_size: expected at most the 100 training examples"),
        (["--crop-pad", "28"], "train.augment.pad: expected less than the sides"),
        (["--arch", "nearest_centroid", "--classes", "3,77"], "has classes 0 to 9, received 77"),
        (["--lr-drops", "3", "--epochs", "2"], "epoch 3 never begins"),
        (["--subset-seed", "seed"], "--subset-seed seed needs a --limit"),
    ],
)
def test_a_dry_run_refuses_what_the_run_refuses(bnvuln, tmp_path, options, fragment):
    for how in (["--dry-run"], ["--out", tmp_path / "run"]):
        code, out, err = bnvuln("train", *options, *how)
        assert (code, out) == (2, "")
        assert fragment in err


@pytest.mark.parametrize(
    "options",
    [
        ["--lr-drops", "1", "--epochs", "2"],
        ["--subset-seed", "seed", "--limit", "200"],
        ["--subset-seed", "seed", "--data", "toy", "--arch", "linear"],
    ],
)
def test_settings_that_have_an_effect_are_taken(bnvuln, options):
    assert bnvuln("train", *options, "--dry-run")[0] == 0


def resolved(bnvuln, *options):
    code, out, err = bnvuln("train", "--dry-run", "--json", *options)
    assert code == 0, err
    return json.loads(out)


MNIST = {
    "name": "mnist", "width": 28, "validation": 5000, "limit": None, "digest": None, "classes": None,
    "balanced": False, "subset_seed": "fixed",
}  # fmt: skip
PLAIN_TRAIN = {
    "epochs": 20, "batch_size": 128, "optimizer": "sgd", "lr": 0.01, "momentum": 0.0, "nesterov": False,
    "betas": [0.9, 0.999], "schedule": {"name": "constant"}, "warmup": 0.0, "label_smoothing": 0.0, "select": "best",
    "adversarial": None, "augment": None,
}  # fmt: skip


@pytest.mark.parametrize(
    ("options", "key", "value"),
    [
        (["--arch", "linear"], "arch", {"name": "linear", "one_logit": False}),
        (
            ["--arch", "linear", "--one-logit", "--classes", "3,7"],
            "arch",
            {"name": "linear", "one_logit": True},
        ),
        (
            ["--classes", "3,7", "--limit", "200", "--balanced", "--subset-seed", "seed"],
            "data",
            {**MNIST, "classes": [3, 7], "limit": 200, "balanced": True, "subset_seed": "seed"},
        ),
        (["--no-standardize"], "standardize", False),
        (["--arch", "nearest_centroid"], "arch", {"name": "nearest_centroid"}),
        (
            ["--hidden", "10,20", "--normalized", "0,1"],
            "arch",
            {"name": "mlp", "hidden": [10, 20], "normalized": [0, 1]},
        ),
        (["--no-bn"], "normalization", {"name": "none"}),
        (["--normalization", "l2", "--weight-decay", "1/100"], "weight_decay", 0.01),
        (["--normalization", "l2", "--weight-decay", "1/100"], "normalization", {"name": "none"}),
        (["--decay-on", "all"], "decay_on", "all"),
        (["--init", "he"], "init", "he"),
        (["--seed", "7"], "seed", 7),
        (["--width", "56"], "data", {**MNIST, "width": 56}),
        ([], "data", MNIST),
        (["--arch", "deep", "--depth", "3", "--units", "9"], "arch", {"name": "deep", "depth": 3, "units": 9}),
        (["--arch", "vgg13"], "arch", {"name": "vgg13"}),
        (["--arch", "vgg13"], "init", "he"),
        (["--arch", "vgg13", "--init", "torch"], "init", "torch"),
        (["--arch", "vgg11", "--no-bn"], "train", {**PLAIN_TRAIN, "epochs": 5, "momentum": 0.9}),
        (["--arch", "vgg11", "--optimizer", "adam"], "train", {**PLAIN_TRAIN, "epochs": 5, "optimizer": "adam"}),
    ],
)
def test_options_reach_the_config(bnvuln, options, key, value):
    assert resolved(bnvuln, *options)[key] == value


def test_batch_norm_options_reach_the_config(bnvuln):
    options = ["--c", "1e-3", "--bn-momentum", "0.99", "--no-affine", "--synchronized"]
    expected = {"name": "batch", "c": 1e-3, "momentum": 0.99, "affine": False, "synchronized": True, "gamma": "ones"}
    assert resolved(bnvuln, *options)["normalization"] == expected


def test_training_options_reach_the_config(bnvuln):
    options = ["--epochs", "3", "--lr", "1/10", "--momentum", "0.9", "--batch-size", "64", "--select", "last"]
    train = resolved(bnvuln, *options, "--lr-drops", "1,2", "--lr-drop-factor", "0.5")["train"]
    assert train == {
        **PLAIN_TRAIN, "epochs": 3, "batch_size": 64, "lr": 0.1, "momentum": 0.9, "select": "last",
        "schedule": {"name": "step", "epochs": [1, 2], "factor": 0.5},
    }  # fmt: skip
    options = ["--optimizer", "adamw", "--betas", "0.8,0.95", "--schedule", "cosine", "--warmup", "1/2"]
    assert resolved(bnvuln, *options, "--label-smoothing", "0.1")["train"] == {
        **PLAIN_TRAIN, "optimizer": "adamw", "betas": [0.8, 0.95], "schedule": {"name": "cosine", "final": 0.0},
        "warmup": 0.5, "label_smoothing": 0.1,
    }  # fmt: skip
    assert resolved(bnvuln, "--momentum", "0.9", "--nesterov")["train"]["nesterov"] is True


def test_set_overrides_any_field(bnvuln):
    assert resolved(bnvuln, "--set", "train.epochs=3", "--set", "normalization=none")["train"]["epochs"] == 3


@pytest.mark.parametrize(
    ("options", "fragments"),
    [
        (["--arch", "mpl"], ["arch", "'mpl'", "did you mean 'mlp'"]),
        (["--normalization", "bacth"], ["'bacth'", "did you mean 'batch'"]),
        (["--normalization", "batchnorm"], ["frn, fixup, l2, received 'batchnorm'; did you mean 'batch'"]),
        (["--normalization", "l2"], ["weight_decay"]),
        (["--no-bn", "--c", "0.1"], ["--c", "'none'"]),
        (["--no-bn", "--normalization", "batch"], ["contradict"]),
        (["--c", "-1"], ["normalization.c", "-1"]),
        (["--c", "x"], ["--c", "'x'"]),
        (["--lr", "0"], ["train.lr", "0"]),
        (["--width", "20"], ["width", "28", "20"]),
        (["--hidden", "a,b"], ["--hidden", "'a,b'"]),
        (["--data", "mnits"], ["'mnits'", "did you mean 'mnist'"]),
        (["--set", "trian.epochs=3"], ["did you mean 'train'"]),
        (["--set", "train.epochs"], ["key=value"]),
        (["--normalized", "5"], ["0 to 1"]),
        (["--batch-size", "90000"], ["batch_size", "90000"]),
        (["--sed", "1"], ["--seed"]),
        (["--optimizer", "adan"], ["train.optimizer", "'adan'", "'adam'"]),
        (["--optimizer", "adam", "--momentum", "0.9"], ["momentum", "not to adam"]),
        (["--nesterov"], ["nesterov needs a momentum"]),
        (["--betas", "0.9;0.99"], ["--betas", "'0.9;0.99'"]),
        (["--betas", "0.9"], ["train.betas"]),
        (["--schedule", "step"], ["--schedule step", "--lr-drops"]),
        (["--lr-drop-factor", "0.5"], ["--lr-drop-factor needs --lr-drops"]),
        (["--schedule", "cosine", "--lr-drops", "3"], ["--schedule step", "--lr-drops"]),
        (["--warmup", "30"], ["warmup", "20 epochs", "30"]),
        (["--label-smoothing", "1"], ["label_smoothing", "1"]),
        (["--units", "5"], ["--units is for --arch deep, not for mlp\n"]),
        (["--depth", "3"], ["--depth is for --arch deep or wrn, not for mlp\n"]),
        (["--widening", "2", "--arch", "deep"], ["--widening is for --arch wrn, not for deep\n"]),
        (["--hidden", "5", "--arch", "linear"], ["--hidden is for --arch mlp, not for linear\n"]),
        (["--normalized", "0", "--arch", "vgg8"], ["--normalized is for --arch mlp, not for vgg8\n"]),
        (["--one-logit"], ["--one-logit is for --arch linear, not for mlp\n"]),
        (["--units", "5", "--arch", "mpl"], ["arch", "did you mean 'mlp'"]),
        (["--arch", "vgg10"], ["'vgg10'", "vgg11"]),
        (["--arch", "wrn", "--depth", "15"], ["depth", "6 n + 4", "received 15\n"]),
        (["--arch", "vgg8", "--normalization", "fixup"], ["fixup is for residual nets (ResNets, wrn), not for vgg8\n"]),
        (["--arch", "mlp", "--normalization", "frn"], ["frn is for convolutional nets", "not for mlp\n"]),
        (
            ["--arch", "resnet20", "--normalization", "fixup", "--optimizer", "adam"],
            ["fixup is for sgd, not for adam\n"],
        ),
        (["--arch", "resnet20", "--normalization", "fixup", "--c", "1"], ["--c", "'fixup'"]),
        (["--arch", "mlp", "--normalization", "group", "--groups", "5"], ["groups: 5", "392 channels"]),
        (["--groups", "5"], ["--groups is for --normalization group or ws_group, not for batch\n"]),
        (["--lr-drops", "3", "--epochs", "3"], ["--lr-drops: epoch 3 never begins: of 3 epochs", "the last is 2\n"]),
        (["--lr-drops", "3", "--set", "train.epochs=2"], ["--lr-drops: epoch 3 never begins"]),
        (["--subset-seed", "seed"], ["--subset-seed seed needs a --limit"]),
        (["--resume"], ["--resume", "no checkpoint"]),
        (["--checkpoint-every", "0"], ["--checkpoint-every"]),
        (["--strategy", "miror"], ["--strategy", "mirrored"]),
        (["--strategy", "mirrored"], ["synchronized", "2 replicas", "--strategy none"]),
        (["--strategy", "mirrored", "--no-bn", "--batch-size", "127"], ["batch_size", "multiple of the 2 replicas"]),
        (["--data", "nothing.npz"], ["nothing.npz"]),
        (["--data", "folder:nothing"], ["nothing"]),
    ],
)
def test_bad_training_options_exit_2_with_one_clear_message(bnvuln, tmp_path, options, fragments):
    code, out, err = bnvuln("train", *options, "--out", tmp_path / "run")
    assert (code, out) == (2, "")
    assert "Traceback" not in err
    for fragment in fragments:
        assert fragment in err
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_an_interrupted_training_goes_on_where_it_was(bnvuln, tmp_path, monkeypatch):
    options = ["--set", "train.epochs=2", "--out", tmp_path / "run"]
    interrupt_before(monkeypatch, 1)
    code, _, err = bnvuln(*TRAIN, *options)
    assert code == 130
    assert "goes on after its last checkpoint" in err
    monkeypatch.undo()
    code, out, err = bnvuln(*TRAIN, *options, "--resume", "--json", "--tensorboard")
    assert code == 0
    assert "going on after epoch 1 of 2" in err
    assert json.loads(out)["resumed"] == 1
    assert list((tmp_path / "run" / "tensorboard").glob("events.*"))
    code, _, err = bnvuln(*TRAIN, *options, "--resume")
    assert "is finished already" in err


def test_a_failed_training_is_a_result(bnvuln, tmp_path):
    code, out, _ = bnvuln(*TRAIN, "--set", "train.lr=1e30", "--out", tmp_path / "run")
    assert code == 0
    assert "failed to train" in out


# ---------------------------------------------------------------- attack, evaluate, compare


def test_attack_takes_the_newest_run_and_says_which(bnvuln, tmp_path, pair):
    code, out, err = bnvuln("attack", "--eps", "8/255", "--steps", "2", "--limit", "50", "--runs", tmp_path)
    assert code == 0
    assert "the newest run is" in err
    assert "pgd inf eps 0.03137 pixel, 2 steps" in out


def test_attack_json_holds_records_and_keeps_them(bnvuln, pair):
    folder = pair["batch"]
    code, out, _ = bnvuln("attack", folder, "--eps", "0.1", "--limit", "50", "--steps", "3", "--json", "-q")
    printed = json.loads(out)["records"]
    assert code == 0
    assert [record["kind"] for record in printed] == ["clean", "attack"]
    assert all({"accuracy", "n", "flags"} <= record.keys() for record in printed)
    kept = {record.perturbation_id: record.accuracy for record in records.read_records(folder)}
    assert kept == {record["perturbation_id"]: record["accuracy"] for record in printed}


def test_attack_options_reach_the_record(bnvuln, pair):
    options = [
        "--attack",
        "pgd",
        "--ord",
        "2",
        "--eps",
        "1/2",
        "--unit",
        "standardized",
        "--box",
        "none",
        "--steps",
        "2",
    ]
    options += ["--step-size", "0.2", "--restarts", "2", "--target", "next", "--keep", "best_loss", "--seed", "3"]
    _, out, _ = bnvuln("attack", pair["none"], *options, "--split", "validation", "--limit", "20", "--json", "-q")
    assert json.loads(out)["records"][1]["perturbation"] == {
        "kind": "attack", "attack": "pgd", "ord": "2", "eps": 0.5, "unit": "standardized", "box": "none", "steps": 2,
        "step_size": 0.2, "random_start": True, "restarts": 2, "target": "next", "loss": "cross_entropy",
        "keep": "best_loss", "seed": 3, "backend": "own", "dataset": "mnist", "split": "validation", "limit": 20,
        "bn_statistics": "tracked",
    }  # fmt: skip


def test_attack_finds_the_smallest_eps_of_each_example(bnvuln, pair):
    options = [
        "--attack",
        "apgd-ce",
        "--steps",
        "5",
        "--eps",
        "32/255",
        "--min-eps-tolerance",
        "4/255",
        "--batch-size",
        "7",
    ]
    code, out, _ = bnvuln("attack", pair["none"], *options, "--limit", "20", "--json", "-q")
    record = json.loads(out)["records"][1]
    assert code == 0
    assert record["perturbation"]["min_eps_tolerance"] == 4 / 255
    assert 0 < record["median_distance"] <= 32 / 255
    distance = records.read_arrays(records.correct_path(pair["none"], record["perturbation_id"]))["distance"]
    assert (distance <= 32 / 255 + 1e-6).sum() == 20 - record["correct"]
    _, out, _ = bnvuln("attack", pair["none"], *options, "--limit", "20", "-q")
    assert "mean 0.0" in out


def test_attack_saves_what_it_found(bnvuln, pair, tmp_path):
    path = tmp_path / "found" / "x.npz"
    bnvuln("attack", pair["none"], "--eps", "0.1", "--limit", "30", "--steps", "2", "--save", path)
    with np.load(path) as saved:
        assert saved["x"].shape == saved["x_adv"].shape == (30, 28, 28, 1)
        assert 0 < np.abs(saved["x_adv"] - saved["x"]).max() <= 0.1 + 1e-6
        assert saved["y"].shape == saved["correct"].shape == saved["clean_correct"].shape == (30,)


def test_attack_prints_flags(bnvuln, pair):
    _, out, _ = bnvuln(
        "attack", pair["none"], "--attack", "bim", "--eps", "0.3", "--step-size", "0.01", "--limit", "20"
    )
    assert "check 18" in out


@pytest.mark.parametrize(
    ("options", "code", "fragments"),
    [
        (["--eps", "-1"], 2, ["eps", "-1"]),
        (["--eps", "8/0"], 2, ["--eps", "8/0"]),
        (["--eps", "1e400"], 2, ["--eps", "1e400"]),
        (["--attack", "pdg"], 2, ["pdg"]),
        (["--steps", "0"], 2, ["steps", "0"]),
        (["--box", "1,0"], 2, ["box", "low < high"]),
        (["--box", "1"], 2, ["--box", "LOW,HIGH"]),
        (["--attack", "bim", "--restarts", "2"], 2, ["random start"]),
        (["--attack", "fgsm", "--steps", "5"], 2, ["fgsm is one step"]),
        (["--limit", "20000"], 2, ["10000", "20000"]),
        (["--data", "cifar"], 2, ["'cifar'"]),
        (["--save", "x.txt"], 2, [".npz"]),
        (["--from-probabilities"], 2, ["run of ours"]),
    ],
)
def test_bad_attack_options_exit_with_one_clear_message(bnvuln, pair, options, code, fragments):
    found, out, err = bnvuln("attack", pair["none"], *options)
    assert (found, out) == (code, "")
    assert "Traceback" not in err
    for fragment in fragments:
        assert fragment in err


def test_a_ladder_may_name_its_top_and_come_in_any_order(bnvuln, pair):
    options = ["--eps", "0.2", "--steps", "2", "--limit", "20", "--json", "-q"]
    named, plain = (
        json.loads(bnvuln("attack", pair["none"], "--eps-grid", eps_grid, *options)[1])["records"]
        for eps_grid in ("0.2,0.1,0.05", "0.05,0.1")
    )
    assert [r["perturbation_id"] for r in named] == [r["perturbation_id"] for r in plain]
    assert [r["name"] for r in named] == ["clean", "pgd 0.05", "pgd 0.1", "pgd"]
    code, _, err = bnvuln("attack", pair["none"], "--eps-grid", "0.1,0.3", *options)
    assert code == 2
    assert "--eps-grid: expected eps of at most --eps 0.2" in err


def test_a_target_that_is_nothing_is_refused(bnvuln, tmp_path):
    assert bnvuln("attack", tmp_path / "nothing")[0] == 2
    assert bnvuln("attack", tmp_path)[0] == 2
    code, _, err = bnvuln("attack", "--runs", tmp_path / "empty")
    assert code == 2
    assert "no finished run" in err


def test_a_foreign_model_is_attacked_and_its_records_are_kept(bnvuln, pair, tmp_path):
    model = pair["none"] / "model.keras"
    code, out, _ = bnvuln(
        "attack", model, "--data", "mnist", "--steps", "2", "--limit", "20", "--runs", tmp_path / "r", "--json", "-q"
    )
    assert code == 0
    printed = json.loads(out)["records"][0]
    assert len(records.read_records(tmp_path / "r" / printed["cell_id"])) == 2


def test_evaluate_runs_a_suite(bnvuln, pair):
    code, out, _ = bnvuln("evaluate", pair["batch"], "--suite", "quick", "--limit", "40", "--json", "-q")
    assert code == 0
    assert [r["name"] for r in json.loads(out)["records"]] == list(catalog.suite("quick").perturbations)
    assert all(r["n"] == 40 for r in json.loads(out)["records"])


def test_evaluate_takes_a_suite_of_ones_own(bnvuln, pair, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("title: mine\nperturbations:\n  noise: {kind: awgn, std: 1/10}\n")
    code, out, _ = bnvuln("evaluate", pair["batch"], "--suite", path, "--limit", "40")
    assert code == 0
    assert "AWGN std 0.1 pixel" in out


def test_evaluate_takes_another_split(bnvuln, pair):
    found = {}
    for split in ("test", "validation", "train"):
        options = ["--suite", "quick", "--limit", "40", "--split", split, "--json", "-q"]
        code, out, _ = bnvuln("evaluate", pair["none"], *options)
        assert code == 0
        found[split] = json.loads(out)["records"]
        assert {r["perturbation"]["split"] for r in found[split]} == {split}
    assert api.evaluate(pair["none"], "quick", split="validation", limit=40)["clean"].loss == pytest.approx(
        found["validation"][0]["loss"]
    )
    assert len({records_[0]["loss"] for records_ in found.values()}) == 3
    assert "'--split'" in bnvuln("evaluate", pair["none"], "--split", "tset")[2]


def test_what_no_batch_statistics_allow_is_refused_before_anything_is_measured(bnvuln, pair):
    options = ["--suite", "mechanism", "--bn-statistics", "batch", "--limit", "40"]
    before = {path for path in pair["batch"].rglob("*") if path.is_file()}
    code, out, err = bnvuln("evaluate", pair["batch"], *options)
    assert (code, out) == (2, "")
    assert "bn_statistics: batch: tilt, spectrum and fooling images are of single examples" in err
    assert {path for path in pair["batch"].rglob("*") if path.is_file()} == before
    assert bnvuln("evaluate", pair["none"], *options, "-q")[0] == 0  # no batch norm, nothing to refuse


def test_measurements_from_python_are_those_of_the_command(bnvuln, pair):
    folder = pair["batch"]
    code, out, _ = bnvuln("evaluate", folder, "--suite", "mechanism", "--limit", "40", "--json", "-q")
    printed = json.loads(out)["measurements"]
    kept = {p.stem: p.stat().st_mtime_ns for p in (folder / "measurements").glob("*.json")}
    found = api.measure(folder, "mechanism", limit=40)
    assert code == 0
    assert [r["name"] for r in printed] == list(found) == ["tilt", "spectrum"]
    assert [r["value"] for r in printed] == pytest.approx([r.value for r in found.values()])
    assert {r.measurement_id for r in found.values()} == {r["measurement_id"] for r in printed} == set(kept)
    assert kept == {p.stem: p.stat().st_mtime_ns for p in (folder / "measurements").glob("*.json")}  # no folder given


def test_python_takes_measurements_and_perturbations_as_mappings(pair, tmp_path):
    folder = tmp_path / "kept"
    found = api.measure(pair["batch"], {"angle": {"kind": "tilt"}}, limit=20, split="validation", folder=folder)
    assert found["angle"].unit == "deg"
    assert found["angle"].measurement["split"] == "validation"
    assert records.read_measurement(records.measurement_path(folder, found["angle"].measurement_id)) == found["angle"]
    noisy = api.evaluate(pair["batch"], {"noise": {"kind": "awgn", "std": "1/10"}}, limit=20, folder=folder)
    assert records.read_records(folder) == [noisy["noise"]]
    assert api.measure(pair["batch"], "quick") == {}
    with pytest.raises(ConfigError, match=r"suite: measurements.angle: expected one of tilt, .*did you mean 'tilt'"):
        api.measure(pair["batch"], {"angle": {"kind": "tlit"}})


def test_an_unknown_suite_names_the_known_ones(bnvuln, pair):
    code, _, err = bnvuln("evaluate", pair["batch"], "--suite", "papr")
    assert code == 2
    assert "did you mean 'paper'" in err


def test_compare_gives_paired_differences(bnvuln, pair):
    for folder in pair.values():
        bnvuln("attack", folder, "--attack", "bim", "--eps", "0.1", "--limit", "100", "--steps", "5")
    code, out, _ = bnvuln("compare", pair["none"], pair["batch"], "--json")
    printed = json.loads(out)["pairs"]
    assert code == 0
    assert len(printed) == 2
    for row in printed:
        outcomes = [records.read_correct(pair[n], digest(row["perturbation"])) for n in ("none", "batch")]
        delta = outcomes[1].astype(float) - outcomes[0]
        assert row["difference"] == pytest.approx(delta.mean())
        assert row["standard_error_over_examples"] == pytest.approx(delta.std(ddof=1) / 10)
    assert "spread over seeds is unknown" in bnvuln("compare", pair["none"], pair["batch"])[1]


def test_compare_shows_the_flags_of_both(bnvuln, pair):
    options = ["--attack", "bim", "--eps", "0.3", "--step-size", "0.01", "--limit", "20"]
    for folder in pair.values():
        bnvuln("attack", folder, *options)
    pairs = json.loads(bnvuln("compare", pair["none"], pair["batch"], "--json")[1])["pairs"]
    out = bnvuln("compare", pair["none"], pair["batch"])[1]
    messages = {f"check {flag['check']}: {flag['message']}" for row in pairs for flag in row["flags"]}
    notes = dict(line.split(" ", 1) for line in out.splitlines() if line.startswith("["))
    assert messages
    assert set(notes.values()) == messages
    rows = {line.split("|")[1].split()[0]: line.split("|")[-2].strip() for line in out.splitlines()[2:4]}
    assert rows["clean"] == "none"
    first, second = rows["bim"].split(", ")
    assert first.startswith("first [1]")
    assert second.startswith("second [")


def test_compare_needs_common_records(bnvuln, pair, tmp_path):
    assert bnvuln("compare", pair["none"], tmp_path / "nothing")[0] == 2
    bnvuln("attack", pair["none"], "--eps", "0.1", "--limit", "20", "--steps", "1")
    bnvuln("attack", pair["batch"], "--eps", "0.1", "--limit", "30", "--steps", "1")
    code, _, err = bnvuln("compare", pair["none"], pair["batch"])
    assert code == 1
    assert "share no perturbation" in err


# ---------------------------------------------------------------- reproduce, report


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory):
    """table6 at smoke, from the command line: its results folder."""
    root = tmp_path_factory.mktemp("reproduced")
    with pytest.raises(SystemExit) as exit_:
        main(["reproduce", "table6", "--scale", "smoke", "--out", str(root), "-q"])
    assert exit_.value.code == 0
    return root


def test_reproduce_prints_the_table_beside_the_paper_and_names_its_report(bnvuln, reproduced):
    code, out, err = bnvuln("reproduce", "table6", "--scale", "smoke", "--out", reproduced)
    assert code == 0
    assert "batch \N{MINUS SIGN} none" in out
    assert "\N{MINUS SIGN}43.80 ± 0.50" in out
    assert "preview" in out
    assert "table6 at scale smoke: every cell is finished" in err
    last = err.strip().splitlines()[-1]
    assert last == f"report: {reproduced}/report/table6-smoke.html"
    assert (reproduced / "report" / "table6-smoke.html").exists()


@pytest.mark.parametrize(
    ("cost", "said"), [({"quick": "4 min"}, "the whole of it takes about 4 min on two cores"), ({}, "6 cells")]
)
def test_reproduce_says_what_it_will_cost(bnvuln, cost, said, tmp_path, monkeypatch):
    chosen = catalog.experiment("table6", "quick").model_copy(update={"cost": cost})
    monkeypatch.setattr(catalog, "experiment", lambda *_: chosen)
    monkeypatch.setattr("bn_vuln.experiments.runner.run", interrupted)
    assert f"table6 at scale quick: {said}" in bnvuln("reproduce", "table6", "--out", tmp_path)[2]


def test_reproduce_json(bnvuln, reproduced):
    _, out, _ = bnvuln("reproduce", "table6", "--scale", "smoke", "--out", reproduced, "--json", "-q")
    printed = json.loads(out)
    assert printed["experiment"] == "table6"
    assert {c["verdict"] for c in printed["comparisons"]} == {"preview", "context"}
    assert all(row["n"] == 1 and row["sem"] is None for row in printed["rows"])


def test_reproduce_check_exits_1_only_for_a_failing_verdict(bnvuln, reproduced, monkeypatch):
    command = ["reproduce", "table6", "--scale", "smoke", "--out", reproduced, "-q"]
    monkeypatch.setattr("bn_vuln.reporting.claims.statistics.verdict", lambda *_: "undecided")
    assert bnvuln(*command, "--check")[0] == 0
    monkeypatch.setattr("bn_vuln.reporting.claims.statistics.verdict", lambda *_: "fails")
    assert bnvuln(*command)[0] == 0
    assert bnvuln(*command, "--check")[0] == 1


def test_reproduce_dry_run_lists_the_cells(bnvuln, tmp_path):
    code, out, _ = bnvuln("reproduce", "table6", "--set", "seeds=[0]", "--dry-run", "--out", tmp_path / "r")
    assert code == 0
    assert "6 cells:" in out
    assert not (tmp_path / "r").exists()
    printed = json.loads(bnvuln("reproduce", "table6", "--dry-run", "--json")[1])
    assert len({cell["id"] for cell in printed["cells"]}) == 30


def test_reproduce_list_has_claim_cost_and_state(bnvuln, reproduced):
    out = bnvuln("reproduce", "--list", "--out", reproduced)[1]
    for name in catalog.names():
        assert name in out
    assert "smoke 2/2 cells" in out
    rows = json.loads(bnvuln("reproduce", "--list", "--json", "--out", reproduced)[1])["experiments"]
    assert all(row["claim"] and row["cost"] for row in rows)


@pytest.mark.parametrize(
    ("options", "fragments"),
    [
        (["tabel6"], ["did you mean 'table6'"]),
        (["nowhere.yaml"], ["nowhere.yaml: no such file"]),
        ([], ["--list"]),
        (["table1", "--scale", "cpu"], ["'cpu'", "smoke"]),
        (["table6", "--set", "seeds=[]"], ["seeds"]),
        (["table6", "--set", "perturbations.bim.eps=-1"], ["perturbations.bim.eps", "-1"]),
        (["table6", "--set", "grid.data.width=[20]"], ["data.width", "20"]),
        (["table6", "--set", "grid.data.width=28"], ["grid.data.width: expected a list, e.g. [28], received 28\n"]),
        (["table6", "--jobs", "0"], ["--jobs"]),
    ],
)
def test_bad_requests_to_reproduce_exit_2(bnvuln, options, fragments, tmp_path):
    code, out, err = bnvuln("reproduce", *options, "--out", tmp_path / "r")
    assert (code, out) == (2, "")
    for fragment in fragments:
        assert fragment in err
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("form", ["html", "md", "csv"])
def test_report_writes_from_records_without_tensorflow(reproduced, form):
    code = (
        f"import sys\nfrom bn_vuln.cli.main import main\n"
        f"try: main(['report', {str(reproduced)!r}, '--format', {form!r}])\n"
        "except SystemExit as e: assert not e.code\nassert 'tensorflow' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith(f".{form}")


def test_report_json(bnvuln, reproduced):
    printed = json.loads(bnvuln("report", reproduced, "--json")[1])
    assert [e["experiment"] for e in printed["experiments"]] == ["table6"]


def test_a_folder_without_experiments_is_refused(bnvuln, tmp_path):
    code, _, err = bnvuln("report", tmp_path)
    assert code == 2
    assert "no experiment here" in err


def test_a_folder_of_results_folders_names_them(bnvuln, tmp_path):
    for name in ("b", "a"):
        (tmp_path / name / "experiments").mkdir(parents=True)
        (tmp_path / name / "experiments" / "table6-full.yaml").write_text("")
    code, out, err = bnvuln("report", tmp_path)
    assert (code, out) == (2, "")
    assert f"no experiment here, but in {tmp_path}/a, {tmp_path}/b: bnvuln report {tmp_path}/a" in err


def interrupted(*_, **__):
    raise KeyboardInterrupt


def test_an_interruption_says_how_to_go_on(bnvuln, monkeypatch):
    monkeypatch.setattr("bn_vuln.experiments.runner.run", interrupted)
    code, _, err = bnvuln("reproduce", "table6", "--scale", "smoke")
    assert code == 130
    assert "go on" in err
