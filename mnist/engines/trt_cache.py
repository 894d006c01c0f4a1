"""TensorRT engines kept as files: built once for a network, used only as recorded, opened.

The way: `EngineFile` exports the graph, has the engine built and keeps it; `cached_engine` opens it
for a network, `engine_from_file` one that was built elsewhere. docs/tensorrt.md tells the same step
by step.
"""

import os
import sys
import time

from mnist.engines.cuda import choose_memory, find_gpu
from mnist.engines.int8 import keep, network_graph, read_kept, weights_in_float
from mnist.engines.trt import (
    WORKSPACE_MIB,
    TensorRTEngine,
    build_engine,
    flavour,
    graph_precision,
    import_tensorrt,
    is_portable,
    load_engine,
)
from mnist.errors import MNISTError, UnavailableError, warn
from mnist.files import digest


def engine_path(stem, precision, batches):
    """Where an engine is kept: net.rt, net-b64.rt, net-b1to64-fp16.rt…"""
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

    def __init__(self, network, precision, batches, calibration=None):
        """`network`: a `Network`, beside whose weights the file is kept. `batches`: smallest and
        largest batch of the engine. `calibration`: see `int8_graph`."""
        from mnist.models.weights import weights_digest

        self.trt = import_tensorrt()
        self.network, self.precision, self.batches = network, precision, batches
        self.keeps = network.stem is not None
        stem = network.stem or "an engine"
        self.path = engine_path(stem, precision, batches)
        self.graph_precision = graph_precision(self.trt, precision)
        suffix = "" if self.graph_precision == "fp32" else "-" + self.graph_precision
        self.graph = network_graph(network, self.graph_precision, calibration)
        if self.graph_precision == "int8":
            suffix += "-tensorrt"  # beside the other form of it
            self.graph = weights_in_float(self.graph)
        self.graph_path = stem + suffix + ".onnx"
        # null where one engine serves every GPU, so that what was built without any is taken too
        gpu, compute_capability = (None, None) if is_portable(self.trt) else find_gpu()
        self.wanted = {
            "weights_sha256": weights_digest(network.net),
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
        if not self.keeps or not os.path.isfile(self.path):
            return None
        plan, difference = read_kept(self.path, self.wanted, "engine_sha256")
        if difference:
            warn(f"{self.path} is not used: {difference}")
        return plan

    def build(self):
        """Build the engine and save it with its graph and its record; returns its bytes.

        A folder that can't be written to is a warning. Raises MNISTError where the graph or the
        build fails.
        """
        from mnist.engines.onnx_export import check_onnx

        checked = check_onnx(self.graph, self.network, self.graph_precision)
        print(f"{self.graph_path}: {checked}", file=sys.stderr)
        started = time.monotonic()
        print(f"building {self.path} with {flavour(self.trt)}, this may take minutes",
              file=sys.stderr, flush=True)
        plan = build_engine(self.trt, self.graph, self.precision, self.batches)
        seconds = time.monotonic() - started
        print(f"built in {seconds:.1f} s, {len(plan):,} bytes", file=sys.stderr)
        if self.keeps:
            record = dict(self.wanted, engine_sha256=digest(plan), build_seconds=round(seconds, 2))
            keep([(self.graph_path, self.graph), (self.path, plan)], record, "the engine is built")
        return plan


def cached_engine(network, device, precision="fp32", batch_size=64, calibration=None, batches=None,
                  memory="auto", rebuild=False, **_):
    """A `TensorRTEngine` for a `Network`, from the cache where it is up to date, else built now.

    `batches`: smallest and largest batch of a dynamic engine; None: one for `batch_size` alone.
    Raises UnavailableError where TensorRT can't run here, MNISTError where a build fails.
    """
    trt = import_tensorrt()
    gpu_memory = choose_memory(memory)()
    engine_file = EngineFile(network, precision, batches or (batch_size, batch_size), calibration)
    plan = None if rebuild else engine_file.read()
    loaded = None
    if plan:
        try:
            loaded = load_engine(trt, plan, network.image_set)
        except MNISTError as error:
            warn(f"{engine_file.path} is built anew: {error}")
    if loaded is None:
        loaded = load_engine(trt, engine_file.build(), network.image_set)
    return TensorRTEngine(trt, loaded, network.image_set, precision, batch_size, gpu_memory)


def engine_from_file(path, image_set, precision="fp32", batch_size=None, memory="auto"):
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
    loaded = load_engine(trt, plan, image_set)
    return TensorRTEngine(trt, loaded, image_set, precision, batch_size or loaded.batches[1],
                          gpu_memory)
