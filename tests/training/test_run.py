"""Training: exact steps, the same data for both arms, selection of the epoch, failure, what a run folder holds."""

import csv
import dataclasses

import numpy as np
import pytest
from helpers_runs import MessageLog, small_cell

from bn_vuln import data, models, records
from bn_vuln.config import Cell, CosineSchedule, StepSchedule, Train, validate
from bn_vuln.errors import UsageError
from bn_vuln.evaluation import classifier
from bn_vuln.runtime import backend, lease
from bn_vuln.runtime.progress import Quiet
from bn_vuln.training import TrainingLoop, cell_id, decay_terms, steps, train
from bn_vuln.training.schedules import learning_rates


def linear_cell(**changes):
    return small_cell(
        arch="linear", train={"epochs": 1, "batch_size": 100, "lr": 0.05, **changes.pop("train", {})}, **changes
    )


def loop_of(cell):
    training = data.load("mnist", "train", limit=cell.data.limit)
    model = models.build(cell, training.info)
    return TrainingLoop(cell, model, training, data.load("mnist", "validation", limit=100))


def numpy_sgd(loop, epochs, *, momentum=0.0, nesterov=False, smoothing=0.0, decay_kernel=0.0, decay_bias=0.0):
    """The same epochs of a linear softmax classifier, in NumPy and float64."""
    kernel, bias = (np.array(v, np.float64) for v in loop.model.trainable_variables)
    x = loop.training.images.reshape(len(loop.training), -1) / 255
    x = (x - loop.training.info.mean[0]) / loop.training.info.std[0]
    labels = np.eye(10)[loop.training.labels] * (1 - smoothing) + smoothing / 10
    speed = [np.zeros_like(kernel), np.zeros_like(bias)]
    for epoch in range(epochs):
        rates = learning_rates(loop.cell.train, epoch, loop.steps)
        for index, lr in zip(loop.order(epoch), rates, strict=True):
            logits = x[index] @ kernel + bias
            p = np.exp(logits - logits.max(1, keepdims=True))
            error = (p / p.sum(1, keepdims=True) - labels[index]) / len(index)
            gradients = [x[index].T @ error + decay_kernel * kernel, error.sum(0) + decay_bias * bias]
            speed = [momentum * v - lr * g for v, g in zip(speed, gradients, strict=True)]
            ahead = [momentum * v - lr * g for v, g in zip(speed, gradients, strict=True)] if nesterov else speed
            kernel, bias = kernel + ahead[0], bias + ahead[1]
    return kernel, bias


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {}),
        ({"train": {"momentum": 0.9}}, {"momentum": 0.9}),
        ({"train": {"momentum": 0.9, "nesterov": True}}, {"momentum": 0.9, "nesterov": True}),
        ({"train": {"label_smoothing": 0.1}}, {"smoothing": 0.1}),
        ({"train": {"epochs": 2, "schedule": "cosine", "warmup": 0.5}}, {}),
        ({"weight_decay": 0.1}, {"decay_kernel": 0.1}),
        ({"weight_decay": 0.1, "decay_on": "all"}, {"decay_kernel": 0.1, "decay_bias": 0.1}),
    ],
)
def test_steps_equal_sgd_in_numpy(changes, expected):
    loop = loop_of(linear_cell(**changes))
    kernel, bias = numpy_sgd(loop, 2, **expected)
    loop.epoch(0, Quiet())
    loop.epoch(1, Quiet())
    np.testing.assert_allclose(loop.model.trainable_variables[0], kernel, atol=2e-5)
    np.testing.assert_allclose(loop.model.trainable_variables[1], bias, atol=2e-5)


def test_weight_decay_is_keras_l2_of_half_lambda():
    import keras

    tf = backend.tensorflow()
    cell = small_cell(normalization="batch", weight_decay=0.3)
    model = models.build(cell, data.dataset_info("mnist"))
    penalty = keras.regularizers.L2(0.3 / 2)
    variables = model.trainable_variables
    with tf.GradientTape() as tape:
        loss = sum(penalty(v.value) for v in variables if v.name == "kernel")
    expected = tape.gradient(loss, variables)
    for term, variable, gradient in zip(decay_terms(cell, model), variables, expected, strict=True):
        np.testing.assert_allclose(term * np.array(variable), 0 if gradient is None else gradient, atol=1e-7)


def test_the_loss_that_is_reported_includes_the_penalty():
    plain, decayed = (loop_of(linear_cell(weight_decay=value, train={"lr": 1e-9})) for value in (0.0, 2.0))
    norm = float((np.array(plain.model.trainable_variables[0]) ** 2).sum())
    difference = decayed.epoch(0, Quiet()).loss - plain.epoch(0, Quiet()).loss
    assert difference == pytest.approx(norm, rel=1e-3)


def test_batch_norm_tracks_keras_statistics():
    """One step from the initial statistics: moving = momentum * initial + (1 - momentum) * batch (biased)."""
    cell = small_cell(
        data={"name": "mnist", "limit": 100}, arch="linear", normalization={"name": "batch", "momentum": 0.75},
        train={"epochs": 1, "batch_size": 100, "lr": 1e-9},
    )  # fmt: skip
    loop = loop_of(cell)
    loop.epoch(0, Quiet())
    x = (loop.training.images.reshape(100, -1) / 255 - 0.1307) / 0.3081
    layer = loop.model.get_layer("normalization")
    np.testing.assert_allclose(layer.moving_mean, 0.25 * x.mean(0), atol=1e-4)
    np.testing.assert_allclose(layer.moving_variance, 0.75 + 0.25 * x.var(0), atol=1e-3)


def test_the_order_depends_on_seed_and_epoch_only():
    arms = [loop_of(small_cell(normalization=name)) for name in ("none", "batch")]
    other = loop_of(small_cell(seed=1))
    np.testing.assert_array_equal(arms[0].order(3), arms[1].order(3))
    assert not np.array_equal(arms[0].order(3), arms[0].order(4))
    assert not np.array_equal(arms[0].order(3), other.order(3))


def test_an_epoch_sees_each_example_at_most_once():
    loop = loop_of(small_cell(data={"name": "mnist", "limit": 1030}))
    order = loop.order(0)
    assert order.shape == (20, 50)
    assert len(np.unique(order)) == 1000


def test_calls_of_any_length_give_the_same_weights():
    short, long = loop_of(small_cell()), loop_of(small_cell())
    order, rates, totals = short.order(0), learning_rates(short.cell.train, 0, 40), steps.no_totals()
    for begin in range(0, 40, 7):
        totals = short._steps(order, rates, np.int32(begin), np.int32(min(40, begin + 7)), totals)
    assert [float(t) for t in long._steps(order, rates, np.int32(0), np.int32(40), steps.no_totals())] == [
        float(t) for t in totals
    ]
    for a, b in zip(short.model.get_weights(), long.model.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_a_folder_of_another_run_is_refused(runs, tmp_path):
    """Its records would be taken for those of the new model."""
    with pytest.raises(UsageError, match="holds a run of another config"):
        train(small_cell(normalization="batch", seed=5), runs["batch"])


def test_validation_examples_of_the_classes_are_needed():
    with pytest.raises(UsageError, match="none of the 2 validation examples is of the classes"):
        train(small_cell(data={"name": "mnist", "limit": 300, "validation": 2, "classes": [3, 8]}))


def test_a_pair_learns_and_is_reproducible(runs):
    for name, folder in runs.items():
        record = records.read_training(folder)
        assert record.state == "trained"
        assert record.validation_accuracy > 0.75
        again = train(small_cell(normalization=name))
        assert again.record.validation_accuracy == pytest.approx(record.validation_accuracy, abs=2e-3)


def test_the_time_left_is_reported_once_and_first(monkeypatch):
    """30 steps of batch 20 take 0.1 s by the clock: of 3 epochs' 90, and 3 validations of 60 images, a step each."""
    log = MessageLog()
    cell = small_cell(
        data={"name": "mnist", "limit": 600, "validation": 60}, train={"epochs": 3, "batch_size": 20, "lr": 0.1}
    )
    monkeypatch.setattr("bn_vuln.training.loop.SECONDS_TIMED", 0.0)
    monkeypatch.setattr("bn_vuln.training.loop.MIN_SECONDS_TO_REPORT", 0.0)
    monkeypatch.setattr("bn_vuln.training.loop._Clock.seconds_per_step", 2.0)
    train(cell, progress=log)
    assert log.lines[0] == "about 3 min 04 s for 3 epochs at 10 images/s"
    assert sum("for 3 epochs" in line for line in log.lines) == 1


def test_what_a_run_folder_holds(runs):
    folder = runs["batch"]
    assert {p.name for p in folder.iterdir()} >= {"config.yaml", "model.keras", "history.csv", "training.json"}
    assert {path.name for path in folder.glob(".*")} <= {lease.GUARD}
    assert records.read_cell(folder) == small_cell(normalization="batch")
    history = list(csv.DictReader((folder / "history.csv").open()))
    assert [row["number"] for row in history] == ["1", "2", "3"]
    record = records.read_training(folder)
    assert record.cell_id == cell_id(small_cell(normalization="batch"))
    assert record.validation_accuracy == max(float(row["validation_accuracy"]) for row in history)
    assert record.parameters == 784 * 32 + 4 * 32 + 32 * 32 + 32 + 32 * 10 + 10


def test_the_saved_model_has_the_recorded_validation_accuracy(runs):
    subject = classifier.from_run(runs["batch"])
    validation = data.load("mnist", "validation")
    logits = subject.model.predict(validation.images.astype(np.float32) / 255, verbose=0)
    accuracy = np.mean(logits.argmax(1) == validation.labels)
    assert accuracy == pytest.approx(records.read_training(runs["batch"]).validation_accuracy, abs=1e-9)


def test_best_keeps_the_best_epoch_and_last_the_last(monkeypatch):
    accuracies = [0.5, 0.9, 0.7]

    def epoch(self, number, progress):
        self.model.trainable_variables[1].assign(np.full(10, number, np.float32))
        made = real(self, number, progress)
        self.model.trainable_variables[1].assign(np.full(10, number, np.float32))
        return dataclasses.replace(made, validation_accuracy=accuracies[number])

    real = TrainingLoop.epoch
    monkeypatch.setattr(TrainingLoop, "epoch", epoch)
    for select, expected in (("best", 1), ("last", 2)):
        trained = train(linear_cell(train={"epochs": 3, "select": select}))
        assert trained.record.best_epoch == expected + 1
        assert trained.record.validation_accuracy == accuracies[expected]
        np.testing.assert_array_equal(trained.model.trainable_variables[1], np.full(10, expected))


def test_a_diverging_net_is_recorded_as_failed(tmp_path):
    cell = small_cell(train={"epochs": 5, "batch_size": 50, "lr": 1e30})
    trained = train(cell, tmp_path)
    assert trained.record.state == "failed"
    assert "not finite" in trained.record.reason
    assert len(trained.history) < 5
    assert records.read_training(tmp_path) == trained.record


def test_a_net_at_chance_is_recorded_as_failed():
    # A decay that zeroes every kernel in the first step leaves a constant classifier.
    trained = train(small_cell(weight_decay=1000.0, train={"epochs": 1, "batch_size": 50, "lr": 1e-3}))
    assert trained.record.state == "failed"
    assert "majority-class baseline" in trained.record.reason


def test_user_data_with_few_validation_images_are_judged_by_the_training_images(tmp_path):
    """Of 4 validation images, none of 10 classes is more often right than by chance."""
    examples = data.load("mnist", "train", limit=40)
    np.savez(tmp_path / "few.npz", x=examples.images, y=np.arange(40) % 10)  # labels that cannot be generalized
    options = {"name": str(tmp_path / "few.npz"), "validation": 4, "width": 28, "limit": None}
    for epochs, state in ((60, "trained"), (1, "failed")):
        cell = small_cell(data=options, train={"epochs": epochs, "batch_size": 14, "lr": 0.05 if epochs > 1 else 1e-9,
                                               "select": "last"})  # fmt: skip
        record = train(cell).record
        assert record.state == state, record
    assert "training accuracy" in record.reason


def test_step_schedule():
    options = Train(lr=0.1, schedule=StepSchedule(epochs=(150, 250), factor=0.1))
    rates = [learning_rates(options, epoch, 3).tolist() for epoch in (0, 149, 150, 249, 250, 349)]
    expected = np.repeat([[0.1], [0.1], [0.01], [0.01], [0.001], [0.001]], 3, axis=1)
    np.testing.assert_allclose(rates, expected, rtol=1e-6)


def test_warmup_rises_linearly_to_the_rate_step_by_step():
    options = Train(lr=0.8, warmup=2, epochs=5)
    rates = np.concatenate([learning_rates(options, epoch, 4) for epoch in range(3)])
    np.testing.assert_allclose(rates, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.8, 0.8, 0.8, 0.8], rtol=1e-6)


def test_cosine_falls_from_the_rate_to_its_final_share():
    options = Train(lr=2.0, epochs=3, warmup=1, schedule=CosineSchedule(final=0.1))
    rates = np.concatenate([learning_rates(options, epoch, 2) for epoch in range(3)])
    cosine = [0.1 + 0.9 * (1 + np.cos(np.pi * t)) / 2 for t in (0, 0.25, 0.5, 0.75)]
    np.testing.assert_allclose(rates, [1.0, 2.0, *(2.0 * c for c in cosine)], rtol=1e-6)
    assert learning_rates(Train(schedule=CosineSchedule(), epochs=2), 1, 1000)[-1] < 1e-5 * 0.01


def test_steps_of_the_schedule_hold_behind_a_warmup():
    options = Train(lr=1.0, epochs=4, warmup=1, schedule=StepSchedule(epochs=(2,), factor=0.5))
    assert [learning_rates(options, epoch, 1)[0] for epoch in range(4)] == [1.0, 1.0, 0.5, 0.5]


def numpy_adam(loop, *, decay=0.0, decoupled=0.0):
    """One epoch of Adam (Kingma and Ba 2015) or AdamW of a linear softmax classifier, in NumPy and float64."""
    w = [np.array(v, np.float64) for v in loop.model.trainable_variables]
    x = loop.training.images.reshape(len(loop.training), -1) / 255
    x = (x - loop.training.info.mean[0]) / loop.training.info.std[0]
    labels = np.eye(10)[loop.training.labels]
    m, v = [np.zeros_like(a) for a in w], [np.zeros_like(a) for a in w]
    (b1, b2), lr = loop.cell.train.betas, loop.cell.train.lr
    for t, index in enumerate(loop.order(0), 1):
        p = np.exp(x[index] @ w[0] + w[1])
        error = (p / p.sum(1, keepdims=True) - labels[index]) / len(index)
        gradients = [x[index].T @ error + decay * w[0], error.sum(0)]
        w[0] = w[0] * (1 - lr * decoupled)
        for i, g in enumerate(gradients):
            m[i], v[i] = b1 * m[i] + (1 - b1) * g, b2 * v[i] + (1 - b2) * g**2
            w[i] = w[i] - lr * (m[i] / (1 - b1**t)) / (np.sqrt(v[i] / (1 - b2**t)) + 1e-8)
    return w


@pytest.mark.parametrize(
    ("optimizer", "expected"), [("adam", {"decay": 0.05}), ("adamw", {"decoupled": 0.05}), ("adam", {})]
)
def test_steps_equal_adam_in_numpy(optimizer, expected):
    train = {"optimizer": optimizer, "lr": 1e-3, "betas": [0.8, 0.99]}
    loop = loop_of(linear_cell(train=train, weight_decay=0.05 if expected else 0.0))
    kernel, bias = numpy_adam(loop, **expected)
    loop.epoch(0, Quiet())
    np.testing.assert_allclose(loop.model.trainable_variables[0], kernel, atol=6e-5)
    np.testing.assert_allclose(loop.model.trainable_variables[1], bias, atol=6e-5)


def test_the_schedule_reaches_the_optimizer():
    cell = linear_cell(train={"epochs": 3, "schedule": {"name": "step", "epochs": [1, 2], "factor": 0.5}})
    assert [epoch.learning_rate for epoch in train(cell).history] == [0.05, 0.025, 0.0125]


def test_what_cannot_be_trained_is_refused():
    for cell, fragments in (
        ({"train": {"batch_size": 3000}, "data": {"limit": 2000}}, ["batch_size", "2000", "3000"]),
        ({"data": {"limit": 56000}}, ["limit", "55000", "56000"]),
    ):
        with pytest.raises(UsageError) as error:
            train(validate(Cell, cell, "test"))
        assert all(fragment in str(error.value) for fragment in fragments)
