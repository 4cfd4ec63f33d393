"""`bnvuln data` by hand: good and bad input, exit codes, what goes to which stream."""

import json
import os
import shutil
import socket
import subprocess
import sys

import helpers_data as h
import numpy as np
import pytest
from PIL import Image

from bn_vuln.data.tfds import paths

CIFAR_1 = h.examples(10, 32, 3, seed=7)


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    """An empty data folder and no network; what the commands put into the environment is taken back."""

    def refuse(*_, **__):
        raise OSError("the tests have no network")

    monkeypatch.setenv(paths.DATA_DIR, str(tmp_path / "data"))
    monkeypatch.setenv(paths.MANUAL_DIR, "")
    monkeypatch.setattr(socket, "create_connection", refuse)
    return tmp_path / "data"


@pytest.fixture
def manual(tmp_path, monkeypatch):
    """A folder with the files of cifar10_1/v6, as TFDS registers them."""
    folder = h.write_files(tmp_path / "manual", h.cifar10_1_files(*CIFAR_1))
    h.register(monkeypatch, "cifar10_1/v6", folder)
    return folder


# ---------------------------------------------------------------- help


@pytest.mark.parametrize("name", ["list", "info", "prepare"])
def test_every_subcommand_has_help_with_examples(bnvuln, name):
    code, out, _ = bnvuln("data", name, "--help")
    assert code == 0
    assert "Examples:" in out
    assert f"bnvuln data {name}" in out
    for option in ("--data-dir", "--manual-dir", "--json"):
        assert option in out


def test_an_unknown_subcommand_is_a_usage_error(bnvuln):
    code, out, err = bnvuln("data", "lits")
    assert (code, out) == (2, "")
    assert "No such command 'lits'" in err


@pytest.mark.parametrize("args", [["list"], ["info", "stl10"], ["info", "mnist"]])
def test_list_and_info_do_without_tensorflow(args):
    code = (
        "import sys\nfrom bn_vuln.cli.main import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit as e: assert not e.code\n"
        "assert 'tensorflow' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code, "data", *args], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


# ---------------------------------------------------------------- list


def test_list_is_a_table_of_what_is_known(bnvuln, offline):
    code, out, err = bnvuln("data", "list")
    assert (code, err) == (0, "")
    rows = {line.split()[0]: line for line in out.splitlines() if line}
    assert rows["mnist"].split() == ["mnist", "28x28x1", "10", "60,000", "10,000", "bundled"]
    assert rows["cifar10_1/v6"].split() == ["cifar10_1/v6", "32x32x3", "10", "-", "2,000", "not", "prepared"]
    assert str(offline) in out
    assert "FILE.npz" in out
    assert "folder:PATH" in out


def test_list_json_is_one_object(bnvuln, offline):
    code, out, err = bnvuln("data", "list", "--json")
    assert (code, err) == (0, "")
    printed = json.loads(out)
    assert printed["data_dir"] == str(offline)
    assert {"name", "shape", "classes", "sizes", "state"} == set(printed["datasets"][0])


# ---------------------------------------------------------------- info


def test_info_names_files_hashes_hosts_and_where_to_put_them(bnvuln, offline):
    code, out, err = bnvuln("data", "info", "fashion_mnist")
    assert (code, err) == (0, "")
    for fragment in (
        "28x28x1", "10: T-shirt/top, Trouser", "60,000", "0.2860", "0.3530", "not prepared",
        "train-images-idx3-ubyte.gz", "25.2", "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        "fashion-mnist.s3-website.eu-central-1.amazonaws.com", f"{offline}/downloads/manual/fashion_mnist",
    ):  # fmt: skip
        assert fragment in out


def test_info_of_files_to_be_had_by_hand(bnvuln):
    code, out, _ = bnvuln("data", "info", "imagenet2012")
    assert code == 0
    assert "by hand" in out
    assert "ILSVRC2012_img_val.tar" in out
    assert "?x?x3" in out


def test_info_of_one_s_own_data(bnvuln, tmp_path):
    images, labels = h.examples(20, 8, 1, classes=2)
    np.savez(tmp_path / "mine.npz", x=images, y=labels, classes=["no", "yes"])
    code, out, _ = bnvuln("data", "info", tmp_path / "mine.npz")
    assert code == 0
    assert out.startswith(f"{tmp_path / 'mine.npz'}\n")
    assert "2: no and yes" in out
    assert "20 (to train on, 4 of them are the test split)" in out
    code, out, _ = bnvuln("data", "info", tmp_path / "mine.npz", "--json")
    assert json.loads(out)["sizes"] == {"train": 16, "test": 4}


def test_info_json_is_one_object(bnvuln):
    code, out, err = bnvuln("data", "info", "svhn_cropped", "--json")
    assert (code, err) == (0, "")
    printed = json.loads(out)
    assert (printed["name"], printed["mean"], printed["state"]) == ("svhn_cropped", None, "not prepared")
    assert len(printed["files"]) == 3


@pytest.mark.parametrize(
    ("name", "fragment"),
    [
        ("mnits", "did you mean 'mnist'"),
        ("imdb_reviews", "no image classification set"),
        ("cifar10_1/v9", "it has v4 and v6"),
        ("nowhere.npz", "no such file"),
        ("folder:nowhere", "no such folder"),
        ("", "not known"),
    ],
)
@pytest.mark.parametrize("command", ["info", "prepare"])
def test_what_makes_no_sense_is_one_line(bnvuln, command, name, fragment):
    code, out, err = bnvuln("data", command, name)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("Error: ")
    assert fragment in err


# ---------------------------------------------------------------- prepare


def test_prepare_from_a_manual_folder(bnvuln, manual, tmp_path):
    folder = tmp_path / "elsewhere"
    code, out, err = bnvuln("data", "prepare", "cifar10_1/v6", "--manual-dir", manual, "--data-dir", folder)
    assert (code, err) == (0, "")
    assert out == f"cifar10_1/v6: prepared, 10 test, in {folder}/cifar10_1/v6/1.1.0\n"
    # Where worker processes find them.
    assert (os.environ[paths.DATA_DIR], os.environ[paths.MANUAL_DIR]) == (str(folder), str(manual))
    code, out, _ = bnvuln("data", "list", "--data-dir", folder, "--json")
    states = {row["name"]: row["state"] for row in json.loads(out)["datasets"]}
    assert (states["cifar10_1/v6"], states["cifar10"]) == ("prepared", "not prepared")


def test_prepare_twice_and_several(bnvuln, manual):
    first = bnvuln("data", "prepare", "mnist", "cifar10_1/v6", "--manual-dir", manual, "--json")
    assert (first[0], first[2]) == (0, "")
    assert [found["state"] for found in json.loads(first[1])["prepared"]] == ["bundled", "prepared"]
    shutil.rmtree(manual)
    manual.mkdir()
    code, out, _ = bnvuln("data", "prepare", "cifar10_1/v6", "--manual-dir", manual)
    assert code == 0
    assert "cifar10_1/v6: prepared" in out


def test_prepare_without_files_or_network(bnvuln, offline):
    code, out, err = bnvuln("data", "prepare", "mnist", "cifar10")
    assert code == 1
    assert out.startswith("mnist: bundled")
    assert err.startswith(f"Error: cifar10 is not prepared in {offline} and www.cs.toronto.edu cannot be reached: put ")
    assert err.count("\n") == 1


def test_prepare_from_a_wrong_file(bnvuln, manual):
    name = "cifar10.1_v6_labels.npy"
    (manual / name).write_bytes(b"another file")
    code, _, err = bnvuln("data", "prepare", "cifar10_1/v6", "--manual-dir", manual)
    assert (code, err.count("\n")) == (1, 1)
    assert f"{manual / name} is not the file that TFDS registers" in err


@pytest.mark.parametrize(
    ("args", "fragment"),
    [
        ([], "Missing argument 'NAME...'"),
        (["mnist", "--manual-dir", "/no/such/folder"], "'/no/such/folder' does not exist"),
        (["mnist", "--data-dir", __file__], "is a file"),
        (["mnist", "--wrong"], "No such option"),
    ],
)
def test_wrong_options_are_usage_errors(bnvuln, args, fragment):
    code, out, err = bnvuln("data", "prepare", *args)
    assert (code, out) == (2, "")
    assert fragment in err


def test_folders_are_kept_absolute(bnvuln, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert bnvuln("data", "list", "--data-dir", "sets")[0] == 0
    assert os.environ[paths.DATA_DIR] == str(tmp_path / "sets")


# ---------------------------------------------------------------- dry runs of trainings


@pytest.mark.parametrize(("name", "width"), [("kmnist", 28), ("cifar10", 32)])
def test_a_dry_run_prepares_nothing_and_says_what_it_could_not_check(bnvuln, offline, name, width):
    code, out, err = bnvuln("train", "--data", name, "--classes", "3,77", "--dry-run", "--json")
    assert (code, json.loads(out)["data"]["width"]) == (0, width)
    assert err == f"{name} is not prepared here, so the config could not be checked against it\n"
    assert not offline.exists()


def test_a_dry_run_is_checked_against_data_that_are_prepared(bnvuln, tmp_path, monkeypatch):
    files = h.cifar10_files(h.examples(25, 32, 3, seed=5), h.examples(10, 32, 3, seed=6))
    dry = ["train", "--data", "cifar10", "--batch-size", "10", "--dry-run"]
    with h.prepared(tmp_path / "data", {"cifar10": files}):
        code, _, err = bnvuln(*dry)
        assert (code, "held out for validation, received 5000" in err) == (2, True)
        code, out, err = bnvuln(*dry, "--validation", "5", "--json")
        assert (code, err, json.loads(out)["data"]["width"]) == (0, "", 32)
        code, _, err = bnvuln(*dry, "--validation", "5", "--width", "31")
        assert (code, "expected >= 32, received 31" in err) == (2, True)


@pytest.mark.parametrize(
    ("n", "options", "expected"),
    [
        (30, [], 3),
        (6, [], 1),
        (30, ["--validation", "7"], 7),
        (30, ["--set", "data.validation=8"], 8),
        (6000, [], 5000),
    ],
)
def test_training_holds_out_a_tenth_of_few_images_of_one_s_own(bnvuln, tmp_path, n, options, expected):
    images, labels = h.examples(n, 8, 1, classes=2)
    np.savez(tmp_path / "mine.npz", x_train=images, y_train=labels)
    dry = ["train", "--data", tmp_path / "mine.npz", "--batch-size", "4", "--dry-run", "--json"]
    code, out, err = bnvuln(*dry, *options)
    assert (code, json.loads(out)["data"]["validation"]) == (0, expected), err


def test_training_takes_the_validation_split_that_there_is(bnvuln, tmp_path):
    images, labels = h.examples(20, 8, 1, classes=2)
    np.savez(tmp_path / "mine.npz", x_train=images, y_train=labels, x_val=images[:6], y_val=labels[:6])
    dry = ["train", "--data", tmp_path / "mine.npz", "--batch-size", "20", "--dry-run", "--json"]
    code, out, err = bnvuln(*dry)
    assert (code, json.loads(out)["data"]["validation"]) == (0, 6), err
    code, _, err = bnvuln(*dry, "--validation", "4")
    assert (code, f"{tmp_path / 'mine.npz'} has a validation split of 6 images" in err) == (2, True)


def test_info_says_what_was_found_in_one_s_own_data(bnvuln, tmp_path):
    images, labels = h.examples(20, 8, 1, classes=2)
    np.savez(tmp_path / "mine.npz", x_test=images[:, :6] / 255 / 255, y_test=np.eye(2)[labels], ids=labels)
    code, out, err = bnvuln("data", "info", tmp_path / "mine.npz")
    assert (code, err) == (0, "")
    lines = [line.split(maxsplit=1) for line in out.splitlines()[1:]]
    assert ["images", "6x8x1"] in lines
    assert ["test", "20"] in lines
    assert [value for key, value in lines if key == "note"] == [
        "left out: ids", "x_test: float64 pixels in [0, 1]", "labels: one-hot rows of 2 classes"
    ]  # fmt: skip
    assert [value for key, value in lines if key == "doubtful"] == [
        "x_test: no pixel exceeds 1/255, all are nearly black: were they divided by 255 twice?"
    ]
    printed = json.loads(bnvuln("data", "info", tmp_path / "mine.npz", "--json")[1])
    assert (printed["splits"], printed["label"], len(printed["notes"])) == (["test"], str(tmp_path / "mine.npz"), 3)


def test_a_path_that_is_no_npz_is_refused_with_what_to_give(bnvuln, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "labels.csv").touch()
    for name, fragment in (("photos", "name its images by folder:photos"), ("labels.csv", "expected an .npz file")):
        code, _, err = bnvuln("data", "info", name)
        assert (code, err.count("\n"), fragment in err) == (2, 1, True), err


def test_a_damaged_set_of_a_name_without_code_is_one_line(bnvuln, offline):
    h.write_files(offline / "not_of_tfds/1.0.0", {"dataset_info.json": b"{", "features.json": b"{"})
    code, _, err = bnvuln("data", "info", "not_of_tfds")
    assert (code, err.count("\n")) == (1, 1)
    assert f"remove {offline / 'not_of_tfds'} to prepare it again" in err


def test_a_dry_run_is_checked_against_one_s_own_data(bnvuln, tmp_path):
    images, labels = h.examples(20, 8, 1, classes=2)
    np.savez(tmp_path / "mine.npz", x=images, y=labels)
    dry = ["train", "--data", tmp_path / "mine.npz", "--validation", "4", "--batch-size", "4", "--dry-run"]
    assert bnvuln(*dry)[0] == 0
    code, out, err = bnvuln(*dry, "--classes", "0,2")
    assert (code, out) == (2, "")
    assert "has classes 0 to 1, received 2" in err


def test_info_of_a_folder_leaves_out_bad_files_where_asked(bnvuln, tmp_path):
    for name in ("a", "b"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "photos" / name / "0.png")
    (tmp_path / "photos" / "a" / "notes.txt").write_text("no image")
    name = f"folder:{tmp_path / 'photos'}"
    code, _, err = bnvuln("data", "info", name)
    assert code == 2
    assert "--skip-bad" in err
    code, out, _ = bnvuln("data", "info", name, "--skip-bad")
    assert code == 0
    assert "left out 1 file: a/notes.txt" in out
    code, _, err = bnvuln("data", "info", "mnist", "--skip-bad")
    assert code == 2
    assert "for a folder" in err
