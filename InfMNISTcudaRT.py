"""Turn the trained network into TensorRT engines, and time them over the test images.

examples:
  python InfMNISTcudaRT.py                          batch 1 and 64 in float32
  python InfMNISTcudaRT.py --precision fp32 fp16
  python InfMNISTcudaRT.py --dynamic                one engine for both batch sizes
  python InfMNISTcudaRT.py --build-only             builds net.rt and net-b64.rt, no more
  python InfMNISTcudaRT.py --engine other.rt        times an engine built elsewhere

The weights become an ONNX graph, that becomes an engine, both named after the weights, and its
log-probabilities are compared with torch's. An engine is kept, and built anew when the weights,
TensorRT or the GPU have changed. docs/tensorrt.md explains every step.
"""

import collections
import functools
import os
import shlex
import time

from mnist.cli import add_flags, make_parser, run_program
from mnist.errors import MNISTError, UnavailableError


def main():
    arguments = parse_arguments()

    from mnist.bench.plots import check_outputs
    from mnist.engines.trt import flavour, import_tensorrt
    from MNISTdsource import load_images, network_of_flags

    check_outputs(arguments)
    deadline = time.perf_counter() + arguments.seconds
    print(flavour(import_tensorrt()), flush=True)
    if not arguments.build_only:
        check_gpu(arguments)
    network = network_of_flags(arguments)
    if arguments.build_only:
        return build(arguments, network)
    data = load_images(network.image_set, "test", arguments.data, arguments.data_dir,
                       arguments.limit)
    return time_engines(arguments, network, data, deadline)


def parse_arguments():
    parser = make_parser(__doc__)
    add_flags(parser, "data", "data-dir", "network", "weights", "trust-pickle", "batch-size")
    parser.add_argument("--precision", nargs="+", default=["fp32"], metavar="NAME",
                        choices=("fp32", "tf32", "bf16", "fp16", "int8"),
                        help="what to compute in: fp32 tf32 bf16 fp16 int8 "
                             "(default: fp32, without TF32)")
    parser.add_argument("--dynamic", action="store_true",
                        help="one engine for all batch sizes instead of one for each")
    parser.add_argument("--rebuild", action="store_true",
                        help="build even where an up-to-date engine is there")
    parser.add_argument("--build-only", action="store_true", help="build what is missing, stop")
    parser.add_argument("--engine", type=os.path.expanduser, metavar="FILE",
                        help="time this engine, at its largest batch unless --batch-size says; "
                             "--precision says what it computes in")
    add_flags(parser, "memory", "limit", "repeat", "seconds", "json")
    parser.set_defaults(batch_size=None)
    arguments = parser.parse_args()
    if arguments.engine and (arguments.dynamic or arguments.rebuild or arguments.build_only
                             or len(arguments.precision) > 1):
        parser.error("--engine is built already: it goes with one --precision, and without "
                     "--dynamic, --rebuild and --build-only")
    for name in ("json", "repeat", "seconds", "memory"):
        if arguments.build_only and getattr(arguments, name) != parser.get_default(name):
            parser.error(f"--build-only times nothing: --{name} has no effect beside it")
    return arguments


def check_gpu(arguments):
    """Raise UnavailableError where engines can't run: before minutes go into building one."""
    from mnist.engines.registry import why_not
    for precision in arguments.precision:
        reason = why_not("tensorrt", "cuda", precision, memory=arguments.memory)
        if reason:
            raise UnavailableError(f"{reason}\n--build-only builds an engine without running it, "
                                   "where this TensorRT can without a GPU (TensorRT-RTX can)")


def wanted_engines(arguments):
    """Yield (precision, batch size, smallest and largest batch of its engine)."""
    batch_sizes = arguments.batch_size or [1, 64]
    for precision in arguments.precision:
        for batch_size in batch_sizes:
            span = batch_sizes if arguments.dynamic else [batch_size]
            yield precision, batch_size, (min(span), max(span))


def build(arguments, network):
    """Bring every engine asked for up to date."""
    from mnist.engines.trt_cache import EngineFile
    wanted = [(precision, batches) for precision, _, batches in wanted_engines(arguments)]
    for precision, batches in collections.OrderedDict.fromkeys(wanted):
        engine_file = EngineFile(network, precision, batches, calibration(arguments, network))
        if not arguments.rebuild and engine_file.read():
            print(f"{engine_file.path} is up to date")
            continue
        engine_file.build()
        if not os.path.exists(engine_file.path):
            raise MNISTError(f"{engine_file.path} could not be saved")


def calibration(arguments, network):
    """What gives the images that int8 is calibrated on."""
    from MNISTdsource import calibration_images
    return functools.partial(calibration_images, network.image_set, arguments.data,
                             arguments.data_dir)


def time_engines(arguments, network, data, deadline):
    """Time every engine asked for, as InferenceMNIST.py does; gives the exit status."""
    from mnist.bench.reference import Reference
    from mnist.bench.stopwatch import OtherPrograms, Stopwatch, make_record, take_turns
    from mnist.bench.tables import publish

    reference = Reference(network, data)
    others = OtherPrograms()
    stopwatches = []
    for engine, path in open_engines(arguments, network):
        stopwatches.append(Stopwatch(
            engine, data.images, network=network.name, weights=network.origin,
            engine_file=os.path.basename(path)))
        print(f"{path}: {engine.detail}\n  for a second opinion: "
              + trtexec_line(path, engine.batch_size, network.image_set.shape), flush=True)
    interrupted = take_turns(stopwatches, arguments.repeat, deadline)
    rows = [reference.row(stopwatch, arguments.repeat) for stopwatch in stopwatches]
    used_by_others = others.share()
    settings = {"data": data.source, "data_sha256": data.digest, "dynamic": arguments.dynamic,
                "repeat": arguments.repeat, "seconds": arguments.seconds}
    return publish(make_record(settings, rows, used_by_others), arguments.json,
                   interrupted=interrupted) or int(reference.wrong)


def open_engines(arguments, network):
    """Yield one opened engine after the other, with the path of its file."""
    from mnist.engines.registry import open_engine
    from mnist.engines.trt_cache import engine_from_file, engine_path
    if arguments.engine:
        for batch_size in arguments.batch_size or [None]:
            yield engine_from_file(arguments.engine, network.image_set, arguments.precision[0],
                                   batch_size, arguments.memory), arguments.engine
        return
    built = set()
    for precision, batch_size, batches in wanted_engines(arguments):
        path = engine_path(network.stem, precision, batches)
        rebuild = arguments.rebuild and path not in built
        built.add(path)
        yield open_engine("tensorrt", network, "cuda", precision, batch_size,
                          calibration(arguments, network), batches=batches,
                          memory=arguments.memory, rebuild=rebuild), path


def trtexec_line(path, batch_size, shape):
    """The command with which NVIDIA's own tool times the same engine."""
    from mnist.engines.trt import import_tensorrt
    tool = "trtexec" if import_tensorrt().__name__ == "tensorrt" else "tensorrt_rtx"
    shapes = "x".join(map(str, (batch_size,) + tuple(shape)))
    return f"{tool} --loadEngine={shlex.quote(path)} --shapes=image:{shapes}"


if __name__ == "__main__":
    run_program(main)
