"""Every engine behind the common interface, and the registry."""

import functools
import os
import time

import numpy as np
import pytest
import torch

from mnist.datasets.image_set import MNIST
from mnist.engines import pytorch, registry, runtimes, tuning
from mnist.engines.precision import TOLERANCE, judge_outputs
from mnist.errors import UnavailableError
from mnist.models.weights import SHIPPED, Network, load_network
from MNISTdsource import calibration_images, load_split
from MNISTmodel import Net


@pytest.fixture
def net():
    torch.manual_seed(1)
    return Net().eval()


@pytest.fixture
def images():
    return np.random.RandomState(0).randint(0, 256, (100, 1, 28, 28)).astype(np.uint8)


QUICK = [name for name, kind in registry.ENGINES.items() if not kind.on_request]


def open_or_skip(name, net, device, precision="fp32", batch_size=64, **settings):
    reason = registry.why_not(name, device, precision)
    if reason:
        pytest.skip(reason)
    return registry.open_engine(name, Network(net), device, precision, batch_size, **settings)


def answers_of(engine, images):
    size = engine.batch_size
    return np.concatenate([engine(images[start:start + size]).copy()
                           for start in range(0, len(images), size)])


CPU = [name for name in QUICK if "cpu" in registry.ENGINES[name].precisions]


@pytest.mark.parametrize("batch_size", [1, 16, 64])
@pytest.mark.parametrize("name", CPU)
def test_every_engine_of_the_cpu_answers_as_the_reference(net, images, name, batch_size):
    engine = open_or_skip(name, net, "cpu", batch_size=batch_size)
    answers = answers_of(engine, images)
    assert answers.dtype == np.float32 and answers.shape == (100, 10)
    assert np.abs(answers - registry.reference_log_probs(Network(net), images)).max() < 1e-4
    assert (engine.name, engine.device, engine.precision) == (name, "cpu", "fp32")
    assert engine.detail
    engine.close()


@pytest.mark.parametrize("name, precision", [
    (name, precision) for name in CPU for precision in registry.ENGINES[name].precisions["cpu"]])
def test_every_precision_of_the_cpu_rounds_and_no_more(mnist_dir, name, precision):
    images, labels = (array[:1000] for array in load_split("test", mnist_dir))
    net = load_network(os.path.join(SHIPPED, "net.pth")).net
    engine = open_or_skip(name, net, "cpu", precision, calibration=functools.partial(
        calibration_images, MNIST, data_dir=mnist_dir))
    assert engine.precision == precision
    answers = answers_of(engine, images)
    reference = registry.reference_log_probs(Network(net), images)
    difference, reason = judge_outputs(MNIST, answers, reference, precision)
    assert reason is None
    assert (difference > 1e-3) == (precision != "fp32")  # it really rounds
    assert (answers.argmax(1) == labels).mean() > 0.99
    engine.close()


@pytest.mark.gpu
@pytest.mark.parametrize("batch_size", [1, 64])
@pytest.mark.parametrize("name", [name for name in QUICK if name != "tensorrt"  # see test_gpu.py
                                  and "cuda" in registry.ENGINES[name].precisions])
def test_every_engine_of_the_gpu_answers_as_the_reference(net, images, name, batch_size):
    engine = open_or_skip(name, net, "cuda", batch_size=batch_size)
    reference = registry.reference_log_probs(Network(net), images)
    assert np.abs(answers_of(engine, images) - reference).max() < TOLERANCE["fp32"]
    engine.compute(engine.prepare(images[:batch_size]))
    engine.synchronise()
    assert np.abs(answers_of(engine, images) - reference).max() < TOLERANCE["fp32"]
    engine.close()


@pytest.mark.slow
def test_torch_compile_answers_as_the_reference(net, images):
    engine = open_or_skip("torch-compile", net, "cpu")
    reference = registry.reference_log_probs(Network(net), images)
    assert np.abs(answers_of(engine, images) - reference).max() < 1e-4
    assert engine.prepare(images[:3]).shape == (64, 1, 28, 28)


def test_reference_is_the_plain_network(net, images):
    with torch.no_grad():
        x = torch.from_numpy(images / 255).float()
        plain = net((x - 0.1307) / 0.3081).numpy()
    assert np.abs(registry.reference_log_probs(Network(net), images) - plain).max() < 1e-4


@pytest.mark.parametrize("name", ["torch", "onnxruntime", "openvino"])
def test_compute_runs_on_what_was_prepared(net, images, name):
    engine = open_or_skip(name, net, "cpu")
    engine(images[:64])
    answers = engine.compute(engine.prepare(images[36:]))
    engine.synchronise()
    reference = registry.reference_log_probs(Network(net), images[36:])
    answers = answers.numpy() if name == "torch" else engine.log_probs
    assert np.abs(answers - reference).max() < 1e-4


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_onnxruntime_on_another_provider_is_refused(net, monkeypatch):
    open_or_skip("onnxruntime", net, "cpu")
    monkeypatch.setitem(runtimes.OnnxRuntimeEngine.PROVIDERS, "cpu", "AzureProvider")
    with pytest.raises(UnavailableError, match="uses CPUExecutionProvider in place of Azure"):
        registry.open_engine("onnxruntime", Network(net))


def test_usual_loop_reads_the_digits_it_is_given(net, images):
    engine = open_or_skip("usual-loop", net, "cpu", batch_size=64)
    loop = list(engine.loop(images))
    assert [len(answers) for answers in loop] == [64, 36]
    reference = registry.reference_log_probs(Network(net), images)
    assert np.abs(np.concatenate(loop) - reference).max() < 1e-4


def test_unsupported_precision_says_what_there_is(net):
    with pytest.raises(UnavailableError, match="torch computes in fp32 and bf16, not in int8"):
        registry.open_engine("torch", Network(net), precision="int8")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_by_name_is_never_replaced_by_the_cpu(net, capsys):
    with pytest.raises(UnavailableError, match="torch on cuda: .*(nvidia-smi|CPU build)"):
        registry.open_engine("torch", Network(net), device="cuda")
    with pytest.raises(UnavailableError, match="--device cuda"):
        registry.choose_device("cuda")
    assert registry.choose_device("auto") == "cpu"
    assert capsys.readouterr().out.startswith("device: cpu (auto: ")


def test_bf16_is_never_emulated(net, monkeypatch):
    monkeypatch.setattr(pytorch, "cpu_flags", lambda: {"avx2", "avx512f"})
    monkeypatch.setattr(runtimes, "openvino_capabilities", lambda: ("FP32", "INT8"))
    for name in ("torch", "openvino"):
        with pytest.raises(UnavailableError, match="AVX512-BF16"):
            registry.open_engine(name, Network(net), precision="bf16")


# --- Tuning ---------------------------------------------------------------------------------------

class Sleepy:
    """An engine that takes so many milliseconds for a call."""

    batch_size, detail, image_set = 4, "sleepy", MNIST

    def __init__(self, ms, calls):
        self.ms, self.calls, self.closed = ms, calls, False

    def __call__(self, images):
        assert images.shape == (4, 1, 28, 28) and images.dtype == np.uint8
        self.calls.append(self.ms)
        time.sleep(self.ms / 1e3)

    def close(self):
        self.closed = True


def test_the_quickest_setting_is_taken_and_the_others_closed():
    made, calls = [], []

    def make(ms):
        made.append(Sleepy(ms, calls))
        return made[-1]

    engine = tuning.quickest(make, [{"ms": 20}, {"ms": 1}, {"ms": 3}], "{ms} ms".format)
    assert engine is made[1] and [each.closed for each in made] == [True, False, True]
    assert engine.detail == "sleepy, 1 ms (the quickest of 3 settings)"
    assert [tried["ms"] >= asked for tried, asked in zip(engine.tuning, (1, 3, 20))] == [True] * 3
    assert calls.count(20) < 15  # hopeless ones are given up


def test_one_setting_needs_no_trial():
    calls = []
    engine = tuning.quickest(lambda ms: Sleepy(ms, calls), [{"ms": 20}], "{ms} ms".format)
    assert engine.detail == "sleepy, 20 ms" and not calls


@pytest.mark.parametrize("cpus, numbers", [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6])])
def test_threads_that_are_tried(monkeypatch, cpus, numbers):
    """Powers of two and all of them; a number that was asked for alone, tuning or not."""
    monkeypatch.setattr(tuning, "usable_cpus", lambda: cpus)
    tried = tuning.settings_to_try(True, None, {"threads": 0})
    assert [settings["threads"] for settings in tried] == numbers
    assert tuning.settings_to_try(True, 3, {"threads": 0}, level=("a", "b")) == [
        {"threads": 3, "level": "a"}, {"threads": 3, "level": "b"}]
    assert tuning.settings_to_try(False, 3, {"threads": 0, "level": "b"}) == [
        {"threads": 3, "level": "b"}]
