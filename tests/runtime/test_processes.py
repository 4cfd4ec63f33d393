"""Worker processes: they give what they are told to say, and end with the command that began them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from helpers_runs import MessageLog

from bn_vuln.runtime import processes

CHILD = """
import time
from bn_vuln.runtime import processes
processes.exit_with_parent()
print("ready", flush=True)
time.sleep(300)
"""
PARENT = f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', {CHILD!r}]).pid, flush=True); input()"


def test_every_item_is_worked_on_in_another_process():
    said = MessageLog()
    processes.run(lambda item: f"{item} {os.getpid()}", ["a", "b", "c"], 2, said)
    texts = [line.split() for line in said.lines]
    assert sorted(item for item, _ in texts) == ["a", "b", "c"]
    assert str(os.getpid()) not in {pid for _, pid in texts}


def runs(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"  # ended, but not yet waited for
    except FileNotFoundError:
        return False


def test_a_worker_ends_when_its_parent_is_killed():
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    assert parent.stdout.readline() == "ready\n"
    assert runs(child)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 30
    while runs(child) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not runs(child)
