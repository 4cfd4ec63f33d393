"""The configs that ship, configs that extend one another, and the Python API on top of them."""

import contextlib
import shlex
from pathlib import Path

import click
import numpy as np
import pytest
import yaml
from bn_vuln.cli.main import bnvuln
from helpers_records import SMALL

from bn_vuln import api, config
from bn_vuln.config import digest
from bn_vuln.config.grid import arm_of, check_layout, expand
from bn_vuln.errors import ConfigError
from bn_vuln.experiments import catalog


def test_names_are_the_files():
    assert {"table6", "table6_matched", "table6_settings"} <= set(catalog.names())
    assert {"paper", "quick"} <= set(catalog.names("suites"))


def test_every_experiment_resolves_at_its_smallest_scale_and_in_full():
    for name in [*catalog.names(), *catalog.names("beyond")]:
        assert "smoke" in catalog.experiment(name).scales
        for scale in ("smoke", "full"):
            chosen = catalog.experiment(name, scale)
            assert chosen.name == name
            assert expand(chosen)


def test_table6_is_what_the_paper_states():
    chosen = catalog.experiment("table6")
    bim = chosen.perturbations["bim"]
    assert (bim.steps, bim.step_size, bim.eps, bim.unit, bim.random_start) == (100, 1e-3, 0.1, "standardized", False)
    assert (chosen.perturbations["awgn"].std, chosen.perturbations["awgn"].unit) == (1.0, "standardized")
    assert len(chosen.seeds) == 5
    assert {cell.normalization.name for cell in expand(chosen)} == {"none", "batch"}
    assert chosen.evaluation.split == "test"


def test_the_settings_never_touch_the_test_set():
    chosen = catalog.experiment("table6_settings")
    assert chosen.evaluation.split == "validation"
    assert not set(chosen.seeds) & set(catalog.experiment("table6").seeds)


def test_the_settings_of_the_tables_are_among_the_candidates():
    def settings(name):
        return {(c.train.lr, c.train.batch_size, c.train.epochs) for c in expand(catalog.experiment(name))}

    assert len(settings("table6_settings")) == 18
    assert settings("table6") | settings("table6_matched") < settings("table6_settings")


def test_the_arms_of_a_pair_differ_in_normalization_only():
    # Figure 2 trains its arms for 10 and 40 epochs; Tables 1 and 13 and Appendix J compare weight decays as well; in
    # Tables 2 and 4 Fixup stands in for none.
    others = {"figure2", "figure2_batch", "table1", "table1_settings", "table13", "table13_settings", "appendix_j"}
    others |= {"table2", "table2_cifar10_1", "table4"}
    others |= {"table5", "bagnets", "appendix_e2"}  # published nets, some without a pair
    for name in set(catalog.names()) - others:
        cells = expand(catalog.experiment(name))
        arms = {arm: [c for c in cells if c.normalization.name == arm] for arm in ("none", "batch")}
        stripped = [{c.model_copy(update={"normalization": None}) for c in arm} for arm in arms.values()]
        assert stripped[0] == stripped[1]


def test_arms_with_fixup_in_place_of_none_differ_in_normalization_only():
    for name in ("table2", "table2_cifar10_1", "table4"):
        cells = expand(catalog.experiment(name))
        with_bn, without = ([c for c in cells if (c.normalization.name == "batch") == batch] for batch in (True, False))
        assert {c.normalization.name for c in without} == {"none", "fixup"}
        assert {c.arch.name for c in without if c.normalization.name == "none"} == {"vgg8"}
        stripped = [{c.model_copy(update={"normalization": None}) for c in arm} for arm in (with_bn, without)]
        assert stripped[0] == stripped[1]


def test_what_is_measured_on_the_nets_of_table_2_trains_none_of_its_own():
    for scale in ("cpu", "full"):
        nets = set(expand(catalog.experiment("table2", scale)))
        for name in ("table2_cifar10_1", "appendix_i", "batch_statistics", "adapted_statistics", "strong_cifar10"):
            assert set(expand(catalog.experiment(name, scale))) <= nets
        others = {
            cell
            for name in ("table4", "appendix_a_cifar", "normalizations")
            for cell in expand(catalog.experiment(name, scale))
        }
        assert len(others & nets) >= 2
        assert set(expand(catalog.experiment("strong_resnet20", scale))) <= set(
            expand(catalog.experiment("resnet20", scale))
        )


def write(path, content):
    path.write_text(yaml.safe_dump(content))
    return path


def test_extends_merges_mappings_and_replaces_the_rest(tmp_path):
    parent = catalog.folder("paper") / "table6.yaml"
    write(
        tmp_path / "mine.yaml", {"name": "mine", "extends": str(parent), "base": {"train": {"epochs": 2}}, "seeds": [9]}
    )
    extended, shipped = catalog.experiment(str(tmp_path / "mine.yaml")), catalog.experiment("table6")
    assert extended.base["train"] == {**shipped.base["train"], "epochs": 2}
    assert extended.seeds == (9,)
    assert extended.perturbations == shipped.perturbations


def test_a_command_is_that_of_one_file(tmp_path):
    parent = str(catalog.folder("paper") / "table6.yaml")
    write(tmp_path / "mine.yaml", {"name": "mine", "extends": parent})
    assert catalog.experiment(str(tmp_path / "mine.yaml")).command == ""
    write(tmp_path / "mine.yaml", {"name": "mine", "extends": parent, "command": "bnvuln reproduce mine.yaml"})
    assert catalog.experiment(str(tmp_path / "mine.yaml")).command == "bnvuln reproduce mine.yaml"


def refuse_unless_parsed(line):
    """Fail unless a command line parses: no option unknown, no value of one refused, no argument too many."""
    program, name, *words = shlex.split(line)
    command = bnvuln.get_command(click.Context(bnvuln), name)
    assert program == "bnvuln"
    assert command is not None, line
    given, left, _ = command.make_parser(click.Context(command)).parse_args(list(words))
    assert not left, line
    for option in (param for param in command.params if isinstance(param, click.Option)):
        option.type_cast_value(click.Context(command), given.get(option.name))
    return given


OF_KIND = {"suites": ("evaluate", "suite"), "plans": ("reproduce", "plan"), "commands": ("scale-input", None)}


@pytest.mark.parametrize("kind", [*catalog.KINDS, "suites", "plans"])
def test_every_file_says_what_it_is_for_how_to_run_it_and_what_it_costs(kind):
    for path in sorted(catalog.folder(kind).glob("*.yaml")):
        data = config.read_yaml(path)
        assert all(data.get(field) for field in ("title", "claim", "command", "cost")), path
        given = refuse_unless_parsed(data["command"])
        command, option = OF_KIND.get(kind, ("reproduce", "name"))
        assert data["command"].split()[1] == command, path
        assert option is None or given[option] == path.stem, path
        if kind in catalog.KINDS:
            found = catalog.experiment(str(path))
            assert found.name == path.stem
            assert {*found.cost} == {"full", *found.scales}, path
        assert "# Command:" not in path.read_text(), path


@pytest.mark.parametrize("line", ["bnvuln repro table6", "bnvuln reproduce table6 --scale whole",
                                  "bnvuln reproduce table6 --jobs", "bnvuln reproduce table6 again",
                                  "bnvuln reproduce --no-such-option"])  # fmt: skip
def test_a_command_that_is_none_would_be_found(line):
    with pytest.raises((click.ClickException, AssertionError)):
        refuse_unless_parsed(line)


def test_extends_must_name_a_file(tmp_path):
    for parent in ("nowhere.yaml", 3, "."):
        path = write(tmp_path / "mine.yaml", {"extends": parent})
        with pytest.raises(ConfigError, match=r"mine\.yaml: extends: expected the path of a YAML file"):
            catalog.experiment(str(path))


def test_a_file_that_extends_itself_is_refused(tmp_path):
    path = write(tmp_path / "mine.yaml", {"extends": "mine.yaml"})
    with pytest.raises(ConfigError, match="extends itself"):
        catalog.experiment(str(path))


@pytest.mark.parametrize(
    ("override", "fragment"),
    [
        ("normalization.c=0.1", "the grid sets normalization"),
        ("data.width=56", "the grid sets data.width"),
        ("scale=quick", "choose the scale with --scale"),
        ("seed=1", "the seeds are set by seeds: use --set 'seeds=[1]'"),
        ("perturbations.bmi.steps=3", "no perturbation 'bmi' here; did you mean 'bim'?"),
    ],
)
def test_an_override_without_effect_is_refused(override, fragment):
    with pytest.raises(ConfigError) as error:
        catalog.experiment("table6", "full", [override])
    assert fragment in str(error.value)


def test_an_overridden_experiment_is_a_preview_with_files_of_its_own():
    plain, changed = catalog.experiment("table6"), catalog.experiment("table6", "full", ["evaluation.limit=50"])
    assert plain.as_published
    assert not changed.as_published
    assert not catalog.experiment("table6", "quick").as_published
    assert catalog.file_stem(plain) == "table6-full"
    assert catalog.file_stem(changed).startswith("table6-full-")
    assert catalog.file_stem(changed) != catalog.file_stem(
        catalog.experiment("table6", "full", ["evaluation.limit=60"])
    )


@pytest.mark.parametrize(
    ("table", "fragment"),
    [
        ({"reference": "nun", "treatment": "bach"}, "no cell is in the arm 'bach' (known: batch, none)"),
        ({"treatment": "bacth"}, "no cell is in the arm 'bacth' (known: batch, none); did you mean 'batch'?"),
        ({"reference": "nono"}, "table.reference: no cell is in the arm 'nono' (known: batch, none); did you mean"),
        ({"arm": "init"}, "several cells of a seed fall into one row"),
        ({"rows": ["data.width", "data.widht"]}, "a cell has no key 'data.widht'"),
    ],
)
def test_a_layout_that_does_not_fit_is_refused_before_anything_is_trained(tmp_path, table, fragment):
    shipped = str(catalog.folder("paper") / "table6.yaml")
    path = write(tmp_path / "mine.yaml", {"name": "mine", "extends": shipped, "table": table})
    with pytest.raises(ConfigError) as error:
        api.reproduce(str(path), root=tmp_path / "results")
    assert fragment in str(error.value)
    assert not (tmp_path / "results").exists()


def test_a_claim_about_a_row_that_is_not_there_is_refused(tmp_path):
    """It would vanish from the report."""
    claim = {"where": {"data.width": 29}, "perturbations": ["bim"], "value": -0.4, "sem": 0.01, "source": "made up"}
    shipped = str(catalog.folder("paper") / "table6.yaml")
    path = write(tmp_path / "mine.yaml", {"name": "mine", "extends": shipped, "claims": [claim]})
    with pytest.raises(ConfigError, match=r"no cell has .*'data.width': 29.*, which a claim is about"):
        api.reproduce(str(path), root=tmp_path / "results")


def test_the_example_of_the_documents_is_an_experiment(tmp_path):
    text = (Path(__file__).parents[2] / "docs" / "guide" / "experiments.md").read_text()
    path = tmp_path / "my.yaml"
    path.write_text(text.split("```yaml\n")[1].split("```")[0])
    for scale in ("smoke", "full"):
        chosen = catalog.experiment(str(path), scale)
        check_layout(chosen, expand(chosen))
    assert len(expand(chosen)) == 12


def test_the_example_of_two_arms_that_differ_in_c_fits_the_one_before():
    text = (Path(__file__).parents[2] / "docs" / "guide" / "experiments.md").read_text()
    whole, arms = (
        yaml.safe_load(part.split("```")[0]) for part in text.split("```yaml\n")[1:] if "normalization: [" in part
    )
    merged = {**whole, **arms, "seeds": [0]}
    chosen = config.validate(config.Experiment, merged, "my.yaml")
    check_layout(chosen, expand(chosen))
    assert {arm_of(chosen, cell) for cell in expand(chosen)} == {"small c", "large c"}


def test_own_data_of_an_experiment_are_known_by_their_content(tmp_path):
    def write(name, value):
        images = np.full((40, 8, 8), value, np.uint8)
        np.savez(tmp_path / name, x_train=images, y_train=np.arange(40) % 2, x_test=images, y_test=np.arange(40) % 2)

    def cells(name):
        path = tmp_path / "own.yaml"
        plain = {**SMALL, "base": {"data": {"name": str(tmp_path / name), "validation": 5}}}
        path.write_text(yaml.safe_dump({**plain, "grid": {"normalization": ["none", "batch"]}, "claims": []}))
        return [digest(config.identity_of(cell)) for cell in expand(catalog.experiment(str(path)))]

    write("a.npz", 1)
    write("b.npz", 1)
    write("c.npz", 2)
    assert cells("a.npz") == cells("b.npz") != cells("c.npz")


@pytest.mark.parametrize("name", ["claims", "paper"])
def test_claims_have_an_older_name(tmp_path: Path, name: str) -> None:
    """On top of a shipped experiment, whose claims have the present name, and in an assignment."""
    claim = {"perturbations": ["bim"], "sign": -1, "source": "mine"}
    path = write(
        tmp_path / "mine.yaml", {"name": "mine", "extends": str(catalog.folder("paper") / "table6.yaml"), name: [claim]}
    )
    assert [found.source for found in catalog.experiment(str(path)).claims] == ["mine"]
    assert catalog.experiment(str(path), overrides=[f"{name}=[]"]).claims == ()


def test_a_file_with_the_name_of_a_shipped_experiment_is_refused_unless_it_is_that_one(tmp_path: Path) -> None:
    shipped = catalog.folder("beyond") / "transfer_mnist.yaml"
    copied = tmp_path / "copied.yaml"
    copied.write_bytes(shipped.read_bytes())
    assert catalog.experiment(str(shipped)) == catalog.experiment(str(copied)) == catalog.experiment("transfer_mnist")
    for content in ({"extends": str(shipped)}, {**SMALL, "name": "transfer_mnist"}):
        with pytest.raises(ConfigError) as caught:
            catalog.experiment(str(write(tmp_path / "mine.yaml", content)))
        assert str(caught.value).startswith("mine.yaml: name: 'transfer_mnist' is a shipped experiment")


def test_cells_of_one_row_are_told_apart_by_the_key_that_differs() -> None:
    grid = {"normalization": ["none", {"name": "batch", "c": 1e-5}, {"name": "batch", "c": 0.1}]}
    chosen = config.validate(config.Experiment, {**SMALL, "grid": grid}, "small.yaml")
    with pytest.raises(ConfigError) as caught:
        check_layout(chosen, expand(chosen))
    assert "fall into one row; they differ in normalization.c: add it to table.rows, or name the arms by it in" in str(
        caught.value
    )


@pytest.mark.parametrize("scale", ["smoke", "full"])
def test_a_key_of_a_named_arm_that_no_cell_has_is_refused(scale: str) -> None:
    arms = {"none": {"normalization.name": "none"}, "batch": {"normalisation.name": "batch"}}
    table = {**SMALL["table"], "arms": arms}
    chosen = config.validate(config.Experiment, {**SMALL, "table": table, "scale": scale}, "small.yaml")
    with pytest.raises(ConfigError) as caught:
        check_layout(chosen, expand(chosen))
    assert str(caught.value) == (
        "small: table.arms.batch: no cell has a key 'normalisation.name'; did you mean 'normalization.name'?"
    )


def test_a_key_of_a_named_arm_may_be_missing_at_smaller_scales() -> None:
    """They leave cells out on purpose."""
    arms = {"none": {"normalization.name": "none"}, "batch": {"normalization.name": "batch"},
            "group": {"normalization.groups": 4}}  # fmt: skip
    table = {**SMALL["table"], "arms": arms}
    for scale, refused in (("smoke", False), ("full", True)):
        chosen = config.validate(config.Experiment, {**SMALL, "table": table, "scale": scale}, "small.yaml")
        with pytest.raises(ConfigError, match="no cell has a key") if refused else contextlib.nullcontext():
            check_layout(chosen, expand(chosen))
