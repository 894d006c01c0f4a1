"""Ctrl-C in every program that takes long: it ends at once, with one word, and leaves no mess."""

import contextlib
import json
import os
import signal
import sys
import time

import pytest
from scripts import read_until, start

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C is another thing there")


def interrupt(process, seconds=0.0):
    """Send Ctrl-C after so many seconds; gives the program's stdout and stderr."""
    time.sleep(seconds)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert err.strip().endswith("interrupted") and "Traceback" not in err
    return out, err


@pytest.fixture
def begin(small_mnist):
    """Start a program on few digits."""
    def begin(*command, **settings):
        return start(*command, "--data-dir", small_mnist, env={"PYTHONUNBUFFERED": "1"}, **settings)
    return begin


def test_ctrl_c_in_training_leaves_a_checkpoint_or_nothing(begin, tmp_path):
    process = begin("TrainMNIST.py", "--epochs", 1000, "--output", tmp_path / "net.pth")
    read_until(process, "epoch 2/1000")
    out, err = interrupt(process)
    assert "the same command with --resume goes on" in err
    assert os.listdir(tmp_path) == ["net.pth.resume"]
    assert "epoch 100/1000" not in out  # it didn't go on for long


@pytest.mark.parametrize("program", [
    ["InferenceMNIST.py"], ["CompareMNIST.py", "--engine", "torch", "--precision", "fp32"]],
    ids=lambda words: words[0])
def test_timing(begin, program, tmp_path):
    """In the third of a hundred passes; what was measured until then is printed and kept."""
    terminal, its_end = os.openpty()  # there the progress is shown
    process = begin(*program, "--repeat", 100, "--batch-size", 64, "--device", "cpu", "--json",
                    tmp_path / "record.json", stderr=its_end)
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
