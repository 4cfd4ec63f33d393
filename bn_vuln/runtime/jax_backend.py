"""The protocol of `backend` on JAX, its start-up and its settings; only this module and the training steps import it.

A compiled function takes the Keras variables that it reads as arguments, or weights would be constants of the program,
compiled again after each training step. What it assigns (the statistics of BN in training, seeds) is assigned after it.
"""

from __future__ import annotations

import contextlib
import functools
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from bn_vuln.errors import UsageError
from bn_vuln.typing import Tensor, Variable

PRECISION = "JAX_DEFAULT_MATMUL_PRECISION"  # JAX's own variable: highest is float32, tensorfloat32 is faster on GPUs
_scopes: list[object] = []  # in which functions are being traced, the innermost last


@functools.cache
def jax() -> Any:
    """Return JAX, imported now if it was not; matrix products are in float32 where the user has not said otherwise."""
    os.environ.setdefault(PRECISION, "highest")
    try:
        import jax
    except ImportError as error:
        raise UsageError("KERAS_BACKEND=jax: JAX is not installed; pip install 'bnvuln[jax]'") from error
    warnings.filterwarnings("ignore", message="Explicitly requested dtype")  # float64, which is float32 here
    return jax


def start() -> None:
    """Start JAX."""
    jax().devices()


def tensorflow() -> Any:
    """Refuse what needs TensorFlow."""
    raise UsageError("this needs TensorFlow, and the backend is JAX: set KERAS_BACKEND=tensorflow")


def make_deterministic() -> None:
    """Let operations of GPUs give equal bits; call it before JAX computes. On a CPU they do."""
    option = "--xla_gpu_deterministic_ops=true"
    if option not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {option}".strip()


# ---------------------------------------------------------------- functions of tensors and variables


@contextlib.contextmanager
def variables_as(
    values: Iterable[tuple[Variable, Tensor]] = (), read: dict[int, Variable] | None = None
) -> Iterator[list[tuple[Variable, Tensor]]]:
    """Give variables these values inside, and keep them from being assigned.

    Args:
        values: (variable, its value); others have the value that they have around it.
        read: gets those others that are read, by id.

    Yields:
        (variable, value) that were to be assigned, known at the end.
    """
    import keras

    class Scope(keras.StatelessScope):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(list(values), initialize_variables=False)
            self.updated: dict[int, Variable] = {}

        def get_current_value(self, variable: Variable) -> Any:
            value = super().get_current_value(variable)
            if value is None and self.original_scope is not None:
                value = self.original_scope.get_current_value(variable)
            if value is None and read is not None:
                read[id(variable)] = variable
            return value

        def add_update(self, update: tuple[Variable, Tensor]) -> None:
            super().add_update(update)
            self.updated[id(update[0])] = update[0]

    updates: list[tuple[Variable, Tensor]] = []
    with Scope() as scope:
        _scopes.append(scope)
        try:
            yield updates
            updates += [(variable, scope.state_mapping[key]) for key, variable in scope.updated.items()]
        finally:
            _scopes.pop()


def compile(
    function: Callable[..., Any], *, xla: bool = False, signature: Sequence[object] | None = None
) -> Callable[..., Any]:
    """See `backend.compile`; there is no other compiler than XLA, and each shape is compiled by itself."""
    programs: dict[object, tuple[Callable[..., Any], list[Variable], list[Variable]]] = {}

    def compiled(*args: Any) -> Any:
        if _scopes:
            return function(*args)
        args = jax().tree.map(jax().numpy.asarray, args)
        leaves, structure = jax().tree.flatten(args)
        key = structure, *((leaf.shape, leaf.dtype) for leaf in leaves)
        if key not in programs:
            programs[key] = _program(function, args)
        program, read, assigned = programs[key]
        result, values = program([variable.value for variable in read], args)
        assign(assigned, values)
        return result

    return compiled


def _program(
    function: Callable[..., Any], args: tuple[Any, ...]
) -> tuple[Callable[..., Any], list[Variable], list[Variable]]:
    """(jitted function of variables' values and arguments, variables that it reads, variables that it assigns)."""
    found: dict[int, Variable] = {}
    assigned: list[Variable] = []

    def find(args: tuple[Any, ...]) -> None:
        with variables_as(read=found) as updates:
            function(*args)
        assigned.extend(variable for variable, _ in updates)

    jax().eval_shape(find, args)
    read = list(found.values())

    def run(values: list[Tensor], args: tuple[Any, ...]) -> tuple[Any, list[Tensor]]:
        with variables_as(zip(read, values, strict=True)) as updates:
            result = function(*args)
        return result, [value for _, value in updates]

    return jax().jit(run), read, assigned


def assign(variables: Iterable[Variable], values: Iterable[Tensor]) -> None:
    """Assign values to variables, in their order."""
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def spec(shape: tuple[int | None, ...], dtype: str) -> object:
    """See `backend.spec`; `compile` makes no use of it."""
    return shape, dtype


def value_and_gradient(function: Callable[[Any], tuple[Tensor, Any]], x: Any) -> tuple[Tensor, Any, Any]:
    """See `backend.value_and_gradient`."""
    assigned: list[Variable] = []

    def pure(x: Any) -> Any:
        with variables_as() as updates:
            values, rest = function(x)
        assigned[:] = [variable for variable, _ in updates]
        return values, (rest, [value for _, value in updates])

    values, pull_back, (rest, updates) = jax().vjp(pure, x, has_aux=True)
    assign(assigned, updates)
    return values, pull_back(jax().numpy.ones_like(values))[0], rest


def jacobian(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """See `backend.jacobian`: one forward pass, and the backward passes of all outputs at once."""
    jnp = jax().numpy

    def pure(x: Tensor) -> Tensor:
        with variables_as():
            return function(x)

    outputs, pull_back = jax().vjp(pure, x)
    k = outputs.shape[1]
    columns = jnp.broadcast_to(jnp.eye(k, dtype=outputs.dtype)[:, None], (k, *outputs.shape))
    gradients: Tensor = jnp.moveaxis(jax().vmap(lambda column: pull_back(column)[0])(columns), 0, 1)
    return gradients


def gather(x: Tensor, indices: Tensor, axis: int) -> Tensor:
    """See `backend.gather`."""
    take = functools.partial(jax().numpy.take, axis=axis - 1, mode="clip")
    gathered: Tensor = jax().vmap(take)(x, indices)
    return gathered


def place(array: object, dtype: str | None = None) -> Tensor:
    """See `backend.place`; what is float64 or int64 becomes float32 or int32."""
    tensor: Tensor = jax().numpy.asarray(array, None if dtype is None else jax().dtypes.canonicalize_dtype(dtype))
    return tensor


def is_tracing() -> bool:
    """See `backend.is_tracing`."""
    return bool(_scopes)


@contextlib.contextmanager
def functions_inlined(active: bool) -> Iterator[None]:
    """See `backend.functions_inlined`: a compiled function that is traced is inlined anyway."""
    yield


# ---------------------------------------------------------------- devices


def memory_error() -> type[Exception]:
    """See `backend.memory_error`: JAX has one class for all errors of a program that runs."""
    error: type[Exception] = jax().errors.JaxRuntimeError
    return error


def own_types() -> tuple[tuple[type, ...], tuple[type, ...]]:
    """See `backend.own_types`."""
    return (jax().Array,), ()


def gpu_names() -> list[str]:
    """Return the name of the GPU that computes, if there is one: others are not used."""
    return [device.device_kind for device in jax().devices()[:1] if device.platform == "gpu"]


def fuses_batch_norm() -> bool:
    """Return if TensorFlow's fused op for batch norm is used: there is none."""
    return False


def precision() -> str:
    """Return the precision of matrix products, as the device's name in a record says it."""
    value = jax().config.jax_default_matmul_precision
    return {"highest": "float32", None: "default"}.get(value, str(value))
