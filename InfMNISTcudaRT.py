"""Turn the trained network into TensorRT engines, and time them over the 10,000 test digits.

examples:
  python InfMNISTcudaRT.py                          batch 1 and 64 in float32
  python InfMNISTcudaRT.py --precision fp32 fp16
  python InfMNISTcudaRT.py --dynamic                one engine for both batch sizes
  python InfMNISTcudaRT.py --build-only             builds NetMNIST.rt and NetMNIST-b64.rt, no more
  python InfMNISTcudaRT.py --engine other.rt        times an engine built elsewhere

NetMNIST.pth becomes NetMNIST.onnx, that becomes NetMNIST.rt, and its answers are compared with
torch's. An engine is kept, and built anew when the weights, TensorRT or the GPU have changed.
docs/tensorrt.md explains every step.
"""

import collections
import os
import shlex

from MNISTscript import (
    MNISTError,
    UnavailableError,
    add_flags,
    keep_stdout_for_json,
    make_parser,
    run_program,
)


def main():
    parser = make_parser(__doc__)
    add_flags(parser, "data", "data-dir", "network", "weights", "trust-pickle", "batch-size")
    parser.add_argument("--precision", nargs="+", choices=("fp32", "tf32", "fp16"),
                        default=["fp32"], help="what to compute in (default: fp32, without TF32)")
    parser.add_argument("--dynamic", action="store_true",
                        help="one engine for all batch sizes instead of one for each")
    parser.add_argument("--rebuild", action="store_true",
                        help="build even where an up-to-date engine is there")
    parser.add_argument("--build-only", action="store_true", help="build what is missing, stop")
    parser.add_argument("--engine", metavar="FILE",
                        help="time this engine, at its largest batch unless --batch-size says; "
                             "--precision says what it computes in")
    parser.add_argument("--memory", choices=("auto", "pycuda", "torch"), default="auto",
                        help="what manages GPU memory; auto takes torch, which has CUDA "
                             "graphs, where it sees a GPU, else pycuda (default: %(default)s)")
    add_flags(parser, "limit", "repeat", "json")
    parser.set_defaults(batch_size=None)
    arguments = parser.parse_args()
    if arguments.engine and (arguments.dynamic or arguments.rebuild or arguments.build_only
                             or len(arguments.precision) > 1):
        parser.error("--engine is built already: it goes with one --precision, and without "
                     "--dynamic, --rebuild and --build-only")
    keep_stdout_for_json(arguments.json)

    from MNISTdsource import load_digits
    from MNISTtensorrt import flavour, import_tensorrt
    from MNISTweights import load_network

    trt = import_tensorrt()
    print(flavour(trt), flush=True)
    if not arguments.build_only:
        check_gpu(arguments.memory)
    network = load_network(arguments.weights, arguments.network, arguments.trust_pickle)
    print(f"weights: {network.origin}", flush=True)
    images, labels, source = load_digits("test", arguments.data, arguments.data_dir,
                                         arguments.limit)
    if arguments.build_only:
        return build(arguments, network, images)
    return time_engines(arguments, network, images, labels, source)


def check_gpu(memory):
    """Raise UnavailableError where engines can't run: before minutes go into building one."""
    from MNISTtensorrt import tensorrt_missing
    reason = tensorrt_missing(memory=memory)
    if reason:
        raise UnavailableError(f"{reason}\n--build-only builds an engine without running it, where "
                               "this TensorRT can without a GPU (TensorRT-RTX can)")


def wanted_engines(arguments):
    """Yield (precision, batch size, smallest and largest batch of its engine)."""
    batch_sizes = arguments.batch_size or [1, 64]
    for precision in arguments.precision:
        for batch_size in batch_sizes:
            span = batch_sizes if arguments.dynamic else [batch_size]
            yield precision, batch_size, (min(span), max(span))


def build(arguments, network, images):
    """Bring every engine asked for up to date."""
    from MNISTenginefile import EngineFile
    wanted = [(precision, batches) for precision, _, batches in wanted_engines(arguments)]
    for precision, batches in collections.OrderedDict.fromkeys(wanted):
        engine_file = EngineFile(network.net, precision, batches, network.stem)
        if not arguments.rebuild and engine_file.read():
            print(f"{engine_file.path} is up to date")
            continue
        engine_file.build(images)
        if not os.path.exists(engine_file.path):
            raise MNISTError(f"{engine_file.path} could not be saved")


def time_engines(arguments, network, images, labels, source):
    """Time every engine asked for, as InferenceMNIST.py does; gives the exit status."""
    from MNISTengine import reference_answers
    from MNISTreport import publish
    from MNISTtiming import make_record, time_engine

    reference = reference_answers(network.net, images)
    rows = []
    for engine, path in open_engines(arguments, network, images):
        print(f"{path}: {engine.detail}", flush=True)
        check_answers(engine, path, images[:1000], labels[:1000], reference[:1000])
        row = time_engine(engine, images, labels, reference, arguments.repeat)
        rows.append(dict(row, engine_file=os.path.basename(path), detail=engine.detail))
        print("  for a second opinion: " + trtexec_line(path, engine.batch_size), flush=True)
        engine.close()
    settings = {"weights": network.origin, "data": source,
                "dynamic": arguments.dynamic, "repeat": arguments.repeat}
    return publish(make_record(settings, rows), arguments.json)


def check_answers(engine, path, images, labels, reference):
    """Raise MNISTError where an engine doesn't answer as torch does: it isn't worth timing."""
    from MNISTtiming import in_batches, judge
    answers = [engine(batch).copy() for batch in in_batches(images, engine.batch_size)]
    verdict = judge(answers, labels, reference, engine.precision)
    if verdict["status"] != "ok":
        raise MNISTError(f"{path}: {verdict['reason']} for {engine.precision}")


def open_engines(arguments, network, images):
    """Yield one opened engine after the other, with the path of its file."""
    from MNISTenginefile import cached_engine, engine_from_file, engine_path
    if arguments.engine:
        for batch_size in arguments.batch_size or [None]:
            yield engine_from_file(arguments.engine, arguments.precision[0], batch_size,
                                   arguments.memory), arguments.engine
        return
    built = set()
    for precision, batch_size, batches in wanted_engines(arguments):
        path = engine_path(network.stem, precision, batches)
        rebuild = arguments.rebuild and path not in built
        built.add(path)
        yield cached_engine(network.net, "cuda", precision, batch_size, batches, network.stem,
                            arguments.memory, rebuild, images), path


def trtexec_line(path, batch_size):
    """The command with which NVIDIA's own tool times the same engine."""
    from MNISTtensorrt import import_tensorrt
    tool = "trtexec" if import_tensorrt().__name__ == "tensorrt" else "tensorrt_rtx"
    return f"{tool} --loadEngine={shlex.quote(path)} --shapes=image:{batch_size}x1x28x28"


if __name__ == "__main__":
    run_program(main)
