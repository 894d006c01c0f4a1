"""Each library missing in turn, no display, no GPU, no network, no MNIST.

A program does what it still can, or says in one line what to install. (The windows without a
display: test_window_programs.py.)
"""

import os
import re

import pytest
import torch
from scripts import copy_programs, refused, run
from test_model import RunsCode

from mnist.files import ROOT

# Runs before the program in every Python process that has its folder on PYTHONPATH.
SITECUSTOMIZE = """
import os, socket, sys

class Finder:
    finders = list(sys.meta_path)

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] not in os.environ["MISSING"].split():
            specs = (finder.find_spec(name, path, target) for finder in self.finders)
            return next(filter(None, specs), None)

def no_network(*_, **__):
    raise OSError(101, "Network is unreachable")

sys.meta_path[:] = [Finder()]
socket.getaddrinfo = no_network
"""
OPTIONAL = "PyQt5 matplotlib onnx onnxruntime openvino tensorrt tensorrt_rtx pycuda torchvision"
DISPLAY = ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM")


@pytest.fixture
def without(tmp_path, monkeypatch):
    """An environment without these libraries, without network, GPU and display."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SITECUSTOMIZE)
    for name in (*DISPLAY, "MNIST_DATA"):
        monkeypatch.delenv(name, raising=False)

    def environment(*names):
        return {"PYTHONPATH": str(tmp_path / "site"), "MISSING": " ".join(names),
                "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    return environment


@pytest.fixture
def scripts_alone(tmp_path):
    """The scripts and the shipped weights in a folder of their own, where no MNIST is."""
    return copy_programs(tmp_path / "scripts")


# What still works with next to nothing


def test_training_and_timing_need_torch_and_numpy_alone(without, small_mnist, tmp_path):
    weights = tmp_path / "net.pth"
    out, err = run("TrainMNIST.py", "--data-dir", small_mnist, "--epochs", 1, "--output", weights,
                   env=without(OPTIONAL))
    assert "device: cpu (auto" in out and f"saved {weights}" in out and err == ""
    out, err = run("InferenceMNIST.py", "--data-dir", small_mnist, "--weights", weights,
                   "--limit", 64, "--seconds", 0, "--batch-size", 64, env=without(OPTIONAL))
    assert "\ntorch  cpu fp32" in out and err == ""


def test_comparison_says_what_each_engine_lacks(without, small_mnist):
    out, _ = run("CompareMNIST.py", "--data-dir", small_mnist, "--limit", 64, "--batch-size", 1,
                 "--seconds", 0, "--no-tuning", "--threads", 1, env=without(OPTIONAL))
    for reason in ("onnxruntime .*pip install onnx", "openvino .*pip install", "torch .*nvidia-smi",
                   "tensorrt .*TensorRT can't be imported", "usual-loop .*pip install torchvision"):
        assert re.search(f"^{reason}", out, re.MULTILINE), reason
    assert "\ntorch       cpu fp32" in out


def test_pictures_of_features_need_no_display_and_no_pyqt5(without, small_mnist, tmp_path):
    run("MNISTshowFeat.py", "--save", tmp_path / "pictures", "--data-dir", small_mnist,
        env=without("PyQt5"))
    assert sorted(os.listdir(tmp_path / "pictures")) == [
        "filters.png", "maps-conv1.png", "maps-conv2.png"]


def test_timing_without_mnist_and_network(without, scripts_alone):
    out, err = run(scripts_alone / "InferenceMNIST.py", "--limit", 64, "--seconds", 0,
                   "--batch-size", 64, env=without("PyQt5"))
    assert "Network is unreachable" in err and "GENERATED digits" in err
    assert "\ntorch  cpu fp32" in out


def test_help_needs_nothing(without):
    for name in os.listdir(ROOT):
        if name.endswith("MNIST.py") or name in ("MNISTshowFeat.py", "InfMNISTcudaRT.py"):
            out, _ = run(name, "--help", env=without("torch numpy uvicorn PIL", OPTIONAL))
            assert f"python {name}" in out


# What can't work says so


@pytest.mark.parametrize("program, missing, words", [
    (["InferenceMNIST.py"], "torch", "torch, which isn't installed: pip install torch"),
    (["TrainMNIST.py"], "numpy", "numpy, which isn't installed: pip install numpy"),
    (["TrainMNIST.py", "--plot", "curves.png"], "matplotlib",
     "--plot needs matplotlib: pip install matplotlib"),
    (["TrainMNIST.py", "--data", "generated"], "matplotlib", "pip install matplotlib"),
    (["TrainMNIST.py"], "", "data doesn't hold MNIST, and it couldn't be downloaded"),
    (["InferenceMNIST.py", "--device", "cuda"], "", "--device cuda: "),
    (["GraphMNIST.py"], "PyQt5", "pip install PyQt5"),
    (["MNISTshowFeat.py"], "PyQt5", "sudo apt install python3-pyqt5"),
    (["InfMNISTcudaRT.py"], "tensorrt tensorrt_rtx", "TensorRT can't be imported; pip install"),
], ids=lambda value: " ".join(value) if isinstance(value, list) else value[:20])
def test_it_says_what_is_missing(without, scripts_alone, program, missing, words):
    name, *flags = program
    before = sorted(os.listdir(scripts_alone))
    _, err = run(scripts_alone / name, *flags, env=without(missing), status=2, cwd=scripts_alone)
    assert words in err and "unforeseen" not in err
    left = sorted(set(os.listdir(scripts_alone)) - {"__pycache__", "data"})
    assert left == before


def test_code_in_a_resume_file_is_refused(small_mnist, tmp_path):
    torch.save({"net": RunsCode(tmp_path / "proof")}, tmp_path / "net.pth.resume")
    _, err = refused("TrainMNIST.py", "--resume", "--output", tmp_path / "net.pth", "--data-dir",
                     small_mnist, status=1)
    assert "refused" in err and not (tmp_path / "proof").exists()
