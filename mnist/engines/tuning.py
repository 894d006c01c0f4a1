"""The quickest of a library's settings, found out on the spot.

Which number of threads, which level of optimisation, which layout is quickest depends on the
network, the batch and the processor; so a few of each are tried as an engine is opened, as TensorRT
tries its kernels.
"""

import collections
import itertools
import time

import numpy as np

from mnist.machine import usable_cpus

SETTLE = 0.04  # seconds to wait before a turn: ONNX Runtime's threads go on spinning for 32 ms
# after a call, on the CPUs that the next engine needs
WARM_UP = 0.01  # and run before each, since others have used the caches meanwhile
TURN = 0.01  # that a setting is timed for in one turn
ROUNDS = 6
HOPELESS = (2, 1.3, 1.15, 1.1)  # one so much slower than the best after a round is tried no further
LIMIT = 1.5  # seconds for all turns together


def settings_to_try(tuning, threads, defaults, **others):
    """The settings to try, a list of dicts.

    tuning: without it, the library's `defaults` alone; with it, every combination of threads with
    the values of the `others`. threads: how many were asked for; None: the default, or 1, 2, 4…
    and as many as there are CPUs to use.
    """
    if not tuning:
        return [dict(defaults, threads=threads or defaults["threads"])]
    cores = usable_cpus()
    numbers = [threads] if threads else sorted({min(2**k, cores)
                                                for k in range(cores.bit_length() + 1)})
    choices = collections.OrderedDict(threads=numbers, **others)
    return [dict(zip(choices, values)) for values in itertools.product(*choices.values())]


def quickest(make, candidates, describe):
    """The engine `make(**settings)` with the quickest of the candidates; the others are closed.

    They take turns of some ten milliseconds, end-to-end with full batches, and the best turn of
    each counts. `describe(**settings)`: a setting in words. The engine gets `tuning`, a list of the
    settings tried, each with its milliseconds per batch, the quickest first.
    """
    engines = [make(**settings) for settings in candidates]
    best = [None] * len(engines)
    if len(engines) > 1:
        alone = all(settings.get("threads") == 1 for settings in candidates)
        best = race(engines, 0 if alone else SETTLE)
    order = sorted(range(len(engines)), key=lambda k: best[k] or 0)
    chosen = engines[order[0]]
    for engine in engines:
        if engine is not chosen:
            engine.close()
    chosen.tuning = [dict(candidates[k], ms=best[k] and round(best[k] * 1e3, 5)) for k in order]
    chosen.detail += ", " + describe(**candidates[order[0]])
    if len(engines) > 1:
        chosen.detail += f" (the quickest of {len(engines)} settings)"
    return chosen


def race(engines, settle):
    """The best seconds per call of each engine, as far as it stayed in the race; before each turn
    it is waited for `settle` seconds."""
    shape = (engines[0].batch_size,) + tuple(engines[0].image_set.shape)
    images = np.random.RandomState(0).randint(0, 256, shape, np.uint8)
    best = [float("inf")] * len(engines)
    for engine in engines:
        engine(images)  # the first call sets it up
    started = time.perf_counter()
    for number in range(ROUNDS):
        slack = HOPELESS[min(number, len(HOPELESS) - 1)]
        running = [k for k, seconds in enumerate(best) if seconds <= slack * min(best)]
        if len(running) == 1 or time.perf_counter() - started > LIMIT:
            break
        for k in running:
            time.sleep(settle)
            time_calls(engines[k], images, WARM_UP)
            best[k] = min(best[k], time_calls(engines[k], images, TURN))
    return best


def time_calls(engine, images, seconds):
    """The median seconds of a call, of those made in so many seconds: two at least."""
    begin_turn(engine)
    start = time.perf_counter()
    ends = [start]
    while len(ends) < 3 or ends[-1] - start < seconds:
        engine(images)
        ends.append(time.perf_counter())
    calls = sorted(end - begin for begin, end in zip(ends, ends[1:]))
    return calls[len(calls) // 2]


def begin_turn(engine):
    """Set what an engine's library keeps for the whole process as this engine wants it, before its
    calls are timed."""
    getattr(engine, "begin_turn", int)()


def describe_threads(threads):
    """ "1 thread", "4 threads"."""
    return f"{threads} thread{'s' if threads > 1 else ''}"
