"""Opening external models: files of Keras, models of `keras.applications` by name, and models in memory.

Files of custom objects run code, as do Lambda layers and saved TensorFlow graphs in a `.keras` file: both are refused
but where `custom_objects` is given.
"""

from __future__ import annotations

import builtins
import contextlib
import difflib
import functools
import hashlib
import importlib.util
import inspect
import json
import math
import os
import re
import sys
import traceback
import types
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from bn_vuln.config import Resize
from bn_vuln.data import imagenet
from bn_vuln.errors import BnvulnError, UsageError
from bn_vuln.external.identity import global_names
from bn_vuln.models import custom_layers, pretrained
from bn_vuln.runtime import backend, limits
from bn_vuln.runtime.memory import check_memory
from bn_vuln.typing import KerasModel

APPLICATIONS = "keras.applications"
PRETRAINED = "pretrained"  # nets for ImageNet that are built here, with published weights

# What the models of each module of keras.applications expect: a mode of `preprocess_input`, or pixels of 0 to 255 where
# the preprocessing is inside the model.
PREPROCESSING = {
    "convnext": "0-255",
    "densenet": "torch",
    "efficientnet": "0-255",
    "efficientnet_v2": "0-255",
    "inception_resnet_v2": "tf",
    "inception_v3": "tf",
    "mobilenet": "tf",
    "mobilenet_v2": "tf",
    "mobilenet_v3": "0-255",
    "nasnet": "tf",
    "resnet": "caffe",
    "resnet_v2": "tf",
    "vgg16": "caffe",
    "vgg19": "caffe",
    "xception": "tf",
}

_KERAS_SUFFIXES = (".keras", ".h5", ".hdf5")
_TORCH = (
    "a PyTorch model: bnvuln attacks Keras models; build the architecture in Keras and copy the weights, or export it "
    "to ONNX, convert that to a SavedModel (onnx2tf) and give the folder, which says how to go on"
)
_ONNX = (
    "an ONNX model: bnvuln attacks Keras models; save the original as .keras, or convert this to a SavedModel "
    "(onnx2tf) and give the folder, which says how to go on"
)
_TFLITE = (
    "a TensorFlow Lite model, which has no gradients: save the Keras model that it was converted from "
    "with model.save('model.keras')"
)
_FROZEN = (
    "a TensorFlow graph: give the SavedModel's folder to keras.layers.TFSMLayer, "
    "or save the Keras model with model.save('model.keras')"
)
_PICKLE = "a pickled object: bnvuln attacks Keras models; save one with model.save('model.keras')"
_CHECKPOINT = "weights without the architecture: build the model, load them, and save it with model.save('model.keras')"
_OTHER_SUFFIXES = {
    ".pb": _FROZEN,
    ".tflite": _TFLITE,
    ".onnx": _ONNX,
    ".pt": _TORCH,
    ".pth": _TORCH,
    ".safetensors": _CHECKPOINT,
    ".pkl": _PICKLE,
    ".pickle": _PICKLE,
    ".joblib": _PICKLE,
    ".ckpt": _CHECKPOINT,
    ".index": _CHECKPOINT,
}

# What Keras says of a class or function that it does not know.
_UNKNOWN = re.compile(
    r"Could not locate (?:class|function) '([^']+)'|Cannot deserialize object of type `([^`]+)`"
    r"|Unknown (?:layer|object|function|activation function)[^:]*: '?([\w.>]+)"
)

Target: TypeAlias = "str | Path | KerasModel"
CustomObjects: TypeAlias = "str | Path | Mapping[str, object]"


@dataclass(frozen=True)
class LoadedModel:
    """An external model that was opened.

    Attributes:
        model: the Keras model, built, with one input.
        source: the file or name as the user spelled it; class and name of a model in memory.
        path: absolute path of the file, or None.
        input_scale: what it expects, where that is known: `0-1`, `0-255`, or `caffe`, `torch` or `tf`, the modes of
            `keras.applications`; else None.
        custom_objects: the Python file of its custom layers and functions, or None.
        class_names: names of its classes in the order of its outputs, where they are known.
        resize: how images get its size, unless the user says so.
    """

    model: KerasModel
    source: str
    path: Path | None = None
    input_scale: str | None = None
    custom_objects: Path | None = None
    class_names: tuple[str, ...] | None = None
    resize: Resize = "crop"


@dataclass(frozen=True)
class _Code:
    """Code that loading a model may run: classes and functions that the model names, and all names of their file."""

    objects: Mapping[str, object]
    names: Mapping[str, object]


def is_external(target: object) -> bool:
    """Return whether a target is, or by its name claims to be, an external model rather than a run folder."""
    if not isinstance(target, str | Path):
        return True
    if str(target).startswith((APPLICATIONS, f"{PRETRAINED}:")):
        return True
    path = Path(target)
    if path.is_dir():
        return _is_saved_model(path) or _is_keras_folder(path)
    return path.is_file() or path.suffix.lower() in (*_KERAS_SUFFIXES, *_OTHER_SUFFIXES)


def check(target: str | Path, weights: str | Path | None = None) -> None:
    """Refuse what is no model by its name, its kind and its first bytes; TensorFlow is not started.

    Args:
        target: as `load` takes it.
        weights: likewise.

    Raises:
        UsageError: where it is none, with what to do instead.
        BnvulnError: where the file is damaged.
    """
    if str(target).startswith(f"{PRETRAINED}:"):
        pretrained.check(str(target).partition(":")[2], weights)
    elif not str(target).startswith(APPLICATIONS):
        if weights is not None:
            raise UsageError(f"--weights is for {APPLICATIONS}:NAME and {PRETRAINED}:NAME; {target} has its own")
        _check_kind(Path(target))
    elif weights is not None and str(weights) not in ("imagenet", "none") and not Path(weights).is_file():
        kind = "is a folder" if Path(weights).is_dir() else "no such file"
        raise UsageError(f"--weights {weights}: {kind}; expected imagenet, none, or a file")


def load(
    target: Target,
    *,
    weights: str | Path | None = None,
    classes: int | None = None,
    custom_objects: CustomObjects | None = None,
) -> LoadedModel:
    """Open an external model, uncompiled.

    Args:
        target: a `.keras`, `.h5` or `.hdf5` file, `keras.applications:NAME`, `pretrained:NAME`, or a Keras model.
        weights: of `keras.applications:NAME`: `imagenet` (the default), `none` (random), or a file; of
            `pretrained:NAME` as `models.pretrained` takes them.
        classes: number of outputs of `keras.applications:NAME` where the weights are not `imagenet`; None: 1000.
        custom_objects: a Python file, which is run, or custom objects by their names. It is also the permission to
            run the code of Lambda layers and TensorFlow graphs in the model's file.

    Returns:
        The model.

    Raises:
        UsageError: where the target is no such model, with what to do instead.
        BnvulnError: where the file is damaged, or Keras cannot load it.
    """
    if not isinstance(target, str | Path):
        return LoadedModel(_checked_model(target, _name_of(target)), _name_of(target))
    source, path = str(target), Path(target)
    check(target, weights)
    if source.startswith(APPLICATIONS):
        return _from_applications(source, weights, classes)
    if source.startswith(f"{PRETRAINED}:"):
        model = pretrained.pretrained(source.partition(":")[2], weights)
        checked = _checked_model(model, source)
        return LoadedModel(checked, source, None, "0-1", class_names=imagenet.classes(), resize="imagenet")
    model = _load_file(path, _code(custom_objects))
    file = Path(custom_objects) if isinstance(custom_objects, str | Path) else None
    return LoadedModel(_checked_model(model, source), source, Path(os.path.abspath(path)), None, file)


def load_keras(path: Path) -> KerasModel:
    """Load a model of this package, uncompiled.

    Args:
        path: the `.keras` file.

    Returns:
        The model.

    Raises:
        BnvulnError: in one line, where it cannot be loaded.
    """
    return _load_file(path, None)


def _name_of(model: object) -> str:
    name = getattr(model, "name", None)
    return f"{type(model).__name__} {name!r}" if isinstance(name, str) else type(model).__name__


def _checked_model(model: Any, source: str) -> KerasModel:
    """The model, where it is a Keras model with weights and one input."""
    backend.start()
    import keras

    if not isinstance(model, keras.Model):
        modules = {base.__module__.partition(".")[0] for base in type(model).__mro__}
        if "torch" in modules:
            raise UsageError(f"{source}: {_TORCH}")
        hint = "; save it as .h5 and give the file" if "tf_keras" in modules else ""
        received = f"{type(model).__module__}.{type(model).__qualname__}"
        raise UsageError(f"{source}: expected a Keras model or the path of one, received {received}{hint}")
    if not model.built:
        raise UsageError(
            f"{source}: it was never called, so it has no weights yet; call it once on an image (and save it)"
        )
    try:
        inputs = list(model.inputs or [])
    except (AttributeError, ValueError):  # a model of one's own class has none
        inputs = []
    _check_sizes(model, source)
    if len(inputs) > 1:
        names = ", ".join(getattr(model, "input_names", None) or [str(one.name) for one in inputs])
        raise UsageError(f"{source}: expected one input, an image; it has {len(inputs)}: {names}")
    return model


def _check_sizes(model: Any, source: str) -> None:
    """Refuse a model of which a layer gives more values for one image than half of the memory holds."""
    import keras

    for layer in [model, *model._flatten_layers(include_self=False)]:
        for way in ("input", "output"):
            with contextlib.suppress(AttributeError, ValueError, RuntimeError):  # of a layer that was called otherwise
                tensors = keras.tree.flatten(getattr(layer, way))
                values = max((math.prod(size or 1 for size in one.shape) for one in tensors), default=0)
                what = f"{source}: for one image the values of {layer.name}"
                check_memory(4.0 * values, what, "it cannot be run here")


def _is_saved_model(folder: Path) -> bool:
    return (folder / "saved_model.pb").is_file() or (folder / "saved_model.pbtxt").is_file()


def _is_keras_folder(folder: Path) -> bool:
    """Return whether it is an unpacked `.keras` file."""
    return all((folder / name).is_file() for name in ("config.json", "metadata.json"))


def _check_folder(folder: Path) -> None:
    """Refuse folders but for unpacked `.keras` files."""
    if _is_saved_model(folder):
        raise UsageError(
            f"{folder}: a TensorFlow SavedModel: wrap it, keras.Sequential([keras.Input((HEIGHT, WIDTH, CHANNELS)), "
            f"keras.layers.TFSMLayer('{folder}', call_endpoint='serve')]) (or 'serving_default'); give this model from "
            "Python, or model.save('model.keras') with --custom-objects FILE.py (any file: it permits code)"
        )
    if not _is_keras_folder(folder):
        raise UsageError(f"{folder}: expected a run folder or a .keras or .h5 file, received a folder without either")


def _check_kind(path: Path) -> None:
    """Refuse what is no model file of Keras, before Keras is asked."""
    suffix = path.suffix.lower()
    if path.is_dir():
        return _check_folder(path)
    if not path.is_file():
        raise UsageError(f"{path}: {'not a regular file' if path.exists() else 'no such file'}")
    if path.name.endswith(".weights.h5"):
        raise _only_weights(path)
    if suffix in _OTHER_SUFFIXES:
        raise UsageError(f"{path}: {_OTHER_SUFFIXES[suffix]}")
    if suffix not in _KERAS_SUFFIXES:
        raise UsageError(f"{path}: expected a .keras or .h5 file (save the model with model.save('model.keras'))")
    if suffix != path.suffix:
        raise UsageError(f"{path}: Keras knows {suffix} in lower case alone: rename it to {path.stem + suffix}")
    _check_content(path, suffix)


def _only_weights(path: Path) -> UsageError:
    return UsageError(
        f"{path}: {_CHECKPOINT}; of a model of keras.applications give keras.applications:NAME with --weights {path}"
    )


def _check_content(path: Path, suffix: str) -> None:
    """Refuse files whose content is not what their name says, and damaged archives."""
    start = _read(path, 8)
    if not start:
        raise BnvulnError(f"{path}: the file is empty")
    is_zip, is_hdf5 = start.startswith(b"PK"), start == b"\x89HDF\r\n\x1a\n"
    if suffix == ".keras" and is_hdf5:
        raise UsageError(f"{path}: an HDF5 file; rename it to {path.with_suffix('.h5').name}")
    if suffix != ".keras" and is_zip:
        raise UsageError(f"{path}: a zip archive, not HDF5; rename it to {path.with_suffix('.keras').name}")
    if not (is_zip or is_hdf5):
        raise BnvulnError(
            f"{path}: not a model file of Keras, or damaged (save the model with model.save('model.keras'))"
        )
    if is_zip:
        _check_archive(path)


def _check_archive(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            limits.check_archive(archive)
            damaged = archive.testzip()
    except ValueError as error:
        raise BnvulnError(f"{path}: refused: {error}") from None
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError):
        raise BnvulnError(f"{path}: damaged or cut off: it cannot be read as a .keras file") from None
    if damaged is not None:
        raise BnvulnError(f"{path}: damaged: {damaged} inside it does not have its checksum")
    if "config.json" not in names:
        raise UsageError(
            f"{path}: not a .keras file: no config.json inside (save the model with model.save('model.keras'))"
        )


def _read(path: Path, size: int = -1) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(size)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None


def _load_file(path: Path, code: _Code | None) -> KerasModel:
    backend.start()
    import keras

    custom_layers.register()
    stored = limits.check_model(path)
    objects = None if code is None else _with_registered_names(path, code.objects)
    try:
        with _complete_weights(), _lambdas(code), _weights_of(stored):
            model: KerasModel
            if code is None:
                model = keras.saving.load_model(path, compile=False, safe_mode=True)
            else:
                model = keras.saving.load_model(path, compile=False, custom_objects=objects, safe_mode=False)
    except Exception as error:  # Keras raises many kinds
        raise _load_error(path, error, code is not None) from None
    return model


@contextlib.contextmanager
def _lambdas(code: _Code | None) -> Iterator[None]:
    """Let lambdas that are loaded find the names that they refer to, which are not saved with them."""
    if code is None:
        yield
        return
    from keras.src.utils import python_utils

    usual = {"tf": "tensorflow", "keras": "keras", "np": "numpy", "ops": "keras.ops", "layers": "keras.layers"}
    imported = {name: sys.modules[module] for name, module in usual.items() if module in sys.modules}
    names = {**imported, **code.names, "__builtins__": builtins}
    original = python_utils.func_load

    def load(dump: Any, defaults: Any = None, closure: Any = None, globs: object = None) -> types.FunctionType:
        # Keras passes on defaults as JSON has them, in a list.
        function: types.FunctionType = original(dump, None if defaults is None else tuple(defaults), closure, names)
        missing = sorted(global_names(function.__code__) - names.keys() - vars(builtins).keys())
        if missing:
            raise UsageError(
                f"a Python lambda in it refers to {', '.join(missing)}: import or define this in the file of "
                "--custom-objects"
            )
        return function

    python_utils.func_load = load
    try:
        yield
    finally:
        python_utils.func_load = original


@contextlib.contextmanager
def _weights_of(stored: int) -> Iterator[None]:
    """Raise before layers make weights that are far larger than those in the file, `stored` bytes of them."""
    import keras

    original, left = keras.layers.Layer.add_weight, float(limits.FREE_BYTES + 2 * stored)

    def add_weight(layer: Any, shape: Any = None, *args: Any, **kwargs: Any) -> Any:
        nonlocal left
        left -= 4.0 * math.prod((shape,) if isinstance(shape, int) else shape or ())
        if left < 0:
            raise BnvulnError(f"its layers have far more weights than the {stored:,} bytes in the file: {layer.name}")
        return original(layer, shape, *args, **kwargs)

    keras.layers.Layer.add_weight = add_weight
    try:
        yield
    finally:
        keras.layers.Layer.add_weight = original


@contextlib.contextmanager
def _complete_weights() -> Iterator[None]:
    """Raise where Keras only warns that some weights are not in the file and stay random."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for one in caught:
        if "freshly-initialized" in str(one.message):
            raise BnvulnError("some of its weights are not in the file")
        warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)


def _load_error(path: Path, error: Exception, with_objects: bool) -> BnvulnError:
    """What to tell the user where Keras could not load a file."""
    text = " ".join(str(error).split())
    unknown = _UNKNOWN.search(text)
    name = next(group for group in unknown.groups() if group) if unknown else ""
    if isinstance(error, BnvulnError):
        told: BnvulnError = type(error)(f"{path}: {text}")
    elif "No model config found" in text:
        told = _only_weights(path)
    elif "activation function identifier: {'value'" in text:
        told = BnvulnError(f"{path}: Keras cannot load an activation that is a lambda: save it as a named function")
    elif path.suffix != ".keras" and (_is_operation(name) or "positional argument" in text):
        told = BnvulnError(
            f"{path}: an .h5 file does not keep operations between layers{f' ({name})' if name else ''} as Keras could "
            "load them; save the model with model.save('model.keras') where it was built"
        )
    elif name and with_objects:
        told = UsageError(f"{path}: Keras does not know {name}; the file of --custom-objects does not have it")
    elif name:
        told = UsageError(
            f"{path}: Keras does not know {name}; give the Python file that defines it with --custom-objects FILE.py, "
            "which runs that file (from Python: custom_objects=)"
        )
    elif "unsafe_deserialization" in text:
        kind = "a TensorFlow SavedModel (TFSMLayer)" if "TFSMLayer" in text else "a Python lambda"
        told = UsageError(
            f"{path}: it holds {kind}, so loading it runs code from the file; if you trust it, give "
            "--custom-objects FILE.py (any Python file, an empty one will do), which permits code (from Python: "
            "custom_objects={})"
        )
    else:
        reason = text.rpartition("Exception encountered: ")[2] or text
        reason = re.split(r"\.? (?:Full object config|config=|Received: config)", reason)[0][:300]
        told = BnvulnError(f"{path}: Keras cannot load it: {type(error).__name__}: {reason}{_newer_keras(path)}")
    return told


def _newer_keras(path: Path) -> str:
    """Where a newer Keras saved the file, what to do about it."""
    import keras

    saved, installed = _saved_version(path), str(keras.__version__)
    if saved is None or _version_key(saved) <= _version_key(installed):
        return ""
    return f"; it was saved by Keras {saved}, this is {installed}: update Keras, or save it with {installed}"


def _is_operation(name: str) -> bool:
    """Return whether it is an operation of a graph that is no layer, in Keras 3 or 2."""
    import keras

    return name in ("TFOpLambda", "SlicingOpLambda", *(one.__name__ for one in keras.Operation.__subclasses__()))


def _version_key(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)[:3]]


def _saved_version(path: Path) -> str | None:
    """The version of Keras that wrote a file, where it says so."""
    with contextlib.suppress(Exception):
        if path.is_dir():
            return str(json.loads((path / "metadata.json").read_bytes())["keras_version"])
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                return str(json.loads(archive.read("metadata.json"))["keras_version"])
        import h5py

        with h5py.File(path) as file:
            version = file.attrs["keras_version"]
            return version.decode() if isinstance(version, bytes) else str(version)
    return None


def _code(given: CustomObjects | None) -> _Code | None:
    """The code that a model may run; None where no custom objects were given, which forbids code."""
    if given is None:
        return None
    if isinstance(given, Mapping):
        return _Code(given, given)
    path = Path(given)
    if path.is_dir() or not path.exists():
        raise UsageError(f"--custom-objects {path}: {'is a folder' if path.is_dir() else 'no such file'}")
    backend.start()
    return _code_of_file(os.path.abspath(path), hashlib.sha256(_read(path)).hexdigest(), str(given))


@functools.cache
def _code_of_file(path: str, sha256: str, spelled: str) -> _Code:
    """Run a Python file, once for each content."""
    import keras

    custom_layers.register()
    name = f"custom_objects_{sha256[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"--custom-objects {spelled}: expected a Python file, FILE.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(Path(path).parent))
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
        line = error.lineno if isinstance(error, SyntaxError) and error.filename == path else (lines or [None])[-1]
        text = error.msg if isinstance(error, SyntaxError) else " ".join(str(error).split())[:200]
        where = f", line {line}" if line else ""
        raise BnvulnError(f"--custom-objects {spelled}{where}: {type(error).__name__}: {text}") from None
    finally:
        with contextlib.suppress(ValueError):  # the file may have changed it
            sys.path.remove(str(Path(path).parent))
    objects: dict[str, object] = {}
    for key, value in vars(module).items():
        known = getattr(value, "__module__", None) or ""
        if (inspect.isclass(value) or inspect.isfunction(value)) and known.partition(".")[0] not in (
            "keras",
            "tensorflow",
        ):
            objects |= {key: value, value.__name__: value, keras.saving.get_registered_name(value): value}
    return _Code(objects, vars(module))


def _with_registered_names(path: Path, objects: Mapping[str, object]) -> dict[str, object]:
    """Custom objects, also by the names such as `package>Name` that the model's file calls them by."""
    named = dict(objects)
    with contextlib.suppress(Exception):  # a damaged file is reported by Keras
        for name in re.findall(r'"([^"]+>[^"]+)"', _config_text(path)):
            short = name.rpartition(">")[2]
            if short in objects:
                named.setdefault(name, objects[short])
    return named


def _config_text(path: Path) -> str:
    """The architecture as a model's file holds it, in JSON."""
    if path.is_dir():
        return limits.read_file(path / "config.json", limits.TEXT_BYTES).decode()
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return archive.read("config.json").decode()
    import h5py

    with h5py.File(path) as file:
        config = file.attrs["model_config"]
        return config.decode() if isinstance(config, bytes) else str(config)


def applications() -> dict[str, str]:
    """Return the models of keras.applications by name, with what each expects (see PREPROCESSING)."""
    backend.start()
    import keras

    found = {}
    for name, function in vars(keras.applications).items():
        if inspect.isfunction(function):
            module = function.__module__.rpartition(".")[2]
            if module in PREPROCESSING:
                found[name] = PREPROCESSING[module]
    return found


def _from_applications(source: str, weights: str | Path | None, classes: int | None) -> LoadedModel:
    known = applications()
    import keras

    name = source[len(APPLICATIONS) :].lstrip(":.")
    if source != f"{APPLICATIONS}:{name}" or name not in known:
        lower = {one.lower(): one for one in known}
        near = [lower[one] for one in difflib.get_close_matches(name.lower(), lower, n=3, cutoff=0.5)]
        hint = (
            f"did you mean {', '.join(f'{APPLICATIONS}:{one}' for one in near)}?"
            if near
            else f"it has {', '.join(known)}"
        )
        raise UsageError(f"{source}: expected {APPLICATIONS}:NAME; {hint}")
    given = "imagenet" if weights is None else str(weights)
    if given == "imagenet" and classes not in (None, 1000):
        raise UsageError(
            f"{source}: its weights of imagenet have 1000 classes, the data have {classes}; give the weights of a "
            "model with your classes as --weights FILE"
        )
    build = getattr(keras.applications, name)
    if given in ("imagenet", "none"):
        try:
            with contextlib.redirect_stdout(sys.stderr):  # the progress of a download
                model = build(weights=None if given == "none" else given, classes=classes or 1000)
        except Exception as error:
            raise _download_error(source, error) from None
        return LoadedModel(_checked_model(model, source), source, None, known[name])
    path = Path(given)
    _read(path, 1)
    limits.check_model(path)
    model = build(weights=None, classes=classes or 1000)
    try:
        with _complete_weights():
            model.load_weights(path)
    except Exception as error:  # Keras raises many kinds
        text = " ".join(str(error).split())[:200]
        raise BnvulnError(
            f"--weights {path}: not weights of {source} with {classes or 1000} classes ({text}); of another model "
            "save it whole with model.save('model.keras')"
        ) from None
    _check_efficientnet(model, name, path)
    return LoadedModel(_checked_model(model, source), source, Path(os.path.abspath(path)), known[name])


def _cache() -> Path:
    """The folder where Keras looks for weights of imagenet."""
    return Path(os.environ.get("KERAS_HOME") or "~/.keras").expanduser() / "models"


def _download_error(source: str, error: Exception) -> BnvulnError:
    text = " ".join(str(error).split())
    address = re.search(r"https?://\S+?(?=:?\s|:?$)", text)
    if address is None:
        return BnvulnError(f"{source}: Keras cannot build it: {text[:300]}")
    file = address.group().rstrip(":").rpartition("/")[2]
    return BnvulnError(
        f"{source}: the weights of imagenet are not at {_cache() / file}, and {address.group().rstrip(':')} cannot be "
        "fetched; put the file there, or give it with --weights FILE"
    )


def _check_efficientnet(model: Any, name: str, path: Path) -> None:
    """Refuse weights of imagenet by file where Keras builds another graph for them."""
    import keras

    if not re.fullmatch(r"EfficientNetB\d", name):
        return
    layer = next(layer for layer in model.layers if isinstance(layer, keras.layers.Normalization))
    variance = keras.ops.convert_to_numpy(layer.adapt_variance).ravel()
    if np.allclose(variance, [0.229, 0.224, 0.225], atol=1e-3):
        raise UsageError(
            f"--weights {path}: weights of imagenet: for them Keras' {name} has one more layer, which it leaves out "
            f"with a file; put the file at {_cache() / (name.lower() + '.h5')} and give --weights imagenet, or save "
            "the whole model with model.save('model.keras')"
        )
