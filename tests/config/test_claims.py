"""Claims: each kind with its own fields, what is refused, rows, remarks, and claims as they were until 0.1."""

from __future__ import annotations

from typing import Any

import pytest
from helpers_records import SMALL, small

from bn_vuln.config import Claim, Frozen, to_plain, validate
from bn_vuln.config.grid import check_layout, expand
from bn_vuln.errors import ConfigError

ELSEWHERE = {"arm": "none", "where": {"data.width": 56}}
SLOPE = {"kind": "slope", "value": 0.5, "along": "data.width", "tolerance": 0.1}
RATIO = {"kind": "ratio", "value": 0.9, "tolerance": 0.1}


class One(Frozen):
    claim: Claim


def claim(**fields: Any) -> Claim:
    return validate(One, {"claim": {"perturbations": ["bim"], "source": "text", **fields}}, "file.yaml").claim


def test_what_is_compared() -> None:
    for fields, is_contrast, keys in [
        ({"kind": "value", "value": -0.4}, True, []),
        ({"kind": "sign", "sign": -1, "arms": ["batch", "none"]}, True, []),
        ({"kind": "equals", "value": 0.66, "tolerance": 0.1, "arms": ["none"]}, False, []),
        ({"kind": "context", "value": 0.66, "arms": ["none"], "where": {"weight_decay": 0}}, False, ["weight_decay"]),
        ({**RATIO, "arms": ["batch", ELSEWHERE]}, True, ["data.width"]),
        ({**SLOPE, "arms": ["none"], "power": 2}, False, ["data.width"]),
    ]:
        made = claim(**fields)
        assert (made.kind, made.is_contrast, made.row_keys) == (fields["kind"], is_contrast, keys)
        assert claim(**to_plain(made)) == made


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "quotient"}, ": expected one of value, sign, equals, slope, ratio, context, received 'quotient'"),
        ({"kind": "vlaue"}, "received 'vlaue'; did you mean 'value'?"),
        ({"kind": "value"}, ".value: missing"),
        ({"kind": "value", "value": 0.1, "arms": ["none"]}, ".arms: expected 0 or 2 arms, received 1"),
        (
            {"kind": "value", "value": 0.1, "arms": [ELSEWHERE, "none"]},
            ".arms: the row of the first one is the claim's",
        ),
        ({"kind": "value", "value": 0.1, "tolerance": 0.1}, ": unknown key 'tolerance'"),
        ({"kind": "value", "value": 0.1, "arms": ["batch", {"where": {}}]}, ".arms.1.arm: missing"),
        ({"kind": "value", "value": "nan"}, ".value: expected a number or a fraction such as 8/255, received 'nan'"),
        ({"kind": "value", "value": 0.1, "sem": -0.1}, ".sem: expected greater than or equal to 0, received -0.1"),
        (
            {"kind": "value", "value": 0.1, "perturbations": []},
            ".perturbations: expected at least 1 item, received none",
        ),
        ({"kind": "sign", "sign": 0}, ".sign: expected -1 or 1, received 0"),
        ({"kind": "sign", "sign": 1, "value": 0.1}, ": unknown key 'value'"),
        ({"kind": "equals", "value": 0.1}, ".tolerance: missing"),
        ({**RATIO}, ": expected 2 arms, received 0"),
        ({**SLOPE}, ": expected 1 arm, received 0"),
        ({**SLOPE, "arms": ["batch", "none"]}, ".arms: expected 1 arm, received 2"),
        ({**SLOPE, "arms": ["none"], "power": 0}, ".power: expected greater than or equal to 1, received 0"),
        # without a kind, as until 0.1
        ({}, ".value: missing"),
        ({"value": 0.1, "sign": 1}, ": unknown key 'value'"),
        ({"value": 0.1, "against": ELSEWHERE}, ": unknown key 'against'"),
        ({"value": 0.1, "how": "quotient"}, "received 'quotient'"),
        ({"value": 0.9, "how": "ratio", "arm": "batch", "against": ELSEWHERE}, ".tolerance: missing"),
        ({"value": 0.5, "along": "data.width", "arm": "batch", "against": ELSEWHERE}, ": unknown key 'along'"),
    ],
)
def test_claims_that_make_no_sense_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        claim(**fields)
    assert str(caught.value).startswith("file.yaml: claim")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_key_of_a_mistake_is_the_one_that_was_written() -> None:
    for kind in ({}, {"kind": "value"}):
        with pytest.raises(
            ConfigError, match=r"^small\.yaml: claims\.0\.perturbations: expected a list, e\.g\. \[bim\]"
        ):
            small(claims=[{**kind, "perturbations": "bim", "value": 1, "source": "text"}])


# As files of 0.1 have them, with every default written out.
STORED = dict.fromkeys(["arm", "against", "along", "value", "sem", "tolerance", "sign"]) | {
    "how": "difference", "power": 1, "approximate": False, "exact": False, "text": "", "remark": "", "where": {},
}  # fmt: skip
TWO = {"arm": "batch", "against": ELSEWHERE}
ARMS = {"arms": ["batch", ELSEWHERE]}


@pytest.mark.parametrize(
    ("older", "now"),
    [
        ({"value": -0.4, "sem": 0.1}, {"kind": "value", "value": -0.4, "sem": 0.1}),
        ({"value": 0.0, **TWO}, {"kind": "value", "value": 0.0, **ARMS}),
        ({"sign": -1, **TWO}, {"kind": "sign", "sign": -1, **ARMS}),
        ({"value": 0.0, "tolerance": 0.0}, {"kind": "equals", "value": 0.0, "tolerance": 0.0}),
        (
            {"value": 0.4, "tolerance": 0.1, "exact": True, "arm": "none"},
            {"kind": "equals", "value": 0.4, "tolerance": 0.1, "exact": True, "arms": ["none"]},
        ),
        ({"value": 0.5, "approximate": True}, {"kind": "context", "value": 0.5}),
        ({"value": 0.5, "arm": "none"}, {"kind": "context", "value": 0.5, "arms": ["none"], "approximate": False}),
        ({"value": 0.9, "tolerance": 0.1, "how": "ratio", **TWO}, {**RATIO, **ARMS}),
        (
            {"value": 0.5, "tolerance": 0.1, "how": "slope", "along": "data.width", "power": 2, "arm": "none"},
            {**SLOPE, "power": 2, "arms": ["none"]},
        ),
    ],
)
def test_claims_as_they_were_until_0_1_are_read(older: dict[str, Any], now: dict[str, Any]) -> None:
    assert claim(**older) == claim(**STORED | older) == claim(**now)


def test_claims_of_keys_that_are_no_rows_are_refused() -> None:
    for fields in [
        {"kind": "value", "value": -0.4, "where": {"data.widht": 28}},
        {**SLOPE, "arms": ["none"], "along": "data.widht"},
        {"kind": "value", "value": -0.4, "arms": ["none", {"arm": "batch", "where": {"data.widht": 28}}]},
    ]:
        with pytest.raises(ConfigError, match=r"'data\.widht' is not among table\.rows; did you mean 'data\.width'"):
            small(claims=[{"perturbations": ["bim"], "source": "text", **fields}])


@pytest.mark.parametrize("where", [{"data.width": 84}, {"data.width": [28, 84]}])
def test_a_claim_in_no_row_is_refused(where: dict[str, Any]) -> None:
    experiment = small(claims=[{**SMALL["claims"][0], "where": where}])
    with pytest.raises(ConfigError, match=r"claims: no cell has \{'data\.width': .*84.*\}, which a claim is about"):
        check_layout(experiment, expand(experiment))


def test_a_remark_is_a_text_or_the_name_of_one() -> None:
    own = [{**SMALL["claims"][0], "remark": remark} for remark in ("few", "A text.", "Text.", "")]
    experiment = small(claims=own, remarks={"few": "Few seeds."})
    assert [experiment.remark(one) for one in experiment.claims] == ["Few seeds.", "A text.", "Text.", ""]
    with pytest.raises(ConfigError, match="claims: 'fwe' is not among remarks; did you mean 'few'"):
        small(claims=[{**SMALL["claims"][0], "remark": "fwe"}], remarks={"few": "Few seeds."})
