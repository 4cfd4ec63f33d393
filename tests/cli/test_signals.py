"""Ctrl-C and SIGTERM at any moment of the commands that work long: the exit code, what is left, and how it goes on."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
from helpers_commands import left_over, outcome, started

EXPERIMENT = """
name: two
title: "Two seeds of a pair"
claim: "Signals change nothing."
source: "tests"
base: {data: {name: mnist, limit: 2000}, arch: {name: mlp, hidden: [32]}, train: {epochs: 3, batch_size: 50, lr: 0.1}}
grid: {normalization: [none, batch]}
seeds: [0, 1]
evaluation: {limit: 500}
perturbations: {clean: {kind: clean}, pgd: {kind: attack, eps: 0.1}}
table: {columns: {clean: "clean", pgd: "PGD"}}
"""
SMALL = ["--limit", "2000", "--set", "arch.hidden=[32]", "--batch-size", "50", "--lr", "0.1", "--deterministic"]
COMMANDS = {
    "train": ["train", *SMALL, "--epochs", "200", "--out", "run"],
    "attack": ["attack", "run", "--eps", "0.1", "--attack", "strong", "--limit", "300"],
    "evaluate": ["evaluate", "run", "--suite", "quick", "--set", "limit=300"],
    "reproduce": ["reproduce", "two.yaml", "--out", "runs", "--jobs", "2"],
}
SIGNALS_SENT, IN_A_ROW = 40, 5
LINES = {
    signal.SIGINT: "Interrupted. What was finished is kept",
    signal.SIGTERM: "Terminated. What was finished is kept",
    signal.SIGHUP: "The terminal was closed. What was finished is kept",
}


def end(process, number, *, group=False):
    """Send a signal, to the whole group as a terminal does or to the process alone; (exit code, standard error)."""
    if process.poll() is None:
        os.killpg(process.pid, number) if group else process.send_signal(number)
    _, err = process.communicate(timeout=300)
    return process.returncode, err


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Return a function: a fresh folder in which a command can be started."""
    root = tmp_path_factory.mktemp("prepared")
    assert end(started(root, *COMMANDS["train"][:-4], "--epochs", "2", "--out", "run"), 0)[0] == 0
    (root / "two.yaml").write_text(EXPERIMENT)

    def make(name, folder):
        shutil.copytree(root, folder)
        if name == "train":
            shutil.rmtree(folder / "run")
        return folder

    return make


def test_a_signal_in_a_training_writes_the_checkpoint_and_releases_the_lock(tmp_path):
    """Ctrl-C to the group, SIGTERM, and a terminal that was closed, so that nothing can be printed any more."""
    words = ["train", *SMALL, "--epochs", "100000"]
    processes = {number: started(tmp_path, *words, "--out", f"{number:d}", quiet=False) for number in LINES}
    for number, process in processes.items():
        while not (line := process.stderr.readline()).startswith("epoch 1/"):
            assert line, number
        assert (tmp_path / f"{number:d}" / "lock.json").exists()
        if number == signal.SIGHUP:
            process.stderr.close()
            process.send_signal(number)
            assert process.wait(60) == 129
        else:
            code, err = end(process, number, group=number == signal.SIGINT)
            assert code == 128 + number
            assert err.splitlines()[-1].startswith(LINES[number])
            assert "Traceback" not in err
        assert left_over(tmp_path) == [other for other in left_over(tmp_path) if other.parts[0] != f"{number:d}"]
        assert (tmp_path / f"{number:d}" / "checkpoint.npz").exists()


def test_a_signal_while_tensorflow_starts_ends_the_command(tmp_path):
    process = started(tmp_path, "train", *SMALL, "--out", "run", "--json")
    while "tensorflow" not in Path(f"/proc/{process.pid}/maps").read_text():  # what it has loaded
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 143
    assert json.loads(out) == {"error": err.strip(), "exit_code": 143}
    assert err.strip().startswith(LINES[signal.SIGTERM])
    assert left_over(tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_signals_at_random_moments_lose_nothing(name, prepared, tmp_path):
    """Chains of interruptions in one folder, until one comes too late: then all is as in an undisturbed run."""
    rng, words = random.Random(name), COMMANDS[name]
    begun = time.monotonic()
    code, err = end(started(prepared(name, tmp_path / "whole"), *words), 0)
    longest, expected = 1.1 * (time.monotonic() - begun), outcome(tmp_path / "whole")
    assert code == 0, err
    sent = chain = 0
    while sent < SIGNALS_SENT:
        chain += 1
        folder = prepared(name, tmp_path / str(chain))
        for _ in range(IN_A_ROW):
            number, moment, group = rng.choice([signal.SIGINT, signal.SIGTERM]), rng.uniform(0.1, longest), rng.random()
            process = started(folder, *words)
            time.sleep(moment)
            code, err = end(process, number, group=group < 0.5)
            where = f"{name}, chain {chain}: signal {number} after {moment:.2f} of {longest:.2f} s"
            assert code in (0, 128 + number), (where, code, err)
            assert "Traceback" not in err, (where, err)
            assert code == 0 or err.splitlines()[-1].startswith(LINES[number]), (where, err)
            assert left_over(folder) == [], where
            sent += 1
        assert end(started(folder, *words), 0)[0] == 0, f"{name}, chain {chain}"
        assert outcome(folder) == expected, f"{name}, chain {chain}"
