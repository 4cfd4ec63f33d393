"""With --json every failure prints one object, {"error": MESSAGE, "exit_code": CODE}, beside the line for people."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys

import click
import pytest
from bn_vuln.cli.main import bnvuln as group
from bn_vuln.cli.main import main

from bn_vuln.errors import BnvulnError, ConfigError, UsageError

PARTS = {"data": ("list", "info", "prepare"), "weights": ("list", "fetch", "convert"), "config": ("schema", "fields")}
COMMANDS = [
    *([name] for name in group.commands if name not in PARTS),
    *([name, part] for name, parts in PARTS.items() for part in parts),
]


def check(done, code, *parts):
    """One object on standard output, with the exit code; its message is what people read too."""
    assert done[0] == code
    failure = json.loads(done[1])
    assert failure == {"error": failure["error"], "exit_code": code}
    assert failure["error"] in done[2]
    assert [part for part in parts if part not in failure["error"]] == []
    assert "Traceback" not in done[2]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_arguments_that_do_not_parse(bnvuln, words):
    check(bnvuln(*words, "--json", "--nonsense"), 2, "'--json'" if words == ["config", "schema"] else "'--nonsense'")
    check(bnvuln(*words, "--nonsense", "--json"), 2, "'--nonsense'")


@pytest.mark.parametrize("words", [["--json"], ["atack", "--json"], *([name, "x", "--json"] for name in PARTS)])
def test_there_is_no_such_command(bnvuln, words):
    check(bnvuln(*words), 2)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_arguments_of_the_wrong_number(bnvuln, words):
    if words[-1] not in ("prepare", "publish", "transfer"):  # which take any number
        check(bnvuln(*words, *(["--json"] + ["x"] * 9)), 2)


FAILURES = [
    ("train --c -1", "--c"),
    ("train --arch nonsense", "nonsense"),
    ("train --set train.nonsense=1", "train.nonsense"),
    ("train --data nonsense --dry-run", "nonsense"),
    ("train --out FILE", "FILE"),
    ("attack nowhere --eps 8/255", "nowhere"),
    ("attack --eps nonsense", "eps"),
    ("attack --runs empty", "empty"),
    ("attack FILE --data toy", "FILE"),
    ("evaluate nowhere", "nowhere"),
    ("evaluate --suite nonsense", "nonsense"),
    ("transfer nowhere there", "nowhere"),
    ("transfer nowhere", "two different models"),
    ("audit nowhere --data toy", "nowhere"),
    ("audit nowhere --time soon", "soon"),
    ("mend nowhere -o out.keras --c 0.1", "nowhere"),
    ("mend nowhere", "--out"),
    ("compare nowhere there", "nowhere"),
    ("compare nowhere", "MODEL"),
    ("show nowhere", "nowhere"),
    ("list FILE", "FILE"),
    ("report nowhere", "nowhere"),
    ("report empty", "empty"),
    ("report empty --format pdf", "pdf"),
    ("publish nonsense --to store", "nonsense"),
    ("publish table6 --from nowhere --to store", "nowhere"),
    ("unpack nowhere there", "nowhere"),
    ("unpack empty there", "empty"),
    ("reproduce nonsense", "nonsense"),
    ("reproduce BROKEN", "BROKEN"),
    ("reproduce table6 --jobs none", "none"),
    ("reproduce table6 --set nonsense=1 --dry-run", "nonsense"),
    ("scale-input --width nonsense", "nonsense"),
    ("config fields nonsense", "nonsense"),
    ("data info nonsense", "nonsense"),
    ("data info FILE", "FILE"),
    ("data prepare nonsense", "nonsense"),
    ("weights fetch nonsense", "nonsense"),
    ("weights convert nowhere there.safetensors alexnet", "nowhere"),
]


@pytest.mark.parametrize(("line", "part"), FAILURES, ids=[line for line, _ in FAILURES])
def test_failures_of_each_command(bnvuln, line, part, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "FILE").write_text("text\n")
    (tmp_path / "BROKEN").with_suffix(".yaml").write_text("base: [")
    words = line.replace("BROKEN", "BROKEN.yaml").split()
    done = bnvuln(*words, "--json")
    check(done, done[0], part)
    assert done[0] in (1, 2)
    assert bnvuln(*words)[:2] == (done[0], "")


ERRORS = [
    (BnvulnError("failed"), 1, "failed"),
    (UsageError("so it cannot be done"), 2, "so it cannot be done"),
    (ConfigError("a.yaml: key"), 2, "a.yaml: key"),
    (click.UsageError("no"), 2, "no"),
    (MemoryError("9 GiB"), 1, "memory is exhausted (9 GiB)"),
    (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "runs/a"), 1, "runs/a: No space left on device"),
    (KeyboardInterrupt(), 130, "Interrupted."),
    (click.Abort(), 130, "Interrupted."),
]


def failing(monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("bn_vuln.reporting.models.listed", fail)


@pytest.mark.parametrize(("error", "code", "part"), ERRORS, ids=[type(error).__name__ for error, *_ in ERRORS])
def test_errors_of_each_kind(bnvuln, error, code, part, monkeypatch):
    failing(monkeypatch, error)
    check(bnvuln("list", "--json"), code, part)


@pytest.mark.parametrize(
    ("number", "code", "part"),
    [
        (signal.SIGINT, 130, "Interrupted."),
        (signal.SIGTERM, 143, "Terminated."),
        (signal.SIGHUP, 129, "The terminal was closed."),
    ],
)
def test_signals(bnvuln, number, code, part, monkeypatch):
    before = signal.signal(number, signal.default_int_handler)
    monkeypatch.setattr("bn_vuln.reporting.models.listed", lambda _: signal.raise_signal(number))
    check(bnvuln("list", "--json"), code, part)
    assert signal.signal(number, before) is signal.default_int_handler


def test_what_nobody_expected_keeps_its_traceback(monkeypatch, capsys):
    failing(monkeypatch, ZeroDivisionError("by zero"))
    with pytest.raises(ZeroDivisionError):
        main(["list", "--json"])
    assert json.loads(capsys.readouterr().out) == {"error": "ZeroDivisionError: by zero", "exit_code": 1}


@pytest.mark.parametrize("error", [BnvulnError("late"), KeyboardInterrupt(), click.exceptions.Exit(1)])
def test_there_is_never_a_second_object(bnvuln, error, monkeypatch, tmp_path):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("bn_vuln.cli.options.print_json", print_first(monkeypatch, fail))
    code, out, _ = bnvuln("list", tmp_path, "--json")
    assert code == (130 if isinstance(error, KeyboardInterrupt) else 1)
    assert json.loads(out)["models"] == []


def print_first(monkeypatch, fail):
    """Print the object of a command, then fail."""
    from bn_vuln.cli import options

    real = options.print_json

    def print_json(data):
        monkeypatch.setattr(options, "print_json", real)
        real(data)
        fail()

    return print_json


# ---------------------------------------------------------------- standard output that cannot be written


def shell(line):
    done = subprocess.run(
        ["bash", "-c", line.replace("bnvuln", f"{sys.executable} -m bn_vuln")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("line", ["config schema", "data list --json", "data list", "nonsense --json"])
def test_a_reader_that_has_gone_is_no_traceback(line):
    code, _, err = shell(f"bnvuln {line} | true; exit ${{PIPESTATUS[0]}}")
    assert code in (1, 2)
    assert "Traceback" not in err
    assert "Exception ignored" not in err


@pytest.mark.parametrize("where", ["/dev/full", "&-"])
@pytest.mark.parametrize("line", ["data list --json", "data list"])
def test_standard_output_that_is_full_or_closed(line, where):
    code, _, err = shell(f"bnvuln {line} >{where}")
    assert (code, err) == ((1, "Error: file system: No space left on device\n") if where == "/dev/full" else (0, ""))
