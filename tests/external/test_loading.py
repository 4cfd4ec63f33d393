"""Models that come in, and one line with the way on for those that do not."""

import json
import os
import re
import shutil
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest

from bn_vuln.errors import BnvulnError, UsageError
from bn_vuln.external import loading
from bn_vuln.external.identity import model_identity
from bn_vuln.external.loading import is_external, load
from bn_vuln.runtime import backend

tf = backend.tensorflow()
import keras  # noqa: E402
from keras import layers  # noqa: E402

IMAGES = np.random.default_rng(0).random((2, 4, 4, 3)).astype(np.float32)

CUSTOM = """
import keras
from keras.layers import Layer


class Scale(Layer):
    def __init__(self, factor=1.0, **options):
        super().__init__(**options)
        self.factor = factor

    def call(self, x):
        return x * self.factor

    def get_config(self):
        return {**super().get_config(), "factor": self.factor}


def cubed(x):
    return x**3
"""


def network(*begin):
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((4, 4, 3)), *begin, layers.Flatten(), layers.Dense(3)])


def refused(error, target, match, **options):
    with pytest.raises(error, match=match) as caught:
        load(target, **options)
    text = str(caught.value)
    assert "\n" not in text
    assert type(caught.value) is error
    assert Path(str(target)).name in text or "custom_objects" in options or "weights" in options
    return text


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    network().save("model.keras")
    return tmp_path


@pytest.fixture
def custom(folder):
    (folder / "custom.py").write_text(CUSTOM)
    space = {"__name__": "script"}
    exec(CUSTOM, space)
    return space


@pytest.mark.parametrize("file", ["model.keras", "model.h5", "model.hdf5", "unpacked"])
def test_files_of_keras(folder, file):
    model = network()
    model.compile("adam", "mse")
    if file == "unpacked":
        keras.saving.save_model(model, file, zipped=False)
    else:
        model.save(file)
    loaded = load(file)
    assert (loaded.source, loaded.path, loaded.input_scale) == (file, folder / file, None)
    assert not loaded.model.compiled
    np.testing.assert_array_equal(loaded.model(IMAGES), model(IMAGES))
    assert is_external(file)
    assert load(Path(file)).source == file


def test_a_model_in_memory_is_taken_as_it_is():
    model = network()
    loaded = load(model)
    assert loaded.model is model
    assert (loaded.path, loaded.source) == (None, f"Sequential '{model.name}'")


def write(name, content):
    Path(name).write_bytes(content)
    return name


def test_damaged_files(folder):
    model = (folder / "model.keras").read_bytes()
    network().save("model.h5")
    changed = bytearray(model)
    changed[len(model) // 2] ^= 255
    refused(BnvulnError, write("empty.keras", b""), "is empty")
    refused(BnvulnError, write("cut.keras", model[: len(model) // 2]), "damaged or cut off")
    refused(BnvulnError, write("changed.keras", bytes(changed)), r"damaged: model\.weights\.h5 inside it")
    refused(BnvulnError, write("cut.h5", Path("model.h5").read_bytes()[:2000]), "truncated file")
    for name in ("noise.keras", "noise.h5"):
        refused(BnvulnError, write(name, b"\1" * 99), "not a model file of Keras, or damaged")


def repacked(name, **changes):
    """model.keras with other members; None leaves one out."""
    with zipfile.ZipFile("model.keras") as old, zipfile.ZipFile(name, "w") as new:
        for member in old.namelist():
            content = changes.get(member.partition(".")[0], old.read(member))
            if content is not None:
                new.writestr(member, content)
    return name


@pytest.mark.usefixtures("folder")
def test_archives_that_lack_something():
    refused(UsageError, repacked("a.keras", config=None), r"no config\.json inside")
    refused(BnvulnError, repacked("b.keras", model=None), "Keras cannot load it")
    refused(BnvulnError, repacked("c.keras", config=b"{"), "refused, or damaged: Expecting property name")
    newer = json.dumps({"keras_version": "99.0.0"}).encode()
    with zipfile.ZipFile("model.keras") as archive:
        config = archive.read("config.json").replace(b'"Dense"', b'"Denser"')
    refused(
        BnvulnError, repacked("d.keras", metadata=newer, config=config), "saved by Keras 99.0.0, this is .*: update"
    )
    assert load(repacked("e.keras", metadata=newer)).model.built


def test_files_of_another_kind(folder):
    network().save("model.h5")
    network().save_weights("model.weights.h5")
    network().export("graph", verbose=False)
    shutil.copy("model.h5", "hdf5.keras")
    shutil.copy("model.keras", "zip.h5")
    shutil.copy("model.weights.h5", "weights.h5")
    shutil.copy("model.keras", "MODEL.KERAS")
    np.savez("arrays.npz", x=1)
    os.mkfifo("pipe.keras")
    (folder / "empty").mkdir()
    for name, says in {
        "none.keras": "no such file",
        "hdf5.keras": r"an HDF5 file; rename it to hdf5\.h5",
        "zip.h5": r"a zip archive, not HDF5; rename it to zip\.keras",
        "model.weights.h5": r"weights without the architecture.* --weights model\.weights\.h5",
        "weights.h5": r"weights without the architecture.* --weights weights\.h5",
        "MODEL.KERAS": r"rename it to MODEL\.keras",
        "graph": r"SavedModel.*TFSMLayer\('graph', call_endpoint='serve'\)",
        "graph/saved_model.pb": "TFSMLayer",
        "arrays.npz": r"expected a \.keras or \.h5 file",
        "pipe.keras": "not a regular file",
        "empty": "received a folder without either",
    }.items():
        refused(UsageError, name, says)
    for suffix, says in {
        ".tflite": "no gradients",
        ".onnx": "onnx2tf",
        ".pt": "PyTorch",
        ".pth": "PyTorch",
        ".safetensors": "without the architecture",
        ".pkl": "pickled",
    }.items():
        refused(UsageError, write(f"model{suffix}", b"x"), says)
        assert is_external(f"model{suffix}")
    assert is_external("graph")
    assert not is_external("empty")
    assert not is_external("runs/none")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(folder):
    (folder / "model.keras").chmod(0)
    refused(UsageError, "model.keras", "Permission denied")


def test_a_file_that_cannot_be_read(folder, monkeypatch):
    def fail(self, *args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", fail)
    refused(UsageError, "model.keras", r"cannot be read \(Permission denied\)")


def test_the_way_that_the_line_about_a_saved_model_says(folder):
    model = network()
    model.export("graph", verbose=False)
    wrapped = keras.Sequential([keras.Input((4, 4, 3)), layers.TFSMLayer("graph", call_endpoint="serve")])
    wrapped.save("wrapped.keras")
    refused(
        UsageError, "wrapped.keras", r"SavedModel \(TFSMLayer\), so loading it runs code.*--custom-objects FILE\.py"
    )
    (folder / "any.py").write_text("")
    loaded = load("wrapped.keras", custom_objects="any.py").model
    x = tf.constant(IMAGES)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(x)
        outputs = loaded(x), model(x)
    np.testing.assert_allclose(outputs[0], outputs[1], atol=1e-6)
    np.testing.assert_allclose(tape.gradient(outputs[0], x), tape.gradient(outputs[1], x), atol=1e-6)


@pytest.mark.parametrize("file", ["model.keras", "model.h5"])
@pytest.mark.parametrize("kind", ["layer", "activation"])
def test_custom_objects_by_file_and_by_name(custom, kind, file):
    begin = custom["Scale"](2.0) if kind == "layer" else layers.Conv2D(2, 3, activation=custom["cubed"])
    name = "Scale" if kind == "layer" else "cubed"
    model = network(begin)
    model.save(file)
    text = refused(UsageError, file, f"Keras does not know {name}; give the Python file")
    assert "--custom-objects FILE.py, which runs that file" in text
    refused(UsageError, file, f"Keras does not know {name}; the file of --custom-objects does not", custom_objects={})
    for objects in ("custom.py", {name: custom[name]}):
        loaded = load(file, custom_objects=objects)
        np.testing.assert_array_equal(loaded.model(IMAGES), model(IMAGES))
        assert model_identity(loaded.model) == model_identity(model)
    assert load(file, custom_objects="custom.py").custom_objects == Path("custom.py")


@pytest.mark.parametrize("file", ["model.keras", "model.h5"])
def test_a_class_that_is_registered_in_the_script_alone(custom, file):
    scale = keras.saving.register_keras_serializable(package="script")(custom["Scale"])
    try:
        network(scale(2.0)).save(file)
    finally:
        del keras.saving.get_custom_objects()["script>Scale"]
    assert load(file, custom_objects="custom.py").model(IMAGES).shape == (2, 3)


@pytest.mark.parametrize("file", ["model.keras", "model.h5"])
def test_lambdas_need_the_permission_to_run_code(folder, file):
    model = network(layers.Lambda(lambda x, power=2: tf.nn.relu(x - OFFSET) ** power))
    model.save(file)
    text = refused(UsageError, file, "it holds a Python lambda, so loading it runs code from the file")
    assert "--custom-objects FILE.py" in text
    refused(UsageError, file, "lambda in it refers to OFFSET: import or define this", custom_objects={})
    (folder / "offset.py").write_text(f"OFFSET = {OFFSET}\n")
    np.testing.assert_array_equal(load(file, custom_objects="offset.py").model(IMAGES), model(IMAGES))


OFFSET = 0.25


def test_lambdas_that_keras_cannot_load(folder):
    network(layers.Dense(2, activation=lambda x: x * 2)).save("model.keras")
    refused(BnvulnError, "model.keras", "an activation that is a lambda: save it as a named function")


@pytest.mark.parametrize("function", [lambda x: x * 0.5, lambda x: x / 2.0, lambda x: x[..., ::-1]])
def test_operations_are_lost_in_h5(folder, function):
    image = keras.Input((4, 4, 3))
    keras.Model(image, layers.Flatten()(function(image))).save("model.h5")
    refused(BnvulnError, "model.h5", r"does not keep operations between layers.*model\.save\('model\.keras'\)")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.py", b"import keras\n\n1 / 0\n", r"a\.py, line 3: ZeroDivisionError"),
        ("b.py", b"x = 1\ndef f(:\n", r"b\.py, line 2: SyntaxError"),
        ("c.py", b"import no_such_module\n", r"c\.py, line 1: ModuleNotFoundError"),
        ("d.py", b"import sys\nsys.exit(3)\n", r"d\.py, line 2: SystemExit: 3"),
        ("e.py", b"def f():\n    raise ValueError('a\\nb')\n\n\nf()\n", r"e\.py, line 2: ValueError: a b"),
        ("f.py", b"\0", r"f\.py: SyntaxError"),
        ("g.txt", b"x = 1", r"g\.txt: expected a Python file"),
    ],
)
def test_mistakes_in_the_file_of_custom_objects(folder, name, content, says):
    error = UsageError if name.endswith("txt") else BnvulnError
    refused(error, "model.keras", says, custom_objects=write(name, content))


def test_a_file_of_custom_objects_that_is_not_there(folder):
    refused(UsageError, "model.keras", r"--custom-objects none\.py: no such file", custom_objects="none.py")
    refused(UsageError, "model.keras", r"--custom-objects \.: is a folder", custom_objects=".")


@pytest.mark.usefixtures("folder")
def test_weights_that_the_file_lacks_are_an_error(monkeypatch):
    """Keras only warns of some."""

    def load_model(path, **options):
        warnings.warn("Affected layers will retain their freshly-initialized weights.", stacklevel=1)
        return network()

    monkeypatch.setattr(keras.saving, "load_model", load_model)
    refused(BnvulnError, "model.keras", "some of its weights are not in the file")


def test_several_inputs_and_no_weights(folder):
    image, age = keras.Input((4,), name="image"), keras.Input((2,), name="age")
    keras.Model([image, age], layers.Concatenate()([image, age])).save("two.keras")
    refused(UsageError, "two.keras", "expected one input, an image; it has 2: image, age")
    keras.Sequential([layers.Dense(3)]).save("unbuilt.keras")
    refused(UsageError, "unbuilt.keras", "never called")
    refused(UsageError, "model.keras", "--weights is for keras.applications:NAME", weights="imagenet")


@pytest.mark.parametrize("target", [None, 3, layers.Dense(3), tf.Module(), len])
def test_other_objects_are_no_models(target):
    with pytest.raises(UsageError, match="expected a Keras model or the path of one, received"):
        load(target)


# keras.applications


@pytest.fixture
def stand_in(monkeypatch):
    """Replace a function of keras.applications."""

    def replace(name, function):
        function.__module__ = getattr(keras.applications, name).__module__
        monkeypatch.setattr(keras.applications, name, function)

    return replace


def test_preprocessing_is_that_of_each_module():
    image = np.random.default_rng(0).uniform(0, 255, (1, 5, 5, 3)).astype(np.float32)
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    true = {
        "0-255": image,
        "tf": image / 127.5 - 1,
        "torch": (image / 255 - mean) / std,
        "caffe": image[..., ::-1] - [103.939, 116.779, 123.68],
    }
    for module, mode in loading.PREPROCESSING.items():
        received = getattr(keras.applications, module).preprocess_input(image.copy())
        np.testing.assert_allclose(received, true[mode], rtol=1e-5, atol=1e-4, err_msg=module)
    named = {name for name in dir(keras.applications) if name[0].isupper()}
    assert loading.applications().keys() == named


def test_a_model_of_keras_applications(stand_in):
    build = keras.applications.MobileNetV2
    stand_in("MobileNetV2", lambda **options: build(alpha=0.35, input_shape=(32, 32, 3), **options))
    loaded = load("keras.applications:MobileNetV2", weights="none", classes=7)
    assert (loaded.model.output_shape, loaded.input_scale, loaded.path) == ((None, 7), "tf", None)
    assert is_external(loaded.source)


@pytest.mark.parametrize("name", ["own.weights.h5", "own.h5", "own.keras"])
def test_weights_by_file(stand_in, tmp_path, name):
    def small(weights, classes):
        return keras.Sequential([keras.Input((4, 4, 3)), layers.Flatten(), layers.Dense(classes)])

    stand_in("VGG16", small)
    model, file = small(None, 7), tmp_path / name
    model.save_weights(file) if "weights" in name else model.save(file)
    loaded = load("keras.applications:VGG16", weights=file, classes=7)
    np.testing.assert_array_equal(loaded.model(IMAGES), model(IMAGES))
    assert (loaded.path, loaded.input_scale) == (file, "caffe")
    with pytest.raises(BnvulnError, match=re.escape(f"--weights {file}: not weights of") + ".* with 9 classes"):
        load("keras.applications:VGG16", weights=file, classes=9)


def test_weights_of_imagenet_that_are_not_there(stand_in, monkeypatch, tmp_path):
    def fail(*args, **kwargs):
        raise Exception("URL fetch failure on https://host/models/some_1.0_224.h5: None -- [Errno -2] Name not known")

    stand_in("MobileNetV2", fail)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    says = re.escape(
        f"not at {tmp_path}/models/some_1.0_224.h5, and https://host/models/some_1.0_224.h5 cannot be fetched"
    )
    refused(BnvulnError, "keras.applications:MobileNetV2", says + ".*--weights FILE")
    refused(UsageError, "keras.applications:MobileNetV2", "have 1000 classes, the data have 10", classes=10)
    refused(
        UsageError, "keras.applications:MobileNetV2", "no such file; expected imagenet, none, or", weights="none.h5"
    )
    refused(UsageError, "keras.applications:MobileNetV2", "is a folder", weights=tmp_path)


def test_weights_of_imagenet_for_efficientnet_by_file(stand_in, tmp_path):
    """Keras builds another graph for them than for a file, without a word."""

    def build(weights, classes):
        return network(layers.Normalization(name="normalization"))

    stand_in("EfficientNetB0", build)
    model = network(layers.Normalization(name="normalization"))
    model.save_weights(tmp_path / "own.weights.h5")
    assert load("keras.applications:EfficientNetB0", weights=tmp_path / "own.weights.h5").input_scale == "0-255"
    model.layers[0].adapt_variance.assign([0.229, 0.224, 0.225])
    model.save_weights(tmp_path / "given.weights.h5")
    with pytest.raises(UsageError, match=r"one more layer.*models/efficientnetb0\.h5 and give --weights imagenet"):
        load("keras.applications:EfficientNetB0", weights=tmp_path / "given.weights.h5")


@pytest.mark.parametrize("name", ["mobilenetv2", "MobilNetV2"])
def test_the_nearest_names(name):
    refused(UsageError, f"keras.applications:{name}", "did you mean keras.applications:MobileNetV2")
    refused(UsageError, f"keras.applications.{name}", "expected keras.applications:NAME; did you mean")


def test_a_name_that_is_near_to_none():
    refused(UsageError, "keras.applications:Zzz", "it has ConvNeXtBase, .*, Xception")
