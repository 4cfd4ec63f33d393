"""The only place that knows how TensorFlow is started and compiled: oneDNN, XLA, seeds, devices, log noise.

Importing this module does not import TensorFlow; it must be imported before TensorFlow is, so that oneDNN
(on such CPUs six times faster for convolutions, and off by default on some) is on.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

from bn_vuln.errors import UsageError


def prepare_environment() -> None:
    """Set what TensorFlow reads from the environment when it is imported; what the user set stays."""
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")


def limit_threads(threads: int) -> None:
    """Use this many threads; only before TensorFlow is imported (it ignores OMP_NUM_THREADS)."""
    os.environ["TF_NUM_INTRAOP_THREADS"] = os.environ["TF_NUM_INTEROP_THREADS"] = str(threads)


def set_verbose(verbose: bool) -> None:
    """Let TensorFlow print its start-up messages (True), or only errors (False, the default)."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "0" if verbose else "3"


@functools.cache
def tensorflow() -> Any:
    """TensorFlow, imported now if it was not, without its start-up noise unless `set_verbose(True)` was called."""
    prepare_environment()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    quiet = os.environ["TF_CPP_MIN_LOG_LEVEL"] == "3"
    # Messages logged before absl is initialized ignore every log level, hence the redirection.
    with _standard_error_held_back() if quiet else contextlib.nullcontext():
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
def _standard_error_held_back() -> Iterator[None]:
    """Hold back what native code writes to standard error; show it if the block fails."""
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


_switched_on: set[str] = set()  # what was switched on for this process


def make_deterministic(seed: int = 0) -> None:
    """From now on equal computations of this process give equal bits, some of them more slowly."""
    tensorflow().config.experimental.enable_op_determinism()
    import keras  # after TensorFlow was started quietly

    keras.utils.set_random_seed(seed)  # without a global seed TensorFlow then refuses random ops
    _switched_on.add("determinism")


def is_deterministic() -> bool:
    """Whether `make_deterministic` was called."""
    return "determinism" in _switched_on


def compile(function: Callable[..., Any], *, xla: bool = False, signature: Any = None) -> Callable[..., Any]:
    """`function` as one compiled graph; `xla` as `prefers_xla` says. With a `signature` (TensorSpecs) batches of
    every size share one graph."""
    tf = tensorflow()
    return tf.function(function, jit_compile=xla, autograph=False, input_signature=signature)


def prefers_xla(model: Any) -> bool:
    """Whether XLA makes this Keras model faster: dense nets yes, convolutions on a CPU no (they lose oneDNN)."""
    return not any("Conv" in type(layer).__name__ for layer in leaf_layers(model))


def attack_prefers_xla(model: Any) -> bool:
    """Whether XLA makes a gradient attack on this model faster, once it is compiled: dense nets, by 3% to 45% (the
    smaller the batch the more: tools/bench_attacks.py)."""
    return prefers_xla(model)


def fuses_batch_norm() -> bool:
    """Whether TensorFlow's single operation for batch norm in training is used: on a CPU, where it was measured."""
    return not tensorflow().config.list_physical_devices("GPU")


def leaf_layers(model: Any) -> Iterator[Any]:
    """The layers of a Keras model that are no models themselves."""
    for layer in getattr(model, "layers", []):
        if getattr(layer, "layers", None):
            yield from leaf_layers(layer)
        else:
            yield layer


def derived_seed(*parts: int) -> int:
    """A 31-bit seed that depends on all of `parts`, for independent streams from one seed."""
    import numpy as np

    return int(np.random.SeedSequence(list(parts)).generate_state(1)[0] >> 1)


def device_name() -> str:
    """The device that computes, in words: the GPU's name, or the CPU's with its number of cores."""
    tf = tensorflow()
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        name = tf.config.experimental.get_device_details(gpus[0]).get("device_name", "GPU")
        return f"{len(gpus)} x {name}"
    return f"CPU {_processor()}, {len(os.sched_getaffinity(0))} cores, oneDNN {_onednn()}"


def _onednn() -> str:
    return "on" if os.environ.get("TF_ENABLE_ONEDNN_OPTS") == "1" else "off"


def _processor() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


@functools.cache
def _versions() -> dict[str, str]:
    from bn_vuln.version import __version__

    packages = {name: importlib.metadata.version(name) for name in ("tensorflow", "keras", "numpy")}
    return {"bnvuln": __version__, "python": platform.python_version(), **packages}


def versions() -> dict[str, str]:
    """Versions of Python and of what computes the numbers."""
    return dict(_versions())
