"""Tables on a terminal: at most 80 columns, whole numbers, the order and spelling that the user gave."""

from __future__ import annotations

from itertools import pairwise

import pytest

from bn_vuln.config import AWGN, Attack, Clean, Corruption, Evaluation, MinimumNorm, digest, order_of
from bn_vuln.config import perturbation_identity as identity
from bn_vuln.records import Flag, MeasurementRecord, Record
from bn_vuln.reporting.exports import record_fields
from bn_vuln.reporting.tables import TextTable, display_width, measurements_table, records_table, text_table, wrap

MADE = {"cell_id": "c" * 12, "cell": {"weights": "0" * 64}, "versions": {}, "device": "cpu", "seconds": 1.0}
FLAG = Flag(check=1, name="fgsm", value=0.1, message="FGSM leaves 7.6% fewer of 250 examples standing: " + "why " * 20)


def attack(**fields):
    return Attack.model_validate(fields)


def record(perturbation, flags=(), **evaluation):
    fields = identity(Evaluation.model_validate(evaluation), "mnist", perturbation)
    number = {"n": 1000, "correct": 875, "accuracy": 0.875}
    return Record(**MADE, **number, perturbation_id=digest(fields), perturbation=fields, flags=flags)


def fits(text):
    return [line for line in text.splitlines() if display_width(line) > 80] == []


PGD = [attack(eps=eps) for eps in ("2/255", "8/255", 0.3)]


def test_records_fit_and_keep_order_and_spelling() -> None:
    named = {"clean": Clean(), "noise": AWGN(std=0.2), "pgd 2/255": PGD[0], "pgd 0.3": PGD[2], "pgd 8/255": PGD[1],
             "a name that someone gave at length, 東京": attack(attack="strong", eps="16/255", eps_grid=["1/255"]),
    }  # fmt: skip
    table = records_table({name: record(one, (FLAG,) if one in PGD else (), limit=1000) for name, one in named.items()})
    text = text_table(table)
    assert fits(text)
    assert [row[0] for row in table.rows] == list(named)
    assert [row[2:] for row in table.rows][2] == ["1000", "87.50", "[1]"]
    for spelled in ("eps 2/255", "eps 0.3", "eps 8/255", "std 0.2", "eps 16/255"):
        assert spelled in " ".join(text.split())
    assert text.count("[1] check 1: FGSM leaves") == 1


def test_distances_and_measurements_fit() -> None:
    shown = record(MinimumNorm()).model_copy(update={"mean_distance": 1.25, "median_distance": 1.0})
    text = text_table(records_table({"carlini_wagner": shown}))
    assert fits(text)
    assert "L2 mean 1.250," in text
    measured = MeasurementRecord(
        **MADE, measurement_id="m", measurement={"kind": "batch_statistics"}, value=0.5, unit="%", n=100,
        details={f"a detail {i}": i / 7 for i in range(9)},
    )  # fmt: skip
    text = text_table(measurements_table({"shift": measured}))
    assert fits(text)
    assert "50.00 %" in text


def test_columns_that_do_not_fit_follow_below_beside_the_keys() -> None:
    header = ["width", "arm", *(f"column {i}" for i in range(9))]
    rows = [[str(28 * i), "batch" if i else "none", *(f"{i}{j}.25 ± 0.{j}1" for j in range(9))] for i in range(2)]
    text = text_table(TextTable("", header, rows, keys=2))
    assert fits(text)
    blocks = text.split("\n\n")
    assert len(blocks) > 1
    assert all(block.splitlines()[2].startswith("0      none") for block in blocks)
    assert [number for number in rows[1][2:] if number not in text] == []  # numbers are never broken


def test_control_characters_do_not_reach_the_terminal() -> None:
    text = text_table(TextTable("", ["model"], [["a\x1b[31m\nb"]]))
    assert text.splitlines()[2] == "a\N{REPLACEMENT CHARACTER}[31m\N{REPLACEMENT CHARACTER}b"


@pytest.mark.parametrize("width", [1, 2, 7, 20, 80])
def test_wrapping_loses_nothing(width: int) -> None:
    for text in ("", "one", "some words, 東京 too", "x" * 100 + " and more", "tail  of  spaces"):
        lines = wrap(text, width)
        assert "".join("".join(lines).split()) == "".join(text.split())
        assert all(display_width(line) <= max(width, 2) for line in lines)


def test_the_order_of_perturbations() -> None:
    wanted = [
        Clean(), AWGN(std=0.1), AWGN(std=0.25), Corruption(corruption="gaussian_noise", severity=5),
        Corruption(corruption="shot_noise", severity=1), attack(attack="bim", eps=0.1),
        attack(eps=1 / 255, ord=2), *[attack(eps=eps) for eps in ("1/255", "2/255", "16/255")], MinimumNorm(),
    ]  # fmt: skip
    places = [order_of(record(one).perturbation) for one in wanted]
    assert [first < second for first, second in pairwise(sorted(places))] == [True] * (len(wanted) - 1)
    by_place = [one for _, one in sorted(zip(places, range(len(wanted)), strict=True))]
    assert by_place == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]


def test_plain_data_have_the_present_names() -> None:
    kept = record(attack(attack="apgd-ce", eps=0.3, min_eps_tolerance=0.01, keep="first_success"))
    assert kept.perturbation["iterate"] == "any"
    fields = record_fields(kept)["perturbation"]
    assert (fields["keep"], fields["min_eps_tolerance"]) == ("first_success", 0.01)
    assert not {"iterate", "bisect", "ladder"} & fields.keys()
