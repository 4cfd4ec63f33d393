"""Input scales against keras.applications, and decisions on models whose scale is known."""

import numpy as np
import pytest

from bn_vuln.errors import UsageError
from bn_vuln.external.input_scale import NAMES, decide, doubt, parse, seen
from bn_vuln.runtime import backend

tf = backend.tensorflow()
import keras  # noqa: E402
from keras import layers  # noqa: E402
from keras.applications import imagenet_utils  # noqa: E402

BYTES = np.arange(256 * 3, dtype=np.float32).reshape(1, 16, 16, 3) % 256  # each value in each channel
PIXELS = tf.constant(BYTES / np.float32(255))


@pytest.mark.parametrize("mode", ["caffe", "torch", "tf"])
def test_the_modes_are_those_of_keras_applications(mode):
    expected = imagenet_utils.preprocess_input(BYTES.copy(), data_format="channels_last", mode=mode)
    np.testing.assert_array_equal(parse(mode, 3)(PIXELS), expected)


def test_bytes_are_exact():
    np.testing.assert_array_equal(parse("0-255", 3)(PIXELS), BYTES)
    np.testing.assert_array_equal(parse("0-1", 3)(PIXELS), PIXELS)
    assert parse("-1-1", 3) == parse("tf", 1)


def test_numbers_are_mean_and_std():
    expected = (BYTES / 255 - [0.1, 0.2, 0.3]) / [0.4, 0.5, 0.6]
    np.testing.assert_allclose(parse("0.1,0.2,0.3, 0.4,0.5,0.6", 3)(PIXELS), expected, atol=1e-6)
    np.testing.assert_allclose(parse("127.5/255,0.5", 3)(PIXELS), BYTES / 127.5 - 1, atol=1e-6)
    assert parse("0.50, 1/2", 3).name == "0.5,0.5"


@pytest.mark.parametrize("name", [*NAMES, "0.5,0.25"])
def test_the_gradient_flows_through(name):
    scale = parse(name, 3)
    with tf.GradientTape() as tape:
        tape.watch(PIXELS)
        total = tf.reduce_sum(scale(PIXELS)[..., 0])
    gradient = np.asarray(tape.gradient(total, PIXELS))
    factor = {"0-1": 1, "0-255": 255, "-1-1": 2, "torch": 1 / 0.229, "caffe": 255, "0.5,0.25": 4}[name]
    channel = 2 if name == "caffe" else 0
    np.testing.assert_allclose(gradient[..., channel], factor, rtol=1e-6)
    assert np.count_nonzero(gradient) == 256


@pytest.mark.parametrize(
    ("text", "channels", "message"),
    [
        ("auto", 1, "expected 0-1, 0-255"),
        ("0..1", 1, "received '0..1'"),
        ("nan,1", 1, "received 'nan,1'"),
        ("0.5,inf", 1, "received"),
        ("0.5,1/0", 1, "received"),
        ("0.5", 1, "2 numbers, MEAN,STD, received 1"),
        ("0.5,0.5,0.5", 3, "2 numbers, MEAN,STD, or 6, those of each channel, received 3"),
        (".1,.1,.1,.2,.2,.2", 1, "2 numbers, MEAN,STD, received 6"),
        ("0.5,0", 1, "positive stds"),
        ("0.5,-1", 1, "positive stds"),
        ("127.5,127.5", 1, "divide those of 0-255 by 255"),
        ("-1,1", 1, "means from 0 to 1"),
        ("caffe", 1, "only for models of 3 channels"),
        ("torch", 1, "only for models of 3 channels"),
    ],
)
def test_what_is_no_scale_is_refused(text, channels, message):
    with pytest.raises(UsageError, match=rf"--input-scale.*{message}"):
        parse(text, channels)


RNG = np.random.default_rng(0)
LABELS = np.arange(200, dtype=np.int32) % 2
# Dark images of class 0 and bright ones of class 1.
IMAGES = np.clip(RNG.random((200, 4, 4, 1)) * 0.5 + 0.5 * LABELS[:, None, None, None], 0, 1).astype(np.float32)


def model(*begin, shape=(4, 4, 1)):
    net = keras.Sequential([keras.Input(shape), *begin, layers.Flatten(), layers.Dense(2)])
    return lambda x: net(x, training=False)


def normalization(mean, variance):
    return layers.Normalization(mean=mean, variance=variance)


class Halves(layers.Layer):
    """The scale of a custom layer."""

    def call(self, x):
        return 2.0 * x - 1.0


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: [layers.Rescaling(1 / 255)], "0-255"),
        (lambda: [layers.Rescaling(1 / 127.5, -1)], "0-255"),
        (lambda: [layers.Rescaling(2, -1)], "0-1"),
        (lambda: [layers.Rescaling(1, -0.5)], "0-1"),
        (lambda: [layers.Rescaling(255)], "0-1"),
        (lambda: [layers.Rescaling(0.5, 0.5)], "-1-1"),
        (lambda: [layers.Rescaling(127.5, 127.5)], "-1-1"),
        (lambda: [layers.Rescaling(127.5, 127.5), layers.Rescaling(1 / 255)], "-1-1"),
        (lambda: [layers.Rescaling(1 / 255, dtype="float16")], "0-255"),
        (lambda: [normalization(128.0, 6000.0)], "0-255"),
        (lambda: [normalization(0.5, 0.1)], "0-1"),
        (lambda: [normalization(0.0, 0.35)], "-1-1"),
        (lambda: [layers.Flatten(), normalization(np.full(16, 128.0), np.full(16, 6000.0))], "0-255"),
        (lambda: [layers.Rescaling(1, -117.0)], "0-255"),
        (lambda: [layers.Rescaling(1 / 255), normalization(0.5, 0.1)], "0-255"),
        (lambda: [layers.Flatten(), layers.Rescaling(1 / 255)], "0-255"),
        (lambda: [layers.Resizing(8, 8), layers.RandomFlip(), layers.Rescaling(1 / 255)], "0-255"),
        (lambda: [layers.Pipeline([layers.RandomZoom(0.1), layers.Rescaling(1 / 255)])], "0-255"),
        (lambda: [keras.Sequential([layers.RandomContrast(0.1), layers.Rescaling(1 / 255)])], "0-255"),
        (lambda: [layers.GaussianNoise(0.1), layers.Dropout(0.1), layers.Rescaling(1 / 255)], "0-255"),
        (lambda: [layers.Lambda(lambda x: x / 255)], "0-255"),
        (lambda: [Halves()], "0-1"),
        (lambda: [layers.Rescaling(0.5)], None),
        (lambda: [layers.Rescaling(7, 3)], None),
    ],
)
def test_arithmetic_at_the_beginning_is_seen(make, name):
    found = seen(model(*make()), IMAGES)
    assert found is not None
    assert found.name == name


def test_plain_operations_of_functional_models_are_seen():
    image = keras.Input((4, 4, 3))
    net = keras.Model(image, layers.Conv2D(2, 3)((image / 127.5) - 1.0))
    found = seen(net, RNG.random((8, 4, 4, 3)).astype(np.float32))
    assert (found.name, found.text) == ("0-255", "x * 0.007843 - 1")


@pytest.mark.parametrize(
    "begin", [[], [layers.Conv2D(1, 1)], [layers.ReLU()], [layers.BatchNormalization()], [layers.Dropout(0.5)]]
)
def test_nothing_is_seen_where_nothing_is(begin):
    assert seen(model(*begin), IMAGES) is None


def test_statistics_of_batch_normalization_at_the_input_are_seen():
    layer = layers.BatchNormalization()
    call = model(layer)
    layer.set_weights([np.ones(1), np.zeros(1), np.full(1, 128.0), np.full(1, 6000.0)])
    assert seen(call, IMAGES).name == "0-255"


def brightness(threshold, *begin):
    """A model that takes images brighter than a threshold for class 1."""
    head = layers.Dense(2)
    net = keras.Sequential([keras.Input((4, 4, 1)), *begin, layers.Flatten(), head])
    head.set_weights([np.stack([np.zeros(16), np.full(16, 20 / 16)], 1), np.array([0, -20 * threshold])])
    return net


def decided(net, images=IMAGES, labels=LABELS, **settings):
    return decide(net, images, labels, split="train", model=net, source="m.keras", **settings)


@pytest.mark.parametrize(("threshold", "name"), [(0.5, "0-1"), (127.5, "0-255"), (0.0, "-1-1")])
def test_the_best_accuracy_decides(threshold, name):
    decision = decided(brightness(threshold))
    assert decision.scale == parse(name, 1)
    assert "by the accuracies on 200 labelled images of train" in decision.text
    assert f"{name} 100.0%" in decision.text


@pytest.mark.parametrize("name", ["0-1", "-1-1", "0.4,0.25"])
def test_statistics_of_batch_normalization_may_speak_against_the_best_accuracy(name):
    normalize = layers.BatchNormalization()
    net = brightness(0.5, normalize)
    inputs = np.asarray(parse(name, 1)(tf.constant(IMAGES)))
    mean, variance = inputs.mean(keepdims=True).ravel(), inputs.var(keepdims=True).ravel()
    normalize.set_weights([np.sqrt(variance + normalize.epsilon), mean, mean, variance])  # it changes nothing
    if name == "0-1":
        assert decided(net).scale.name == "0-1"
        return
    with pytest.raises(UsageError, match=r"0-1 has the best accuracy, but .* fit -1-1 better, or .*0-1 100.0%"):
        decided(net)


def test_channels_in_the_order_of_caffe_are_found():
    images = RNG.random((200, 4, 4, 3)).astype(np.float32)
    images[..., 2] = IMAGES[..., 0]  # blue
    net = brightness(127.5 - 103.939)
    blue = keras.Sequential([keras.Input((4, 4, 3)), layers.Lambda(lambda x: x[..., :1]), net])
    assert decided(blue, images).scale.name == "caffe"


def left_or_right(*rest):
    """A model without biases, and images whose left or right half is brighter: it finds them at any scale."""
    images = RNG.random((200, 4, 4, 1)).astype(np.float32) * 0.5
    images[::2, :, 2:] += 0.5
    images[1::2] = images[::2, :, ::-1]
    columns = np.where(np.arange(16) % 4 < 2, -1.0, 1.0)
    head = layers.Dense(1, use_bias=False)
    net = keras.Sequential([keras.Input((4, 4, 1)), layers.Flatten(), head, *rest, layers.Dense(2, use_bias=False)])
    head.set_weights([columns[:, None]])
    net.layers[-1].set_weights([np.array([[1.0, -1.0]])])
    return net, images


def test_equal_accuracies_decide_nothing():
    net, images = left_or_right()
    with pytest.raises(UsageError, match=r"auto cannot decide on 200 .* of train: no accuracy leads by 10 points") as e:
        decided(net, images)
    for text in (
        "m.keras: --input-scale",
        "nets without batch normalization often take",
        "0-1 100.0%",
        "0-255 100.0%",
        "-1-1 100.0%",
        "MEAN,STD",
    ):
        assert text in str(e.value)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("name", ["0-1", "0-255", "-1-1"])
def test_statistics_of_batch_normalization_decide_where_accuracies_do_not(name):
    normalize = layers.BatchNormalization()
    net, images = left_or_right(normalize)
    inputs = net.layers[1](np.asarray(parse(name, 1)(tf.constant(images))).reshape(200, 16))
    normalize.set_weights([np.ones(1), np.zeros(1), np.mean(inputs, 0), np.var(inputs, 0)])
    decision = decided(net, images)
    assert decision.scale.name == name
    assert "batch normalization" in decision.text
    normalize.set_weights([np.ones(1), np.zeros(1), np.zeros(1), np.full(1, 1e3)])  # statistics of none of them
    with pytest.raises(UsageError, match="auto cannot decide"):
        decided(net, images)


def test_statistics_that_fit_none_decide_between_0_1_and_0_255_alone():
    """Off by 4 in variance, where those of 0-255 are off by 260,000."""
    normalize = layers.BatchNormalization()
    net, images = left_or_right(normalize, layers.LeakyReLU(0.5))
    inputs = net.layers[1](images.reshape(200, 16))
    normalize.set_weights([np.ones(1), np.zeros(1), np.zeros(1), np.var(inputs, 0) / 4])
    with pytest.raises(UsageError, match="auto cannot decide"):  # the statistics are not far enough from -1-1
        decided(net, images)
    image = keras.Input((4, 4, 1))
    signed = keras.ops.relu(-keras.ops.min(image, axis=(1, 2))) * 1e6
    unsigned = keras.Model(image, net(image) + keras.ops.concatenate([signed, -signed], axis=1))
    assert decided(unsigned, images).scale.name == "0-1"


def test_what_is_seen_decides_where_accuracies_do_not_contradict():
    net, images = left_or_right()
    whole = keras.Sequential([keras.Input((4, 4, 1)), layers.Rescaling(1 / 255), net])
    decision = decided(whole, images, seen=seen(whole, images))
    assert decision.scale.name == "0-255"
    assert "begins with x * 0.003922" in decision.text
    twice = brightness(0.5 / 255, layers.Rescaling(1 / 255))  # divided before the model too
    with pytest.raises(UsageError, match=r"begins with x \* 0.003922, which speaks for 0-255"):
        decided(twice, seen=seen(twice, IMAGES))


def test_guessing_decides_nothing_unless_something_is_seen():
    net = brightness(1e6)
    with pytest.raises(UsageError, match=r"no accuracy is above 50\.0%, that of guessing"):
        decided(net)
    assert decided(net, seen=seen(model(layers.Rescaling(2, -1)), IMAGES)).scale.name == "0-1"


def test_a_refusal_says_what_is_doubtful_about_labels_and_data():
    net = brightness(0.5)
    with pytest.raises(
        UsageError, match=r"in another order 100\.0% are correct \(0-1\): .* --class-names FILE"
    ) as error:
        decided(net, labels=1 - LABELS)
    assert "of the data" not in str(error.value)
    with pytest.raises(UsageError, match="of the data: all pixels are 0; give --input-scale"):
        decided(brightness(1e6), doubts=("all pixels are 0",))
    with pytest.raises(UsageError, match="as all labels are of one class"):
        decided(net, labels=0 * LABELS)


def test_scales_of_equal_logits_are_one():
    """A model that divides by the brightest pixel takes 0-1 as 0-255."""
    net = brightness(0.5, layers.Lambda(lambda x: x / tf.reduce_max(x, axis=(1, 2, 3), keepdims=True)))
    decision = decided(net)
    assert decision.scale.name == "0-1"
    assert "0-255" not in decision.text


def doubted(name, net, images=IMAGES):
    return doubt(parse(name, 1), net, images, LABELS, model=net)


def test_a_given_scale_that_the_accuracy_contradicts_is_doubted():
    net = brightness(127.5)
    text = doubted("0-1", net)
    assert text.startswith("pixels go in as 0-1: ")
    assert "of 50 images are correct, but with 0-255 " in text
    assert text.endswith("--input-scale 0-255")
    assert doubted("0.1,1", net).endswith("--input-scale 0-255")
    assert doubted("0-255", net) is None


def test_a_given_scale_that_batch_normalization_contradicts_is_doubted():
    normalize = layers.BatchNormalization()
    net, images = left_or_right(normalize)
    inputs = net.layers[1]((2 * images - 1).reshape(200, 16))
    normalize.set_weights([np.ones(1), np.zeros(1), np.mean(inputs, 0), np.var(inputs, 0)])
    assert "batch normalization fit -1-1; " in doubted("0-255", net, images)
    assert doubted("-1-1", net, images) is None
    assert doubted("0.5,0.5", net, images) is None  # the same by another name
    normalize.set_weights([np.ones(1), np.zeros(1), np.zeros(1), np.full(1, 1e3)])  # statistics of none of them
    assert doubted("0-255", net, images) is None


def test_nothing_speaks_against_a_given_scale_where_all_do_as_well():
    net, images = left_or_right()
    assert [doubted(name, net, images) for name in ("0-1", "0-255", "-1-1")] == [None] * 3
