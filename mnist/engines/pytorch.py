"""PyTorch's engines: eager, compiled, as a CUDA graph, and in the loop that most tutorials write.

Each is opened by `open_engine` of registry.py. torchvision is used by the usual loop alone.
"""

import contextlib
import copy
import ctypes
import functools
import sys

import numpy as np

from mnist.engines.buffers import CudaBuffers
from mnist.engines.tuning import describe_threads, quickest, settings_to_try
from mnist.errors import package_missing
from mnist.machine import read, usable_cpus


def open_torch(network, device, precision, batch_size, tuning=True, threads=None, **_):
    """The `TorchEngine` with the quickest settings; see `mnist.engines.tuning.settings_to_try`."""
    candidates = settings_to_try(tuning, threads if device == "cpu" else 1,
                                 {"threads": default_threads(), "channels_last": False},
                                 channels_last=(False, True))
    make = functools.partial(TorchEngine, network, device, precision, batch_size)
    return quickest(make, candidates, functools.partial(describe_settings, device))


def describe_settings(device, threads, channels_last):
    """The settings of a `TorchEngine` in words."""
    layout = "channels-last" if channels_last else "channels-first"
    return f"{describe_threads(threads)}, {layout}" if device == "cpu" else layout


class TorchEngine:
    """PyTorch, eager, on the CPU or a CUDA GPU.

    On a GPU the pixels travel as bytes through page-locked memory. `threads`: of the CPU; None:
    torch's choice. `channels_last`: the layout of the maps, which suits some CPUs and GPUs better.
    """

    name = "torch"

    def __init__(self, network, device, precision, batch_size, threads=None, channels_last=False):
        import torch

        import mnist.models.fold
        self.torch, self.image_set = torch, network.image_set
        self.device, self.precision, self.batch_size = device, precision, batch_size
        self.threads = threads or default_threads()
        folded = mnist.models.fold.fold(network.net, self.image_set)
        self.net = mnist.models.fold.rounded(folded, precision).to(device)
        if channels_last:
            self.net = mnist.models.fold.channels_last(self.net, self.image_set)
        self.detail = f"torch {torch.__version__}"
        if device == "cpu":
            keep_freed_memory()
        else:
            shape = (batch_size,) + self.image_set.shape
            self.pinned_in = torch.empty(shape, dtype=torch.uint8).pin_memory()
            self.pinned_out = torch.empty((batch_size, self.image_set.outputs)).pin_memory()
            self.detail += f", {torch.cuda.get_device_name()}"
        self.begin_turn()

    def __call__(self, images):
        log_probs = self.compute(self.prepare(images))
        if self.device != "cpu":
            pinned = self.pinned_out[:len(log_probs)]
            pinned.copy_(log_probs, non_blocking=True)
            self.synchronise()
            log_probs = pinned
        return log_probs.numpy()[:len(images)]

    def prepare(self, images):
        pixels = self.torch.from_numpy(images)
        if self.device != "cpu":
            pinned = self.pinned_in[:len(images)]
            pinned.copy_(pixels)
            pixels = pinned.to(self.device, non_blocking=True)
        return pixels.float()

    def begin_turn(self):
        """Set what torch keeps for the whole process, and what other engines want otherwise."""
        if self.device != "cpu":
            allow_tf32(self.torch, self.precision == "tf32")
        elif self.torch.get_num_threads() != self.threads:
            self.torch.set_num_threads(self.threads)

    def compute(self, x):
        with self.torch.inference_mode():
            return self.net(x)

    def synchronise(self):
        if self.device != "cpu":
            self.torch.cuda.current_stream().synchronize()

    def close(self):
        self.net = None


@functools.lru_cache(maxsize=None)
def default_threads():
    """The number of threads that torch chooses itself, of the CPUs that may be used."""
    import torch
    return min(torch.get_num_threads(), usable_cpus())


def allow_tf32(torch, allowed):
    """Let float32 on a GPU be TF32, which keeps 10 of its 23 bits, or make it mean float32."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = allowed


def keep_freed_memory():
    """Have glibc keep the memory that torch frees after a layer or a step for the next one.

    It gives large blocks back to the system at once, and the system fills them with zeros when they
    are asked for anew: that takes up to a quarter of a training step, and a third of a batch of
    pictures, in some processes and not in others. Other libraries than glibc don't know this.
    Source: man 3 mallopt.
    """
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(M_MMAP_MAX, 0)  # no block of its own for anything
            mallopt(M_TRIM_THRESHOLD, 1 << 30)


M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # from glibc's malloc.h


class TorchCompileEngine(TorchEngine):
    """PyTorch, compiled by `torch.compile` for one batch size in its first call.

    A shorter batch is padded, since every new shape would be compiled anew.
    """

    name = "torch-compile"

    def __init__(self, network, device, precision, batch_size, threads=None, **_):
        super().__init__(network, device, precision, batch_size, threads, channels_last=True)
        self.detail += ", " + describe_settings(device, self.threads, True)
        self.padded = np.zeros((batch_size,) + self.image_set.shape, np.uint8)
        self.net = self.torch.compile(self.net, dynamic=False)

    def prepare(self, images):
        if len(images) < self.batch_size:
            self.padded[:len(images)] = images
            images = self.padded
        return super().prepare(images)


class TorchGraphEngine(CudaBuffers):
    """PyTorch on a CUDA GPU, all its work captured once in a CUDA graph and then replayed."""

    name = "torch-graph"

    def __init__(self, network, device, precision, batch_size, **_):
        import torch

        from mnist.engines.cuda import TorchMemory
        from mnist.models.fold import fold, rounded
        super().__init__(TorchMemory(), batch_size, network.image_set)
        self.torch, self.device, self.precision = torch, device, precision
        self.net = rounded(fold(network.net, network.image_set), precision).to(device)
        self.detail = f"torch {torch.__version__}, {torch.cuda.get_device_name()}"
        self.begin_turn()

    def begin_turn(self):
        allow_tf32(self.torch, self.precision == "tf32")

    def start_alone(self):
        with self.torch.no_grad(), self.torch.cuda.stream(self.memory.stream):
            self.device_log_probs.copy_(self.net(self.device_pixels))


class UsualLoop(TorchEngine):
    """What most tutorials write: torchvision's dataset, transforms for each image, a DataLoader.

    It begins at the dataset, so its end-to-end time is that of `loop`, which the stopwatch prefers
    to single calls where an engine has it.
    """

    name = "usual-loop"

    def __init__(self, network, device, precision, batch_size, threads=None, **_):
        import torch
        import torchvision

        self.torch, self.image_set = torch, network.image_set
        self.device, self.precision, self.batch_size = device, precision, batch_size
        self.net = copy.deepcopy(network.net).eval().to(device)
        self.threads = threads or default_threads()
        self.detail = f"torch {torch.__version__}, torchvision {torchvision.__version__}"
        if device == "cpu":
            self.detail += f", {describe_threads(self.threads)}"
        self.begin_turn()

    def loop(self, images):
        """Yield the log_probs of one batch of the images (uint8 (N, C, H, W)) after the other."""
        dataset = usual_dataset(self.image_set, images, np.zeros(len(images), np.int64))
        loader = self.torch.utils.data.DataLoader(dataset, batch_size=self.batch_size)
        for x, _ in loader:
            yield self.compute(x.to(self.device)).cpu().numpy()

    def __call__(self, images):
        return next(self.loop(images))

    def prepare(self, images):
        return self.torch.from_numpy(self.image_set.normalise(images)).to(self.device)

    def compute(self, x):
        with self.torch.no_grad():
            return self.net(x)


def usual_dataset(image_set, images, targets):
    """torchvision's MNIST or CIFAR10 with the usual transforms, over images that are already here:
    uint8 (N, C, H, W), targets (N,)."""
    import torch
    from torchvision import datasets, transforms

    usual = transforms.Compose([transforms.ToTensor(),
                                transforms.Normalize(image_set.mean, image_set.std)])
    kind = datasets.MNIST if image_set.shape[0] == 1 else datasets.CIFAR10
    dataset = kind.__new__(kind)  # without its files
    datasets.VisionDataset.__init__(dataset, "", transform=usual)
    if image_set.shape[0] == 1:
        dataset.data, dataset.targets = torch.from_numpy(images[:, 0]), torch.from_numpy(targets)
    else:
        dataset.data, dataset.targets = images.transpose(0, 2, 3, 1), targets.tolist()
    return dataset


def torch_missing(device, precision="fp32"):
    """Why PyTorch can't run so on `device` here, with the remedy; None where it can."""
    try:
        import torch
    except ImportError:
        return "PyTorch is not installed; pip install torch"
    if device == "cpu":
        return bfloat16_missing(device) if precision == "bf16" else None
    if not torch.cuda.is_available():
        if torch.version.cuda is None:
            return "this torch is a CPU build; install one with CUDA (pytorch.org/get-started)"
        return "torch finds no usable NVIDIA GPU or driver; nvidia-smi shows what is there"
    try:
        torch.zeros(1, device="cuda").add_(1).item()
    except RuntimeError as error:  # a GPU too old or too new for this build of torch
        return "CUDA doesn't work here: " + str(error).strip().split("\n")[0]
    return ampere_missing(precision) if precision in ("bf16", "tf32") else None


def ampere_missing(precision):
    """Why the GPU itself doesn't compute in bf16 or tf32; None where it does."""
    import torch
    if torch.cuda.get_device_capability() < (8, 0):
        return f"{torch.cuda.get_device_name()} has no {precision}; GPUs from Ampere on have"
    return None


def bfloat16_missing(device):
    """Why the processor itself doesn't compute in bfloat16, which torch would then emulate, slowly;
    None where it does."""
    import torch
    if device == "cuda":
        return ampere_missing("bf16")
    if not hasattr(torch, "amp"):
        return "this torch is too old to compute in bf16 on a CPU"
    if not cpu_flags() & {"avx512_bf16", "amx_bf16"}:
        return "this CPU has neither AVX512-BF16 nor AMX (as far as the system tells)"
    return None


def cpu_flags():
    """The features of the CPU that Linux lists; empty elsewhere."""
    lines = (read("/proc/cpuinfo") or "").splitlines()
    return set(next((line for line in lines if line.startswith("flags")), "").split())


def torch_compile_missing(device, precision):
    """The same for `torch.compile`."""
    reason = torch_missing(device, precision)
    if reason:
        return reason
    import torch
    return None if hasattr(torch, "compile") else "this torch has no torch.compile; 2.0 has"


def torch_graph_missing(device, precision):
    """The same for CUDA graphs."""
    reason = torch_missing(device, precision)
    if reason:
        return reason
    import torch
    return None if hasattr(torch.cuda, "CUDAGraph") else "this torch has no CUDA graphs; 1.10 has"


def usual_loop_missing(device, precision):
    """Why the usual loop can't run on `device` here, with the remedy; None where it can."""
    return torch_missing(device, precision) or package_missing("torchvision")
