"""An audit of a pair at 224 pixels, on photos of several sizes that stay in their files."""

import numpy as np
import pytest
from PIL import Image

import bn_vuln as bnv
from bn_vuln.runtime import backend


def net(normalized: bool) -> bnv.typing.KerasModel:
    """Mean of red less that of blue, from pixels far apart."""
    backend.start()
    import keras

    keras.utils.set_random_seed(0)
    inputs = keras.Input((224, 224, 3))
    x = keras.layers.Conv2D(2, 1, strides=16, use_bias=False, name="conv")(inputs)
    x = keras.layers.BatchNormalization()(x) if normalized else x
    model = keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(x))
    model.get_layer("conv").set_weights([np.array([[[[1, -1], [0, 0], [-1, 1]]]], np.float32)])
    return model


@pytest.mark.slow
def test_a_pair_is_audited_at_224_pixels(tmp_path):
    generator = np.random.default_rng(0)
    for i in range(24):
        pixels = generator.integers(0, 200, (230 + i % 3, 300 + i % 5, 3), np.uint8)
        pixels[..., 2 * (i % 2)] += np.uint8(20 + i)  # red or blue
        path = tmp_path / "photos" / ("red", "blue")[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    names = [str(tmp_path / f"{name}.keras") for name in ("with_bn", "without")]
    for name, normalized in zip(names, (True, False), strict=True):
        net(normalized).save(name)
    found = bnv.audit(
        names[0],
        second=names[1],
        dataset=f"folder:{tmp_path / 'photos'}",
        class_names=["red", "blue"],
        limit=20,
        time="1s",
        out=tmp_path / "audit",
        input_scale="0-1",
        output="logits",
        resize="imagenet",
    ).findings
    assert [len(model.layers) for model in found.models] == [1, 0]
    for model in found.models:
        assert model.accuracies[0].accuracy.value == 1.0
        assert model.strong is not None
    assert found.eps > 0
    assert (tmp_path / "audit" / "index.html").exists()
