"""Work on many items in several processes, the cores divided among them."""

from __future__ import annotations

import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from typing import TypeVar

from bn_vuln.runtime import backend
from bn_vuln.runtime.progress import Progress

POLL_SECONDS = 1.0
Item = TypeVar("Item")


def run(work: Callable[[Item], str], items: Sequence[Item], jobs: int, progress: Progress) -> None:
    """Call a function on every item, in several processes.

    Where one process is killed all end, with their items unfinished. What they had finished stays, and calling this
    again with the items that are left goes on.

    Args:
        work: item -> a line that describes the result.
        items: the items.
        jobs: number of processes.
        progress: advanced once an item, with the line.
    """
    import joblib
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    cores = len(os.sched_getaffinity(0))
    # joblib replaces workers that have grown, which TensorFlow's do, and warns that it had work for them.
    warnings.filterwarnings("ignore", message="A worker stopped while some jobs were given", category=UserWarning)
    parallel = joblib.Parallel(n_jobs=jobs, return_as="generator_unordered")
    calls = (joblib.delayed(_call)(work, item, max(1, cores // jobs)) for item in items)
    progress.start("cells", len(items), "cells")
    try:
        for done, text in enumerate(parallel(calls), 1):
            progress.advance(done)
            progress.message(text)
    except TerminatedWorkerError:
        progress.message("a worker process was killed, and the others ended with it; their cells are tried again")
    finally:
        progress.stop()


def _call(work: Callable[[Item], str], item: Item, threads: int) -> str:
    """One item, in a worker process."""
    if "tensorflow" not in sys.modules:
        backend.limit_threads(threads)
        exit_with_parent()
    return work(item)


def exit_with_parent() -> None:
    """End this process when its parent is gone.

    loky's workers outlive a parent that is killed until their work is done, which may be hours of training that no one
    waits for.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(POLL_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
