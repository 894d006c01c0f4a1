"""Memory, stream and graphs of a GPU, through torch or pycuda: whichever is there."""

import atexit
import collections
import functools

import numpy as np

from mnist.errors import MNISTError, UnavailableError
from mnist.machine import pycuda_gpu, torch_gpu


@functools.lru_cache(maxsize=None)
def primary_context(cuda):
    """pycuda's handle on the GPU's primary context: the one that torch and TensorRT use too, so
    that all can live in one process. Kept as long as that lives, then given back by hand: pycuda's
    own clean-up calls cuCtxDetach, which is for other contexts."""
    context = cuda.Device(0).retain_primary_context()
    atexit.register(context.detach)
    return context


def in_context(method):
    """Run a method of `PycudaMemory` in the primary context, whatever thread calls it."""
    @functools.wraps(method)
    def run(self, *arguments):
        self.context.push()
        try:
            return method(self, *arguments)
        finally:
            self.cuda.Context.pop()
    return run


class PycudaMemory:
    """Page-locked arrays, device buffers, copies and one stream, through pycuda."""

    name = "pycuda"

    @staticmethod
    def missing():
        """None where it works, else the reason."""
        try:
            import pycuda.driver as cuda
        except ImportError as error:
            return f"pycuda can't be imported ({error})"
        try:
            cuda.init()
            return None if cuda.Device.count() else "pycuda sees no GPU"
        except cuda.Error as error:
            return f"pycuda sees no GPU ({error})"

    @staticmethod
    def gpu():
        """Name and compute capability of the GPU."""
        import pycuda.driver as cuda
        return pycuda_gpu(cuda)

    def __init__(self):
        import pycuda.driver as cuda
        cuda.init()
        self.cuda, self.context = cuda, primary_context(cuda)
        self.make_stream()

    @in_context
    def make_stream(self):
        self.stream = self.cuda.Stream()
        self.stream_handle = self.stream.handle
        self.held = [self.stream]  # what has to be given back in the context it was made in

    @in_context
    def host(self, shape):
        """A page-locked float32 numpy array of zeros."""
        self.held.append(self.cuda.pagelocked_zeros(shape, np.float32))
        return self.held[-1]

    @in_context
    def device(self, shape):
        """A float32 buffer on the GPU."""
        self.held.append(self.cuda.mem_alloc(int(np.prod(shape)) * 4))
        return self.held[-1]

    def address(self, buffer):
        """A device buffer's address."""
        return int(buffer)

    @in_context
    def upload(self, buffer, array):
        """Start copying a host array into a device buffer."""
        self.cuda.memcpy_htod_async(buffer, array, self.stream)

    @in_context
    def download(self, array, buffer):
        """Start copying a device buffer into a host array."""
        self.cuda.memcpy_dtoh_async(array, buffer, self.stream)

    @in_context
    def synchronise(self):
        """Wait until everything started on the stream is done."""
        self.stream.synchronize()

    def capture(self, work):
        """A CUDA graph of what `work` starts, as a function: pycuda has no such thing."""
        raise UnavailableError("pycuda has none")

    @in_context
    def close(self):
        """Give everything back that nobody else holds any longer."""
        self.stream = None
        self.held.clear()


class TorchMemory:
    """The same through torch's CUDA tensors, and CUDA graphs as well."""

    name = "torch"

    @staticmethod
    def missing():
        """None where it works, else the reason."""
        import torch
        if torch.cuda.is_available():
            return None
        return ("torch sees no GPU" if torch.version.cuda else
                "this torch is a CPU build (pytorch.org/get-started has those with CUDA)")

    @staticmethod
    def gpu():
        """Name and compute capability of the GPU."""
        import torch
        return torch_gpu(torch)

    def __init__(self):
        import torch
        self.torch = torch
        self.stream = torch.cuda.Stream()  # the default stream would make TensorRT synchronise
        self.stream_handle = self.stream.cuda_stream

    def host(self, shape):
        """A page-locked float32 numpy array of zeros."""
        return self.torch.zeros(shape, dtype=self.torch.float32, pin_memory=True).numpy()

    def device(self, shape):
        """A float32 buffer on the GPU."""
        return self.torch.empty(shape, dtype=self.torch.float32, device="cuda")

    def address(self, buffer):
        """A device buffer's address."""
        return buffer.data_ptr()

    def upload(self, buffer, array):
        """Start copying a host array into a device buffer."""
        with self.torch.cuda.stream(self.stream):
            buffer.copy_(self.torch.from_numpy(array), non_blocking=True)

    def download(self, array, buffer):
        """Start copying a device buffer into a host array."""
        with self.torch.cuda.stream(self.stream):
            self.torch.from_numpy(array).copy_(buffer, non_blocking=True)

    def synchronise(self):
        """Wait until everything started on the stream is done."""
        self.stream.synchronize()

    def capture(self, work):
        """A CUDA graph of what `work` starts, as a function that starts it all at once.

        Raises UnavailableError where this torch, its CUDA (10.2 on a Jetson Nano) or TensorRT
        can't.
        """
        try:
            graph = self.torch.cuda.CUDAGraph()
            with self.torch.cuda.graph(graph, stream=self.stream):
                work()
        except (AttributeError, RuntimeError, MNISTError) as error:
            raise UnavailableError(str(error).split("\n")[0]) from error

        def replay():
            with self.torch.cuda.stream(self.stream):
                graph.replay()

        return replay

    def close(self):
        """torch gives back what nobody holds any longer by itself."""


# auto takes the first that works: torch, since it alone has CUDA graphs.
MEMORIES = collections.OrderedDict((kind.name, kind) for kind in (TorchMemory, PycudaMemory))


def choose_memory(wanted="auto"):
    """The class for GPU memory that `--memory` names; auto: the first that works.

    Raises UnavailableError with the reasons where none does.
    """
    reasons = []
    for name in MEMORIES if wanted == "auto" else [wanted]:
        reason = MEMORIES[name].missing()
        if reason is None:
            return MEMORIES[name]
        reasons.append(reason)
    raise UnavailableError("no GPU can be used here: " + ", ".join(reasons))


def find_gpu():
    """Name and compute capability of the GPU: ("NVIDIA Tegra X1", "5.3"); (None, None) without."""
    for memory in MEMORIES.values():
        if memory.missing() is None:
            return memory.gpu()
    return None, None
