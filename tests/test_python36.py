"""What runs on a Jetson Nano suits it: Python 3.6, torch 1.10, numpy 1.19, PyQt5 5.10.

Where the environment variable PYTHON36 names a Python 3.6 with those libraries, the programs are
run on it too.
"""

import os
import re
import subprocess
import sys

import nano_calls
import pytest
from scripts import ROOT

FILES = [os.path.relpath(path, ROOT) for path in nano_calls.programs()]
PROGRAMS = [name for name in FILES if os.sep not in name
            and (not name.startswith("MNIST") or name == "MNISTshowFeat.py")]

# Syntax and standard library


def test_language_and_standard_library_are_python_3_6():
    pytest.importorskip("vermin", reason="vermin isn't installed; make test brings it")
    check = subprocess.run(
        [sys.executable, "-c", "import vermin; vermin.main()", "-t=3.6-", "--no-tips",
         "--violations", "--backport", "dataclasses", *FILES],
        cwd=ROOT, capture_output=True, text=True)
    assert check.returncode == 0, check.stdout


# Calls of the libraries


def test_no_call_is_newer_than_a_jetson_nanos_libraries():
    with open(nano_calls.KNOWN) as file:
        known = set(file.read().split())
    unknown = [f"{place}: {name}" for name, place in nano_calls.all_uses().items()
               if name not in known]
    assert not unknown, ("not known to be on a Jetson Nano: look it up, then add it to "
                         "tests/nano_calls.txt, or guard it by a feature test (nano_calls.NEWER)")


@pytest.mark.parametrize("name", sorted(nano_calls.NEWER))
def test_newer_call_is_guarded(name):
    since, guard = nano_calls.NEWER[name]
    function, _, keyword = name.rstrip(")").partition("(")
    word = re.escape(keyword or ".".join(function.split(".")[-2:]))
    using = [path for path in nano_calls.programs()
             if re.search(rf"\b{word}\b", nano_calls.read(path))]
    assert using, f"{name} isn't used any more"
    for path in using:
        assert guard in nano_calls.read(path), f"{path} uses {name}, {since}, without {guard}"


def test_a_new_name_is_noticed(tmp_path):
    (tmp_path / "new.py").write_text(
        "import torch\nimport torch.nn.functional as F\nfrom torch import nn\n"
        "torch.compile(nn.Linear(1, 2, device=None))\nF.relu(x)\n")
    assert set(nano_calls.uses(tmp_path / "new.py")) == {
        "torch.compile", "torch.nn.Linear", "torch.nn.Linear(device)", "torch.nn.functional.relu"}


# The real thing


@pytest.fixture(scope="module")
def python36(tmp_path_factory):
    """Run `python3.6 …` in the project's folder to its end: gives its stdout."""
    interpreter = os.environ.get("PYTHON36")
    if not interpreter:
        pytest.skip("PYTHON36 doesn't name a Python 3.6 with torch 1.10")

    def run(*command):
        done = subprocess.run(
            [interpreter, "-W", "ignore", *map(str, command)], cwd=ROOT, capture_output=True,
            text=True, timeout=300, env={**os.environ, "QT_QPA_PLATFORM": "offscreen"})
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout
    return run


def test_the_list_of_calls_on_python_3_6(python36):
    python36("tests/nano_calls.py")


def test_modules_on_python_3_6(python36):
    names = ", ".join(name[:-3].replace(os.sep, ".") for name in FILES
                      if not name.endswith("__init__.py"))
    assert python36("-c", f"import sys, {names}; print(sys.version_info[:2])") == "(3, 6)\n"
    for program in PROGRAMS:
        assert program in python36(program, "--help")


def test_training_and_timing_on_python_3_6(python36, small_mnist, tmp_path):
    weights = tmp_path / "net.pth"
    out = python36("TrainMNIST.py", "--data-dir", small_mnist, "--epochs", 1, "--augment",
                   "--threads", 1, "--output", weights)
    assert "epoch 1/1" in out and f"saved {weights}" in out
    out = python36("InferenceMNIST.py", "--data-dir", small_mnist, "--weights", weights,
                   "--threads", 1, "--limit", 100)
    assert "torch 1.1" in out and re.search(r"^torch +cpu fp32 +64 ", out, re.MULTILINE)
