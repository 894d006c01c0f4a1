"""TensorRT engines: real ones built by TensorRT-RTX, which needs no GPU for that; and the runner
against a stand-in for each generation of the API (see fake_tensorrt.py)."""

import concurrent.futures
import functools
import json
import os
import sys

import fake_tensorrt
import numpy as np
import pytest
import torch
from fake_tensorrt import Device, fake_pycuda, fake_torch
from scripts import refused

import InfMNISTcudaRT
import mnist.engines.trt
import mnist.models.weights
from mnist.datasets.image_set import MNIST
from mnist.engines import trt_cache
from mnist.engines.onnx_export import onnx_bytes
from mnist.engines.registry import ENGINES, reference_log_probs
from mnist.engines.trt import load_engine, process_log, tensorrt_missing
from mnist.engines.trt_cache import EngineFile, cached_engine, engine_from_file
from mnist.errors import MNISTError, UnavailableError
from mnist.files import save_json
from mnist.models.weights import Network, load_network, save_weights
from MNISTdsource import Images, calibration_images
from MNISTmodel import Net

FP16_TOLERANCE = 0.1


@pytest.fixture(autouse=True)
def one_thread():
    """Small networks in many calls: threads would only wait for each other on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


calibration = functools.partial(calibration_images, MNIST)


def kept(net, stem):
    """A network whose engines are kept beside `stem`.pth."""
    return Network(net, path=stem + ".pth")


@pytest.fixture
def stem(tmp_path):
    return str(tmp_path / "NetMNIST")


# --- Real engines, built by TensorRT-RTX ---------------------------------------------------------


@pytest.fixture
def rtx(monkeypatch):
    trt = pytest.importorskip("tensorrt_rtx", reason="pip install tensorrt-rtx builds real engines")
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # the flavour under test, whatever is here
    return trt


@pytest.mark.usefixtures("half_precision")
@pytest.mark.parametrize("name, batches", [
    ("net", (1, 1)), ("net", (64, 64)), ("net", (1, 64)), ("small", (1, 64)), ("lenet5", (1, 1))])
@pytest.mark.parametrize("precision", ENGINES["tensorrt"].precisions["cuda"])
def test_real_engine(rtx, name, stem, capsys, precision, batches):
    net = load_network(network=name).net
    engine_file = EngineFile(kept(net, stem), precision, batches, calibration)
    plan = engine_file.build()
    assert engine_file.read() == plan
    with open(engine_file.path, "rb") as file:
        assert file.read() == plan  # raw, as trtexec wants it
    assert plan[1:4] == b"trt" and b"image" in plan and b"log_probs" in plan
    weights = sum(tensor.nelement() for tensor in net.parameters())
    bytes_each = {"int8": 1, "fp16": 2, "bf16": 2}.get(precision, 4)
    assert bytes_each * weights < len(plan) < bytes_each * weights + 3e6
    said = capsys.readouterr().err
    assert "may take minutes" in said and "built in" in said
    # ONNX Runtime on a CPU runs neither bfloat16 nor TensorRT's form of int8.
    assert ("ONNX checker" if precision in ("bf16", "int8") else "ONNX Runtime") in said

    # Without a driver a whole engine fails for that alone, a damaged one for what it is.
    runtime = rtx.Runtime(process_log(rtx))
    size = runtime.engine_header_size
    _, sound = runtime.get_engine_validity(plan[:size])
    _, broken = runtime.get_engine_validity(plan[1:size] + b"?")
    assert sound == 0 != broken
    if torch.cuda.is_available():
        assert load_engine(rtx, plan, MNIST).batches == batches
    else:
        with pytest.raises(MNISTError, match="can't load the engine .*CUDA driver"):
            load_engine(rtx, plan, MNIST)


def test_real_loader_refuses_what_is_no_engine(rtx, net, stem):
    engine_file = EngineFile(kept(net, stem), "fp32", (1, 1), calibration)
    plan = engine_file.build()
    for damaged, words in ((plan[:1000], "plan.header.size"), (b"garbage" * 99, "magicTag"),
                           (engine_file.graph, "magicTag"), (b"", "can't load the engine")):
        with pytest.raises(MNISTError, match=words):
            load_engine(rtx, damaged, MNIST)


def test_real_parser_errors_are_quoted(rtx):
    with pytest.raises(MNISTError, match="can't read the ONNX graph:\n.*Failed to parse"):
        mnist.engines.trt.build_engine(rtx, b"no graph at all", "fp32", (1, 1))


# --- The cache -----------------------------------------------------------------------------------

def test_every_field_of_the_record_is_believed_only_as_wanted(rtx, net, stem, capsys):
    engine_file = EngineFile(kept(net, stem), "fp32", (1, 1), calibration)
    engine_file.build()
    with open(engine_file.path + ".json") as file:
        record = json.load(file)
    assert len(record) == 11
    for field in set(record) - {"build_seconds"}:  # a measurement, which nothing can contradict
        for value in (record[field], "another"):
            save_json(engine_file.path + ".json", {**record, field: value})
            capsys.readouterr()
            assert (engine_file.read() is None) == (value == "another")
            assert (f"its {field} is another" in capsys.readouterr().err) == (value == "another")


def test_other_weights_are_another_engine(rtx, net, stem, capsys):
    EngineFile(kept(net, stem), "fp32", (1, 1), calibration).build()
    net.conv2.bias.data[0] += 1e-3
    assert EngineFile(kept(net, stem), "fp32", (1, 1), calibration).read() is None
    assert "weights_sha256" in capsys.readouterr().err


def test_what_was_built_without_a_gpu_serves_any_where_it_can(rtx, net, stem, monkeypatch):
    """TensorRT-RTX compiles for the GPU when an engine first runs."""
    monkeypatch.setattr(trt_cache, "find_gpu", lambda: (None, None))
    plan = EngineFile(kept(net, stem), "fp32", (1, 1), calibration).build()
    monkeypatch.setattr(trt_cache, "find_gpu", lambda: ("GeForce RTX 4090", "8.9"))
    assert EngineFile(kept(net, stem), "fp32", (1, 1), calibration).read() == plan


def test_what_was_built_for_one_gpu_serves_no_other(machine, net, stem, monkeypatch, capsys):
    machine.install("10.3.0")
    plan = EngineFile(kept(net, stem), "fp32", (1, 1), calibration).build()
    assert EngineFile(kept(net, stem), "fp32", (1, 1), calibration).read() == plan
    monkeypatch.setattr(trt_cache, "find_gpu", lambda: ("GeForce RTX 4090", "8.9"))
    assert EngineFile(kept(net, stem), "fp32", (1, 1), calibration).read() is None
    assert "its gpu is NVIDIA Tegra X1, wanted is GeForce RTX 4090" in capsys.readouterr().err


@pytest.mark.parametrize("end, content, words", [
    ("", b"damaged", "engine_sha256"), (".json", None, "no readable record"),
    (".json", b"{}", "its record lacks weights_sha256"), (".json", b"1", "no readable record"),
    (".json", b"\xff\xfe", "no readable record")])
def test_what_is_damaged_is_not_used(rtx, net, stem, capsys, end, content, words):
    engine_file = EngineFile(kept(net, stem), "fp32", (1, 1), calibration)
    engine_file.build()
    os.remove(engine_file.path + end)
    if content is not None:
        with open(engine_file.path + end, "wb") as file:
            file.write(content)
    assert engine_file.read() is None
    assert words in capsys.readouterr().err


# --- The runner against stand-ins ----------------------------------------------------------------

class Machine:
    """A machine with a (stand-in) GPU and a TensorRT of some version."""

    def __init__(self, monkeypatch):
        self.monkeypatch, self.device = monkeypatch, Device()

    def install(self, version, name="tensorrt", memory="pycuda", **torch_settings):
        trt = fake_tensorrt.fake_tensorrt(version, self.device, name)
        modules = {"tensorrt": None, name: trt}
        if memory == "pycuda":
            modules.update(fake_pycuda(self.device))
        else:
            onnx_bytes(Network(Net()))  # torch imports its exporter late: while it is still torch
            modules.update({"pycuda": None, "torch": fake_torch(self.device, **torch_settings)})
        for name, module in modules.items():
            self.monkeypatch.setitem(sys.modules, name, module)
        return trt


@pytest.fixture
def machine(monkeypatch):
    return Machine(monkeypatch)


def check_answers(engine, net, digits, tolerance=1e-4):
    """All of the digits go through, a short batch last, and each answer is its digit's own."""
    expected = reference_log_probs(Network(net), digits)
    for start in range(0, len(digits), engine.batch_size):
        batch = digits[start:start + engine.batch_size]
        got = engine(batch)
        assert got.shape == (len(batch), 10) and got.dtype == np.float32
        np.testing.assert_allclose(got, expected[start:start + len(batch)], atol=tolerance, rtol=0)


# One of each way to call TensorRT; test_real_tensorrt.py has more.
GENERATIONS = ("8.2.1.9", "8.4.1.5", "8.6.1", "10.3.0", "11.4.0.106")
FLAVOURS = [(version, "tensorrt") for version in GENERATIONS] + [("11.4.0.106", "tensorrt_rtx")]


@pytest.mark.parametrize("batch_size, batches", [(1, None), (64, (1, 64))])
@pytest.mark.parametrize("version, name", FLAVOURS)
def test_every_generation_answers_right(machine, net, digits, stem, version, name, batch_size,
                                        batches):
    machine.install(version, name)
    count = 144 if batch_size > 1 else 5
    engine = cached_engine(kept(net, stem), "cuda", "fp32", batch_size, batches=batches)
    check_answers(engine, net, digits[:count])
    call = "execute_async_v2" if version.startswith(("8.2", "8.4")) else "execute_async_v3"
    assert set(machine.device.calls) == {call}
    assert engine.detail == f"{name} {version}, pycuda memory, no CUDA graph: pycuda has none"
    assert (engine.name, engine.device, engine.precision) == ("tensorrt", "cuda", "fp32")
    engine.close()


@pytest.mark.parametrize("version, name", FLAVOURS)
def test_every_generation_in_half_precision(machine, net, digits, stem, version, name, request):
    trt = machine.install(version, name)
    if not hasattr(trt.BuilderFlag, "FP16"):
        request.getfixturevalue("half_precision")
    engine = cached_engine(kept(net, stem), "cuda", "fp16", 64)
    check_answers(engine, net, digits, FP16_TOLERANCE)
    rounded = np.abs(engine(digits[:64]) - reference_log_probs(Network(net), digits[:64])).max()
    assert rounded > 1e-4  # it did compute in half precision
    assert os.path.exists(stem + ".onnx") == hasattr(trt.BuilderFlag, "FP16")
    assert os.path.exists(stem + "-fp16.onnx") == (not hasattr(trt.BuilderFlag, "FP16"))


@pytest.mark.parametrize("graphs", [True, False])
@pytest.mark.parametrize("version", ["8.2.1.9", "10.3.0"])
def test_through_torch_with_and_without_a_cuda_graph(machine, net, digits, stem, version, graphs):
    expected = reference_log_probs(Network(net), digits[:64])
    machine.install(version, memory="torch", graphs=graphs)
    engine = cached_engine(kept(net, stem), "cuda", "fp32", 64, memory="torch")
    assert machine.device.calls == []  # the first call is the user's
    engine(digits[:64])
    calls = len(machine.device.calls)
    for start in (0, 16):
        np.testing.assert_allclose(engine(digits[start:64]), expected[start:], atol=1e-4, rtol=0)
    # a graph replays what was captured; without one TensorRT is called each time
    assert len(machine.device.calls) == calls + (0 if graphs else 2)
    assert ("no CUDA graph: CUDA graphs may only" in engine.detail) == (not graphs)


@pytest.mark.parametrize("memory", ["pycuda", "torch"])
def test_compute_alone_runs_on_what_was_prepared(machine, net, digits, stem, memory):
    expected = reference_log_probs(Network(net), digits[:3])
    machine.install("10.3.0", memory=memory)
    engine = cached_engine(kept(net, stem), "cuda", "fp32", 3)
    x = engine.prepare(digits[:3])
    engine.pixels[:] = 0  # compute must not copy again
    engine.compute(x)
    engine.synchronise()
    answer = machine.device.read(engine.memory.address(engine.device_log_probs), (3, 10))
    np.testing.assert_allclose(answer, expected, atol=1e-4, rtol=0)


def test_flags_only_where_asked(machine, net):
    trt = machine.install("10.3.0")
    graph = onnx_bytes(Network(net))
    for precision, flags in (("fp32", []), ("tf32", ["TF32"]), ("fp16", ["FP16"]),
                             ("bf16", ["BF16"]), ("int8", ["INT8"])):
        plan = mnist.engines.trt.build_engine(trt, graph, precision, (1, 1))
        assert fake_tensorrt.pickle.loads(plan[4:])["flags"] == flags


def test_a_precision_that_a_version_lacks_is_refused(machine, net):
    trt = machine.install("8.6.1")
    assert tensorrt_missing("cuda", "bf16") == "tensorrt 8.6.1 has no bf16; newer ones have"
    with pytest.raises(UnavailableError, match="8.6.1 has no bf16"):
        mnist.engines.trt.build_engine(trt, onnx_bytes(Network(net)), "bf16", (1, 1))
    for version in ("10.3.0", "11.4.0.106"):
        machine.install(version)
        assert tensorrt_missing("cuda", "bf16") is None


@pytest.mark.parametrize("precision", ["tf32", "int8"])
@pytest.mark.parametrize("version", ["8.2.1.9", "10.3.0"])
def test_a_precision_that_a_gpu_lacks_is_refused(machine, net, version, precision):
    """As int8 on a Jetson Nano, which would be slower than fp16 there, without a word."""
    trt = machine.install(version)
    machine.device.failing.add(precision)
    with pytest.raises(UnavailableError, match=f"this GPU has no {precision}"):
        mnist.engines.trt.build_engine(trt, onnx_bytes(Network(net)), precision, (1, 1))


def test_torch_manages_memory_where_both_can(machine, net, digits, stem):
    """It alone has CUDA graphs."""
    machine.install("10.3.0", memory="torch")
    for name, module in fake_pycuda(machine.device).items():
        machine.monkeypatch.setitem(sys.modules, name, module)
    engine = cached_engine(kept(net, stem), "cuda", "fp32", 1)
    engine(digits[:1])
    assert engine.detail == "tensorrt 10.3.0, torch memory, CUDA graph"
    engine = cached_engine(kept(net, stem), "cuda", "fp32", 1, memory="pycuda")
    assert engine.detail == "tensorrt 10.3.0, pycuda memory"


def in_thread(function, *arguments):
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return pool.submit(function, *arguments).result()


def test_pycuda_whatever_thread_calls(machine, net, digits, stem):
    """Opened, used and closed in threads of their own, as a window's worker may."""
    machine.install("10.3.0")
    engine = in_thread(lambda: cached_engine(kept(net, stem), "cuda", "fp32", 64))
    in_thread(check_answers, engine, net, digits)
    check_answers(engine, net, digits)
    in_thread(engine.close)
    assert machine.device.leaked == []  # all given back in a context


def test_an_engine_in_the_cache_is_not_built_again(machine, net, digits, stem, capsys):
    machine.install("8.2.1.9")
    cached_engine(kept(net, stem), "cuda", "fp32", 1)
    machine.device.failing.add("build")
    check_answers(cached_engine(kept(net, stem), "cuda", "fp32", 1), net, digits[:3])
    with pytest.raises(MNISTError, match="built no engine: Could not find any implementation"):
        cached_engine(kept(net, stem), "cuda", "fp32", 1, rebuild=True)
    with open(stem + ".rt.json") as file:
        record = json.load(file)
    assert (record["gpu"], record["compute_capability"]) == ("NVIDIA Tegra X1", "5.3")


def test_an_engine_that_does_not_load_is_built_again(machine, net, digits, stem, capsys,
                                                     monkeypatch):
    machine.install("10.3.0")
    with monkeypatch.context() as patch:
        patch.setattr("mnist.engines.trt_cache.build_engine", lambda *_: b"of another driver")
        EngineFile(kept(net, stem), "fp32", (1, 1)).build()
    check_answers(cached_engine(kept(net, stem), "cuda", "fp32", 1), net, digits[:3])
    said = capsys.readouterr().err
    assert "is built anew" in said and "Magic tag does not match" in said


def test_a_folder_that_cannot_be_written_is_a_warning(machine, net, digits, tmp_path, capsys):
    machine.install("10.3.0")
    stem = str(tmp_path / "missing" / "NetMNIST")
    check_answers(cached_engine(kept(net, stem), "cuda", "fp32", 1), net, digits[:3])
    assert "warning: can't write" in capsys.readouterr().err


@pytest.mark.parametrize("failing, words", [
    ("builder", "can't build here: CUDA initialization failure"),
    ("parse", "can't read the ONNX graph:\nIn node 3"),
    ("build", "built no engine: Could not find any implementation"),
    ("runtime", "can't run here: CUDA initialization failure"),
    ("address", "TensorRT refused a buffer"),
    ("load", "can't load the engine .*: Version tag does not match"),
    ("context", "TensorRT can't run the engine"),
    ("execute", "TensorRT refused to run the engine: Cuda failure: out of memory"),
    ("shape", "TensorRT refused batch 1: Static dimension mismatch"),
])
@pytest.mark.parametrize("version", ["8.2.1.9", "10.3.0"])
def test_what_tensorrt_refuses_is_quoted(machine, net, digits, stem, version, failing, words):
    """Also up to 8.4.0, where the first logger of a process stays the only one."""
    if failing == "address" and version == "8.2.1.9":
        pytest.skip("takes addresses with the call")
    machine.install(version)
    machine.device.failing.add(failing)
    with pytest.raises(MNISTError, match=words):
        cached_engine(kept(net, stem), "cuda", "fp32", 1, batches=(1, 64))(digits[:1])


def test_engine_files_built_elsewhere(machine, net, digits, stem):
    machine.install("10.3.0")
    cached_engine(kept(net, stem), "cuda", "fp32", 64, batches=(16, 64))
    path = stem + "-b16to64.rt"
    engine = engine_from_file(path, MNIST)
    assert engine.batch_size == 64
    check_answers(engine, net, digits)
    assert engine_from_file(path, MNIST, batch_size=16).batch_size == 16
    with pytest.raises(UnavailableError, match="takes batches of 16 to 64, not 1"):
        engine_from_file(path, MNIST, batch_size=1)
    with pytest.raises(UnavailableError, match="can't read"):
        engine_from_file(stem + "-none.rt", MNIST)
    with pytest.raises(MNISTError, match="Magic tag"):
        engine_from_file(stem + ".onnx", MNIST)


@pytest.mark.parametrize("other", ["network", "dtype"])
@pytest.mark.parametrize("version", ["8.2.1.9", "10.3.0"])
def test_an_engine_of_another_network_is_refused(machine, net, stem, version, other):
    """Another shape, or another type, of the engine's tensors."""
    machine.install(version)
    cached_engine(kept(net, stem), "cuda", "fp32", 1)
    engine_from_file(stem + ".rt", MNIST)
    machine.device.failing.add(other)
    with pytest.raises(MNISTError, match="isn't one of mnist"):
        engine_from_file(stem + ".rt", MNIST)


def test_what_is_missing_is_said(monkeypatch):
    for module in ("tensorrt", "tensorrt_rtx", "pycuda"):
        monkeypatch.setitem(sys.modules, module, None)
    assert "pip install tensorrt" in tensorrt_missing()
    monkeypatch.setattr(os.path, "exists", lambda path: path == "/etc/nv_tegra_release")
    assert "apt install python3-libnvinfer" in tensorrt_missing()
    assert "--system-site-packages" in tensorrt_missing()


def test_a_broken_tensorrt_is_not_called_missing(monkeypatch, tmp_path):
    (tmp_path / "tensorrt.py").write_text("raise ImportError('libnvinfer.so.10: no such file')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    assert "libnvinfer.so.10: no such file" in tensorrt_missing()


# --- The program ---------------------------------------------------------------------------------

@pytest.fixture
def program(machine, net, digits, stem, monkeypatch):
    """Run InfMNISTcudaRT.py's main in this process, on the stand-ins."""
    save_weights(net, stem + ".pth")
    labels = reference_log_probs(Network(net), digits).argmax(1).astype(np.uint8)
    labels[0] = (labels[0] + 1) % 10
    monkeypatch.setattr("MNISTdsource.load_images", lambda *_, **__: Images(
        digits, labels.astype(np.int64), None, "noise", "digest of noise"))
    once = {"calls": 1, "seconds": 0}
    monkeypatch.setattr("mnist.bench.stopwatch.WARM_UP", {"cuda": once})
    monkeypatch.setattr("mnist.bench.stopwatch.TURN_WARM_UP", {"cuda": once})

    def run_main(*arguments):
        monkeypatch.setattr(sys, "argv", ["InfMNISTcudaRT.py", "--weights", stem + ".pth",
                                          *map(str, arguments)])
        if "--build-only" not in arguments:
            sys.argv += ["--repeat", "1"]
        return InfMNISTcudaRT.main()
    return run_main


@pytest.mark.parametrize("version, name", [("8.2.1.9", "tensorrt"), ("10.3.0", "tensorrt"),
                                           ("11.4.0.106", "tensorrt_rtx")])
def test_program(program, machine, tmp_path, capsys, version, name, request):
    if not hasattr(machine.install(version, name).BuilderFlag, "FP16"):
        request.getfixturevalue("half_precision")
    record_path = tmp_path / "record.json"
    assert program("--precision", "fp32", "fp16", "--json", record_path) == 0
    rows = json.loads(record_path.read_text())["rows"]
    assert [(row["precision"], row["batch_size"]) for row in rows] == [
        ("fp32", 1), ("fp32", 64), ("fp16", 1), ("fp16", 64)]
    for row in rows:
        assert (row["engine"], row["device"], row["status"]) == ("tensorrt", "cuda", "ok")
        assert row["images"] == 144
        # one label is wrong on purpose: 64 + 64 + 16 images count, not the padding
        assert row["accuracy"] == pytest.approx(143 / 144, abs=1 / 144 if row["precision"] == "fp16"
                                                else 1e-9)
    assert rows[1]["engine_file"] == "NetMNIST-b64.rt"
    out = capsys.readouterr().out
    tool = "trtexec" if name == "tensorrt" else "tensorrt_rtx"
    assert f"{tool} --loadEngine={tmp_path}/NetMNIST-b64.rt --shapes=image:64x1x28x28" in out
    assert {file.name for file in tmp_path.glob("*.rt")} == {
        "NetMNIST.rt", "NetMNIST-b64.rt", "NetMNIST-fp16.rt", "NetMNIST-b64-fp16.rt"}


def test_program_with_one_dynamic_engine(program, machine, tmp_path, capsys):
    machine.install("10.3.0")
    assert program("--dynamic", "--rebuild") == 0
    assert [file.name for file in tmp_path.glob("*.rt")] == ["NetMNIST-b1to64.rt"]
    assert capsys.readouterr().err.count("building") == 1


def test_program_with_an_engine_of_other_weights_says_wrong(program, machine, net, stem, capsys):
    machine.install("10.3.0")
    net.conv1.bias.data[3] += 1
    cached_engine(kept(net, stem), "cuda", "fp32", 64)
    assert program("--engine", stem + "-b64.rt") == 1
    assert "failed: WRONG: log-probabilities differ from" in capsys.readouterr().out


def test_program_builds_only(program, rtx, stem, capsys):
    assert not program("--build-only")
    assert not program("--build-only")
    assert capsys.readouterr().out.count("is up to date") == 2


def test_program_builds_only_but_cannot_save(program, rtx, stem, monkeypatch):
    monkeypatch.setattr(mnist.models.weights.Network, "stem", "/proc/none/NetMNIST")
    with pytest.raises(MNISTError, match="could not be saved"):
        program("--build-only")


def test_engines_of_two_weights_files_lie_side_by_side(program, machine, net, tmp_path, capsys):
    machine.install("10.3.0")
    for name in ("one", "two"):
        net.conv1.bias.data += 0.01
        save_weights(net, str(tmp_path / f"{name}.pth"))
    for _ in range(2):
        for name in ("one", "two"):
            program("--weights", tmp_path / f"{name}.pth", "--batch-size", 1, "--build-only")
    assert capsys.readouterr().err.count("building") == 2  # once each
    assert sorted(file.name for file in tmp_path.glob("*.[ro][tn]*")) == [
        "one.onnx", "one.rt", "one.rt.json", "two.onnx", "two.rt", "two.rt.json"]


@pytest.mark.parametrize("flags", [
    ("--engine", "x.rt", "--build-only"), ("--build-only", "--json", "r.json"),
    ("--build-only", "--repeat", 2), ("--build-only", "--memory", "torch")])
def test_program_refuses_what_has_no_effect(program, flags):
    with pytest.raises(SystemExit) as exit:
        program(*flags)
    assert exit.value.code == 2


def test_program_without_a_gpu(rtx, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    _, err = refused("InfMNISTcudaRT.py")
    assert "torch" in err and "--build-only" in err
