"""The real pycuda over a CUDA driver without a GPU.

    python tests/real_pycuda.py            builds it, where it isn't there yet, in .venv-tensorrt/

pycuda is built from its source with CUDA's headers from PyPI, and linked against the libcuda of
fake_libcuda.c, which keeps memory, streams and contexts in host memory. It takes two minutes.
"""

import ctypes
import os
import re
import shutil
import sys
import tarfile

from real_tensorrt import CACHE, HERE, PROJECT, fetch_or_say, install, run

FOLDER = os.path.join(CACHE, "pycuda")
DRIVER = os.path.join(FOLDER, "driver")
PYCUDA = "pycuda==2026.1"
HEADERS = ("nvidia-cuda-runtime==13.5.37", "nvidia-cuda-profiler-api==13.5.25")

# pycuda's build settings, as its siteconf.py
SETTINGS = """
CUDA_ROOT = {cuda!r}
CUDADRV_LIB_DIR = [{driver!r}]
CUDA_ENABLE_CURAND = False
"""


def make_driver(extension=None):
    """Compile libcuda.so.1, with every function that pycuda's extension asks for."""
    if shutil.which("gcc") is None or shutil.which("nm") is None:
        raise RuntimeError("no gcc or no nm here")
    os.makedirs(DRIVER, exist_ok=True)
    with open(os.path.join(HERE, "fake_libcuda.c")) as file:
        source = file.read()
    if extension:
        wanted = re.findall(r" U (cu\w+)$", run("nm", "-D", "--undefined-only", extension), re.M)
        source += "".join(f"NOT_SUPPORTED({name})\n" for name in wanted
                          if not re.search(rf"^int {name}\(", source, re.M))
    path = os.path.join(DRIVER, "libcuda.c")
    with open(path, "w") as file:
        file.write(source)
    run("gcc", "-shared", "-fPIC", "-O1", "-Wl,-soname,libcuda.so.1",
        "-o", os.path.join(DRIVER, "libcuda.so.1"), path)
    shutil.copy(os.path.join(DRIVER, "libcuda.so.1"), os.path.join(DRIVER, "libcuda.so"))


def extension():
    """pycuda's compiled module."""
    name, = (name for name in os.listdir(os.path.join(FOLDER, "pycuda"))
             if name.startswith("_driver"))
    return os.path.join(FOLDER, "pycuda", name)


def fetch():
    """Build pycuda once, and the driver every time, as that is ours."""
    if not os.path.exists(os.path.join(FOLDER, "ready")):
        shutil.rmtree(FOLDER, ignore_errors=True)
        make_driver()
        cuda, sources = os.path.join(FOLDER, "cuda"), os.path.join(FOLDER, "source")
        install(cuda, *HEADERS)
        run(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
            "--target", FOLDER, "pytools", "mako", "platformdirs")
        run(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check",
            "--no-deps", "--no-binary", ":all:", "--no-build-isolation", "-d", sources, PYCUDA)
        archive, = os.listdir(sources)
        with tarfile.open(os.path.join(sources, archive)) as file:
            file.extractall(sources)
        source = os.path.join(sources, archive[:-len(".tar.gz")])
        root, = (folder for folder, folders, _ in os.walk(cuda) if "include" in folders)
        with open(os.path.join(source, "siteconf.py"), "w") as file:
            file.write(SETTINGS.format(cuda=root, driver=DRIVER))
        run(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
            "--no-build-isolation", "--no-deps", "--target", FOLDER, source,
            env=dict(os.environ, PYTHONPATH=FOLDER))
        open(os.path.join(FOLDER, "ready"), "w").close()
    make_driver(extension())


def environment(**settings):
    """The environment in which `import pycuda` finds this one and its driver."""
    return dict(os.environ, PYTHONPATH=os.pathsep.join((FOLDER, PROJECT, HERE)),
                LD_LIBRARY_PATH=DRIVER,
                PYTHONWARNINGS="ignore::UserWarning:torch.cuda",  # this driver isn't enough for it
                **settings)


def load_driver():
    """The driver that pycuda uses, in a process that `environment` started."""
    driver = ctypes.CDLL("libcuda.so.1")
    driver.fake_memory.restype = ctypes.c_void_p
    driver.fake_memory.argtypes = ctypes.c_uint64, ctypes.c_size_t
    driver.cuLaunchHostFunc.argtypes = ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p
    return driver


def make_device():
    """The `Device` of the stand-in for TensorRT, in the memory and on the streams of the driver."""
    import fake_tensorrt
    import numpy as np
    driver, kept = load_driver(), []

    class Stream:
        captured = None

        def __init__(self, handle):
            self.handle = handle

        def start(self, action):
            function = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: action())
            kept.append(function)
            assert driver.cuLaunchHostFunc(self.handle, function, None) == 0

    class Streams:
        __getitem__ = staticmethod(Stream)

    class Device(fake_tensorrt.Device):
        def read(self, address, shape):
            memory = driver.fake_memory(address, 4 * int(np.prod(shape)))
            floats = ctypes.cast(memory, ctypes.POINTER(ctypes.c_float))
            return np.ctypeslib.as_array(floats, shape)

    device = Device()
    device.streams = Streams()
    return device


if __name__ == "__main__":
    fetch_or_say("pycuda", fetch)
