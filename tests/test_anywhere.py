"""The scripts in a folder with spaces and letters of all the world, called from another folder,
under a C locale that knows ASCII alone."""

import json
import os
import sys

import pytest
from scripts import copy_programs, run

FOLDER = "my scripts – ñandú 数字"
C_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0",
            "PYTHONIOENCODING": "", "OMP_NUM_THREADS": "1"}

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="a C locale is a Unix thing")


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory, small_mnist):
    """Run a copy of the scripts from a working directory that isn't theirs: gives its stdout."""
    scripts = copy_programs(tmp_path_factory.mktemp("anywhere") / FOLDER, small_mnist)
    there = scripts.parent / "cwd"
    there.mkdir()

    def run_elsewhere(name, *flags, **settings):
        out, err = run(scripts / name, *flags, cwd=there, env={**C_LOCALE, "MNIST_DATA": ""},
                       **settings)
        return out
    run_elsewhere.scripts, run_elsewhere.cwd = scripts, there
    return run_elsewhere


def test_training_and_timing(elsewhere):
    out = elsewhere("TrainMNIST.py", "--epochs", 1, "--output", "mine é.pth", "--json", "é.json",
                    "--plot", "é.png")
    assert "saved mine" in out
    out = elsewhere("InferenceMNIST.py", "--weights", "mine é.pth", "--limit", 64, "--seconds", 0,
                    "--batch-size", 64)
    assert "\ntorch  cpu fp32" in out
    assert sorted(os.listdir(elsewhere.cwd)) == ["mine é.pth", "é.json", "é.png"]
    assert json.loads((elsewhere.cwd / "é.json").read_text())["result"]["accuracy"] > 0


def test_comparison(elsewhere):
    elsewhere("CompareMNIST.py", "--engine", "torch", "--device", "cpu", "--precision", "fp32",
              "--limit", 64, "--seconds", 0, "--no-tuning", "--plot", "é plot.svg", "--json",
              "é compare.json")
    assert json.loads((elsewhere.cwd / "é compare.json").read_text())["rows"]
    assert (elsewhere.cwd / "é plot.svg").stat().st_size > 10000


def test_errors_that_name_such_a_path(elsewhere):
    missing = elsewhere.scripts / "no é.pth"
    _, err = run(elsewhere.scripts / "InferenceMNIST.py", "--weights", missing, status=2,
                 env=C_LOCALE, cwd=elsewhere.cwd)
    assert err.startswith("error: no weights file /") and err.isascii()
    assert "no \\udcc3\\udca9.pth" in err or "no \\xe9.pth" in err
