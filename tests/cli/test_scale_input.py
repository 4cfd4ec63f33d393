"""`bnvuln scale-input`: the config it makes, its estimate, its row."""

import json

import pytest

from bn_vuln.config.grid import expand
from bn_vuln.experiments import catalog

SMALL = ["--set", "arch={name: mlp, hidden: [8, 8], normalized: [0]}", "--scale", "smoke"]


@pytest.fixture
def scale_input(bnvuln):
    """Run the command: (exit code, standard output, standard error)."""
    return lambda *args: bnvuln("scale-input", *args)


def test_the_pair_is_that_of_table6_at_the_width():
    ours, paper = (
        expand(catalog.experiment(name, "full", ["grid.data.width=[84]"])) for name in ("scale_input", "table6")
    )
    assert ours == paper
    assert {cell.data.width for cell in ours} == {84}


def test_quick_is_one_seed_of_10000_images_and_500_test_images():
    chosen = catalog.experiment("scale_input", "quick", ["grid.data.width=[84]"])
    cells = expand(chosen)
    assert len(cells) == 2
    assert {(cell.data.limit, cell.seed) for cell in cells} == {(10000, 0)}
    assert chosen.evaluation.limit == 500
    assert not chosen.as_published


def test_weight_decay_goes_to_both_arms():
    cells = expand(catalog.experiment("scale_input_l2", "quick", ["grid.data.width=[28]", "weight_decay=0.05"]))
    assert {(cell.normalization.name, cell.weight_decay) for cell in cells} == {("none", 0.05), ("batch", 0.05)}


def test_it_prints_its_row_and_what_is_finished_is_kept(scale_input, tmp_path):
    code, out, err = scale_input("--width", 30, "--out", tmp_path, *SMALL)
    assert code == 0, err
    assert "2 of 2 trainings and evaluations to do, about" in err
    assert "A row of Table 6" in out
    assert "| 30 " in out
    code, out, err = scale_input("--width", 30, "--out", tmp_path, *SMALL, "--json")
    assert code == 0
    assert "0 of 2" in err
    assert json.loads(out)["scale"] == "smoke"


@pytest.mark.slow
def test_the_row_of_table_7(scale_input, tmp_path):
    code, out, _ = scale_input("--width", 28, "--weight-decay", "1/100", "--out", tmp_path, *SMALL)
    assert code == 0
    assert "A row of Table 7" in out
    assert "0.01" in out


def test_a_dry_run_prints_the_cells_and_makes_nothing(scale_input, tmp_path):
    code, out, _ = scale_input("--width", 30, "--out", tmp_path / "runs", "--dry-run", "--json")
    assert code == 0
    assert {cell["data"]["width"] for cell in json.loads(out)["cells"]} == {30}
    code, out, _ = scale_input("--width", 30, "--out", tmp_path / "runs", "--dry-run")
    assert (code, "2 cells:" in out) == (0, True)
    assert not (tmp_path / "runs").exists()


def test_an_estimate_runs_nothing(scale_input, tmp_path):
    code, out, err = scale_input("--width", 56, "--estimate", "--json", "--out", tmp_path / "runs", *SMALL)
    assert code == 0
    assert json.loads(out)["seconds"] > 0
    assert "about" in err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("options", "fragments"),
    [
        ([], ["--width"]),
        (["--width", "wide"], ["--width", "'wide'"]),
        (["--width", "20"], ["data.width", ">= 28", "20"]),
        (["--width", "0"], ["data.width", "0"]),
        (["--width", "27", "--estimate"], ["data.width", ">= 28", "27"]),
        (["--width", "28", "--weight-decay", "0"], ["--weight-decay", "> 0"]),
        (["--width", "28", "--weight-decay", "-1"], ["--weight-decay", "> 0"]),
        (["--width", "28", "--weight-decay", "x"], ["--weight-decay", "'x'"]),
        (["--width", "28", "--scale", "cpu"], ["'cpu'", "quick"]),
        (["--width", "28", "--jobs", "2", "--strategy", "mirrored"], ["--jobs", "--strategy"]),
    ],
)
def test_bad_requests_exit_2(scale_input, tmp_path, options, fragments):
    code, out, err = scale_input(*options, "--out", tmp_path / "runs")
    assert (code, out) == (2, "")
    assert "Traceback" not in err
    for fragment in fragments:
        assert fragment in err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("width", [2000, 100000])
def test_a_net_that_does_not_fit_into_memory_is_said_before_it_is_made(scale_input, tmp_path, width):
    code, out, err = scale_input("--width", width, "--out", tmp_path / "runs", "--estimate")
    assert (code, out) == (1, "")
    assert "GiB for its weights" in err
    assert "Traceback" not in err
