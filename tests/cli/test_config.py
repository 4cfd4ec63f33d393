"""`bnvuln config`: JSON schemas and fields, printed."""

import json

from bn_vuln.config import Attack
from bn_vuln.config.fields import field_rows
from bn_vuln.config.schema import json_schema


def test_the_schema_is_one_json_object(bnvuln):
    assert json.loads(bnvuln("config", "schema")[1]) == json_schema("experiment")
    assert json.loads(bnvuln("config", "schema", "--kind", "plan")[1]) == json_schema("plan")
    code, _, err = bnvuln("config", "schema", "--kind", "table")
    assert (code, "'table' is not one of" in err) == (2, True)


def test_the_fields_are_those_of_a_cell_or_of_another_config(bnvuln):
    out = bnvuln("config", "fields")[1]
    assert "\ntrain.label_smoothing " in out
    assert "normalization.groups            group, ws_group: Groups of channels." in out
    out = bnvuln("config", "fields", "attack")[1]
    assert [row.key for row in field_rows(Attack) if f"{row.key} " not in out] == []
    assert "\nmax_clean_cost " in bnvuln("config", "fields", "audit-options")[1]
    assert "\nbatch_size " in bnvuln("config", "fields", "evaluate-options")[1]
    (keep,) = [row for row in json.loads(bnvuln("config", "fields", "attack", "--json")[1])["fields"]
               if row["key"] == "keep"]  # fmt: skip
    assert (keep["type"], keep["default"]) == ("first_success | last | best_loss", "from other fields")


def test_a_config_that_is_not_known_gets_a_hint(bnvuln):
    code, out, err = bnvuln("config", "fields", "atack")
    assert (code, out) == (2, "")
    assert err.startswith("Error: no config 'atack' (known: adversarial, alex-net-arch, attack, audit-options, ")
    assert err.endswith("; did you mean 'attack'?\n")
