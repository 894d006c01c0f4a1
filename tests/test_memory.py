"""Nothing loads more than it needs."""

import os
import sys

import pytest
import torch
from scripts import start

import MNISTdsource

pytestmark = pytest.mark.skipif(not hasattr(os, "wait4"), reason="needs wait4")


@pytest.mark.mnist
@pytest.mark.skipif(torch.version.cuda is not None, reason="a CUDA build of torch is larger itself")
def test_timing_takes_the_test_digits_and_little_memory(mnist_dir, tmp_path):
    for name in MNISTdsource.SPLITS["test"]:
        path = MNISTdsource.find_file(mnist_dir, name)
        os.symlink(os.path.abspath(path), tmp_path / os.path.basename(path))
    process = start("InferenceMNIST.py", "--device", "cpu", "--threads", 1, "--batch-size", 64,
                    "--data-dir", tmp_path)
    out = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0 and "\ntorch  cpu fp32    64" in out
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(f"peak memory {peak >> 20} MiB")
    assert peak < 700 << 20
