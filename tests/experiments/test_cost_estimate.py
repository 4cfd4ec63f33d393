"""Operations counted by hand, and the estimate made of them."""

import pytest
from helpers_runs import small_cell

from bn_vuln import data, models
from bn_vuln.config import Attack, Clean, Evaluation, EvaluationPlan
from bn_vuln.errors import BnvulnError
from bn_vuln.experiments import catalog, cost_estimate, runner
from bn_vuln.experiments.runner import Task

VGG8_28 = 2 * 9 * (64 * 32**2 + 64 * 128 * 16**2 + 128 * 256 * 8**2 + 256 * 512 * 4**2 + 512 * 512 * 2**2) + 2 * 5120


def test_a_forward_pass_is_two_operations_for_each_multiply_add():
    for arch, normalization, flops in (
        ("linear", "none", 2 * 784 * 10),
        ({"name": "mlp", "hidden": [32, 32]}, "batch", 2 * (784 * 32 + 32 * 32 + 320)),
        ("vgg8", "batch", VGG8_28),
    ):
        model = models.build(small_cell(arch=arch, normalization=normalization), data.dataset_info("mnist"))
        assert cost_estimate.forward_flops(model) == flops


def test_counting_without_weights_is_counting_them():
    for arch in ("linear", "mlp", {"name": "mlp", "hidden": [5, 7, 9]}, {"name": "deep", "depth": 4}, "vgg8"):
        cell = small_cell(arch=arch, data={"name": "mnist", "width": 40})
        model = models.build(cell, data.dataset_info("mnist"))
        assert cost_estimate._forward(cell) == cost_estimate.forward_flops(model)


def task(perturbations, limit=None, **train):
    cell = small_cell(data={"name": "mnist", "limit": 2000}, train={"epochs": 3, **train})
    return Task(cell, (EvaluationPlan(Evaluation(limit=limit), perturbations),))


FORWARD = 2 * (784 * 32 + 32 * 32 + 320)


def test_training_is_three_forward_passes_and_validation_one():
    assert cost_estimate.task_flops(task({})) == FORWARD * 3 * (3 * 2000 + 5000)


def test_enlarged_images_cost_the_first_kernel_at_native_width():
    plan = EvaluationPlan(Evaluation(limit=100), {"clean": Clean()})
    wide = Task(small_cell(data={"name": "mnist", "limit": 2000, "width": 56}), (plan,))
    passes = 3 * (3 * 2000 + 5000)
    assert cost_estimate.task_flops(wide) == FORWARD * passes + 100 * (FORWARD + 2 * 32 * (56**2 - 784))
    assert cost_estimate.task_flops(
        Task(small_cell(arch="mlp", data={"name": "mnist", "limit": 2000, "width": 56}))
    ) == (2 * (784 * 1568 + 1568**2 + 15680) * passes)


def test_a_step_of_adversarial_training_has_the_gradients_of_its_search():
    adversarial = task({}, adversarial={"eps": 0.1, "steps": 7})
    assert cost_estimate.task_flops(adversarial) == FORWARD * 3 * ((3 + 2 * 7) * 2000 + 5000)


def test_published_weights_cost_no_training_and_data_need_not_be_there(monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    [net, *_] = runner.tasks(
        catalog.experiment("table5", overrides=["grid.arch=[alexnet]", "grid.normalization=[none]"])
    )
    assert cost_estimate.task_flops(Task(net.cell)) == 0
    clean = EvaluationPlan(Evaluation(), {"clean": Clean()})
    convolutions = 64 * 3 * 11**2 * 55**2 + (192 * 64 * 25) * 27**2 + (384 * 192 + 256 * 384 + 256**2) * 9 * 13**2
    multiply_adds = convolutions + 9216 * 4096 + 4096**2 + 4096 * 1000
    assert cost_estimate.task_flops(Task(net.cell, (clean,))) == 50_000 * 2 * multiply_adds
    svhn = small_cell(data={"name": "svhn_cropped"}, train={"epochs": 1})
    assert cost_estimate.task_flops(Task(svhn)) == 2 * (3072 * 32 + 32 * 32 + 320) * (3 * (73257 - 5000) + 5000)


def test_nets_are_built_once_for_all_seeds(monkeypatch):
    cost_estimate._built_flops.cache_clear()
    built, build = [], models.build
    monkeypatch.setattr(models, "build", lambda cell, info: built.append(cell) or build(cell, info))
    tasks = [Task(small_cell(arch="vgg8", seed=seed, train={"epochs": 1 + seed})) for seed in range(3)]
    assert cost_estimate.task_flops(tasks[1]) == 2 * cost_estimate.task_flops(tasks[0])
    assert cost_estimate.task_flops(tasks[2]) == 3 * cost_estimate.task_flops(tasks[0])
    assert len(built) == 1


def test_a_changed_model_costs_its_fine_tuning():
    def flops(**mend):
        cell = small_cell(data={"name": "mnist", "limit": 2000}, normalization="batch", mend=mend)
        return cost_estimate.task_flops(Task(cell))

    assert flops(reestimate=True) == 0
    assert flops(reestimate=True, finetune={"epochs": 2}) == FORWARD * 2 * (3 * 2000 + 5000)
    assert flops(relative_c=1, keep_gain=False, retrain=True) == FORWARD * 3 * (3 * 2000 + 5000)


@pytest.mark.parametrize("limit", [None, 100])
def test_a_step_of_an_attack_is_two_forward_passes(limit):
    trained = cost_estimate.task_flops(task({}))
    attacks = {"clean": Clean(), "pgd": Attack(attack="pgd", eps=0.1, steps=7, restarts=2)}
    assert cost_estimate.task_flops(task(attacks, limit)) - trained == FORWARD * (limit or 10000) * (1 + 2 * 14 + 1)


def test_seconds_follow_from_the_rate(monkeypatch):
    monkeypatch.setattr(cost_estimate, "flops_per_second", lambda: 1e9)
    one = task({})
    expected = cost_estimate.task_flops(one) / (cost_estimate.ATTAINABLE_SHARE * 1e9) + cost_estimate.STARTUP_SECONDS
    assert cost_estimate.seconds_of([one, one]) == pytest.approx(2 * expected)
    assert cost_estimate.seconds_of([]) == 0


def test_the_rate_is_that_of_this_machine():
    assert 1e8 < cost_estimate.flops_per_second(0.1) < 1e16


def test_convolutional_nets_have_few_weights(monkeypatch):
    """36.5 million, in 0.4 GiB with gradients and a copy; their multiply-adds would be 59 GiB of weights."""
    monkeypatch.setattr(cost_estimate.os, "sysconf", {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": 2**30}.get)
    cost_estimate.check_memory([Task(small_cell(arch={"name": "wrn"}))])
    wide = small_cell(arch="mlp", data={"name": "mnist", "width": 112})
    with pytest.raises(BnvulnError, match="GiB for its weights"):
        cost_estimate.check_memory([Task(wide)])
