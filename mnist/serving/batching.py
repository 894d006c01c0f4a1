"""Many requests, one engine: what waits goes into one batch as soon as the engine is free.

There is no artificial delay and no thread (one for the long batches was tried: a twentieth slower,
and a tenth with 64 digits per request): the event loop reads all requests that have come, then runs
one batch, then writes the answers. So batches grow by themselves under load, and a lone digit waits
for nothing. Engines compute their whole batch size, however few images are in it; so a network has
engines of several sizes, timed when they are opened and now and then since, and each batch takes
the one that gives most images per second for what waits.

Counted are images, not requests. A request of more images than a batch is cut up, and what is left
of it goes behind the others.
"""

import asyncio
import collections
import os
import time
import types

import numpy as np
import prometheus_client
from prometheus_client import Counter, Gauge, Histogram

from mnist.engines.precision import judge_outputs
from mnist.engines.registry import ENGINES, open_engine, reference_log_probs, why_not
from mnist.errors import MNISTError
from mnist.serving.protocol import RequestError

LONGEST_TURN = 0.05  # seconds in which nothing but batches is computed
TRIAL = 0.03  # seconds in which an engine is timed for each batch size
TRIAL_SHARE = 0.003  # of the batches' time, in which another engine than the best known is tried

SECONDS = (.0001, .0002, .0005, .001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 2, 5)
if hasattr(prometheus_client, "disable_created_metrics"):
    prometheus_client.disable_created_metrics()  # nobody asked for a time beside each number
METRICS = {  # of each model, in the one registry of the process
    "answered": Histogram("mnist_infer_seconds", "From a whole inference request to its answer",
                          ["model"], buckets=SECONDS),
    "failed": Counter("mnist_failed", "Inference requests that no engine answered", ["model"]),
    "queue": Histogram("mnist_queue_seconds", "From a whole inference request to its first batch",
                       ["model"], buckets=SECONDS),
    "waiting": Gauge("mnist_waiting_images", "Images that wait for an engine", ["model"]),
    "engine": Histogram("mnist_engine_seconds", "Time of each batch in the engine", ["model"],
                        buckets=SECONDS),
    "batches": Histogram("mnist_batch_images", "Images of each batch", ["model"],
                         buckets=[2 ** i for i in range(9)]),
    "images": Counter("mnist_images", "Images read", ["model"]),
}
Gauge("mnist_process", "Which of the server's processes this is", ["pid"]).labels(
    str(os.getpid())).set(1)


# --- Engines --------------------------------------------------------------------------------------


class Engines:
    """A network's engines of several batch sizes, called like one: uint8 (B, C, H, W) ->
    float32 (B, K), where B is a number that `take` gave. The outputs may lie in a buffer that the
    next call overwrites.

    name, detail  what runs, in a word and in more
    seconds       that each of them takes for a full batch

    Raises MNISTError where they can't be opened, or where `stop()` says that nobody wants them.
    """

    def __init__(self, name, network, options, tuning=True, stop=bool):
        self.name, self.max_batch = name, options.max_batch
        self.image_set, self.engines = network.image_set, []
        # Few on a GPU, where a half empty batch costs little and building one may take minutes.
        sizes = [2 ** i for i in range(20)] if options.device == "cpu" else [1, 8]
        for size in [size for size in sizes if size < self.max_batch] + [self.max_batch]:
            if stop():
                raise MNISTError("the server ends")
            self.engines.append(open_engine(name, network, options.device, options.precision, size,
                                            tuning=tuning, threads=options.threads))
        self.detail = (f"{name} on {options.device}, {options.precision} "
                       f"({self.engines[-1].detail})")
        self.seconds = [fastest_call(engine) for engine in self.engines]
        self.trials, self.allowance = 0, 0.0  # seconds that may be spent on trials
        self.choose_again()

    @property
    def rate(self):
        """Images per second on full batches, the geometric mean over all sizes: a server meets
        small batches and large ones."""
        return np.exp(np.mean(np.log([engine.batch_size / time for engine, time in
                                      zip(self.engines, self.seconds)])))

    def choose_again(self):
        """Which engine is best for each number of images that wait: the one that reads most per
        second, though it may leave some of them to the next batch."""
        def best(waiting):
            rates = [min(waiting, engine.batch_size) / time
                     for engine, time in zip(self.engines, self.seconds)]
            return rates.index(max(rates))

        self.best = [None] + [best(waiting) for waiting in range(1, self.max_batch + 1)]

    def take(self, waiting):
        """How many of the waiting images the next call should have."""
        waiting = min(waiting, self.max_batch)
        return min(waiting, self.engines[self.best[waiting]].batch_size)

    def __call__(self, images):
        """Run the best engine, or now and then another, and learn from the time of full batches: at
        the start the machine may have been busy. That makes calls slower, never quicker: a quick
        one counts at once, slow ones little by little."""
        number, index, trial = len(images), self.best[len(images)], self.allowance > 0
        if trial:
            index, images = self.another(images)
        start = time.perf_counter()
        outputs = self.engines[index](images)
        seconds = time.perf_counter() - start
        self.allowance += (TRIAL_SHARE - trial) * seconds
        if len(images) == self.engines[index].batch_size:
            weight = 1 if seconds < self.seconds[index] else 0.02
            self.seconds[index] += weight * (seconds - self.seconds[index])
        if trial:
            self.choose_again()
        return outputs[:number]

    def another(self, images):
        """The next of the engines that are large enough, by its index, and a full batch for it."""
        larger = [index for index, engine in enumerate(self.engines)
                  if engine.batch_size >= len(images)]
        index = larger[self.trials % len(larger)]
        self.trials += 1
        return index, np.resize(images, (self.engines[index].batch_size,) + images.shape[1:])

    def close(self):
        for engine in self.engines:
            engine.close()


def fastest_call(engine):
    """The seconds of an engine's fastest call on a full batch: the server may be busy meanwhile."""
    images = np.zeros((engine.batch_size,) + engine.image_set.shape, np.uint8)
    engine(images)  # the first one sets it up
    seconds = []
    end = time.perf_counter() + TRIAL
    while len(seconds) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        engine(images)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def usable_engines(options):
    """The names of the engines that can serve here."""
    return [name for name, kind in ENGINES.items()
            if not kind.on_request and not kind.is_baseline
            and not why_not(name, options.device, options.precision)]


def fastest_engines(network, options, stop):
    """(the `Engines` that are fastest here for a server, or None; the trial as text).

    Each of this machine's is tried for a moment. One whose outputs are wrong isn't taken. Once
    `stop()` is true no more engines are opened.
    """
    shape = (options.max_batch,) + network.image_set.shape
    images = np.random.RandomState(0).randint(0, 256, shape).astype(np.uint8)
    reference = reference_log_probs(network, images)
    best, report = None, []
    for name in usable_engines(options):
        try:
            engines = Engines(name, network, options, stop=stop)
        except MNISTError as error:
            report.append(f"{name} can't be opened ({str(error).splitlines()[0]})")
            continue
        _, wrong = judge_outputs(network.image_set, engines.engines[-1](images), reference,
                                 options.precision)
        report.append(f"{name} " + (wrong or f"{engines.rate:,.0f}"))
        if not wrong and (best is None or engines.rate > best.rate):
            best, engines = engines, best
        if engines:
            engines.close()
    return best, f"images/s over all batch sizes: {', '.join(report)}"


# --- The queue ------------------------------------------------------------------------------------


class Job:
    """One request's images on their way: `images` uint8 (N, C, H, W), and the `future` of its
    `outputs`, float32 (N, K). Where the future is done before, nobody waits for the rest."""

    __slots__ = ("images", "outputs", "future", "arrived", "taken")

    def __init__(self, images, outputs, future):
        self.images, self.outputs, self.future = images, outputs, future
        self.arrived = time.perf_counter()
        self.taken = 0  # images that have been in a batch


class Batcher:
    """The queue before one network's engines (an `Engines`), on one event loop.

    `max_waiting`: requests are refused while so many images wait.
    """

    def __init__(self, model, engines, max_waiting):
        self.engines, self.max_waiting = engines, max_waiting
        self.metrics = types.SimpleNamespace(
            **{name: metric.labels(model) for name, metric in METRICS.items()})
        self.jobs = collections.deque()
        self.waiting = 0  # images
        self.scheduled = False
        self.ended = time.perf_counter()  # the last batch
        self.healthy = True  # opening the engines had them answer; false while they fail

    async def read(self, images, timeout=None, receive=None):
        """The outputs, float32 (N, K), of uint8 (N, C, H, W).

        timeout  seconds after which they aren't wanted any more
        receive  ASGI's function, by which a client that has gone is noticed while much waits

        Raises RequestError, the engine's error, or ConnectionError where the client has gone.
        """
        try:
            if self.waiting >= self.max_waiting:
                raise RequestError(f"{self.waiting} images are waiting already; try again later",
                                   503, retry_after="1")
            outputs = np.empty((len(images), self.engines.image_set.outputs), np.float32)
            job = Job(images, outputs, asyncio.get_event_loop().create_future())
            self.jobs.append(job)
            self.waiting += len(images)
            self.schedule()
            if receive and (timeout or self.waiting > self.engines.max_batch):
                await self.watch(job.future, timeout, receive)
            return await job.future
        except BaseException:
            self.metrics.failed.inc()
            raise

    async def watch(self, future, timeout, receive):
        """Give a job up where its time is over or its client gone before it is done."""
        gone = asyncio.ensure_future(receive())
        await asyncio.wait([future, gone], timeout=timeout,
                           return_when=asyncio.FIRST_COMPLETED)
        has_gone = gone.done()
        gone.cancel()
        if not future.done():
            future.cancel()
            raise (ConnectionError("the client has gone") if has_gone else
                   RequestError("Request timeout expired", 503, retry_after="1"))

    def schedule(self):
        """See that a batch is run after this turn of the event loop, which may bring more."""
        if not self.scheduled:
            self.scheduled = True
            asyncio.get_event_loop().call_soon(self.run)

    def run(self):
        """Run one batch of what waits, and answer the requests it completes.

        As long as more than a batch waits, run more of them: up to twice as long as the event loop
        spent on other things, or a flood of requests that are refused would leave no time for those
        that were taken.
        """
        self.scheduled = False
        began = time.perf_counter()
        end = began + min(LONGEST_TURN, 2 * (began - self.ended))
        while True:
            parts = self.take_parts()
            if parts:
                self.compute(parts)
            self.ended = time.perf_counter()
            if self.waiting < self.engines.max_batch or self.ended >= end:
                break
        if self.waiting:
            self.schedule()
        self.metrics.waiting.set(self.waiting)

    def take_parts(self):
        """The next batch, taken from the queue: pairs of a job, `taken` as far as the
        batch goes, and the first of its images."""
        wanted = self.engines.take(self.waiting) if self.waiting else 0
        parts = []
        while wanted and self.jobs:
            job = self.jobs.popleft()
            start, length = job.taken, len(job.images)
            if job.future.done():
                self.waiting -= length - start
                continue
            if not start:
                self.metrics.queue.observe(time.perf_counter() - job.arrived)
            job.taken = min(length, start + wanted)
            parts.append((job, start))
            wanted -= job.taken - start
            self.waiting -= job.taken - start
            if job.taken < length:  # the batch is full
                self.jobs.append(job)
        return parts

    def compute(self, parts):
        """Run one batch and hand its answers to the jobs they belong to."""
        images = np.concatenate([job.images[start:job.taken] for job, start in parts])
        began = time.perf_counter()
        try:
            outputs = self.engines(images)
            self.healthy = True
        except Exception as error:  # any library's; the server goes on
            self.healthy = False
            for job, _ in parts:
                if not job.future.done():
                    job.future.set_exception(error)
            return
        ended = time.perf_counter()
        self.metrics.engine.observe(ended - began)
        self.metrics.batches.observe(len(images))
        self.metrics.images.inc(len(images))
        position = 0
        for job, start in parts:
            job.outputs[start:job.taken] = outputs[position:position + job.taken - start]
            position += job.taken - start
            if job.taken == len(job.images) and not job.future.done():
                self.metrics.answered.observe(ended - job.arrived)
                job.future.set_result(job.outputs)
