"""TensorRT engines: built from an ONNX graph, loaded, run.

Serves every TensorRT from 8.0 (Jetson Nano) to 11 and TensorRT-RTX (GeForce). What a version calls
things is found out with `hasattr`, never from its number.

The way: `build_engine` makes an engine of a graph; `load_engine` gives it to TensorRT again;
`TensorRTEngine` runs it. The files between are `mnist.engines.trt_cache`'s.
"""

import functools
import importlib
import os
import platform

from mnist.engines.buffers import CudaBuffers
from mnist.engines.cuda import choose_memory
from mnist.errors import MNISTError, UnavailableError, warn

# What says whether this GPU has a precision, until TensorRT 10.
HARDWARE = {"tf32": "platform_has_tf32", "int8": "platform_has_fast_int8"}
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


def is_portable(trt):
    """Whether its engines run on other GPUs than the one they were built beside: TensorRT-RTX's
    do, which are compiled for the GPU when they first run."""
    return hasattr(trt, "ComputeCapability")


@functools.lru_cache(maxsize=None)
def process_log(trt):
    """TensorRT's logger, which keeps errors and warnings so that ours can quote them.

    One for the whole process: before 8.4.1 TensorRT stays with the first that it is given.
    """
    class Log(trt.ILogger):
        def __init__(self):
            trt.ILogger.__init__(self)
            self.forget()

        def forget(self):
            """Begin anew: what follows is another build's or load's."""
            self.errors, self.warnings = [], []
            return self

        def log(self, severity, message):
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(message)
            elif severity == trt.ILogger.Severity.WARNING:
                self.warnings.append(message)

        def last_words(self):
            return "\n".join(self.errors[-2:]) or "it gave no reason"

    return Log()


def tensorrt_missing(device="cuda", precision="fp32", memory="auto"):
    """Why TensorRT can't compute so on this machine, with the remedy; None where it can."""
    try:
        trt = import_tensorrt()
        choose_memory(memory)
    except UnavailableError as error:
        return str(error)
    return precision_missing(trt, precision)


# --- Precisions ----------------------------------------------------------------------------------

def takes_flags(trt):
    """Whether precisions are flags of the builder, called as here but in capitals.

    TensorRT 11 and TensorRT-RTX have none: they compute in what the graph says.
    """
    return hasattr(trt.BuilderFlag, "FP16")


def precision_missing(trt, precision):
    """Why this version can't compute in a precision; None where it can."""
    if takes_flags(trt) and precision != "fp32" and not hasattr(trt.BuilderFlag, precision.upper()):
        return f"{flavour(trt)} has no {precision}; newer ones have"
    return None


def graph_precision(trt, precision):
    """The precision that the ONNX graph has to hold for an engine of `precision`.

    int8 is always in the graph (its scales are), the others where they are no flags.
    """
    return "fp32" if precision == "tf32" or takes_flags(trt) and precision != "int8" else precision


# --- Building ------------------------------------------------------------------------------------

def build_engine(trt, graph, precision, batches):
    """An engine, as bytes, from an ONNX file's bytes, which hold what `graph_precision` says.

    `batches`: smallest and largest batch; the engine is tuned for the largest. Raises
    UnavailableError where TensorRT, this version or this GPU can't, MNISTError with TensorRT's own
    words where it fails.
    """
    reason = precision_missing(trt, precision)
    if reason:
        raise UnavailableError(reason)
    log = process_log(trt).forget()
    builder = make(trt, trt.Builder, log, "build")
    if precision in HARDWARE and not getattr(builder, HARDWARE[precision], True):
        raise UnavailableError(f"this GPU has no {precision}")
    # An explicit batch axis had to be asked for until TensorRT 9; since 10 there is no other.
    explicit_batch = getattr(trt.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH", None)
    network = builder.create_network(0 if explicit_batch is None else 1 << int(explicit_batch))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(graph):
        errors = [str(parser.get_error(i)) for i in range(parser.num_errors)]
        raise MNISTError("TensorRT can't read the ONNX graph:\n" + "\n".join(errors))

    config = builder.create_builder_config()
    set_workspace(trt, config)
    flag = getattr(trt.BuilderFlag, precision.upper(), None)
    if flag is not None:
        config.set_flag(flag)
    if precision != "tf32" and hasattr(trt.BuilderFlag, "TF32"):
        config.clear_flag(trt.BuilderFlag.TF32)  # on by default; it rounds to 10 bits
    shape = tuple(network.get_input(0).shape)[1:]
    smallest, largest = [(batch,) + shape for batch in batches]
    profile = builder.create_optimization_profile()
    profile.set_shape(network.get_input(0).name, smallest, largest, largest)
    config.add_optimization_profile(profile)

    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise MNISTError(f"{flavour(trt)} built no engine: {log.last_words()}")
    return bytes(plan)


def make(trt, cls, log, what):
    """A Builder or a Runtime. Raises UnavailableError where TensorRT finds no GPU or driver."""
    try:
        return cls(log)
    except Exception as error:  # pybind11 turns a null pointer into a TypeError
        raise UnavailableError(f"{flavour(trt)} can't {what} here: "
                               f"{log.last_words() if log.errors else error}") from error


def set_workspace(trt, config):
    """Limit the scratch memory, by whichever call this version has (the first came with 8.4)."""
    if hasattr(config, "set_memory_pool_limit"):
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE_MIB << 20)
    else:
        config.max_workspace_size = WORKSPACE_MIB << 20


# --- Running -------------------------------------------------------------------------------------

def load_engine(trt, plan, image_set):
    """The engine in `plan` (bytes), loaded and ready to run: a `LoadedEngine`.

    Raises UnavailableError where TensorRT can't run here, MNISTError with TensorRT's own words
    where the engine can't be loaded, and where it isn't one of the image set's.
    """
    log = process_log(trt).forget()
    runtime = make(trt, trt.Runtime, log, "run")
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise MNISTError(f"{flavour(trt)} can't load the engine (one only loads on the version and "
                         f"the kind of GPU it was built with): {log.last_words()}")
    for warning in log.warnings:
        warn(warning)
    return LoadedEngine(trt, runtime, engine, log, image_set)


class LoadedEngine:
    """An engine with a context to run it in. `batches`: the smallest and the largest it takes."""

    def __init__(self, trt, runtime, engine, log, image_set):
        if hasattr(engine, "num_io_tensors"):
            input_mode = trt.TensorIOMode.INPUT
        else:
            engine, input_mode = Bindings(engine), True
        self.runtime, self.engine, self.log = runtime, engine, log
        tensors = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        inputs = [tensor for tensor in tensors if engine.get_tensor_mode(tensor) == input_mode]
        outputs = [tensor for tensor in tensors if tensor not in inputs]
        shapes = [tuple(engine.get_tensor_shape(tensor)) for tensor in inputs + outputs]
        floats = all(engine.get_tensor_dtype(tensor) == trt.DataType.FLOAT for tensor in tensors)
        if len(inputs) != 1 or not floats or [shape[1:] for shape in shapes] != [
                tuple(image_set.shape), (image_set.outputs,)]:
            raise MNISTError(
                f"the engine isn't one of {image_set.name}: it should take float32 (batch, "
                f"{', '.join(map(str, image_set.shape))}) and give float32 (batch, "
                f"{image_set.outputs})")
        self.image, self.log_probs = inputs[0], outputs[0]
        batch = shapes[0][0]
        self.is_dynamic = batch == -1
        if self.is_dynamic:
            smallest, _, largest = engine.get_tensor_profile_shape(self.image, 0)
            self.batches = smallest[0], largest[0]
        else:
            self.batches = batch, batch
        self.context = create_context(trt, engine)
        if self.context is None:
            raise MNISTError(f"TensorRT can't run the engine: {log.last_words()}")


class Bindings:
    """An engine of TensorRT up to 8.4, to be called as those of 8.5 and newer are.

    There a tensor has a name; here it is a position in the list of addresses given to each call.
    """

    def __init__(self, engine):
        self.engine, self.num_io_tensors = engine, engine.num_bindings
        self.get_tensor_name = int
        self.get_tensor_mode = engine.binding_is_input
        self.get_tensor_shape = engine.get_binding_shape
        self.get_tensor_dtype = engine.get_binding_dtype

    def get_tensor_profile_shape(self, tensor, profile):
        return self.engine.get_profile_shape(profile, tensor)

    def create_execution_context(self):
        context = self.engine.create_execution_context()
        return context and BindingsContext(context, self.num_io_tensors)


class BindingsContext:
    """The context of such an engine, likewise."""

    def __init__(self, context, tensors):
        self.context, self.addresses = context, [0] * tensors
        self.set_input_shape = context.set_binding_shape

    def set_tensor_address(self, tensor, address):
        self.addresses[tensor] = address
        return True

    def execute_async_v3(self, stream_handle):
        return self.context.execute_async_v2(bindings=self.addresses, stream_handle=stream_handle)


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
    """A TensorRT engine as `mnist.engines.registry` wants it: raw pixels in, log-probabilities out.

    Shape and addresses are fixed once, when it is opened. A shorter batch is padded up to
    `batch_size`; what comes of the padding is never given out.
    """

    name = "tensorrt"
    device = "cuda"

    def __init__(self, trt, loaded, image_set, precision, batch_size, memory):
        """`loaded`: from `load_engine`. `memory`: an instance of one of cuda.py's MEMORIES."""
        smallest, largest = loaded.batches
        if not smallest <= batch_size <= largest:
            raise UnavailableError(f"this engine takes batches of {smallest} to {largest}, "
                                   f"not {batch_size}")
        super().__init__(memory, batch_size, image_set)
        self.image_set, self.precision, self.loaded = image_set, precision, loaded
        context, log = loaded.context, loaded.log
        if loaded.is_dynamic and not context.set_input_shape(loaded.image, self.pixels.shape):
            raise MNISTError(f"TensorRT refused batch {batch_size}: {log.last_words()}")
        for tensor, buffer in ((loaded.image, self.device_pixels),
                               (loaded.log_probs, self.device_log_probs)):
            if not context.set_tensor_address(tensor, memory.address(buffer)):
                raise MNISTError(f"TensorRT refused a buffer: {log.last_words()}")
        self.detail = f"{flavour(trt)}, {memory.name} memory"

    def start_alone(self):
        """Start the engine on the images that are on the GPU."""
        if not self.loaded.context.execute_async_v3(stream_handle=self.memory.stream_handle):
            words = self.loaded.log.last_words()
            raise MNISTError(f"TensorRT refused to run the engine: {words}")

    def close(self):
        """Give everything back; the order matters to TensorRT."""
        super().close()
        for part in ("context", "engine", "runtime"):
            setattr(self.loaded, part, None)
