"""The benchmarks run and print what they promise; their numbers are never judged here."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parent.parent / "tools"


@pytest.mark.parametrize(
    ("name", "options", "contenders"),
    [
        pytest.param(
            "bench_train.py",
            ["--limit", "256", "--arch", "mlp", "--other-xla"],
            {"ours", "keras_fit", "ours_other_xla"},
            marks=pytest.mark.slow,
        ),
        pytest.param("bench_train.py", ["--limit", "256", "--arch", "vgg8"], {"ours"}, marks=pytest.mark.slow),
        pytest.param(
            "bench_attacks.py",
            ["--limit", "20", "--train-limit", "500", "--batches", "10"],
            {"ours", "bare_gradients", "cleverhans", "cleverhans_compiled"},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "bench_carlini_wagner.py",
            ["--limit", "20", "--train-limit", "500", "--steps", "20", "--constants", "2"],
            {"ours", "ours_plain", "cleverhans"},
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
    options = ["--only", "last", "ladder", "--repetitions", "1", "--limit", "20", "--into", path]
    done = subprocess.run([sys.executable, TOOLS / "bench_peers.py", *options], capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (0, b""), done.stderr
    results = json.loads(path.read_text())["results"]
    assert results.keys() == {"earlier", "last_batch", "last_none", "ladder_batch", "ladder_none"}
    accuracies = {name: r["accuracy"] for name, r in results["last_none"].items() if name != "repetitions"}
    assert accuracies.keys() == {"ours", "cleverhans", "foolbox", "art", "torchattacks", "pytorch"}
    assert len(set(accuracies.values())) == 1


def summarize(*options):
    command = [sys.executable, TOOLS / "summarize_results.py", *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=TOOLS.parent)


def test_the_table_of_the_results_is_what_the_records_say():
    done = summarize("--check")
    assert (done.returncode, done.stderr) == (0, ""), "run tools/summarize_results.py"


def test_a_table_that_is_out_of_date_is_noticed_and_mended(tmp_path):
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "README.md").write_text("before\n<!-- made by tools/summarize_results.py -->\nold\n<!-- end -->\nafter\n")
    assert summarize("--folder", folder, "--check").returncode == 1
    assert summarize("--folder", folder).returncode == 0
    text = (folder / "README.md").read_text()
    assert text.startswith("before\n")
    assert text.endswith("<!-- end -->\nafter\n")
    assert "old" not in text
    assert summarize("--folder", folder, "--check").returncode == 0
