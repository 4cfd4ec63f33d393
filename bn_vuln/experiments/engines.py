"""Work on many items at a time: in processes of this machine (loky, as joblib has it), or on a Ray cluster.

An engine is a list of workers. A worker calls a function elsewhere, and raises `DiedError` where what ran it was
killed: then that item is lost and no other, and the worker goes on with the next one. Workers stay, so TensorFlow
starts once.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import queue
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from bn_vuln.config import Sweep
from bn_vuln.errors import BnvulnError, UsageError
from bn_vuln.runtime import backend, signals
from bn_vuln.runtime.memory import SHARE_VARIABLE

POLL_SECONDS = 1.0
GRACE_SECONDS = 10.0  # in which a worker that is to end writes its checkpoint
# Variables that workers on other hosts need as well, by how they begin.
PASSED_ON = ("BNVULN_", "KERAS_", "TFDS_", "TF_", "XLA_", "JAX_", "NVIDIA_TF32_OVERRIDE")
Item = TypeVar("Item")
Result = TypeVar("Result")


class DiedError(BnvulnError):
    """What ran a call was killed, or its host is gone."""


class Worker(Protocol):
    """A place where one call at a time runs."""

    def call(self, function: Callable[..., Result], *arguments: object) -> Result:
        """Call a function and wait for its result. Raises `DiedError` where it was killed."""

    def end(self) -> None:
        """End the call that runs, in order, and the worker."""


class Here:
    """The worker that is this process."""

    def call(self, function: Callable[..., Result], *arguments: object) -> Result:
        """Call the function."""
        return function(*arguments)

    def end(self) -> None:
        """Do nothing."""


def run(
    workers: Sequence[Worker], work: Callable[[Worker, Item], Result], items: Iterable[Item]
) -> Generator[tuple[Item, Result], None, None]:
    """Work on items, each in the next worker that is free. Closing the generator stops it.

    Args:
        workers: The workers.
        work: (worker, item) -> result; called in a thread for each worker, or in this one where there is one worker.
        items: The items, each taken when a worker is free for it.

    Yields:
        (item, result), as they are ready.

    Raises:
        Exception: What `work` raised.
    """
    if len(workers) == 1:
        for item in items:
            yield item, work(workers[0], item)
        return
    waiting, taking = iter(items), threading.Lock()
    done: queue.SimpleQueue[tuple[Item, Result] | BaseException | None] = queue.SimpleQueue()
    stopping = threading.Event()

    def serve(worker: Worker) -> None:
        try:
            while not stopping.is_set():
                with taking:
                    try:
                        item = next(waiting)
                    except StopIteration:
                        break
                if not stopping.is_set():
                    done.put((item, work(worker, item)))
        except BaseException as error:
            done.put(error)
        else:
            done.put(None)

    for worker in workers:
        threading.Thread(target=serve, args=(worker,), daemon=True).start()
    try:
        ended = 0
        while ended < len(workers):
            found = done.get()
            if isinstance(found, BaseException):
                raise found
            if found is None:
                ended += 1
            else:
                yield found
    finally:
        stopping.set()


@contextlib.contextmanager
def opened(sweep: Sweep, most: int) -> Iterator[Sequence[Worker]]:
    """Open the workers of an engine, and end them with the block.

    Args:
        sweep: The engine, and what each cell gets.
        most: Number of workers that there is work for.

    Raises:
        UsageError: Ray is not installed, its cluster is not found, or the machine has less than is asked for.
    """
    workers = _ray_workers(sweep, most) if sweep.engine == "ray" else _local_workers(sweep, most)
    try:
        yield workers
    finally:
        ending = [threading.Thread(target=worker.end, daemon=True) for worker in workers]
        for thread in ending:
            thread.start()
        for thread in ending:
            thread.join(2 * GRACE_SECONDS)


# ---------------------------------------------------------------- processes of this machine


class ProcessWorker:
    """A worker that is a process of this machine, with its own threads, memory and GPUs."""

    def __init__(self, threads: int, variables: Mapping[str, str]) -> None:
        """`variables` are of its environment; the process is started with the first call."""
        import joblib.externals.loky.process_executor  # noqa: F401  # now, since two threads that begin to import it fail

        self._threads, self._variables = threads, dict(variables)
        self._executor: Any = None
        self._starting, self._is_ended = threading.Lock(), False

    def call(self, function: Callable[..., Result], *arguments: object) -> Result:
        """Call a function in the process."""
        from joblib.externals.loky.process_executor import (
            BrokenProcessPool,
            ShutdownExecutorError,
            TerminatedWorkerError,
        )

        with self._starting, signals.blocked():
            if self._is_ended:
                raise DiedError("it was ended before it began")
            try:
                called = self._started().submit(_work, function, *arguments)
            except (BrokenProcessPool, ShutdownExecutorError):  # it was killed while it had nothing to do
                self._executor = None
                called = self._started().submit(_work, function, *arguments)
        try:
            result: Result = called.result()
        except TerminatedWorkerError as error:
            self._executor = None
            raise DiedError(_how(str(error))) from None
        except BrokenProcessPool as error:  # what was called, or what it returned, cannot be pickled
            self._executor = None
            raise DiedError(f"{str(error).splitlines()[0]} {error.__cause__ or ''}".strip()) from None
        return result

    def _started(self) -> Any:
        """Return the executor of the process, started if there is none."""
        from joblib.externals.loky import ProcessPoolExecutor

        if self._executor is None:
            own = {"initializer": _start_worker, "initargs": (self._threads, os.getpid())}
            self._executor = ProcessPoolExecutor(1, timeout=None, env=self._variables, **own)
        return self._executor

    def end(self) -> None:
        """End the process: as Ctrl-C does where it works, and if it goes on, kill it."""
        with self._starting:  # a process that is about to start would outlive this
            self._is_ended, executor = True, self._executor
        if executor is not None:
            signals.end_processes(list(getattr(executor, "_processes", ())), GRACE_SECONDS)
            executor.shutdown(wait=False, kill_workers=True)


def _how(text: str) -> str:
    """Return how a worker ended, of what loky says about it."""
    names = [name for name in ("SIGKILL", "SIGSEGV", "SIGABRT", "SIGTERM", "SIGBUS") if name in text]
    more = " (by hand, or by the system where memory is exhausted)" if "SIGKILL" in names else ""
    return f"its process was killed{' by ' + names[0] if names else ''}{more}"


def _local_workers(sweep: Sweep, most: int) -> Sequence[Worker]:
    jobs = min(sweep.jobs or 1, most)
    if sweep.ray_address is not None:
        raise UsageError("--ray-address is for --engine ray")
    if jobs == 1 and sweep.cpus_per_cell is None and sweep.gpus_per_cell is None:
        return [Here()]
    cores = len(os.sched_getaffinity(0))
    if (sweep.cpus_per_cell or 0) > cores:
        raise UsageError(f"--cpus-per-cell {sweep.cpus_per_cell}: there are {cores} cores")
    threads = sweep.cpus_per_cell or max(1, cores // jobs)
    return [ProcessWorker(threads, _variables(worker, jobs, sweep.gpus_per_cell)) for worker in range(jobs)]


def _variables(worker: int, jobs: int, gpus_per_cell: float | None) -> dict[str, str]:
    """Return the variables that give a worker its share of memory and GPUs."""
    variables = {SHARE_VARIABLE: str(1 / jobs)}
    gpus = _gpus()
    if not gpus and not gpus_per_cell:
        return variables
    share = min(1.0, len(gpus) / jobs) if gpus_per_cell is None else gpus_per_cell
    if share * jobs > len(gpus) + 1e-9:
        cells = "one cell" if jobs == 1 else f"{jobs} cells"
        raise UsageError(
            f"--gpus-per-cell {share:g} for {cells} at a time: there are {len(gpus)} GPUs; without it they are divided"
        )
    first = int(worker * share + 1e-9)
    own = gpus[first : first + max(1, int(share))] if share else []
    variables["CUDA_VISIBLE_DEVICES"] = ",".join(own)
    if 0 < share < 1:  # TensorFlow and JAX would each take nearly all of its memory
        beside = sum(int(other * share + 1e-9) == first for other in range(jobs))
        variables["TF_FORCE_GPU_ALLOW_GROWTH"] = "true"
        variables["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{0.9 / beside:.3f}"
    return variables


def _gpus() -> list[str]:
    """Return the GPUs as CUDA_VISIBLE_DEVICES names them, without starting TensorFlow or JAX in this process."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [one.strip() for one in visible.split(",") if one.strip() not in ("", "-1")]
    try:
        asked = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
        return subprocess.run(asked, capture_output=True, text=True, timeout=30, check=True).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return []


def _start_worker(threads: int, parent: int) -> None:
    """Prepare a worker process, before TensorFlow is imported."""
    from joblib.externals.loky import process_executor

    # loky replaces a worker that has grown by 300 MB, which every one with TensorFlow does, and a start takes seconds.
    process_executor._USE_PSUTIL = False
    backend.limit_threads(threads)
    exit_with_parent(parent)


def _work(function: Callable[..., Result], *arguments: object) -> Result:
    """Call a function in a worker process, which a signal ends when it has kept what is finished."""
    with signals.ending_worker():
        return function(*arguments)


def exit_with_parent(parent: int) -> None:
    """End this process when its parent is gone: as SIGTERM does, so that it keeps what is finished.

    loky's workers outlive a parent that is killed until their work is done, which may be hours of training that no one
    waits for.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(POLL_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


# ---------------------------------------------------------------- Ray


class RayWorker:
    """A worker that runs one Ray task after another, wherever the cluster has room."""

    def __init__(self, options: Mapping[str, object]) -> None:
        """`options` are those of `ray.remote`."""
        import ray

        self._remote: Any = ray.remote(**options)(_call)
        self._running: Any = None
        self._starting, self._is_ended = threading.Lock(), False

    def call(self, function: Callable[..., Result], *arguments: object) -> Result:
        """Call a function in a task."""
        import ray

        with self._starting:
            if self._is_ended:
                raise DiedError("it was ended before it began")
            self._running = self._remote.remote(function, *arguments)  # which `end` cancels, if an interruption comes
        try:
            result: Result = ray.get(self._running)
        except ray.exceptions.RayTaskError as error:
            self._running = None
            raise error.as_instanceof_cause() from None
        except ray.exceptions.RayError as error:
            self._running = None
            raise DiedError(f"Ray lost it: {str(error).splitlines()[0]}") from None
        self._running = None
        return result

    def end(self) -> None:
        """Cancel the task that runs, as Ctrl-C does, and if it goes on, kill its process."""
        import ray

        with self._starting:
            self._is_ended, running = True, self._running
        if running is not None:
            with contextlib.suppress(Exception):
                ray.cancel(running)
                ray.wait([running], timeout=GRACE_SECONDS)
                ray.cancel(running, force=True)


def _call(function: Callable[..., Result], *arguments: object) -> Result:
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)  # by which Ray cancels; a background job ignores it
    return function(*arguments)


def _check_ray_answers(address: str | None) -> None:
    """Refuse an address at which nothing answers: Ray would ask again and again, and hear no signal meanwhile."""
    host, colon, port = (address or "").removeprefix("ray://").rpartition(":")
    if colon and port.isdecimal():
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except (OSError, OverflowError) as error:
            raise UsageError(f"--ray-address {address}: nothing answers there ({error})") from None


def _ray_workers(sweep: Sweep, most: int) -> Sequence[Worker]:
    if importlib.util.find_spec("ray") is None:
        raise UsageError("--engine ray needs Ray: pip install 'bnvuln[ray]'")
    import ray

    if not ray.is_initialized():
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if sweep.ray_address is None:
            quiet["include_dashboard"] = False
        _check_ray_answers(sweep.ray_address)
        try:
            with signals.kept():
                ray.init(address=sweep.ray_address, **quiet)
        except (ConnectionError, ValueError):
            raise UsageError(
                f"--ray-address {sweep.ray_address}: no Ray cluster answers; `ray start --head` begins one on a host"
            ) from None
    found = ray.cluster_resources()
    hosts = [node for node in ray.nodes() if node["Alive"]]
    cpus, gpus = int(found.get("CPU", 1)), found.get("GPU", 0.0)
    jobs = sweep.jobs or int(gpus) or len(hosts)
    largest = max(int(node["Resources"].get("CPU", 1)) for node in hosts)
    own_cpus = sweep.cpus_per_cell or min(largest, max(1, cpus // jobs))
    own_gpus = min(1.0, gpus / jobs) if sweep.gpus_per_cell is None else sweep.gpus_per_cell
    if own_cpus > largest or own_gpus > max(node["Resources"].get("GPU", 0.0) for node in hosts):
        raise UsageError(f"no host of the cluster has {own_cpus} CPUs and {own_gpus:g} GPUs for a cell")
    passed = {name: value for name, value in os.environ.items() if name.startswith(PASSED_ON) and name != "TF_CONFIG"}
    threads = {name: str(own_cpus) for name in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")}
    variables = {**passed, **threads, SHARE_VARIABLE: str(min(1.0, own_cpus / largest))}
    options = {"num_cpus": own_cpus, "num_gpus": own_gpus, "runtime_env": {"env_vars": variables}}
    options |= {"max_retries": 0, "max_calls": 0}  # this loop tries again; and processes stay, on GPUs too
    return [RayWorker(options) for _ in range(min(jobs, most))]


def sees(path: Path) -> bool:
    """Return whether there is a file, as a call in a worker finds it."""
    return path.exists()


def all_hosts_see(path: Path) -> bool:
    """Return whether every host of the Ray cluster finds a file: then they share its folder."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    asked = []
    for node in ray.nodes():
        if node["Alive"]:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            asked.append(ray.remote(num_cpus=0, scheduling_strategy=there)(sees).remote(path))
    try:
        return all(ray.get(asked))
    except ray.exceptions.RayError:  # a host that is gone meanwhile
        return False
