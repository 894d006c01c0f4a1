"""Any network, nothing of ours changed for it: found, folded, exported, run by every engine."""

import os
import re
import shutil

import numpy as np
import own_networks
import pytest
import torch
from scripts import run

from mnist.datasets.image_set import MNIST
from mnist.engines import registry
from mnist.engines.onnx_export import onnx_bytes
from mnist.engines.trt import build_engine
from mnist.errors import MNISTError, UnavailableError
from mnist.models.fold import Normalised, channels_last, fold
from mnist.models.registry import find_network, make_network
from mnist.models.weights import SHIPPED, Network, load_network, save_weights, trained_path
from mnist.training.loop import Run, new_network, train
from mnist.training.recipe import Recipe
from MNISTmodel import NETWORKS, Net, count_macs, count_parameters

OWN = own_networks.__file__
ALL = [kind.__name__ for kind in own_networks.NETWORKS]


@pytest.fixture
def trained():
    """A function of a network's name: the network, its batch norms as after some training."""
    def make(name):
        torch.manual_seed(2)
        net = getattr(own_networks, name)().float()
        net.train()
        with torch.no_grad():
            for _ in range(3):
                net(torch.randn(32, 1, 28, 28) * 2 + 1)
            for parameter in net.parameters():
                parameter.mul_(torch.rand_like(parameter) + 0.5)
        return net.eval()
    return make


# Where the normalisation can be folded exactly, it is; elsewhere it stays a step of its own.
FOLDED = {"BatchNorm", "Residual", "Depthwise", "Dense", "Tied", "NormReadTwice", "Named", "Views"}


@pytest.mark.parametrize("name", ALL)
def test_folded_network_answers_the_same_to_raw_pixels(trained, digits, name):
    net = trained(name)
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    folded = fold(net, MNIST)
    with torch.no_grad():
        answers = folded(torch.from_numpy(digits.astype(np.float32))).numpy()
    assert np.abs(answers - registry.reference_log_probs(Network(net), digits)).max() < 1e-4
    assert isinstance(folded, Normalised) == (name not in FOLDED)
    assert all(torch.equal(before[key], tensor) for key, tensor in net.state_dict().items())


def test_folding_leaves_a_network_in_training_so(trained):
    net = trained("BatchNorm").train()
    assert not fold(net, MNIST).training and all(module.training for module in net.modules())


@pytest.mark.parametrize("name, left", [("BatchNorm", 0), ("Residual", 0), ("Depthwise", 0),
                                        ("NormFirst", 1), ("NormReadTwice", 1)])
def test_batch_norm_is_folded_where_that_is_exact(trained, name, left):
    norms = (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)
    assert sum(isinstance(module, norms) for module in fold(trained(name), MNIST).modules()) == left


def test_a_batch_norm_of_hardly_any_variance_is_folded_too(trained, digits):
    """There its epsilon counts."""
    net = trained("BatchNorm")
    net[10].running_var.fill_(2e-5)
    folded = fold(net, MNIST)
    assert not any(isinstance(module, torch.nn.BatchNorm1d) for module in folded.modules())
    with torch.no_grad():
        answers = folded(torch.from_numpy(digits.astype(np.float32))).numpy()
    assert np.abs(answers - registry.reference_log_probs(Network(net), digits)).max() < 1e-4


def test_what_networks_cost(trained):
    assert count_parameters(Net()) == 431080
    assert count_macs(Net()) == 24**2 * 20 * 25 + 8**2 * 50 * 500 + 800 * 500 + 5000
    assert count_parameters(trained("Tied")) == 784 * 24 + 24 + 24 * 24 + 24 + 240 + 10
    assert count_macs(trained("Depthwise")) == (
        12**2 * 8 * 25 + 10**2 * 8 * 9 + 10**2 * 8 * 12 + 8**2 * 12 * 4 * 9 + 120)


@pytest.mark.parametrize("name, norms, dropout", [("separable", 0, 0),
                                                  ("separable-bn-dropout", 4, 0.5)])
def test_the_separable_network_is_that_of_the_table(name, norms, dropout):
    net = NETWORKS[name]()
    layers = {key: count_parameters(layer) for key, layer in net.named_children()}
    assert sum(count > 0 for key, count in layers.items() if "norm" in key) == norms
    table = {key: count for key, count in layers.items() if count and "norm" not in key}
    assert table == {"conv1": 848, "conv2a": 8384, "conv2b": 8384, "fc1": 25089000, "fc2": 500500,
                     "fc3": 5010}
    assert net.dropout.p == dropout


@pytest.mark.parametrize("engine", ["torch", "onnxruntime", "openvino"])
@pytest.mark.parametrize("name", ALL)
def test_every_engine_runs_it(trained, digits, name, engine):
    reason = registry.why_not(engine, "cpu")
    if reason:
        pytest.skip(reason)
    net = trained(name)
    running = registry.open_engine(engine, Network(net), batch_size=16, tuning=False)
    answers = np.concatenate([running(digits[:16]).copy(), running(digits[16:20]).copy()])
    running.close()
    assert np.abs(answers - registry.reference_log_probs(Network(net), digits[:20])).max() < 1e-3


@pytest.mark.parametrize("name", ALL)
def test_channels_last_where_the_network_can(trained, digits, name):
    net = trained(name)
    x = torch.from_numpy(MNIST.normalise(digits[:3]))
    with torch.no_grad():
        before = net(x)
        assert channels_last(net, MNIST) is net and not net.training
        assert torch.allclose(net(x), before, atol=1e-4)
    weights = [weight for weight in net.parameters() if weight.dim() == 4]
    assert all(weight.is_contiguous() == (name in ("Branches", "Views")) for weight in weights
               if min(weight.shape) > 1)


@pytest.mark.parametrize("name", ALL)
def test_training_takes_it(digits, name):
    recipe = Recipe(epochs=2, batch_size=48, augment=0.7)  # in bf16 where processor and torch can
    images = torch.from_numpy(digits)
    labels = torch.arange(len(images)) % 10
    net = new_network(*find_network(f"{OWN}:{name}"), MNIST, recipe, "cpu")
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    data = images, labels
    history = list(train(Run(net, MNIST, recipe, data, data, teacher=Net())))
    assert [epoch["epoch"] for epoch in history] == [1, 2]
    assert all(np.isfinite(epoch["train_loss"]) for epoch in history)
    for key, parameter in net.named_parameters():
        assert not torch.equal(parameter, before[key]), f"{key} was not trained"


@pytest.mark.parametrize("name", ALL)
def test_tensorrt_builds_it(trained, name):
    trt = pytest.importorskip("tensorrt_rtx", reason="pip install tensorrt-rtx builds real engines")
    net = trained(name)
    assert len(build_engine(trt, onnx_bytes(Network(net)), "fp32", (1, 64))) > 1000


# --- Finding it -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Buffers", "Tied", "Named", "sequential"])
def test_weights_of_a_network_in_a_file(trained, digits, tmp_path, name):
    net = trained(name)
    save_weights(net, tmp_path / "mine.pth")
    loaded = load_network(str(tmp_path / "mine.pth"), f"{OWN}:{name}")
    assert (loaded.name, loaded.path) == (name, str(tmp_path / "mine.pth"))
    assert loaded.stem == str(tmp_path / "mine") and loaded.origin == loaded.path
    x = torch.from_numpy(MNIST.normalise(digits))
    with torch.no_grad():
        assert torch.equal(loaded.net(x), net(x))


def test_a_file_is_imported_from_where_it_lies(tmp_path, monkeypatch):
    (tmp_path / "layers.py").write_text("WIDTH = 7\n")
    (tmp_path / "mine.py").write_text(
        "from layers import WIDTH\nfrom torch.nn import *\n"
        "def Mine():\n"
        "    return Sequential(Flatten(), Linear(784, WIDTH), Linear(WIDTH, 10), LogSoftmax(1))\n")
    monkeypatch.chdir(tmp_path)
    name, make = find_network("mine.py:Mine")
    assert name == "Mine" and make_network(name, make, MNIST)[1].out_features == 7


@pytest.mark.parametrize("content, network, words", [
    (None, "none.py:Mine", "there is no file .*none.py"),
    ("def broken(:", "mine.py:Mine", "mine.py can't be imported .SyntaxError: .*line 1"),
    ("import no_such_module", "mine.py:Mine", "ModuleNotFoundError: No module named 'no_such"),
    ("from torch.nn import ReLU", "mine.py:Mine", "has no class Mine, but ReLU"),
    ("def Mine(width): pass", "mine.py:Mine",
     "can't be made for images of 1×28×28 and 10 outputs .TypeError"),
    ("def Mine(): return 3", "mine.py:Mine", "gives a int, not a torch.nn.Module"),
    ("from torch.nn import Linear\ndef Mine(): return Linear(784, 10)", "mine.py:Mine",
     "fails on float32 .2, 1, 28, 28.*RuntimeError"),
    ("from torch.nn import Identity as Mine", "mine.py:Mine",
     r"gives \(2, 1, 28, 28\) for two images of mnist, not \(2, 10\)"),
    ("from torch.nn import *\ndef Mine(): return Sequential(Flatten(), Linear(784, 10))",
     "mine.py:Mine", "doesn't give log-probabilities"),
    (None, "transformer", "none of that name, only net.*FILE.py:CLASS"),
])
def test_what_is_no_network_is_said(tmp_path, monkeypatch, content, network, words):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / "mine.py").write_text(content + "\n")
    with pytest.raises(UnavailableError, match=words) as error:
        make_network(*find_network(network), MNIST)
    assert len(str(error.value).split("\n")) <= 2


def test_a_network_of_classes_is_refused_for_values():
    frames = MNIST._replace(name="frames", classes=("x", "y"), task="regression")
    with pytest.raises(UnavailableError, match="frames has values to predict, and net gives log-"):
        make_network(*find_network("net"), frames)


def test_weights_of_another_network_are_refused(trained, tmp_path):
    save_weights(trained("Dense"), tmp_path / "dense.pth")
    with pytest.raises(MNISTError, match="is not of this network: .* is missing"):
        load_network(str(tmp_path / "dense.pth"))
    with pytest.raises(MNISTError, match="is not of this network"):
        load_network(str(tmp_path / "dense.pth"), f"{OWN}:Branches")


@pytest.mark.parametrize("name", [name for name in NETWORKS if "-bn-" not in name])
def test_a_built_in_network_is_known_by_its_weights(tmp_path, name):
    save_weights(NETWORKS[name](), tmp_path / "weights.pth")
    alike = name.replace("-dropout", "")  # which is in training only and has no weights
    assert load_network(str(tmp_path / "weights.pth")).name == alike


def test_what_you_trained_comes_before_what_is_shipped(tmp_path, monkeypatch):
    shipped = os.path.join(SHIPPED, "net.pth")
    monkeypatch.setattr("mnist.models.weights.ROOT", str(tmp_path))
    assert trained_path("net") == str(tmp_path / "NetMNIST.pth")
    assert load_network().path == shipped
    assert load_network().stem == str(tmp_path / "net")  # nothing is written into weights/
    save_weights(Net(), tmp_path / "NetMNIST.pth")
    mine = load_network()
    assert mine.path == str(tmp_path / "NetMNIST.pth") and mine.origin == "NetMNIST.pth"
    assert mine.stem == str(tmp_path / "NetMNIST")


def test_train_and_compare_your_own(small_mnist, tmp_path):
    """What README says of your own network, as a user does it."""
    shutil.copy(OWN, tmp_path / "mine.py")
    mine, weights = ("--network", "mine.py:Residual", "--data-dir", small_mnist), "Residual.pth"
    out, _ = run("TrainMNIST.py", *mine, "--epochs", 1, "--output", weights, cwd=tmp_path)
    assert "saved Residual.pth" in out
    assert {"Residual.pth", "Residual.json"} <= set(os.listdir(tmp_path))
    out, _ = run("CompareMNIST.py", *mine, "--weights", weights, "--limit", 64, "--seconds", 0,
                 "--device", "cpu", "--batch-size", 16, "--precision", "fp32", "--no-tuning",
                 "--engine", "torch", "onnxruntime", cwd=tmp_path)
    for engine in ("torch", "onnxruntime"):
        assert re.search(rf"^{engine} .*cpu fp32 +16 ", out, re.MULTILINE), engine
    assert "WRONG" not in out and "failed" not in out
