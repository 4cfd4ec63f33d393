"""The history of a training on disk: history.csv, and TensorBoard's event files where they are asked for."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from bn_vuln.runtime import backend
from bn_vuln.runtime.files import atomic_write
from bn_vuln.runtime.progress import Epoch

SCALARS = ("loss", "train_accuracy", "validation_accuracy", "learning_rate", "images_per_second")


def write_history(folder: Path, history: list[Epoch]) -> None:
    """Write the epochs into history.csv of a run folder."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(asdict(history[0])), lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(epoch) for epoch in history)
    atomic_write(folder / "history.csv", text.getvalue())


def tensorboard_writer(folder: Path) -> Callable[[Epoch], None]:
    """Return a function that adds an epoch to the event files in FOLDER/tensorboard."""
    tf = backend.tensorflow()
    plugin = tf.compat.v1.SummaryMetadata.PluginData(plugin_name="scalars")
    metadata = tf.compat.v1.SummaryMetadata(plugin_data=plugin)
    writer = tf.summary.create_file_writer(str(folder / "tensorboard"))

    def write(epoch: Epoch) -> None:
        with writer.as_default(step=epoch.number):
            for name in SCALARS:
                # tf.summary.scalar does the same, but needs TensorBoard to be installed.
                tf.summary.write(name, tf.constant(getattr(epoch, name), tf.float32), metadata=metadata)
        writer.flush()

    return write
