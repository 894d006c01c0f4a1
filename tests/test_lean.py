"""Nothing loads more than it needs: little memory, and a window that opens soon."""

import os
import re
import subprocess
import sys
import time

import pytest
from scripts import ROOT

LARGE_PICTURES = """
import resource
import numpy as np
from mnist.datasets.cifar import CIFAR10
from mnist.engines.registry import open_engine
from mnist.models.weights import Network
from MNISTmodel import ResNet8
pictures = CIFAR10._replace(shape=(3, 128, 128))
engine = open_engine("torch", Network(ResNet8(pictures.shape), pictures), tuning=False)
images = np.zeros((64, 3, 128, 128), np.uint8)
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    engine(images)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's way with memory")
def test_the_system_clears_no_memory_anew_for_each_call_of_torch():
    faults = subprocess.check_output([sys.executable, "-c", LARGE_PICTURES], cwd=ROOT)
    assert int(faults) < 50000  # of 4 kB; 280,000 where each of its maps, 64 MB, is cleared


SHOW_AND_LEAVE = """
import time
import GraphMNIST
from PyQt5.QtCore import QTimer
from PyQt5.QtWidgets import QApplication

make_window = GraphMNIST.make_window

def make_short_lived_window(options):
    window = make_window(options)
    QTimer.singleShot(0, leave)  # once what show() asks for is done
    return window

def leave():
    print(time.time())
    QApplication.quit()

GraphMNIST.make_window = make_short_lived_window
GraphMNIST.main([])
"""


IMPORT_ALONE = """
import time
import torch
from PyQt5 import QtWidgets
print(time.time())
"""


def test_window_is_open_soon_after_its_libraries_are_there():
    pytest.importorskip("PyQt5")

    def seconds(program):
        started = time.time()
        out = subprocess.check_output([sys.executable, "-c", program], cwd=ROOT, text=True,
                                      env={**os.environ, "QT_QPA_PLATFORM": "offscreen"})
        return float(re.search(r"^\d+\.\d+$", out, re.MULTILINE)[0]) - started

    assert any(seconds(SHOW_AND_LEAVE) < 2 * seconds(IMPORT_ALONE) for _ in range(2))
