"""Stand-ins for TensorRT, pycuda and torch's CUDA, so that the runner runs where there is no GPU.

They are strict where the real ones are: a call that a version lacks isn't there, device memory is
reached by address only and holds NaN until something is copied into it, and what is started on a
stream happens when the stream is synchronised, not before. The engine computes the network's true
answers, so that a wrong offset, a forgotten copy or a missing wait shows as a wrong digit.
"""

import contextlib
import enum
import pickle
import types

import numpy as np
import onnx
import onnx.numpy_helper
import torch

from MNISTmodel import Net

# What a version has: (EXPLICIT_BATCH, BuilderFlag.FP16, set_memory_pool_limit, bindings, names)
GENERATIONS = {
    "8.2.1.9": (True, True, False, True, False),
    "8.4.1.5": (True, True, True, True, False),
    "8.6.1.6": (True, True, True, True, True),
    "10.3.0.26": (True, True, True, False, True),
    "11.4.1.17": (False, False, True, False, True),
}
TENSORS = ("image", "log_probs")


class Device:
    """A GPU: memory by address, streams by handle, and what shall go wrong (`failing`)."""

    def __init__(self):
        self.blocks, self.streams, self.failing = {}, {}, set()
        self.page_locked = []
        self.calls = []  # the names of TensorRT's calls that ran the engine

    def allocate(self, size):
        address = 0x1000 * (len(self.blocks) + 1) + sum(b.nbytes for b in self.blocks.values())
        self.blocks[address] = np.full(size // 4, np.nan, np.float32)
        return address

    def read(self, address, shape):
        """Device memory as a writable array; the block has to have exactly this size."""
        return self.blocks[address].reshape(shape)

    def lock_pages(self, shape):
        array = np.zeros(shape, np.float32)
        self.page_locked.append(array)
        return array

    def is_page_locked(self, array):
        return any(np.shares_memory(array, locked) for locked in self.page_locked)

    def copy_in(self, address, array, stream):
        assert self.is_page_locked(array), "an asynchronous copy needs page-locked memory"
        stream.start(lambda: np.copyto(self.read(address, array.shape), array))

    def copy_out(self, array, address, stream):
        assert self.is_page_locked(array), "an asynchronous copy needs page-locked memory"
        stream.start(lambda: np.copyto(array, self.read(address, array.shape)))


class Stream:
    """Work in order, done when it is waited for; while a graph is captured, only recorded."""

    def __init__(self, device):
        self.device, self.work, self.captured = device, [], None
        self.handle = self.cuda_stream = 0x7000 + len(device.streams)
        device.streams[self.handle] = self

    def start(self, action):
        (self.work if self.captured is None else self.captured).append(action)

    def synchronize(self):
        assert self.captured is None, "waiting breaks the capture of a graph"
        while self.work:
            self.work.pop(0)()


def fake_pycuda(device):
    """The modules `pycuda`, `pycuda.driver` and `pycuda.autoprimaryctx` over a `Device`."""
    class Buffer:
        def __init__(self, size):
            self.address = device.allocate(size)

        def __int__(self):
            return self.address

    class Gpu:
        count = staticmethod(lambda: 1)

        def __init__(self, number):
            assert number == 0

        def name(self):
            return "NVIDIA Tegra X1"

        def compute_capability(self):
            return 5, 3

    driver = types.ModuleType("pycuda.driver")
    driver.Error = type("Error", (Exception,), {})
    driver.init = lambda: None
    driver.Device = Gpu
    driver.Stream = lambda: Stream(device)
    driver.mem_alloc = Buffer
    driver.pagelocked_zeros = lambda shape, dtype: device.lock_pages(shape)
    driver.memcpy_htod_async = lambda to, array, stream: device.copy_in(int(to), array, stream)
    driver.memcpy_dtoh_async = lambda array, of, stream: device.copy_out(array, int(of), stream)
    pycuda = types.ModuleType("pycuda")
    pycuda.driver = driver
    return {"pycuda": pycuda, "pycuda.driver": driver,
            "pycuda.autoprimaryctx": types.ModuleType("pycuda.autoprimaryctx")}


def fake_torch(device, graphs=True):
    """As much of the module `torch` as GPU memory and CUDA graphs take, over a `Device`."""
    current = []

    class HostTensor:
        def __init__(self, array):
            self.array = array

        def numpy(self):
            return self.array

        def copy_(self, buffer, non_blocking):
            device.copy_out(self.array, buffer.data_ptr(), current[-1])

    class Buffer:
        def __init__(self, shape):
            self.address = device.allocate(int(np.prod(shape)) * 4)

        def data_ptr(self):
            return self.address

        def copy_(self, tensor, non_blocking):
            device.copy_in(self.address, tensor.array, current[-1])

    class Graph:
        def __init__(self):
            if not graphs:
                raise RuntimeError("CUDA graphs may only be used in Pytorch built with CUDA >= 11")

        def replay(self):
            for action in self.actions:
                current[-1].start(action)

    @contextlib.contextmanager
    def use_stream(stream):
        current.append(stream)
        yield
        current.pop()

    @contextlib.contextmanager
    def capture(graph, stream):
        assert not stream.work, "the engine has to have run before it is captured"
        stream.captured = graph.actions = []
        try:
            with use_stream(stream):
                yield
        finally:
            stream.captured = None

    def zeros(shape, dtype, pin_memory):
        assert pin_memory
        return HostTensor(device.lock_pages(shape))

    module = types.ModuleType("torch")
    module.float32 = np.float32
    module.zeros = zeros
    module.empty = lambda shape, dtype, device: Buffer(shape)
    module.from_numpy = HostTensor
    module.version = types.SimpleNamespace(cuda="12.6")
    module.cuda = types.SimpleNamespace(
        is_available=lambda: True, Stream=lambda: Stream(device), stream=use_stream,
        CUDAGraph=Graph, graph=capture, get_device_name=lambda number: "NVIDIA Orin",
        get_device_capability=lambda number: (8, 7))
    return module


class Enum(enum.Enum):
    """Like pybind11's enumerations: no number, but `int()` gives one."""

    def __int__(self):
        return self.value


def fake_tensorrt(version, device, name="tensorrt"):
    """A module like TensorRT of `version` (one of GENERATIONS) over a `Device`."""
    explicit_batch, fp16_flag, pool_limit, bindings, names = GENERATIONS[version]
    is_rtx = name == "tensorrt_rtx"
    trt = types.ModuleType(name)
    trt.__version__ = version
    trt.DataType = Enum("DataType", "FLOAT HALF", start=0)
    trt.TensorIOMode = Enum("TensorIOMode", "NONE INPUT OUTPUT", start=0)
    trt.MemoryPoolType = Enum("MemoryPoolType", "WORKSPACE", start=0)
    trt.BuilderFlag = Enum("BuilderFlag", ["TF32"] + ["FP16"] * fp16_flag, start=0)
    trt.NetworkDefinitionCreationFlag = Enum(
        "NetworkDefinitionCreationFlag",
        ["EXPLICIT_BATCH"] * explicit_batch + ["STRONGLY_TYPED"], start=0)

    class ILogger:
        Severity = Enum("Severity", "INTERNAL_ERROR ERROR WARNING INFO VERBOSE", start=0)

    def error(log, text):
        log.log(ILogger.Severity.ERROR, text)

    class Network:
        def __init__(self, flags):
            if explicit_batch:
                assert flags == 1 << 0, "the ONNX parser needs an explicit batch axis"
            self.graph = None

        def get_input(self, number):
            return types.SimpleNamespace(name=TENSORS[number])

    class OnnxParser:
        def __init__(self, network, log):
            self.network, self.num_errors = network, 0

        def parse(self, graph):
            if "parse" in device.failing:
                self.num_errors = 1
                return False
            self.network.graph = onnx.load_model_from_string(graph)
            return True

        def get_error(self, number):
            return "In node 3 (importConv): UNSUPPORTED_NODE: no such convolution"

    class Config:
        __slots__ = ("flags", "profiles", "memory_limit") + (
            () if pool_limit else ("max_workspace_size",))

        def __init__(self):
            self.flags, self.profiles = {trt.BuilderFlag.TF32}, []

        def set_flag(self, flag):
            self.flags.add(flag)

        def clear_flag(self, flag):
            self.flags.remove(flag)

        def add_optimization_profile(self, profile):
            self.profiles.append(profile)
            return 0

    if pool_limit:
        def set_memory_pool_limit(self, pool, size):
            self.memory_limit = size
        Config.set_memory_pool_limit = set_memory_pool_limit

    class Profile:
        def set_shape(self, tensor, *shapes):
            assert tensor == "image"
            self.shapes = shapes

    class Builder:
        def __init__(self, log):
            self.log = log
            if "builder" in device.failing:
                error(log, "CUDA initialization failure with error: 35")
                raise TypeError("pybind11::init(): factory function returned nullptr")

        create_network = staticmethod(Network)
        create_builder_config = staticmethod(Config)
        create_optimization_profile = staticmethod(Profile)

        def build_serialized_network(self, network, config):
            limit = config.memory_limit if pool_limit else config.max_workspace_size
            assert 1 << 20 <= limit <= 1 << 30
            profile, = config.profiles
            if "build" in device.failing:
                return error(self.log, "Could not find any implementation for node conv1.")
            plan = {"version": version, "graph": network.graph.SerializeToString(),
                    "profile": profile.shapes, "flags": sorted(f.name for f in config.flags)}
            return memoryview(b"plan" + pickle.dumps(plan))

    class Runtime:
        def __init__(self, log):
            self.log = log

        def deserialize_cuda_engine(self, plan):
            if plan[:4] != b"plan":
                return error(self.log, "Magic tag does not match")
            try:
                plan = pickle.loads(plan[4:])
            except Exception:
                return error(self.log, "plan.header.size == blobSize failed")
            if plan["version"] != version or "load" in device.failing:
                return error(self.log, "Version tag does not match. Note: Current Version: 213, "
                                       "Serialized Engine Version: 205")
            return Engine(plan, self.log)

    class Engine:
        def __init__(self, plan, log):
            self.plan, self.log = plan, log
            self.smallest, _, self.largest = [shape[0] for shape in plan["profile"]]
            self.net = network_of(plan)

        def create_execution_context(self, config=None):
            if is_rtx:
                assert config.dynamic_shapes_kernel_specialization_strategy.name == "EAGER"
            return None if "context" in device.failing else Context(self)

        def shape_of(self, number):
            # Up to 8.4 we let an engine for a single batch size look dynamic: some do.
            batch = self.largest if self.smallest == self.largest and names else -1
            return [(batch, 1, 28, 28), (batch, 10)][number]

        if bindings:
            num_bindings = 2
            binding_is_input = staticmethod(lambda number: number == 0)
            get_binding_dtype = staticmethod(lambda number: trt.DataType.FLOAT)

            def get_binding_shape(self, number):
                return self.shape_of(number)

            def get_profile_shape(self, profile, number):
                assert (profile, number) == (0, 0)
                return self.plan["profile"]

        if names:
            num_io_tensors = 2
            get_tensor_name = staticmethod(lambda number: TENSORS[number])
            get_tensor_dtype = staticmethod(lambda tensor: trt.DataType.FLOAT)

            def get_tensor_mode(self, tensor):
                return trt.TensorIOMode(1 + TENSORS.index(tensor))

            def get_tensor_shape(self, tensor):
                return self.shape_of(TENSORS.index(tensor))

            def get_tensor_profile_shape(self, tensor, profile):
                assert (tensor, profile) == ("image", 0)
                return self.plan["profile"]

        if is_rtx:
            create_runtime_config = staticmethod(types.SimpleNamespace)

    class Context:
        def __init__(self, engine):
            self.engine, self.addresses, self.has_run = engine, {}, False
            self.batch = engine.largest if engine.smallest == engine.largest and names else None

        def choose_shape(self, shape):
            if "shape" in device.failing:
                error(self.engine.log, "Static dimension mismatch")
                return False
            assert shape[1:] == (1, 28, 28)
            self.batch = shape[0]
            return self.engine.smallest <= self.batch <= self.engine.largest

        def enqueue(self, call, addresses, stream_handle):
            if "execute" in device.failing:
                error(self.engine.log, "Cuda failure: out of memory")
                return False
            assert self.batch, "the shape of a dynamic input has to be set before"
            stream = device.streams[stream_handle]
            assert self.has_run or stream.captured is None, "a first run can't be captured"
            self.has_run = True
            device.calls.append(call)
            batch, net = self.batch, self.engine.net
            stream.start(lambda: np.copyto(
                device.read(addresses[1], (batch, 10)),
                net(device.read(addresses[0], (batch, 1, 28, 28)))))
            return True

        if bindings:
            def set_binding_shape(self, number, shape):
                assert number == 0
                return self.choose_shape(shape)

            def execute_async_v2(self, bindings, stream_handle):
                return self.enqueue("execute_async_v2", list(bindings), stream_handle)

        if names:
            def set_input_shape(self, tensor, shape):
                assert tensor == "image"
                return self.choose_shape(shape)

            def set_tensor_address(self, tensor, address):
                self.addresses[tensor] = address
                return True

            def execute_async_v3(self, stream_handle):
                addresses = [self.addresses[tensor] for tensor in TENSORS]
                return self.enqueue("execute_async_v3", addresses, stream_handle)

    trt.ILogger, trt.Builder, trt.Runtime, trt.OnnxParser = ILogger, Builder, Runtime, OnnxParser
    if is_rtx:
        trt.DynamicShapesKernelSpecializationStrategy = Enum("Strategy", "LAZY EAGER NONE")
    return trt


def network_of(plan):
    """What an engine computes, as a numpy function, from the graph it was built from."""
    weights = {weight.name: onnx.numpy_helper.to_array(weight)
               for weight in onnx.load_model_from_string(plan["graph"]).graph.initializer}
    net = Net().eval()
    net.load_state_dict({key: torch.from_numpy(weights.get(key, weights.get("net." + key)).copy())
                         for key in net.state_dict()})
    if "FP16" in plan["flags"]:
        net = net.half().float()  # weights are rounded; arithmetic in float16 takes a CPU too long

    def run(image):
        with torch.no_grad():
            return net(torch.from_numpy(image.copy())).numpy()

    return run
