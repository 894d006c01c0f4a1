"""Everything that can run the network, behind one interface: raw pixels in, log-probabilities out.

An engine is opened by name for one device, precision and batch size:

    engine = open_engine("torch", net, device="cpu", batch_size=64)
    log_probabilities = engine(images)          # uint8 (B, 28, 28) -> float32 (B, 10), B <= 64

and offers two ways in, one for each of the two times that `MNISTtiming` takes:

    engine(images)            end-to-end: pixels in host memory to answers in host memory
    x = engine.prepare(images); engine.compute(x); engine.synchronise()      the network alone

The answers may lie in a buffer that the next call overwrites. An engine that brings data handling
of its own also has `loop(images)`, which yields the answers of one batch after the other and takes
the place of single calls on the end-to-end clock. Normalisation is part of every
engine, so no caller can forget it. To add an engine: write a class like `TorchEngine` and give it a
line in `ENGINES`.
"""

import collections
import difflib
import importlib

import numpy as np

from MNISTdsource import MEAN, STD, normalise
from MNISTscript import UnavailableError

# --- PyTorch --------------------------------------------------------------------------------------


class TorchEngine:
    """PyTorch, eager, on the CPU or a CUDA GPU.

    On the CPU the weights are channels-last, which oneDNN runs up to twice as fast; on a GPU the
    pixels travel as bytes through page-locked memory, and float32 means float32 (no TF32).
    """

    name = "torch"

    def __init__(self, net, device, precision, batch_size):
        import torch

        from MNISTmodel import fold_normalisation
        self.torch = torch
        self.device, self.precision, self.batch_size = device, precision, batch_size
        self.net = fold_normalisation(net, MEAN, STD).eval().to(device)
        if device == "cpu":
            self.net = self.net.to(memory_format=torch.channels_last)
            self.detail = f"torch {torch.__version__}, {torch.get_num_threads()} threads"
        else:
            forbid_tf32(torch)
            self.pinned_in = torch.empty((batch_size, 28, 28), dtype=torch.uint8).pin_memory()
            self.pinned_out = torch.empty((batch_size, 10)).pin_memory()
            self.detail = f"torch {torch.__version__}, {torch.cuda.get_device_name()}"

    def __call__(self, images):
        with self.torch.inference_mode():
            if self.device == "cpu":
                return self.net(self.prepare(images)).numpy()
            answers = self.pinned_out[:len(images)]
            answers.copy_(self.net(self.prepare(images)), non_blocking=True)
            self.synchronise()
            return answers.numpy()

    def prepare(self, images):
        pixels = self.torch.from_numpy(images)
        if self.device != "cpu":
            pinned = self.pinned_in[:len(images)]
            pinned.copy_(pixels)
            pixels = pinned.to(self.device, non_blocking=True)
        return pixels.unsqueeze(1).float()

    def compute(self, x):
        with self.torch.inference_mode():
            return self.net(x)

    def synchronise(self):
        if self.device != "cpu":
            self.torch.cuda.current_stream().synchronize()

    def close(self):
        self.net = None


def forbid_tf32(torch):
    """Make float32 on a GPU mean float32: TF32 keeps 10 of its 23 bits."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


class TorchCompileEngine(TorchEngine):
    """PyTorch, compiled by `torch.compile` for one batch size while it is opened.

    A shorter batch is padded, since every new shape would be compiled anew.
    """

    name = "torch-compile"

    def __init__(self, net, device, precision, batch_size):
        super().__init__(net, device, precision, batch_size)
        self.padded = np.zeros((batch_size, 28, 28), np.uint8)
        self.net = self.torch.compile(self.net, dynamic=False)
        try:
            self(self.padded)
        except Exception as error:  # each of its many stages raises errors of its own
            raise UnavailableError("torch.compile fails here: "
                                   + str(error).strip().split("\n")[0]) from error

    def pad(self, images):
        if len(images) == self.batch_size:
            return images
        self.padded[:len(images)] = images
        return self.padded

    def __call__(self, images):
        return super().__call__(self.pad(images))[:len(images)]

    def prepare(self, images):
        return super().prepare(self.pad(images))


class FixedBuffers:
    """What engines share that read grey levels from one fixed buffer and write answers to another,
    so that a call allocates nothing.

    `pixels`: the float32 (batch_size, 1, 28, 28) host array that they read. A shorter batch leaves
    the rest of it as it was; what comes of the rest is never given out.
    """

    def __call__(self, images):
        self.compute(self.prepare(images))
        return self.answers()[:len(images)]

    def prepare(self, images):
        self.pixels[:len(images), 0] = images

    def synchronise(self):
        pass


class TorchGraphEngine(FixedBuffers):
    """PyTorch on a CUDA GPU, all its work captured once in a CUDA graph and then replayed: one
    launch per call instead of one for every copy and kernel."""

    name = "torch-graph"

    def __init__(self, net, device, precision, batch_size):
        import torch

        from MNISTmodel import fold_normalisation
        from MNISTtensorrt import TorchMemory
        self.device, self.precision, self.batch_size = device, precision, batch_size
        forbid_tf32(torch)
        net = fold_normalisation(net, MEAN, STD).eval().to(device)
        self.memory = memory = TorchMemory()
        self.pixels = memory.host((batch_size, 1, 28, 28))
        self.log_probs = memory.host((batch_size, 10))
        self.x = memory.device(self.pixels.shape)

        def run_all():
            memory.upload(self.x, self.pixels)
            memory.download(self.log_probs, net(self.x))

        with torch.no_grad():
            with torch.cuda.stream(memory.stream):
                for _ in range(3):  # libraries set themselves up, which a graph can't hold
                    run_all()
            memory.synchronise()
            self.run_all = memory.capture(run_all)
            self.run_alone = memory.capture(lambda: net(self.x))
        self.detail = f"torch {torch.__version__}, {torch.cuda.get_device_name()}, CUDA graph"

    def __call__(self, images):
        self.pixels[:len(images), 0] = images
        self.run_all()
        self.memory.synchronise()
        return self.log_probs[:len(images)]

    def prepare(self, images):
        super().prepare(images)
        self.memory.upload(self.x, self.pixels)
        self.memory.synchronise()

    def compute(self, x):
        self.run_alone()

    def synchronise(self):
        self.memory.synchronise()

    def close(self):
        self.run_all = self.run_alone = self.x = None


def torch_missing(device):
    """Why PyTorch can't run on `device` here, with the remedy; None where it can."""
    try:
        import torch
    except ImportError:
        return "PyTorch is not installed; pip install torch"
    if device == "cpu":
        return None
    if not torch.cuda.is_available():
        if torch.version.cuda is None:
            return "this torch is a CPU build; install one with CUDA (pytorch.org/get-started)"
        return "torch finds no usable NVIDIA GPU or driver; nvidia-smi shows what is there"
    try:
        torch.zeros(1, device="cuda").add_(1).item()
    except RuntimeError as error:  # a GPU too old or too new for this build of torch
        return "CUDA doesn't work here: " + str(error).strip().split("\n")[0]
    return None


def torch_compile_missing(device):
    """The same for `torch.compile`."""
    reason = torch_missing(device)
    if reason:
        return reason
    import torch
    return None if hasattr(torch, "compile") else "this torch has no torch.compile; 2.0 has"


def torch_graph_missing(device):
    """The same for CUDA graphs."""
    reason = torch_missing(device)
    if reason:
        return reason
    import torch
    return None if hasattr(torch.cuda, "CUDAGraph") else "this torch has no CUDA graphs; 1.10 has"


# --- ONNX Runtime and OpenVINO --------------------------------------------------------------------


class OnnxRuntimeEngine(FixedBuffers):
    """ONNX Runtime on the exported graph, on the CPU or a CUDA GPU."""

    name = "onnxruntime"
    PROVIDERS = {"cpu": ("CPUExecutionProvider", {}),
                 "cuda": ("CUDAExecutionProvider", {"use_tf32": "0"})}

    def __init__(self, net, device, precision, batch_size):
        import onnxruntime
        import torch

        from MNISTmodel import onnx_bytes
        self.device, self.precision, self.batch_size = device, precision, batch_size
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        # The level above this one pads channels to multiples of 16 (20 and 50 to 32 and 64), which
        # costs more here than its layout gains: measured, a fifth of the time.
        options.graph_optimization_level = (
            onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED)
        wanted = self.PROVIDERS[device]
        self.session = onnxruntime.InferenceSession(onnx_bytes(net, MEAN, STD), options,
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


def onnxruntime_missing(device):
    """Why ONNX Runtime can't run on `device` here, with the remedy; None where it can."""
    reason = torch_missing(device) or package_missing("onnx") or package_missing("onnxruntime")
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
        import io

        import openvino
        import torch

        from MNISTmodel import onnx_bytes
        self.device, self.precision, self.batch_size = device, precision, batch_size
        core = openvino.Core()
        model = core.read_model(io.BytesIO(onnx_bytes(net, MEAN, STD)))
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

    def answers(self):
        return self.log_probs

    def close(self):
        self.pixels = self.log_probs = self.request = self.model = None


def openvino_missing(device):
    """Why OpenVINO can't run here, with the remedy; None where it can."""
    return torch_missing(device) or package_missing("onnx") or package_missing("openvino")


def package_missing(name):
    """Why a package can't be imported, with the remedy; None where it can."""
    try:
        importlib.import_module(name)
    except Exception as error:  # broken installations raise much beside ImportError
        if isinstance(error, ImportError) and error.name == name:
            return f"{name} is not installed; pip install {name}"
        return f"{name} can't be imported: " + str(error).strip().split("\n")[0]
    return None


# --- TensorRT -------------------------------------------------------------------------------------


def open_tensorrt(net, device, precision, batch_size):
    """A `MNISTtensorrt.TensorRTEngine`, built the first time and kept."""
    import MNISTtensorrt
    return MNISTtensorrt.open_tensorrt(net, precision, batch_size)


def tensorrt_missing(device):
    """Why TensorRT can't run here, with the remedy; None where it can."""
    import MNISTtensorrt
    return MNISTtensorrt.why_not()


# --- The usual loop -------------------------------------------------------------------------------


class UsualLoop:
    """What most tutorials write: torchvision's dataset, transforms for each image, a DataLoader.

    It begins at the dataset, so its end-to-end time is that of `loop`, which the stopwatch prefers
    to single calls where an engine has it.
    """

    name = "usual-loop"

    def __init__(self, net, device, precision, batch_size):
        import torch
        import torchvision

        from MNISTmodel import Net
        self.torch = torch
        self.device, self.precision, self.batch_size = device, precision, batch_size
        self.net = Net()
        self.net.load_state_dict(net.state_dict())
        self.net.eval().to(device)
        if device != "cpu":
            forbid_tf32(torch)
        self.detail = f"torch {torch.__version__}, torchvision {torchvision.__version__}"

    def loop(self, images):
        """Yield the answers of one batch of the images (uint8 (N, 28, 28)) after the other."""
        dataset = usual_dataset(images, np.zeros(len(images), np.uint8))
        loader = self.torch.utils.data.DataLoader(dataset, batch_size=self.batch_size)
        for x, _ in loader:
            yield self.compute(x.to(self.device)).cpu().numpy()

    def __call__(self, images):
        return next(self.loop(images))

    def prepare(self, images):
        return self.torch.from_numpy(normalise(images)).to(self.device)

    def compute(self, x):
        with self.torch.no_grad():
            return self.net(x)

    def synchronise(self):
        if self.device != "cpu":
            self.torch.cuda.synchronize()

    def close(self):
        self.net = None


def usual_dataset(images, labels):
    """torchvision's MNIST with the usual transforms, over digits that are already here:
    images uint8 (N, 28, 28), labels (N,)."""
    import torch
    from torchvision import datasets, transforms

    class FoundMNIST(datasets.MNIST):
        def _check_exists(self):
            return True

        def _load_data(self):
            return torch.from_numpy(images), torch.from_numpy(labels).long()

    usual = transforms.Compose([transforms.ToTensor(), transforms.Normalize((MEAN,), (STD,))])
    return FoundMNIST("", transform=usual)


def usual_loop_missing(device):
    """Why the usual loop can't run on `device` here, with the remedy; None where it can."""
    return torch_missing(device) or package_missing("torchvision")


# --- The registry ---------------------------------------------------------------------------------

EngineKind = collections.namedtuple("EngineKind", "name devices precisions missing open on_request")
EngineKind.__doc__ = """One kind of engine.

name        as `--engine` spells it
devices     where it may run, a tuple of "cpu" and "cuda"
precisions  what it can compute in, a tuple of "fp32" and "fp16"
missing     function of a device: why it can't run there on this machine, or None
open        function of (net, device, precision, batch_size): the engine
on_request  whether `CompareMNIST.py` times it only when asked for by name, as it takes minutes
"""

ENGINES = collections.OrderedDict((kind.name, kind) for kind in (
    EngineKind("torch", ("cpu", "cuda"), ("fp32",), torch_missing, TorchEngine, False),
    EngineKind("torch-compile", ("cpu", "cuda"), ("fp32",), torch_compile_missing,
               TorchCompileEngine, True),
    EngineKind("torch-graph", ("cuda",), ("fp32",), torch_graph_missing, TorchGraphEngine, False),
    EngineKind("onnxruntime", ("cpu", "cuda"), ("fp32",), onnxruntime_missing, OnnxRuntimeEngine,
               False),
    EngineKind("openvino", ("cpu",), ("fp32",), openvino_missing, OpenVinoEngine, False),
    EngineKind("tensorrt", ("cuda",), ("fp32", "fp16"), tensorrt_missing, open_tensorrt, False),
    EngineKind("usual-loop", ("cpu", "cuda"), ("fp32",), usual_loop_missing, UsualLoop, False),
))


def why_not(name, device="cpu", precision="fp32"):
    """Why this engine can't be had here, in one line with the remedy; None where it can.

    Raises UnavailableError for a name that no engine has.
    """
    if name not in ENGINES:
        near = difflib.get_close_matches(name, ENGINES, n=1)
        raise UnavailableError(f"no engine is called {name!r}" + (
            f"; did you mean {near[0]}?" if near else f"; there are: {', '.join(ENGINES)}"))
    kind = ENGINES[name]
    if device not in kind.devices:
        return f"{name} runs on {' and '.join(kind.devices)}, not on {device}"
    if precision not in kind.precisions:
        return f"{name} computes in {' and '.join(kind.precisions)}, not in {precision}"
    return kind.missing(device)


def open_engine(name, net, device="cpu", precision="fp32", batch_size=64):
    """Open an engine for `net` (a `MNISTmodel.Net`, left as it is) that takes up to `batch_size`.

    Raises UnavailableError with the reason of `why_not` where this machine can't.
    """
    reason = why_not(name, device, precision)
    if reason:
        raise UnavailableError(f"{name} on {device}: {reason}")
    return ENGINES[name].open(net, device, precision, batch_size)


def choose_device(device):
    """ "cpu" or "cuda" for a `--device`, saying what `auto` chose.

    Raises UnavailableError where CUDA is asked for by name and can't be had.
    """
    reason = torch_missing("cuda") if device != "cpu" else None
    if device == "cuda" and reason:
        raise UnavailableError(f"--device cuda: {reason}")
    if device == "auto":
        device = "cpu" if reason else "cuda"
        print(f"device: {device} (auto{': ' + reason if reason else ''})", flush=True)
    return device


def set_threads(threads):
    """Let torch use this many CPU threads (None: leave its choice); returns how many it uses."""
    import torch
    if threads:
        torch.set_num_threads(threads)
    return torch.get_num_threads()


def reference_answers(net, images):
    """The answers that every engine is measured against: torch, CPU, float32, nothing folded.

    `images` uint8 (N, 28, 28) -> float32 (N, 10) log-probabilities.
    """
    import torch
    with torch.inference_mode():
        chunks = [images[start:start + 500] for start in range(0, len(images), 500)]
        return np.concatenate([net(torch.from_numpy(normalise(c))).numpy() for c in chunks])
