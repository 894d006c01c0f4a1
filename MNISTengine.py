"""Everything that can run the network, behind one interface: raw pixels in, log-probabilities out.

An engine is opened by name for one device, precision and batch size:

    engine = open_engine("torch", net, device="cpu", batch_size=64)
    log_probabilities = engine(images)          # uint8 (B, 28, 28) -> float32 (B, 10), B <= 64

and offers two ways in, one for each of the two times that `MNISTtiming` takes:

    engine(images)            end-to-end: pixels in host memory to answers in host memory
    x = engine.prepare(images); engine.compute(x); engine.synchronise()      the network alone

Normalisation is part of every engine, so no caller can forget it. To add an engine: write a class
like `TorchEngine` and give it a line in `ENGINES`.
"""

import collections
import difflib

from MNISTdsource import MEAN, STD, normalise

from MNISTscript import UnavailableError


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
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
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


EngineKind = collections.namedtuple("EngineKind", "name devices precisions missing open")
EngineKind.__doc__ = """One kind of engine.

name        as `--engine` spells it
devices     where it may run, a tuple of "cpu" and "cuda"
precisions  what it can compute in, a tuple of "fp32" and "fp16"
missing     function of a device: why it can't run there on this machine, or None
open        function of (net, device, precision, batch_size): the engine
"""

ENGINES = collections.OrderedDict((kind.name, kind) for kind in (
    EngineKind("torch", ("cpu", "cuda"), ("fp32",), torch_missing, TorchEngine),
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
    import numpy as np
    import torch
    with torch.inference_mode():
        chunks = [images[start:start + 500] for start in range(0, len(images), 500)]
        return np.concatenate([net(torch.from_numpy(normalise(c))).numpy() for c in chunks])
