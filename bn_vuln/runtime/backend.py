"""What this package needs of a backend beside `keras.ops`: a small protocol, and how models are executed best.

    compile             one graph of a function of tensors
    value_and_gradient  a function and its gradient by its argument
    jacobian            the gradients of several outputs
    gather              entries of each example at indices of its own
    place               an array as a tensor of the device; `np.asarray` brings it back
    spec                shape and dtype of an argument that may have batches of any size
    is_tracing          if a graph is being made

Operations, loops included, are those of `keras.ops` (see `bn_vuln.runtime.ops`). The implementations are
`tensorflow_backend` and `jax_backend`; the environment variable KERAS_BACKEND says which one is used, as it does for
Keras.

Importing this module imports neither TensorFlow nor JAX. It must be imported before TensorFlow is, so that oneDNN is on
(on some CPUs six times faster for convolutions, and off by default).
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import math
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, cast

from bn_vuln.errors import UsageError

if TYPE_CHECKING:  # it imports NumPy, which `bnvuln --help` does without
    from bn_vuln.typing import KerasModel, Tensor

Signature: TypeAlias = Sequence[object]  # what `spec` returns, or structures of it
Extra = TypeVar("Extra")
Point = TypeVar("Point")


def prepare_environment() -> None:
    """Set the environment that TensorFlow reads when it is imported; variables that the user set stay."""
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")


def limit_threads(threads: int) -> None:
    """Use this many threads. Call it before TensorFlow is imported (it ignores OMP_NUM_THREADS)."""
    os.environ["TF_NUM_INTRAOP_THREADS"] = os.environ["TF_NUM_INTEROP_THREADS"] = str(threads)


def set_verbose(verbose: bool) -> None:
    """Let TensorFlow print its start-up messages (True), or only errors (False, the default)."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "0" if verbose else "3"


def tensorflow() -> Any:
    """Return TensorFlow, imported quietly now if it was not; `set_verbose(True)` lets it print its messages."""
    return _implementation().tensorflow()


def _implementation() -> Any:
    """The protocol on the backend of Keras."""
    if name() == "jax":
        from bn_vuln.runtime import jax_backend

        return jax_backend
    from bn_vuln.runtime import tensorflow_backend

    return tensorflow_backend


def name() -> str:
    """Return the backend of Keras: `tensorflow` or `jax`.

    Raises:
        UsageError: KERAS_BACKEND is another one.
    """
    prepare_environment()
    found = os.environ["KERAS_BACKEND"]
    if found not in ("tensorflow", "jax"):
        raise UsageError(f"KERAS_BACKEND: expected tensorflow or jax, received {found!r}")
    return found


def start() -> None:
    """Start the backend of Keras, quietly, if it has not been started."""
    _implementation().start()


def start_multiworker(meet: Callable[[], None]) -> Any:
    """Start TensorFlow together with the other hosts of TF_CONFIG, after `meet`; return the strategy over all."""
    return _implementation().start_multiworker(meet)


def report_to_hosts(message: str) -> None:
    """Let what the other hosts compute together with this one fail with a message."""
    _implementation().report_to_hosts(message)


def compile(
    function: Callable[..., Any], *, xla: bool = False, signature: Signature | None = None
) -> Callable[..., Any]:
    """Compile a function of tensors into one graph.

    Args:
        function: of tensors and structures of them; the compiled one takes arrays too.
        xla: compile the graph with XLA; `execution_policy` says when that is faster.
        signature: `spec`s of the arguments; with them batches of every size share one graph.
    """
    return cast("Callable[..., Any]", _implementation().compile(function, xla=xla, signature=signature))


def spec(shape: tuple[int | None, ...], dtype: str) -> object:
    """Return the specification of an argument for `compile`; None is a side of any length."""
    return _implementation().spec(shape, dtype)


def value_and_gradient(function: Callable[[Point], tuple[Tensor, Extra]], x: Point) -> tuple[Tensor, Point, Extra]:
    """Evaluate a function and its gradient by its argument.

    Args:
        function: x -> (values, anything else that it computes). The gradient is that of the values' sum.
        x: a tensor, or a list of tensors.

    Returns:
        (values, gradient of the shape of x, the rest). A gradient that is not connected is 0.
    """
    return cast("tuple[Tensor, Point, Extra]", _implementation().value_and_gradient(function, x))


def jacobian(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return the gradients of each output, by example.

    Args:
        function: x [n, ...] -> [n, k]; an example's outputs depend on that example alone.
        x: a tensor [n, ...].

    Returns:
        [n, k, ...].
    """
    return cast("Tensor", _implementation().jacobian(function, x))


def gather(x: Tensor, indices: Tensor, *, axis: int) -> Tensor:
    """Gather entries along an axis, of each example at indices of its own.

    Args:
        x: [n, ...].
        indices: int [n, k], from 0 on; they are not checked.
        axis: of x that they count along, from 1 on; k entries are left of it.
    """
    return cast("Tensor", _implementation().gather(x, indices, axis))


def place(array: object, dtype: str | None = None) -> Tensor:
    """Return an array as a tensor on the device."""
    return cast("Tensor", _implementation().place(array, dtype))


def is_tracing() -> bool:
    """Return if a graph is being made now, rather than values."""
    return bool(_implementation().is_tracing())


def dtype_of(tensor: Tensor) -> str:
    """Return the name of a tensor's dtype: `float32`."""
    import keras

    return str(keras.backend.standardize_dtype(tensor.dtype))


def own_types() -> tuple[tuple[type, ...], tuple[type, ...]]:
    """Return the classes of the backend that a layer may hold: (tensors and variables, dtypes and shapes)."""
    return cast("tuple[tuple[type, ...], tuple[type, ...]]", _implementation().own_types())


def functions_inlined(active: bool = True) -> contextlib.AbstractContextManager[None]:
    """Trace functions of TensorFlow inside of the traced one as plain Python, so that they are in the same graph."""
    return cast("contextlib.AbstractContextManager[None]", _implementation().functions_inlined(active))


_options: set[str] = set()  # set for this process


def make_deterministic(seed: int = 0) -> None:
    """Make equal computations of this process give equal bits from now on, some of them more slowly."""
    _implementation().make_deterministic()
    import keras  # after the backend was started quietly

    keras.utils.set_random_seed(seed)  # without a global seed TensorFlow then refuses random ops
    _options.add("determinism")


def is_deterministic() -> bool:
    """Return if `make_deterministic` was called."""
    return "determinism" in _options


# ---------------------------------------------------------------- how models are executed


@dataclass(frozen=True)
class ExecutionPolicy:
    """How a model is executed fastest, as measured (tools/bench_attacks.py, tools/bench_train.py).

    Attributes:
        xla: compile with XLA.
        steps_per_call: steps of an attack in one compiled call; more than one in a loop of the graph.
        fused_batch_norm: use TensorFlow's fused op for batch norm in training.
    """

    xla: bool
    steps_per_call: int
    fused_batch_norm: bool


ONE_STEP_A_CALL = ExecutionPolicy(xla=False, steps_per_call=1, fused_batch_norm=False)
MIN_GRADIENTS_FOR_XLA = 300_000  # gradients of examples above which XLA saves more time than it takes to compile
STEPS_PER_CALL = 8  # of dense nets: a step takes about as long as a call costs


def execution_policy(model: KerasModel, *, gradients: float = math.inf, devices: int = 1) -> ExecutionPolicy:
    """Return how to execute a model.

    XLA makes dense nets faster, and convolutions on a CPU slower (they lose oneDNN). In half precision it would round
    otherwise than the model does when it is called, so it is left out there. Large nets are stepped from the
    host: inside of a loop TensorFlow runs convolutions no faster, and memory is held longer.

    Args:
        model: a Keras model.
        gradients: number of examples' gradients that will be computed; compiling must pay.
        devices: number of devices; XLA is used on one only.
    """
    dense = not any("Conv" in type(layer).__name__ for layer in leaf_layers(model))
    if name() == "jax":  # which has no other compiler, and no other way than a loop to keep a GPU busy
        return ExecutionPolicy(True, STEPS_PER_CALL if dense or gpu_names() else 1, False)
    full = all(getattr(layer, "compute_dtype", "float32") in ("float32", "float64") for layer in leaf_layers(model))
    return ExecutionPolicy(
        xla=dense and full and devices == 1 and gradients >= MIN_GRADIENTS_FOR_XLA,
        steps_per_call=STEPS_PER_CALL if dense else 1,
        fused_batch_norm=_implementation().fuses_batch_norm(),
    )


def xla_compiles(function: Callable[..., Any], *tensors: object) -> bool:
    """Return if a function that runs without XLA runs with it on these tensors."""
    try:
        compile(function, xla=True)(*tensors)
    except Exception:  # XLA and TensorFlow raise many kinds for an operation that XLA does not have
        return False
    return True


def leaf_layers(model: KerasModel) -> Iterator[Any]:
    """Yield the layers of a Keras model that are no models themselves."""
    for layer in getattr(model, "layers", []):
        if getattr(layer, "layers", None):
            yield from leaf_layers(layer)
        else:
            yield layer


def derived_seed(*parts: int) -> int:
    """Return a 31-bit seed that depends on all of `parts`, for independent random streams from one seed."""
    import numpy as np

    return int(np.random.SeedSequence(list(parts)).generate_state(1)[0] >> 1)


def gpu_names() -> list[str]:
    """Return the name of each GPU."""
    return cast("list[str]", _implementation().gpu_names())


def memory_error() -> type[Exception]:
    """Return the class of the error that is raised where memory is exhausted."""
    return cast("type[Exception]", _implementation().memory_error())


def device_name() -> str:
    """Return the name of the device that computes: the GPU's, or the CPU's with its number of cores."""
    gpus, jax = gpu_names(), name() == "jax"
    if gpus:
        return f"{len(gpus)} x {gpus[0]}" + (f", {_implementation().precision()}" if jax else "")
    processor = platform.machine()
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        processor = next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), processor)
    cpu = f"CPU {processor}, {len(os.sched_getaffinity(0))} cores"
    if jax:
        return cpu
    return f"{cpu}, oneDNN {'on' if os.environ.get('TF_ENABLE_ONEDNN_OPTS') == '1' else 'off'}"


@functools.cache
def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that compute the numbers."""
    from bn_vuln.version import __version__

    packages = {package: importlib.metadata.version(package) for package in (name(), "keras", "numpy")}
    return {"bnvuln": __version__, "python": platform.python_version(), **packages}
