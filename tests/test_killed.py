"""SIGKILL, which gives a process no chance to tidy up, while training and while saving.

    KILLS=50 python -m pytest tests/test_killed.py   (make test-all: 10)

The weights file then holds the old weights or the new ones; and a run that was killed and resumed
again and again ends with the weights of an undisturbed one, bit for bit.
"""

import os
import random
import signal
import sys
import time

import pytest
import torch
from scripts import read_until, run, start

from mnist.models.weights import load_network, save_weights
from MNISTmodel import Net

KILLS = int(os.environ.get("KILLS", 2))

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters()))


def test_killed_while_saving(tmp_path):
    path = tmp_path / "net.pth"
    nets = [Net(), Net()]
    save_weights(nets[0], path)
    chance = random.Random(0)
    found = [0, 0]
    for _ in range(max(KILLS, 20)):
        child = os.fork()
        if child == 0:
            while True:
                for net in reversed(nets):
                    save_weights(net, path)
        try:
            for _ in range(chance.randint(1, 2)):  # saved once more, or twice
                took = wait_for_another_file(path)
            time.sleep(chance.uniform(0, took))
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        loaded = load_network(path).net
        found[[same(loaded, net) for net in nets].index(True)] += 1
    assert min(found) > 0  # or it was never killed at work
    print(f"killed {sum(found)} times; found one network {found[0]} times, the other {found[1]}")


def wait_for_another_file(path):
    """Wait until another file is in a path's place; gives how long it took."""
    file, started = os.stat(path).st_ino, time.monotonic()
    while os.stat(path).st_ino == file:
        assert time.monotonic() - started < 30, f"{path} is never replaced"
        time.sleep(0.0005)
    return time.monotonic() - started


@pytest.mark.slow
def test_killed_while_training(small_mnist, tmp_path):
    command = ["TrainMNIST.py", "--data-dir", small_mnist, "--device", "cpu", "--threads", 1,
               "--epochs", 4, "--augment", "--output"]
    run(*command, tmp_path / "undisturbed.pth")
    new = load_network(tmp_path / "undisturbed.pth").net
    old, path, state = Net(), tmp_path / "net.pth", tmp_path / "net.pth.resume"
    save_weights(old, path)
    chance = random.Random(0)
    kills = finished = 0
    while kills < KILLS or not finished:
        process = start(*command, path, *["--resume"] * state.exists(),
                        env={"PYTHONUNBUFFERED": "1"})
        if kills < KILLS:
            read_until(process, "training ")
            time.sleep(chance.uniform(0, 1))
            process.kill()
        _, err = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), err
        kills += process.returncode != 0
        done = same(load_network(path).net, new)
        assert done or process.returncode and same(load_network(path).net, old)
        if done:
            finished += 1
            save_weights(old, path)
    print(f"killed {kills} times; {finished} runs came to their end")
