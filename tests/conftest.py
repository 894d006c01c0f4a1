"""What makes the tests say the same on any machine, and where they find real digits."""

import os
import signal
import struct

# One thread each, before any library starts its own: idle ones spin, on the others' cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

import numpy as np
import pytest
import scripts

import MNISTdsource
from mnist.datasets import fonts, idx
from mnist.files import ROOT

SHARED_DATA = os.path.join(os.path.dirname(ROOT), "shared", "data")


def interrupt(*_):
    raise KeyboardInterrupt


def pytest_configure(config):
    # In the background (nohup, many CI systems) Ctrl-C is ignored, and a program that is started
    # inherits that. It doesn't inherit a handler, even one that ignores Ctrl-C as well.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, lambda *_: None)
    # SIGTERM ends the tests as Ctrl-C does: with their fixtures' clearing up.
    signal.signal(signal.SIGTERM, interrupt)
    # A GPU is for the tests marked so, which run by themselves; the others say what a CPU answers.
    if config.getoption("markexpr") != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers():
    return os.cpu_count() + 1  # some always wait: for a server, for an end that is to be noticed


def pytest_collection_modifyitems(config, items):
    if config.getoption("markexpr") != "gpu":
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="make test-gpu runs it"))


@pytest.fixture(scope="session", autouse=True)
def fork_server():
    scripts.start_fork_server()


@pytest.fixture(autouse=True)
def no_child_outlives_its_test():
    """Kill what a test, even a failing one, leaves running of what it started."""
    before = scripts.children()
    yield
    scripts.end(scripts.children() - before)


@pytest.fixture(scope="session", autouse=True)
def real_mnist(small_mnist):
    """(folder of the real MNIST or None, which of its files isn't there).

    Where it is missing, those programs and tests that look for it without being told where find a
    few generated digits: nothing is downloaded.
    """
    folder = os.environ.get("MNIST_DATA") or MNISTdsource.DEFAULT_DATA_DIR
    for names in idx.MNIST_FILES.values():
        for name in names:
            if idx.find_file(folder, name) is None:
                os.environ["MNIST_DATA"] = str(small_mnist)
                return None, os.path.join(folder, name)
    return folder, None


@pytest.fixture(scope="session")
def mnist_dir(real_mnist):
    """The folder that holds the real MNIST, all four files."""
    folder, missing = real_mnist
    if missing:
        pytest.skip(f"no real MNIST: {missing} isn't there (set MNIST_DATA)")
    return folder


@pytest.fixture(scope="session")
def small_mnist(tmp_path_factory):
    """A folder of few digits in MNIST's files: 1,000 to train on, 300 to test on, generated."""
    return write_mnist(tmp_path_factory.mktemp("small_mnist"), *(
        fonts.generated_digits(count, seed=count) for count in (1000, 300)))


def idx_bytes(array):
    """An IDX file that holds `array`, of any of its types."""
    codes = {"uint8": 0x08, "int8": 0x09, "int16": 0x0B, "int32": 0x0C, "float32": 0x0D,
             "float64": 0x0E}
    return struct.pack(f">{1 + array.ndim}I", codes[array.dtype.name] << 8 | array.ndim,
                       *array.shape) + array.astype(array.dtype.newbyteorder(">")).tobytes()


def write_mnist(folder, training, test):
    """Write (images, labels) of both splits as MNIST's files; gives the folder."""
    for names, (images, targets) in zip(idx.MNIST_FILES.values(), (training, test)):
        for name, array in zip(names, (images[:, 0], targets.astype(np.uint8))):
            (folder / name).write_bytes(idx_bytes(array))
    return folder


@pytest.fixture(scope="session")
def pen_digits():
    """Digits drawn with a pen: a list of (strokes, label), a stroke an int16 array (points, 2).

    x goes right and y down; each digit spans 0 to 1000 along its longer side.
    """
    folder = os.environ.get("PEN_DIGITS") or os.path.join(SHARED_DATA, "pen_digits")
    path = os.path.join(folder, "pen_digits.npz")
    if not os.path.isfile(path):
        pytest.skip(f"no pen digits: {path} isn't there (set PEN_DIGITS)")
    with np.load(path) as arrays:
        strokes = np.split(arrays["points"], np.cumsum(arrays["stroke_lengths"])[:-1])
        ends = np.cumsum(arrays["strokes_per_digit"])
        starts = ends - arrays["strokes_per_digit"]
        return [(strokes[start:end], int(label))
                for start, end, label in zip(starts, ends, arrays["labels"])]


@pytest.fixture
def half_precision(request):
    """Skip a test of fp16 where torch can't export it: the older ones compute it on CUDA only."""
    import torch
    callspec = getattr(request.node, "callspec", None)
    if callspec is None or callspec.params.get("precision", "fp16") == "fp16":
        try:
            torch.nn.Conv2d(1, 1, 1).half()(torch.zeros(1, 1, 1, 1).half())
        except RuntimeError:
            if not torch.cuda.is_available():
                pytest.skip("this torch computes float16 on a CUDA GPU only")


@pytest.fixture
def net():
    """A network of fixed random weights whose answers differ much from image to image."""
    import torch

    from MNISTmodel import Net
    torch.manual_seed(0)
    net = Net().eval()
    net.fc2.weight.data.mul_(20)
    return net


@pytest.fixture
def digits():
    """Random grey levels in the shape of 144 digits, uint8 (144, 1, 28, 28)."""
    return np.random.default_rng(0).integers(0, 256, (144, 1, 28, 28), np.uint8)


@pytest.fixture(scope="session")
def server():
    """A running ServeMNIST.py, one for all tests."""
    for name in ("httptools", "orjson", "prometheus_client"):
        pytest.importorskip(name, reason=f"{name} isn't installed; requirements/serve.txt has it")
    from serving import serving
    with serving() as running:
        yield running
        status, _, err = running.stop()
        assert (status, err) == (0, "")  # whatever the tests did to it
