"""Everything that can run a network, behind one interface: raw pixels in, its outputs out.

An engine is opened by name for one device, precision and batch size:

    engine = open_engine("torch", network, device="cpu", batch_size=64)
    log_probs = engine(images)                  # uint8 (B, C, H, W) -> float32 (B, K), B <= 64

and offers two ways in, one for each of the two times that `mnist.bench.stopwatch` takes:

    engine(images)            end-to-end: pixels in host memory to outputs in host memory
    x = engine.prepare(images); engine.compute(x); engine.synchronise()      the network alone

`network`: a `mnist.models.weights.Network`; a module of your own is `Network(net, image_set)`. The
outputs may lie in a buffer that the next call overwrites. An engine that brings data
handling of its own also has `loop(images)`, which yields those of one batch after the other and
takes the place of single calls on the end-to-end clock. Normalisation is part of every
engine, so no caller can forget it. To add an engine: write a class like pytorch.py's `TorchEngine`
and give it a line in `ENGINES`.
"""

import collections
import difflib

import numpy as np

from mnist.engines import pytorch, runtimes, trt_cache
from mnist.engines.trt import tensorrt_missing
from mnist.errors import UnavailableError

EngineKind = collections.namedtuple(
    "EngineKind", "name precisions missing open graph on_request is_baseline")
EngineKind.__doc__ = """One kind of engine.

name        as `--engine` spells it
precisions  what it computes in, by device: {"cpu": ("fp32",), "cuda": ("fp32", "fp16")}
missing     function of (device, precision) and the engine's own settings: why it can't run so on
            this machine, or None
open        function of (network, device, precision, batch_size) and the options of `open_engine`,
            of which it takes what it knows: the engine. With `graph` it is given an ONNX file's
            bytes and their image set in the network's place
graph       function of a precision: which one the graph is exported in; None for engines that take
            the network itself
on_request  whether `CompareMNIST.py` times it only when asked for by name, as it takes minutes
is_baseline whether it is there to be compared with, not to be used
"""

# The one place that says which engine × device × precision exists.
ENGINES = collections.OrderedDict((kind.name, kind) for kind in (
    EngineKind("torch", {"cpu": ("fp32", "bf16"), "cuda": ("fp32", "tf32", "bf16", "fp16")},
               pytorch.torch_missing, pytorch.open_torch, None, False, False),
    EngineKind("torch-compile", {"cpu": ("fp32",), "cuda": ("fp32",)},
               pytorch.torch_compile_missing, pytorch.TorchCompileEngine, None, True, False),
    EngineKind("torch-graph", {"cuda": ("fp32", "tf32", "bf16", "fp16")},
               pytorch.torch_graph_missing, pytorch.TorchGraphEngine, None, False, False),
    EngineKind("onnxruntime", {"cpu": ("fp32", "int8"), "cuda": ("fp32", "tf32", "fp16")},
               runtimes.onnxruntime_missing, runtimes.open_onnxruntime,
               lambda precision: precision, False, False),
    EngineKind("openvino", {"cpu": ("fp32", "bf16", "int8")},
               runtimes.openvino_missing, runtimes.open_openvino,
               lambda precision: "int8" if precision == "int8" else "fp32", False, False),
    EngineKind("tensorrt", {"cuda": ("fp32", "tf32", "bf16", "fp16", "int8")},
               tensorrt_missing, trt_cache.cached_engine, None, False, False),
    EngineKind("usual-loop", {"cpu": ("fp32",), "cuda": ("fp32",)},
               pytorch.usual_loop_missing, pytorch.UsualLoop, None, False, True),
))


def why_not(name, device="cpu", precision="fp32", **settings):
    """Why this engine isn't available here, in one line with the remedy; None where it is.

    Raises UnavailableError for a name that no engine has.
    """
    if name not in ENGINES:
        near = difflib.get_close_matches(name, ENGINES, n=1)
        raise UnavailableError(f"no engine is called {name!r}" + (
            f"; did you mean {near[0]}?" if near else f"; there are: {', '.join(ENGINES)}"))
    precisions = ENGINES[name].precisions
    if device not in precisions:
        return f"{name} runs on {' and '.join(precisions)}, not on {device}"
    if precision not in precisions[device]:
        return f"{name} computes in {' and '.join(precisions[device])}, not in {precision}"
    return ENGINES[name].missing(device, precision, **settings)


def open_engine(name, network, device="cpu", precision="fp32", batch_size=64, calibration=None,
                tuning=True, threads=None, **options):
    """Open an engine for a `Network`, which is left as it is, that takes up to `batch_size` images.

    calibration: what gives the images that int8 is calibrated on, see `int8_graph`; only where no
        int8 graph of these weights is kept.
    tuning: try a few settings of the library for a moment each and take the quickest (see
        `mnist.engines.tuning`); False: take the library's defaults.
    threads: of the CPU; None: the library's default, or the quickest number.
    options: what this engine alone knows.

    Raises UnavailableError with the reason of `why_not` where this machine can't.
    """
    reason = why_not(name, device, precision)
    if reason:
        raise UnavailableError(f"{name} on {device}: {reason}")
    source = engine_source(name, network, precision, calibration)
    return ENGINES[name].open(*source, device, precision, batch_size, calibration=calibration,
                              tuning=tuning, threads=threads, **options)


def engine_source(name, network, precision, calibration=None):
    """What an engine is opened on: (network,), or (ONNX file's bytes, image set)."""
    kind = ENGINES[name]
    if kind.graph is None:
        return (network,)
    from mnist.engines.int8 import network_graph
    return network_graph(network, kind.graph(precision), calibration), network.image_set


def choose_device(device, engine="torch", precision="fp32"):
    """ "cpu" or "cuda" for a `--device`, saying what `auto` chose for this engine.

    Raises UnavailableError where CUDA is asked for by name and isn't available.
    """
    reason = why_not(engine, "cuda", precision) if device != "cpu" else None
    if device == "cuda" and reason:
        raise UnavailableError(f"--device cuda: {reason}")
    if device == "auto":
        device = "cpu" if reason and "cpu" in ENGINES[engine].precisions else "cuda"
        print(f"device: {device} (auto{': ' + reason if reason else ''})", flush=True)
    return device


def set_threads(threads=None):
    """Let torch use so many threads for what isn't an engine's (training, the reference); None:
    its choice, of the CPUs that may be used. Returns how many."""
    import torch
    torch.set_num_threads(threads or pytorch.default_threads())
    return torch.get_num_threads()


def reference_log_probs(network, images):
    """What every engine is measured against: torch on the CPU, float32, nothing folded.

    `images` uint8 (N, C, H, W) -> float32 (N, K) log-probabilities, or values.
    """
    import torch
    normalise = network.image_set.normalise
    batches = (images[start:start + 100] for start in range(0, len(images), 100))
    with torch.inference_mode():
        return np.concatenate([network.net(torch.from_numpy(normalise(batch))).numpy()
                               for batch in batches])
