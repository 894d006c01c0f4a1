"""Every engine behind the common interface, and the registry."""

import sys

import numpy as np
import pytest
import torch

import MNISTengine
import MNISTruntimes
from MNISTmodel import Net
from MNISTprecision import PRECISIONS, TOLERANCE
from MNISTscript import UnavailableError, package_missing


@pytest.fixture
def net():
    torch.manual_seed(1)
    return Net().eval()


@pytest.fixture
def images():
    return np.random.RandomState(0).randint(0, 256, (100, 28, 28)).astype(np.uint8)


QUICK = [name for name, kind in MNISTengine.ENGINES.items() if not kind.on_request]


def open_or_skip(name, net, device, precision="fp32", batch_size=64):
    reason = MNISTengine.why_not(name, device, precision)
    if reason:
        pytest.skip(reason)
    return MNISTengine.open_engine(name, net, device, precision, batch_size)


def answers_of(engine, images):
    size = engine.batch_size
    return np.concatenate([engine(images[start:start + size]).copy()
                           for start in range(0, len(images), size)])


@pytest.mark.parametrize("batch_size", [1, 16, 64])
@pytest.mark.parametrize("name", [name for name in QUICK
                                  if "cpu" in MNISTengine.ENGINES[name].precisions])
def test_every_engine_of_the_cpu_answers_as_the_reference(net, images, name, batch_size):
    engine = open_or_skip(name, net, "cpu", batch_size=batch_size)
    answers = answers_of(engine, images)
    assert answers.dtype == np.float32 and answers.shape == (100, 10)
    assert np.abs(answers - MNISTengine.reference_answers(net, images)).max() < 1e-4
    assert (engine.name, engine.device, engine.precision) == (name, "cpu", "fp32")
    assert engine.detail
    engine.close()


@pytest.mark.gpu
@pytest.mark.parametrize("batch_size", [1, 64])
@pytest.mark.parametrize("name", [name for name in QUICK if name != "tensorrt"  # see test_gpu.py
                                  and "cuda" in MNISTengine.ENGINES[name].precisions])
def test_every_engine_of_the_gpu_answers_as_the_reference(net, images, name, batch_size):
    engine = open_or_skip(name, net, "cuda", batch_size=batch_size)
    reference = MNISTengine.reference_answers(net, images)
    assert np.abs(answers_of(engine, images) - reference).max() < TOLERANCE["fp32"]
    engine.compute(engine.prepare(images[:batch_size]))
    engine.synchronise()
    assert np.abs(answers_of(engine, images) - reference).max() < TOLERANCE["fp32"]
    engine.close()


@pytest.mark.slow
def test_torch_compile_answers_as_the_reference(net, images):
    engine = open_or_skip("torch-compile", net, "cpu")
    reference = MNISTengine.reference_answers(net, images)
    assert np.abs(answers_of(engine, images) - reference).max() < 1e-4
    assert engine.prepare(images[:3]).shape == (64, 1, 28, 28)


def test_reference_is_the_plain_network(net, images):
    with torch.no_grad():
        x = torch.from_numpy(images[:, None] / 255).float()
        plain = net((x - 0.1307) / 0.3081).numpy()
    assert np.abs(MNISTengine.reference_answers(net, images) - plain).max() < 1e-4


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_compute_runs_on_what_was_prepared(net, images, name):
    engine = open_or_skip(name, net, "cpu")
    engine(images[:64])
    engine.compute(engine.prepare(images[36:]))
    engine.synchronise()
    reference = MNISTengine.reference_answers(net, images[36:])
    assert np.abs(engine.log_probs - reference).max() < 1e-4


def test_a_short_batch_is_unaffected_by_what_the_buffer_held(net, images):
    for name in ("onnxruntime", "openvino"):
        engine = open_or_skip(name, net, "cpu")
        engine(images[:64])
        short = engine(images[:3])
        assert short.shape == (3, 10)
        assert np.abs(short - MNISTengine.reference_answers(net, images[:3])).max() < 1e-4


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_onnxruntime_on_another_provider_is_refused(net, monkeypatch):
    open_or_skip("onnxruntime", net, "cpu")
    monkeypatch.setitem(MNISTruntimes.OnnxRuntimeEngine.PROVIDERS, "cpu", ("AzureProvider", {}))
    with pytest.raises(UnavailableError, match="uses CPUExecutionProvider in place of Azure"):
        MNISTengine.open_engine("onnxruntime", net)


def test_usual_loop_reads_the_digits_it_is_given(net, images):
    engine = open_or_skip("usual-loop", net, "cpu", batch_size=64)
    loop = list(engine.loop(images))
    assert [len(answers) for answers in loop] == [64, 36]
    reference = MNISTengine.reference_answers(net, images)
    assert np.abs(np.concatenate(loop) - reference).max() < 1e-4


def test_a_missing_package_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert "openvino" in MNISTengine.why_not("openvino")
    assert package_missing("no_such_package") == \
        "no_such_package is not installed; pip install no_such_package"


def test_registry_is_complete():
    for name, kind in MNISTengine.ENGINES.items():
        assert kind.name == name and set(kind.precisions) <= {"cpu", "cuda"}
        assert all(precisions[0] == "fp32" and set(precisions) <= set(PRECISIONS)
                   for precisions in kind.precisions.values())
        assert callable(kind.missing) and callable(kind.open)


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
