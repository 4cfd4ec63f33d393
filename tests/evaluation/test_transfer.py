"""Transfer between linear models: the success of FGSM's examples on each model is known exactly.

FGSM on a linear model with two classes moves every pixel that has a weight by eps against the label, and no other: the
margin of any other linear model on the result is its own minus eps times the sum of its weights along that step.
"""

import json
import re
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
from helpers_attacks import keras
from helpers_runs import MessageLog

from bn_vuln import api, data, records
from bn_vuln.config import Attack, Cell, digest, identity_of, validate
from bn_vuln.errors import BnvulnError, UsageError
from bn_vuln.evaluation import classifier, sanity_checks, transfer
from bn_vuln.evaluation.evaluator import Evaluator
from bn_vuln.records import names as model_names
from bn_vuln.reporting import transfer as report

N, WIDTH, EPS = 60, 4, 0.05
FGSM = Attack(attack="fgsm", eps=EPS)
FIRST, SECOND = np.arange(16) < 8, np.arange(16) >= 8  # pixels
# Weights of z, the logit of class 1 (that of class 0 is 0), of x - 1/2.
WEIGHTS = {
    "left": 1.0 * FIRST,
    "twice": 2.0 * FIRST,  # the same boundary
    "right": 1.0 * SECOND,  # no pixel in common
    "both": np.where(np.arange(16) % 3 == 0, -1.0, 0.5),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A data set of 4 x 4 images, images.npz, and a .keras file of each linear model."""
    root = tmp_path_factory.mktemp("linear")
    x = np.random.default_rng(0).integers(70, 186, (5 * N, WIDTH, WIDTH, 1), dtype=np.uint8)
    z = (x.reshape(-1, 16) / 255 - 0.5) @ (WEIGHTS["left"] + WEIGHTS["right"])
    y = (z > 0).astype(np.int32)  # no model is always right
    np.savez(root / "images.npz", x_train=x[N:], y_train=y[N:], x_test=x[:N], y_test=y[:N])
    for name, w in WEIGHTS.items():
        linear(w).save(root / f"{name}.keras")
    linear(np.ones(64), 8).save(root / "wide.keras")
    return root


def linear(w, width=WIDTH):
    dense = keras.layers.Dense(2, name="logits")
    model = keras.Sequential([keras.Input((width, width, 1)), keras.layers.Flatten(name="flat"), dense])
    dense.set_weights([np.stack([np.zeros_like(w), w], 1), np.array([0.0, -0.5 * w.sum()])])
    return model


def opened(folder):
    return [
        api.open_classifier(path, dataset=str(folder / "images.npz"), input_scale="0-1")
        for path in files(folder, "left", "right")
    ]


def files(folder, *names):
    return [folder / f"{name}.keras" for name in names]


@pytest.fixture
def run(folder, tmp_path):
    """Transfer between linear models by name, records below tmp_path/runs."""

    def run(*names, attack=FGSM, **options):
        where = {"dataset": str(folder / "images.npz"), "input_scale": "0-1", **options}
        return api.transfer(files(folder, *names), attack=attack, root=tmp_path / "runs", **where)

    return run


@pytest.fixture(scope="module")
def everything(folder, tmp_path_factory):
    """The matrix of all linear models."""
    root, where = tmp_path_factory.mktemp("everything"), {"dataset": str(folder / "images.npz"), "input_scale": "0-1"}
    return api.transfer(files(folder, *WEIGHTS), attack=FGSM, matrix=True, root=root, **where)


def by_name(found):
    """The pairs by the names of source and target."""
    return {(found.names[s], found.names[t]): pair for (s, t), pair in found.pairs.items()}


@pytest.fixture(scope="module")
def expected(folder):
    """By the names of source and target: (clean of source, source, clean of target, target), whether each example is
    classified correctly, from the closed form."""
    with np.load(folder / "images.npz") as arrays:
        x, y = arrays["x_test"].reshape(N, 16) / 255, arrays["y_test"]
    sign = np.where(y == 1, 1.0, -1.0)[:, None]

    def right(name, images):
        return sign[:, 0] * ((images - 0.5) @ WEIGHTS[name]) > 0

    def pair(source, target):
        moved = x - EPS * sign * np.sign(WEIGHTS[source])
        return right(source, x), right(source, moved), right(target, x), right(target, moved)

    return {(source, target): pair(source, target) for source in WEIGHTS for target in WEIGHTS}


# ---------------------------------------------------------------- numbers


def test_every_pair_of_linear_models_is_as_the_closed_form_has_it(everything, expected):
    pairs = by_name(everything)
    assert pairs.keys() == expected.keys()
    for names, pair in pairs.items():
        source_clean, source, clean, target = expected[names]
        could = source_clean & clean & ~source
        assert 0 < could.sum() < N
        record = pair.record
        assert (record.n, record.clean_correct, record.correct) == (N, clean.sum(), target.sum())
        assert (record.eligible, record.transferred) == (could.sum(), (could & ~target).sum())
        assert record.fooled == (clean & ~target).sum()
        assert record.accuracy == pytest.approx(target.mean())
        assert record.transfer_rate == pytest.approx((could & ~target).sum() / could.sum())
        found = pair.correct
        arrays = found.source_clean, found.source, found.target_clean, found.target
        for array, exact in zip(arrays, expected[names], strict=True):
            np.testing.assert_array_equal(array, exact)


def test_all_transfers_to_the_same_boundary_and_nothing_where_no_pixel_is_shared(run):
    log = MessageLog()
    pairs = by_name(run("left", "twice", "right", progress=log))
    assert [line.split(":")[0] for line in log.lines[-3:]] == ["left -> left", "left -> twice", "left -> right"]
    assert list(pairs) == [("left", "left"), ("left", "twice"), ("left", "right")]
    same, other = pairs["left", "twice"].record, pairs["left", "right"].record
    assert same.transferred == same.eligible == same.fooled > 0
    assert (other.transferred, other.fooled, other.transfer_rate) == (0, 0, 0.0)
    assert other.correct == other.clean_correct
    assert other.eligible > 0


def test_without_success_on_the_source_there_is_no_rate(run):
    found = run("left", "right", attack=Attack(attack="fgsm", eps=0))
    pair = by_name(found)["left", "right"]
    assert (pair.record.eligible, pair.record.transfer_rate, pair.rate.interval()) == (0, None, None)
    assert pair.accuracy.rate == pair.clean.rate
    assert report.matrix_table(found, report.QUANTITIES[0]).rows == [["left", "-", "-"]]
    assert np.isnan(report.rates(found, report.QUANTITIES[0])).all()


def test_a_target_gets_the_images_that_the_evaluation_keeps(run, monkeypatch):
    real = Evaluator.run
    monkeypatch.setattr(
        Evaluator, "run", lambda self, *a, **o: replace(real(self, *a, **o), images=self.eval_set.pixels)
    )
    record = by_name(run("left", "twice"))["left", "twice"].record
    assert record.correct == record.clean_correct


@pytest.mark.slow
def test_iterative_attacks_keep_the_last_iterate(run, command):
    found = run("left", "right", attack={"eps": EPS, "steps": 2})
    assert found.perturbation["iterate"] == "last"  # the stored name of keep
    printed = json.loads(command("left.keras", "right.keras", "--attack", "bim", "--steps", "2", "--json", "-q")[1])
    assert printed["perturbation"]["keep"] == "last"


# ---------------------------------------------------------------- records


def attacked(monkeypatch):
    """The list of sources that are attacked from now on."""
    sources, real = [], Evaluator.run

    def noted(self, *args, **options):
        if self.checks != "none":  # as its attack diagnostics are
            sources.append(self.eval_set.classifier.id)
        return real(self, *args, **options)

    monkeypatch.setattr(Evaluator, "run", noted)
    return sources


@pytest.mark.slow
def test_what_is_recorded_is_not_done_again(run, tmp_path, monkeypatch):
    sources = attacked(monkeypatch)
    first = run("left", "right", matrix=True)
    assert sources == list(first.sources)
    again = run("left", "right", matrix=True)
    assert len(sources) == 2
    assert {ids: pair.record for ids, pair in again.pairs.items()} == {i: p.record for i, p in first.pairs.items()}
    for ids, pair in again.pairs.items():
        np.testing.assert_array_equal(pair.correct.target, first.pairs[ids].correct.target)
    run("left", "right")  # a part of it
    assert len(sources) == 2
    left, right = first.sources
    run("left", "right", "twice")  # a target more: the source's examples are needed once more
    assert sources[2:] == [left]
    missing = first.pairs[right, left].record
    records.transfer_path(tmp_path / "runs" / left, missing.transfer_id).with_suffix(".npz").unlink()
    whole = run("left", "right", matrix=True)
    assert sources[3:] == [right]
    assert whole.pairs[right, left].record.correct == missing.correct
    run("left", "right", attack=Attack(attack="fgsm", eps=0.01))
    assert sources[4:] == [left]


def test_a_record_holds_its_identity_and_arrays(run, tmp_path):
    found = run("left", "right")
    pair = by_name(found)["left", "right"]
    path = records.transfer_path(tmp_path / "runs" / pair.record.target_id, pair.record.transfer_id)
    record, correct = records.read_transfer(path)
    assert record == pair.record
    assert correct.keys() == {"source_clean", "source", "target_clean", "target"}
    assert correct["target"].sum() == record.correct
    assert record.perturbation["attack"] == "fgsm"
    assert record.perturbation["dataset"].startswith("npz:")
    assert {record.source_id, record.target_id} == set(found.names)
    assert record.source_id == digest(record.source)
    names = {"source": record.source_id, "target": record.target_id, "perturbation": record.perturbation}
    assert record.transfer_id == digest(names)
    assert record.seconds > 0
    assert not [p for p in path.parent.iterdir() if p.name.startswith(".")]
    path.write_text("{}")
    with pytest.raises(BnvulnError, match=rf"{path.name}: not a readable transfer record"):
        records.read_transfer(path)
    assert by_name(run("left", "right"))["left", "right"].record.correct == record.correct  # it is measured again
    assert records.read_transfer(path)[0].transfer_id == record.transfer_id


def test_a_run_keeps_its_records_until_it_is_trained_anew(folder, tmp_path):
    path = tmp_path / "run"
    options = {"data": {"name": str(folder / "images.npz"), "validation": 90}, "arch": "linear"}
    api.train({**options, "train": {"epochs": 10, "batch_size": 10, "lr": 0.5}}, path)
    dataset = str(folder / "images.npz")
    left = api.open_classifier(*files(folder, "left"), dataset=dataset, input_scale="0-1")
    found = api.transfer([left, path], attack=FGSM, dataset=dataset, root=tmp_path / "runs")
    assert list(found.names.values()) == ["left", "linear none seed 0"]
    assert [row[2].split()[0] for row in report.models_table(found).rows] == ["external", "linear"]
    (kept,) = (path / "transfer").glob("*.json")
    assert kept == records.transfer_path(path, found.pairs[found.targets].record.transfer_id)
    records.clear_run(path)
    assert not list((path / "transfer").iterdir())


# ---------------------------------------------------------------- names


def cell(**fields):
    identity_ = identity_of(validate(Cell, {"arch": "mlp", **fields}, "test"))
    return digest(identity_), identity_, "path"


def short_names(models):
    return list(
        model_names.short_names({key: one for key, one, _ in models}, {key: path for key, _, path in models}).values()
    )


def test_names_say_what_differs():
    models = [cell(), cell(normalization="batch"), cell(normalization={"name": "batch", "c": 0.1}, seed=1),
              cell(weight_decay=0.01)]  # fmt: skip
    assert short_names(models) == [
        "mlp none weight_decay=0 seed 0",
        "mlp batch c=1e-5 weight_decay=0 seed 0",
        "mlp batch c=0.1 weight_decay=0 seed 1",
        "mlp none weight_decay=0.01 seed 0",
    ]
    assert short_names(models[:2]) == ["mlp none seed 0", "mlp batch seed 0"]
    trained = [cell(), cell(train={"adversarial": {"eps": 0.1}}), cell(train={"lr": 0.5})]
    assert short_names(trained[:2]) == ["mlp none seed 0", "mlp none adversarial seed 0"]
    name = short_names(trained)[1]
    assert re.fullmatch(r"mlp none lr=[.\d]+ adversarial seed 0", name)
    trained[2] = cell(train={"adversarial": {"eps": 0.2}})
    assert "adversarial eps=0.2" in short_names(trained)[2]


def test_external_models_of_one_name_have_their_ids_in_the_name():
    def external(weights, path):
        return weights, {"weights": weights}, path

    models = [external("a" * 12, "x/net.keras"), external("b" * 12, "y/net.keras"), cell()]
    assert short_names(models) == ["net aaaaaa", "net bbbbbb", "mlp none seed 0"]


# ---------------------------------------------------------------- models that do not fit together


def test_models_of_another_width_are_refused(run):
    with pytest.raises(UsageError, match=r"wide\.keras .*left\.keras: size of the input 8, 8 against 4, 4"):
        run("left", "wide")


@pytest.mark.parametrize(
    ("info", "message"),
    [
        ({"name": "other"}, "data set .* against .* --data"),
        ({"classes": ("1", "0")}, "classes 1, 0 against 0, 1"),
        ({"shape": (4, 4, 3)}, "channels 3 against 1"),
    ],
)
def test_models_of_other_data_are_refused(folder, info, message):
    first, second = opened(folder)
    other = replace(second, info=replace(second.info, **info))
    with pytest.raises(UsageError, match=message):
        api.transfer([first, other], attack=FGSM)


def test_models_with_other_validation_examples_are_refused_on_these(folder, tmp_path):
    models = [replace(one, validation=size) for one, size in zip(opened(folder), (10, 20), strict=True)]
    with pytest.raises(UsageError, match="other examples of the validation split"):
        api.transfer(models, attack=FGSM, split="validation", root=tmp_path)
    assert api.transfer(models, attack=FGSM, root=tmp_path).n == N


def test_one_model_is_not_enough(run):
    names = ["left", "left"]
    with pytest.raises(UsageError, match="two different models"):
        run(*names)


# ---------------------------------------------------------------- check 6


def mask(text):
    return np.array([letter == "1" for letter in text])


def test_transfer_that_beats_the_white_box_attack_is_flagged():
    clean, white, other = mask("1111111100"), mask("0011111110"), mask("0100001100")
    flag = sanity_checks.transfer_beats_white_box(clean, white, other)
    assert (flag.check, flag.name, flag.value) == (6, "transfer beats white box", pytest.approx(3 / 8))
    assert (
        "succeed on 5 of 8 examples, the white-box attack on 2 (4 by transfer alone, 1 by the white box alone)"
        in flag.message
    )


def test_transfer_that_succeeds_no_more_than_the_white_box_attack_passes():
    """The first are two examples more, but the model misclassifies them when clean."""
    for other in ("0011111100", "1111111111", "1100111100"):
        flag = sanity_checks.transfer_beats_white_box(mask("1111111100"), mask("0011111111"), mask(other))
        assert flag is None


def test_sound_linear_models_get_no_flag(everything):
    assert everything.flags() == {}
    # They are right by chance as often, or not equally often, which is said.
    assert all("check 15:" in line or "check 19:" in line for line in report.flag_lines(everything))


def test_a_model_that_masks_its_gradients_is_flagged(folder, tmp_path):
    """The sign of the logit is the same classifier without a gradient: its own attack does nothing to it."""
    inner = linear(WEIGHTS["left"])
    masked = keras.Model(inner.inputs, keras.ops.sign(inner.outputs[0]))
    info = data.dataset_info(str(folder / "images.npz"))
    name = str(folder / "images.npz")
    models = [classifier.from_model(model, info, {"weights": what}, dataset=name)
              for what, model in (("plain", inner), ("masked", masked))]  # fmt: skip
    found = api.transfer(models, attack=FGSM, matrix=True, root=tmp_path)
    plain, hidden = found.sources
    assert found.pairs[hidden, hidden].record.correct == found.pairs[hidden, hidden].record.clean_correct
    assert list(found.flags()) == [(plain, hidden)]
    assert found.flags()[plain, hidden].value == pytest.approx(found.pairs[plain, hidden].success.rate)
    assert [flag.check for flag in found.pairs[plain, hidden].record.target_flags] == [4, 19]
    remarks = [line for line in report.flag_lines(found) if "check 19:" not in line]
    assert len(remarks) == 3
    assert "check 4" in remarks[0]
    assert "check 8: random points" in remarks[1]
    assert "check 6: another model's adversarial examples" in remarks[2]
    # The white box of the second is not among them.
    assert api.transfer(models, attack=FGSM, root=tmp_path).flags() == {}


def test_points_of_several_eps_are_not_transferred():
    for more in ({"eps_grid": [0.01]}, {"min_eps_tolerance": 0.01}):
        with pytest.raises(UsageError, match="leave eps_grid and min_eps_tolerance out"):
            transfer.run([], [], Attack(eps=0.05, **more))


# ---------------------------------------------------------------- report


def test_the_matrix_has_sources_in_rows(everything):
    pairs, names = by_name(everything), list(WEIGHTS)
    for quantity, of in zip(report.QUANTITIES, ("transfer_rate", "accuracy"), strict=True):
        grid = report.rates(everything, quantity)
        assert grid.shape == (4, 4)
        for (row, column), value in np.ndenumerate(grid):
            record = pairs[names[row], names[column]].record
            assert value == pytest.approx(100 * getattr(record, of))


def test_the_heat_maps_show_the_numbers_and_their_captions_n_and_the_attack(everything, tmp_path):
    found = everything
    written = report.write(found, tmp_path / "out")
    assert sorted(path.suffix for path in written) == [".md", ".png", ".png", ".svg", ".svg"]
    for quantity in report.QUANTITIES:
        (svg,) = [p for p in written if p.name.endswith(f"-{quantity.name}.svg")]
        texts = [e.text for e in ElementTree.parse(svg).iter() if e.tag.endswith("}text")]
        numbers = [text for text in texts if re.fullmatch(r"\d+\.\d", text)]
        assert numbers == [f"{value:.1f}" for value in report.rates(found, quantity).ravel()]
        numbered = {f"{number}: {name}" for number, name in enumerate(WEIGHTS, 1)}
        assert {*numbered, *"1234", "source", "target", f"{quantity.title}, %"} <= set(texts)
        caption = report.caption(found, quantity)
        assert f"n = {N}" in caption
        assert "fgsm inf eps 0.05 pixel" in caption
    page = written[-1].read_text()
    assert re.search(r"\| source . target \| +1 +\| +2 +\| +3 +\| +4 +\|", page)
    assert re.search(r"\n\| 1: left +\| ", page)
    assert "Wilson" in page
    assert "weights sha256" in page
    assert page.count("![") == 2
    assert "check 15:" in page


# ---------------------------------------------------------------- the command


@pytest.fixture
def command(bnvuln, folder, tmp_path):
    def command(*names):
        named = [folder / name if str(name).endswith(".keras") else name for name in names]
        options = ["--data", folder / "images.npz", "--attack", "fgsm", "--eps", "1/20", "--runs", tmp_path / "runs"]
        options += ["--input-scale", "0-1"]
        return bnvuln("transfer", *options, *named)

    return command


def test_the_command_prints_a_row_a_target(command, tmp_path):
    code, out, err = command("left.keras", "twice.keras", "right.keras")
    assert code == 0
    assert "images.npz; fgsm inf eps 0.05 pixel" in " ".join(out.split())
    assert all(len(line) <= 80 for line in out.splitlines())
    lines = [line for line in out.splitlines() if line.startswith("left ")]
    assert [line.split()[1] for line in lines[:3]] == ["left", "twice", "right"]
    assert "transfer rate" in err
    assert not (tmp_path / "runs" / "report").exists()


def test_a_matrix_on_the_terminal_and_in_files(command, tmp_path):
    code, out, err = command("left.keras", "right.keras", "--matrix", "--quiet", "--limit", "20")
    assert code == 0
    assert "source \\ target" in out
    assert "100.0 (" in out
    page = err.strip().removeprefix("report: ")
    assert page.endswith(".md")
    assert len(list((tmp_path / "runs" / "report").iterdir())) == 5


def test_json_is_one_object_with_every_number(command, folder):
    code, out, err = command("left.keras", "right.keras", "--json", "-q")
    printed = json.loads(out)
    assert code == 0
    assert printed.keys() == {"perturbation", "n", "models", "pairs", "flags", "files"}
    assert (printed["files"], err) == ([], "")
    assert [model["name"] for model in printed["models"]] == ["left", "right"]
    ids = [model["id"] for model in printed["models"]]
    left = api.open_classifier(folder / "left.keras", dataset=str(folder / "images.npz"), input_scale="0-1")
    assert ids[0] == left.id
    assert [(p["source"], p["target"]) for p in printed["pairs"]] == [(ids[0], ids[0]), (ids[0], ids[1])]
    for pair in printed["pairs"]:
        for key in ("clean", "accuracy", "transfer", "fooled"):
            number = pair[key]
            assert number.keys() == {"rate", "count", "n", "low", "high"}
            assert number["low"] <= number["rate"] == number["count"] / number["n"] <= number["high"]


@pytest.mark.parametrize(
    ("given", "fragments"),
    [
        (["left.keras"], ["two different models"]),
        (["left.keras", "nothing.keras"], ["nothing.keras", "no such file"]),
        (["left.keras", "right.keras", "--steps", "3"], ["fgsm is one step"]),
    ],
)
def test_bad_requests_exit_2_with_one_clear_message(command, tmp_path, given, fragments):
    code, out, err = command(*given)
    assert (code, out) == (2, "")
    assert "Traceback" not in err
    for fragment in fragments:
        assert fragment in err
    assert not (tmp_path / "runs").exists()


def test_options_of_external_models_need_one(bnvuln, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    code, _, err = bnvuln("transfer", tmp_path / "a", tmp_path / "b", "--from-probabilities")
    assert code == 2
    assert "is a run of this package, which knows how it is called: leave out --output" in err
