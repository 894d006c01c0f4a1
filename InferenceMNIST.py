"""Time the trained network on the CPU or a CUDA GPU, over the 10,000 test digits of MNIST, or the
test images of another set.

examples:
  python InferenceMNIST.py                          batch 1 and 64, on CUDA where it works
  python InferenceMNIST.py --device cpu --threads 1
  python InferenceMNIST.py --batch-size 1 8 64 512 --repeat 5 --json record.json
  python InferenceMNIST.py --mistakes mistakes.png  the confusion matrix and the misread images
  python InferenceMNIST.py --data gtsrb             traffic signs, with the network trained on them

Every time stands beside the accuracy of the same results. For TensorRT see InfMNISTcudaRT.py, for
every engine of this machine side by side CompareMNIST.py.
"""

import os
import time

from mnist.cli import add_flags, make_parser, run_program


def main():
    arguments = parse_arguments()
    import numpy as np

    from mnist.bench import plots
    from mnist.bench.processes import Processes, make_request
    from mnist.bench.reference import Reference
    from mnist.bench.stopwatch import OtherPrograms, make_record, take_turns
    from mnist.bench.tables import publish
    from mnist.engines.registry import choose_device, set_threads
    from MNISTdsource import load_images, network_of_flags

    plots.check_outputs(arguments)
    deadline = time.perf_counter() + arguments.seconds
    threads = set_threads(arguments.threads)
    device = choose_device(arguments.device)
    network = network_of_flags(arguments)
    data = load_images(network.image_set, "test", arguments.data, arguments.data_dir,
                       arguments.limit)
    reference = Reference(network, data)
    others = OtherPrograms()
    with Processes(data.images) as processes:  # all batch sizes share one
        stopwatches = [processes.open(
            "torch", make_request(network, ("torch", device, "fp32"), batch_size, None,
                                  arguments.trust_pickle, threads=arguments.threads),
            network=network.name, weights=network.origin) for batch_size in arguments.batch_size]
        for stopwatch in stopwatches:
            engine = stopwatch.engine
            print(f"batch {engine.batch_size}: {engine.detail}", flush=True)
        interrupted = take_turns(stopwatches, arguments.repeat, deadline)
        rows = [reference.row(stopwatch, arguments.repeat) for stopwatch in stopwatches]
        used_by_others = others.share(processes.cpu_seconds())
    settings = {"data": data.source, "data_sha256": data.digest, "threads": threads,
                "repeat": arguments.repeat, "seconds": arguments.seconds}
    try:
        return publish(make_record(settings, rows, used_by_others), arguments.json,
                       interrupted=interrupted) or int(reference.wrong)
    finally:
        log_probs = stopwatches[0].log_probs
        if arguments.mistakes and sum(map(len, log_probs)) == len(data.images):
            plots.plot_mistakes(arguments.mistakes, data.images, data.targets,
                                np.concatenate(log_probs), network)


def parse_arguments():
    parser = make_parser(__doc__)
    add_flags(parser, "data", "data-dir", "network", "weights", "trust-pickle", "device",
              "batch-size", "threads", "limit", "repeat", "seconds", "json")
    parser.add_argument("--mistakes", type=os.path.expanduser, metavar="FILE",
                        help="draw the confusion matrix and the misread images, each with its "
                             "number, class, prediction and probability (.png, .svg, .pdf)")
    return parser.parse_args()


if __name__ == "__main__":
    run_program(main)
