"""Nets for ImageNet beside PyTorch: clean predictions and PGD with 20 steps at 224 pixels.

    python tools/bench_imagenet.py --torch-python PYTHON > results/bench_imagenet.json

VGG-11 with batch norm and ResNet-50, untrained: of the numbers only the times and the memory mean anything. PYTHON is
one with torch and torchvision (default: this one; in one process with TensorFlow they crash). Each engine is a process
of its own that waits while the other one works; repetitions alternate. PyTorch: channels_last, inference_mode for clean
images, parameters without gradients, as many threads as there are cores. Ours: the engine behind `bnvuln attack`, at
its default batch size, without attack diagnostics. `peak_gb` is the largest resident memory of the process.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

NETS = ("vgg11_bn", "resnet50")
STEPS, EPS = 20, 4 / 255
TASKS = ("clean", "pgd")


def ours(net: str, n: int) -> dict[str, Callable[[], object]]:
    """Return our tasks on n images."""
    import numpy as np

    import bn_vuln as bnv
    from bn_vuln.config import Attack, Clean, Evaluation
    from bn_vuln.evaluation.evaluator import Evaluator

    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (n, 224, 224, 3), dtype=np.uint8)
    labels = generator.integers(0, 1000, n).astype(np.int32)
    classifier = bnv.open_classifier(bnv.pretrained(net, "random"), images, labels, input_scale="0-1", output="logits")
    evaluator = Evaluator(classifier, Evaluation(dataset=classifier.dataset, split="all"), checks="none")
    attack = Attack(attack="pgd", eps=EPS, steps=STEPS, keep="last")

    def clean() -> object:
        evaluator.eval_set.__dict__.pop("clean_logits", None)
        return evaluator.run(Clean())

    return {"clean": clean, "pgd": lambda: evaluator.run(attack)}


def pytorch(net: str, n: int) -> dict[str, Callable[[], object]]:
    """Return PyTorch's tasks on n images: PGD as its users write it."""
    import torch
    import torchvision

    torch.set_num_threads(os.cpu_count() or 1)
    model = getattr(torchvision.models, net)().eval().to(memory_format=torch.channels_last)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    x = torch.rand(n, 3, 224, 224).to(memory_format=torch.channels_last)
    y = torch.randint(0, 1000, (n,))

    def clean(images: Any = x) -> object:
        with torch.inference_mode():
            return (model((images - mean) / std).argmax(1) == y).tolist()

    def pgd() -> object:
        point = (x + torch.empty_like(x).uniform_(-EPS, EPS)).clamp(0, 1)
        for _ in range(STEPS):
            point = point.detach().requires_grad_(True)
            loss = torch.nn.functional.cross_entropy(model((point - mean) / std), y, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, point)
            moved = point.detach() + 2.5 * EPS / STEPS * gradient.sign()
            point = (x + (moved - x).clamp(-EPS, EPS)).clamp(0, 1)
        return clean(point.detach())

    return {"clean": clean, "pgd": pgd}


def work(engine: str, net: str, n: int) -> None:
    """Answer each line, the name of a task, with its seconds and the peak memory so far."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print
    tasks = {"ours": ours, "pytorch": pytorch}[engine](net, n)
    for name in TASKS:
        tasks[name]()  # compiled, warm
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        begun = time.perf_counter()
        tasks[line.strip()]()
        seconds = time.perf_counter() - begun
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(json.dumps([seconds, peak]), file=answers, flush=True)


def measured(net: str, n: int, repeats: int, torch_python: str) -> Iterator[tuple[str, str, float, float]]:
    """Give (engine, task, seconds, peak memory in GB) of each repetition."""
    workers = {}
    for engine, python in (("ours", sys.executable), ("pytorch", torch_python)):
        command = [python, __file__, "--worker", engine, "--net", net, "--images", str(n)]
        workers[engine] = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert workers[engine].stdout.readline() == "ready\n", f"{engine} has failed"  # type: ignore[union-attr]
    for _ in range(repeats):
        for task in TASKS:
            for engine, worker in workers.items():
                print(task, file=worker.stdin, flush=True)
                yield (engine, task, *json.loads(worker.stdout.readline()))  # type: ignore[union-attr]
    for worker in workers.values():
        worker.stdin.close()  # type: ignore[union-attr]
        worker.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch-python", default=sys.executable, metavar="PYTHON", help="with torch and torchvision")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--net", choices=NETS, action="append", help="default: both")
    parser.add_argument("--worker", choices=["ours", "pytorch"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args.worker, args.net[0], args.images)
        return
    from statistics import median

    from bench import print_report

    results: dict[str, dict[str, float]] = {}
    for net in args.net or NETS:
        seconds: dict[tuple[str, str], list[float]] = {}
        peaks: dict[str, float] = {}
        for engine, task, took, peak in measured(net, args.images, args.repeats, args.torch_python):
            seconds.setdefault((engine, task), []).append(took)
            peaks[engine] = max(peak, peaks.get(engine, 0.0))
            print(f"{net} {task} {engine}: {took:.2f} s", file=sys.stderr)
        for task in TASKS:
            own, other = seconds["ours", task], seconds["pytorch", task]
            results[f"{net}, {task}"] = {
                "images_per_second": round(args.images / median(own), 3),
                "pytorch_images_per_second": round(args.images / median(other), 3),
                "times_pytorch": round(median(b / a for a, b in zip(own, other, strict=True)), 3),
                "peak_gb": round(peaks["ours"], 2),
                "pytorch_peak_gb": round(peaks["pytorch"], 2),
            }
    print_report(results, args.repeats, images=args.images, steps=STEPS)


if __name__ == "__main__":
    main()
