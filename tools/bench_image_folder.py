"""Seconds and peak memory of an evaluation on a folder of photos of many sizes.

    python tools/bench_image_folder.py > results/bench_image_folder.json    about 25 minutes on two cores, 2 GB of disk

Photos are made once, in --folder: JPEG files of 200 to 640 pixels a side, clouds of random colours, in ten folders of
classes. A small convolutional net (Keras' initial weights) of 224 x 224 pixels, which stands for a user's model, is
evaluated on all of them: clean images and FGSM. Its accuracy means nothing. `peak_gb` is the largest resident memory of
the process, TensorFlow's own included; `started_gb` is what it held before the evaluation.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from bench import print_report
from PIL import Image

import bn_vuln as bnv
from bn_vuln.runtime import backend
from bn_vuln.runtime.threads import map_in_order

SIZE, CLASSES = 224, 10


def make_photos(folder: Path, n: int) -> None:
    """Make the first n photos that are not there yet; the content of each depends on its number alone."""
    for label in range(CLASSES):
        (folder / str(label)).mkdir(parents=True, exist_ok=True)

    def make(number: int) -> None:
        path = folder / str(number % CLASSES) / f"{number:06}.jpg"
        if not path.exists():
            rng = np.random.default_rng(number)
            width, height = map(int, rng.integers(200, 641, 2))
            colours = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))
            colours.resize((width, height), Image.Resampling.BICUBIC).save(path, quality=85)

    for _ in map_in_order(make, range(n)):
        pass


def small_net() -> bnv.typing.KerasModel:
    """A net of few operations, so that the images take their share of the time."""
    import keras

    keras.utils.set_random_seed(0)
    layers = keras.layers
    model: bnv.typing.KerasModel = keras.Sequential(
        [
            keras.Input((SIZE, SIZE, 3)),
            layers.Conv2D(8, 8, strides=8, activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(CLASSES),
        ]
    )
    return model


def peak_gb() -> float:
    """Largest resident memory of this process so far; kilobytes on Linux, bytes on macOS."""
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=50_000, help="photos (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="where they are kept (default: made and removed)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (args.folder or Path(temporary)) / f"photos-{args.n}"
        make_photos(folder, args.n)
        backend.tensorflow()
        model, started = small_net(), peak_gb()
        begun = time.perf_counter()
        records = bnv.evaluate(
            model,
            dataset=f"folder:{folder}",
            suite={"clean": {"kind": "clean"}, "fgsm": {"kind": "attack", "attack": "fgsm", "eps": "2/255"}},
            input_scale="0-1",
            output="logits",
            resize="crop",
            checks="none",
        )
        seconds = time.perf_counter() - begun
    assert all(record.n == args.n for record in records.values())
    results = {"seconds": round(seconds, 1), "started_gb": started, "peak_gb": peak_gb()}
    print_report({"evaluate": results}, 1, n=args.n, size=SIZE, perturbations=list(records))


if __name__ == "__main__":
    main()
