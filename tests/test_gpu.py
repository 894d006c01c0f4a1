"""On a machine with a CUDA GPU and TensorRT: build, load, answer, time; skipped elsewhere."""

import os
import shutil

import numpy as np
import pytest
import torch
from scripts import run

from mnist.datasets.fonts import generated_digits
from mnist.engines.cuda import MEMORIES, TorchMemory
from mnist.engines.precision import TOLERANCE
from mnist.engines.registry import ENGINES, reference_log_probs
from mnist.engines.trt import tensorrt_missing
from mnist.engines.trt_cache import cached_engine
from mnist.models.weights import SHIPPED, Network, load_network

MISSING = tensorrt_missing()
WEIGHTS = os.path.join(SHIPPED, "net.pth")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(MISSING is not None, reason=str(MISSING))]


@pytest.fixture(scope="module")
def net():
    return load_network(WEIGHTS).net


@pytest.fixture(scope="module")
def digits():
    return generated_digits(144, seed=3)


@pytest.fixture
def stem(tmp_path):
    return str(tmp_path / "NetMNIST")


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("precision", ENGINES["tensorrt"].precisions["cuda"])
@pytest.mark.parametrize("batch_size, batches",
                         [(1, None), (64, None), (1, (1, 64)), (64, (1, 64))])
def test_answers_of_a_real_engine(net, digits, stem, memory, precision, batch_size, batches):
    if MEMORIES[memory].missing():
        pytest.skip(MEMORIES[memory].missing())
    images, _ = digits
    expected = reference_log_probs(Network(net), images)
    for _ in ("built", "loaded from the cache"):
        engine = cached_engine(net, "cuda", precision, batch_size, batches, stem, memory)
        for start in range(0, len(images), batch_size):
            batch = slice(start, start + batch_size)
            np.testing.assert_allclose(engine(images[batch]), expected[batch], rtol=0,
                                       atol=TOLERANCE[precision])
        engine.close()


def test_a_cuda_graph_gives_what_the_plain_calls_give(net, digits, stem):
    images, _ = digits
    engine = cached_engine(net, "cuda", "fp32", 64, stem=stem, memory="torch")
    assert engine.detail.endswith("CUDA graph") == (torch.version.cuda >= "11")
    with_graph = engine(images[:64]).copy()
    engine.run_all = engine.start_all
    np.testing.assert_array_equal(engine(images[:64]), with_graph)
    engine.close()


def test_compute_alone_answers_for_what_was_prepared(net, digits, stem):
    images, _ = digits
    engine = cached_engine(net, "cuda", "fp32", 16, stem=stem, memory="torch")
    engine(images[16:32])
    engine.compute(engine.prepare(images[:16]))
    engine.synchronise()
    np.testing.assert_allclose(engine.device_log_probs.cpu().numpy(),
                               reference_log_probs(Network(net), images[:16]), rtol=0, atol=1e-3)
    engine.close()


def test_torch_lives_on_beside_the_engine(net, digits, stem):
    images, _ = digits
    engine = cached_engine(net, "cuda", "fp32", 1, stem=stem)
    assert torch.ones(3, device="cuda").sum().item() == 3
    engine(images[:1])
    engine.close()
    assert torch.ones(3, device="cuda").sum().item() == 3
    assert TorchMemory.missing() is None


def test_program_on_a_gpu(tmp_path):
    shutil.copy(WEIGHTS, tmp_path)  # the engine comes to lie beside it
    out, _ = run("InfMNISTcudaRT.py", "--weights", tmp_path / "net.pth", "--limit", "200",
                 "--data", "generated", "--json", tmp_path / "record.json")
    assert "loadEngine" in out
