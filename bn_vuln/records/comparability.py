"""The checks of records that are compared with each other, whichever command compares them."""

from __future__ import annotations

from bn_vuln.analysis.statistics import UNEQUAL_CLEAN_ACCURACY
from bn_vuln.config import Evaluation, digest
from bn_vuln.records.schema import Flag, Record
from bn_vuln.records.store import Store
from bn_vuln.typing import Mask


def unequal_clean_accuracy(first: float, second: float, names: tuple[str, str] = ("first", "second")) -> Flag | None:
    """Check 15: the clean accuracies of two models that are compared differ by more than 2 points.

    Args:
        first: clean accuracy of one model, a fraction.
        second: of the other, on the same examples.
        names: what the models are called.

    Returns:
        A flag with the difference, first - second.
    """
    difference = first - second
    if not abs(difference) > UNEQUAL_CLEAN_ACCURACY:
        return None
    return Flag(
        check=15, name="unequal clean accuracies", value=difference,
        message=f"the clean accuracies differ by {100 * difference:+.1f} points ({names[0]} {first:.1%}, {names[1]} "
        f"{second:.1%}): a difference under a perturbation may be that of the clean images. Compare what each loses, "
        "or models that are equally good.",
    )  # fmt: skip


def with_check_of_transfer(store: Store, cell_id: str, record: Record) -> Record:
    """Return a record; that of a transfer with check 6, where the white-box attack on the same model is recorded.

    Args:
        store: where the record is from.
        cell_id: its folder there.
        record: the record; one that is no transfer is returned as it is.
    """
    if record.kind != "transfer":
        return record
    where = {name: record.perturbation[name] for name in Evaluation.model_fields}
    clean, white_box, on_itself, transfer = (
        store.correct(cell_id, digest(perturbation))
        for perturbation in (
            {**where, "kind": "clean"},
            {**where, **record.perturbation["attack"]},
            {**record.perturbation, "source": record.cell_id},
            record.perturbation,
        )
    )
    own = on_itself if white_box is None else white_box
    if clean is None or own is None or transfer is None:
        return record
    flag = transfer_beats_white_box(clean, own, transfer)
    return record.model_copy(update={"flags": (*record.flags, flag)}) if flag else record


def transfer_beats_white_box(clean: Mask, white_box: Mask, transfer: Mask) -> Flag | None:
    """Check 6: adversarial examples of another model succeed more often than the model's own white-box attack.

    Args:
        clean: correct [n] on the clean images; the others do not count.
        white_box: correct [n] under the model's own attack.
        transfer: correct [n] on the other model's adversarial examples.

    Returns:
        A flag with the difference of the two success rates.
    """
    own, other = clean & ~white_box, clean & ~transfer
    more = int(other.sum()) - int(own.sum())
    if more <= 0:
        return None
    n, only_other, only_own = (int(mask.sum()) for mask in (clean, other & ~own, own & ~other))
    return Flag(
        check=6, name="transfer beats white box", value=more / n,
        message=f"another model's adversarial examples succeed on {int(other.sum())} of {n} examples, the white-box "
        f"attack on {int(own.sum())} ({only_other} by transfer alone, {only_own} by the white box alone): the attack "
        "is too weak or the model masks its gradients, so the accuracy under the attack is an upper bound. Take more "
        "steps or restarts, keep best_loss or another step size, and look for flags of check 4.",
    )  # fmt: skip
