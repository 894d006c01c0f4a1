"""Stand-ins for TensorRT, pycuda and torch's CUDA, so that the runner runs where there is no GPU.

They are strict where the real ones are: a call that a version lacks isn't there, device memory is
reached by address only and holds NaN until something is copied into it, and what is started on a
stream happens when the stream is synchronised, not before. The engine computes the network's true
answers, so that a wrong offset, a forgotten copy or a missing wait shows as a wrong digit.
"""

import contextlib
import enum
import pickle
import threading
import types

import numpy as np
import onnx
import onnx.numpy_helper
import onnxruntime

TENSORS = ("image", "log_probs")


class Device:
    """A GPU: memory by address, streams by handle, and what shall go wrong (`failing`: "builder",
    "tf32", "int8", "parse", "build", "runtime", "load", "network", "dtype", "context", "shape",
    "address", "execute"; "tf32" and "int8": it has none)."""

    def __init__(self):
        self.blocks, self.streams, self.failing = {}, {}, set()
        self.page_locked = []
        self.log = None  # TensorRT's only one, where a process has only one
        self.leaked = []  # addresses of buffers given back outside of a CUDA context
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

    def __init__(self, device, needed=lambda function: function):
        self.device, self.work, self.captured = device, [], None
        self.handle = self.cuda_stream = 0x7000 + len(device.streams)
        self.synchronize = needed(self.synchronize)
        device.streams[self.handle] = self

    def start(self, action):
        (self.work if self.captured is None else self.captured).append(action)

    def synchronize(self):
        assert self.captured is None, "waiting breaks the capture of a graph"
        while self.work:
            self.work.pop(0)()


class Contexts(threading.local):
    """Each thread's stack of CUDA contexts; what needs one fails without."""

    def __init__(self):
        self.stack = []

    def needed(self, function):
        def run(*arguments):
            assert self.stack, "invalid device context"
            return function(*arguments)
        return run


def fake_pycuda(device):
    """The modules `pycuda` and `pycuda.driver` over a `Device`."""
    contexts = Contexts()

    class Buffer:
        def __init__(self, size):
            self.address = device.allocate(size)

        def __int__(self):
            return self.address

        def __del__(self):
            if not contexts.stack:
                device.leaked.append(self.address)

    class Context:
        pop = staticmethod(lambda: contexts.stack.pop())

        def push(self):
            contexts.stack.append(self)

        def detach(self):
            pass

    class Gpu:
        count = staticmethod(lambda: 1)

        def __init__(self, number):
            assert number == 0

        def name(self):
            return "NVIDIA Tegra X1"

        def compute_capability(self):
            return 5, 3

        def retain_primary_context(self):
            return Context()

    driver = types.ModuleType("pycuda.driver")
    driver.Error = type("Error", (Exception,), {})
    driver.init = lambda: None
    driver.Device, driver.Context = Gpu, Context
    for name, function in {
            "Stream": lambda: Stream(device, contexts.needed),
            "mem_alloc": Buffer,
            "pagelocked_zeros": lambda shape, dtype: device.lock_pages(shape),
            "memcpy_htod_async": lambda to, array, stream: device.copy_in(int(to), array, stream),
            "memcpy_dtoh_async": lambda array, of, stream: device.copy_out(array, int(of), stream),
    }.items():
        setattr(driver, name, contexts.needed(function))
    pycuda = types.ModuleType("pycuda")
    pycuda.VERSION_TEXT = "2021.1"  # it has no __version__
    pycuda.driver = driver
    return {"pycuda": pycuda, "pycuda.driver": driver}


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
    """A module like TensorRT of `version`, 8.2.1.9 (a Jetson Nano's) or newer, over a `Device`.

    `name` "tensorrt_rtx": like TensorRT-RTX 1.7, which shares its API with TensorRT 11. Classes,
    methods, their arguments and enumerations are called as in the real one.
    """
    number = tuple(map(int, version.split(".")))
    is_rtx = name == "tensorrt_rtx"
    has_bindings, has_names = number < (10,), number >= (8, 5)
    has_pool_limit = number >= (8, 4)
    has_precision_flags = number < (11,)
    trt = types.ModuleType(name)
    trt.__version__ = version
    trt.DataType = Enum("DataType", "FLOAT HALF INT8", start=0)
    if has_names:
        trt.TensorIOMode = Enum("TensorIOMode", "NONE INPUT OUTPUT", start=0)
    if has_pool_limit:
        trt.MemoryPoolType = Enum("MemoryPoolType", "WORKSPACE", start=0)
    trt.BuilderFlag = Enum("BuilderFlag", ["TF32"] + ["FP16", "INT8"] * has_precision_flags
                           + ["BF16"] * (has_precision_flags and number >= (9,)), start=0)
    trt.NetworkDefinitionCreationFlag = Enum(
        "NetworkDefinitionCreationFlag",
        ["EXPLICIT_BATCH"] * (number < (11,)) + ["STRONGLY_TYPED"] * (number >= (9,)), start=0)

    class ILogger:
        Severity = Enum("Severity", "INTERNAL_ERROR ERROR WARNING INFO VERBOSE", start=0)

        def __init__(self):
            pass

        def log(self, severity, msg):
            raise NotImplementedError

    def the_log(log):
        """Before 8.4.1 the first logger of a process stays the only one."""
        if number >= (8, 4, 1):
            return log
        device.log = device.log or log
        return device.log

    def error(log, text):
        log.log(ILogger.Severity.ERROR, text)

    class ITensor:
        def __init__(self, name):
            self.name, self.shape = name, (-1, 1, 28, 28)

    class INetworkDefinition:
        def __init__(self, flags):
            if number < (10,):
                assert flags == 1 << 0, "the ONNX parser needs an explicit batch axis"
            self._graph = None

        def get_input(self, index):
            return ITensor(TENSORS[index])

    class ParserError:
        def __str__(self):
            return "In node 3 (importConv): UNSUPPORTED_NODE: no such convolution"

    class OnnxParser:
        def __init__(self, network, logger):
            self._network, self.num_errors = network, 0

        def parse(self, model, path=None):
            if "parse" in device.failing:
                self.num_errors = 1
                return False
            self._network._graph = onnx.load_model_from_string(model)
            return True

        def get_error(self, index):
            return ParserError()

    class IBuilderConfig:
        def __init__(self):
            self._flags, self._profiles = {trt.BuilderFlag.TF32}, []

        def set_flag(self, flag):
            self._flags.add(flag)

        def clear_flag(self, flag):
            self._flags.remove(flag)

        def add_optimization_profile(self, profile):
            self._profiles.append(profile)
            return 0

        if has_pool_limit:
            def set_memory_pool_limit(self, pool, pool_size):
                self._memory_limit = pool_size

    class IOptimizationProfile:
        def set_shape(self, input, min, opt, max):
            assert input == "image"
            self._shapes = min, opt, max

    class Made:
        def __init__(self, logger):
            self._log = the_log(logger)
            if type(self).__name__.lower() in device.failing:
                error(self._log, "CUDA initialization failure with error: 35")
                raise TypeError("pybind11::init(): factory function returned nullptr")

    class Builder(Made):
        if has_precision_flags:
            platform_has_tf32 = property(lambda self: "tf32" not in device.failing)
            platform_has_fast_int8 = property(lambda self: "int8" not in device.failing)

        def create_network(self, flags=0):
            return INetworkDefinition(flags)

        def create_builder_config(self):
            return IBuilderConfig()

        def create_optimization_profile(self):
            return IOptimizationProfile()

        def build_serialized_network(self, network, config):
            limit = config._memory_limit if has_pool_limit else config.max_workspace_size
            assert 1 << 20 <= limit <= 1 << 30
            profile, = config._profiles
            graph = network._graph
            flags = sorted(flag.name for flag in config._flags)
            if "build" in device.failing:
                return error(self._log, "Could not find any implementation for node conv1.")
            plan = {"version": version, "graph": graph.SerializeToString(),
                    "profile": profile._shapes, "flags": flags}
            return memoryview(b"plan" + pickle.dumps(plan))

    class Runtime(Made):
        def deserialize_cuda_engine(self, serialized_engine):
            if serialized_engine[:4] != b"plan":
                return error(self._log, "Magic tag does not match")
            plan = pickle.loads(serialized_engine[4:])
            if plan["version"] != version or "load" in device.failing:
                return error(self._log, "Version tag does not match. Note: Current Version: 213, "
                                        "Serialized Engine Version: 205")
            return ICudaEngine(plan, self._log)

    class ICudaEngine:
        def __init__(self, plan, log):
            self._plan, self._log = plan, log
            self._smallest, _, self._largest = [shape[0] for shape in plan["profile"]]
            self._net = network_of(plan)

        if is_rtx:
            def create_runtime_config(self):
                return types.SimpleNamespace()

        def create_execution_context(self, runtime_config=None):
            if is_rtx:
                strategy = runtime_config.dynamic_shapes_kernel_specialization_strategy
                assert strategy.name == "EAGER"
            return None if "context" in device.failing else IExecutionContext(self)

        def _shape(self, index):
            # Up to 8.4 we let an engine for a single batch size look dynamic: some do.
            is_fixed = self._smallest == self._largest and has_names
            batch = self._largest if is_fixed else -1
            image = (batch, 3, 32, 32) if "network" in device.failing else (batch, 1, 28, 28)
            return [image, (batch, 10)][index]

        if has_bindings:
            num_bindings = 2

            def binding_is_input(self, index):
                return index == 0

            def get_binding_dtype(self, index):
                return trt.DataType.HALF if "dtype" in device.failing else trt.DataType.FLOAT

            def get_binding_shape(self, index):
                return self._shape(index)

            def get_profile_shape(self, profile_index, binding):
                assert (profile_index, binding) == (0, 0)
                return self._plan["profile"]

        if has_names:
            num_io_tensors = 2

            def get_tensor_name(self, index):
                return TENSORS[index]

            def get_tensor_dtype(self, name):
                return trt.DataType.HALF if "dtype" in device.failing else trt.DataType.FLOAT

            def get_tensor_mode(self, name):
                return trt.TensorIOMode(1 + TENSORS.index(name))

            def get_tensor_shape(self, name):
                return self._shape(TENSORS.index(name))

            def get_tensor_profile_shape(self, name, profile_index):
                assert (name, profile_index) == ("image", 0)
                return self._plan["profile"]

    class IExecutionContext:
        def __init__(self, engine):
            self._engine, self._addresses, self._has_run = engine, {}, False
            is_fixed = engine._smallest == engine._largest and has_names
            self._batch = engine._largest if is_fixed else None

        def _choose_shape(self, shape):
            if "shape" in device.failing:
                error(self._engine._log, "Static dimension mismatch")
                return False
            assert shape[1:] == (1, 28, 28)
            self._batch = shape[0]
            return self._engine._smallest <= self._batch <= self._engine._largest

        def _enqueue(self, call, addresses, stream_handle):
            if "execute" in device.failing:
                error(self._engine._log, "Cuda failure: out of memory")
                return False
            assert self._batch, "the shape of a dynamic input has to be set before"
            stream = device.streams[stream_handle]
            assert self._has_run or stream.captured is None, "a first run can't be captured"
            self._has_run = True
            device.calls.append(call)
            batch, net = self._batch, self._engine._net
            stream.start(lambda: np.copyto(
                device.read(addresses[1], (batch, 10)),
                net(device.read(addresses[0], (batch, 1, 28, 28)))))
            return True

        if has_bindings:
            def set_binding_shape(self, binding, shape):
                assert binding == 0
                return self._choose_shape(shape)

            def execute_async_v2(self, bindings, stream_handle, input_consumed=None):
                return self._enqueue("execute_async_v2", list(bindings), stream_handle)

        if has_names:
            def set_input_shape(self, name, shape):
                assert name == "image"
                return self._choose_shape(shape)

            def set_tensor_address(self, name, memory):
                self._addresses[name] = memory
                return "address" not in device.failing

            def execute_async_v3(self, stream_handle):
                addresses = [self._addresses[tensor] for tensor in TENSORS]
                return self._enqueue("execute_async_v3", addresses, stream_handle)

    for cls in (ILogger, OnnxParser, Builder, Runtime):
        setattr(trt, cls.__name__, cls)
    if is_rtx:
        trt.ComputeCapability = Enum("ComputeCapability", "NONE CURRENT SM75 SM80", start=0)
        trt.DynamicShapesKernelSpecializationStrategy = Enum(
            "DynamicShapesKernelSpecializationStrategy", "LAZY EAGER NONE", start=0)
    return trt


def network_of(plan):
    """What an engine computes, as a numpy function, from the graph it was built from."""
    model = onnx.load_model_from_string(plan["graph"])
    if {"FP16", "BF16"} & set(plan["flags"]):  # weights are rounded, which is enough to be seen
        for weight in model.graph.initializer:
            if weight.data_type == onnx.TensorProto.FLOAT:
                rounded = onnx.numpy_helper.to_array(weight).astype(np.float16).astype(np.float32)
                weight.CopyFrom(onnx.numpy_helper.from_array(rounded, weight.name))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options,
                                           providers=["CPUExecutionProvider"])
    return lambda image: session.run(None, {"image": image})[0]
