"""Memory that is freed is kept for the next call."""

import subprocess
import sys

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
