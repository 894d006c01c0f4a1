"""TensorRT engines of the network: built from ONNX, kept in a cache, loaded, run.

Serves every TensorRT from 8.0 (Jetson Nano) to 11 and TensorRT-RTX (GeForce). What a version calls
things is found out with `hasattr`, never from its number.

The way: `EngineFile` exports the graph, builds the engine and keeps it in the cache; `load_engine`
gives it to TensorRT again; `TensorRTEngine` runs it. docs/tensorrt.md tells the same step by step.
"""

import contextlib
import hashlib
import importlib
import json
import os
import platform
import sys
import threading
import time

from MNISTbuffers import CudaBuffers
from MNISTcuda import choose_memory, find_gpu
from MNISTscript import MNISTError, UnavailableError, save_json, warn, write_atomically

WORKSPACE_MIB = 64  # scratch memory a layer may use; a Jetson Nano shares 4 GB with its GPU


# --- Which TensorRT ------------------------------------------------------------------------------

def import_tensorrt():
    """The module `tensorrt`, else `tensorrt_rtx`; their classes have the same names.

    Raises UnavailableError with the line that installs it on this kind of machine.
    """
    broken = ""
    for name in ("tensorrt", "tensorrt_rtx"):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                broken = f" ({name}: {error})"
        except (ImportError, OSError) as error:  # installed, but one of its libraries isn't
            broken = f" ({name}: {error})"
    raise UnavailableError(f"TensorRT can't be imported{broken}; {how_to_install()}")


def how_to_install():
    """The line that installs TensorRT on this kind of machine."""
    if os.path.exists("/etc/nv_tegra_release"):
        return ("on a Jetson: sudo apt install python3-libnvinfer; "
                "a venv sees it when made with python3 -m venv --system-site-packages")
    if platform.system() == "Darwin":
        return "there is none for macOS"
    return "pip install tensorrt (any NVIDIA GPU), or tensorrt-rtx (GeForce RTX)"


def flavour(trt):
    """Which TensorRT it is: "tensorrt 10.3.0"."""
    return f"{trt.__name__} {trt.__version__}"


def make_log(trt):
    """A TensorRT logger that keeps errors and warnings, so that ours can quote them."""
    class Log(trt.ILogger):
        def __init__(self):
            trt.ILogger.__init__(self)
            self.errors, self.warnings = [], []

        def log(self, severity, message):
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(message)
            elif severity == trt.ILogger.Severity.WARNING:
                self.warnings.append(message)

        def last_words(self):
            return "\n".join(self.errors[-2:]) or "it gave no reason"

    return Log()


# --- Building ------------------------------------------------------------------------------------

def fp16_is_a_flag(trt):
    """Whether fp16 is a builder flag (until TensorRT 10); later the graph itself has to hold it."""
    return hasattr(trt.BuilderFlag, "FP16")


def build_engine(trt, graph, precision, batches):
    """An engine, as bytes, from an ONNX file's bytes.

    `batches`: smallest and largest batch; the engine is tuned for the largest. Raises MNISTError
    with TensorRT's own words where it fails.
    """
    log = make_log(trt)
    try:
        builder = trt.Builder(log)
    except Exception as error:  # pybind11 turns a null pointer into a TypeError
        raise UnavailableError(f"{flavour(trt)} can't build here: "
                               f"{log.last_words() if log.errors else error}") from error
    # An explicit batch axis had to be asked for until TensorRT 9; since 10 there is no other.
    explicit_batch = getattr(trt.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH", None)
    network = builder.create_network(0 if explicit_batch is None else 1 << int(explicit_batch))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(graph):
        errors = [str(parser.get_error(i)) for i in range(parser.num_errors)]
        raise MNISTError("TensorRT can't read the ONNX graph:\n" + "\n".join(errors))

    config = builder.create_builder_config()
    set_workspace(trt, config)
    if precision == "fp16" and fp16_is_a_flag(trt):
        config.set_flag(trt.BuilderFlag.FP16)
    if precision != "tf32" and hasattr(trt.BuilderFlag, "TF32"):
        config.clear_flag(trt.BuilderFlag.TF32)  # on by default; it rounds to 10 bits
    smallest, largest = [(batch, 1, 28, 28) for batch in batches]
    profile = builder.create_optimization_profile()
    profile.set_shape(network.get_input(0).name, smallest, largest, largest)
    config.add_optimization_profile(profile)

    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise MNISTError(f"{flavour(trt)} built no engine: {log.last_words()}")
    return bytes(plan)


def set_workspace(trt, config):
    """Limit the scratch memory, by whichever call this version has (the first came with 8.4)."""
    if hasattr(config, "set_memory_pool_limit"):
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE_MIB << 20)
    else:
        config.max_workspace_size = WORKSPACE_MIB << 20


@contextlib.contextmanager
def show_elapsed(what):
    """Say on stderr what is going on and, in a terminal, for how many seconds already."""
    print(what, file=sys.stderr, flush=True)
    started = time.monotonic()
    finished = threading.Event()

    def tick():
        while not finished.wait(1):
            print(f"\r{time.monotonic() - started:.0f} s", end="\r", file=sys.stderr, flush=True)

    if sys.stderr.isatty():
        threading.Thread(target=tick, daemon=True).start()
    try:
        yield
    finally:
        finished.set()


# --- The cache -----------------------------------------------------------------------------------

def engine_path(stem, precision, batches):
    """Where an engine is kept: NetMNIST.rt, NetMNIST-b64.rt, NetMNIST-b1to64-fp16.rt…"""
    smallest, largest = batches
    if smallest < largest:
        stem += f"-b{smallest}to{largest}"
    elif largest > 1:
        stem += f"-b{largest}"
    if precision != "fp32":
        stem += "-" + precision
    return stem + ".rt"


class EngineFile:
    """One engine in the cache: which one is wanted, whether the file is it, and how to make it.

    The file at `path` holds what TensorRT gave and nothing else, so that `trtexec` opens it; beside
    it `path`.json records what it was made from, with what and for which GPU.
    """

    def __init__(self, net, precision, batches, stem=None):
        """`batches`: smallest and largest batch of the engine. `stem`: path without extension;
        None: nothing is kept."""
        from MNISTonnx import onnx_bytes

        self.trt = import_tensorrt()
        self.net, self.precision, self.batches = net, precision, batches
        self.keeps = stem is not None
        stem = stem or "an engine"
        self.path = engine_path(stem, precision, batches)
        half_graph = precision == "fp16" and not fp16_is_a_flag(self.trt)
        self.graph_precision = "fp16" if half_graph else "fp32"
        self.graph_path = stem + ("-fp16" if half_graph else "") + ".onnx"
        self.graph = onnx_bytes(net, self.graph_precision)
        gpu, compute_capability = find_gpu()
        self.wanted = {
            "weights_sha256": weights_digest(net),
            "onnx_sha256": digest(self.graph),
            "tensorrt": self.trt.__name__,
            "tensorrt_version": self.trt.__version__,
            "gpu": gpu,
            "compute_capability": compute_capability,
            "precision": precision,
            "batches": list(batches),
            "workspace_mib": WORKSPACE_MIB,
        }

    def read(self):
        """The engine's bytes; None where the file isn't the one wanted, saying what differs."""
        if not self.keeps:
            return None
        try:
            with open(self.path, "rb") as file:
                plan = file.read()
        except FileNotFoundError:
            return None
        difference = self.difference(plan)
        if difference:
            warn(f"{self.path} is not used: {difference}")
            return None
        return plan

    def difference(self, plan):
        """The first field in which the record differs from what is wanted, as text; else None."""
        try:
            with open(self.path + ".json", encoding="utf-8") as file:
                record = dict(json.load(file))
        except (OSError, ValueError, TypeError):
            return f"no readable record {self.path}.json"
        # The digest of the engine ties the two files together, should a kill part them.
        for field, wanted in dict(self.wanted, engine_sha256=digest(plan)).items():
            if field not in record:
                return f"its record lacks {field}"
            if record[field] != wanted:
                return f"its {field} is {record[field]}, wanted is {wanted}"
        return None

    def build(self, digits=None):
        """Build the engine and save it with its graph and its record; returns its bytes.

        `digits` (see `check_onnx`) are what the graph is checked on. A folder that can't be written
        to is a warning. Raises MNISTError where the graph or the build fails.
        """
        from MNISTonnx import check_onnx

        checked = check_onnx(self.graph, self.net, self.graph_precision, digits)
        print(f"{self.graph_path}: {checked}", file=sys.stderr)
        started = time.monotonic()
        with show_elapsed(f"building {self.path} with {flavour(self.trt)}, this may take minutes"):
            plan = build_engine(self.trt, self.graph, self.precision, self.batches)
        seconds = time.monotonic() - started
        print(f"built in {seconds:.1f} s, {len(plan):,} bytes", file=sys.stderr)
        try:
            if self.keeps:
                self.save(plan, seconds)
        except MNISTError as error:
            warn(f"{error}; the engine is built anew next time")
        return plan

    def save(self, plan, build_seconds):
        """Write graph, engine and record. The record last: without it the engine isn't believed."""
        for path, content in ((self.graph_path, self.graph), (self.path, plan)):
            with write_atomically(path) as file:
                file.write(content)
        save_json(self.path + ".json", dict(self.wanted, engine_sha256=digest(plan),
                                            build_seconds=round(build_seconds, 2)))


def digest(content):
    """SHA-256 of some bytes, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def weights_digest(net):
    """SHA-256 of a network's tensors, names included: the same however they were saved."""
    sha256 = hashlib.sha256()
    for name, tensor in sorted(net.state_dict().items()):
        sha256.update(name.encode())
        sha256.update(tensor.cpu().contiguous().numpy().tobytes())
    return sha256.hexdigest()


def tensorrt_missing(device="cuda", precision="fp32", memory="auto"):
    """Why TensorRT engines can't run on this machine, with the remedy; None where they can."""
    try:
        import_tensorrt()
        choose_memory(memory)
    except UnavailableError as error:
        return str(error)
    return None


# --- Running -------------------------------------------------------------------------------------

def load_engine(trt, plan):
    """The engine in `plan` (bytes), loaded and ready to run: a `NamedTensors` or `Bindings`.

    Raises MNISTError with TensorRT's own words where it can't be loaded, and where it isn't an
    engine of this network.
    """
    log = make_log(trt)
    runtime = trt.Runtime(log)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise MNISTError(f"{flavour(trt)} can't load the engine (one only loads on the version and "
                         f"the kind of GPU it was built with): {log.last_words()}")
    for warning in log.warnings:
        warn(warning)
    convention = NamedTensors if hasattr(engine, "num_io_tensors") else Bindings
    return convention(trt, runtime, engine, log)


class LoadedEngine:
    """An engine with a context to run it in; its two subclasses are the two ways to call TensorRT.

    `batches`: the smallest and the largest batch it takes.
    """

    def __init__(self, trt, runtime, engine, log):
        self.runtime, self.engine, self.log = runtime, engine, log
        tensors = self.tensors()
        inputs = [tensor for tensor in tensors if self.is_input(trt, tensor)]
        outputs = [tensor for tensor in tensors if tensor not in inputs]
        shapes = [self.shape(tensor)[1:] for tensor in inputs + outputs]
        floats = all(self.dtype(tensor) == trt.DataType.FLOAT for tensor in tensors)
        if shapes != [(1, 28, 28), (10,)] or len(inputs) != 1 or not floats:
            raise MNISTError("the engine isn't of this network: it should take float32 "
                             "(batch, 1, 28, 28) and give float32 (batch, 10)")
        self.image, self.log_probs = inputs[0], outputs[0]
        batch = self.shape(self.image)[0]
        self.is_dynamic = batch == -1
        if self.is_dynamic:
            smallest, _, largest = self.profile(self.image)
            self.batches = smallest[0], largest[0]
        else:
            self.batches = batch, batch
        self.context = create_context(trt, engine)
        if self.context is None:
            raise MNISTError(f"TensorRT can't run the engine: {log.last_words()}")

    def start(self, stream_handle):
        """Start the engine on a CUDA stream. Raises MNISTError where TensorRT refuses."""
        if not self.execute(stream_handle):
            raise MNISTError(f"TensorRT refused to run the engine: {self.log.last_words()}")

    def set_up(self, batch_size, image_address, log_probs_address):
        """Fix the batch size, and where the engine reads and writes."""
        if self.is_dynamic and not self.set_shape(self.image, (batch_size, 1, 28, 28)):
            raise MNISTError(f"TensorRT refused batch {batch_size}: {self.log.last_words()}")
        self.set_address(self.image, image_address)
        self.set_address(self.log_probs, log_probs_address)


class NamedTensors(LoadedEngine):
    """TensorRT 8.5 and newer: a tensor has a name, and is given an address."""

    def tensors(self):
        return [self.engine.get_tensor_name(i) for i in range(self.engine.num_io_tensors)]

    def is_input(self, trt, tensor):
        return self.engine.get_tensor_mode(tensor) == trt.TensorIOMode.INPUT

    def shape(self, tensor):
        return tuple(self.engine.get_tensor_shape(tensor))

    def dtype(self, tensor):
        return self.engine.get_tensor_dtype(tensor)

    def profile(self, tensor):
        return self.engine.get_tensor_profile_shape(tensor, 0)

    def set_shape(self, tensor, shape):
        return self.context.set_input_shape(tensor, shape)

    def set_address(self, tensor, address):
        self.context.set_tensor_address(tensor, address)

    def execute(self, stream_handle):
        return self.context.execute_async_v3(stream_handle=stream_handle)


class Bindings(LoadedEngine):
    """TensorRT up to 8.4: a tensor is a position in the list of addresses given to each call."""

    def tensors(self):
        self.addresses = [0] * self.engine.num_bindings
        return list(range(self.engine.num_bindings))

    def is_input(self, trt, tensor):
        return self.engine.binding_is_input(tensor)

    def shape(self, tensor):
        return tuple(self.engine.get_binding_shape(tensor))

    def dtype(self, tensor):
        return self.engine.get_binding_dtype(tensor)

    def profile(self, tensor):
        return self.engine.get_profile_shape(0, tensor)

    def set_shape(self, tensor, shape):
        return self.context.set_binding_shape(tensor, shape)

    def set_address(self, tensor, address):
        self.addresses[tensor] = address

    def execute(self, stream_handle):
        return self.context.execute_async_v2(bindings=self.addresses,
                                             stream_handle=stream_handle)


def create_context(trt, engine):
    """What runs an engine; None where TensorRT can't make one.

    TensorRT-RTX compiles kernels when a shape is first met and by default runs slower ones
    meanwhile: with EAGER it waits for the real ones, so that those are timed.
    """
    specialisation = getattr(trt, "DynamicShapesKernelSpecializationStrategy", None)
    if specialisation is None:
        return engine.create_execution_context()
    config = engine.create_runtime_config()
    config.dynamic_shapes_kernel_specialization_strategy = specialisation.EAGER
    return engine.create_execution_context(config)


class TensorRTEngine(CudaBuffers):
    """A TensorRT engine as `MNISTengine` wants it: raw pixels in, log-probabilities out.

    Shape and addresses are fixed once, when it is opened. A shorter batch is padded up to
    `batch_size`; what comes of the padding is never given out.
    """

    name = "tensorrt"
    device = "cuda"

    def __init__(self, trt, loaded, precision, batch_size, memory):
        """`loaded`: from `load_engine`. `memory`: an instance of one of `MNISTcuda.MEMORIES`."""
        smallest, largest = loaded.batches
        if not smallest <= batch_size <= largest:
            raise UnavailableError(f"this engine takes batches of {smallest} to {largest}, "
                                   f"not {batch_size}")
        super().__init__(memory, batch_size)
        self.precision, self.loaded = precision, loaded
        loaded.set_up(batch_size, memory.address(self.device_pixels),
                      memory.address(self.device_log_probs))
        self.detail = f"{flavour(trt)}, {memory.name} memory"

    def start_alone(self):
        """Start the engine on the images that are on the GPU."""
        self.loaded.start(self.memory.stream_handle)

    def close(self):
        """Give everything back; the order matters to TensorRT."""
        super().close()
        for part in ("context", "engine", "runtime"):
            setattr(self.loaded, part, None)


def cached_engine(net, device, precision="fp32", batch_size=64, batches=None, stem=None,
                  memory="auto", rebuild=False, digits=None):
    """A `TensorRTEngine` for `net`, from the cache where it is up to date, else built now.

    `batches`: smallest and largest batch of a dynamic engine; None: one for `batch_size` alone.
    `stem`: path of what is kept, without extension; None keeps nothing.
    Raises UnavailableError where TensorRT can't run here, MNISTError where a build fails.
    """
    trt = import_tensorrt()
    gpu_memory = choose_memory(memory)()
    engine_file = EngineFile(net, precision, batches or (batch_size, batch_size), stem)
    plan = None if rebuild else engine_file.read()
    loaded = None
    if plan:
        try:
            loaded = load_engine(trt, plan)
        except MNISTError as error:
            warn(f"{engine_file.path} is built anew: {error}")
    if loaded is None:
        loaded = load_engine(trt, engine_file.build(digits))
    return TensorRTEngine(trt, loaded, precision, batch_size, gpu_memory)


def engine_from_file(path, precision="fp32", batch_size=None, memory="auto"):
    """A `TensorRTEngine` from an engine built elsewhere, at its largest batch unless told.

    `precision` is what it is said to be: a file doesn't tell.
    """
    trt = import_tensorrt()
    gpu_memory = choose_memory(memory)()
    try:
        with open(path, "rb") as file:
            plan = file.read()
    except OSError as error:
        raise UnavailableError(f"can't read {path}: {error.strerror}") from error
    loaded = load_engine(trt, plan)
    return TensorRTEngine(trt, loaded, precision, batch_size or loaded.batches[1], gpu_memory)
