"""Engines in processes of their own: which libraries they load, how they sleep and end."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import stub_engines
from scripts import LINUX, ROOT

from mnist.bench.processes import Processes, make_request
from mnist.bench.stopwatch import take_turns
from mnist.engines import registry
from mnist.models.weights import SHIPPED, load_network

pytestmark = pytest.mark.skipif(not LINUX, reason="looks into /proc")


def state(pid):
    """A process's state by /proc: "T" stopped, "S" waiting …; None where it has gone."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0]
    except OSError:
        return None


def wait_until(condition):
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "it didn't come to that"
        time.sleep(0.02)


@pytest.fixture
def network():
    return load_network(os.path.join(SHIPPED, "net.pth"))


@pytest.mark.parametrize("name", ["onnxruntime", "openvino", "torch"])
def test_a_row_is_measured_asleep_but_for_its_turns(network, digits, name):
    if registry.why_not(name):
        pytest.skip(registry.why_not(name))
    with Processes(digits) as processes:
        stopwatch = processes.open("key", make_request(
            network, (name, "cpu", "fp32"), 16, None, tuning=False, threads=1))
        process = processes.processes["key"].process
        wait_until(lambda: state(process.pid) == "T")
        take_turns([stopwatch], repeat=1)
        row = stopwatch.row(np.zeros(len(digits), np.int64),
                            registry.reference_log_probs(network, digits))
        assert row["status"] == "ok" and row["max_difference"] < 1e-3
        with open(f"/proc/{process.pid}/maps") as file:
            assert ("libtorch" in file.read()) == (name == "torch")
    assert not process.is_alive()


@pytest.mark.parametrize("name, threads", [("errs", 2), ("insists", 1)])
def test_settings_chosen_in_a_slow_moment_are_chosen_again(network, digits, name, threads):
    registry.ENGINES.update(stub_engines.kinds(name))
    try:
        request = make_request(network, (name, "cpu", "fp32"), 16, stub_engines.Stowaway(name))
    finally:
        del registry.ENGINES[name]
    with Processes(digits) as processes:
        stopwatch = processes.open("key", request)
        take_turns([stopwatch], repeat=1)
        row = stopwatch.row(np.zeros(len(digits), np.int64),
                            registry.reference_log_probs(network, digits))
    assert row["status"] == "ok" and row["passes"] == 1 and row["tuning"][0]["threads"] == threads


PARENT = """
import sys, time
import numpy as np
from mnist.bench.processes import Processes, make_request
from mnist.models.weights import load_network
if __name__ == "__main__":
    with Processes(np.zeros((4, 1, 28, 28), np.uint8)) as processes:
        processes.open("key", make_request(load_network(sys.argv[1]), ("torch", "cpu", "fp32"), 4,
                                           None, tuning=False, threads=1))
        print(processes.processes["key"].process.pid, flush=True)
        time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_process_outlives_the_program(tmp_path, number):
    (tmp_path / "parent.py").write_text(PARENT)
    command = [sys.executable, tmp_path / "parent.py", os.path.join(SHIPPED, "net.pth")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                          env=dict(os.environ, PYTHONPATH=ROOT)) as parent:
        child = int(parent.stdout.readline())
        parent.send_signal(number)
        parent.wait(timeout=20)
    wait_until(lambda: state(child) in (None, "Z"))
