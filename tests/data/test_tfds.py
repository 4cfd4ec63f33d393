"""Data sets of TFDS: its own code on tiny archives of the true formats, and what happens where files are missing."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import helpers_data as h
import numpy as np
import pytest

from bn_vuln import config, data
from bn_vuln.data import constants, published, sources, tfds
from bn_vuln.data.tfds import builders, downloads, network, paths, preparation, prepared, reading
from bn_vuln.errors import BnvulnError, UsageError

FASHION = h.examples(20, 28, 1, seed=1), h.examples(10, 28, 1, seed=2)
KMNIST = h.examples(20, 28, 1, seed=3), h.examples(10, 28, 1, seed=4)
CIFAR = h.examples(25, 32, 3, seed=5), h.examples(10, 32, 3, seed=6)
CIFAR_1 = h.examples(10, 32, 3, seed=7)
SVHN = h.examples(30, 32, 3, seed=8), h.examples(12, 32, 3, seed=9), h.examples(10, 32, 3, seed=10)


def refuse(*_, **__):
    raise OSError("the tests have no network")


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    """An empty data folder, and no network."""
    return h.go_offline(monkeypatch, tmp_path / "data", refuse)


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    """A data folder with fashion_mnist, cifar10, cifar10_1/v6 and svhn_cropped, prepared once by TFDS' own code."""
    files = {
        "fashion_mnist": h.idx_files(*FASHION),
        "cifar10": h.cifar10_files(*CIFAR),
        "cifar10_1/v6": h.cifar10_1_files(*CIFAR_1),
        "svhn_cropped": h.svhn_files(*SVHN),
    }
    with pytest.MonkeyPatch.context() as monkeypatch:
        h.few_idx_images(monkeypatch, 20, 10)
        with h.prepared(tmp_path_factory.mktemp("ready"), files) as folder:
            return folder


@pytest.fixture
def at_ready(ready, monkeypatch):
    """The folder of prepared data sets as the data folder: not to be written into."""
    monkeypatch.setenv(paths.DATA_DIR, str(ready))
    return ready


def whole(name, split):
    """A published split, the validation examples included."""
    found = tfds.read(name, split)
    return found.images, found.labels


# ---------------------------------------------------------------- reading


@pytest.mark.parametrize(
    ("name", "published"), [("fashion_mnist", FASHION), ("cifar10", CIFAR), ("svhn_cropped", SVHN[:2])]
)
def test_pixels_and_labels_are_those_published(at_ready, name, published):
    for split, (images, labels) in zip(("train", "test"), published, strict=True):
        found = whole(name, split)
        assert (found[0].dtype, found[1].dtype) == (np.uint8, np.int32)
        assert found[0].shape == images.shape
        assert h.sorted_pairs(*found) == h.sorted_pairs(images, labels)


def test_channels_come_in_the_order_of_the_planes(at_ready):
    """A record of CIFAR-10 is all red, then all green, then all blue."""
    reds = sorted(image[..., 0].tobytes() for image in CIFAR[1][0])
    assert sorted(image[..., 0].tobytes() for image in whole("cifar10", "test")[0]) == reds


def test_splits_are_disjoint_and_index_points_into_the_published_split(at_ready):
    train, validation = (data.load("cifar10", split, validation=5) for split in ("train", "validation"))
    assert sorted([*train.index, *validation.index]) == list(range(25))
    np.testing.assert_array_equal(validation.images, whole("cifar10", "train")[0][validation.index])
    assert data.load("cifar10", "test").index.tolist() == list(range(10))


def test_a_second_reading_gives_the_same_order(at_ready):
    first = whole("svhn_cropped", "test")
    reading._read_published.cache_clear()
    np.testing.assert_array_equal(whole("svhn_cropped", "test")[0], first[0])


def test_arrays_are_read_once_and_cannot_be_written(at_ready):
    test = data.load("cifar10", "test")
    assert data.load("cifar10", "test").images is test.images
    with pytest.raises(ValueError, match="read-only"):
        test.images[0] = 0
    with pytest.raises(ValueError, match="read-only"):
        data.load("mnist", "test").labels[0] = 0


def test_a_limit_and_its_error_name_the_data_set(at_ready):
    assert len(data.load("fashion_mnist", "test", limit=4)) == 4
    with pytest.raises(UsageError, match="fashion_mnist: limit: the test split has 10 examples, 11 were asked for"):
        data.load("fashion_mnist", "test", limit=11)


def test_a_set_of_test_images_can_be_evaluated_not_trained(at_ready):
    assert h.sorted_pairs(*whole("cifar10_1/v6", "test")) == h.sorted_pairs(*CIFAR_1)
    assert data.dataset_info("cifar10_1/v6").mean == data.dataset_info("cifar10").mean
    for split in ("train", "validation"):
        with pytest.raises(UsageError, match=f"cifar10_1/v6 has no {split} split: expected test or all"):
            data.load("cifar10_1/v6", split)


# ---------------------------------------------------------------- info


def test_info_with_constants_in_use_needs_no_data_and_no_tfds():
    code = (
        "import sys\nfrom bn_vuln import data\n"
        "print(data.dataset_info('cifar10').std, data.dataset_info('fashion_mnist').sizes)\n"
        "print(data.dataset_info('cifar10_1/v6').sizes)\n"
        "assert not {'tensorflow', 'tensorflow_datasets'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == (
        "(0.2023, 0.1994, 0.201) {'train': 60000, 'test': 10000}\n{'test': 2000}\n",
        "",
    )


def test_info_of_a_prepared_set_has_its_sizes(at_ready):
    expected = dataclasses.replace(constants.CIFAR10, sizes={"train": 25, "test": 10})
    assert data.dataset_info("cifar10") == expected
    assert data.load("cifar10", "test").info == expected


def test_other_info_is_that_of_the_training_images_and_stored(at_ready):
    pixels = SVHN[0][0].astype(np.float64) / 255
    info = data.dataset_info("svhn_cropped")
    assert info.mean == tuple(pixels.mean((0, 1, 2)).round(4))
    assert info.std == tuple(pixels.std((0, 1, 2)).round(4))
    assert (info.name, info.shape, info.classes) == ("svhn_cropped", (32, 32, 3), tuple("0123456789"))
    assert info.sizes == {"train": 30, "test": 12}
    stored = json.loads((at_ready / "svhn_cropped/3.1.0" / reading.STATISTICS_FILE).read_text())
    assert tuple(stored["mean"]) == info.mean


def test_stored_statistics_that_are_broken_are_computed_again(at_ready):
    path = at_ready / "svhn_cropped/3.1.0" / reading.STATISTICS_FILE
    info, text = data.dataset_info("svhn_cropped"), path.read_text()
    path.write_text("{")
    assert data.dataset_info("svhn_cropped") == info
    assert path.read_text() == text


def test_statistics_are_exact():
    images = h.examples(2500, 5, 3)[0]
    mean, std = published.channel_statistics(images)
    assert mean == tuple((images / 255).mean((0, 1, 2)).round(4))
    assert std == tuple((images / 255).std((0, 1, 2)).round(4))


# ---------------------------------------------------------------- other kinds of data sets


def test_train_and_test_are_taken_from_the_published_splits():
    for names, expected in (
        (["train", "test", "extra"], {"train": "train", "test": "test"}),
        (["train", "validation"], {"train": "train", "test": "validation"}),
        (["train"], {published.WHOLE: "train"}),
        (["test"], {"test": "test"}),
    ):
        assert builders.split_names("x", names) == expected
    with pytest.raises(UsageError, match="x: expected a train or a test split, received all, half"):
        builders.split_names("x", ["all", "half"])


@pytest.fixture(scope="module")
def squares():
    """A made-up TFDS data set with one split and no declared shape; `shapes` says which images it holds."""
    import tensorflow_datasets

    class TinySquares(tensorflow_datasets.core.GeneratorBasedBuilder):
        VERSION = tensorflow_datasets.core.Version("1.0.0")
        shapes = ((8, 8, 3),)

        def _info(self):
            features = tensorflow_datasets.features
            return tensorflow_datasets.core.DatasetInfo(
                builder=self,
                features=features.FeaturesDict(
                    {"image": features.Image(shape=(None, None, 3)), "label": features.ClassLabel(names=["a", "b"])}
                ),
                supervised_keys=("image", "label"),
            )

        def _split_generators(self, _):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i in range(20):
                yield i, {"image": np.full(self.shapes[i % len(self.shapes)], i, np.uint8), "label": i % 2}

    return TinySquares


def test_a_fifth_of_the_training_images_is_the_test_split_where_there_is_none(squares):
    train, test = sources.read("tiny_squares", "train"), sources.read("tiny_squares", "test")
    assert (len(train.labels), len(test.labels)) == (16, 4)
    assert sorted([*train.index, *test.index]) == list(range(20))
    info = data.dataset_info("tiny_squares")
    assert (info.shape, info.classes, info.sizes) == ((8, 8, 3), ("a", "b"), {"train": 16, "test": 4})
    assert info.mean[0] == round(train.images[:, 0, 0, 0].mean() / 255, 4)


def test_images_of_several_shapes_stay_in_their_files_and_are_not_trained_on(squares, monkeypatch):
    monkeypatch.setattr(squares, "shapes", ((8, 8, 3), (9, 9, 3)))
    found = data.load("tiny_squares", "test")
    assert found.info.shape == (0, 0, 3)
    assert {tuple(size) for size in found.images.native_sizes.tolist()} == {(8, 8), (9, 9)}
    with pytest.raises(UsageError, match=r"expected images of one size: .*image \d+ has 8x8 and .*image \d+ has 9x9"):
        data.load_training_data(config.Data(name="tiny_squares", validation=2), "train", 0)


@pytest.mark.parametrize(
    ("name", "fragments"),
    [
        ("imdb_reviews", ["no image classification set", "text: Text"]),
        ("celeb_a", ["no image classification set", "received None"]),
        ("eurosat/all", ["no image classification set", "sentinel2: Tensor"]),
        ("binary_alpha_digits", ["square", "(20, 16, 1)"]),
        ("cifar10_1/v7", ["no config 'v7'", "v4 and v6", "did you mean 'v6'"]),
        ("cifar10/small", ["no config 'small'", "it has none"]),
        ("cifar10_corrupted/fog", ["fog", "87 more", "did you mean 'fog_"]),
        ("svhn_croped", ["'svhn_croped'", "did you mean 'svhn_cropped'"]),
        ("cifar10/3.0.2", ["not known", "did you mean 'cifar10'"]),
        ("npz:0123456789ab", ["not known", "a path ending in .npz"]),
    ],
)
def test_names_that_cannot_be_read_are_refused_before_anything_is_prepared(name, fragments):
    for ask in (data.dataset_info, data.load, data.prepare, data.describe_dataset):
        with pytest.raises(UsageError) as error:
            ask(name)
        assert "\n" not in str(error.value)
        for fragment in fragments:
            assert fragment in str(error.value)


def test_a_name_that_is_like_none_gets_no_suggestion():
    """Of TFDS' hundreds of names one is always a little like it ('asset', of all)."""
    with pytest.raises(UsageError) as error:
        data.load("nosuchset")
    assert "did you mean" not in str(error.value)


# ---------------------------------------------------------------- files


def test_only_the_files_of_the_config_are_required():
    for name, names, host in (
        ("cifar10", [h.CIFAR10], "www.cs.toronto.edu"),
        ("cifar10_1/v6", ["cifar10.1_v6_data.npy", "cifar10.1_v6_labels.npy"], "github.com"),
        ("svhn_cropped", ["train_32x32.mat", "test_32x32.mat", "extra_32x32.mat"], "ufldl.stanford.edu"),
    ):
        builder = tfds.find_builder(name)
        files = downloads.files(builder)
        assert sorted(file.name for file in files) == sorted(names)
        assert {network.host(file.url) for file in files} == {host}
        assert all(file.size and len(file.sha256) == 64 for file in files)
        assert {file.found for file in files} == {None}
        assert downloads.by_hand(builder) is None


def test_missing_files_are_one_line_that_names_files_host_and_folder(offline):
    with pytest.raises(BnvulnError) as error:
        data.load("cifar10")
    assert str(error.value) == (
        f"cifar10 is not prepared in {offline} and www.cs.toronto.edu cannot be reached: put {h.CIFAR10} into "
        f"{offline}/downloads/manual/cifar10 (or into any folder, with --manual-dir), or pass --data-dir of a folder "
        "where it is prepared"
    )
    assert not offline.exists()


def test_only_missing_files_are_named(offline):
    seeded = dict(list(h.idx_files(*FASHION).items())[:3])
    h.seed_downloads("fashion_mnist", seeded)
    with pytest.raises(BnvulnError) as error:
        data.load("fashion_mnist")
    assert "put t10k-labels-idx1-ubyte.gz into" in str(error.value)
    assert not any(name in str(error.value) for name in seeded)


def test_where_files_do_not_say_which_config_they_are_of_some_are_enough_to_try():
    builder = tfds.find_builder("eurosat/rgb")
    with pytest.raises(BnvulnError, match=r"put EuroSAT\.zip and EuroSATallBands\.zip into"):
        downloads.require_available("eurosat/rgb", builder)
    h.seed_downloads("eurosat/rgb", {"EuroSAT.zip": b"any"})
    downloads.require_available("eurosat/rgb", builder)


def test_a_given_manual_folder_is_where_to_put_them(monkeypatch, tmp_path):
    monkeypatch.setenv(paths.MANUAL_DIR, str(tmp_path))
    with pytest.raises(BnvulnError, match=f"put {h.CIFAR10} into {tmp_path} "):
        data.load("cifar10")


def test_the_first_of_very_many_files_are_named():
    with pytest.raises(BnvulnError, match=r"airplane\.npy, .* and 337 more into"):
        data.prepare("quickdraw_bitmap")


def test_files_that_tfds_does_not_register_are_not_to_be_put_anywhere():
    with pytest.raises(
        BnvulnError, match=r"its files must be downloaded on a machine that has network; pass --data-dir"
    ):
        data.prepare("i_naturalist2018")


def test_files_to_download_by_hand_are_those_of_tfds_instructions(offline):
    name = "imagenet2012"
    with pytest.raises(BnvulnError) as error:
        data.load(name)
    instructions = tfds.find_builder(name).MANUAL_DOWNLOAD_INSTRUCTIONS.split()
    assert " ".join(instructions).rstrip(".") in str(error.value)
    assert f"{offline}/downloads/manual/{name}" in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_files_of_those_to_download_by_hand_are_named_by_tfds(offline):
    h.write_files(offline / "downloads/manual/imagenet2012", {"readme": b""})
    with pytest.raises(BnvulnError, match=r"imagenet2012 could not be prepared in .*ILSVRC2012_img_\w+\.tar"):
        data.prepare("imagenet2012")


def test_missing_data_are_noticed_without_tensorflow():
    code = (
        "import sys\nfrom bn_vuln import data\nfrom bn_vuln.errors import BnvulnError\n"
        "from bn_vuln.data.tfds import network\n"
        "network.unreachable = lambda urls: [network.host(url) for url in urls]\n"
        "for name in ('cifar10', 'stl10', 'imagenet2012'):\n"
        "    try: data.load(name)\n    except BnvulnError as error: print(str(error)[:24])\n"
        "assert 'tensorflow' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "cifar10 is not prepared \nstl10 is not prepared in\nimagenet2012 is not prep\n"
    assert done.stderr == ""


# ---------------------------------------------------------------- the manual folder


def test_files_of_one_name_do_not_mix(offline, monkeypatch):
    """With one folder for all that is unpacked, TFDS makes Fashion-MNIST of MNIST's files."""
    h.few_idx_images(monkeypatch, 20, 10)
    for name, sets in (("kmnist", KMNIST), ("fashion_mnist", FASHION)):
        folder = h.write_files(offline / "downloads/manual" / name, h.idx_files(*sets))
        h.register(monkeypatch, name, folder)
    for name, sets in (("kmnist", KMNIST), ("fashion_mnist", FASHION)):
        for split, arrays in zip(("train", "test"), sets, strict=True):
            assert h.sorted_pairs(*whole(name, split)) == h.sorted_pairs(*arrays)


def test_a_manual_folder_anywhere_is_used(tmp_path, monkeypatch):
    folder = h.write_files(tmp_path / "by_hand", h.cifar10_1_files(*CIFAR_1))
    h.register(monkeypatch, "cifar10_1/v6", folder)
    monkeypatch.setenv(paths.MANUAL_DIR, str(folder))
    assert h.sorted_pairs(*whole("cifar10_1/v6", "test")) == h.sorted_pairs(*CIFAR_1)


def test_a_wrong_file_in_the_manual_folder_is_refused_with_both_hashes(offline, tmp_path, monkeypatch):
    folder = h.write_files(tmp_path / "by_hand", h.idx_files(*KMNIST))
    h.register(monkeypatch, "fashion_mnist", folder)
    wrong = folder / "t10k-labels-idx1-ubyte.gz"
    files = downloads.files(tfds.find_builder("fashion_mnist"))
    registered = next(file.sha256 for file in files if file.name == wrong.name)
    wrong.write_bytes(h.idx_files(*FASHION)["train-labels-idx1-ubyte.gz"])
    monkeypatch.setenv(paths.MANUAL_DIR, str(folder))
    with pytest.raises(BnvulnError) as error:
        data.load("fashion_mnist")
    assert str(error.value).startswith(f"{wrong} is not the file that TFDS registers")
    hashes = [word for word in str(error.value).replace(",", "").split() if len(word) == 64]
    assert len(set(hashes)) == 2
    assert registered in hashes
    assert not (offline / "fashion_mnist").exists()


def test_a_manual_folder_that_is_none_is_said_so(monkeypatch, tmp_path):
    monkeypatch.setenv(paths.MANUAL_DIR, str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match=r"nowhere .*no such folder"):
        data.load("cifar10")


# ---------------------------------------------------------------- preparing


def test_what_is_prepared_is_all_there(at_ready, tmp_path):
    folder = at_ready / "cifar10/3.0.2"
    found = prepared.read(folder)
    assert (found.name, found.sizes, found.shape, found.classes) == (
        "cifar10",
        {"train": 25, "test": 10},
        (32, 32, 3),
        10,
    )
    for pattern in ("dataset_info.json", "features.json", "*-test.tfrecord-*"):
        copy = shutil.copytree(folder, tmp_path / pattern.strip("*-") / "3.0.2")
        next(copy.glob(pattern)).unlink()
        assert prepared.read(copy) is None


def test_an_interrupted_preparation_is_begun_again(offline, monkeypatch):
    from tensorflow_datasets.image_classification.cifar10_1 import Cifar10_1

    h.seed_downloads("cifar10_1/v6", h.cifar10_1_files(*CIFAR_1))

    def interrupted(self, image_path, label_path):
        yield 0, {"image": np.zeros((32, 32, 3), np.uint8), "label": 0}
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Cifar10_1, "_generate_examples", interrupted)
        with pytest.raises(KeyboardInterrupt):
            data.prepare("cifar10_1/v6")
    assert prepared.find("cifar10_1/v6") is None
    assert h.sorted_pairs(*whole("cifar10_1/v6", "test")) == h.sorted_pairs(*CIFAR_1)


def test_an_incomplete_folder_is_prepared_again(ready, offline):
    """TFDS takes any folder of that name for a prepared data set."""
    shutil.copytree(ready / "cifar10_1", offline / "cifar10_1")
    (offline / "cifar10_1/v6/1.1.0/cifar10_1-test.tfrecord-00000-of-00001").unlink()
    with pytest.raises(BnvulnError, match="cifar10_1/v6 is not prepared"):
        data.load("cifar10_1/v6")
    h.seed_downloads("cifar10_1/v6", h.cifar10_1_files(*CIFAR_1))
    assert h.sorted_pairs(*whole("cifar10_1/v6", "test")) == h.sorted_pairs(*CIFAR_1)


def test_a_prepared_folder_that_cannot_be_read_is_one_line_with_advice(ready, offline):
    shutil.copytree(ready / "cifar10_1", offline / "cifar10_1")
    folder = offline / "cifar10_1/v6/1.1.0"
    records = next(folder.glob("*.tfrecord-*"))
    records.write_bytes(records.read_bytes()[:-500])
    with pytest.raises(BnvulnError, match=f"cifar10_1/v6: .*; remove {folder} to prepare it again") as error:
        data.load("cifar10_1/v6")
    assert "\n" not in str(error.value)
    (folder / "dataset_info.json").write_text("{")
    with pytest.raises(BnvulnError, match=r"remove .* to prepare it again"):
        data.load("cifar10_1/v6")


def test_whatever_goes_wrong_in_tfds_is_one_line(monkeypatch, capfd):
    h.seed_downloads("cifar10", {h.CIFAR10: b"no archive"})
    with pytest.raises(BnvulnError) as error:
        data.load("cifar10")
    assert str(error.value).startswith(f"cifar10 could not be prepared in {paths.data_dir()}: ")
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")


def test_a_file_that_a_host_offers_is_downloaded(monkeypatch, tmp_path):
    """As far as the tests can go without one: TFDS is asked for it, and its failure is one line."""
    from tensorflow_datasets.core.download import downloader

    def fail(self, url, *_, **__):
        raise downloader.download_utils_lib.DownloadError(f"Failed to get url {url}. HTTP code: 404.\nmore")

    monkeypatch.setattr(network, "unreachable", lambda urls: [] if list(urls) else ["nothing was asked for"])
    monkeypatch.setattr(downloader._Downloader, "_sync_download", fail)
    with pytest.raises(BnvulnError) as error:
        data.load("cifar10")
    assert str(error.value).endswith("HTTP code: 404.")


def test_a_data_folder_that_cannot_be_written_is_one_line(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(paths.DATA_DIR, str(tmp_path / "file"))
    monkeypatch.setattr(downloads, "require_available", lambda *_: None)
    with pytest.raises(BnvulnError, match=r"cifar10 could not be prepared in .*Not a directory"):
        data.load("cifar10")


def test_a_process_that_waited_for_another_does_not_prepare_again(at_ready, monkeypatch):
    monkeypatch.setattr(downloads, "require_available", lambda *_: None)
    monkeypatch.setattr(preparation, "_download_and_prepare", lambda _: pytest.fail("prepared twice"))
    states = iter([False, True])  # before and behind the lock
    monkeypatch.setattr(preparation, "_is_prepared", lambda _: next(states))
    preparation.ensure_prepared("cifar10")


# ---------------------------------------------------------------- lists


def test_the_list_says_what_is_prepared_without_tfds(ready):
    code = (
        "import json, sys\nfrom bn_vuln import data\nprint(json.dumps(data.list_datasets()))\n"
        "assert not {'tensorflow', 'tensorflow_datasets'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env={"TFDS_DATA_DIR": str(ready)}
    )
    assert done.returncode == 0, done.stderr
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    assert rows["mnist"]["state"] == "bundled"
    assert rows["cifar10"] == {
        "name": "cifar10", "shape": [32, 32, 3], "classes": 10, "sizes": {"train": 25, "test": 10}, "state": "prepared"
    }  # fmt: skip
    assert rows["cifar10_1/v6"]["state"] == "prepared"
    assert rows["cifar10_1/v4"]["state"] == rows["kmnist"]["state"] == "not prepared"
    assert "downloads" not in rows


def test_the_list_has_what_else_is_prepared_and_can_be_read(squares, ready, offline):
    data.prepare("tiny_squares")
    shutil.copytree(ready / "cifar10", offline / "other")
    info = offline / "other/3.0.2/dataset_info.json"
    info.write_text(
        info.read_text().replace('"cifar10"', '"other"').replace('"train"', '"all"').replace('"test"', '"b"')
    )
    rows = {row["name"]: row for row in data.list_datasets()}
    assert rows["tiny_squares"]["sizes"] == {"train": 16, "test": 4}
    assert "other" not in rows


def test_descriptions_before_and_after(at_ready, monkeypatch, tmp_path):
    after = data.describe_dataset("svhn_cropped")
    assert (after["state"], after["sizes"]) == ("prepared", {"train": 30, "test": 12})
    assert after["mean"] == data.dataset_info("svhn_cropped").mean
    assert [file["found"] for file in after["files"]] == ["downloaded"] * 3
    monkeypatch.setenv(paths.DATA_DIR, str(tmp_path))
    before = data.describe_dataset("svhn_cropped")
    assert (before["state"], before["mean"]) == ("not prepared", None)
    assert before["sizes"] == {"train": 73257, "test": 26032}
    assert [file["found"] for file in before["files"]] == [None] * 3
    assert next(file for file in before["files"] if file["name"] == "train_32x32.mat") == {
        "name": "train_32x32.mat",
        "size": 182040794,
        "sha256": "435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8",
        "host": "ufldl.stanford.edu",
        "found": None,
    }
    assert data.describe_dataset("cifar10")["classes"] == constants.CIFAR10.classes
    by_hand = data.describe_dataset("imagenet2012")
    assert "register on" in by_hand["by_hand"]
    assert [file["name"] for file in by_hand["files"]] == ["ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"]


def test_the_bundled_set_needs_no_folder(offline):
    assert data.prepare("mnist") == data.dataset_info("mnist")
    described = data.describe_dataset("mnist")
    assert described["state"] == "bundled"
    assert all((Path(described["folder"]) / file["name"]).stat().st_size == file["size"] for file in described["files"])
    assert not offline.exists()


def test_a_builder_leaves_no_temporary_folder(tmp_path, monkeypatch):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    assert builders.find_builder("cifar10").name == "cifar10"
    assert list((tmp_path / "tmp").iterdir()) == []
