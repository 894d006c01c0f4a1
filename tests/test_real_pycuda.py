"""The real pycuda on the whole way of `PycudaMemory`, threads and contexts included, over a CUDA
driver without a GPU (fake_libcuda.c). `make test-tensorrt` builds both."""

import os
import subprocess
import sys

import pytest
import real_pycuda
import real_tensorrt

WHY_NOT = real_tensorrt.why_not("pycuda")
pytestmark = [pytest.mark.bindings,
              pytest.mark.skipif(WHY_NOT is not None, reason=f"pycuda: {WHY_NOT}")]


@pytest.fixture(scope="session", autouse=True)
def driver():
    real_pycuda.make_driver(real_pycuda.extension())


START = """
import sys, threading
import numpy as np
import real_pycuda
from mnist.engines.cuda import PycudaMemory, choose_memory, find_gpu
driver = real_pycuda.load_driver()

def in_thread(function, *arguments):
    answers = []
    thread = threading.Thread(target=lambda: answers.append(
        (function(*arguments), driver.fake_depth())))
    thread.start()
    thread.join()
    (answer, depth), = answers  # fails here where the function failed
    assert depth == 0, "a context stays in a thread"
    return answer
"""


def run_on_pycuda(code, **settings):
    """Run Python code where `import pycuda` is the real one; gives what it printed."""
    done = subprocess.run([sys.executable, "-c", START + code], timeout=300, text=True,
                          capture_output=True, cwd=os.path.dirname(real_pycuda.HERE),
                          env=real_pycuda.environment(**settings))
    assert (done.returncode, done.stderr) == (0, "")  # pycuda's clean-up warns on stderr
    return done.stdout.strip()


def test_the_machine_as_pycuda_sees_it():
    assert run_on_pycuda("""
import mnist.machine
assert PycudaMemory.missing() is None
assert find_gpu() == ("Fake GPU", "5.3") and choose_memory() is PycudaMemory
record = mnist.machine.machine_record()
print(record["pycuda"], record["gpu"], record["compute_capability"])
""") == "2026.1 Fake GPU 5.3"


@pytest.mark.parametrize("settings, reason", [
    ({"FAKE_GPUS": "0"}, "pycuda sees no GPU"),
    ({"FAKE_INIT": "100"}, "pycuda sees no GPU (cuInit failed: no CUDA-capable device is detected"),
])
def test_what_is_missing_is_said(settings, reason):
    assert run_on_pycuda("""
import pycuda.driver, mnist.machine
print(PycudaMemory.missing())
assert mnist.machine.machine_record()["gpu"] is None
""", **settings).startswith(reason)


def test_copies_there_and_back():
    run_on_pycuda("""
memory = PycudaMemory()
there, back, buffer = memory.host((3, 4)), memory.host((3, 4)), memory.device((3, 4))
assert there.dtype == np.float32 and not there.any()
there[:] = np.arange(12).reshape(3, 4)
memory.upload(buffer, there)
memory.download(back, buffer)
assert not back.any()  # only started
memory.synchronise()
assert (back == there).all()
assert memory.address(buffer) == int(buffer) and memory.stream_handle
there = back = buffer = None
assert driver.fake_alive() == 4
memory.close()
assert (driver.fake_alive(), driver.fake_depth()) == (0, 0)
""")


def test_this_driver_refuses_what_needs_a_context():
    """Without this, the tests above would show nothing."""
    assert "invalid device context" in run_on_pycuda("""
import pycuda.driver as cuda
cuda.init()
try:
    cuda.mem_alloc(4)
except cuda.Error as error:
    print(error)
""")


def test_a_tensorrt_engine_on_the_real_pycuda():
    """The stand-in's engine, as it runs on a GPU, over pycuda's buffers, copies and stream."""
    assert run_on_pycuda("""
import fake_tensorrt, torch
from mnist.engines.registry import open_engine, reference_log_probs
from mnist.models.weights import Network
from MNISTmodel import Net
torch.set_num_threads(1)
device = real_pycuda.make_device()
sys.modules["tensorrt"] = fake_tensorrt.fake_tensorrt("8.2.1.9", device)
torch.manual_seed(0)
net = Net().eval()
net.fc2.weight.data.mul_(20)
digits = np.random.default_rng(0).integers(0, 256, (20, 1, 28, 28), np.uint8)

def open_one():
    return open_engine("tensorrt", Network(net), "cuda", "fp32", 16, memory="pycuda")

def answer(engine):
    return np.concatenate([engine(digits[:16]).copy(), engine(digits[16:]).copy()])

sys.stderr = open("/dev/null", "w")
engine = in_thread(open_one)
for answers in (in_thread(answer, engine), answer(engine)):
    expected = reference_log_probs(Network(net), digits)
    np.testing.assert_allclose(answers, expected, atol=1e-4, rtol=0)
print(engine.detail)
in_thread(engine.close)
assert (driver.fake_alive(), driver.fake_depth()) == (0, 0)
""") == "tensorrt 8.2.1.9, pycuda memory, no CUDA graph: pycuda has none"
