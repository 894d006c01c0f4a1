"""Engines on the exported graph that come as one package: ONNX Runtime and OpenVINO.

Each is opened by `mnist.engines.registry.open_engine`.
"""

import functools
import io

import numpy as np

from mnist.engines.buffers import FixedBuffers
from mnist.engines.int8 import quantize_missing, unsigned_activations
from mnist.engines.pytorch import cpu_flags, torch_missing
from mnist.engines.tuning import describe_threads, quickest, settings_to_try
from mnist.errors import UnavailableError, package_missing
from mnist.machine import usable_cpus


def open_onnxruntime(graph, image_set, device, precision, batch_size, tuning=True, threads=None,
                     **_):
    """An `OnnxRuntimeEngine` on an exported graph (bytes), on the CPU with the quickest settings:
    see `mnist.engines.tuning.settings_to_try`."""
    # Without VNNI, products of unsigned numbers and signed ones may overflow.
    if precision == "int8" and device == "cpu" and cpu_flags() & {"avx512_vnni", "avx_vnni"}:
        graph = unsigned_activations(graph)
    make = functools.partial(OnnxRuntimeEngine, graph, image_set, device, precision, batch_size)
    if device != "cpu":
        return make()
    # What "all" adds to "extended" is a layout that pads channels to multiples of 16: it pays for
    # some networks and costs with others.
    candidates = settings_to_try(tuning, threads, {"threads": usable_cpus(), "level": "all"},
                                 level=("extended", "all"))
    return quickest(make, candidates, describe_onnxruntime)


def describe_onnxruntime(threads, level):
    """The settings of an `OnnxRuntimeEngine` in words."""
    return f"{describe_threads(threads)}, optimisation: {level}"


class OnnxRuntimeEngine(FixedBuffers):
    """ONNX Runtime on an exported graph (bytes), on the CPU or a CUDA GPU.

    `threads`: of the CPU; 0: one per core. `level`: "extended" or "all" of its optimisations.
    """

    name = "onnxruntime"
    PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}

    def __init__(self, graph, image_set, device, precision, batch_size, threads=0, level="all"):
        import onnxruntime

        self.device, self.precision, self.batch_size = device, precision, batch_size
        self.image_set = image_set
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.graph_optimization_level = getattr(
            onnxruntime.GraphOptimizationLevel, "ORT_ENABLE_" + level.upper())
        wanted = self.PROVIDERS[device]
        settings = {} if device == "cpu" else {"use_tf32": str(int(precision == "tf32"))}
        self.session = onnxruntime.InferenceSession(graph, options, providers=[(wanted, settings)])
        provider = self.session.get_providers()[0]
        if provider != wanted:  # it takes the CPU where CUDA fails, and only logs that
            raise UnavailableError(f"ONNX Runtime uses {provider} in place of {wanted}; what "
                                   "it printed says why (mostly CUDA or cuDNN of another version)")
        self.pixels = np.zeros((batch_size,) + image_set.shape, np.float32)
        self.log_probs = np.zeros((batch_size, image_set.outputs), np.float32)
        # On the CPU these two are the arrays themselves, on a GPU copies of them there.
        self.x, self.y = (onnxruntime.OrtValue.ortvalue_from_numpy(array, device, 0)
                          for array in (self.pixels, self.log_probs))
        self.binding = self.session.io_binding()
        self.binding.bind_ortvalue_input("image", self.x)
        self.binding.bind_ortvalue_output(image_set.output_name, self.y)
        self.detail = f"ONNX Runtime {onnxruntime.__version__}, {provider}"

    def prepare(self, images):
        super().prepare(images)
        if self.device != "cpu":
            self.x.update_inplace(self.pixels)

    def compute(self, x):
        self.session.run_with_iobinding(self.binding)

    def outputs(self):
        if self.device == "cpu":
            return self.log_probs
        self.synchronise()
        return self.y.numpy()

    def synchronise(self):
        self.binding.synchronize_outputs()

    def close(self):
        self.binding = self.session = self.x = self.y = None


def onnxruntime_missing(device, precision):
    """Why ONNX Runtime can't run on `device` here, with the remedy; None where it can."""
    reason = (torch_missing(device, precision) or package_missing("onnx")
              or package_missing("onnxruntime"))
    if reason or device == "cpu":
        return reason or (quantize_missing() if precision == "int8" else None)
    import onnxruntime
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return "this onnxruntime is a CPU build; pip install onnxruntime-gpu in its place"
    if hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()  # finds the CUDA and cuDNN that came with torch
    return None


def open_openvino(graph, image_set, device, precision, batch_size, tuning=True, threads=None, **_):
    """An `OpenVinoEngine` with the quickest number of threads, as `open_onnxruntime`."""
    make = functools.partial(OpenVinoEngine, graph, image_set, device, precision, batch_size)
    candidates = settings_to_try(tuning, threads, {"threads": usable_cpus()})
    return quickest(make, candidates, describe_threads)


class OpenVinoEngine(FixedBuffers):
    """OpenVINO on an exported graph (bytes), on the CPU with so many `threads`."""

    name = "openvino"

    def __init__(self, graph, image_set, device, precision, batch_size, threads):
        import openvino
        self.device, self.precision, self.batch_size = device, precision, batch_size
        self.image_set = image_set
        core = openvino.Core()
        model = core.read_model(io.BytesIO(graph))
        model.reshape([batch_size] + list(image_set.shape))
        settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads,
                    # Left alone, it rounds to bfloat16 where the CPU can.
                    "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32"}
        self.model = core.compile_model(model, "CPU", settings)
        self.request = self.model.create_infer_request()
        self.pixels = self.request.get_input_tensor().data
        self.log_probs = self.request.get_output_tensor().data
        self.detail = "OpenVINO " + openvino.__version__.split("-")[0]

    def compute(self, x):
        self.request.infer()

    def close(self):
        self.pixels = self.log_probs = self.request = self.model = None


def openvino_missing(device, precision):
    """Why OpenVINO can't compute so here, with the remedy; None where it can."""
    reason = (torch_missing(device) or package_missing("onnx") or package_missing("openvino"))
    if reason:
        return reason
    if precision == "int8":
        return quantize_missing()
    if precision == "bf16" and "BF16" not in openvino_capabilities():
        return "this CPU has no bf16 that OpenVINO knows of (AVX512-BF16 or AMX)"
    return None


@functools.lru_cache(maxsize=None)
def openvino_capabilities():
    """What the CPU is quick at, in OpenVINO's words: FP32, INT8, BF16…"""
    import openvino
    return tuple(openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
