"""The benchmarks run and print what they promise; their numbers are never judged here."""

import importlib
import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import pytest

from bn_vuln.runtime import backend

TOOLS = Path(__file__).parent.parent / "tools"


@pytest.mark.parametrize(
    ("name", "options", "contenders"),
    [
        pytest.param(
            "bench_train.py",
            ["--limit", "256", "--arch", "mlp", "--other-xla"],
            {"ours", "keras_fit", "keras_fit_xla_steps", "ours_other_xla"},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "bench_train.py",
            ["--limit", "256", "--arch", "mlp", "--fit"],
            {"ours", "keras_fit", "keras_fit_steps", "keras_fit_xla", "keras_fit_xla_steps"},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "bench_train.py", ["--limit", "256", "--arch", "vgg8", "resnet20"], {"ours"}, marks=pytest.mark.slow
        ),
        pytest.param(
            "bench_train.py",
            ["--limit", "256", "--arch", "mlp", "--augment"],
            {"ours", "ours_augmented", "augmentation_alone", "augmented_over_plain"},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "bench_train.py",
            ["--limit", "256", "--arch", "mlp", "--width", "32", "--batch-size", "16"],
            {"ours", "ours_enlarged"},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "bench_attacks.py",
            ["--limit", "20", "--train-limit", "500", "--batches", "10"],
            {"ours", "bare_gradients", "cleverhans"},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "bench_carlini_wagner.py",
            ["--limit", "20", "--train-limit", "500", "--steps", "20", "--constants", "2"],
            {"ours", "ours_plain"},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_benchmarks_print_one_json_object(name, options, contenders):
    command = [sys.executable, TOOLS / name, "--repetitions", "1", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert printed["device"]
    assert printed["versions"]["cleverhans"] == importlib.metadata.version("cleverhans")
    for results in printed["results"].values():
        assert contenders <= results.keys()
        assert results["ours"]["times_ours"] == 1
        assert all(result["median_s"] >= 0 for result in results.values() if isinstance(result, dict))


@pytest.mark.slow
def test_what_checks_cost_is_one_json_object():
    command = [sys.executable, TOOLS / "bench_checks.py", "--repetitions", "1", "--limit", "20", "--attacks", "pgd"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {level: r["times_none"] for level, r in json.loads(done.stdout)["results"]["pgd"].items()}["none"] == 1


@pytest.mark.slow
def test_comparisons_with_other_libraries_are_kept_beside_others(tmp_path):
    for library in ("foolbox", "art", "torchattacks", "torch"):
        pytest.importorskip(library, reason="of the extra bench")
    path = tmp_path / "peers.json"
    path.write_text(json.dumps({"results": {"earlier": {"ours": {}}}}))
    options = ["--only", "last", "eps_grid", "--repetitions", "1", "--limit", "20", "--into", path]
    done = subprocess.run([sys.executable, TOOLS / "bench_peers.py", *options], capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (0, b""), done.stderr
    results = json.loads(path.read_text())["results"]
    assert results.keys() == {"earlier", "last_batch", "last_none", "ladder_batch", "ladder_none"}
    assert results["ladder_none"]["settings"]["attack"]["eps_grid"]
    found = results["last_none"]
    assert (found["repetitions"], found["examples"], found["settings"]["attack"]["steps"]) == (1, 20, 40)
    accuracies = {name: r["accuracy"] for name, r in found.items() if isinstance(r, dict) and "accuracy" in r}
    assert accuracies.keys() == {"ours", "cleverhans", "foolbox", "art", "torchattacks", "pytorch"}
    assert len(set(accuracies.values())) == 1


@pytest.fixture
def tools(monkeypatch):
    """Imports a file of tools/."""
    monkeypatch.syspath_prepend(str(TOOLS))
    monkeypatch.setattr(backend, "device_name", lambda: "a device")
    return importlib.import_module


def test_versions_are_those_of_the_libraries_that_are_installed(tools, monkeypatch):
    installed, bench = importlib.metadata.version("cleverhans"), tools("bench")
    monkeypatch.setattr(bench, "PEERS", ("cleverhans", "no-such-library"))
    versions = bench.machine()["versions"]
    assert versions["cleverhans"] == installed
    assert {"tensorflow", "keras", "numpy"} <= versions.keys()
    assert "no-such-library" not in versions


def test_comparisons_keep_the_versions_that_they_were_made_with(tools, tmp_path):
    path = tmp_path / "peers.json"
    old = {"device": "an old device", "versions": {"torch": "0"}}
    path.write_text(json.dumps({**old, "results": {"a": {"ours": {}}, "b": {}, "c": {"versions": {"torch": "1"}}}}))
    tools("bench_peers").merge_into(path, {"b": {"repetitions": 3}}, 1, 20)
    kept = json.loads(path.read_text())
    assert kept["results"] == {
        "a": {**old, "ours": {}},
        "b": {"repetitions": 3},
        "c": {"device": "an old device", "versions": {"torch": "1"}},
    }
    assert (kept["device"], kept["repetitions"], kept["settings"]["examples"]) == ("a device", 1, 20)


@pytest.mark.slow
def test_the_benchmark_of_image_folders_prints_seconds_and_memory(tmp_path):
    command = [sys.executable, TOOLS / "bench_image_folder.py", "--n", "30", "--folder", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)["results"]["evaluate"]
    assert 0 < result["started_gb"] <= result["peak_gb"]
    assert len(list(tmp_path.rglob("*.jpg"))) == 30


ON_A_GPU = """
import sys
sys.path[:0] = [{tests!r}, {tools!r}]
from helpers_backends import NoTensorFlow
sys.meta_path.insert(0, NoTensorFlow())
sys.argv = ["bench_gpu.py", "--smoke", "--repetitions", "1"]
import bench_gpu
from bn_vuln.runtime import backend
backend.gpu_names = lambda: ["NVIDIA H100 80GB HBM3"]
dtypes = {{p: bench_gpu.build("vgg8", bench_gpu.PHOTOS, p)[1].layers[-1].compute_dtype for p in bench_gpu.PRECISIONS}}
assert dtypes == {{"float32": "float32", "tf32": "float32", "bfloat16": "bfloat16"}}, dtypes
assert [round(bench_gpu.peak(p) / 1e11) for p in bench_gpu.PRECISIONS] == [669, 4947, 9894]
backend.gpu_names = lambda: ["a card that is not known"]
bench_gpu.main()
"""


@pytest.mark.slow
def test_the_benchmark_of_a_gpu_needs_no_tensorflow():
    pytest.importorskip("jax", reason="of the extra jax")
    code = ON_A_GPU.format(tests=str(TOOLS.parent / "tests"), tools=str(TOOLS))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert "tensorflow" not in printed["versions"]
    assert printed["settings"]["left_out"] == []
    found = {name: set(own) for name, own in printed["results"].items()}
    every = {"float32", "tf32", "bfloat16"}
    assert found == {"mlp_training": every, "mlp_pgd_20": every, "wrn_10_1_training": {"bfloat16"}}
    for name, own in printed["results"].items():
        unit = "gradients" if "pgd" in name else "images"
        assert all(one[f"{unit}_per_second"] > 0 and one["share_of_peak"] is None for one in own.values())


@pytest.mark.slow
def test_the_benchmark_of_sweeps_prints_overhead_recognition_and_costs():
    options = ["--smoke", "--limit", "20", "--cells", "2", "--repetitions", "1"]
    done = subprocess.run(
        [sys.executable, TOOLS / "bench_sweep.py", *options], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)["results"]
    assert results["overhead"]["jobs_2"]["cells"] == 4
    assert results["engine"]["jobs_1"]["overhead_ms_a_cell"] > 0
    assert results["recognition"]["first time"]["cells"] == results["recognition"]["later"]["cells"] == 20
    assert results["recognition"]["later"]["files_opened_a_cell"] == 1
    assert results["cells"]["mlp_784"]["recorded_seconds"] < results["cells"]["mlp_784"]["seconds"]
