"""The operations of `keras.ops`, on whatever backend Keras runs: `ops.where(mask, x, y)`.

Keras is imported when the first one is used: it starts its backend, which takes seconds.
"""

from typing import Any

from bn_vuln.runtime import backend


def __getattr__(name: str) -> Any:
    if name.startswith("__"):  # what Python asks of any module
        raise AttributeError(name)
    backend.start()
    import keras

    operation = globals()[name] = getattr(keras.ops, name)
    return operation
