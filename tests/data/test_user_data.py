"""User data: folders of images, every way in which they can be wrong, digests, and runs on user data."""

import json
import shutil

import helpers_data as h
import numpy as np
import pytest

from bn_vuln import api, config, data
from bn_vuln.data import fingerprint, published, sources
from bn_vuln.errors import UsageError
from bn_vuln.records import read_cell
from bn_vuln.runtime import backend

TRAIN, TEST = h.examples(30, 8, 3, seed=1, classes=3), h.examples(9, 8, 3, seed=2, classes=3)
CLASSES = ["ant", "bee", "cat"]


@pytest.fixture(autouse=True)
def no_home(monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tensorflow_datasets"))


def keras_names(train=TRAIN, test=TEST, **others):
    return {"x_train": train[0], "y_train": train[1], "x_test": test[0], "y_test": test[1], **others}


def npz_file(path, **arrays):
    """The name of an .npz file of these arrays, four good ones where none are given."""
    np.savez(path, **(arrays or keras_names()))
    return str(path)


def folder_of_images(root, **splits):
    """folder:ROOT, with folders of classes in ROOT or in a folder for each split."""
    for split, (pixels, labels) in (splits or {"train": TRAIN, "test": TEST}).items():
        h.image_folder(root / split.replace("whole", ""), pixels, labels, CLASSES)
    return f"folder:{root}"


def refused(name, *fragments):
    """These data cannot be used, for one reason, given in one line."""
    messages = set()
    for ask in (data.dataset_info, data.load, data.describe_dataset):
        with pytest.raises(UsageError) as error:
            ask(name)
        messages.add(str(error.value))
    (message,) = messages
    assert "\n" not in message
    for fragment in fragments:
        assert fragment in message


# ---------------------------------------------------------------- folders


@pytest.mark.parametrize("splits_", [{"train": TRAIN, "test": TEST}, {"whole": TRAIN}], ids=["two", "one"])
def test_folder_images_are_those_of_the_files(tmp_path, splits_):
    name = folder_of_images(tmp_path / "images", **splits_)
    by_class = np.argsort(TRAIN[1], kind="stable")
    pixels, labels = TRAIN[0][by_class], TRAIN[1][by_class]
    train, test = sources.read(name, "train"), sources.read(name, "test")
    np.testing.assert_array_equal(train.images, pixels[train.index])
    assert train.labels.tolist() == labels[train.index].tolist()
    if "whole" in splits_:
        assert sorted([*train.index, *test.index]) == list(range(30))
        np.testing.assert_array_equal(test.images, pixels[test.index])
    else:
        assert h.sorted_pairs(test.images, test.labels) == h.sorted_pairs(*TEST)
    info = data.dataset_info(name)
    assert (info.shape, info.classes) == ((8, 8, 3), tuple(CLASSES))
    assert info.sizes == {"train": len(train.labels), "test": len(test.labels)}
    assert info.mean == published.channel_statistics(train.images)[0]


def test_folder_formats(tmp_path):
    """Exact where the format is; every one is decoded to the same shape."""
    io, pixels = backend.tensorflow().io, TRAIN[0]
    name = folder_of_images(tmp_path / "images", whole=TRAIN)
    first = tmp_path / "images" / "ant"
    (first / "000.png").write_bytes(io.encode_jpeg(np.full((8, 8, 3), 100, np.uint8), quality=100).numpy())
    (first / "003.png").write_bytes(bmp(pixels[3]))
    (first / "006.png").write_bytes(gif(np.arange(64), np.zeros(64)))
    read = [sources.read(name, split) for split in ("train", "test")]
    whole = np.concatenate([part.images for part in read])[np.argsort(np.concatenate([part.index for part in read]))]
    assert abs(whole[0].astype(int) - 100).max() <= 1
    np.testing.assert_array_equal(whole[1], pixels[3])
    np.testing.assert_array_equal(whole[2], np.arange(64).reshape(8, 8, 1).repeat(3, -1))
    np.testing.assert_array_equal(whole[3], pixels[9])


def gif(*frames):
    """Frames of 64 gray values below 128, 8x8 pixels, as a GIF file."""
    gray = np.arange(128, dtype=np.uint8).repeat(3).tobytes()
    size = b"\x08\x00\x08\x00"
    # Codes of 8 bits: 128 begins, 129 ends, and 64 are too few for longer ones.
    pictures = [
        b"\x2c" + bytes(4) + size + b"\x00\x07\x42\x80" + frame.astype(np.uint8).tobytes() + b"\x81\x00"
        for frame in frames
    ]
    return b"GIF89a" + size + b"\xf6\x00\x00" + gray + b"".join(pictures) + b"\x3b"


def bmp(image):
    """An image [8, 8, 3] as a BMP file: from below, blue first."""
    head = b"BM" + (54 + image.size).to_bytes(4, "little") + bytes(4) + (54).to_bytes(4, "little")
    size = (40).to_bytes(4, "little") + 2 * (8).to_bytes(4, "little") + b"\x01\x00\x18\x00" + bytes(24)
    return head + size + image[::-1, :, ::-1].tobytes()


def test_folder_gray_images_hidden_files_and_what_lies_beside_the_classes(tmp_path):
    gray = TRAIN[0][..., :1], TRAIN[1]
    name = folder_of_images(tmp_path / "images", whole=gray)
    before = data.canonical_name(name)
    h.write_files(tmp_path / "images", {"readme.txt": b"", ".hidden": b""})
    h.write_files(tmp_path / "images" / "ant", {".DS_Store": b"x"})
    (tmp_path / "images" / ".cache").mkdir()
    assert data.canonical_name(name) == before
    assert data.dataset_info(name).shape == (8, 8, 1)


def test_a_class_may_be_called_train(tmp_path):
    h.image_folder(tmp_path / "images", *TRAIN, ["bus", "car", "train"])
    assert data.dataset_info(f"folder:{tmp_path / 'images'}").classes == ("bus", "car", "train")


def test_folders_that_are_wrong_are_refused(tmp_path):
    root = tmp_path / "images"
    refused(f"folder:{root}", f"{root}: no such folder", "PATH/SPLIT/CLASS/*")
    root.mkdir()
    refused(f"folder:{root}", "two classes or more, received none")
    (root / "ant").mkdir()
    refused(f"folder:{root}", "received 1")
    (root / "bee").mkdir()
    refused(f"folder:{root}", f"{root}: no images in the folders of classes")
    folder_of_images(root, whole=(TRAIN[0][:3], TRAIN[1][:3]))
    (root / "ant" / "inner").mkdir()
    refused(f"folder:{root}", "inner: expected an image file, received a folder")


# ---------------------------------------------------------------- digests


@pytest.fixture(params=["npz", "folder"])
def two(request, tmp_path):
    """The same data at two places: (name, name, change the second)."""
    first = npz_file(tmp_path / "a.npz") if request.param == "npz" else folder_of_images(tmp_path / "a")
    if request.param == "npz":
        second = str(shutil.copy(tmp_path / "a.npz", tmp_path / "B.NPZ"))
        return (
            first,
            second,
            lambda: npz_file(tmp_path / "b", **keras_names(TEST)) and shutil.move(tmp_path / "b.npz", second),
        )
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    return first, f"folder:{tmp_path / 'b'}", (tmp_path / "b/train/ant/000.png").unlink


def test_the_content_identifies_not_the_path(two, monkeypatch, tmp_path):
    first, second, change = two
    kind, _, digest = data.canonical_name(first).partition(":")
    assert kind == ("folder" if first.startswith("folder:") else "npz")
    assert len(digest) == 12
    assert int(digest, 16) >= 0
    assert data.canonical_name(second) == data.canonical_name(first) == data.dataset_info(second).name
    monkeypatch.chdir(tmp_path)
    assert data.canonical_name(first.replace(f"{tmp_path}/", "")) == data.canonical_name(first)
    change()
    assert data.canonical_name(second) != data.canonical_name(first)
    assert data.dataset_info(second) != data.dataset_info(first)


def test_the_names_of_files_count(tmp_path):
    before = data.canonical_name(folder_of_images(tmp_path / "a"))
    (tmp_path / "a/train/ant/000.png").rename(tmp_path / "a/train/ant/zzz.png")
    assert data.canonical_name(f"folder:{tmp_path / 'a'}") != before


def test_the_same_files_are_hashed_once(two):
    first, *_ = two
    fingerprint._digest.cache_clear()
    for _ in range(3):
        data.canonical_name(first)
    assert fingerprint._digest.cache_info().misses == 1


def test_names_of_other_data_identify_themselves():
    for name in ("mnist", "cifar10_1/v6", "no_such_set"):
        options = config.Data(name=name)
        assert data.canonical_name(name) == name
        assert data.with_digest(options) is options
        assert not data.is_user_data(name)


def test_data_with_digest_are_found_and_recognized_anywhere(two, monkeypatch, tmp_path):
    first, second, change = two
    monkeypatch.chdir(tmp_path)
    found = data.with_digest(config.Data(name=second.replace(f"{tmp_path}/", ""), validation=7))
    assert (found.name, found.validation) == (second, 7)
    assert found.canonical == data.canonical_name(first)
    assert data.with_digest(found) == found
    change()
    with pytest.raises(UsageError, match=rf"changed since.*{found.digest}"):
        data.with_digest(found)


def test_missing_data_have_no_digest(tmp_path):
    for name in (f"{tmp_path}/a.npz", f"folder:{tmp_path}/a"):
        for ask in (data.canonical_name, lambda name: data.with_digest(config.Data(name=name))):
            with pytest.raises(UsageError, match="no such"):
                ask(name)


def test_the_home_folder_is_understood(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    npz_file(tmp_path / "a.npz")
    assert data.canonical_name("~/a.npz") == data.canonical_name(str(tmp_path / "a.npz"))
    folder_of_images(tmp_path / "a")
    assert data.canonical_name("folder:~/a") == data.canonical_name(f"folder:{tmp_path / 'a'}")


def test_user_data_are_prepared_by_being_read(two):
    assert data.prepare(two[0]) == data.dataset_info(two[0])
    described = data.describe_dataset(two[0])
    assert (described["state"], described["files"]) == ("user data", [])


# ---------------------------------------------------------------- runs


def write_two_classes(path, seed=0, *, size=12, channels=1):
    """200 + 60 images in two classes, that differ in the brightness of the upper half."""
    generator = np.random.default_rng(seed)
    x, y = generator.integers(0, 100, (260, size, size, channels), np.uint8), np.arange(260) % 2
    x[y == 1, : size // 2] += 100
    np.savez(path, x_train=x[:200], y_train=y[:200], x_test=x[200:], y_test=y[200:])
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The data and the run of a linear model. Tests leave both as they are."""
    folder = tmp_path_factory.mktemp("trained")
    path = write_two_classes(folder / "mine.npz")
    train = {"epochs": 4, "batch_size": 20, "lr": 0.1}
    cell = {"data": {"name": str(path), "validation": 30, "width": 12}, "arch": "linear", "normalization": "batch"}
    assert api.train({**cell, "train": train}, folder / "run").record.validation_accuracy > 0.9
    return path, folder / "run"


def test_a_run_is_measured_on_moved_data_that_are_named(bnvuln, trained, tmp_path):
    path, run = trained
    attack = ["attack", run, "--eps", "0.2", "--steps", "2", "--json"]
    before = json.loads(bnvuln(*attack)[1])["records"]
    moved = shutil.move(path, tmp_path / "moved.npz")
    try:
        code, _, err = bnvuln(*attack, "--force")
        assert (code, "no such file" in err, "--data" in err) == (2, True, True)
        after = json.loads(bnvuln(*attack, "--data", moved, "--force")[1])["records"]
    finally:
        shutil.move(moved, path)
    for key in ("perturbation_id", "correct"):
        assert [record[key] for record in after] == [record[key] for record in before]
    assert all("mine" not in json.dumps(r) and "/" not in json.dumps(r["perturbation"]) for r in after)


def test_all_of_what_a_run_was_trained_on_is_flagged(trained, tmp_path):
    _, run = trained
    clean = {"clean": {"kind": "clean"}}
    record = api.evaluate(run, suite=clean, split="all")["clean"]
    assert record.n == 260
    (flag,) = record.flags
    assert (flag.check, flag.value) == (26, pytest.approx(200 / 260))
    assert api.evaluate(run, suite=clean)["clean"].flags == ()
    other = write_two_classes(tmp_path / "other.npz", seed=1)
    assert api.evaluate(run, suite=clean, dataset=str(other), split="all")["clean"].flags == ()


def test_a_list_has_the_accuracy_on_unseen_images_of_the_models_own_data(bnvuln, trained, tmp_path, monkeypatch):
    """Of 60, not of 260 with those of the training, and not of 260 others; show says which data are which."""
    path, run = trained
    monkeypatch.setenv("COLUMNS", "80")
    copy = shutil.copytree(run, tmp_path / "runs/run")
    shutil.rmtree(copy / "records", ignore_errors=True)
    other, clean = write_two_classes(tmp_path / "other.npz", seed=1), {"clean": {"kind": "clean"}}
    own = api.evaluate(copy, suite=clean, root=tmp_path / "runs")["clean"]
    for options in ({"split": "all"}, {"split": "all", "dataset": str(other)}):
        assert api.evaluate(copy, suite=clean, root=tmp_path / "runs", **options)["clean"].n == 260
    (model,) = json.loads(bnvuln("list", tmp_path / "runs", "--json")[1])["models"]
    assert (model["records"], model["clean_accuracy"], own.n) == (3, own.accuracy, 60)
    shown = bnvuln("show", copy)[1]
    assert shown.count(path.name) == 3  # of two records, and in the config
    assert data.canonical_name(str(other)) in shown  # nothing else is known of it

    model = brighter_half()
    for name in (path, other):
        api.evaluate(model, suite=clean, root=tmp_path / "own", dataset=str(name), input_scale="0-1", split="test",
                     class_names=["1", "0"])  # fmt: skip
    shown = bnvuln("show", next((tmp_path / "own").iterdir()))[1]
    assert [shown.count(name) for name in ("mine.npz", "other.npz", "npz:")] == [1, 1, 0]


def brighter_half():
    """A model of two classes, bright above and else, in this order."""
    keras = backend.tensorflow().keras
    head = keras.layers.Dense(2)
    model = keras.Sequential([keras.Input((12, 12, 1)), keras.layers.Flatten(), head])
    upper = (np.arange(144) < 72) / 72
    head.set_weights([np.stack([20 * upper, np.zeros(144)], 1), np.array([0, 20 * 100 / 255])])
    return model


def test_what_is_doubtful_about_the_data_is_in_the_record(tmp_path):
    path = write_two_classes(tmp_path / "mine.npz")
    with np.load(path) as file:
        x, y = file["x_test"], file["y_test"]
    names = np.array(["else", "bright"])[y]  # in alphabetical order the model has it, else in the other

    def flags(images, labels, **options):
        found = api.evaluate(
            brighter_half(), images, labels, suite={"clean": {"kind": "clean"}}, input_scale="0-1", **options
        )["clean"]
        return found.accuracy, [flag.check for flag in found.flags]

    assert flags(x, names) == (1.0, [])
    accuracy, found = flags(x, y, class_names=["bright", "else"])  # numbers are the model's already
    assert (accuracy, 19 in found) == (0.0, True)
    accuracy, found = flags(x, np.where(np.arange(60) < 9, names, names[::-1]))
    assert (accuracy, 19 in found) == (pytest.approx(np.mean(np.arange(60) < 9)), True)
    accuracy, found = flags(x // 16, names)
    assert (accuracy < 0.6, 23 in found) == (True, True)
    accuracy, found = flags((x > 99).astype(np.uint8), names)
    assert (accuracy, 23 in found) == (0.5, True)


def test_a_copy_of_the_data_makes_the_same_run(bnvuln, trained, tmp_path):
    path, run = trained
    copy = shutil.copy(path, tmp_path / "copy.npz")
    options = ["--arch", "linear", "--epochs", "4", "--batch-size", "20", "--lr", "0.1", "--validation", "30"]
    code, _, err = bnvuln("train", "--data", copy, *options, "--out", run)
    assert (code, "is finished already" in err) == (0, True), err
    assert read_cell(run).data.name == str(path)


def test_changed_data_are_refused_unless_named(bnvuln, trained):
    path, run = trained
    content = path.read_bytes()
    try:
        write_two_classes(path, seed=1)
        code, _, err = bnvuln("attack", run)
        assert (code, "has changed since this was trained on it" in err) == (2, True)
        assert bnvuln("attack", run, "--steps", "2", "--data", path)[0] == 0
    finally:
        path.write_bytes(content)


def test_the_limit_of_a_suite_is_no_demand(bnvuln, trained):
    code, out, err = bnvuln("evaluate", trained[1], "--suite", "quick", "--json")
    assert code == 0, err
    found = json.loads(out)["records"]
    assert {r["n"] for r in found} == {60}
    assert {r["perturbation"]["limit"] for r in found} == {None}
    code, _, err = bnvuln("evaluate", trained[1], "--suite", "quick", "--limit", "1000")
    assert (code, "60 examples" in err) == (2, True)


def test_data_that_the_model_cannot_take_are_refused(bnvuln, trained, tmp_path):
    for options, message in (
        ({"channels": 3}, "1 channels, received 3"),
        ({"size": 20}, "can be enlarged, not reduced: expected >= 20"),
    ):
        other = write_two_classes(tmp_path / "other.npz", **options)
        code, _, err = bnvuln("attack", trained[1], "--data", other)
        assert (code, message in err) == (2, True), err
