"""Kill training, and saving, at random moments, and see that nothing is lost.

    python tests/kill_training.py --training 50 --saving 50

SIGKILL gives a process no chance to tidy up. After each, the weights file has to load and be the
old one or the new one; and a run that was killed again and again, and resumed, has to end with the
weights of an undisturbed one, bit for bit. The ordinary tests do a smaller number.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from MNISTmodel import Net, load_weights, save_weights  # noqa: E402
from scripts import run, start  # noqa: E402


def same(one, other):
    """Whether two networks have the same weights, bit for bit."""
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters()))


def kill_saving(kills, folder, chance):
    """Kill a process that saves two networks in turn, over and over; gives how often each of them
    was found in the file."""
    path = folder / "net.pth"
    nets = [Net(), Net()]
    save_weights(nets[0], path)
    found = [0, 0]
    for _ in range(kills):
        child = os.fork()
        if child == 0:
            while True:
                for net in reversed(nets):
                    save_weights(net, path)
        time.sleep(chance.uniform(0.005, 0.1))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        loaded = load_weights(path)
        which = [same(loaded, net) for net in nets]
        assert any(which)
        found[which.index(True)] += 1
    return found


def kill_training(kills, data_dir, folder, chance):
    """Kill a training run and resume it, `kills` times in all; gives how many runs that made."""
    command = ["TrainMNIST.py", "--data-dir", data_dir, "--device", "cpu", "--threads", 1,
               "--epochs", 6, "--augment", "--output"]
    run(*command, folder / "undisturbed.pth")
    undisturbed = load_weights(folder / "undisturbed.pth")
    old = Net()
    path = folder / "net.pth"
    state = folder / "net.pth.resume"
    runs = 0
    while kills:
        save_weights(old, path)
        runs += 1
        flags = []
        while not same(load_weights(path), undisturbed):
            assert same(load_weights(path), old)
            if kills:
                killed = run_and_kill([*command, path, *flags], chance.uniform(0, 1.5))
                kills -= killed
            else:
                run(*command, path, *flags)
            flags = ["--resume"] if state.exists() else []
    return runs


def run_and_kill(command, seconds):
    """Start a program, kill it some time after its first line; False where it was done earlier."""
    process = start(*command, env={"PYTHONUNBUFFERED": "1"})
    while "training on" not in (line := process.stdout.readline()):
        assert line, process.communicate()[1]
    time.sleep(seconds)
    killed = process.poll() is None
    process.kill()
    _, err = process.communicate()
    assert killed or process.returncode == 0, err
    return killed


def main():
    from conftest import write_small_mnist

    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--training", type=int, default=50, help="kills while it trains")
    parser.add_argument("--saving", type=int, default=50, help="kills while it saves")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        found = kill_saving(arguments.saving, folder, chance)
        print(f"{arguments.saving} kills while saving: one network found {found[0]} times, the "
              f"other {found[1]} times, nothing else", flush=True)
        data_dir = write_small_mnist(folder)
        runs = kill_training(arguments.training, data_dir, folder, chance)
        print(f"{arguments.training} kills while training: {runs} runs ended, each with the "
              "weights of the undisturbed one")


if __name__ == "__main__":
    main()
