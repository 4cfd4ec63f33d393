"""Help of every command, and what all commands share: versions, JSON, unknown commands, interruptions."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from bn_vuln.cli.main import bnvuln as group
from bn_vuln.cli.options import print_json
from pydantic_core import PydanticSerializationError

from bn_vuln.experiments import catalog
from bn_vuln.version import __version__

PARTS = {"data": ("list", "info", "prepare"), "weights": ("list", "fetch", "convert"), "config": ("schema", "fields")}
PAGES = [[], *([name] for name in group.commands), *([name, part] for name, parts in PARTS.items() for part in parts)]


@pytest.mark.parametrize("words", PAGES, ids=" ".join)
def test_help_has_examples_and_fits_80_columns(bnvuln, words, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = bnvuln(*words, "--help")
    assert code == 0
    assert [line for line in out.splitlines() if len(line) > 80] == []
    if words:
        assert f"bnvuln {' '.join(words)}" in out.partition("Examples:")[2]
    else:
        assert [name for name in group.commands if name not in out] == []


HEAVY = {"tensorflow", "keras", "pydantic", "numpy", "scipy", "matplotlib", "pandas", "yaml", "rich"}


@pytest.mark.parametrize(
    "words", [["--help"], *([name, "--help"] for name in ("evaluate", "audit", "mend"))], ids=" ".join
)
def test_help_imports_nothing_heavy(words):
    code = (
        "import sys\nfrom bn_vuln.cli.main import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit as e: assert not e.code\n"
        f"heavy = {HEAVY if words[0] == '--help' else HEAVY - {'pydantic', 'numpy', 'yaml'}}\n"
        "heavy &= set(sys.modules)\nassert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    if words[0] == "evaluate":  # it lists the suites that ship
        listed = done.stdout.partition("--suite NAME")[2].partition("--set")[0]
        assert [name for name in catalog.names("suites") if name not in listed] == []


def test_attacks_are_listed_where_they_are_taken(bnvuln):
    for command, takes in (("attack", True), ("transfer", False)):
        listed = bnvuln(command, "--help")[1].partition("--attack NAME")[2].partition("--steps")[0]
        assert "strong" in listed
        assert ("carlini_wagner" in listed) == takes


def test_sections_have_one_order(bnvuln):
    for command in ("attack", "evaluate", "transfer", "train", "reproduce", "scale-input"):
        shown = bnvuln(command, "--help")[1]
        assert 0 < shown.index("\nData folders:") < shown.index("\nOutput:") < shown.index("\nExamples:")


def test_report_names_a_folder_that_is_not_there(bnvuln, tmp_path):
    code, out, err = bnvuln("report", tmp_path / "nope")
    assert (code, out, f"'{tmp_path / 'nope'}' does not exist" in err) == (2, "", True)
    assert "experiments run by `bnvuln reproduce`" in bnvuln("report", "--help")[1]


def test_version(bnvuln):
    assert bnvuln("--version") == (0, f"bnvuln, version {__version__}\n", "")


def test_json_has_null_for_what_is_no_number(capsys):
    print_json({"a": [float("nan"), 1.5], "b": {"c": float("-inf")}, "d": (float("inf"), None, "NaN", 3)})
    assert json.loads(capsys.readouterr().out) == {"a": [None, 1.5], "b": {"c": None}, "d": [None, None, "NaN", 3]}


def test_json_is_written_whole_or_not_at_all(capsys):
    with pytest.raises(PydanticSerializationError):
        print_json({"a": 1, "b": object()})
    assert capsys.readouterr().out == ""


def test_an_unknown_command_is_met_with_the_nearest(bnvuln):
    code, _, err = bnvuln("atack")
    assert code == 2
    assert "'attack'" in err


def test_an_interruption_says_how_to_go_on(bnvuln, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("bn_vuln.api.reproduce", interrupted)
    code, _, err = bnvuln("reproduce", "table6", "--scale", "smoke")
    assert code == 130
    assert "go on" in err
