"""Engines that misbehave, each called by what it does, here and in the processes that open them."""

import os
import signal
import time

import numpy as np

from mnist.engines import pytorch, registry


class Breaks(pytorch.TorchEngine):
    """Fails once it is timed."""

    name, calls = "breaks", 0

    def compute(self, x):
        self.calls += 1
        if self.calls > 15:
            raise RuntimeError("lost the GPU")
        return super().compute(x)


class Wrong(pytorch.TorchEngine):
    name = "wrong"

    def __call__(self, images):
        return np.roll(super().__call__(images), 1, axis=1)


def tuned(*openings):
    """Opens an engine that says it has chosen, each time, among (threads, ms) like these."""
    remaining = list(openings)

    def open_tuned(network, device, precision, batch_size, **_):
        engine = pytorch.TorchEngine(network, device, precision, batch_size)
        engine.tuning = [{"threads": threads, "ms": ms} for threads, ms in remaining.pop(0)]
        return engine
    return open_tuned


def fails(*_, **__):
    raise RuntimeError("out of memory")


def opens(engine):
    return lambda network, device, precision, batch_size, **_: engine(
        network, device, precision, batch_size)


SLOW_PHASE = (1, 2.0), (2, 3.0)  # when two threads took longer
OPENERS = {"breaks": opens(Breaks), "wrong": opens(Wrong), "fails": fails,
           "errs": tuned(SLOW_PHASE, ((2, 1.0), (1, 2.0))),
           "insists": tuned(SLOW_PHASE, ((2, 1.95), (1, 2.0))),
           "segv": lambda *_, **__: os.kill(os.getpid(), signal.SIGSEGV),
           "exits": lambda *_, **__: os._exit(3),
           "hangs": lambda *_, **__: time.sleep(600), "missing": None}


def kinds(*behaviours):
    """{name: its kind} of some of them."""
    return {name: registry.EngineKind(name, {"cpu": ("fp32",)}, why_missing(name), OPENERS[name],
                                      None, False, False) for name in behaviours}


def why_missing(name):
    reason = "it is not there; pip install it" if name == "missing" else None
    return lambda *_, **__: reason


class Stowaway:
    """In the place of `calibration_images`: registers the engines in the process it is sent to."""

    def __init__(self, *behaviours):
        self.behaviours = behaviours

    def __call__(self, *_):
        raise AssertionError("nothing is calibrated here")

    def __reduce__(self):
        return land, self.behaviours


def land(*behaviours):
    registry.ENGINES.update(kinds(*behaviours))
    return Stowaway(*behaviours)
