"""The buffers of an engine that reads and writes in fixed places, so that a call allocates nothing.

`FixedBuffers` for any engine; `CudaBuffers` for one on a GPU, with the copies there and back, all
of it one launch where there are CUDA graphs. The GPU's memory is `cuda.py`'s.
"""

from mnist.errors import UnavailableError


class FixedBuffers:
    """An engine that reads pixels from one buffer and writes the network's outputs to another.

    pixels     float32 (batch_size, C, H, W), 0…255, a host array, which it reads
    log_probs  float32 (batch_size, K), a host array, which it writes; values for regression

    A shorter batch leaves the rest of `pixels` as it was; what comes of the rest is never given
    out.
    """

    def __call__(self, images):
        """Outputs float32 (B, K) of images uint8 (B, C, H, W), 1 <= B <= batch_size.

        The result is a view of a buffer that the next call overwrites.
        """
        self.compute(self.prepare(images))
        return self.outputs()[:len(images)]

    def prepare(self, images):
        """Put images where the engine reads them until the next `prepare` or call."""
        self.pixels[:len(images)] = images

    def outputs(self):
        """All of `log_probs`, once the engine has written it."""
        return self.log_probs

    def synchronise(self):
        """Wait until what was started is done; a CPU's engine is, when it returns."""


class CudaBuffers(FixedBuffers):
    """An engine on a GPU: pixels copied in, the network, log_probs copied out, on one stream.

    A subclass gives `start_alone()`, which starts the network on `device_pixels` and
    `device_log_probs`. The first call does it step by step, since libraries set themselves up and
    allocate in it, which a CUDA graph can't hold; then the steps are captured once, where this
    memory and CUDA can, and replayed: one launch per call instead of a dozen.
    """

    def __init__(self, memory, batch_size, image_set):
        """`memory`: an instance of one of `mnist.engines.cuda.MEMORIES`."""
        self.memory, self.batch_size = memory, batch_size
        self.pixels = memory.host((batch_size,) + image_set.shape)
        self.log_probs = memory.host((batch_size, image_set.outputs))
        self.device_pixels = memory.device(self.pixels.shape)
        self.device_log_probs = memory.device(self.log_probs.shape)
        self.run_all, self.run_alone = self.start_first, self.start_alone

    def start_all(self):
        """Start copying the pixels in, the network, and copying log_probs out."""
        self.memory.upload(self.device_pixels, self.pixels)
        self.start_alone()
        self.memory.download(self.log_probs, self.device_log_probs)

    def start_first(self):
        """The first `start_all`, and then the CUDA graphs that take its place."""
        self.start_all()
        self.memory.synchronise()
        try:
            self.run_all = self.memory.capture(self.start_all)
            self.run_alone = self.memory.capture(self.start_alone)
            graph = "CUDA graph"
        except UnavailableError as error:
            self.run_all, self.run_alone = self.start_all, self.start_alone
            graph = f"no CUDA graph: {error}"
        self.detail += ", " + graph

    def __call__(self, images):
        super().prepare(images)
        self.run_all()
        self.memory.synchronise()
        return self.log_probs[:len(images)]

    def prepare(self, images):
        super().prepare(images)
        self.memory.upload(self.device_pixels, self.pixels)
        self.memory.synchronise()

    def compute(self, x):
        """Start the network alone on what `prepare` put on the GPU."""
        self.run_alone()

    def synchronise(self):
        """Wait until the GPU has done what was started."""
        self.memory.synchronise()

    def close(self):
        """Give all memory back; results that are still in use stay."""
        self.synchronise()
        self.run_all = self.run_alone = self.device_pixels = self.device_log_probs = None
        self.pixels = self.log_probs = None
        self.memory.close()
