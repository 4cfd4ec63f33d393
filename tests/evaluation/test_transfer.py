"""Transfer between linear models: the success of FGSM's examples on each model is known exactly.

FGSM on a linear model with two classes moves every pixel that has a weight by eps against the label, and no other: the
margin of any other linear model on the result is its own minus eps times the sum of its weights along that step.
"""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from helpers_attacks import keras
from helpers_runs import MessageLog

from bn_vuln import api, data, records
from bn_vuln.config import Attack, Cell, Transfer, digest, identity_of, validate
from bn_vuln.errors import ConfigError, UsageError
from bn_vuln.evaluation import classifier
from bn_vuln.evaluation.evaluator import Evaluator
from bn_vuln.records import names as model_names
from bn_vuln.records.comparability import transfer_beats_white_box
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
    """(The matrix of all linear models, the folder of its records)."""
    root, where = tmp_path_factory.mktemp("everything"), {"dataset": str(folder / "images.npz"), "input_scale": "0-1"}
    return api.transfer(files(folder, *WEIGHTS), attack=FGSM, matrix=True, root=root, **where), root


def by_name(found):
    """The records of pairs by the names of source and target."""
    return {(found.names[s], found.names[t]): record for (s, t), record in found.pairs.items()}


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
    found, root = everything
    pairs = by_name(found)
    assert pairs.keys() == expected.keys()
    for (source_name, name), record in pairs.items():
        source_clean, source, clean, target = expected[source_name, name]
        could = source_clean & clean & ~source
        assert 0 < could.sum() < N
        assert (record.kind, record.n, record.correct) == ("transfer", N, target.sum())
        assert (record.source_correct, record.eligible) == (source.sum(), could.sum())
        assert record.transferred == (could & ~target).sum()
        assert record.transfer_rate == pytest.approx((could & ~target).sum() / could.sum())
        assert found.clean[record.cell_id].correct == clean.sum()
        np.testing.assert_array_equal(records.read_correct(root / record.cell_id, record.perturbation_id), target)


def test_all_transfers_to_the_same_boundary_and_nothing_where_no_pixel_is_shared(run):
    log = MessageLog()
    found = run("left", "twice", "right", progress=log)
    pairs = by_name(found)
    assert [line.split(":")[0] for line in log.lines[-3:]] == ["left -> left", "left -> twice", "left -> right"]
    assert list(pairs) == [("left", "left"), ("left", "twice"), ("left", "right")]
    same, other = pairs["left", "twice"], pairs["left", "right"]
    assert same.transferred == same.eligible > 0
    assert (other.transferred, other.transfer_rate) == (0, 0.0)
    assert other.correct == found.clean[other.cell_id].correct
    assert other.eligible > 0


def test_without_success_on_the_source_there_is_no_rate(run):
    found = run("left", "right", attack=Attack(attack="fgsm", eps=0))
    record = by_name(found)["left", "right"]
    assert (record.eligible, record.transferred, record.transfer_rate) == (0, 0, None)
    assert record.correct == found.clean[record.cell_id].correct
    assert report.matrices(found)[0].rows == [["1: left", "-", "-"]]


def test_a_target_gets_the_images_that_the_evaluation_keeps(run, monkeypatch):
    real = Evaluator.run
    monkeypatch.setattr(
        Evaluator, "run", lambda self, *a, **o: replace(real(self, *a, **o), images=self.eval_set.pixels)
    )
    found = run("left", "twice")
    record = by_name(found)["left", "twice"]
    assert record.correct == found.clean[record.cell_id].correct


def test_an_eval_set_in_parts_gives_the_same(run, monkeypatch):
    whole = by_name(run("left", "both"))["left", "both"]
    monkeypatch.setattr("bn_vuln.evaluation.eval_set.EvalSet._most_at_once", 16)
    again = by_name(run("left", "both", force=True, batch_size=16))["left", "both"]
    assert again.correct == whole.correct
    assert again.model_copy(update={"seconds": whole.seconds}) == whole


@pytest.mark.slow
def test_iterative_attacks_keep_the_last_iterate(run, command):
    assert run("left", "right", attack={"eps": EPS, "steps": 2}).attack.keep == "last"
    printed = json.loads(command("left.keras", "right.keras", "--attack", "bim", "--steps", "2", "--json", "-q")[1])
    assert printed["attack"]["keep"] == "last"


def test_transfers_keep_the_last_iterate_and_others_what_they_are_told():
    def keep(**attack):
        return validate(Transfer, {"source": "x", "attack": {"eps": 0.1, **attack}}, "test").attack.keep

    assert [keep(), keep(attack="bim"), keep(attack="fgsm")] == ["last"] * 3
    assert [keep(attack="apgd-ce"), keep(keep="first_success"), keep(iterate="any")] == ["first_success"] * 3


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
    assert (again.pairs, again.clean) == (first.pairs, first.clean)
    run("left", "right")  # a part of it
    assert len(sources) == 2
    left, right = first.sources
    run("left", "right", "twice")  # a target more: the source's examples are needed once more
    assert sources[2:] == [left]
    missing = first.pairs[right, left]
    records.correct_path(tmp_path / "runs" / left, missing.perturbation_id).unlink()
    whole = run("left", "right", matrix=True)
    assert sources[3:] == [right]
    assert whole.pairs[right, left].correct == missing.correct
    run("left", "right", attack=Attack(attack="fgsm", eps=0.01))
    assert sources[4:] == [left]


def test_a_record_lies_with_those_of_the_target_and_names_the_source_by_its_id(run, tmp_path):
    found = run("left", "right")
    record = by_name(found)["left", "right"]
    (source,) = found.sources
    assert record.perturbation == {
        **{name: record.perturbation[name] for name in ("dataset", "split", "limit", "bn_statistics")},
        "kind": "transfer", "source": source, "attack": identity_of(FGSM),
    }  # fmt: skip
    assert record.cell_id != source
    kept = records.read_records(tmp_path / "runs" / record.cell_id)
    assert record in kept
    assert {one.kind for one in kept} == {"clean", "transfer"}


def test_a_suite_has_transfers_from_a_model_by_its_file_or_its_id(run, folder, tmp_path):
    record = by_name(run("left", "right"))["left", "right"]
    where = {"dataset": str(folder / "images.npz"), "input_scale": "0-1", "root": tmp_path / "other"}
    suite = {"from": {"kind": "transfer", "source": str(folder / "left.keras"), "attack": FGSM}}
    (found,) = api.evaluate(folder / "right.keras", suite=suite, **where).values()
    assert found.model_copy(update={"seconds": record.seconds}) == record
    with pytest.raises(UsageError, match=r"nothing: no such file"):
        api.evaluate(folder / "right.keras", suite={"from": {**suite["from"], "source": "nothing"}}, **where)


@pytest.mark.slow
def test_a_run_keeps_its_records_until_it_is_trained_anew(folder, tmp_path):
    path = tmp_path / "run"
    options = {"data": {"name": str(folder / "images.npz"), "validation": 90}, "arch": "linear"}
    api.train({**options, "train": {"epochs": 10, "batch_size": 10, "lr": 0.5}}, path)
    dataset = str(folder / "images.npz")
    left = api.open_classifier(*files(folder, "left"), dataset=dataset, input_scale="0-1")
    found = api.transfer([left, path], attack=FGSM, dataset=dataset, root=tmp_path / "runs")
    assert list(found.names.values()) == ["left", "linear none seed 0"]
    assert len(records.read_records(path)) == 2
    records.clear_run(path)
    assert not records.read_records(path)


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
    with pytest.raises(UsageError, match=r"wide\.keras .*left\.keras: size of the input 8x8 against 4x4"):
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
    with pytest.raises(UsageError, match="other examples of the split"):
        api.transfer(models, attack=FGSM, split="validation", root=tmp_path)
    assert len(api.transfer(models, attack=FGSM, root=tmp_path).pairs) == 2


def test_one_model_is_not_enough(run):
    names = ["left", "left"]
    with pytest.raises(UsageError, match="two different models"):
        run(*names)


# ---------------------------------------------------------------- check 6


def mask(text):
    return np.array([letter == "1" for letter in text])


def test_transfer_that_beats_the_white_box_attack_is_flagged():
    clean, white, other = mask("1111111100"), mask("0011111110"), mask("0100001100")
    flag = transfer_beats_white_box(clean, white, other)
    assert (flag.check, flag.name, flag.value) == (6, "transfer beats white box", pytest.approx(3 / 8))
    assert (
        "succeed on 5 of 8 examples, the white-box attack on 2 (4 by transfer alone, 1 by the white box alone)"
        in flag.message
    )


def test_transfer_that_succeeds_no_more_than_the_white_box_attack_passes():
    """The first are two examples more, but the model misclassifies them when clean."""
    for other in ("0011111100", "1111111111", "1100111100"):
        flag = transfer_beats_white_box(mask("1111111100"), mask("0011111111"), mask(other))
        assert flag is None


def test_sound_linear_models_get_no_flag(everything):
    """They are right by chance as often, or not equally often, which is said."""
    assert {flag.check for record in everything[0].pairs.values() for flag in record.flags} == {19}
    assert all("check 15:" in line or "check 19:" in line for line in report.flag_lines(everything[0]))


def test_a_model_that_masks_its_gradients_is_flagged(folder, tmp_path):
    """The sign of the logit is the same classifier without a gradient: its own attack does nothing to it."""
    inner = linear(WEIGHTS["left"])
    masked = keras.Model(inner.inputs, keras.ops.sign(inner.outputs[0]))
    name = str(folder / "images.npz")
    info = data.dataset_info(name)
    models = [classifier.from_model(model, info, {"weights": what}, dataset=name)
              for what, model in (("plain", inner), ("masked", masked))]  # fmt: skip
    # The white box of the second is not there yet.
    alone = api.transfer(models, attack=FGSM, root=tmp_path)
    assert all(flag.check != 6 for record in alone.pairs.values() for flag in record.flags)
    found = api.transfer(models, attack=FGSM, matrix=True, root=tmp_path)
    plain, hidden = found.sources
    assert found.pairs[hidden, hidden].correct == found.clean[hidden].correct
    flagged = {ids: flag for ids, record in found.pairs.items() for flag in record.flags if flag.check == 6}
    assert list(flagged) == [(plain, hidden)]
    moved = found.clean[hidden].correct - found.pairs[plain, hidden].correct
    assert flagged[plain, hidden].value == pytest.approx(moved / found.clean[hidden].correct)
    remarks = [line for line in report.flag_lines(found) if "check 19:" not in line]
    assert [re.search(r"check \d+", line)[0] for line in remarks] == ["check 4", "check 6", "check 8"]
    assert "check 6: another model's adversarial examples" in remarks[1]
    (listed,) = [one for one in records.entries(records.open_store(tmp_path)) if one.id == hidden]
    assert 6 in {flag.check for record in listed.records for flag in record.flags}


def test_the_models_own_attack_is_its_white_box_too(folder, tmp_path):
    inner = linear(WEIGHTS["left"])
    masked = keras.Model(inner.inputs, keras.ops.sign(inner.outputs[0]))
    name = str(folder / "images.npz")
    info = data.dataset_info(name)
    models = [classifier.from_model(model, info, {"weights": what}, dataset=name)
              for what, model in (("plain", inner), ("masked", masked))]  # fmt: skip
    api.attack(models[1], attack=FGSM, root=tmp_path)
    found = api.transfer(models, attack=FGSM, root=tmp_path)
    assert 6 in [flag.check for flag in found.pairs[models[0].id, models[1].id].flags]


@pytest.mark.parametrize("more", [{"eps_grid": [0.01]}, {"min_eps_tolerance": 0.01}])
def test_points_of_several_eps_are_not_transferred(more):
    with pytest.raises(ConfigError, match="leave eps_grid and min_eps_tolerance out"):
        api.transfer(["a", "b"], attack={"eps": 0.05, "keep": "first_success", **more})


# ---------------------------------------------------------------- report


def test_the_matrix_has_sources_in_rows(everything):
    pairs, names = by_name(everything[0]), list(WEIGHTS)
    rates, accuracies = report.matrices(everything[0])
    assert rates.header == accuracies.header == ["source \\ target", *"1234"]
    for table, of in ((rates, "transfer_rate"), (accuracies, "accuracy")):
        for source, (label, *row) in zip(names, table.rows, strict=True):
            assert label == f"{names.index(source) + 1}: {source}"
            for target, text in zip(names, row, strict=True):
                assert text.startswith(f"{100 * getattr(pairs[source, target], of):.1f} (")


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
    code, out, _ = command("left.keras", "twice.keras", "right.keras")
    assert code == 0
    assert "images.npz; fgsm inf eps 0.05 pixel" in " ".join(out.split())
    assert all(len(line) <= 80 for line in out.splitlines())
    lines = [line for line in out.splitlines() if line.startswith("left ")]
    assert [line.split()[1] for line in lines[:3]] == ["left", "twice", "right"]
    assert not (tmp_path / "runs" / "report").exists()


def test_a_matrix_on_the_terminal_and_in_a_file(command, tmp_path):
    code, out, err = command("left.keras", "right.keras", "--matrix", "--quiet", "--limit", "20", "--out", tmp_path)
    assert (code, err) == (0, f"report: {tmp_path / 'transfer.md'}\n")
    assert "source \\ target" in out
    assert "100.0 (" in out
    page = (tmp_path / "transfer.md").read_text()
    assert re.search(r"\n\| 1: left +\| ", page)
    assert "Wilson" in page


def test_json_is_one_object_with_every_number(command, folder):
    code, out, err = command("left.keras", "right.keras", "--json", "-q")
    printed = json.loads(out)
    assert (code, err) == (0, "")
    assert printed.keys() == {"attack", "models", "pairs", "flags"}
    assert [model["name"] for model in printed["models"]] == ["left", "right"]
    ids = [model["id"] for model in printed["models"]]
    left = api.open_classifier(folder / "left.keras", dataset=str(folder / "images.npz"), input_scale="0-1")
    assert ids[0] == left.id
    assert [(p["source"], p["target"]) for p in printed["pairs"]] == [(ids[0], ids[0]), (ids[0], ids[1])]
    for pair in printed["pairs"]:
        assert pair["record"]["perturbation"]["attack"]["keep"] == "last"
        for key in ("clean", "accuracy", "source_accuracy", "transfer"):
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
