"""--help of every program: at once, with an example, importing nothing heavy."""

import glob
import os
import subprocess
import sys
import time

import pytest
from scripts import ROOT

PROGRAMS = sorted(
    os.path.basename(path) for path in glob.glob(os.path.join(ROOT, "*.py"))
    if "run_program(main)\n" in open(path, encoding="utf-8").read())


def quickest(*command):
    """The fewest seconds that one of three runs of `python command…` took, and what it printed."""
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        out = subprocess.check_output([sys.executable, *command])
        seconds.append(time.perf_counter() - start)
    return min(seconds), out.decode()


@pytest.fixture(scope="module")
def numpy_seconds():
    """How long a Python takes that imports numpy alone."""
    return quickest("-c", "import numpy")[0]


@pytest.mark.parametrize("program", PROGRAMS)
def test_help(program, numpy_seconds):
    seconds, out = quickest(os.path.join(ROOT, program), "--help")
    assert seconds < 2 * numpy_seconds
    assert f"python {program}" in out
