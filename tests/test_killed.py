"""Ctrl-C while timing, SIGKILL while saving: nothing measured and no weights are lost."""

import contextlib
import json
import os
import random
import signal
import sys
import time

import pytest
import torch
from scripts import start

from mnist.models.weights import load_network, save_weights
from MNISTmodel import Net

KILLS = int(os.environ.get("KILLS", 20))

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has other signals")


@pytest.mark.parametrize("program", [
    ["InferenceMNIST.py"], ["CompareMNIST.py", "--engine", "torch", "--precision", "fp32"]],
    ids=lambda words: words[0])
def test_ctrl_c_while_timing(small_mnist, program, tmp_path):
    """In the third of a hundred passes; what was measured until then is printed and kept."""
    terminal, its_end = os.openpty()  # there the progress is shown
    process = start(*program, "--repeat", 100, "--batch-size", 64, "--device", "cpu", "--data-dir",
                    small_mnist, "--json", tmp_path / "record.json", stderr=its_end)
    os.close(its_end)
    shown = b""
    while b"timing [" not in shown or b"  3%" not in shown:
        shown += os.read(terminal, 1000)
    process.send_signal(signal.SIGINT)
    out = process.communicate(timeout=120)[0]
    with contextlib.suppress(OSError):  # what a terminal says that nobody writes to any more
        while True:
            shown += os.read(terminal, 1000)
    os.close(terminal)
    assert process.returncode == 130 and shown.strip().endswith(b"interrupted")
    assert b"Traceback" not in shown and b"100%" not in shown
    row, = json.loads((tmp_path / "record.json").read_text())["rows"]
    assert row["status"] == "ok" and 2 <= row["passes"] < 100 and "torch" in out
    assert os.listdir(tmp_path) == ["record.json"]


def test_killed_while_saving(tmp_path):
    """The weights file then holds the old weights or the new ones."""
    path, nets = tmp_path / "net.pth", [Net(), Net()]
    save_weights(nets[0], path)
    chance, found = random.Random(0), set()
    for _ in range(KILLS):
        file = os.stat(path).st_ino
        child = os.fork()
        if child == 0:
            while True:
                for net in reversed(nets):
                    save_weights(net, path)
        try:
            started = time.monotonic()
            while os.stat(path).st_ino == file and time.monotonic() < started + 30:
                time.sleep(0.0005)
            time.sleep(chance.uniform(0, 2 * (time.monotonic() - started)))
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        weight = load_network(path).net.fc1.weight
        found.add([torch.equal(weight, net.fc1.weight) for net in nets].index(True))
    assert found == {0, 1}  # or it was never killed at work
