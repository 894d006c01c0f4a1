"""PyTorch's engines: eager, compiled, as a CUDA graph, and in the loop that most tutorials write.

Each is opened by `MNISTengine.open_engine`. Uses torch, and torchvision for the usual loop alone.
"""

import copy

import numpy as np

from MNISTbuffers import CudaBuffers
from MNISTdsource import MEAN, STD, normalise
from MNISTscript import package_missing


class TorchEngine:
    """PyTorch, eager, on the CPU or a CUDA GPU.

    On the CPU the weights are channels-last, which oneDNN runs up to twice as fast; on a GPU the
    pixels travel as bytes through page-locked memory, and float32 means float32 (no TF32).
    """

    name = "torch"

    def __init__(self, net, device, precision, batch_size):
        import torch

        from MNISTfold import channels_last, fold
        self.torch = torch
        self.device, self.precision, self.batch_size = device, precision, batch_size
        self.net = fold(net).to(device)
        if device == "cpu":
            self.net = channels_last(self.net)
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
    """PyTorch, compiled by `torch.compile` for one batch size in its first call.

    A shorter batch is padded, since every new shape would be compiled anew.
    """

    name = "torch-compile"

    def __init__(self, net, device, precision, batch_size):
        super().__init__(net, device, precision, batch_size)
        self.padded = np.zeros((batch_size, 28, 28), np.uint8)
        self.net = self.torch.compile(self.net, dynamic=False)

    def pad(self, images):
        if len(images) == self.batch_size:
            return images
        self.padded[:len(images)] = images
        return self.padded

    def __call__(self, images):
        return super().__call__(self.pad(images))[:len(images)]

    def prepare(self, images):
        return super().prepare(self.pad(images))


class TorchGraphEngine(CudaBuffers):
    """PyTorch on a CUDA GPU, all its work captured once in a CUDA graph and then replayed."""

    name = "torch-graph"

    def __init__(self, net, device, precision, batch_size):
        import torch

        from MNISTcuda import TorchMemory
        from MNISTfold import fold
        super().__init__(TorchMemory(), batch_size)
        self.torch, self.device, self.precision = torch, device, precision
        forbid_tf32(torch)
        self.net = fold(net).to(device)
        self.detail = f"torch {torch.__version__}, {torch.cuda.get_device_name()}"

    def start_alone(self):
        with self.torch.no_grad(), self.torch.cuda.stream(self.memory.stream):
            self.device_log_probs.copy_(self.net(self.device_pixels))


class UsualLoop:
    """What most tutorials write: torchvision's dataset, transforms for each image, a DataLoader.

    It begins at the dataset, so its end-to-end time is that of `loop`, which the stopwatch prefers
    to single calls where an engine has it.
    """

    name = "usual-loop"

    def __init__(self, net, device, precision, batch_size):
        import torch
        import torchvision

        self.torch = torch
        self.device, self.precision, self.batch_size = device, precision, batch_size
        self.net = copy.deepcopy(net).eval().to(device)
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


def torch_missing(device, precision="fp32"):
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
