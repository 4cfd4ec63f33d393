"""What an audit finds, as it is kept in `audit.json` and drawn as a page. Accuracies are fractions, eps in pixels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BeforeValidator
from pydantic_core import to_jsonable_python

from bn_vuln.config import Frozen, Mend
from bn_vuln.errors import BnvulnError, UsageError
from bn_vuln.records import Flag, digests, first_line, read_file
from bn_vuln.records.reading import parse_json
from bn_vuln.runtime.files import atomic_write
from bn_vuln.typing import Arrays

FILE = "audit.json"
Numbers = Annotated[tuple[float, ...], BeforeValidator(tuple)]

# An advice, from the least to the most work.
AdviceKind = Literal["nothing", "statistics", "raise c", "fine-tune", "train", "adversarial training", "unknown"]


class Interval(Frozen):
    """A number with its interval, 95% unless it says otherwise."""

    value: float
    low: float
    high: float


class Accuracy(Frozen):
    """The accuracy under one perturbation.

    Attributes:
        name: `clean`, `noise 0.1`, `gaussian_noise 3`, `strong`, `APGD, statistics of the batch`, ...
        about: the perturbation in a few words.
        accuracy: the share of correct predictions, with its 95% Wilson interval over images.
        n: number of images.
    """

    name: str
    about: str
    accuracy: Interval
    n: int


class Difference(Frozen):
    """A paired difference over the same images, after - before.

    Attributes:
        name: as in `Accuracy`.
        before: accuracy.
        after: accuracy.
        difference: with its interval, at the level that is Bonferroni's for the finalists.
        n: number of images.
    """

    name: str
    before: float
    after: float
    difference: Interval
    n: int


class CurvePoint(Frozen):
    """The accuracy left at one eps."""

    eps: float
    accuracy: Interval


class Layer(Frozen):
    """One normalization layer: what it is, and what it does to perturbations.

    Attributes:
        name: of the layer, as `mend --layers` takes it.
        kind: batch, group, layer, instance, rms or filter response.
        place: 1 for the first that is called.
        channels: number of channels.
        c: its constant.
        momentum: of BN, where it says.
        frozen: True where it is not trained.
        variance: quantiles 0, 1/4, 1/2, 3/4, 1 of what it divides by (BN: sigma^2 of the live channels), as ratios to
            the median; empty where all channels are dead.
        median_variance: the median that they are ratios to, m.
        gain: of BN, the same quantiles of |gamma| / sqrt(sigma^2 + c), as ratios to the median.
        dead: of BN, the number of channels with sigma^2 under 1e-6 of the largest.
        below_c: of BN, the share of channels with sigma^2 < c.
        amplification: A, how many times more than a random change of the same length the adversarial change moves what
            the layer returns; None where it was not measured.
        through: A of what it returns by A of what it is given.
        low_variance_share: of BN, share of the squared gradient of the margin by the layer's inputs that lies in the
            channels of smallest sigma^2 that together hold 1% of their sum.
        low_variance_channels: the number of those channels.
        statistics_distance: of BN, the error of what it returns for using tracked instead of actual statistics, in
            standard deviations of what it returns.
    """

    name: str
    kind: str
    place: int
    channels: int
    c: float
    momentum: float | None = None
    frozen: bool = False
    variance: Numbers = ()
    median_variance: float = 0.0
    gain: Numbers = ()
    dead: int | None = None
    below_c: float | None = None
    amplification: float | None = None
    through: float | None = None
    low_variance_share: float | None = None
    low_variance_channels: int | None = None
    statistics_distance: float | None = None


class Candidate(Frozen):
    """A what-if, as it was tried on the choosing half.

    Attributes:
        title: in words.
        mend: the change.
        clean: accuracy.
        noise: accuracy under the noise of the search.
        attacked: accuracy under APGD at the chosen eps.
        finalist: True where it was confirmed.
    """

    title: str
    mend: Mend
    clean: float
    noise: float
    attacked: float
    finalist: bool = False


class Finalist(Frozen):
    """A what-if, confirmed on the reporting half: paired differences to the model as it is.

    Attributes:
        title: in words.
        mend: the change.
        clean: under no perturbation.
        noise: under the noise of the search.
        strong: under `strong` at the chosen eps.
        gains: True where the interval of strong or of noise (of statistics alone: or of clean) lies above 0, none of
            them below, and clean costs no more than was allowed.
        losses: those of the three whose own 95% interval lies below 0: a gain must stand many tests, a loss is said at
            once.
        beyond_statistics: under `strong`, against the model with statistics estimated again; None where that is what is
            judged, or it was not measured.
        noise_beyond_statistics: likewise under noise.
    """

    title: str
    mend: Mend
    clean: Difference
    noise: Difference
    strong: Difference
    gains: bool = False
    losses: tuple[Difference, ...] = ()
    beyond_statistics: Difference | None = None
    noise_beyond_statistics: Difference | None = None

    @property
    def beyond(self) -> bool:
        """Return if it gains more than statistics estimated again gain alone."""
        found = (self.beyond_statistics, self.noise_beyond_statistics)
        return any(one is not None and one.difference.low > 0 for one in found)


class Advice(Frozen):
    """One advice.

    Attributes:
        kind: what is advised.
        text: in plain sentences, with figures and intervals.
        command: what to run, or "".
        mend: the change that `mend --from-audit` makes; None where there is none.
    """

    kind: AdviceKind
    text: str
    command: str = ""
    mend: Mend | None = None


class Reference(Frozen):
    """A net of this package on the same data set.

    Attributes:
        name: what it is: `MLP with batch norm`.
        ord: inf or 2.
        half_eps: eps at which half of the clean accuracy is left, mean over seeds.
        sem: standard error over seeds; None for one.
        n: number of seeds.
        clean: clean accuracy, mean over seeds.
    """

    name: str
    ord: str
    half_eps: float
    sem: float | None
    n: int
    clean: float


class Example(Frozen):
    """An image that an attack changed; the picture itself is in `examples.npz`.

    Attributes:
        label: its class.
        clean: what it is taken for.
        attacked: what it is taken for after the attack.
        eps: of the attack.
    """

    label: str
    clean: str
    attacked: str
    eps: float


class ModelFindings(Frozen):
    """What was found of one model.

    Attributes:
        source: what its user calls it.
        id: hash of the model and how it is called.
        parameters: number of weights.
        found: what it was taken for, in lines of a word and a text.
        notes: sentences on what it is: `no normalization layer: ...`.
        layers: its normalization layers, in the order in which they are called.
        logits_amplification: A of the logits; None where it was not measured.
        accuracies: clean, noise, corruptions.
        curve: accuracy along eps, ascending.
        half_eps: eps at which half of the clean accuracy is left; None where more is left at the largest eps.
        strong: accuracy under `strong` at the chosen eps, on the reporting half; None until it is measured.
        batch_statistics: clean, noise and PGD with BN normalizing by the batch; empty without BN.
        as_it_is: the model as it is, on the choosing half, which `candidates` are compared with.
        candidates: what was tried on the choosing half.
        finalists: what was confirmed on the reporting half.
        refused: why statistics were not estimated again, or "".
        advice: ranked.
        flags: of the checks; some say that numbers are upper bounds.
        upper_bounds: True where a check says so: gradients are masked.
        examples: images, where the attack changed the prediction.
    """

    source: str
    id: str
    parameters: int
    found: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    layers: tuple[Layer, ...] = ()
    logits_amplification: float | None = None
    accuracies: tuple[Accuracy, ...] = ()
    curve: tuple[CurvePoint, ...] = ()
    half_eps: float | None = None
    strong: Accuracy | None = None
    batch_statistics: tuple[Accuracy, ...] = ()
    as_it_is: Candidate | None = None
    candidates: tuple[Candidate, ...] = ()
    finalists: tuple[Finalist, ...] = ()
    refused: str = ""
    advice: tuple[Advice, ...] = ()
    flags: tuple[Flag, ...] = ()
    upper_bounds: bool = False
    examples: tuple[Example, ...] = ()

    @property
    def causes(self) -> frozenset[str]:
        """Return the names of the layers that may be called a cause: changing c in this one alone, confirmed, gains.

        Where statistics are estimated again too, it must gain beyond them.
        """
        merits = (one for one in self.finalists if one.gains and (one.beyond or one.beyond_statistics is None))
        return frozenset(one.mend.layers[0] for one in merits if len(one.mend.layers) == 1)


class Requirement(Frozen):
    """A condition of `--require`: `strong 2/255 >= .4`, and whether it is met.

    Attributes:
        text: as it was written.
        value: what was measured.
        met: if value is on the right side.
    """

    text: str
    value: float
    met: bool


class Findings(Frozen):
    """A whole audit.

    Attributes:
        models: one, or the two of a pair.
        pair: paired differences of a pair, second - first; empty for one model.
        requirements: of `--require`.
        references: nets of this package on the same data set, for the same norm; empty where there is none.
        data: name of the data.
        split: that was measured.
        n_choosing: images by which layers, r and eps were chosen.
        n_reporting: images on which it was confirmed.
        statistics_from: where the images that BN statistics are estimated on come from, and how many they are.
        ord: norm of the attacks, inf or 2.
        eps: the chosen eps.
        eps_about: how it was chosen.
        strong_about: settings of `strong`.
        curve_about: attack and images of the curves.
        search_about: attack and images by which candidates were compared.
        noise_std: of the noise of the search.
        level: of the finalists' intervals: 1 - .05 / (2 numbers of each, strong and noise, and clean of statistics
            alone).
        max_clean_cost: points of clean accuracy that an advice may cost.
        skipped: what was left out to keep the time, in words.
        options: all options, as they were given or by default.
        command: the command line, or the call.
        date: ISO date.
        seconds: that it took, over all runs that it was resumed in.
        versions: of the packages.
        device: what computed.
    """

    format: Literal[1] = 1
    models: tuple[ModelFindings, ...]
    pair: tuple[Difference, ...] = ()
    requirements: tuple[Requirement, ...] = ()
    references: tuple[Reference, ...] = ()
    data: str
    split: str
    n_choosing: int
    n_reporting: int
    statistics_from: str
    ord: Literal["inf", "2"]
    eps: float
    strong_about: str
    noise_std: float
    level: float
    max_clean_cost: float
    skipped: tuple[str, ...] = ()
    options: dict[str, Any]
    command: str
    date: str
    seconds: float
    versions: dict[str, str]
    device: str
    eps_about: str = ""
    curve_about: str = ""
    search_about: str = ""


def write(folder: Path, findings: Findings) -> Path:
    """Write an audit into its folder; the file."""
    path = folder / FILE
    plain = to_jsonable_python(findings, inf_nan_mode="null")
    atomic_write(path, json.dumps(digests.with_digest(plain), indent=1) + "\n")
    return path


def write_examples(folder: Path, number: int, model_id: str, arrays: Arrays) -> None:
    """Write the example images of a model of the audit, numbered from 0, before and after the attack.

    Args:
        folder: of the audit.
        number: of the model.
        model_id: its id.
        arrays: `clean` and `attacked`, float32 [k, height, width, channels], pixels in [0, 1].
    """
    digests.write_arrays(folder / f"examples_{number}.npz", {"model": np.array(model_id), **arrays})


def read_examples(path: Path, model_id: str | None = None) -> Arrays:
    """Read example images.

    Args:
        path: of `examples_0.npz`.
        model_id: of the model; None where it is not known.

    Returns:
        `clean` and `attacked`.

    Raises:
        FileNotFoundError: There are none.
        BnvulnError: They are damaged, or those of another model.
    """
    try:
        arrays = digests.read_arrays(path)
        own = str(arrays.get("model", model_id))
        if model_id not in (None, own):
            raise ValueError(f"those of model {own}, not {model_id}")
        clean, attacked = (np.asarray(arrays[name], np.float32) for name in ("clean", "attacked"))
        if clean.ndim != 4 or clean.shape != attacked.shape or clean.shape[-1] not in (1, 3):
            raise ValueError(f"expected images of one shape, received {list(clean.shape)} and {list(attacked.shape)}")
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError) as error:
        raise BnvulnError(f"{path}: not the example images of an audit: {first_line(error)}") from None
    return {"clean": clean, "attacked": attacked}


def folder_name(models: Sequence[Path]) -> str:
    """Return the name of the folder of an audit: those of its models."""
    paths = [Path(str(one).rpartition(":")[2]) for one in models]
    return "-".join(path.stem if path.suffix in (".keras", ".h5") else path.name for path in paths) or "model"


def check_folder(folder: Path, sources: Sequence[str], data: str) -> None:
    """Refuse a folder that holds the audit of other models, or on other data: its page would be lost.

    Args:
        folder: of the audit that is to be written.
        sources: the models, as they are called.
        data: name of the data.

    Raises:
        UsageError: It does. A damaged one counts as none.
    """
    try:
        found = read(folder)
    except BnvulnError:
        return
    held = [one.source for one in found.models]
    if held != list(sources) or found.data != data:
        raise UsageError(
            f"{folder} holds the audit of {' and '.join(held)} on {found.data}, and this one is of "
            f"{' and '.join(sources)} on {data}: choose another --out, or remove it"
        )


def read(folder: Path) -> Findings:
    """Read the audit of a folder.

    Raises:
        BnvulnError: There is none, or it is damaged.
    """
    path = folder / FILE
    try:
        return Findings.model_validate(digests.without_digest(parse_json(read_file(path))))
    except FileNotFoundError:
        raise BnvulnError(f"{folder}: no audit here (no {FILE}); make it: bnvuln audit MODEL --out {folder}") from None
    except (OSError, ValueError) as error:
        text = " ".join(str(error).split())[:200]
        raise BnvulnError(f"{path}: not the findings of an audit: {text}") from None
