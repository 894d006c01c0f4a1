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

HEAVY = ("torch", "numpy", "matplotlib", "PyQt5", "onnxruntime", "tensorrt")

SHOW_HELP = f"""
import atexit, os, runpy, sys
atexit.register(lambda: print("imported:", [name for name in {HEAVY} if name in sys.modules]))
sys.path.insert(0, os.path.dirname(sys.argv[1]))
sys.argv = [sys.argv[1], "--help"]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_these_are_the_programs():
    assert PROGRAMS == ["CompareMNIST.py", "CompressMNIST.py", "GraphMNIST.py", "InfMNISTcudaRT.py",
                        "InferenceMNIST.py", "MNISTshowFeat.py", "ServeMNIST.py", "TrainMNIST.py"]


@pytest.mark.parametrize("program", PROGRAMS)
def test_help(program):
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        out = subprocess.check_output([sys.executable, os.path.join(ROOT, program), "--help"])
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.3
    assert f"python {program}" in out.decode() and "--debug" in out.decode()


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_imports_nothing_heavy(program):
    out = subprocess.check_output([sys.executable, "-c", SHOW_HELP, os.path.join(ROOT, program)])
    assert out.decode().endswith("imported: []\n")
