"""Measure whether the settings an engine finds as it is opened are its library's quickest.

examples:
  python benchmarks/tuning.py
  python benchmarks/tuning.py --network small --seconds 20

Every engine of the CPU is opened as any program opens it: in a moment it tries a few settings and
keeps the quickest. Then all of these settings are timed at length, in turns. The ratio is that of
the setting it kept to the best one; "tuning" is what finding it took.
"""

import functools
import os
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from mnist.cli import add_flags, make_parser, run_program


def main():
    parser = make_parser(__doc__)
    add_flags(parser, "data", "data-dir", "network", "weights", "batch-size", "threads")
    parser.add_argument("--seconds", type=float, default=5, metavar="S",
                        help="for all the settings of one engine together (default: 5)")
    arguments = parser.parse_args()

    from mnist.engines.registry import ENGINES, set_threads, why_not
    from mnist.models.weights import load_network
    from MNISTdsource import find_image_set
    set_threads(arguments.threads)
    network = load_network(arguments.weights, arguments.network,
                           arguments.data and find_image_set(arguments.data))
    for name, kind in ENGINES.items():
        if kind.is_baseline or "cpu" not in kind.precisions or kind.on_request:
            continue
        for precision in kind.precisions["cpu"]:
            if why_not(name, precision=precision):
                print(f"{name} {precision}: {why_not(name, precision=precision)}")
                continue
            for batch_size in arguments.batch_size:
                measure(network, name, precision, batch_size, arguments)


def measure(network, name, precision, batch_size, arguments):
    """Print how quick the setting is that the engine keeps, beside all of its settings."""
    from mnist.engines import tuning
    from mnist.engines.registry import open_engine
    from MNISTdsource import calibration_images
    calibration = functools.partial(calibration_images, network.image_set, arguments.data,
                                    arguments.data_dir)

    def settings_tried(**how):
        started = time.perf_counter()
        engine = open_engine(name, network, "cpu", precision, batch_size, calibration,
                             threads=arguments.threads, **how)
        engine.close()
        return engine.tuning, time.perf_counter() - started

    settings_tried(tuning=False)  # what a library does once as it is first used
    _, untuned = settings_tried(tuning=False)
    (kept, *_), tuned = settings_tried()
    in_a_moment = {name: getattr(tuning, name) for name in ("ROUNDS", "LIMIT", "HOPELESS")}
    try:
        vars(tuning).update(ROUNDS=10**6, LIMIT=arguments.seconds, HOPELESS=(float("inf"),))
        at_length, _ = settings_tried()
    finally:
        vars(tuning).update(in_a_moment)
    settings = {key: value for key, value in kept.items() if key != "ms"}
    milliseconds = next(other["ms"] for other in at_length if settings.items() <= other.items())
    best = at_length[0]
    said = ", ".join(f"{key} {value}" for key, value in settings.items())
    print(f"{name:12} {precision} batch {batch_size:3}: kept {said}: {milliseconds:.4f} ms, "
          f"best of {len(at_length)} {best['ms']:.4f} ms, ratio {milliseconds / best['ms']:.3f}; "
          f"tuning {tuned - untuned:.2f} s", flush=True)


if __name__ == "__main__":
    run_program(main)
