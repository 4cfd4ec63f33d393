"""The hosts of `--strategy multiworker`: TF_CONFIG, and how they meet before TensorFlow connects them.

TensorFlow itself waits for ever, and says nothing, for a host that never appears or that has another version.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from bn_vuln.errors import BnvulnError, UsageError

EXAMPLE = '{"cluster": {"worker": ["host1:12345", "host2:12345"]}, "task": {"type": "worker", "index": 0}}'
WAIT_SECONDS = 300.0  # for all hosts
MESSAGE_SECONDS = 3.0  # before it is said who is waited for
ANSWER_SECONDS = 5.0  # for the line of a host that has connected
LONGEST_LINE = 1 << 16


@dataclass(frozen=True)
class Cluster:
    """The hosts in their order, the chief first.

    Attributes:
        addresses: host:port of each, by its name in TensorFlow, such as `worker:1`.
        own: the name of this one.
    """

    addresses: Mapping[str, str]
    own: str

    @property
    def chief(self) -> str:
        """The name of the chief."""
        return next(iter(self.addresses))

    def label(self, name: str) -> str:
        """Return what a host is called in messages: `worker 1 (host2:12345)`."""
        return f"{name.replace(':', ' ')} ({self.addresses[name]})"

    def named_in(self, text: str) -> str | None:
        """Return the first other host that a message of TensorFlow names, `/job:worker/replica:0/task:1`."""
        names = [f"{job}:{task}" for job, task in re.findall(r"/job:(\w+)(?:/replica:\d+)?/task:(\d+)", text)]
        return next((name for name in names if name in self.addresses and name != self.own), None)


def read_cluster() -> Cluster:
    """Read the environment variable TF_CONFIG.

    Raises:
        UsageError: It is not set, or is of another form.
    """
    text = os.environ.get("TF_CONFIG")
    if not text:
        raise UsageError(
            f"--strategy multiworker needs TF_CONFIG, on each host with its own index: TF_CONFIG='{EXAMPLE}'"
        )
    try:
        found = json.loads(text)
        cluster, task = found["cluster"], found["task"]
        jobs = {job: cluster[job] for job in ("chief", "worker") if job in cluster}
        addresses = {f"{job}:{i}": address for job, own in jobs.items() for i, address in enumerate(own)}
        own, index, others = f"{task['type']}:{task['index']}", task["index"], cluster.keys() - jobs.keys()
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _malformed(f"{type(error).__name__}: {error}") from None
    if others:
        raise _malformed(f"jobs {', '.join(map(str, sorted(others)))}; only chief and worker are known")
    if not all(isinstance(own, list) for own in jobs.values()) or len(jobs.get("chief", [""])) != 1:
        raise _malformed("a job that is no list of addresses, or several chiefs")
    for address in addresses.values():
        if not isinstance(address, str) or not re.fullmatch(r"[^\s/]+:[1-9]\d{0,4}", address):
            raise _malformed(f"address {address!r}; expected HOST:PORT")
    if len(set(addresses.values())) < len(addresses):
        raise _malformed("one address twice")
    if type(index) is not int or own not in addresses:
        raise _malformed(f"task {task}; the cluster has {', '.join(addresses) or 'no hosts'}")
    return Cluster(addresses, own)


def _malformed(received: str) -> UsageError:
    return UsageError(f"TF_CONFIG: expected {EXAMPLE}, received {received}")


def meet(
    cluster: Cluster, versions: Mapping[str, str], say: Callable[[str], None], seconds: float = WAIT_SECONDS
) -> None:
    """Wait until all hosts are there, and compare their versions and their clusters.

    Args:
        cluster: the hosts.
        versions: of this host, by package; they must be equal on all.
        say: called with lines on who is waited for.
        seconds: to wait at most.

    Raises:
        UsageError: A host has another version, another cluster or the name of another one.
        BnvulnError: A host did not appear in time, or the address of the chief cannot be had.
    """
    facts = {"cluster": " ".join(cluster.addresses.values()), **versions}
    deadline = time.monotonic() + seconds
    if len(cluster.addresses) > 1:
        problem = (_gather if cluster.own == cluster.chief else _join)(cluster, facts, say, deadline)
        if problem:
            raise UsageError(problem)


def _gather(cluster: Cluster, facts: Mapping[str, str], say: Callable[[str], None], deadline: float) -> str:
    """What is wrong with the hosts, told to all of them by the chief; nothing where they fit."""
    came: set[str] = set()
    connections: list[socket.socket] = []
    problems: list[str] = []
    say_at = time.monotonic() + MESSAGE_SECONDS
    with _listening(cluster) as server:
        while missing := [name for name in cluster.addresses if name not in (cluster.own, *came)]:
            now = time.monotonic()
            if now >= deadline:
                waited = ", ".join(map(cluster.label, missing))
                raise BnvulnError(
                    f"{waited} did not appear in time: run the same command there, with its own TF_CONFIG"
                )
            if now >= say_at:
                count = len(cluster.addresses)
                say(f"waiting for {len(missing)} of {count} workers: {', '.join(map(cluster.label, missing))}")
                say_at = deadline
            server.settimeout(max(0.01, min(deadline, say_at) - now))
            try:
                connection = server.accept()[0]
            except TimeoutError:
                continue
            connections.append(connection)
            line = _line(connection, ANSWER_SECONDS)
            name = str(line.get("name"))
            if name not in cluster.addresses:  # no host of ours
                continue
            if name == cluster.own or name in came:
                problems.append(f"TF_CONFIG: two hosts have the task {name}")
            problems += _differences(cluster.label(name), line.get("facts"), facts)
            came.add(name)
        problem = "; ".join(problems)
        for connection in connections:
            with connection:
                _send(connection, {"problem": problem})
                _line(connection, ANSWER_SECONDS)  # the host closes first, which leaves the port free
    return problem


def _listening(cluster: Cluster) -> socket.socket:
    address = cluster.addresses[cluster.own]
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    try:
        return socket.create_server(("", int(address.rpartition(":")[2])), family=family, dualstack_ipv6=dual)
    except (OSError, OverflowError) as error:
        raise BnvulnError(f"{address}: this host's address in TF_CONFIG cannot be used: {error}") from None


def _differences(label: str, received: object, facts: Mapping[str, str]) -> list[str]:
    other = received if isinstance(received, dict) else {}
    return [
        f"{label} has {name} {other.get(name)}, the chief {value}: all hosts need the same"
        for name, value in facts.items()
        if other.get(name) != value
    ]


def _join(cluster: Cluster, facts: Mapping[str, str], say: Callable[[str], None], deadline: float) -> str:
    """What the chief says is wrong with the hosts."""
    host, _, port = cluster.addresses[cluster.chief].rpartition(":")
    say_at = time.monotonic() + MESSAGE_SECONDS
    while (now := time.monotonic()) < deadline:
        if now >= say_at:
            say(f"waiting for {cluster.label(cluster.chief)}")
            say_at = deadline
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_SECONDS) as connection:
                _send(connection, {"name": cluster.own, "facts": dict(facts)})
                answer = _line(connection, max(1.0, deadline - time.monotonic()))
        except (OSError, OverflowError):
            answer = {}
        if "problem" in answer:
            return str(answer["problem"])
        time.sleep(0.2)
    raise BnvulnError(
        f"{cluster.label(cluster.chief)} did not appear in time, or other hosts did not: run the same command there, "
        "with its own TF_CONFIG"
    )


def _send(connection: socket.socket, line: Mapping[str, object]) -> None:
    with contextlib.suppress(OSError):  # one that is gone is found out by TensorFlow
        connection.sendall(json.dumps(line).encode() + b"\n")


def _line(connection: socket.socket, seconds: float) -> dict[str, object]:
    """The line of JSON that comes from a connection; empty where there is none within the time."""
    received = b""
    connection.settimeout(seconds)
    try:
        while not received.endswith(b"\n") and len(received) < LONGEST_LINE:
            if not (more := connection.recv(4096)):
                break
            received += more
        found = json.loads(received)
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
