"""The commands of an audit do what they stand for: `bnvuln mend` reads back the change, the model and the data."""

import shlex
from types import SimpleNamespace

import pytest

import bn_vuln as bnv
from bn_vuln.auditing.commands import Commands
from bn_vuln.config import Adversarial, FineTuning, Mend, validate

ADVERSARIAL = FineTuning(epochs=5, adversarial=Adversarial(ord="2", eps=0.5))


@pytest.fixture
def calls(monkeypatch):
    """The calls of `api.mend`, which makes nothing."""
    found = []

    def mend(*args, **options):
        found.append((args, options))
        raise KeyboardInterrupt

    monkeypatch.setattr("bn_vuln.api.mend", mend)
    return found


@pytest.mark.parametrize(
    ("change", "ord", "eps"),
    [
        (Mend(relative_c=0.03, reestimate=True), "inf", 2 / 255),
        (Mend(relative_c=3, keep_gain=False, layers=("a b", "bn#2")), "2", 0.5),
        (Mend(reestimate=True), "inf", 0.3 / 255),
        (Mend(relative_c=1, reestimate=True, finetune=FineTuning()), "inf", 2 / 255),
        (Mend(finetune=ADVERSARIAL), "2", 0.5),
    ],
)
def test_a_shell_makes_the_same_change(bnvuln, calls, change, ord, eps):
    options = {"dataset": "folder:my photos", "input_scale": "0-255", "exif": False, "skip_bad": True, "split": None}
    line = Commands("bnvuln", ["a model.keras"], options).mend(0, change, ord=ord, eps=eps, noise=0.1)
    program, *words = shlex.split(line)
    assert program == "bnvuln"
    assert bnvuln(*words, "-q")[0] == 130
    (((model,), given),) = calls
    assert validate(Mend, given["mend"], "mend") == change
    assert (str(model), given["dataset"], given["input_scale"]) == ("a model.keras", "folder:my photos", "0-255")
    assert (given["exif"], given["skip_bad"], str(given["out"])) == (False, True, "mended.keras")
    assert given.get("ord") == (None if ord == "inf" else "2")
    assert (given["eps"], given["noise"]) == (pytest.approx(eps), 0.1)


def test_the_changed_model_is_never_the_model_itself():
    line = Commands("bnvuln", ["x/mended.keras"]).mend(0, Mend(reestimate=True), ord="inf", eps=0.1, noise=0.1)
    assert line.endswith("-o again-mended.keras")


def test_the_first_change_is_found_in_the_folder(tmp_path):
    commands = Commands("bnvuln", ["a.keras", "b.keras"], {"dataset": "x.npz"}, tmp_path / "my audits")
    line = commands.mend(1, Mend(reestimate=True), ord="inf", eps=0.1, noise=0.1, first=True)
    assert line == f"bnvuln mend b.keras --from-audit '{tmp_path}/my audits' -o mended.keras"


def test_images_of_training_judge_no_change():
    assert "split" not in Commands("bnvuln", ["a"], {"split": "train"}).mend(
        0, Mend(reestimate=True), ord="inf", eps=0.1, noise=0.1
    )


def test_a_run_knows_how_it_is_called(tmp_path):
    options = {"dataset": "mnist", "input_scale": "0-1", "class_names": "names.txt"}
    commands = Commands("bnvuln", [tmp_path, "model.keras"], options)
    of_run, of_file = (commands.mend(i, Mend(reestimate=True), ord="inf", eps=0.1, noise=0.1) for i in (0, 1))
    assert of_run == f"bnvuln mend {tmp_path} --data mnist --reestimate --eps 26/255 --noise 0.1 -o mended.keras"
    assert "--input-scale 0-1 --class-names names.txt" in of_file


def test_python_makes_the_same_change(monkeypatch):
    calls = []
    monkeypatch.setattr("bn_vuln.api.mend", lambda *args, **options: calls.append((args, options)))
    change = Mend(relative_c=0.1, layers=("bn",), finetune=ADVERSARIAL)
    options = {"dataset": "arrays:1", "input_scale": "0-1", "split": None}
    commands = Commands(None, [object()], options, arrays=True)
    names = SimpleNamespace(model=1, images=2, labels=3)
    eval(commands.mend(0, change, ord="2", eps=0.5, noise=0.1), {"bn_vuln": bnv, **vars(names)})
    ((args, given),) = calls
    assert args == (1, 2, 3)
    assert validate(Mend, given.pop("mend"), "mend") == change
    assert given == {"input_scale": "0-1", "ord": "2", "eps": "0.5", "noise": 0.1, "out": "mended.keras"}
