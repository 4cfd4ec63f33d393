"""ImageNet: its classes, its validation images side by side, files of labels, standard preprocessing, TFDS' records."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image

from bn_vuln import data
from bn_vuln.data import imagenet, transforms
from bn_vuln.data.images import LazyImages
from bn_vuln.errors import UsageError

CLASSES = ("cat", "dog", "cat", "emu")


def picture(seed, height=20, width=30):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def side_by_side(folder, names, table="", file="labels.csv"):
    for seed, name in enumerate(names):
        picture(seed).save(folder / name, "PNG")
    if table:
        (folder / file).write_text(table)
    return f"folder:{folder}"


def test_classes_are_the_wordnet_ids_in_order():
    assert (len(imagenet.classes()), imagenet.classes()[0], imagenet.classes()[-1]) == (1000, "n01440764", "n15075141")
    assert list(imagenet.classes()) == sorted(imagenet.classes())
    assert len(imagenet.validation_classes()) == 50_000
    counts = {name: imagenet.validation_classes().count(name) for name in imagenet.classes()[:5]}
    assert set(counts.values()) == {50}


def test_validation_images_side_by_side_have_their_published_classes(tmp_path):
    numbers = (1, 5, 293, 50_000)
    name = side_by_side(tmp_path, [f"ILSVRC2012_val_{number:08d}.JPEG" for number in numbers])
    found = data.load(name, "all")
    expected = [imagenet.validation_classes()[number - 1] for number in numbers]
    assert [found.info.classes[label] for label in found.labels[np.argsort(found.index)]] == sorted(expected)
    by_image = {found.images[i].tobytes(): found.info.classes[found.labels[i]] for i in range(4)}
    assert by_image == {np.asarray(picture(seed)).tobytes(): name for seed, name in enumerate(expected)}


@pytest.mark.parametrize(
    ("file", "lines"),
    [
        ("labels.csv", "file,class\n{}"),
        ("labels.csv", "{}"),
        ("labels.tsv", "{}"),
        ("labels.txt", "{}"),
    ],
)
def test_a_file_of_labels_gives_the_classes(tmp_path, file, lines):
    separator = {"labels.csv": ",", "labels.tsv": "\t", "labels.txt": " "}[file]
    names = ["a 1.png", "b.png", "c.png", "d.png"]
    rows = "\n".join(f"{name}{separator}{own}" for name, own in zip(names, CLASSES, strict=True))
    name = side_by_side(tmp_path, names, lines.format(rows) + "\n", file)
    found = data.load(name, "all")
    by_image = {found.images[i].tobytes(): found.info.classes[found.labels[i]] for i in range(4)}
    assert by_image == {np.asarray(picture(seed)).tobytes(): own for seed, own in enumerate(CLASSES)}


def test_other_labels_are_other_data(tmp_path):
    name = side_by_side(tmp_path, ["a.png", "b.png", "c.png"], "a.png,x\nb.png,y\nc.png,x\n")
    before = data.dataset_info(name).name
    (tmp_path / "labels.csv").write_text("a.png,x\nb.png,y\nc.png,y\n")
    assert data.dataset_info(name).name != before


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("a.png,x\n", r"b\.png: .*labels\.csv has no class for it"),
        ("a.png,x\nb.png,y\nz.png,x\n", "line 3: there is no image 'z.png' beside it"),
        ("a.png,x\nb.png\n", "line 2: expected FILE,CLASS, received 'b.png'"),
        ("a.png,x\nb.png,y\na.png,y\n", "line 3: a.png is of class 'x' in a line before"),
        ("a.png,x\nb.png,x\n", "two classes or more, received 1, x"),
        ("", "labels.csv"),
    ],
)
def test_what_is_wrong_with_labels_is_named(tmp_path, table, message):
    name = side_by_side(tmp_path, ["a.png", "b.png"], table)
    with pytest.raises(UsageError, match=message) as error:
        data.dataset_info(name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("height", "width"), [(300, 260), (200, 500), (224, 224), (256, 256), (31, 47)])
def test_standard_preprocessing_is_that_of_torchvision(tmp_path, height, width):
    # torchvision: Resize(256) makes the shorter side 256 and the longer int(256 longer / shorter); CenterCrop(224)
    # begins at round((side - 224) / 2). On PIL images both are Pillow's.
    image = picture(0, height, width)
    longer, shorter = max(height, width), min(height, width)
    sides = {shorter: 256, longer: 256 * longer // shorter}
    resized = image.resize((sides[width], sides[height]), Image.Resampling.BILINEAR)
    top, left = (round((side - 224) / 2) for side in (resized.height, resized.width))
    expected = np.asarray(resized.crop((left, top, left + 224, top + 224)))
    path = tmp_path / "image.png"
    image.save(path)
    lazy = LazyImages([path], np.array([[height, width]], np.int32), 3)
    np.testing.assert_array_equal(lazy.at((224, 224), "imagenet")[0], expected)
    pixels = transforms.resize_pixels(np.asarray(image)[None], 224, "imagenet")[0]
    assert np.abs(pixels - expected / 255).max() < 1.5 / 255  # Pillow rounds twice


# ---------------------------------------------------------------- TFDS' records


def varint(number):
    digits = bytearray()
    while number > 127:
        digits.append(number & 127 | 128)
        number >>= 7
    return bytes([*digits, number])


def message(number, content):
    return varint(number << 3 | 2) + varint(len(content)) + content


def record(image, label):
    """A tf.train.Example in TFRecord's frame; the checksums are not read."""
    features = b"".join(
        message(1, message(1, key) + message(2, value))
        for key, value in (
            (b"image", message(1, message(1, image))),
            (b"label", message(3, message(1, varint(label)))),
        )
    )
    content = message(1, features)
    return len(content).to_bytes(8, "little") + bytes(4) + content + bytes(4)


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """A made-up imagenet2012 as TFDS prepares it: JPEG images of several sizes in two files."""
    folder = tmp_path / "imagenet2012" / "5.1.0"
    folder.mkdir(parents=True)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    images, labels = [picture(seed, 40 + seed, 60 - seed) for seed in range(6)], [3, 999, 0, 3, 500, 7]
    for shard in range(2):
        own = []
        for image, label in list(zip(images, labels, strict=True))[shard::2]:
            file = io.BytesIO()
            image.save(file, "JPEG")
            own.append(record(file.getvalue(), label))
        (folder / f"imagenet2012-validation.tfrecord-0000{shard}-of-00002").write_bytes(b"".join(own))
    keys = {"tuple": {"items": [{"featureKey": "image"}, {"featureKey": "label"}]}}
    splits = [{"name": "validation", "shardLengths": ["3", "3"]}]
    info = {"name": "imagenet2012", "version": "5.1.0", "splits": splits, "supervisedKeys": keys}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    features = {
        "image": {"image": {"shape": {"dimensions": ["-1", "-1", "3"]}}},
        "label": {"classLabel": {"numClasses": "1000"}},
    }
    (folder / "features.json").write_text(json.dumps({"featuresDict": {"features": features}}))
    (folder / "label.labels.txt").write_text("\n".join(imagenet.classes()))
    return images, labels


def test_records_of_several_sizes_stay_in_their_files(prepared):
    images, labels = prepared
    found = data.load("imagenet2012", "test")
    assert isinstance(found.images, LazyImages)
    assert found.info.shape == (0, 0, 3)
    assert found.info.classes == imagenet.classes()
    assert tuple(found.info.mean) == (0.485, 0.456, 0.406)
    order = [0, 2, 4, 1, 3, 5]  # by file
    assert found.labels.tolist() == [labels[i] for i in order]
    assert found.images.native_sizes.tolist() == [[40 + i, 60 - i] for i in order]
    for place, i in enumerate(order):
        file = io.BytesIO()
        images[i].save(file, "JPEG")
        decoded = np.asarray(Image.open(file).convert("RGB"))
        np.testing.assert_array_equal(found.images[place], decoded)


def test_a_damaged_record_is_named(prepared, tmp_path):
    path = tmp_path / "imagenet2012/5.1.0/imagenet2012-validation.tfrecord-00001-of-00002"
    content = path.read_bytes()
    at = content.index(b"\xff\xd8\xff")
    path.write_bytes(content[:at] + bytes(50) + content[at + 50 :])
    with pytest.raises(
        UsageError, match=r"\.tfrecord-00001-of-00002: image 0: no PNG, JPEG.* prepare the data set again"
    ):
        data.load("imagenet2012", "test")
