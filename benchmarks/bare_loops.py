"""Measure what our engines cost beyond the bare loop of the library they run on.

examples:
  python benchmarks/bare_loops.py
  python benchmarks/bare_loops.py --threads 1 --batch-size 1

ours: engine(images), from uint8 pixels to log-probabilities, as CompareMNIST.py times it.
bare: the library's own call, the quickest way it has, over float32 batches that lie ready:
  torch         net(x) on normalised images, the engine's own folded network, in inference mode
  onnxruntime   the batch copied into the bound input, session.run_with_iobinding
  openvino      the batch copied into the request's input tensor, request.infer

They take turns of a few milliseconds, since the speed of a machine drifts. The ratio is the median
over all turns; between brackets the quartiles, which say how far to trust it.
"""

import functools
import os
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import numpy as np
import torch

from mnist.cli import add_flags, make_parser, run_program
from mnist.engines.registry import open_engine, set_threads, why_not
from MNISTdsource import load_images, network_of_flags

TURNS = 101


def main():
    parser = make_parser(__doc__)
    add_flags(parser, "data", "data-dir", "network", "weights", "trust-pickle", "batch-size",
              "threads")
    arguments = parser.parse_args()
    print(f"{set_threads(arguments.threads)} threads")
    network = network_of_flags(arguments)
    images = load_images(network.image_set, "test", arguments.data, arguments.data_dir).images
    for name, make_bare in BARE.items():
        if why_not(name):
            print(f"{name}: {why_not(name)}")
            continue
        for batch_size in arguments.batch_size:
            engine = open_engine(name, network, batch_size=batch_size, threads=arguments.threads)
            batches = batches_of(images, batch_size)
            compare(f"{name:12} batch {batch_size:3}", engine, batches,
                    *make_bare(engine, batches))
            engine.close()


def batches_of(images, size):
    """The batches of one turn: of a hundred images, but at least five."""
    return [images[k * size:(k + 1) * size] for k in range(max(100 // size, 5))]


def compare(what, engine, batches, bare, ready):
    """Time `engine` over the batches and `bare` over the ready ones, in turns; print the ratio."""
    pairs = [(seconds(engine, batches), seconds(bare, ready)) for _ in range(TURNS + 10)][10:]
    ratios = sorted(ours / library for ours, library in pairs)
    ours, library = (sorted(times)[TURNS // 2] / len(batches) * 1e3 for times in zip(*pairs))
    print(f"{what}: ours {ours:.3f} ms, bare {library:.3f} ms, ratio {ratios[TURNS // 2]:.3f} "
          f"({ratios[TURNS // 4]:.3f} to {ratios[3 * TURNS // 4]:.3f})", flush=True)


def seconds(call, batches):
    start = time.perf_counter()
    for batch in batches:
        call(batch)
    return time.perf_counter() - start


def bare_torch(engine, batches):
    def call(x):
        with torch.inference_mode():
            return engine.net(x)

    return call, [engine.prepare(batch) for batch in batches]


def bare_graph(engine, batches):
    run = engine.request.infer if engine.name == "openvino" else functools.partial(
        engine.session.run_with_iobinding, engine.binding)

    def call(x):
        engine.pixels[:] = x
        run()

    return call, [batch.astype(np.float32) for batch in batches]


# For each engine, what makes the bare call and its ready batches.
BARE = {"torch": bare_torch, "onnxruntime": bare_graph, "openvino": bare_graph}


if __name__ == "__main__":
    run_program(main)
