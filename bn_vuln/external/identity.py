"""What identifies an external model: its architecture in a normal form, and its weights by value.

Names of layers are left out (but those of several outputs, which are chosen by name), as is whatever changes no output:
compilation, initializers, regularizers, constraints, the state of random generators. Classes and functions of
installed packages are told apart by their names, those of one's own by their code, as Python compiles it: the id of a
model with such code may differ among minor versions of Python.
"""

from __future__ import annotations

import contextlib
import dis
import functools
import hashlib
import inspect
import re
import sys
import sysconfig
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bn_vuln.config.identity import canonical_json
from bn_vuln.runtime import backend
from bn_vuln.typing import AnyArray, KerasModel, Plain

# Settings of Keras' own layers that change no output: the values of the weights are hashed.
_WITHOUT_EFFECT = re.compile(r"name|seed|.*_initializer|.*_regularizer|.*_constraint")
_WRAPPED = ("python_function", "__wrapped__", "func")
_CODE_ATTRIBUTES = ("co_names", "co_varnames", "co_freevars", "co_cellvars", "co_argcount", "co_kwonlyargcount")


def model_identity(model: KerasModel, custom_objects: str | Path | None = None) -> Plain:
    """Return what identifies a Keras model.

    It is the same for a script that is run twice, after saving and loading, and whatever the file is called.

    Args:
        model: the model; its weights exist.
        custom_objects: the Python file of its custom layers and functions, if there is one.

    Returns:
        {"architecture": sha256, "weights": sha256}, and "custom_objects": sha256 of the file where there is one.
    """
    form = _Form()
    architecture = _sha256(canonical_json(form.operation(model)).encode())
    weights = hashlib.sha256()
    for variable in form.variables:
        array = _array(variable)
        weights.update(f"{array.dtype.name} {array.shape} ".encode())
        weights.update(array.view(np.uint8).data)
    identity = {"architecture": architecture, "weights": weights.hexdigest()}
    if custom_objects is not None:
        identity["custom_objects"] = _sha256(Path(custom_objects).read_bytes())
    return identity


class _Form:
    """The normal form of a model, in plain data; `variables` are those of its layers, in the order of the form."""

    def __init__(self) -> None:
        arrays, descriptions = backend.own_types()
        import keras

        self.variables: list[Any] = []
        self._open: list[int] = []  # ids of the objects that are being described
        self._tensors: dict[tuple[int, int, int], list[int]] = {}  # of the graph that is being described
        self._classes: dict[type, object] = {}
        # The first kind that fits counts.
        self._kinds: list[tuple[Any, Callable[[Any], object]]] = [
            (bool | int | str | None, lambda value: value),
            (float, lambda value: value if np.isfinite(value) else repr(value)),
            ((complex, range, np.dtype, *descriptions), repr),
            (bytes, bytes.hex),
            (np.generic, lambda value: self.value(value.item())),
            (Mapping, lambda value: {str(key): self.value(inner) for key, inner in value.items()}),
            (list | tuple, lambda value: [self.value(inner) for inner in value]),
            (set | frozenset, lambda value: sorted((self.value(inner) for inner in value), key=canonical_json)),
            (slice, lambda value: {"slice": [self.value(part) for part in (value.start, value.stop, value.step)]}),
            (keras.KerasTensor, self._symbolic_tensor),
            ((np.ndarray, keras.Variable, *arrays), _array_form),
            (keras.Operation, self.operation),
            (keras.DTypePolicy, _dtype_policy),
            (functools.partial, lambda value: {"partial": self.value([value.func, value.args, value.keywords])}),
            (types.MethodType, lambda value: {"method": self.value(value.__func__)}),
            (property, lambda value: {"property": self.value([value.fget, value.fset])}),
            (staticmethod | classmethod, lambda value: self.value(value.__func__)),
            (types.CodeType, self._code),
            (types.FunctionType, self._function),
            (type, self._class),
            (object, lambda value: self._once(value, self._other)),
        ]

    def value(self, value: object) -> object:
        """Anything that layers and code hold."""
        return next(describe(value) for kind, describe in self._kinds if isinstance(value, kind))

    def operation(self, operation: Any) -> object:
        """A layer, a model, or another operation of a graph."""
        import keras

        if id(operation) in self._open:
            return {"within": self._open.index(id(operation))}
        self._open.append(id(operation))
        form: Plain = {"class": self.value(type(operation))}
        before = len(self.variables)
        children: list[Any] = []
        if isinstance(operation, keras.layers.Layer):
            children = list(operation._flatten_layers(include_self=False, recursive=False))
            inner = {id(variable) for child in children for variable in child.weights}
            self.variables += [variable for variable in operation.weights if id(variable) not in inner]
        if _is_graph(operation):
            form["graph"] = self._graph(operation)
        else:
            form["layers"] = [self.operation(child) for child in children]
        if not _is_graph(operation) and not isinstance(operation, keras.Sequential):
            form["settings"] = self._settings(operation, bool(children))
        form["weights"] = len(self.variables) - before
        form["state"] = _state(operation)
        if _is_installed(type(operation)):  # it may hold a function of one's own, such as an activation
            held = {name: one for name, one in vars(operation).items() if name not in _keras_attributes()}
            functions = {
                name: one for name, one in held.items() if isinstance(one, types.FunctionType | types.MethodType)
            }
            form["functions"] = self.value({name: one for name, one in functions.items() if not _is_installed(one)})
        else:
            form["attributes"] = self._attributes(operation, {id(child) for child in children})
        self._open.pop()
        return form

    def _once(self, value: object, describe: Callable[[Any], object]) -> object:
        """Describe a thing that may hold itself."""
        if id(value) in self._open:
            return {"within": self._open.index(id(value))}
        self._open.append(id(value))
        form = describe(value)
        self._open.pop()
        return form

    def _graph(self, model: Any) -> object:
        """The graph of a functional model, numbered from its outputs backwards, so that no order of creation counts."""
        outer, self._tensors = self._tensors, {}
        numbers: dict[int, int] = {}
        operations: list[object] = []
        nodes: list[object] = []
        done: dict[tuple[int, int], int] = {}
        stack = [(tensor, False) for tensor in reversed([*model.outputs, *model.inputs])]
        while stack:
            tensor, ready = stack.pop()
            operation, index, _ = tensor._keras_history
            node = operation._inbound_nodes[index]
            if (id(operation), index) in done:
                continue
            if not ready:
                stack.append((tensor, True))
                stack += [(one, False) for one in reversed(node.input_tensors)]
                continue
            if id(operation) not in numbers:
                inner, self._tensors = self._tensors, {}
                operations.append(self.operation(operation))
                self._tensors = inner
                numbers[id(operation)] = len(operations) - 1
            number = done[id(operation), index] = len(nodes)
            given = {key: one for key, one in node.arguments.kwargs.items() if one is not None}
            nodes.append([numbers[id(operation)], self.value(node.arguments.args), self.value(given)])
            for place, output in enumerate(node.output_tensors):
                history = output._keras_history
                self._tensors[id(history.operation), history.node_index, history.tensor_index] = [number, place]
        form: Plain = {
            "operations": operations,
            "nodes": nodes,
            "inputs": self.value(model._inputs_struct),
            "outputs": self.value(model._outputs_struct),
        }
        if len(model.outputs) > 1:
            heads = [output._keras_history.operation for output in model.outputs]
            form["heads"] = [None if _has_automatic_name(head) else head.name for head in heads]
        self._tensors = outer
        return form

    def _settings(self, operation: Any, has_children: bool) -> object:
        """The settings of a layer, but for those that change no output."""
        import keras

        cls = type(operation)
        form: Plain = {}
        config = dict(_config(operation))
        if isinstance(operation, keras.layers.Layer) and not isinstance(config.get("dtype"), str):
            config["dtype"] = _dtype_policy(operation.dtype_policy)
        for key, value in config.items():
            is_batch_norm = isinstance(operation, keras.layers.BatchNormalization)
            if key == "name" or value is None or (key == "filepath" and cls is keras.layers.TFSMLayer):
                continue
            if key == "trainable" and _is_installed(cls) and not is_batch_norm:
                continue  # of BN it decides about the statistics of the batch
            if _WITHOUT_EFFECT.fullmatch(key) and _derives_from_keras(cls):
                continue
            form[key] = self._config_value(value[1:] if key == "batch_shape" else value, has_children)
        return form

    def _config_value(self, value: Any, has_children: bool) -> object:
        """A value of a config: objects without their modules; layers by their class alone where they follow."""
        if isinstance(value, np.ndarray):  # Keras makes lists of them when it saves
            return self.value(value.tolist())
        if isinstance(value, list | tuple):
            return [self._config_value(inner, has_children) for inner in value]
        if not isinstance(value, Mapping):
            return self.value(value)
        if not {"class_name", "config"} <= value.keys():
            return {str(key): self._config_value(inner, has_children) for key, inner in value.items()}
        config = value["config"]
        if isinstance(config, Mapping) and "name" in config and config.keys() & {"trainable", "layers", "batch_shape"}:
            config = None if has_children else {key: inner for key, inner in config.items() if key != "name"}
        return {"class": str(value["class_name"]), "config": self._config_value(config, has_children)}

    def _attributes(self, operation: Any, children: set[int]) -> object:
        """What an object of a class of one's own holds, but for what Keras keeps there, variables and layers."""
        import keras

        elsewhere = (
            keras.Variable,
            keras.metrics.Metric,
            keras.losses.Loss,
            keras.optimizers.Optimizer,
            keras.random.SeedGenerator,
            keras.initializers.Initializer,
            keras.regularizers.Regularizer,
            keras.constraints.Constraint,
        )

        def kept(value: Any) -> bool:
            return id(value) not in children and not isinstance(value, elsewhere)

        form: Plain = {}
        for name, value in vars(operation).items():
            if name in _keras_attributes() or not kept(value):
                continue
            if name == "seed" and _derives_from_keras(type(operation)):
                continue
            if isinstance(value, list | tuple):
                form[name] = self.value([inner for inner in value if kept(inner)])
            elif isinstance(value, Mapping):
                form[name] = self.value({key: inner for key, inner in value.items() if kept(inner)})
            else:
                form[name] = self.value(value)
        return form

    def _symbolic_tensor(self, tensor: Any) -> object:
        """A tensor of a graph: the node that it comes from, and its place there."""
        operation, node, place = getattr(tensor, "_keras_history", (None, 0, 0))
        source = self._tensors.get((id(operation), node, place))
        return {"from": source} if source else {"shape": list(tensor.shape[1:]), "dtype": tensor.dtype}

    def _class(self, cls: type) -> object:
        """A class: its name, or the code of it and of its bases that are one's own."""
        if _is_installed(cls):
            return _name(cls)
        if cls not in self._classes:
            self._classes[cls] = {"class": cls.__name__}  # for classes that refer to themselves
            own = [base for base in cls.__mro__ if not _is_installed(base)]
            self._classes[cls] = {
                "class": cls.__name__,
                "bases": [_name(base) for base in cls.__mro__ if _is_installed(base)][:1],
                "members": [self.value(_members(base)) for base in own],
            }
        return self._classes[cls]

    def _function(self, function: types.FunctionType) -> object:
        """A function: its name, or its code and the values that it refers to."""
        return {"function": _name(function)} if _is_installed(function) else self._once(function, self._own_function)

    def _own_function(self, function: types.FunctionType) -> object:
        names = global_names(function.__code__) & function.__globals__.keys()
        referred = {name: function.__globals__[name] for name in sorted(names)}
        return {
            "code": self._code(function.__code__),
            "defaults": self.value([function.__defaults__, function.__kwdefaults__]),
            "closure": [self.value(_content(cell)) for cell in function.__closure__ or ()],
            "globals": self.value({name: v for name, v in referred.items() if not isinstance(v, types.ModuleType)}),
        }

    def _code(self, code: types.CodeType) -> object:
        return {
            "code": _sha256(code.co_code + code.co_exceptiontable),
            "constants": [[type(constant).__name__, self.value(constant)] for constant in code.co_consts],
            "names": [self.value(getattr(code, name)) for name in _CODE_ATTRIBUTES],
        }

    def _other(self, value: Any) -> object:
        """An object of some class: its config, or what it holds; the function that it wraps, as a compiled one does."""
        form: Plain = {"object": self.value(type(value))}
        form["wraps"] = [self.value(getattr(value, name)) for name in _WRAPPED if hasattr(value, name)]
        config = _config(value) if hasattr(value, "get_config") else {}
        if config:
            form["config"] = self._config_value(config, False)
        elif not _is_installed(type(value)):
            form["attributes"] = self.value(dict(sorted(getattr(value, "__dict__", {}).items())))
        return form


def _config(value: Any) -> Mapping[str, Any]:
    """What `get_config` returns, or else those parameters of the constructor that are attributes."""
    held = getattr(value, "__dict__", {})
    if not any(isinstance(one, types.FunctionType) and one.__name__ == "<lambda>" for one in held.values()):
        # Keras would look for the source of a lambda, which a loaded one has not.
        with contextlib.suppress(Exception):  # it may be the user's code, or missing
            return dict(value.get_config())
    names = inspect.signature(type(value).__init__).parameters
    return {name: held.get(name, held.get(f"_{name}")) for name in names}


def _state(operation: Any) -> object:
    """Tables and files of a layer that are no variables."""
    import keras

    if isinstance(operation, keras.layers.TFSMLayer):
        files = sorted(path for path in Path(operation.filepath).rglob("*") if path.is_file())
        return [_sha256(path.read_bytes()) for path in files if path.name != "fingerprint.pb"]
    if isinstance(operation, keras.layers.Discretization):
        return [float(boundary) for boundary in operation.bin_boundaries]
    if hasattr(operation, "get_vocabulary"):
        return [str(word) for word in operation.get_vocabulary()]
    return None


def _is_graph(operation: Any) -> bool:
    """Return whether it is a functional model."""
    import keras

    return (
        isinstance(operation, keras.Model)
        and not isinstance(operation, keras.Sequential)
        and bool(getattr(operation, "_nodes", None))
    )


def _array(value: Any) -> AnyArray:
    return np.ascontiguousarray(value if isinstance(value, np.ndarray) else value.numpy())


def _array_form(value: Any) -> object:
    if not hasattr(value, "numpy") and not isinstance(value, np.ndarray):
        return "symbolic"
    array = _array(value)
    return {"array": [array.dtype.name, list(array.shape), _sha256(array.tobytes())]}


def _dtype_policy(policy: Any) -> object:
    config = policy.get_config()
    return [type(policy).__name__, config.get("name"), config.get("mode"), config.get("source_name")]


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _name(named: Any) -> str:
    """Name of a class or function of a package, without the modules, which move from version to version."""
    return f"{named.__module__.partition('.')[0]}:{named.__qualname__}"


def _is_installed(named: Any) -> bool:
    """Return whether a class or function is told apart by its name: not if it is made inside a function."""
    if "<" in named.__qualname__ and not named.__module__.startswith("bn_vuln."):
        return False
    return _is_installed_module(named.__module__ or "")


@functools.cache
def _is_installed_module(name: str) -> bool:
    top = name.partition(".")[0]
    if top in ("bn_vuln", "keras", "tensorflow"):
        return True
    file = getattr(sys.modules.get(name), "__file__", None)
    if file is None:
        return top in sys.stdlib_module_names
    parts = Path(file).parts
    inside = "site-packages" in parts or "dist-packages" in parts
    return inside or Path(file).is_relative_to(sysconfig.get_paths()["stdlib"])


def _derives_from_keras(cls: type) -> bool:
    """Return whether a class is a layer of Keras or derived from one that is more than the bare Layer."""
    import keras

    bare = (keras.layers.Layer, keras.Model, keras.Operation)
    return next(base for base in cls.__mro__ if _is_installed(base)) not in bare


@functools.cache
def _keras_attributes() -> frozenset[str]:
    """Names of the attributes that every layer or model has, also after it was compiled, built and fitted."""
    import keras

    layer, sequential = keras.layers.Layer(name="x"), keras.Sequential([keras.Input((1,), name="x")], name="x")
    image = keras.Input((1,), name="x")
    functional = keras.Model(image, image, name="x")
    functional.compile(loss="mse", optimizer="sgd")
    later = {"history", "stop_training", "stop_evaluating", "stop_predicting", "_eval_epoch_iterator", "_functional"}
    return frozenset({*vars(layer), *vars(sequential), *vars(functional), *later})


def _has_automatic_name(operation: Any) -> bool:
    snake = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", type(operation).__name__))
    snake = re.sub("([a-z])([A-Z])", r"\1_\2", snake).lower()
    return re.fullmatch(rf"{snake}(_\d+)?", operation.name) is not None


def _members(cls: type) -> Plain:
    """What a class itself defines: functions, and values that are no private ones of Python."""
    code = (types.FunctionType, staticmethod, classmethod, property)
    members = sorted(vars(cls).items())
    return {name: value for name, value in members if isinstance(value, code) or not name.startswith("_")}


def _content(cell: types.CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # it is empty
        return None


def global_names(code: types.CodeType) -> set[str]:
    """Return the names of the globals that code and the functions in it refer to.

    Args:
        code: the code of a function.

    Returns:
        The names, those of Python's built-in functions among them.
    """
    inner = [global_names(constant) for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return {one.argval for one in dis.get_instructions(code) if one.opname == "LOAD_GLOBAL"}.union(*inner)
