"""Progress: plain lines, a live bar, or nothing; and durations in words."""

from __future__ import annotations

import io
import sys

import pytest

from bn_vuln.runtime import progress
from bn_vuln.runtime.progress import LiveBar, PlainLines, Progress, Quiet, duration, make_progress, progress_task


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def report_to(target: Progress) -> None:
    target.message("begin <b>[bold] 100%")
    target.start("training", 10, "epochs")
    for done in range(1, 11):
        target.advance(done, f"loss {done}")
    target.stop()


def test_durations_in_words() -> None:
    texts = {
        0.4: "0 s",
        59.4: "59 s",
        59.6: "1 min 00 s",
        185: "3 min 05 s",
        3599.6: "1 h 00 min",
        90061: "25 h 01 min",
    }
    assert {seconds: duration(seconds) for seconds in texts} == texts


def test_plain_lines_go_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    report_to(PlainLines(every_seconds=0))
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert lines[0] == "begin <b>[bold] 100%"
    assert [line.split(" ")[:3] for line in lines[1:]] == [["training:", f"{i}/10", "epochs"] for i in range(1, 10)]
    assert "loss 9" in lines[-1]
    assert lines[-1].endswith("left")


def test_units_done_before_do_not_count_for_the_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training that goes on at epoch 100 of 150: 50 epochs at a minute each are left, not half of one."""
    times = iter([0.0, 0.0, 60.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(times))
    target = PlainLines(every_seconds=30)
    with progress_task(target, "training", 150, "epochs", done=100):
        target.advance(101)
    assert capsys.readouterr().err == "training: 101/150 epochs  49 min 00 s left\n"


def test_plain_lines_are_rare_and_give_the_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    plain = PlainLines(every_seconds=30)
    plain.start("training", 10, "epochs")
    for done in (1, 2, 3, 4):
        now[0] += 20
        plain.advance(done)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines] == ["2/10", "4/10"]
    assert [line.partition("epochs")[2].strip() for line in lines] == ["2 min 40 s left", "2 min 00 s left"]


def test_live_on_a_terminal_keeps_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    report_to(LiveBar())
    assert "begin <b>[bold] 100%" in terminal.getvalue()
    assert "training" in terminal.getvalue()


def test_live_keeps_a_long_message_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    text = "word " * 100
    LiveBar().message(text)
    assert capsys.readouterr().err.strip() == text.strip()


def test_live_may_be_stopped_twice_and_started_again() -> None:
    live = LiveBar()
    live.advance(1)
    live.stop()
    live.start("one", 2, "units")
    first = live.bar
    live.start("two", 2, "units")
    assert not first.live.is_started
    assert live.bar.live.is_started
    live.stop()
    live.stop()
    assert live.bar is None


@pytest.mark.parametrize(("stream", "kind"), [(Terminal(), LiveBar), (io.StringIO(), PlainLines)])
def test_make_looks_at_standard_error(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, kind: type) -> None:
    monkeypatch.setattr(sys, "stderr", stream)
    assert type(make_progress()) is kind
    assert type(make_progress(quiet=True)) is Quiet


class Noted(Quiet):
    def __init__(self) -> None:
        self.calls: list[str] = []

    def start(self, title: str, total: int, unit: str, done: int = 0) -> None:
        self.calls.append(f"start {title} {total} {unit}")

    def stop(self) -> None:
        self.calls.append("stop")


def break_off(target: Progress, error: BaseException) -> None:
    with progress_task(target, "training", 3, "epochs"):
        raise error


def test_work_starts_and_stops() -> None:
    noted = Noted()
    with progress_task(noted, "training", 3, "epochs"):
        assert noted.calls == ["start training 3 epochs"]
    assert noted.calls == ["start training 3 epochs", "stop"]


@pytest.mark.parametrize("error", [RuntimeError("broke"), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_work_stops_on_an_exception(error: BaseException) -> None:
    noted = Noted()
    with pytest.raises(type(error)):
        break_off(noted, error)
    assert noted.calls == ["start training 3 epochs", "stop"]


def test_the_bar_is_gone_after_an_exception() -> None:
    live = LiveBar()
    with pytest.raises(RuntimeError):
        break_off(live, RuntimeError("broke"))
    assert live.bar is None
