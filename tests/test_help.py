"""--help of every program: at once, with an example, importing nothing heavy."""

import ast
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
                        "InferenceMNIST.py", "MNISTshowFeat.py", "SearchMNIST.py",
                        "ServeMNIST.py", "TrainMNIST.py", "TransferMNIST.py"]


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


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_imports_nothing_heavy(program):
    out = subprocess.check_output([sys.executable, "-c", SHOW_HELP, os.path.join(ROOT, program)])
    assert out.decode().endswith("imported: []\n")


def test_every_path_is_expanded():
    """--json=~/x.json reaches the program with its ~: no shell expands it there."""
    flags = 0
    for path in [*(os.path.join(ROOT, name) for name in PROGRAMS),
                 os.path.join(ROOT, "mnist", "cli.py")]:
        with open(path, encoding="utf-8") as file:
            calls = [node for node in ast.walk(ast.parse(file.read()))
                     if isinstance(node, ast.Call) and ast.unparse(node.func) in (
                         "parser.add_argument", "dict")]
        for call in calls:
            settings = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
            if settings.get("metavar") in ("'FILE'", "'DIR'", "'WEIGHTS'"):
                assert settings.get("type") == "os.path.expanduser", ast.unparse(call)
                flags += 1
    assert flags > 12
