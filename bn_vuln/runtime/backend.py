"""TensorFlow start-up and compilation settings (oneDNN, XLA, seeds, devices, logs); only this module sets them.

Importing this module does not import TensorFlow. It must be imported before TensorFlow is, so that oneDNN is on (on
some CPUs six times faster for convolutions, and off by default).
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from bn_vuln.errors import UsageError

if TYPE_CHECKING:  # it imports NumPy, which `bnvuln --help` does without
    from bn_vuln.typing import KerasModel

Signature: TypeAlias = Sequence[object]  # TensorSpecs, or structures of them


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


@functools.cache
def tensorflow() -> Any:
    """Return TensorFlow, imported quietly now if it was not; `set_verbose(True)` lets it print its messages."""
    prepare_environment()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    quiet = os.environ["TF_CPP_MIN_LOG_LEVEL"] == "3"
    # Messages logged before absl is initialized ignore every log level, hence the redirection.
    with _suppressed_stderr() if quiet else contextlib.nullcontext():
        import tensorflow as tf

        _split_cpu(tf)
        tf.config.list_physical_devices()
        tf.constant(0)
    if quiet:
        tf.get_logger().setLevel("ERROR")
    return tf


def _split_cpu(tf: Any) -> None:
    """Make BNVULN_LOGICAL_CPUS devices of the CPU, to try `--strategy mirrored` without GPUs."""
    text = os.environ.get("BNVULN_LOGICAL_CPUS", "1")
    if not text.isdigit() or text == "0":
        raise UsageError(f"BNVULN_LOGICAL_CPUS: expected a number of devices, received {text!r}")
    count = int(text)
    if count > 1:
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * count)


@contextlib.contextmanager
def _suppressed_stderr() -> Iterator[None]:
    """Suppress the messages of native code on standard error; show them if the block fails."""
    sys.stderr.flush()
    try:
        saved = os.dup(2)
    except OSError:  # no standard error to hold back
        yield
        return
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(saved, held.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(saved, 2)
            os.close(saved)


_options: set[str] = set()  # set for this process


def make_deterministic(seed: int = 0) -> None:
    """Make equal computations of this process give equal bits from now on, some of them more slowly."""
    tensorflow().config.experimental.enable_op_determinism()
    import keras  # after TensorFlow was started quietly

    keras.utils.set_random_seed(seed)  # without a global seed TensorFlow then refuses random ops
    _options.add("determinism")


def is_deterministic() -> bool:
    """Return if `make_deterministic` was called."""
    return "determinism" in _options


def compile(
    function: Callable[..., Any], *, xla: bool = False, signature: Signature | None = None
) -> Callable[..., Any]:
    """Compile a function of tensors into one graph.

    Args:
        function: of tensors and structures of them.
        xla: compile the graph with XLA; `prefers_xla` says when that is faster.
        signature: TensorSpecs of the arguments; with them batches of every size share one graph.
    """
    tf = tensorflow()
    return tf.function(function, jit_compile=xla, autograph=False, input_signature=signature)


@contextlib.contextmanager
def functions_inlined(active: bool = True) -> Iterator[None]:
    """Trace functions of TensorFlow inside of the traced one as plain Python, so that they are in the same graph."""
    config = tensorflow().config
    before = config.functions_run_eagerly()
    config.run_functions_eagerly(before or active)
    try:
        yield
    finally:
        config.run_functions_eagerly(before)


def prefers_xla(model: KerasModel) -> bool:
    """Return if XLA makes this Keras model faster: dense nets yes, convolutions on a CPU no (they lose oneDNN)."""
    return not any("Conv" in type(layer).__name__ for layer in leaf_layers(model))


def attack_prefers_xla(model: KerasModel) -> bool:
    """Return if XLA makes a gradient attack on this model faster, once it is compiled.

    It does for dense nets, by 3% to 45% (the smaller the batch the more: tools/bench_attacks.py).
    """
    return prefers_xla(model)


def xla_compiles(function: Callable[..., Any], *tensors: object) -> bool:
    """Return if a function that runs without XLA runs with it on these tensors."""
    try:
        compile(function, xla=True)(*tensors)
    except Exception:  # XLA and TensorFlow raise many kinds for an operation that XLA does not have
        return False
    return True


def fuses_batch_norm() -> bool:
    """Return if TensorFlow's fused op for batch norm in training is used: on a CPU, where it was measured."""
    return not tensorflow().config.list_physical_devices("GPU")


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


def device_name() -> str:
    """Return the name of the device that computes: the GPU's, or the CPU's with its number of cores."""
    tf = tensorflow()
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        name = tf.config.experimental.get_device_details(gpus[0]).get("device_name", "GPU")
        return f"{len(gpus)} x {name}"
    processor = platform.machine()
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        processor = next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), processor)
    onednn = "on" if os.environ.get("TF_ENABLE_ONEDNN_OPTS") == "1" else "off"
    return f"CPU {processor}, {len(os.sched_getaffinity(0))} cores, oneDNN {onednn}"


@functools.cache
def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that compute the numbers."""
    from bn_vuln.version import __version__

    packages = {name: importlib.metadata.version(name) for name in ("tensorflow", "keras", "numpy")}
    return {"bnvuln": __version__, "python": platform.python_version(), **packages}
