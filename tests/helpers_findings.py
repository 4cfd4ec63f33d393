"""Made-up findings of audits, and the example images beside them, as an audit would write them. No TensorFlow."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bn_vuln.auditing.findings import (
    Accuracy,
    Advice,
    Candidate,
    CurvePoint,
    Difference,
    Example,
    Finalist,
    Findings,
    Interval,
    Layer,
    ModelFindings,
    Reference,
    Requirement,
    write,
    write_examples,
)
from bn_vuln.config import Mend
from bn_vuln.records import Flag

N = 100
RATIOS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
MASKED = Flag(
    check=4, name="zero or non-finite gradients", value=0.93,
    message="93.0% of 100 examples have no usable input gradient: a gradient attack cannot move them, so the accuracy "
    "under it is an upper bound. Try an attack without gradients (square).",
)  # fmt: skip


def interval(value: float, n: int = N) -> Interval:
    half = 1.96 * (max(value * (1 - value), 0.01) / n) ** 0.5
    return Interval(value=value, low=max(0.0, value - half), high=min(1.0, value + half))


def accuracy(name: str, about: str, value: float, n: int = N) -> Accuracy:
    return Accuracy(name=name, about=about, accuracy=interval(value, n), n=n)


def difference(name: str, before: float, after: float, half: float = 0.05) -> Difference:
    change = round(after - before, 6)
    return Difference(
        name=name, before=before, after=after, n=N,
        difference=Interval(value=change, low=change - half, high=change + half),
    )  # fmt: skip


def accuracies(clean: float) -> tuple[Accuracy, ...]:
    rows = [("clean", "images as they are", 0.0)]
    rows += [(f"noise {std}", f"Gaussian noise of standard deviation {std}", 0.9 * std) for std in (0.05, 0.1, 0.2)]
    kinds = {"gaussian_noise": "Gaussian noise", "shot_noise": "shot noise", "impulse_noise": "impulse noise"}
    rows += [(f"{kind} 3", f"{text} of CIFAR-10-C, severity 3", 0.15) for kind, text in kinds.items()]
    return tuple(accuracy(name, about, clean - loss) for name, about, loss in rows)


def curve(clean: float, half_eps: float, unit: float = 1 / 255) -> tuple[CurvePoint, ...]:
    points = [unit * 2.0**k for k in range(-4, 7)]
    return tuple(CurvePoint(eps=eps, accuracy=interval(clean * 0.5 ** ((eps / half_eps) ** 1.4))) for eps in points)


def layer(name: str, place: int, *, spread: float = 4.0, kind: str = "batch", **values: Any) -> Layer:
    batch = {
        "momentum": 0.99, "gain": (1 / spread, 0.7, 1.0, 1.4, spread), "dead": 0, "below_c": 0.0,
        "low_variance_share": min(0.9, 0.01 * spread), "low_variance_channels": 3, "statistics_distance": 0.04,
    }  # fmt: skip
    fields: dict[str, Any] = {
        "channels": 64, "c": 1e-3, "variance": (0.05, 0.4, 1.0, 2.2, 9.0), "median_variance": 0.42,
        "amplification": 1.4 + 0.2 * place, "through": 1.1, **(batch if kind == "batch" else {}), **values,
    }  # fmt: skip
    return Layer(name=name, place=place, kind=kind, **fields)


def resnet_layers(n: int = 19) -> tuple[Layer, ...]:
    spreads = [3.0 + 2 * (i % 4) for i in range(n)]
    spreads[1] = 110.0
    return tuple(
        layer(
            "bn" if i == 0 else f"bn_{i}", i + 1, spread=spread, channels=(16, 32, 64)[min(2, 3 * i // n)],
            amplification=round(1.2 + 0.25 * i + (2.0 if i >= 1 else 0.0), 3), through=2.6 if i == 1 else 1.06,
            dead=2 if i == 4 else 0, below_c=0.125 if i == 4 else 0.0, statistics_distance=0.03 + 0.01 * (i % 5),
        )
        for i, spread in enumerate(spreads)
    )  # fmt: skip


def candidates(clean: float, attacked: float, best: float = 0.06) -> tuple[Candidate, ...]:
    rows = [
        ("statistics estimated again, c as it is", Mend(reestimate=True), 0.01, True),
    ]
    for ratio in RATIOS:
        gain = best * (1 - abs(np.log10(ratio / 0.3)) / 2)
        for keep, text in ((False, ""), (True, ", gain kept")):
            mend = Mend(relative_c=ratio, keep_gain=keep, reestimate=True)
            rows.append((f"c + {ratio:g} m in all layers{text}", mend, gain - 0.02 * (not keep), ratio == 0.3 and keep))
    for name in ("bn_1", "bn_5", "bn_9"):
        mend = Mend(relative_c=0.3, layers=(name,), reestimate=True)
        rows.append((f"c + 0.3 m in {name} alone, gain kept", mend, best if name == "bn_1" else 0.01, name == "bn_1"))
    return tuple(
        Candidate(title=title, mend=mend, finalist=finalist, clean=clean - max(0, gain) / 4,
                  noise=clean - 0.09 + gain / 2, attacked=attacked + gain)
        for title, mend, gain, finalist in rows
    )  # fmt: skip


def finalist(title: str, mend: Mend, clean: float, strong: float, gain: float) -> Finalist:
    return Finalist(
        title=title, mend=mend, gains=gain > 0.05, clean=difference("clean", clean, clean - 0.005, 0.02),
        noise=difference("noise", clean - 0.09, clean - 0.07), strong=difference("strong", strong, strong + gain),
        beyond_statistics=difference("strong", strong + 0.01, strong + gain) if mend.changes_c else None,
    )  # fmt: skip


def model(source: str = "resnet20.keras", clean: float = 0.92, strong: float = 0.42, **fields: Any) -> ModelFindings:
    values: dict[str, Any] = {
        "source": source, "id": "ext-0123456789ab", "parameters": 272_474,
        "found": (
            ("model", f"{source}, 272,474 parameters"),
            ("input", "32 x 32 x 3; numbers from 0 to 1 (preprocessing inside of the model)"),
            ("output", "10 logits; from -11.2 to 18.4"),
            ("normalization", "19 batch"),
        ),
        "layers": resnet_layers(), "accuracies": accuracies(clean), "curve": curve(clean, 2.3 / 255),
        "half_eps": 2.3 / 255, "strong": accuracy("strong", "strong at 2/255", strong),
        "batch_statistics": (
            accuracy("clean", "images as they are", clean - 0.01),
            accuracy("noise 0.1", "Gaussian noise of standard deviation 0.1", clean - 0.05),
            accuracy("PGD", "PGD, 20 steps, eps 2/255", strong + 0.06),
        ),
        "as_it_is": Candidate(title="as it is", mend=Mend(), clean=clean, noise=clean - 0.09, attacked=strong + 0.03),
        "logits_amplification": 8.2, "candidates": candidates(clean, strong + 0.03),
        "finalists": (
            finalist("statistics estimated again, c as it is", Mend(reestimate=True), clean, strong, 0.01),
            finalist("c + 0.3 m in all layers, gain kept", Mend(relative_c=0.3, reestimate=True), clean, strong, 0.08),
            finalist(
                "c + 0.3 m in bn_1 alone, gain kept", Mend(relative_c=0.3, layers=("bn_1",), reestimate=True),
                clean, strong, 0.075,
            ),
        ),
        "advice": (
            Advice(
                kind="raise c",
                text="Raise c by 0.3 times the median variance in all 19 layers of batch norm, and estimate their "
                "statistics again: 50.0% instead of 42.0% stay correct under strong at 2/255 (99.2% interval of the "
                "difference: +3.0 to +13.0 points), for 0.5 points of clean accuracy.",
                command="bnvuln mend resnet20.keras --data folder:photos --from-audit audit -o mended.keras",
                mend=Mend(relative_c=0.3, reestimate=True),
            ),
            Advice(
                kind="train",
                text="If you train again: nets without batch norm (Fixup and weight decay) kept 6 to 17 points more "
                "under attack in our measured pairs, at 1 to 3 points of clean accuracy.",
            ),
            Advice(
                kind="adversarial training",
                text="If somebody may really attack your model, only adversarial training helps by much; it takes "
                "about ten times as long and costs 8 to 12 points of clean accuracy.",
            ),
        ),
        "examples": tuple(
            Example(label=label, clean=label, attacked=taken, eps=2 / 255)
            for label, taken in (("cat", "dog"), ("ship", "airplane"), ("horse", "deer"), ("truck", "automobile"))
        ),
    }  # fmt: skip
    return ModelFindings(**{**values, **fields})


def audit(*models: ModelFindings, **fields: Any) -> Findings:
    values: dict[str, Any] = {
        "models": models or (model(),), "data": "folder:photos", "split": "test",
        "n_choosing": N, "n_reporting": N, "statistics_from": "5,000 images of the training split", "ord": "inf",
        "eps": 2 / 255, "strong_about": "APGD-CE, targeted APGD-DLR (3 targets), FMN and Square; 50 steps, 500 queries",
        "eps_about": "the eps of 1/255, 2/255, 4/255 that leaves nearest to half of the clean accuracy on the choosing "
        "half", "curve_about": "APGD, 20 steps, one search of all eps, on the 100 images of the choosing half",
        "search_about": "APGD, 20 steps, on 100 images of the choosing half",
        "noise_std": 0.1, "level": 1 - 0.05 / 6, "max_clean_cost": 1.0,
        "references": (
            Reference(name="ResNet-20 with batch norm", ord="inf", half_eps=1.9 / 255, sem=0.1 / 255, n=3, clean=0.915),
            Reference(name="ResNet-20 with Fixup", ord="inf", half_eps=3.1 / 255, sem=0.2 / 255, n=3, clean=0.902),
            Reference(name="VGG8 with batch norm", ord="inf", half_eps=1.6 / 255, sem=None, n=1, clean=0.838),
        ),
        "options": {"limit": 200, "ord": "inf", "max_clean_cost": 1.0, "time": "10m", "thorough": False, "seed": 0},
        "command": "bnvuln audit resnet20.keras --data folder:photos --limit 200", "date": "2025-11-03",
        "seconds": 412.3, "versions": {"bnvuln": "0.9.0", "keras": "3.15.1", "tensorflow": "2.21.0"},
        "device": "Intel Xeon, 2 cores",
    }  # fmt: skip
    return Findings(**{**values, **fields})


NOTHING = Advice(
    kind="unknown",
    text="Nothing that these 100 images can show helps: no change without training gains by more than chance; gains "
    "under 9 points would be missed.",
)


def nothing_helps() -> Findings:
    unmoved = (
        finalist("statistics estimated again, c as it is", Mend(reestimate=True), 0.92, 0.42, 0.01),
        finalist("c + 0.1 m in all layers", Mend(relative_c=0.1, keep_gain=False), 0.92, 0.42, -0.02),
    )
    return audit(
        model(finalists=unmoved, advice=(NOTHING,), candidates=candidates(0.92, 0.45, 0.0)), level=1 - 0.05 / 4
    )


def no_normalization() -> Findings:
    note = "no normalization layer: BN may have been folded at export; audit the model before it"
    return audit(
        model(
            "exported.h5", layers=(), as_it_is=None, candidates=(), finalists=(), batch_statistics=(), notes=(note,),
            advice=(Advice(kind="unknown", text="Nothing can be changed without training: " + note),),
        ),
        references=(),
    )  # fmt: skip


def masked() -> Findings:
    return audit(model(upper_bounds=True, flags=(MASKED,), strong=0.81))


def pair() -> Findings:
    fixup = model(
        "resnet20-fixup.keras", 0.9, 0.56, layers=(), as_it_is=None, candidates=(), finalists=(), batch_statistics=(),
        curve=curve(0.9, 3.4 / 255), half_eps=3.4 / 255, advice=(Advice(kind="nothing", text="Nothing to do."),),
    )  # fmt: skip
    rows = [("clean", 0.92, 0.9, 0.03), ("noise 0.1", 0.83, 0.81, 0.05), ("strong", 0.42, 0.56, 0.09)]
    return audit(
        model(),
        fixup,
        pair=tuple(difference(*row) for row in rows),
        command="bnvuln audit resnet20.keras resnet20-fixup.keras --data ...",
    )


def everything_skipped() -> Findings:
    bare = ModelFindings(source="m.keras", id="ext-0", parameters=10, layers=(Layer(
        name="ln", kind="layer", place=1, channels=8, c=1e-6, variance=(0.1, 0.5, 1.0, 2.0, 4.0), median_variance=1.0
    ),))  # fmt: skip
    skipped = (
        "single layers: 8 what-ifs would have taken 3 min more than --time allows",
        "corruptions: 40 s more than --time allows",
        "points of the curve: 1 min more than --time allows",
    )
    return audit(bare, references=(), skipped=skipped, statistics_from="nothing: no BN")


def many_layers() -> Findings:
    names = ["bn_Conv1", "expanded_conv_depthwise_BN", "expanded_conv_project_BN"]
    names += [f"block_{b}_{part}_BN" for b in range(1, 20) for part in ("expand", "depthwise", "project")]
    layers = tuple(
        layer(name, i + 1, spread=3 + 7 * (i % 6), channels=96, momentum=0.999, frozen=i < 20,
              amplification=1.1 + 0.05 * i, through=0.9 + 0.3 * (i % 3 == 1), statistics_distance=0.02 * (i % 7))
        for i, name in enumerate(names)
    )  # fmt: skip
    one = model(
        "mobilenetv2.keras", layers=layers, curve=curve(0.92, 0.6, 0.11), half_eps=0.6, strong=0.48,
        examples=(Example(label="cat", clean="cat", attacked="dog", eps=0.5),),
    )  # fmt: skip
    return audit(one, ord="2", eps=0.5, references=())


def long_names() -> Findings:
    name = "functional/" + "very_long_block_name/" * 6 + "batch_normalization"
    layers = (layer(name, 1), layer("group", 2, kind="group", c=1e-5), layer("frozen", 3, frozen=True))
    required = [("strong 2/255 >= .4", 0.42, True), ("noise .1 >= .9", 0.83, False)]
    requirements = tuple(Requirement(text=text, value=value, met=met) for text, value, met in required)
    source = "experiments/" + "a_long_folder_name/" * 5 + "model.keras"
    return audit(model(source, layers=layers), requirements=requirements)


CASES: dict[str, Callable[[], Findings]] = {
    "gains": audit, "nothing helps": nothing_helps, "no normalization": no_normalization, "masked": masked,
    "pair": pair, "skipped": everything_skipped, "many layers": many_layers, "long names": long_names,
}  # fmt: skip


def write_case(folder: Path, findings: Findings) -> Path:
    """Write an audit with its example images; its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    write(folder, findings)
    for number, one in enumerate(findings.models):
        if one.examples:
            each = findings.eps / (1 if findings.ord == "inf" else 32 * 3**0.5)  # of the pixels
            clean, attacked = images(len(one.examples), each, number)
            write_examples(folder, number, one.id, {"clean": clean, "attacked": attacked})
    return folder


def images(k: int, eps: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Images of coloured discs, and the same with a change of the length eps in each pixel: float32 [k, 32, 32, 3]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:32, :32] / 31 - 0.5
    clean = np.stack([
        np.where((np.hypot(x - a, y - b) < 0.3)[..., None], inside, outside + 0.2 * y[..., None])
        for a, b, inside, outside in zip(
            *rng.uniform(-0.15, 0.15, (2, k)), rng.uniform(0, 1, (k, 3)), rng.uniform(0.2, 0.8, (k, 3)), strict=True
        )
    ])  # fmt: skip
    signs = np.sign(rng.normal(size=clean.shape))
    return np.clip(clean, 0, 1).astype(np.float32), np.clip(clean + eps * signs, 0, 1).astype(np.float32)
