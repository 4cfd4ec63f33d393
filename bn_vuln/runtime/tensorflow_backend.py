"""The protocol of `backend` on TensorFlow, its start-up and its settings; only this module sets them."""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from bn_vuln.errors import BnvulnError, UsageError
from bn_vuln.typing import Tensor


@functools.cache
def tensorflow() -> Any:
    """Return TensorFlow, imported quietly now if it was not."""
    with _quietly():
        import tensorflow as tf

        _split_cpu(tf)
        tf.config.list_physical_devices()
        tf.constant(0)
    if os.environ["TF_CPP_MIN_LOG_LEVEL"] == "3":
        tf.get_logger().setLevel("ERROR")
    return tf


def start_multiworker(meet: Callable[[], None]) -> Any:
    """Start TensorFlow together with the other hosts of TF_CONFIG; return the strategy over all.

    `meet` is called before they are connected.
    """
    with _quietly():
        import tensorflow as tf
    if tensorflow.cache_info().currsize:
        raise UsageError("strategy: multiworker has to start before anything else uses TensorFlow in this process")
    meet()
    with _quietly():
        try:
            strategy = tf.distribute.MultiWorkerMirroredStrategy(
                communication_options=tf.distribute.experimental.CommunicationOptions()
            )
        except (RuntimeError, ValueError, tf.errors.OpError) as error:
            raise BnvulnError(
                f"strategy: TensorFlow does not connect the hosts: {str(error).splitlines()[0]}"
            ) from None
    tensorflow()
    return strategy


def report_to_hosts(message: str) -> None:
    """Let what the other hosts compute together with this one fail with a message."""
    from tensorflow.python.eager import context  # the public API has it not

    context.context().report_error_to_cluster(tensorflow().errors.ABORTED, message)


def _quietly() -> contextlib.AbstractContextManager[None]:
    """The context in which TensorFlow starts.

    Messages logged before absl is initialized ignore every log level, hence the redirection.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    return _suppressed_stderr() if os.environ["TF_CPP_MIN_LOG_LEVEL"] == "3" else contextlib.nullcontext()


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
        except Exception:
            held.seek(0)
            os.write(saved, held.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(saved, 2)
            os.close(saved)


def start() -> None:
    """Start TensorFlow."""
    tensorflow()


def _split_cpu(tf: Any) -> None:
    """Make BNVULN_LOGICAL_CPUS devices of the CPU, to try `--strategy mirrored` without GPUs."""
    text = os.environ.get("BNVULN_LOGICAL_CPUS", "1")
    if not text.isdigit() or text == "0":
        raise UsageError(f"BNVULN_LOGICAL_CPUS: expected a number of devices, received {text!r}")
    count = int(text)
    if count > 1:
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * count)


def make_deterministic() -> None:
    """Let TensorFlow's ops give equal bits from now on."""
    tensorflow().config.experimental.enable_op_determinism()


def compile(function: Callable[..., Any], *, xla: bool, signature: Sequence[object] | None) -> Callable[..., Any]:
    """See `backend.compile`."""
    compiled: Callable[..., Any] = tensorflow().function(
        function, jit_compile=xla, autograph=False, input_signature=signature
    )
    return compiled


def spec(shape: tuple[int | None, ...], dtype: str) -> object:
    """See `backend.spec`."""
    return tensorflow().TensorSpec(shape, dtype)


def value_and_gradient(function: Callable[[Any], tuple[Tensor, Any]], x: Any) -> tuple[Tensor, Any, Any]:
    """See `backend.value_and_gradient`."""
    tf = tensorflow()
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(x)
        values, rest = function(x)
    gradient = tape.gradient(values, x, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    # Its shape is unknown behind a Python function.
    return values, tf.nest.map_structure(lambda g, t: tf.ensure_shape(g, t.shape), gradient, x), rest


def jacobian(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """See `backend.jacobian`: one backward pass an output."""
    tf = tensorflow()
    with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
        tape.watch(x)
        columns = tf.unstack(tf.reduce_sum(function(x), axis=0))
    zero = tf.UnconnectedGradients.ZERO
    gradients: Tensor = tf.stack([tape.gradient(c, x, unconnected_gradients=zero) for c in columns], axis=1)
    return gradients


def gather(x: Tensor, indices: Tensor, axis: int) -> Tensor:
    """See `backend.gather`."""
    gathered: Tensor = tensorflow().gather(x, indices, axis=axis, batch_dims=1)
    return gathered


def place(array: object, dtype: str | None) -> Tensor:
    """See `backend.place`."""
    tensor: Tensor = tensorflow().constant(array, dtype)
    return tensor


def is_tracing() -> bool:
    """See `backend.is_tracing`."""
    return not tensorflow().executing_eagerly()


@contextlib.contextmanager
def functions_inlined(active: bool) -> Iterator[None]:
    """See `backend.functions_inlined`."""
    config = tensorflow().config
    before = config.functions_run_eagerly()
    config.run_functions_eagerly(before or active)
    try:
        yield
    finally:
        config.run_functions_eagerly(before)


def repeat(operation: Any, tensor: Tensor) -> Tensor:
    """Return what an operation of a graph makes of another tensor as its first input.

    The parameters of its function are its inputs and its attributes, but for dtypes.
    """
    function = getattr(tensorflow().raw_ops, operation.type)
    attributes = [operation.get_attr(one.name) for one in operation.op_def.attr if one.type != "type"]
    values = [tensor, *operation.inputs[1:], *attributes]
    repeated: Tensor = function(**dict(zip(inspect.signature(function).parameters, values, strict=False)))
    return repeated


def own_types() -> tuple[tuple[type, ...], tuple[type, ...]]:
    """See `backend.own_types`."""
    tf = tensorflow()
    return (tf.Variable, type(tf.constant(0))), (tf.DType, tf.TensorShape)


def gpu_names() -> list[str]:
    """Return the name of each GPU."""
    config = tensorflow().config
    gpus = config.list_physical_devices("GPU")
    return [config.experimental.get_device_details(gpu).get("device_name", "GPU") for gpu in gpus]


def memory_error() -> type[Exception]:
    """See `backend.memory_error`."""
    error: type[Exception] = tensorflow().errors.ResourceExhaustedError
    return error


def fuses_batch_norm() -> bool:
    """Return if TensorFlow's fused op for batch norm in training is used: on a CPU, where it was measured."""
    return not gpu_names()
