"""Signals: raised, put off, raised again where they were swallowed, never on the way up; and the end of workers."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time

import pytest

from bn_vuln.errors import Terminated
from bn_vuln.runtime import signals
from bn_vuln.runtime.progress import PlainLines, Quiet

RAISED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Swallows:
    """Receives a signal where Python drops what is raised."""

    def __del__(self):
        signal.raise_signal(signal.SIGTERM)


@pytest.fixture(autouse=True)
def handlers():
    before = {number: signal.getsignal(number) for number in RAISED}
    for number in RAISED:
        signal.signal(number, signal.default_int_handler)
    yield
    for number, handler in before.items():
        assert signal.getsignal(number) is signal.default_int_handler
        signal.signal(number, handler)


def interruption(block):
    """What a signal within the block raises, whatever else does."""

    def run():
        with signals.raised():
            block()

    with pytest.raises(KeyboardInterrupt) as error:
        run()
    return error.value


@pytest.mark.parametrize("number", RAISED)
def test_a_signal_is_raised_in_the_block_and_forgotten_after_it(number):
    error = interruption(lambda: signal.raise_signal(number))
    assert isinstance(error, Terminated)
    assert error.number == number
    signals.check()


def test_what_is_ignored_stays_ignored():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with signals.raised():
        signal.raise_signal(signal.SIGHUP)
        signals.check()
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    signal.signal(signal.SIGHUP, signal.default_int_handler)


@pytest.mark.parametrize("progress", [Quiet(), PlainLines()], ids=["quiet", "lines"])
@pytest.mark.parametrize("step", ["start", "advance"])
def test_what_was_swallowed_is_raised_by_progress(progress, step, capsys):
    reached = []

    def block():
        Swallows()
        reached.append("swallowed")
        progress.start("a", 1, "b") if step == "start" else progress.advance(0)
        reached.append("went on")

    assert interruption(block).number == signal.SIGTERM
    assert reached == ["swallowed"]
    assert capsys.readouterr().err == ""


def test_other_errors_that_are_swallowed_are_still_told(monkeypatch):
    class Broken:
        def __del__(self):
            raise ValueError("broken")

    told = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: told.append(unraisable.exc_type))
    with signals.raised():
        Broken()
    assert told == [ValueError]


def test_two_steps_that_belong_together_are_both_done():
    done = []

    def block():
        with signals.uninterrupted():
            with signals.uninterrupted():
                done.append(1)
                signal.raise_signal(signal.SIGTERM)
            done.append(2)
        done.append(3)

    assert isinstance(interruption(block), Terminated)
    assert done == [1, 2]


def test_an_error_after_a_signal_comes_of_it():
    def block():
        Swallows()
        raise ImportError("made of the interruption by native code")

    assert isinstance(interruption(block).__cause__, ImportError)


def test_an_error_without_a_signal_stays():
    with pytest.raises(ImportError), signals.raised():
        raise ImportError


@pytest.mark.parametrize("wrapped", [False, True])
def test_cleaning_up_is_not_interrupted_by_a_second_signal(wrapped):
    done = []

    def interrupted():
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt as error:
            if wrapped:
                raise RuntimeError from error
            raise

    def block():
        try:
            interrupted()
        finally:
            signal.raise_signal(signal.SIGINT)
            signals.check()
            done.append("cleaned")

    interruption(block)
    assert done == ["cleaned"]


def test_a_second_signal_works_where_the_first_was_swallowed():
    done = []

    def block():
        Swallows()
        signal.raise_signal(signal.SIGINT)
        done.append("not reached")

    interruption(block)
    assert done == []


def test_other_threads_are_not_interrupted():
    found = []

    def work():
        with signals.raised(), signals.uninterrupted():
            signals.check()
        found.append("worked")

    def block():
        with signals.uninterrupted():
            signal.raise_signal(signal.SIGTERM)
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()

    assert isinstance(interruption(block), Terminated)
    assert found == ["worked"]


def script(code, **kwargs):
    """A process that runs code and has printed `ready`; it ignores no signal, as a job in the background would."""
    code = "\n".join([
        "import signal, sys, time",
        "from bn_vuln.runtime import signals",
        "for one in signals.SIGNALS: signal.signal(one, signal.SIG_DFL)",
        code,
    ])  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kwargs
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_a_third_signal_ends_the_process_at_once():
    process = script("""
with signals.raised():
    try:
        print("ready", flush=True)
        time.sleep(60)
    finally:
        print("first", flush=True)
        time.sleep(60)""")
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "first\n"
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)  # one that is pending still is not counted twice
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 130
    assert process.communicate()[1] == ""


def test_signals_while_a_program_starts_and_ends_leave_no_traceback():
    process = script("""
signals.remember()
print("ready", flush=True)
sys.stdin.read()
signals.remember()
try:
    with signals.raised():
        print("not reached")
except KeyboardInterrupt as error:
    print(error.number)
signal.raise_signal(signal.SIGINT)""", stdin=subprocess.PIPE)  # fmt: skip
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate("")
    assert (process.returncode, out, err) == (0, "15\n", "")


def test_ctrl_c_in_code_that_is_made_of_text_has_its_exit_code(tmp_path):
    """As dataclasses and named tuples make classes, while TensorFlow is imported."""
    (tmp_path / "program.py").write_text("""
import signal, sys
import bn_vuln.cli.main, bn_vuln.reporting.models
signal.signal(signal.SIGINT, signal.default_int_handler)
bn_vuln.reporting.models.listed = lambda _: exec("signal.raise_signal(signal.SIGINT)")
sys.argv = ["bnvuln", "list"]
bn_vuln.cli.main.main()
""")
    done = subprocess.run([sys.executable, "-m", "program"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr.strip().startswith("Interrupted.")


def test_a_signal_while_the_command_line_is_imported_ends_it():
    process = script("""
signals.remember()
signal.raise_signal(signal.SIGTERM)
print("ready", flush=True)
sys.argv = ["bnvuln", "data", "list"]
from bn_vuln.__main__ import main
main()""")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (143, "")
    assert err.strip().startswith("Terminated.")


WORKER = """
signal.signal(signal.SIGTERM, signal.SIG_IGN if {deaf} else signal.SIG_DFL)
with signals.ending_worker():
    try:
        print("ready", flush=True)
        time.sleep(60)
    finally:
        print("saved", flush=True)
"""


def test_workers_end_in_order():
    workers = [script(WORKER.format(deaf=deaf)) for deaf in (False, True)]
    idle = script("with signals.ending_worker(): pass\nprint('ready', flush=True)\ntime.sleep(60)")
    gone = script("print('ready', flush=True)")
    gone.wait()
    pids = [process.pid for process in (*workers, idle, gone)]
    begun = time.monotonic()
    assert signals.end_processes(pids, grace=1.0) == [workers[1].pid]
    assert 1.0 <= time.monotonic() - begun < 5.0
    assert [process.wait() for process in (*workers, idle)] == [143, -signal.SIGKILL, -signal.SIGTERM]
    assert [process.communicate() for process in workers] == [("saved\n", ""), ("", "")]
    assert idle.communicate() == ("", "")


def test_waiting_for_workers_is_no_longer_than_they_take():
    worker = script(WORKER.format(deaf=False))
    begun = time.monotonic()
    assert signals.end_processes([worker.pid], grace=60.0) == []
    assert time.monotonic() - begun < 30.0
    assert worker.wait() == 143  # its exit code is still there
    worker.communicate()
    assert signals.end_processes([worker.pid]) == []


def test_children_never_see_what_is_blocked():
    with signals.blocked():
        child = script("print('ready', flush=True)\ntime.sleep(60)")
    for number in (signal.SIGINT, signal.SIGHUP):
        child.send_signal(number)
    time.sleep(0.2)
    assert child.poll() is None
    child.send_signal(signal.SIGTERM)
    assert child.wait(10) == -signal.SIGTERM
    child.communicate()
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) & set(RAISED) == set()


def test_a_forked_process_is_ended_by_a_signal_at_once():
    code = """
import multiprocessing, os, signal, time
from bn_vuln.runtime import signals
signals.remember()
with signals.raised(), multiprocessing.get_context("fork").Pool(2) as pool:
    print(pool.map(abs, [-1, 2]), flush=True)
print("ended", flush=True)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "[1, 2]\nended\n", "")


def test_handlers_stay_what_a_block_replaces():
    code = """
import os, signal
from bn_vuln.runtime import signals
signals.remember()
try:
    with signals.raised():
        with signals.kept():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)
except KeyboardInterrupt:
    print("raised")
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (ran.returncode, ran.stdout) == (0, "raised\n")
