"""Transfer between several models: each source is attacked once, for all targets.

What counts are the images that are kept (`result.Result.images`). A target's accuracy on them is what the paper's
Appendix E.2 has. The transfer rate is the share of examples that are adversarial for the target, of those that both
models classify correctly when clean and that are adversarial for the source; so it depends neither on clean accuracy
nor on how often the attack succeeds on the source. An example is adversarial for a model that misclassifies it,
whatever the target of a targeted attack.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bn_vuln import records
from bn_vuln.config import Attack, Clean, Perturbation, Transfer
from bn_vuln.evaluation.attack_diagnostics import Checks
from bn_vuln.evaluation.eval_set import check_same_input
from bn_vuln.evaluation.evaluator import Evaluator, recorded
from bn_vuln.evaluation.opening import Opened
from bn_vuln.records.comparability import unequal_clean_accuracy, with_check_of_transfer
from bn_vuln.records.names import short_names
from bn_vuln.runtime.distribution import ONE_DEVICE, Distribution
from bn_vuln.runtime.progress import Progress, Quiet

Ids = tuple[str, str]  # of a source and a target


@dataclass(frozen=True)
class TransferResult:
    """Every pair of a source and a target.

    Attributes:
        names: short names of the models, by id.
        clean: records of the targets on clean images, by id; every source is a target too.
        pairs: records of the targets on the sources' adversarial examples, by the ids of source and target.
        attack: the attack on the sources.
        data: the data set as its user knows it.
    """

    names: Mapping[str, str]
    clean: Mapping[str, records.Record]
    pairs: Mapping[Ids, records.Record]
    attack: Attack
    data: str

    @property
    def sources(self) -> tuple[str, ...]:
        """The ids of the sources."""
        return tuple(dict.fromkeys(source for source, _ in self.pairs))

    @property
    def targets(self) -> tuple[str, ...]:
        """The ids of the targets."""
        return tuple(self.clean)

    def unequal(self) -> dict[Ids, records.Flag]:
        """Check 15: targets whose clean accuracy is not that of the source; of two models once."""
        found = {
            (source, target): unequal_clean_accuracy(
                self.clean[source].accuracy, self.clean[target].accuracy, (self.names[source], self.names[target])
            )
            for source, target in self.pairs
            if target not in self.sources or self.targets.index(source) < self.targets.index(target)
        }
        return {ids: flag for ids, flag in found.items() if flag is not None}


def run(
    models: Mapping[str, Opened],
    labels: Mapping[str, str],
    sources: Sequence[str],
    attack: Attack,
    *,
    force: bool = False,
    batch_size: int | None = None,
    checks: Checks = "basic",
    distribution: Distribution = ONE_DEVICE,
    progress: Progress | None = None,
) -> TransferResult:
    """Attack each source, and measure every model on its adversarial examples.

    Args:
        models: the targets, each with the run folder of its records, by id.
        labels: the names or paths that their user knows them by, by id.
        sources: the ids of those that are attacked.
        attack: the attack, at one eps.
        force: measure again what is recorded. Else a source with all its records is not attacked.
        batch_size: see `Evaluator`.
        checks: see `Evaluator`.
        distribution: see `Evaluator`.
        progress: where messages and the number of examples that are done go.

    Returns:
        The pairs.

    Raises:
        UsageError: where the models do not take the same images.
    """
    progress = progress or Quiet()
    first, *others = models.values()
    for one in others:
        check_same_input(first.classifier, one.classifier, first.evaluation)
    names = short_names({own: one.classifier.identity for own, one in models.items()}, labels)
    perturbations: dict[str, Perturbation] = {
        "clean": Clean(),
        **{source: Transfer(source=source, attack=attack) for source in sources},
    }
    found: dict[Ids, records.Record] = {}
    evaluators: dict[str, Evaluator] = {}
    for own, one in models.items():
        known = {} if force else recorded(one.classifier, perturbations, one.evaluation, one.folder)
        found |= {(name, own): record for name, record in known.items()}
        evaluators[own] = Evaluator(
            one.classifier, one.evaluation, batch_size=batch_size, checks=checks, distribution=distribution
        )
    for evaluator in evaluators.values():
        for source in sources:
            evaluator.add_source(evaluators[source])
    for name, perturbation in perturbations.items():
        for own, evaluator in evaluators.items():
            if (name, own) not in found:
                title = f"{names[name]} -> {names[own]}" if name in names else names[own]
                measured = evaluator.measure({title: perturbation}, models[own].folder, progress=progress)
                found[name, own] = next(measured)[1].record
        if name in evaluators:
            evaluators[name].forget()
    folders = {own: one.folder.resolve() for own, one in models.items() if one.folder is not None}
    checked = {
        (name, own): with_check_of_transfer(records.FolderStore(folders[own].parent), folders[own].name, record)
        for (name, own), record in found.items()
        if own in folders
    }
    found |= checked
    pairs = {(source, own): found[source, own] for source in sources for own in models}
    label = next(iter(evaluators.values())).eval_set.dataset.info.label
    return TransferResult(names, {own: found["clean", own] for own in models}, pairs, attack, label)
