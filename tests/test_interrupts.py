"""Ctrl-C in every program that takes long: it ends at once, with one word, and leaves no mess."""

import os
import signal
import sys
import time

import pytest
from scripts import read_until, start

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C is another thing there")


def interrupt(process, sign, seconds=0.2):
    """Send Ctrl-C some time after `sign` stands on the program's stdout (None: after its start);
    gives its stderr."""
    if sign:
        read_until(process, sign)
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    sent = time.monotonic()
    _, err = process.communicate(timeout=60)
    taken = time.monotonic() - sent
    assert process.returncode == 130, err
    assert err.strip().endswith("interrupted") and "Traceback" not in err
    # A second, where this machine has a processor to spare for it.
    assert taken < (1 if os.getloadavg()[0] < os.cpu_count() else 30)
    return err


@pytest.fixture
def begin(small_mnist):
    """Start a program on few digits."""
    def begin(*command, **settings):
        return start(*command, "--data-dir", small_mnist, env={
            "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1", "QT_QPA_PLATFORM": "offscreen"},
            **settings)
    return begin


def test_training(begin, tmp_path):
    process = begin("TrainMNIST.py", "--epochs", 1000, "--output", tmp_path / "net.pth")
    err = interrupt(process, "epoch 2/1000")
    assert "the same command with --resume goes on" in err
    assert os.listdir(tmp_path) == ["net.pth.resume"]


@pytest.mark.parametrize("program", ["InferenceMNIST.py", "CompareMNIST.py"])
def test_timing(begin, program, tmp_path):
    process = begin(program, "--repeat", 100000, "--json", tmp_path / "record.json")
    interrupt(process, None, seconds=6)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("program", ["GraphMNIST.py", "MNISTshowFeat.py"])
def test_windows(begin, program):
    pytest.importorskip("PyQt5")
    interrupt(begin(program), None, seconds=4)


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="can't see what is imported")
@pytest.mark.parametrize("seconds", [0, 0.5, 1])
def test_while_torch_is_imported(begin, seconds, tmp_path):
    process = begin("TrainMNIST.py", "--epochs", 1000, "--output", tmp_path / "net.pth")
    with open(f"/proc/{process.pid}/maps") as maps:
        while "libtorch" not in maps.read():
            time.sleep(0.02)
            maps.seek(0)
    interrupt(process, None, seconds)
