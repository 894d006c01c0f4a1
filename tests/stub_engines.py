"""Engines that misbehave, registered as "other" here and in the processes that open them."""

import os
import signal
import time

import numpy as np

from mnist.engines import pytorch, registry


class Breaks(pytorch.TorchEngine):
    """Fails once it is timed."""

    calls = 0

    def compute(self, x):
        self.calls += 1
        if self.calls > 15:
            raise RuntimeError("lost the GPU")
        return super().compute(x)


class Wrong(pytorch.TorchEngine):
    name = "other"

    def __call__(self, images):
        return np.roll(super().__call__(images), 1, axis=1)


def dies(number):
    return lambda *_, **__: os.kill(os.getpid(), number)


def fails(*_, **__):
    raise RuntimeError("out of memory")


def opens(engine):
    return lambda network, device, precision, batch_size, **_: engine(
        network, device, precision, batch_size)


OPENERS = {"breaks": opens(Breaks), "wrong": opens(Wrong), "fails": fails,
           "segv": dies(signal.SIGSEGV), "sigill": dies(signal.SIGILL),
           "exits": lambda *_, **__: os._exit(3),
           "hangs": lambda *_, **__: time.sleep(600), "missing": None}


def kind(behaviour):
    missing = "it is not there; pip install it" if behaviour == "missing" else None
    return registry.EngineKind("other", {"cpu": ("fp32",)}, lambda *_, **__: missing,
                               OPENERS[behaviour], None, False, False)


class Stowaway:
    """In the place of `calibration_images`: registers the engine in the process it is sent to."""

    def __init__(self, behaviour):
        self.behaviour = behaviour

    def __call__(self, *_):
        raise AssertionError("nothing is calibrated here")

    def __reduce__(self):
        return land, (self.behaviour,)


def land(behaviour):
    registry.ENGINES["other"] = kind(behaviour)
    return Stowaway(behaviour)
