"""Files that were made to leave their folder, to run code or to take the machine: refused in one line, and soon."""

import gzip
import io
import json
import resource
import struct
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest

from bn_vuln import config, data, records
from bn_vuln.config import grid, loading
from bn_vuln.errors import BnvulnError, ConfigError
from bn_vuln.evaluation.kept_parts import KeptParts
from bn_vuln.external.loading import load, load_keras
from bn_vuln.models import weight_files
from bn_vuln.records.folder import write_measurement
from bn_vuln.records.reading import ParsedArrays, parse_json
from bn_vuln.reporting import pages
from bn_vuln.runtime import backend, limits

SECONDS, MEMORY = 10, 2**29  # of a refusal, imports aside; bytes
EXPERIMENT = config.load_experiment(Path("configs/paper/table6.yaml"))


def written(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def npy(header, content=b""):
    text = f"{header}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + content


def array(shape, dtype="<f4"):
    return npy(f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}", bytes(16))


def archive(*members, method=zipfile.ZIP_STORED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as made:
        for name, content in members:
            made.writestr(name, content)
    return file.getvalue()


def png(width, height):
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


ZEROS = bytes(2**27)
LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{chr(ord(name) - 1)}'] * 9)}]\n" for name in "bcdefghi"
)
BOMB = archive(("x.npy", ZEROS), method=zipfile.ZIP_DEFLATED)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (LAUGHS, "values, with those that aliases stand for"),
        (f"a: &a {'x' * 100_000}\nb: [{'*a, ' * 1000}]", "values, with those that aliases stand for"),
        ("a: &a [*a]", "an alias stands in what it is an alias of"),
        ("a: " + "[" * 100_000 + "]" * 100_000, "nested too deeply"),
        ("\n".join(" " * i + "a:" for i in range(1000)), "nested too deeply"),
        (f"a: 0x{'f' * 10_000}", "a number of 10,002 characters"),
        (f"a: [{'x, ' * 150_000}]", "values, with those that aliases stand for"),
        ("a: " + "x" * 2**19, "expected at most 524,288"),
        ("".join(f"k{i}: 1\n" for i in range(10_000)) + "k1: 1", "the key 'k1' is there twice"),
        ("!!python/object/apply:os.system ['true']", "could not determine a constructor"),
    ],
)
def test_yaml(tmp_path, text, says):
    path = written(tmp_path / "a.yaml", text)
    with pytest.raises(ConfigError, match=says) as error:
        loading.read_yaml(path)
    assert str(error.value).startswith(f"{path}: ")
    assert len(str(error.value)) < 500
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("number", ["1e999999999", "1/1e-999999999", "9" * 100_000, "1e-999999999", "nan"])
def test_a_number_whose_exact_value_fills_the_memory(number):
    with pytest.raises(ConfigError, match=r"expected a number or a fraction") as error:
        config.validate(config.Attack, {"kind": "pgd", "eps": number}, "a")
    assert len(str(error.value)) < 500


def test_an_experiment_of_too_many_cells():
    many = EXPERIMENT.model_copy(update={"seeds": tuple(range(100_000))})
    with pytest.raises(ConfigError, match="expected at most 100,000 cells, received"):
        grid.expand(many)


def test_a_config_with_many_mistakes_lists_some(tmp_path):
    path = written(tmp_path / "a.yaml", "".join(f"key{i}: 1\n" for i in range(1000)))
    with pytest.raises(ConfigError) as error:
        config.load_experiment(path)
    assert len(str(error.value).splitlines()) <= 21


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "a/b", "", "a\n", "x" * 300, "..\\x"])
def test_the_name_of_an_experiment_is_no_path(tmp_path, name):
    """Reports are named by it, also those of a results folder that somebody else has made."""
    folder = tmp_path / "results"
    (folder / "experiments").mkdir(parents=True)
    text = config.to_yaml(EXPERIMENT.model_copy(update={"name": name}))
    written(folder / "experiments" / "a-full.yaml", text)
    with pytest.raises(ConfigError, match="name: expected letters, digits"):
        pages.write(folder, "csv")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a-full.yaml", "experiments", "results"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 101 + b"[" + b"]" + b"}" * 101, "nested too deeply"),
        (b'"' + b"x" * 2**24 + b'"', "expected at most 16,777,216"),
        (b"9" * 5000, "4300 digits"),
        (b"{" + b",".join(b'"%d": 1' % i for i in range(50_000)) + b', "7": 1}', "the key '7' twice"),
    ],
)
def test_json(text, says):
    with pytest.raises(ValueError, match=says):
        parse_json(text)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (BOMB, "expand to 134,217,728"),
        (archive(("x.npy", array((10**12,)))), r"are 4,000,000,000,000 bytes, but 16 are there"),
        (archive(("x.npy", array((2**32, 2**32)))), "but 16 are there"),
        (archive(("x.npy", array((10**12,), "|S0"))), "but 16 are there"),
        (archive(("x.npy", array((2,), "<U100000000"))), "but 16 are there"),
        (archive(("x.npy", array((-4,)))), "but 16 are there"),
        (archive(("x.npy", npy("(" * 5000))), "EOF in multi-line statement"),
        (archive(("../x.npy", array((4,)))), "'../x.npy' is no plain name"),
        (archive(("/x.npy", array((4,)))), "'/x.npy' is no plain name"),
        (archive(("a\x1b[31m.npy", array((4,)))), "is no plain name"),
        (archive(("x.npy", array((4,))), method=zipfile.ZIP_LZMA), "neither stored nor deflated"),
    ],
)
def test_arrays(tmp_path, content, says):
    path = written(tmp_path / "a.npz", content)
    with pytest.raises(ValueError, match=says) as error:
        dict(ParsedArrays(path.read_bytes()))
    assert "\n" not in str(error.value)
    with pytest.raises(BnvulnError, match=r"a\.npz") as told:
        data.dataset_info(str(path))
    assert "\n" not in str(told.value)


def test_arrays_of_data_are_refused_by_their_headers(tmp_path):
    path = written(tmp_path / "a.npz", archive(("x.npy", array((10**12,))), ("y.npy", array((4,)))))
    with pytest.raises(BnvulnError, match="are 4,000,000,000,000 bytes, but 16 are there"):
        data.dataset_info(str(path))


def test_gzip():
    assert limits.gunzip(gzip.compress(b"a,b\n")) == b"a,b\n"
    with pytest.raises(ValueError, match="bytes expand to"):
        limits.gunzip(gzip.compress(ZEROS))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[" * 100_000, "nested too deeply"),
        (json.dumps({"9" * 5000: "a", "1": "b"}), "received other keys"),
        ("x" * (2**24 + 1), "expected at most 16,777,216"),
    ],
)
def test_names_of_classes(tmp_path, text, says):
    with pytest.raises(BnvulnError, match=says):
        data.read_class_names(written(tmp_path / "a.json", text))


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ("../secret.png,a\n", r"there is no image '\.\./secret\.png' beside it"),
        ("a.png,x\n/etc/passwd,a\n", "there is no image '/etc/passwd' beside it"),
        ("a.png,x\n" + " " * 100_000 + "b c d", "received 100,005 characters"),
    ],
)
def test_a_file_of_labels(tmp_path, table, says):
    folder = tmp_path / "images"
    folder.mkdir()
    written(tmp_path / "secret.png", png(8, 8))
    written(folder / "a.png", png(8, 8))
    written(folder / "labels.csv", table)
    with pytest.raises(BnvulnError, match=says):
        data.dataset_info(f"folder:{folder}")


@pytest.mark.parametrize("size", [(100_000, 100_000), (12_000, 12_000), (5_000, 5_000)])
def test_an_image_that_declares_far_more_pixels_than_it_has_bytes(tmp_path, size):
    for name in "ab":
        (tmp_path / name).mkdir()
        written(tmp_path / name / "1.png", png(*size))
    with pytest.raises(BnvulnError, match=r"1\.png: .*(made to fill the memory|bytes expand to)"):
        data.dataset_info(f"folder:{tmp_path}")


# ---------------------------------------------------------------- models


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    backend.start()
    import keras

    path = tmp_path_factory.mktemp("model") / "model.keras"
    keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(2)]).save(path)
    with zipfile.ZipFile(path) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


def changed_weights(content, change):
    import h5py

    file = io.BytesIO(content)
    with h5py.File(file, "r+") as opened:
        change(opened)
    return file.getvalue()


def external(opened):
    opened.create_dataset("x", (4,), "u1", external=[("/etc/passwd", 0, 4)])


def linked(opened):
    import h5py

    opened["x"] = h5py.ExternalLink("/etc/passwd", "/")


def wide(config):
    return config.replace(b'"units": 2', b'"units": 200000000')


def nested(config):
    return config.replace(b'"units": 2', b'"units": ' + b"[" * 500 + b"]" * 500)


CONFIGS = {"wide": (wide, "far more weights than"), "nested": (nested, "nested too deeply")}
CONFIGS["objects"] = (lambda config: config.replace(b'"units"', b'"class_name": 1, ' * 10_001 + b'"units"'), "objects")
WEIGHTS = {
    "external": (external, "no array of numbers in this file"),
    "linked": (linked, "a link to another place"),
    "declared": (lambda opened: opened.create_dataset("x", (10**6, 10**6), chunks=(100, 100)), "expand to"),
    "packed": (lambda opened: opened.create_dataset("x", data=np.zeros(2**24), compression="gzip"), "expand to"),
    "chunk": (lambda o: o.create_dataset("x", (1,), maxshape=(None,), chunks=(2**28,)), "expand to"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_architecture_of_a_model(tmp_path, model, name):
    change, says = CONFIGS[name]
    members = {**model, "config.json": change(model["config.json"])}
    assert members["config.json"] != model["config.json"]
    path = written(tmp_path / "a.keras", archive(*members.items()))
    refused_model(path, says)


@pytest.mark.parametrize("name", WEIGHTS)
def test_the_weights_of_a_model(tmp_path, model, name):
    change, says = WEIGHTS[name]
    weights = changed_weights(model["model.weights.h5"], change)
    refused_model(written(tmp_path / "a.keras", archive(*{**model, "model.weights.h5": weights}.items())), says)


@pytest.mark.parametrize(
    ("member", "says"),
    [(("../x", b""), "'../x' is no plain name"), (("assets/../../x", b""), "is no plain name"),
     (("assets/x", ZEROS), "expand to")],
)  # fmt: skip
def test_the_archive_of_a_model(tmp_path, model, member, says):
    refused_model(written(tmp_path / "a.keras", archive(*model.items(), member, method=zipfile.ZIP_DEFLATED)), says)


def refused_model(path, says):
    begun, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for read in (load, load_keras):
        with pytest.raises(BnvulnError, match=says) as error:
            read(path)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)
    assert time.monotonic() - begun < SECONDS
    assert 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) < MEMORY


def test_a_whole_model_is_read(tmp_path, model):
    path = written(tmp_path / "a.keras", archive(*model.items()))
    assert load(path).model.count_params() == 34
    assert limits.check_model(path) == 34 * 4


def test_a_model_of_huge_images(tmp_path):
    backend.start()
    import keras

    pooling, dense = keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(2)
    model = keras.Sequential([keras.Input((10**6, 10**6, 1)), pooling, dense])
    model.save(tmp_path / "a.keras")
    with pytest.raises(BnvulnError, match=r"a\.keras: for one image the values of .* take 4,000.0 GB at once"):
        load(tmp_path / "a.keras")


def test_weights_of_a_net(tmp_path):
    path = written(tmp_path / "a.safetensors", struct.pack("<Q", 2**60) + b"{}")
    with pytest.raises(BnvulnError, match=r"a\.safetensors: no readable \.safetensors file"):
        weight_files.read(path)
    path = written(tmp_path / "a.pth", BOMB)
    with pytest.raises(BnvulnError, match=r"a\.pth: .* bytes expand to"):
        weight_files.read(path)


# ---------------------------------------------------------------- folders


def test_measured_files_are_removed_from_the_run_folder_alone(tmp_path):
    """A folder of another person may be a link to one of yours."""
    outside = tmp_path / "mine"
    outside.mkdir()
    written(outside / "letter.txt", "dear")
    (tmp_path / "run").mkdir()
    for name in ("records", "outcomes", "measurements", "parts"):
        (tmp_path / "run" / name).symlink_to(outside)
    with pytest.raises(BnvulnError, match="run/records: a link, and files are written into the run folder alone"):
        KeptParts(tmp_path / "run", {})
    with pytest.raises(BnvulnError, match="run/records: a link, and files are written into the run folder alone"):
        write_measurement(tmp_path / "run", None, {})
    assert [path.name for path in outside.iterdir()] == ["letter.txt"]
    records.clear_run(tmp_path / "run")
    assert (outside / "letter.txt").read_text() == "dear"
    assert not (tmp_path / "run" / "records").is_symlink()
