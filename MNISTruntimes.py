"""Engines on the exported graph that come as one package: ONNX Runtime and OpenVINO.

Each is opened by `MNISTengine.open_engine`.
"""

import io

import numpy as np

from MNISTbuffers import FixedBuffers
from MNISTscript import UnavailableError, package_missing
from MNISTtorch import torch_missing


class OnnxRuntimeEngine(FixedBuffers):
    """ONNX Runtime on the exported graph, on the CPU or a CUDA GPU."""

    name = "onnxruntime"
    PROVIDERS = {"cpu": ("CPUExecutionProvider", {}),
                 "cuda": ("CUDAExecutionProvider", {"use_tf32": "0"})}

    def __init__(self, net, device, precision, batch_size):
        import onnxruntime
        import torch

        from MNISTonnx import onnx_bytes
        self.device, self.precision, self.batch_size = device, precision, batch_size
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        # The level above this one pads channels to multiples of 16 (20 and 50 to 32 and 64), which
        # costs more here than its layout gains: measured, a fifth of the time.
        options.graph_optimization_level = (
            onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED)
        wanted = self.PROVIDERS[device]
        self.session = onnxruntime.InferenceSession(onnx_bytes(net), options,
                                                    providers=[wanted])
        provider = self.session.get_providers()[0]
        if provider != wanted[0]:  # it takes the CPU where CUDA fails, and only logs that
            raise UnavailableError(f"ONNX Runtime uses {provider} in place of {wanted[0]}; what "
                                   "it printed says why (mostly CUDA or cuDNN of another version)")
        self.pixels = np.zeros((batch_size, 1, 28, 28), np.float32)
        self.log_probs = np.zeros((batch_size, 10), np.float32)
        # On the CPU these two are the arrays themselves, on a GPU copies of them there.
        self.x, self.y = (onnxruntime.OrtValue.ortvalue_from_numpy(array, device, 0)
                          for array in (self.pixels, self.log_probs))
        self.binding = self.session.io_binding()
        self.binding.bind_ortvalue_input("image", self.x)
        self.binding.bind_ortvalue_output("log_probs", self.y)
        self.detail = f"ONNX Runtime {onnxruntime.__version__}, {provider}"
        if device == "cpu":
            self.detail += f", {options.intra_op_num_threads} threads"

    def prepare(self, images):
        super().prepare(images)
        if self.device != "cpu":
            self.x.update_inplace(self.pixels)

    def compute(self, x):
        self.session.run_with_iobinding(self.binding)

    def answers(self):
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
        return reason
    import onnxruntime
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return "this onnxruntime is a CPU build; pip install onnxruntime-gpu in its place"
    if hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()  # finds the CUDA and cuDNN that came with torch
    return None


class OpenVinoEngine(FixedBuffers):
    """OpenVINO on the exported graph, on the CPU."""

    name = "openvino"

    def __init__(self, net, device, precision, batch_size):
        import openvino
        import torch

        from MNISTonnx import onnx_bytes
        self.device, self.precision, self.batch_size = device, precision, batch_size
        core = openvino.Core()
        model = core.read_model(io.BytesIO(onnx_bytes(net)))
        model.reshape([batch_size, 1, 28, 28])
        threads = torch.get_num_threads()
        self.model = core.compile_model(model, "CPU", {
            "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": "f32"})  # some CPUs would round to bfloat16
        self.request = self.model.create_infer_request()
        self.pixels = self.request.get_input_tensor().data
        self.log_probs = self.request.get_output_tensor().data
        version = openvino.__version__.split("-")[0]
        self.detail = f"OpenVINO {version}, {threads} threads"

    def compute(self, x):
        self.request.infer()

    def close(self):
        self.pixels = self.log_probs = self.request = self.model = None


def openvino_missing(device, precision):
    """Why OpenVINO can't run here, with the remedy; None where it can."""
    return (torch_missing(device, precision) or package_missing("onnx")
            or package_missing("openvino"))
