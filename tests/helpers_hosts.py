"""Several hosts on one machine: each a process of this file that calls functions of `bn_vuln.api`, in lockstep."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np

Job = dict[str, object]  # the name of a function as `call`, and its arguments


def tf_configs(hosts: int) -> list[str]:
    """TF_CONFIG of each host, at free ports of this machine."""
    sockets = [socket.create_server(("localhost", 0)) for _ in range(hosts)]
    addresses = [f"localhost:{one.getsockname()[1]}" for one in sockets]
    for one in sockets:
        one.close()
    tasks = [{"type": "worker", "index": i} for i in range(hosts)]
    return [json.dumps({"cluster": {"worker": addresses}, "task": task}) for task in tasks]


def start(tmp_path: Path, jobs: list[list[Job]]) -> list[subprocess.Popen[str]]:
    """Start a host for each list of jobs; host i works in tmp_path/i, where `out.npz` gets what the jobs return."""
    started = []
    for i, (text, own) in enumerate(zip(tf_configs(len(jobs)), jobs, strict=True)):
        (tmp_path / str(i)).mkdir(exist_ok=True)
        environment = {**os.environ, "TF_CONFIG": text, "BNVULN_LOGICAL_CPUS": "1"}
        command = [sys.executable, str(Path(__file__).resolve()), json.dumps(own)]
        pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        started.append(subprocess.Popen(command, env=environment, cwd=tmp_path / str(i), **pipe))
    return started


def results(tmp_path: Path, jobs: list[list[Job]]) -> list[dict[str, np.ndarray]]:
    """What the jobs return on each host, when all are done."""
    for one in start(tmp_path, jobs):
        output = one.communicate()[0]
        assert one.returncode == 0, output
    return [dict(np.load(tmp_path / str(i) / "out.npz")) for i in range(len(jobs))]


def run(jobs: list[Job], strategy: str) -> dict[str, np.ndarray]:
    """What jobs return here: `NUMBER NAME` -> array."""
    found: dict[str, object] = {}
    for number, job in enumerate(jobs):
        found |= {f"{number} {name}": value for name, value in _call(strategy=strategy, **job).items()}
    return {name: np.asarray(value) for name, value in found.items()}


def _call(call: str, **arguments: object) -> dict[str, object]:
    from bn_vuln import api
    from bn_vuln.errors import BnvulnError

    try:
        result = getattr(api, call)(**arguments)
    except BnvulnError as error:
        return {"error": f"{type(error).__name__}: {error}"}
    if call == "train":
        losses = [epoch.loss for epoch in result.history]
        weights = {f"weight {i}": array for i, array in enumerate(result.model.get_weights())}
        return {"losses": losses, "record": result.record.model_dump_json(), **weights}
    if call == "attack":
        found = result.results
        outcomes = {
            f"{what} {name}": getattr(one, what) for name, one in found.items() for what in ("correct", "images")
        }
        return outcomes | {f"accuracy {name}": record.accuracy for name, record in result.records.items()}
    return {name: record.accuracy if call == "evaluate" else record.value for name, record in result.items()}


if __name__ == "__main__":
    np.savez("out.npz", **run(json.loads(sys.argv[1]), "multiworker"))  # type: ignore[arg-type]
