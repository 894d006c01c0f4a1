"""The torch engine behind the common interface, and the registry."""

import numpy as np
import pytest
import torch

import MNISTengine
from MNISTmodel import Net
from MNISTscript import UnavailableError


@pytest.fixture
def net():
    torch.manual_seed(1)
    return Net().eval()


@pytest.fixture
def images():
    return np.random.RandomState(0).randint(0, 256, (100, 28, 28)).astype(np.uint8)


@pytest.mark.parametrize("batch_size", [1, 16, 64])
def test_torch_answers_as_the_reference(net, images, batch_size):
    engine = MNISTengine.open_engine("torch", net, batch_size=batch_size)
    answers = np.concatenate([engine(images[start:start + batch_size]).copy()
                              for start in range(0, len(images), batch_size)])
    reference = MNISTengine.reference_answers(net, images)
    assert answers.dtype == np.float32 and answers.shape == (100, 10)
    assert np.abs(answers - reference).max() < 1e-4
    with torch.no_grad():
        x = torch.from_numpy(images[:, None] / 255).float()
        plain = net((x - 0.1307) / 0.3081).numpy()
    assert np.abs(reference - plain).max() < 1e-4


def test_compute_is_the_same_network(net, images):
    engine = MNISTengine.open_engine("torch", net, batch_size=64)
    x = engine.prepare(images[:64])
    answers = engine.compute(x)
    engine.synchronise()
    assert np.array_equal(answers.numpy(), engine(images[:64]))


def test_opening_an_engine_leaves_the_network_alone(net, images):
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    MNISTengine.open_engine("torch", net).close()
    assert all(torch.equal(before[key], tensor) for key, tensor in net.state_dict().items())


def test_unknown_engine_gets_the_closest_name():
    with pytest.raises(UnavailableError, match="did you mean torch"):
        MNISTengine.why_not("trch")


def test_unsupported_precision_says_what_there_is(net):
    with pytest.raises(UnavailableError, match="torch computes in fp32, not in int8"):
        MNISTengine.open_engine("torch", net, precision="int8")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_by_name_is_never_replaced_by_the_cpu(net, capsys):
    with pytest.raises(UnavailableError, match="torch on cuda: .*(nvidia-smi|CPU build)"):
        MNISTengine.open_engine("torch", net, device="cuda")
    with pytest.raises(UnavailableError, match="--device cuda"):
        MNISTengine.choose_device("cuda")
    assert MNISTengine.choose_device("auto") == "cpu"
    assert capsys.readouterr().out.startswith("device: cpu (auto: ")
