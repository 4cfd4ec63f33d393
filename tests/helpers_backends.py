"""What both backends compute in the tests, and a process in which JAX computes it and TensorFlow cannot be imported.

KERAS_BACKEND=jax python tests/helpers_backends.py FOLDER [audit]
"""

from __future__ import annotations

import importlib.abc
import sys
from pathlib import Path

import numpy as np

TRAININGS = {
    "plain": {
        "weight_decay": 0.01,
        "train": {"lr": 0.01, "momentum": 0.9, "augment": {"pad": 2}, "label_smoothing": 0.1},
    },
    "adversarial": {"train": {"lr": 0.01, "adversarial": {"eps": 0.1, "steps": 2}}},
    "enlarged": {"data": {"width": 42}, "weight_decay": 0.01, "normalization": "none", "train": {"lr": 0.01}},
}
COMMON = {
    "data": {"name": "mnist", "width": 28, "limit": 640, "validation": 500},
    "arch": {"name": "mlp", "hidden": [32]},
    "normalization": "batch",
    "train": {"epochs": 1, "batch_size": 32},
    "init_generator": "numpy",
}


class NoTensorFlow(importlib.abc.MetaPathFinder):
    """Let TensorFlow and all that needs it be absent."""

    def find_spec(self, name: str, path: object, target: object = None) -> None:
        if name.partition(".")[0] in ("tensorflow", "tensorflow_datasets", "cleverhans"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def pixels() -> np.ndarray:
    """Return 300 images of MNIST, float32 [300, 28, 28, 1]."""
    from bn_vuln import data

    return (data.load("mnist", limit=300).images / 255).astype(np.float32)


def compute(folder: Path) -> dict[str, np.ndarray]:
    """Train for 20 steps, and call and attack the model in other.keras of a folder; own.keras is what was trained.

    Returns:
        weights.TRAINING.NUMBER, logits, own_logits, adversarial, images, labels, record, and those of `protocol`.
    """
    from bn_vuln import config, data
    from bn_vuln.attacks import ThreatModel, active_set
    from bn_vuln.attacks.active_set import EveryAttempt
    from bn_vuln.attacks.pgd import PGD
    from bn_vuln.external.loading import load_keras
    from bn_vuln.runtime import backend
    from bn_vuln.training import train

    found: dict[str, np.ndarray] = {}
    x, examples = pixels(), data.load("mnist", limit=300)
    for name, fields in TRAININGS.items():
        merged = {**COMMON, **fields}
        merged |= {key: {**COMMON[key], **fields.get(key, {})} for key in ("data", "train")}
        result = train(config.validate(config.Cell, merged, name))
        found |= {f"weights.{name}.{i}": value for i, value in enumerate(result.model.get_weights())}
        if name == "plain":
            result.model.save(folder / "own.keras")
            found["own_logits"] = np.asarray(result.model(x))
            found["record"] = np.array(result.record.model_dump_json())
    other = load_keras(folder / "other.keras")
    found["logits"] = np.asarray(backend.compile(lambda x: other(x, training=False))(x))
    attack = PGD(other, ThreatModel("inf", 0.05, np.ones(1), 0.0, 1.0), 20, 0.005, seed=3)
    searched = active_set.run(attack, x, examples.labels, EveryAttempt(0.05), index=examples.index.astype(np.int32))
    published = data.load("cifar10", "train", validation=0)
    return {
        **found,
        "adversarial": searched.is_adversarial,
        "images": published.images,
        "labels": published.labels,
        **protocol(),
    }


def protocol() -> dict[str, np.ndarray]:
    """Return what the functions of `runtime.backend` make of small numbers."""
    import keras

    from bn_vuln.runtime import backend, ops

    w, counter, tracing = keras.Variable(1.0), keras.Variable(0.0), [backend.is_tracing()]

    def cubes(x: object) -> object:
        tracing[1:] = [backend.is_tracing()]
        counter.assign(counter + 1)
        return backend.value_and_gradient(lambda x: (ops.sum(w * x**3, axis=1), None), x)[1]

    compiled, x, gradients = backend.compile(cubes), np.array([[1, 2, 3]], np.float32), []
    for value in (1.0, 2.0):
        w.assign(value)
        gradients.append(np.asarray(compiled(x))[0])
    outputs = backend.compile(
        lambda x: backend.jacobian(lambda x: ops.stack([ops.sum(x**3, axis=1), ops.sum(x**2, axis=1)], axis=1), x)
    )
    rows = backend.place(np.array([[[1], [2], [3]], [[4], [5], [6]]]))
    return {
        "gradients": np.array(gradients),
        "jacobian": np.asarray(outputs(x)),
        "gathered": np.asarray(backend.gather(rows, backend.place(np.array([[2, 0], [0, 0]])), axis=1)),
        "counted": np.asarray(counter),
        "tracing": np.array(tracing),
    }


def audited(folder: Path) -> dict[str, np.ndarray]:
    """Return the findings of an audit of the model in other.keras of a folder, as JSON."""
    from bn_vuln import api

    result = api.audit(folder / "other.keras", dataset="mnist", input_scale="0-1", limit=20, time=0.1)
    return {"audit": np.array(result.findings.model_dump_json())}


if __name__ == "__main__":
    sys.meta_path.insert(0, NoTensorFlow())
    place, *audit = map(Path, sys.argv[1:])
    np.savez(place / "jax.npz", **(audited(place) if audit else compute(place)))
