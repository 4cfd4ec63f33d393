"""Several hosts, each a process on this machine, compute what one device computes, and end together."""

import json
import re
import signal
import threading
import time

import helpers_hosts
import numpy as np
import pytest
from helpers_hosts import start, tf_configs
from helpers_runs import SMALL

from bn_vuln import records
from bn_vuln.errors import BnvulnError, UsageError
from bn_vuln.runtime import hosts

SYNCHRONIZED = {"name": "batch", "synchronized": True}
CROPS = {"pad": 2, "flip": True}


def cell(**train):
    options = {**SMALL["train"], "epochs": 2, "augment": CROPS, **train}
    return {**SMALL, "normalization": SYNCHRONIZED, "train": options}


def equal_to_5_digits(one, other):
    assert one.keys() == other.keys()
    for name, expected in one.items():
        if "record" in name:
            continue
        if expected.dtype.kind == "f":
            np.testing.assert_allclose(
                other[name], expected, atol=1e-5 * max(1e-3, np.abs(expected).max()), err_msg=name
            )
        else:
            np.testing.assert_array_equal(other[name], expected, err_msg=name)


# ---------------------------------------------------------------- two hosts are one device


def test_two_hosts_train_attack_and_evaluate_as_one_device(tmp_path):
    jobs = [
        {"call": "train", "cell": cell(), "folder": str(tmp_path / "run")},
        {"call": "attack", "attack": {"attack": "pgd", "eps": 0.1, "steps": 5}, "checks": "none", "limit": 101},
        {"call": "evaluate", "suite": {"noise": {"kind": "awgn", "std": 0.2}}, "limit": 101},
        {"call": "evaluate", "suite": {"noise": {"kind": "awgn", "std": 0.2}}, "limit": 101},
    ]
    for job in jobs[1:]:
        job |= {"model": str(tmp_path / "run"), "root": str(tmp_path)}
    other = {"call": "train", "cell": cell(), "folder": "another"}
    chief, worker = helpers_hosts.results(
        tmp_path, [[*jobs, {**other, "cell": {**cell(), "seed": i}}] for i in range(2)]
    )
    error = "UsageError: worker 1 (localhost:PORT) has another config than the chief"
    assert re.sub(r"\d{4,5}", "PORT", str(chief.pop("4 error"))).startswith(error)
    assert re.sub(r"\d{4,5}", "PORT", str(worker.pop("4 error"))).startswith(error)
    for name in chief:
        np.testing.assert_array_equal(worker[name], chief[name], err_msg=name)

    record = records.read_training(tmp_path / "run")
    assert (record.replicas, record.hosts, record.global_batch_size, record.synchronized) == (2, 2, 50, True)
    assert json.loads(str(chief["0 record"])) == json.loads(record.model_dump_json())
    assert {(one.replicas, one.hosts) for one in records.read_records(tmp_path / "run")} == {(2, 2)}
    assert [path.name for path in sorted(tmp_path.glob("[01]/*"))] == ["out.npz", "out.npz"]  # none writes elsewhere

    jobs[0]["folder"] = str(tmp_path / "one")
    for job in jobs[1:]:
        job["model"] = str(tmp_path / "one")
    equal_to_5_digits(helpers_hosts.run(jobs, "none"), chief)


@pytest.mark.slow
def test_all_kinds_of_evaluation_on_two_hosts(tmp_path, runs):
    model = {"model": str(runs["batch"]), "limit": 60}
    jobs = [
        {"call": "attack", **model, "attack": "strong", "eps": 0.05},
        {"call": "attack", **model, "eps": 0.1, "eps_grid": [0.02, 0.05], "checks": "full"},
        {"call": "attack", **model, "attack": "carlini_wagner", "steps": 20},
        {"call": "attack", **model, "attack": "square", "eps": 0.1, "steps": 50},
        {"call": "attack", **model, "attack": "bim", "eps": 0.1, "keep": "last", "backend": "cleverhans", "steps": 5,
         "step_size": 0.05},
        {"call": "evaluate", **model, "bn_statistics": "batch", "suite": {"noise": {"kind": "awgn", "std": 0.2}}},
        {"call": "evaluate", **model, "bn_statistics": "reestimated"},
        {"call": "measure", **model},
    ]  # fmt: skip
    chief, worker = helpers_hosts.results(tmp_path, [jobs, jobs])
    one = helpers_hosts.run(jobs, "none")
    equal_to_5_digits(one, chief)
    equal_to_5_digits(one, worker)


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_host_that_is_killed_ends_the_other_and_both_go_on_exactly(tmp_path, killed):
    jobs = [{"call": "train", "cell": cell(epochs=40), "folder": str(tmp_path / "run"), "deterministic": True}]
    jobs[0]["checkpoint_every"] = 1
    processes = start(tmp_path, [jobs, jobs])
    while not (tmp_path / "run" / "checkpoint.npz").exists():
        time.sleep(0.1)
    processes[killed].send_signal(signal.SIGKILL)
    began, other = time.monotonic(), processes[1 - killed]
    other.wait(timeout=60)
    assert time.monotonic() - began < 60
    found = dict(np.load(tmp_path / str(1 - killed) / "out.npz"))
    assert re.match(
        rf"LostHostError: worker {killed} \(localhost:\d+\) is gone, so all end; the same command on all hosts goes on",
        str(found["0 error"]),
    )
    assert "Traceback" not in other.communicate()[0]
    assert (tmp_path / "run" / "checkpoint.npz").exists()
    assert killed == 0 or not (tmp_path / "run" / "lock.json").exists()

    chief, worker = helpers_hosts.results(tmp_path, [jobs, jobs])
    assert json.loads(str(chief["0 record"]))["resumed"] == 1
    jobs[0]["folder"] = str(tmp_path / "whole")
    whole = helpers_hosts.results(tmp_path, [jobs, jobs])[0]
    for name in whole.keys() - {"0 record"}:
        np.testing.assert_array_equal(chief[name], whole[name], err_msg=name)
        np.testing.assert_array_equal(worker[name], whole[name], err_msg=name)


@pytest.mark.slow
def test_an_error_of_one_host_ends_the_other_which_says_why(tmp_path):
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "run").write_text("no folder")
    jobs = [{"call": "attack", "model": "run", "eps": 0.1}]
    train = {"call": "train", "cell": cell(), "folder": "run"}
    chief, worker = helpers_hosts.results(tmp_path, [[train, *jobs], [train, *jobs]])
    assert str(worker["1 error"]).startswith("UsageError: run:")
    assert re.match(r"LostHostError: worker 1 \(localhost:\d+\) has ended: run: ", str(chief["1 error"]))


# ---------------------------------------------------------------- how hosts meet


def cluster(own, addresses=None):
    text = addresses or tf_configs(2)[0]
    return hosts.Cluster({f"worker:{i}": one for i, one in enumerate(json.loads(text)["cluster"]["worker"])}, own)


def meet_all(chief, others, versions, pause=0.0):
    """What each host is told, with versions by name of the host; the last one comes after a pause."""
    told = {}

    def meet(one):
        try:
            told[one.own] = hosts.meet(one, versions[one.own], said.append, seconds=5)
        except BnvulnError as error:
            told[one.own] = error

    said: list[str] = []
    threads = [threading.Thread(target=meet, args=(one,)) for one in (chief, *others)]
    for thread in threads[:-1]:
        thread.start()
    time.sleep(pause)
    threads[-1].start()
    for thread in threads:
        thread.join()
    return told, said


def test_hosts_meet_where_their_versions_are_equal():
    text = tf_configs(2)[0]
    same = {"tensorflow": "2.21.0"}
    told, said = meet_all(cluster("worker:0", text), [cluster("worker:1", text)], {"worker:0": same, "worker:1": same})
    assert told == {"worker:0": None, "worker:1": None}
    assert said == []


def test_hosts_of_other_versions_refuse_each_other():
    text = tf_configs(2)[0]
    versions = {"worker:0": {"tensorflow": "2.21.0"}, "worker:1": {"tensorflow": "2.20.0"}}
    told, _ = meet_all(cluster("worker:0", text), [cluster("worker:1", text)], versions)
    for error in told.values():
        assert isinstance(error, UsageError)
        assert "has tensorflow 2.20.0, the chief 2.21.0" in str(error)


@pytest.mark.parametrize(
    ("own", "missing", "error", "waiting"),
    [
        ("worker:0", "worker:1", "did not appear in time: run the same command", "waiting for 1 of 2 workers: "),
        ("worker:1", "worker:0", "did not appear in time, or other hosts", "waiting for "),
    ],
    ids=["worker", "chief"],
)
def test_a_host_that_never_appears_is_named(monkeypatch, own, missing, error, waiting):
    monkeypatch.setattr(hosts, "MESSAGE_SECONDS", 0.1)
    of, said = cluster(own), []
    with pytest.raises(BnvulnError, match=rf"^worker {missing[-1]} \(localhost:\d+\) {error}"):
        hosts.meet(of, {}, said.append, seconds=0.5)
    assert said == [waiting + of.label(missing)]


def test_two_hosts_of_one_name_are_refused(monkeypatch):
    monkeypatch.setattr(hosts, "ANSWER_SECONDS", 0.2)
    text = tf_configs(3)[0]
    one = [cluster(f"worker:{i}", text) for i in range(3)]
    told, _ = meet_all(one[0], [one[1], one[1], one[2]], {f"worker:{i}": {} for i in range(3)}, pause=2)
    assert "two hosts have the task worker:1" in str(told["worker:0"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "needs TF_CONFIG, on each host with its own index"),
        ("{", "JSONDecodeError"),
        ("[]", "TypeError"),
        ("[" * 100_000, "RecursionError"),
        ('{"cluster": {}}', "KeyError: 'task'"),
        ('{"cluster": {}, "task": {"type": "worker", "index": 0}}', "the cluster has no hosts"),
        ('{"cluster": {"worker": "a:1"}, "task": {"type": "worker", "index": 0}}', "no list of addresses"),
        ('{"cluster": {"worker": ["a:1"], "ps": ["b:1"]}, "task": {"type": "worker", "index": 0}}', "jobs ps"),
        ('{"cluster": {"worker": ["a"]}, "task": {"type": "worker", "index": 0}}', "address 'a'; expected HOST:PORT"),
        ('{"cluster": {"worker": [7]}, "task": {"type": "worker", "index": 0}}', "address 7; expected HOST:PORT"),
        ('{"cluster": {"worker": ["a:1", "a:1"]}, "task": {"type": "worker", "index": 0}}', "one address twice"),
        ('{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}', "the cluster has worker:0"),
        ('{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": "0"}}', "the cluster has worker:0"),
        ('{"cluster": {"chief": ["a:1", "b:1"]}, "task": {"type": "chief", "index": 0}}', "several chiefs"),
    ],
)
def test_a_tf_config_of_another_form_is_refused(monkeypatch, bnvuln, text, message):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(UsageError, match=re.escape(message)):
        hosts.read_cluster()


def test_a_chief_may_be_a_job_of_its_own(monkeypatch):
    jobs = {"chief": ["a:1"], "worker": ["b:1", "c:1"]}
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": jobs, "task": {"type": "worker", "index": 1}}))
    found = hosts.read_cluster()
    assert (found.chief, found.own, [*found.addresses]) == ("chief:0", "worker:1", ["chief:0", "worker:0", "worker:1"])
    assert found.named_in("from /job:worker/replica:0/task:1 and /job:chief/replica:0/task:0") == "chief:0"


@pytest.mark.parametrize(
    "command",
    [
        ["reproduce", "table6", "--scale", "smoke"],
        ["scale-input", "--width", "28"],
        ["transfer", "a", "b"],
        ["audit", "model.keras", "--data", "mnist"],
    ],
)
def test_commands_that_divide_cells_refuse_it(bnvuln, command):
    code, _, message = bnvuln(*command, "--strategy", "multiworker")
    assert code == 2
    assert "--strategy multiworker is for train, attack and evaluate" in message


def test_without_tf_config_the_command_says_what_it_is(bnvuln, monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    code, _, message = bnvuln("train", "--strategy", "multiworker", "--synchronized")
    assert code == 2
    assert message.startswith("Error: --strategy multiworker needs TF_CONFIG")


def test_on_jax_it_is_refused(bnvuln, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    code, _, message = bnvuln("train", "--strategy", "multiworker", "--synchronized")
    assert (code, message.count("\n")) == (2, 1)
    assert "multiworker needs TensorFlow" in message
