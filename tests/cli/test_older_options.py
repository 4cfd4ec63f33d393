"""Options and values of earlier versions: they work as those of today, and are in no help."""

from __future__ import annotations

import json

import pytest

from bn_vuln.errors import BnvulnError

# (command, older options, options of today)
OLDER = [
    ("attack", ["--ladder", "2/255,4/255"], ["--eps-grid", "2/255,4/255"]),
    ("attack", ["--attack", "apgd-ce", "--bisect", "1/255"], ["--attack", "apgd-ce", "--min-eps-tolerance", "1/255"]),
    ("attack", ["--iterate", "any"], ["--keep", "first_success"]),
    ("attack", ["--iterate", "best"], ["--keep", "best_loss"]),
    ("attack", ["--iterate", "last"], ["--keep", "last"]),
    ("attack", ["--keep", "any"], ["--keep", "first_success"]),
    ("transfer", ["--iterate", "best"], ["--keep", "best_loss"]),
    ("train", ["--limit", "500", "--draw", "seed"], ["--limit", "500", "--subset-seed", "seed"]),
]


def test_older_options_work_and_are_not_in_the_help(bnvuln, monkeypatch, tmp_path):
    calls = []

    def stop(_, config, **__):
        calls.append(config)
        raise BnvulnError("stopped")

    monkeypatch.setattr("bn_vuln.api.attack", lambda model, *, attack, **_: stop(model, attack))
    monkeypatch.setattr("bn_vuln.api.transfer", lambda models, *, attack, **_: stop(models, attack))
    monkeypatch.setattr("bn_vuln.api.check_data", lambda _: True)

    def config(command, options):
        if command == "train":
            return json.loads(bnvuln("train", *options, "--dry-run", "--json")[1])
        code, _, err = bnvuln(command, *([tmp_path] if command == "attack" else ["A", "B"]), *options)
        assert (code, err) == (1, "Error: stopped\n")
        return calls.pop()

    for command, older, now in OLDER:
        assert config(command, older) == config(command, now)
        shown = bnvuln(command, "--help")[1]
        assert [word for word in older if word.startswith("--") and word not in now and word in shown] == []


def test_an_older_name_beside_the_present_one_is_refused(bnvuln, tmp_path):
    code, _, err = bnvuln("attack", tmp_path, "--eps-grid", "2/255", "--ladder", "4/255")
    assert (code, "--eps-grid and --ladder are two names of one option and contradict" in err) == (2, True)


@pytest.mark.parametrize("value", ["first", "anything"])
def test_other_values_of_a_renamed_option_are_refused(bnvuln, tmp_path, value):
    code, _, err = bnvuln("attack", tmp_path, "--iterate", value)
    assert code == 2
    assert "'--iterate': expected first_success|last|best_loss, received" in err
