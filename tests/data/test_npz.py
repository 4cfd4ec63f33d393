"""Arrays of images and labels, in .npz files and in memory: every form that is taken, and every way to be wrong."""

import io
import json
import zipfile

import helpers_data as h
import numpy as np
import pytest

from bn_vuln import config, data
from bn_vuln.data import arrays as in_memory
from bn_vuln.data import published, sources
from bn_vuln.errors import UsageError
from bn_vuln.runtime import backend

TRAIN, TEST = h.examples(30, 8, 3, seed=1, classes=3), h.examples(9, 8, 3, seed=2, classes=3)
CLASSES = ["ant", "bee", "cat"]


def keras_names(train=TRAIN, test=TEST, **others):
    return {"x_train": train[0], "y_train": train[1], "x_test": test[0], "y_test": test[1], **others}


def npz_file(path, **arrays):
    """The name of an .npz file of these arrays, four good ones where none are given."""
    np.savez(path, **(arrays or keras_names()))
    return str(path)


def refused(name, *fragments):
    """These data cannot be used, for one reason, given in one line."""
    messages = set()
    for ask in (data.dataset_info, data.load, data.splits, data.describe_dataset):
        with pytest.raises(UsageError) as error:
            ask(name)
        messages.add(str(error.value))
    (message,) = messages
    assert "\n" not in message
    for fragment in fragments:
        assert fragment in message


@pytest.fixture(params=["npz", "memory"])
def given(request, tmp_path):
    """Make a data set of images x, labels y and names of classes, in a file or in memory."""

    def make(x, y, classes=None):
        if request.param == "memory":
            return data.register(x, y, classes)
        return npz_file(tmp_path / "a.npz", x=x, y=y, **({} if classes is None else {"classes": classes}))

    yield make
    in_memory._held.clear()


# ---------------------------------------------------------------- splits


def test_arrays_are_those_of_the_file(tmp_path):
    name = npz_file(tmp_path / "a.npz")
    train, validation, test = (data.load(name, split, validation=4) for split in ("train", "validation", "test"))
    np.testing.assert_array_equal(test.images, TEST[0])
    assert (test.images.dtype, test.labels.dtype) == (np.uint8, np.int32)
    assert test.labels.tolist() == TEST[1].tolist()
    assert test.index.tolist() == list(range(9))
    assert sorted([*train.index, *validation.index]) == list(range(30))
    np.testing.assert_array_equal(train.images, TRAIN[0][train.index])
    np.testing.assert_array_equal(validation.labels, TRAIN[1][validation.index])
    assert (test.info.notes, test.info.flags) == ((), ())


def test_info_is_that_of_the_training_images(tmp_path):
    info = data.dataset_info(npz_file(tmp_path / "a.npz", **keras_names(classes=np.array(CLASSES))))
    assert (info.shape, info.classes, info.sizes) == ((8, 8, 3), tuple(CLASSES), {"train": 30, "test": 9})
    pixels = TRAIN[0] / 255
    assert info.mean == tuple(pixels.mean((0, 1, 2)).round(4))
    assert info.std == tuple(pixels.std((0, 1, 2)).round(4))
    assert info.has_class_names


def test_data_without_splits_give_a_fixed_fifth_to_the_test_split(tmp_path):
    name = npz_file(tmp_path / "a.npz", x=TRAIN[0], y=TRAIN[1])
    train, test = sources.read(name, "train"), sources.read(name, "test")
    assert (len(train.labels), len(test.labels)) == (24, 6)
    assert sorted([*train.index, *test.index]) == list(range(30))
    np.testing.assert_array_equal(test.images, TRAIN[0][test.index])
    assert train.labels.tolist() == TRAIN[1][train.index].tolist()
    assert data.dataset_info(name).sizes == {"train": 24, "test": 6}
    assert data.dataset_info(name).mean == published.channel_statistics(train.images)[0]
    assert test.index.tolist() == np.sort(data.permutation(30, published.SPLIT_SEED + 2)[:6]).tolist()


def test_data_without_splits_are_also_taken_whole(given):
    name = given(*TRAIN)
    assert (data.splits(name), data.default_split(name)) == (("whole",), "all")
    found = data.load(name, "all")
    np.testing.assert_array_equal(found.images, TRAIN[0])
    assert found.labels.tolist() == TRAIN[1].tolist()
    assert found.index.tolist() == list(range(30))
    assert found.info.size("all") == 30
    assert not found.info.has_class_names
    with pytest.raises(UsageError, match="to be held out for validation, received 5000"):
        data.load(name, "validation")


def test_few_images_are_evaluated_but_not_split(given):
    name = given(TRAIN[0][:4], TRAIN[1][:4])
    assert len(data.load(name, "all")) == data.dataset_info(name).size("all") == 4
    for split in ("train", "test"):
        with pytest.raises(UsageError, match="5 images at least, a fifth of them to test, received 4"):
            data.load(name, split)


def test_all_are_the_published_splits_one_after_the_other(tmp_path):
    name = npz_file(tmp_path / "a.npz")
    assert (data.splits(name), data.default_split(name)) == (("train", "test"), "test")
    found = data.load(name, "all")
    np.testing.assert_array_equal(found.images, np.concatenate([TRAIN[0], TEST[0]]))
    assert found.labels.tolist() == [*TRAIN[1], *TEST[1]]
    assert found.index.tolist() == list(range(39))
    np.testing.assert_array_equal(data.load(name, "train", validation=0).images, TRAIN[0])
    with pytest.raises(UsageError, match=r"1 to 29 of its 30 training images.*received 0.*--validation N"):
        data.load(name, "validation", validation=0)


def test_a_published_validation_split_is_the_validation_split(tmp_path):
    name = npz_file(tmp_path / "a.npz", **keras_names(), x_val=TEST[0][:5], y_val=TEST[1][:5])
    assert data.splits(name) == ("train", "validation", "test")
    np.testing.assert_array_equal(data.load(name, "validation").images, TEST[0][:5])
    np.testing.assert_array_equal(data.load(name, "train").images, TRAIN[0])
    info = data.dataset_info(name)
    assert [info.size(split, 7) for split in ("train", "validation", "test", "all")] == [30, 5, 9, 44]
    assert data.load(name, "all").labels.tolist() == [*TRAIN[1], *TEST[1][:5], *TEST[1]]
    np.testing.assert_array_equal(data.load_whole_training_set(config.Data(name=name)).images, TRAIN[0])


def test_sizes_count_what_is_held_out(tmp_path):
    info = data.dataset_info(npz_file(tmp_path / "a.npz"))
    assert [info.size(split, 7) for split in ("train", "validation", "test", "all")] == [23, 7, 9, 39]
    test_alone = data.dataset_info(npz_file(tmp_path / "b.npz", x_test=TEST[0], y_test=TEST[1]))
    assert [test_alone.size(split, 7) for split in ("train", "validation", "test", "all")] == [0, 0, 9, 9]


@pytest.mark.parametrize(
    ("keys", "splits", "default"),
    [
        (["x_test", "y_test"], ("test",), "test"),
        (["x_val", "y_val"], ("validation",), "validation"),
        (["x_valid", "y_valid", "x_train", "y_train"], ("train", "validation"), "validation"),
        (["x_validation", "y_validation", "x_test", "y_test"], ("validation", "test"), "test"),
        (["x_train", "y_train"], ("train",), "all"),
        (["train_images", "train_labels", "val_images", "val_labels", "test_images", "test_labels"],
         ("train", "validation", "test"), "test"),
        (["val_images", "val_labels"], ("validation",), "validation"),
        (["X_test", "Y_test"], ("test",), "test"),
        (["test_x", "test_y"], ("test",), "test"),
        (["train-data", "train-targets"], ("train",), "all"),
        (["images", "labels"], ("whole",), "all"),
        (["X", "y"], ("whole",), "all"),
        (["data", "target"], ("whole",), "all"),
        (["testX", "testY"], ("test",), "test"),
        (["xtest", "ytest"], ("test",), "test"),
        (["x_dev", "y_dev"], ("validation",), "validation"),
        (["test.imgs", "test.labels"], ("test",), "test"),
    ],
)  # fmt: skip
def test_the_names_that_people_give(tmp_path, keys, splits, default):
    arrays = {}
    for place, key in enumerate(keys):  # images and labels of other examples for each split
        pixels, labels = h.examples(6, 8, 1, seed=place // 2, classes=3)
        arrays[key] = pixels if place % 2 == 0 else labels[:, None]
    name = npz_file(tmp_path / "a.npz", **arrays)
    assert (data.splits(name), data.default_split(name)) == (splits, default)
    for split in splits:
        found = sources.read(name, split) if split != "whole" else data.load(name, "all")
        place = keys.index(
            next(key for key in keys if splits == ("whole",) or split[:3] in key.lower().replace("dev", "val"))
        )
        np.testing.assert_array_equal(found.images, arrays[keys[place]])
        assert found.labels.tolist() == arrays[keys[place + 1]].ravel().tolist()


def test_a_split_that_is_not_there_is_refused_with_those_that_are(tmp_path):
    name = npz_file(tmp_path / "a.npz", x_test=TEST[0], y_test=TEST[1])
    assert len(data.load(name)) == len(data.load(name, "all")) == 9
    for split in ("train", "validation"):
        with pytest.raises(UsageError, match=rf"a\.npz has no {split} split: expected test or all"):
            data.load(name, split)
    with pytest.raises(UsageError, match="'dev'"):
        data.load(name, "dev")


def test_arrays_that_are_left_out_are_named(tmp_path):
    name = npz_file(tmp_path / "a.npz", x_test=TEST[0], y_test=TEST[1], x_val=TEST[0], ids=np.arange(9))
    assert data.splits(name) == ("test",)
    assert data.dataset_info(name).notes == ("left out: x_val and ids",)


@pytest.mark.parametrize(
    ("arrays", "fragments"),
    [
        ({"a": TEST[0]}, ["or x and y", "received a"]),
        ({}, ["received no arrays"]),
        ({"x_test": TEST[0]}, ["x_test lacks its labels"]),
        ({"y_test": TEST[1]}, ["y_test lacks its images"]),
        ({"x_val": TEST[0], "y_val": TEST[1], "x_valid": TEST[0]}, ["x_val and x_valid are both images of validation"]),
        (keras_names(test=h.examples(9, 9, 3, classes=3)), ["one shape", "x_train: 8x8x3 and x_test: 9x9x3"]),
        (keras_names((TRAIN[0] / 1.0, TRAIN[1]), (TEST[0] / 255, TEST[1])),
         ["x_test in [0, 1] and x_train of 0 to 255"]),
        (keras_names((TRAIN[0], np.eye(3)[TRAIN[1]]), (TEST[0], np.eye(4)[TEST[1]])),
         ["y_test: expected 3 one-hot columns, received 4"]),
        (keras_names((TRAIN[0], np.array(CLASSES)[TRAIN[1]])), ["y_train is text, y_test is not"]),
        (keras_names((TRAIN[0], TRAIN[1].astype(object))), ["y_train holds Python objects", "can run code"]),
        (keras_names(classes=np.array(CLASSES, object)), ["classes holds Python objects", "np.array(names, str)"]),
    ],
)  # fmt: skip
def test_files_whose_arrays_do_not_fit_together_are_refused(tmp_path, arrays, fragments):
    np.savez(tmp_path / "a.npz", **arrays)
    refused(str(tmp_path / "a.npz"), str(tmp_path / "a.npz"), *fragments)


def test_files_that_are_no_npz_are_refused(tmp_path):
    path = tmp_path / "a.npz"
    refused(str(path), "a.npz: no such file", "x_train")
    path.mkdir()
    refused(str(path), "a.npz: a folder, no file")
    path.rmdir()
    for content, fragment in ((b"", "cannot be read"), (b"some text", "is no .npz file")):
        path.write_bytes(content)
        refused(str(path), str(path), fragment, "as np.savez writes it")
    for name in ("a.npz", "b.npy"):
        with (tmp_path / name).open("wb") as file:
            np.save(file, TRAIN[0])
        refused(str(tmp_path / name), name, "received one array without a name", "np.savez(")


def test_a_zip_of_other_files_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x", b"1,2,3")
        archive.writestr("y.npy", npy(TEST[1]))
    refused(str(tmp_path / "a.npz"), "a.npz: x is no array")


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def test_a_damaged_npz_is_refused(tmp_path):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, **keras_names())
    content = path.read_bytes()
    flags = content.index(b"PK\1\2") + 8  # bit 0 of the flags of the first entry: encrypted
    for damaged in (
        content[: len(content) // 2],
        content[:300] + bytes(200) + content[500:],
        content[:flags] + b"\1" + content[flags + 1 :],
    ):
        path.write_bytes(damaged)
        refused(str(path), str(path), "cannot be read")


def test_an_array_whose_header_lies_is_refused(tmp_path):
    header = npy(TEST[0]).replace(b"(9, 8, 8, 3), }  ", b"(999999999999, 8)")
    assert len(header) == len(npy(TEST[0]))
    for content in (header, npy(TEST[0]).replace(b"|u1", b"|q9"), npy(TEST[0])[:20]):
        with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
            archive.writestr("x.npy", content)
            archive.writestr("y.npy", npy(TEST[1]))
        refused(str(tmp_path / "a.npz"), "cannot be read")


# ---------------------------------------------------------------- images


PIXELS, LABELS = TRAIN
BITS = (PIXELS > 127).astype(np.uint8)


@pytest.mark.parametrize(
    ("images", "expected", "notes"),
    [
        (PIXELS, PIXELS, []),
        (PIXELS[..., 0], PIXELS[..., :1], []),
        (PIXELS[:, :6, :5], PIXELS[:, :6, :5], []),
        (PIXELS.transpose(0, 2, 1, 3), PIXELS.transpose(0, 2, 1, 3), []),
        (PIXELS.astype(np.int64), PIXELS, ["int64 pixels of 0 to 255, all whole"]),
        (PIXELS.astype(np.int16), PIXELS, ["int16"]),
        (PIXELS.astype(np.float16), PIXELS, ["float16 pixels of 0 to 255, all whole"]),
        (PIXELS.astype(np.float64), PIXELS, ["float64"]),
        (PIXELS.astype(">f4"), PIXELS, ["float32"]),
        (BITS == 1, BITS * 255, ["black and white"]),
        (PIXELS / 255, (PIXELS / 255).astype(np.float32), ["float64 pixels in [0, 1]"]),
        ((PIXELS / 255).astype(np.float16), (PIXELS / 255).astype(np.float16).astype(np.float32), ["float16"]),
        (BITS * np.float32(1), BITS * np.float32(1), ["float32 pixels in [0, 1]"]),
        (PIXELS * 0.999, (PIXELS * 0.999).astype(np.float32) / np.float32(255), ["divided by 255"]),
        (PIXELS / 255 * (1 + 2e-6) - 1e-6, np.clip(PIXELS / 255 * (1 + 2e-6) - 1e-6, 0, 1).astype(np.float32),
         ["in [0, 1]"]),
    ],
)  # fmt: skip
def test_images_of_every_type_are_brought_to_bytes_or_pixels(given, images, expected, notes):
    found = data.load(given(images, LABELS), "all")
    assert found.images.dtype == expected.dtype
    np.testing.assert_array_equal(found.images, expected)
    assert (len(found.info.notes), found.info.flags) == (len(notes), ())
    assert all(note in text for note, text in zip(notes, found.info.notes, strict=True))


def test_float_images_have_the_mean_and_std_of_their_pixels(given):
    info = data.dataset_info(name := given(PIXELS / 255, LABELS))
    kept = (PIXELS / 255)[sources.read(name, "train").index]
    assert info.mean == pytest.approx(kept.mean((0, 1, 2)), abs=1e-4)
    assert info.std == pytest.approx(kept.std((0, 1, 2)), abs=1e-4)


def test_bytes_in_one_split_and_fractions_in_the_other_are_all_divided_by_255(tmp_path):
    name = npz_file(tmp_path / "a.npz", **keras_names(test=(TEST[0] * 0.5, TEST[1])))
    np.testing.assert_array_equal(
        data.load(name, "train", validation=0).images, TRAIN[0].astype("f4") / np.float32(255)
    )
    np.testing.assert_array_equal(data.load(name).images, (TEST[0] * 0.5).astype("f4") / np.float32(255))
    assert data.load(name, "all").images.dtype == np.float32
    assert data.dataset_info(name).notes == (
        "x_train: uint8 pixels, divided by 255", "x_test: float64 pixels of 0 to 255, divided by 255"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("images", "flag"),
    [
        (BITS, "0 or 1 of 255"),
        (BITS.astype(np.int32), "0 or 1 of 255"),
        ((PIXELS / 255).astype(np.uint8), "cast to whole numbers"),
        (PIXELS * 0, "all pixels are 0"),
        (PIXELS * 0 + 255, "all pixels are 255"),
        (PIXELS / 255 / 255, "divided by 255 twice"),
        (PIXELS // 16, "no pixel exceeds 15 of 255"),
        ((PIXELS // 16).astype(np.float64), "no pixel exceeds 15 of 255"),
    ],
)
def test_images_that_are_nearly_black_are_flagged(given, images, flag):
    (found,) = data.dataset_info(given(images, LABELS)).flags
    assert flag in found


NAN = np.where(np.arange(30)[:, None, None, None] == 7, np.nan, PIXELS / 255)


@pytest.mark.parametrize(
    ("images", "fragments"),
    [
        (PIXELS.transpose(0, 3, 1, 2), ["[30, 3, 8, 8]", "x.transpose(0, 2, 3, 1)"]),
        (np.concatenate([PIXELS, PIXELS[..., :1]], -1), ["[30, 8, 8, 4]", "x[..., :3]"]),
        (PIXELS[..., :2], ["[30, 8, 8, 2]", "x[..., :1]"]),
        (PIXELS[..., 0].reshape(30, 64), ["[30, 64]", "x.reshape(-1, 8, 8)"]),
        (PIXELS[:, None], ["[30, 1, 8, 8, 3]"]),
        (np.uint8(3), ["received []"]),
        (PIXELS[:0], ["[0, 8, 8, 3]", "no images in it"]),
        (PIXELS[:, :0], ["[30, 0, 8, 3]"]),
        (PIXELS[:29], ["29 images", "30 labels"]),
        (PIXELS[0], ["8 images", "30 labels"]),
        (PIXELS / 127.5 - 1, ["float64 from -1 to 1", "scaled to [-1, 1] or standardized", "--input-scale"]),
        ((PIXELS / 255 - 0.5) / 0.3, ["standardized"]),
        (PIXELS / 255 - 0.01, ["from -0.01 to 0.99", "negative"]),
        (PIXELS / 100, ["from 0 to 2.55, which is neither"]),
        (PIXELS * 1.1, ["from 0 to 280.5"]),
        (PIXELS.astype(np.int16) - 128, ["int16 from -128 to 127"]),
        (PIXELS.astype(np.uint16) * 257, ["uint16 from 0 to 65535", "np.uint8(x // 257)"]),
        (NAN, ["image 7 has NaN"]),
        (np.where(NAN < 0.5, 1.0, np.inf), ["NaN or infinite"]),
        (PIXELS.astype(complex), ["received complex128"]),
        (PIXELS.astype(str), ["received <U"]),
    ],
)  # fmt: skip
def test_images_that_are_none_are_refused(given, images, fragments):
    with pytest.raises(UsageError) as error:
        data.dataset_info(given(images, LABELS))
    assert "\n" not in str(error.value)
    for fragment in fragments:
        assert fragment in str(error.value)


# ---------------------------------------------------------------- labels


ONE_HOT = np.eye(3)[LABELS]
TEXT = np.array(CLASSES)[LABELS]


@pytest.mark.parametrize(
    ("labels", "names", "classes", "notes"),
    [
        (LABELS, None, "012", []),
        (LABELS[:, None].astype(np.int64), None, "012", []),
        (LABELS.astype(np.float32), None, "012", []),
        (LABELS.astype(np.uint64)[:, None] * 1.0, CLASSES, CLASSES, []),
        (ONE_HOT, None, "012", ["one-hot rows of 3 classes"]),
        (ONE_HOT.astype(bool), None, "012", ["one-hot"]),
        (ONE_HOT.astype(np.int8), CLASSES, CLASSES, ["one-hot"]),
        (np.eye(5, dtype=np.float16)[LABELS], None, "01234", ["one-hot rows of 5 classes"]),
        (TEXT, CLASSES, CLASSES, []),
        (TEXT[:, None], CLASSES, CLASSES, []),
        (TEXT.astype("S"), [b"ant", b"bee", b"cat", b"dog"], [*CLASSES, "dog"], []),
        (TEXT, None, CLASSES, ["alphabetical order: ant, bee and cat"]),
        (LABELS.astype(str), None, "012", ["numbers written as text"]),
        (LABELS.astype(str), CLASSES, CLASSES, ["numbers written as text"]),
    ],
)
def test_labels_of_every_type_are_brought_to_class_numbers(given, labels, names, classes, notes):
    found = data.load(given(PIXELS, labels, names), "all")
    assert found.labels.dtype == np.int32
    assert found.labels.tolist() == LABELS.tolist()
    assert found.info.classes == tuple(classes)
    assert (len(found.info.notes), found.info.flags) == (len(notes), ())
    assert all(note in text for note, text in zip(notes, found.info.notes, strict=True))


def test_names_of_classes_give_their_order(given):
    found = data.load(given(PIXELS, TEXT, ["cat", "ant", "bee"]), "all")
    assert found.labels.tolist() == [[1, 2, 0][label] for label in LABELS]


def test_true_and_false_are_two_classes(given):
    found = data.load(given(PIXELS, LABELS == 1), "all")
    assert (found.labels.tolist(), found.info.classes) == ((LABELS == 1).astype(int).tolist(), ("0", "1"))


def test_evaluation_needs_no_example_of_every_class_but_training_does(given):
    name = given(PIXELS, LABELS * 2)
    found = data.load(name, "all")
    assert (found.labels.tolist(), found.info.classes) == ((LABELS * 2).tolist(), tuple("01234"))
    for ask in (data.load_training_data, lambda options, _: data.load_whole_training_set(options)):
        with pytest.raises(UsageError, match="training labels of every class 0 to 4, none is 1"):
            ask(config.Data(name=name, validation=2), "train")


def test_labels_of_the_training_split_are_those_that_training_needs(tmp_path):
    name = npz_file(tmp_path / "a.npz", **keras_names(test=(TEST[0], TEST[1] + 1)))
    assert data.load(name).labels.tolist() == (TEST[1] + 1).tolist()
    with pytest.raises(UsageError, match=r"a\.npz: .*every class 0 to 3, none is 3"):
        data.load_training_data(config.Data(name=name, validation=2), "train")


def test_training_takes_square_images_of_two_classes(given):
    options = config.Data(name=given(PIXELS[:, :6], LABELS), validation=2)
    with pytest.raises(UsageError, match="square images, received 6x8"):
        data.load_training_data(options, "train")
    with pytest.raises(UsageError, match="every class 0 to 1, none is 1"):
        data.load_training_data(config.Data(name=given(PIXELS, LABELS * 0), validation=2), "train")


def test_labels_that_count_from_1_are_flagged(given):
    assert "subtract 1" in data.dataset_info(given(PIXELS, LABELS + 1)).flags[0]
    assert data.dataset_info(given(PIXELS, LABELS + 1, ["none", *CLASSES])).flags == ()


def test_a_label_that_marks_images_without_a_class_is_flagged(given):
    labels = np.where(np.arange(30) < 2, 255, LABELS)
    assert "the label 255 is far from the others, 0 to 2" in data.dataset_info(given(PIXELS, labels)).flags[0]


@pytest.mark.parametrize(
    ("labels", "names", "fragments"),
    [
        (LABELS * 0.5, None, ["whole numbers", "label 1 is 0.5"]),
        (np.where(LABELS == 1, np.nan, LABELS), None, ["label 1 is nan"]),
        (LABELS.astype(int) - 1, None, ["class numbers of 0 to K-1", "-1 to 1"]),
        (np.where(LABELS == 1, -1, 1), None, ["-1 to 1", "(y + 1) // 2"]),
        (np.full(30, 2**31), None, ["2147483648"]),
        (LABELS.astype(int) * 10**6, None, ["0 to 2000000"]),
        (LABELS[:1], None, ["1 labels"]),
        (np.where(ONE_HOT == 1, 0.9, 0.05), None, ["one-hot", "row 0 holds 0.9"]),
        (ONE_HOT * 2, None, ["row 0 holds 2"]),
        (np.maximum(ONE_HOT, np.eye(3)[0]), None, ["row 1 has 2 ones", "one class"]),
        (ONE_HOT * (LABELS != 2)[:, None], None, ["row 2 has 0 ones"]),
        (ONE_HOT[:, :, None], None, ["[30, 3, 1]"]),
        (LABELS[:0], None, ["received [0]"]),
        (LABELS[:29], None, ["30 images", "29 labels"]),
        (LABELS.astype(complex), None, ["complex"]),
        (np.stack([TEXT, TEXT], 1), None, ["text [30, 2]"]),
        (TEXT, ["ant", "bees", "cat"], ["does not name the label 'bee'", "'bees'"]),
        (LABELS, CLASSES[:2], ["classes names 0 to 1", "a label 2"]),
        (ONE_HOT, CLASSES[:2], ["classes names 0 to 1", "3 one-hot columns"]),
        (LABELS, ["ant", "bee", "ant"], ["'ant' is there twice"]),
        (LABELS, np.arange(3), ["classes: expected names [K]"]),
        (LABELS, [CLASSES], ["classes: expected names [K]"]),
    ],
)  # fmt: skip
def test_labels_that_are_none_are_refused(given, labels, names, fragments):
    with pytest.raises(UsageError) as error:
        data.dataset_info(given(PIXELS, labels, names))
    assert "\n" not in str(error.value)
    for fragment in fragments:
        assert fragment in str(error.value)


# ---------------------------------------------------------------- memory


def test_arrays_in_memory_are_named_by_their_content():
    name = data.register(PIXELS, LABELS)
    kind, _, digest = name.partition(":")
    assert (kind, len(digest), data.is_user_data(name)) == ("arrays", 12, True)
    assert data.canonical_name(name) == data.dataset_info(name).name == name
    assert data.with_digest(config.Data(name=name)).canonical == name
    assert data.prepare(name) == data.dataset_info(name)
    assert data.register(PIXELS.copy(), ONE_HOT) == data.register(PIXELS.astype(int), LABELS.tolist()) == name
    others = [(PIXELS[::-1], LABELS), (PIXELS / 255, LABELS), (PIXELS, LABELS[::-1]), (PIXELS, LABELS, CLASSES)]
    assert len({name, *(data.register(*other) for other in others)}) == 5


def test_arrays_in_memory_are_neither_copied_nor_locked():
    pixels = PIXELS.copy()
    found = data.load(data.register(pixels, LABELS), "all")
    assert np.shares_memory(found.images, pixels)
    assert not found.images.flags.writeable
    pixels[0] = 0  # still the caller's own


def test_what_numpy_makes_an_array_of_is_taken():
    tf = backend.tensorflow()
    name = data.register(PIXELS, LABELS)
    assert data.register(tf.constant(PIXELS), tf.constant(LABELS)) == name
    assert data.register(list(PIXELS), [int(label) for label in LABELS]) == name
    assert data.register(PIXELS, np.array([int(label) for label in LABELS], object)) == name
    found = data.load(data.register(tf.constant(BITS, tf.bfloat16), tf.one_hot(LABELS, 3)), "all")
    np.testing.assert_array_equal(found.images, BITS.astype(np.float32))
    assert found.labels.tolist() == LABELS.tolist()


@pytest.mark.parametrize("given", [[PIXELS[0], PIXELS[1, :4]], None, {"a": 1}, object()])
def test_what_is_no_array_is_refused(given):
    with pytest.raises(UsageError, match="images: expected an array"):
        data.register(given, LABELS)


def test_one_image_needs_its_axis():
    with pytest.raises(
        UsageError, match=r"8 images .* 1 labels, expected as many; of one image make images by x\[None\]"
    ):
        data.register(PIXELS[0], [1])
    assert data.load(data.register(PIXELS[0][None], [1]), "all").labels.tolist() == [1]


def test_arrays_that_are_not_held_are_refused():
    name = data.register(PIXELS, LABELS)
    data.release(name)
    data.release(name)
    refused(name, f"{name}: expected arrays in memory", "np.savez")


def test_the_arrays_that_were_used_last_are_held():
    first, second = (data.register(PIXELS, labels) for labels in (LABELS, LABELS[::-1]))
    for label in range(in_memory.HELD - 1):
        data.dataset_info(first)
        data.register(PIXELS, np.full(30, label))
    assert data.load(first, "all").labels.tolist() == LABELS.tolist()
    refused(second, f"{second}: expected arrays in memory")


def test_messages_name_no_digest():
    name = data.register(PIXELS, LABELS)
    for options in ({"split": "all", "limit": 31}, {"split": "validation", "validation": 0}):
        with pytest.raises(UsageError, match=r"^arrays in memory: "):
            data.load(name, **options)


# ---------------------------------------------------------------- names of classes


def named(labels=LABELS, classes=CLASSES):
    return data.load(data.register(PIXELS, labels, classes), "all")


def test_labels_come_in_the_order_of_the_model():
    found = data.with_class_names(named(), ["dog", "cat", "ant", "bee"], "names.txt")
    assert found.labels.dtype == np.int32
    assert found.labels.tolist() == [[2, 3, 1][label] for label in LABELS]
    assert found.info.classes == ("dog", "cat", "ant", "bee")
    assert found.images is named().images or (found.images == PIXELS).all()


def test_numbers_only_get_names():
    found = data.with_class_names(named(classes=None), ["x", "y", "z", "w"], "names.txt")
    assert (found.labels.tolist(), found.info.classes) == (LABELS.tolist(), ("x", "y", "z", "w"))
    with pytest.raises(UsageError, match=r"has classes 0 to 2, names\.txt names 2"):
        data.with_class_names(named(classes=None), ["x", "y"], "names.txt")


def test_folders_named_by_numbers_are_looked_up():
    classes = ["0", "10", "2"]
    found = named(classes=classes)
    assert "not of the numbers" in found.info.notes[0]
    found = data.with_class_names(found, [str(number) for number in range(11)], "names.txt")
    assert found.labels.tolist() == [[0, 10, 2][label] for label in LABELS]


IMAGENET = {"0": ["n1", "crane"], "1": ["n2", "tench"], "2": ["n3", "crane"]}


def test_either_of_two_names_is_matched():
    names = tuple(tuple(pair) for pair in IMAGENET.values())
    found = data.with_class_names(named(classes=["n3", "tench", "n1"]), names, "index.json")
    assert found.labels.tolist() == [[2, 1, 0][label] for label in LABELS]
    assert found.info.classes == ("n1/crane", "tench", "n3/crane")
    with pytest.raises(UsageError, match=r"class 'crane' is ambiguous: in index\.json it is class 0 and 2"):
        data.with_class_names(named(classes=["crane", "tench", "n1"]), names, "index.json")
    with pytest.raises(UsageError, match="'tench' and 'n2' are one class"):
        data.with_class_names(named(classes=["tench", "n2", "n1"]), names, "index.json")


def test_a_class_that_the_model_has_not_is_refused_with_the_nearest():
    with pytest.raises(
        UsageError, match=r"class 'bee' is not in names\.txt, which names 3 classes; did you mean 'bees'"
    ):
        data.with_class_names(named(), ["ant", "bees", "cat"], "names.txt")
    with pytest.raises(UsageError, match="did you mean 'ANT'"):
        data.with_class_names(named(), ["ANT", "BEE", "CAT"], "names.txt")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("ant\nbee\n", [["ant"], ["bee"]]),
        ("\ufeffant \r\n New York\r\n\r\n", [["ant"], ["New York"]]),
        (json.dumps(["ant", "bee"]), [["ant"], ["bee"]]),
        (json.dumps({"1": "bee", "0": "ant"}), [["ant"], ["bee"]]),
        (json.dumps({"bee": 1, "ant": 0}), [["ant"], ["bee"]]),
        (json.dumps({"0": 0, "1": 1, "10": 2}), [["0"], ["1"], ["10"]]),
        (json.dumps(IMAGENET), [["n1", "crane"], ["n2", "tench"], ["n3", "crane"]]),
        (json.dumps([*IMAGENET.values()]), [["n1", "crane"], ["n2", "tench"], ["n3", "crane"]]),
    ],
)
def test_class_names_are_read_from_the_usual_files(tmp_path, content, expected):
    (tmp_path / "names").write_text(content, encoding="utf-8", newline="")
    assert data.read_class_names(tmp_path / "names") == tuple(map(tuple, expected))


@pytest.mark.parametrize(
    ("content", "fragments"),
    [
        (b"", ["two classes or more, received 0"]),
        (b"ant\n", ["received 1"]),
        (b"ant\n\nbee\n", ["line 2 is empty"]),
        (b"ant\nbee\nant\n", ["'ant' is both class 0 and 2"]),
        (b"\xff\xfe\x00", ["no text"]),
        (b"[\"ant\", ", ["no JSON"]),
        (b"[]", ["received 0"]),
        (b"[\"ant\", 3]", ["class 1 is 3"]),
        (b"[\"ant\", []]", ["class 1 is []"]),
        (b"{\"0\": \"ant\", \"2\": \"bee\"}", ["0 to 1, 1 is missing"]),
        (b"{\"ant\": 0, \"bee\": 0}", ["1 is missing"]),
        (b"{\"ant\": \"x\", \"bee\": \"y\"}", ["other keys or values"]),
        (b"{\"0\": {}, \"1\": null}", ["class 0 is {}"]),
    ],
)  # fmt: skip
def test_files_without_class_names_are_refused(tmp_path, content, fragments):
    path = tmp_path / "names.json"
    path.write_bytes(content)
    with pytest.raises(UsageError) as error:
        data.read_class_names(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    for fragment in fragments:
        assert fragment in message


def test_a_missing_file_of_class_names_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"names\.txt: No such file"):
        data.read_class_names(tmp_path / "names.txt")
    with pytest.raises(UsageError, match="a directory, not a file"):
        data.read_class_names(tmp_path)
