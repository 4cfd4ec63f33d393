"""The experiments on ImageNet, where neither its images nor published weights are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bn_vuln.experiments import catalog

# What the paper measures -> experiments.
OF_THE_PAPER = {
    "E1": ("figure1",),
    "E2": ("table1",),
    "E3": ("appendix_a_mnist", "appendix_a_cifar"),
    "E4": ("svhn",),
    "E5": ("table2", "table2_cifar10_1"),
    "E6": ("table3",),
    "E7": ("table4",),
    "E8": ("table5", "bagnets"),
    "E9": ("appendix_e2",),
    "E10": ("figure2", "figure2_batch"),
    "E11": ("table13",),
    "E12": ("table6", "width84"),
    "E13": ("table7",),
    "E14": ("appendix_i",),
    "E15": ("appendix_j",),
}


@pytest.fixture
def nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of weights and of data, without a network."""
    import keras

    def offline(*_: object, **__: object) -> str:
        raise OSError("no network")

    monkeypatch.setattr(keras.utils, "get_file", offline)
    monkeypatch.setenv("BNVULN_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_all_that_the_paper_measures_is_listed(bnvuln, nothing: Path) -> None:
    code, out, err = bnvuln("reproduce", "--list", "--json")
    assert code == 0, err
    listed = {row["name"]: row for row in json.loads(out)["experiments"]}
    assert {f"E{i}" for i in range(1, 16)} == OF_THE_PAPER.keys()
    assert {name for names in OF_THE_PAPER.values() for name in names} <= listed.keys()
    assert listed["table5"]["state"] == ", ".join(
        f"{scale} 0/{n} cells" for scale, n in {"smoke": 2, "quick": 12, "cpu": 12, "full": 12}.items()
    )


@pytest.mark.parametrize(
    ("name", "net"), [("table5", "vgg11_bn"), ("bagnets", "bagnet17"), ("appendix_e2", "densenet121")]
)
def test_cells_are_named_without_weights_and_data(bnvuln, nothing: Path, name: str, net: str) -> None:
    code, out, err = bnvuln("reproduce", name, "--dry-run")
    assert code == 0, err
    weights = "bagnets" if name == "bagnets" else "torchvision"
    assert f"  {net} imagenet2012 224 {weights} weights\n" in out
    assert "lr" not in out.rpartition("cells:")[2]


@pytest.mark.parametrize(("name", "net"), [("table5", "vgg11"), ("bagnets", "bagnet9"), ("appendix_e2", "vgg11")])
def test_without_weights_one_line_names_the_file(bnvuln, nothing: Path, name: str, net: str) -> None:
    code, _, err = bnvuln("reproduce", name, "--out", "runs")
    assert code == 1
    *_, last = err.strip().splitlines()
    assert last.startswith("Error: ")
    assert str(nothing / "weights" / f"{net}.safetensors") in last
    assert not (nothing / "runs").exists()


def test_without_images_one_line_names_the_folder_and_the_archives(bnvuln, nothing: Path) -> None:
    code, _, err = bnvuln("reproduce", "table5", "--set", "weights=random", "--out", "runs")
    assert code == 1
    *_, last = err.strip().splitlines()
    assert last.startswith(f"Error: imagenet2012 is not prepared in {nothing / 'data'}")
    assert "ILSVRC2012_img_val.tar" in last
    assert not (nothing / "runs").exists()


def test_a_net_of_random_weights_on_made_up_photos(bnvuln, nothing: Path) -> None:
    """Table 5 with one net and two images."""
    attack = "{kind: attack, attack: bim, eps: 0.03, unit: standardized, steps: 1, keep: last, top: 5}"
    columns = "{clean: clean, clean.top5: 'clean, top 5', out.top5: out of top 5}"
    changes = (
        "grid.arch, normalization=[[resnet18, batch]]", "evaluation.limit=2", "claims=[]", f"table.columns={columns}",
        f"perturbations={{clean: {{kind: clean}}, out: {attack}}}",
    )  # fmt: skip
    code, out, err = bnvuln("reproduce", "table5", "--scale", "smoke", *(w for one in changes for w in ("--set", one)))
    assert code == 0, err
    assert "cell 1/1: resnet18 toy_photos 224 random weights seed 0\n" in err
    assert "clean, top" in out
    (report,) = (nothing / "runs" / "report").glob("*.md")
    text = report.read_text(encoding="utf-8")
    assert "- **clean, top 5**: top-5 accuracy on clean images\n" in text
    assert "- Weights: random\n- Images of: toy_photos\n- Scale: smoke\n- Examples: 2 (test)\n- State: 1 nets" in text
    code, out, err = bnvuln("list")
    assert "resnet18 random weights" in out
    code, out, err = bnvuln("show", "runs/" + out.split("toy_photos")[0].split()[-1])
    assert "11,699,112, with random weights seed 0" in out


def test_sources_and_targets_are_all_nets_of_table_5() -> None:
    chosen = catalog.experiment("appendix_e2")
    nets = list(chosen.table.arms)
    assert [chosen.perturbations[f"from_{net}"].source for net in nets] == nets  # type: ignore[union-attr]
    assert chosen.grid == catalog.experiment("table5").grid
    rates = [f"from_{net}.transfer_rate" for net in nets]
    assert list(chosen.table.columns) == ["clean", *(f"from_{net}" for net in nets), *rates]
    attack = chosen.perturbations["from_vgg11"].attack  # type: ignore[union-attr]
    assert attack == catalog.experiment("table5").perturbations["pgd_inf"]
