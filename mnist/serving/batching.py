"""Many requests, one engine: what waits goes into one batch as soon as the engine is free.

There is no artificial delay (unless one is asked for) and no thread (one for the long batches was
tried: a twentieth slower, and a tenth with 64 digits per request): the event loop reads all
requests that have come, then runs one batch, then writes the answers. So batches grow by themselves
under load, and a lone digit waits for nothing. Engines compute their whole batch size, however few
images are in it; so a network has engines of several sizes, timed when they are opened and with
every batch since, and each batch takes the one that gives most images per second for what waits.

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
from mnist.errors import MNISTError, UnavailableError
from mnist.serving.protocol import RequestError

LONGEST_TURN = 0.05  # seconds in which nothing but batches is computed
TRIAL = 0.03  # seconds in which an engine is timed for each batch size
# Now and then a call tries another engine than the best known: one in so many at the most, and so
# seldom that it takes no more than this share of the time.
TRY_EVERY, TRIAL_SHARE = 50, 0.003

SECONDS = (.0001, .0002, .0005, .001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 2, 5)
if hasattr(prometheus_client, "disable_created_metrics"):
    prometheus_client.disable_created_metrics()  # nobody asked for a time beside each number


class Metrics:
    """What the server counts, for Prometheus. One for the whole process."""

    def __init__(self):
        self.registry = registry = prometheus_client.CollectorRegistry()
        prometheus_client.ProcessCollector(registry=registry)

        def histogram(name, text, buckets=SECONDS):
            return Histogram("mnist_" + name, text, ["model"], buckets=buckets, registry=registry)

        def counter(name, text, labels=("model",)):
            return Counter("mnist_" + name, text, labels, registry=registry)

        self.requests = counter("requests", "HTTP requests answered, by what they asked for and "
                                "status", ["kind", "status"])
        self.answered = histogram("infer_seconds", "From a whole inference request to its answer")
        self.failed = counter("failed", "Inference requests that no engine answered")
        self.queue = histogram("queue_seconds", "From a whole inference request to its first batch")
        self.engine = histogram("engine_seconds", "Time of each batch in the engine")
        self.batches = histogram("batch_images", "Images of each batch", [2 ** i for i in range(9)])
        self.images = counter("images", "Images read")
        self.waiting = Gauge("mnist_waiting_images", "Images that wait for an engine", ["model"],
                             registry=registry)
        self.computing = counter("request_engine_seconds", "Time of each batch in the engine, "
                                 "times the requests in it")
        process = Gauge("mnist_process", "Which of the server's processes this is", ["pid"],
                        registry=registry)
        process.labels(str(os.getpid())).set(1)


# --- Engines --------------------------------------------------------------------------------------


def batch_sizes(device, max_batch):
    """The sizes for which engines are opened: up to `max_batch`, ascending.

    Few on a GPU, where a half empty batch costs little and building an engine may take minutes.
    """
    sizes = (1, 8) if device != "cpu" else (2 ** i for i in range(20))
    return [size for size in sizes if size < max_batch] + [max_batch]


class Engines:
    """A network's engines of several batch sizes, called like one: uint8 (B, C, H, W) ->
    float32 (B, K), where B is a number that `take` gave. The outputs may lie in a buffer that the
    next call overwrites.

    seconds  of each one's call, as lately seen
    detail   what runs, as text

    Raises MNISTError where they can't be opened, or where `stop()` says that nobody wants them.
    """

    def __init__(self, name, network, device, precision, max_batch, tuning=True, threads=1,
                 stop=bool):
        self.image_set, self.engines = network.image_set, []
        for size in batch_sizes(device, max_batch):
            if stop():
                raise MNISTError("the server ends")
            self.engines.append(open_engine(name, network, device, precision, size, tuning=tuning,
                                            threads=threads))
        self.max_batch = max_batch
        self.detail = f"{name} on {device}, {precision} ({self.engines[-1].detail})"
        self.seconds = [fastest_call(engine) for engine in self.engines]
        self.calls = self.trials = 0
        self.next_trial = 0.0  # the earliest time, in time.perf_counter()'s seconds
        self.choose_again()

    @property
    def rates(self):
        """Images per second of each engine, on full batches."""
        return [engine.batch_size / time for engine, time in zip(self.engines, self.seconds)]

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
        """Run the best engine, and learn from the time that full batches take: the trial at the
        start may have been made on a busy machine. Now and then another one is tried."""
        self.calls += 1
        start = time.perf_counter()
        if self.calls % TRY_EVERY == 0 and start > self.next_trial:
            return self.try_another(images)
        index = self.best[len(images)]
        outputs = self.engines[index](images)
        if len(images) == self.engines[index].batch_size:
            self.learn(index, time.perf_counter() - start)
        return outputs

    def try_another(self, images):
        """Run the next of the engines that are large enough, on a full batch."""
        larger = [index for index, engine in enumerate(self.engines)
                  if engine.batch_size >= len(images)]
        index = larger[self.trials % len(larger)]
        full = np.resize(images, (self.engines[index].batch_size,) + images.shape[1:])
        start = time.perf_counter()
        outputs = self.engines[index](full)
        seconds = time.perf_counter() - start
        self.learn(index, seconds)
        self.choose_again()
        self.trials, self.next_trial = self.trials + 1, start + seconds / TRIAL_SHARE
        return outputs[:len(images)]

    def learn(self, index, seconds):
        """A call of an engine took so long. Other programs make calls slower, never quicker: a
        quick one counts at once, slow ones little by little."""
        weight = 1 if seconds < self.seconds[index] else 0.02
        self.seconds[index] += weight * (seconds - self.seconds[index])

    def close(self):
        for engine in self.engines:
            engine.close()


def fastest_call(engine):
    """The seconds of an engine's fastest call on a full batch, of as many as fit into TRIAL."""
    images = np.zeros((engine.batch_size,) + engine.image_set.shape, np.uint8)
    engine(images)  # the first one sets it up
    seconds = []
    end = time.perf_counter() + TRIAL
    while len(seconds) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        engine(images)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def usable_engines(device, precision):
    """The names of the engines that can serve here."""
    return [name for name, kind in ENGINES.items()
            if not kind.on_request and not kind.is_baseline
            and not why_not(name, device, precision)]


def first_engine(device, precision):
    """The name of an engine that can serve here. Raises UnavailableError where none can."""
    for name in usable_engines(device, precision):
        return name
    raise UnavailableError(f"no engine can run {precision} on {device} here")


def choose_engine(network, device, precision, max_batch, threads=1, stop=bool):
    """(name, `Engines`, the trial as text) of the engine that is fastest here for a server.

    Each of this machine's is tried for a moment; the fastest is that with the highest geometric
    mean of its rates over all batch sizes, since a server meets small batches and large ones. One
    whose outputs are wrong isn't taken. Raises UnavailableError where none can run. Once `stop()`
    is true no more engines are opened.
    """
    shape = (max_batch,) + network.image_set.shape
    images = np.random.RandomState(0).randint(0, 256, shape).astype(np.uint8)
    reference = reference_log_probs(network, images)
    best, report = (0, None, None), []
    for name in usable_engines(device, precision):
        try:
            engines = Engines(name, network, device, precision, max_batch, threads=threads,
                              stop=stop)
        except MNISTError as error:
            report.append(f"{name} can't be opened ({str(error).splitlines()[0]})")
            continue
        _, wrong = judge_outputs(network.image_set, engines.engines[-1](images), reference,
                                 precision)
        rate = 0 if wrong else np.exp(np.mean(np.log(engines.rates)))
        report.append(f"{name} {wrong}" if wrong else
                      f"{name} {engines.rates[0]:,.0f} to {max(engines.rates):,.0f}")
        if rate > best[0]:
            best, engines = (rate, name, engines), best[2]
        if engines:
            engines.close()
    _, name, engines = best
    if not engines:
        raise UnavailableError(f"no engine can run {precision} on {device} here"
                               + "".join("\n" + line for line in report))
    return name, engines, f"{name} (auto; images/s at batch 1 to {max_batch}: {', '.join(report)})"


# --- The queue ------------------------------------------------------------------------------------


class Job:
    """One request's images on their way: `images` uint8 (N, C, H, W), `log_probs` float32 (N, K).

    When all are there `done(job)` is called, with `job.error` set where there are none.
    """

    __slots__ = ("images", "log_probs", "taken", "error", "done", "cancelled", "arrived",
                 "deadline", "queued")

    def __init__(self, images, done, timeout=None):
        self.images, self.done = images, done
        self.log_probs = self.error = None
        self.taken = 0  # images that have been in a batch
        self.cancelled = False
        self.arrived = time.perf_counter()
        self.deadline = self.arrived + timeout if timeout else None
        self.queued = 0.0  # seconds


class Batcher:
    """The queue before one network's engines (an `Engines`), on one event loop.

    `max_waiting`: requests are refused while so many images wait. `max_delay`: seconds that a
    batch which isn't full waits for more.
    """

    def __init__(self, model, engines, metrics, max_waiting, max_delay=0.0):
        self.engines, self.max_waiting, self.max_delay = engines, max_waiting, max_delay
        self.loop = asyncio.get_event_loop()
        self.jobs = collections.deque()
        self.waiting = 0  # images
        self.ended = time.perf_counter()  # the last batch
        self.scheduled = None
        self.staging = np.zeros((engines.max_batch,) + engines.image_set.shape, np.uint8)
        self.healthy = True  # opening the engines had them answer; false while they fail
        labelled = {name: getattr(metrics, name).labels(model) for name in (
            "images", "batches", "waiting", "queue", "engine", "answered", "failed", "computing")}
        self.metrics = types.SimpleNamespace(**labelled)

    def submit(self, job):
        """Take a job. Raises RequestError, 503, where too much waits already."""
        if self.waiting >= self.max_waiting:
            self.metrics.failed.inc()
            raise RequestError(f"{self.waiting} images are waiting already; try again later", 503,
                               retry_after="1")
        self.jobs.append(job)
        self.waiting += len(job.images)
        self.schedule()

    def cancel(self, job):
        """Compute no more of a job: nobody waits for its answers."""
        if not job.cancelled and job.taken < len(job.images):
            job.cancelled = True
            self.waiting -= len(job.images) - job.taken
            self.metrics.failed.inc()

    async def read(self, images, timeout=None, receive=None):
        """The outputs, float32 (N, K), of uint8 (N, C, H, W).

        timeout  seconds after which it is too late to begin
        receive  ASGI's function, by which a client that has gone is noticed while much waits

        Raises RequestError, the engine's error, or ConnectionError where the client has gone.
        """
        future = self.loop.create_future()
        job = Job(images, lambda job: future.cancelled() or future.set_result(job), timeout)
        self.submit(job)
        if receive and self.waiting > self.engines.max_batch:
            gone = asyncio.ensure_future(receive())
            await asyncio.wait([future, gone], return_when=asyncio.FIRST_COMPLETED)
            if not future.done():
                self.cancel(job)
                raise ConnectionError("the client has gone")
            gone.cancel()
        await future
        if job.error:
            raise job.error
        return job.log_probs

    def schedule(self):
        """See that a batch is run: after this turn of the event loop, or when the delay is up."""
        if self.scheduled and (self.max_delay == 0 or self.waiting < self.engines.max_batch):
            return
        if self.scheduled:
            self.scheduled.cancel()
        if self.max_delay and self.waiting < self.engines.max_batch:
            self.scheduled = self.loop.call_later(self.max_delay, self.run)
        else:
            self.scheduled = self.loop.call_soon(self.run)

    def run(self):
        """Run one batch of what waits, and answer the requests it completes.

        As long as more than a batch waits, run more of them: up to twice as long as the event loop
        spent on other things, or a flood of requests that are refused would leave no time for those
        that were taken.
        """
        self.scheduled = None
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
            self.scheduled = self.loop.call_soon(self.run)  # after what has come meanwhile
        self.metrics.waiting.set(self.waiting)

    def take_parts(self):
        """The next batch, taken from the queue: a list of (job, start, stop)."""
        wanted = self.engines.take(self.waiting) if self.waiting else 0
        now = time.perf_counter()
        parts = []
        cut = None
        while wanted and self.jobs:
            job = self.jobs.popleft()
            if job.cancelled:
                continue
            start, length = job.taken, len(job.images)
            if job.deadline and job.deadline < now and not start:
                self.cancel(job)
                job.error = RequestError("Request timeout expired", 503, retry_after="1")
                job.done(job)
                continue
            if not start:
                job.queued = now - job.arrived
            job.taken = min(length, start + wanted)
            parts.append((job, start, job.taken))
            wanted -= job.taken - start
            self.waiting -= job.taken - start
            if job.taken < length:
                cut = job
        if cut:
            self.jobs.append(cut)
        return parts

    def compute(self, parts):
        """Run one batch and hand its answers to the jobs they belong to."""
        number = sum(stop - start for _, start, stop in parts)
        images = np.concatenate([job.images[start:stop] for job, start, stop in parts],
                                out=self.staging[:number])
        began = time.perf_counter()
        try:
            log_probs = self.engines(images)
            self.healthy = True
        except Exception as error:  # any library's; the server goes on
            self.healthy = False
            self.fail(parts, error)
            return
        ended = time.perf_counter()
        self.metrics.engine.observe(ended - began)
        self.metrics.batches.observe(number)
        self.metrics.images.inc(number)
        self.metrics.computing.inc((ended - began) * len(parts))
        position = 0
        for job, start, stop in parts:
            self.hand_over(job, log_probs[position:position + stop - start], start, stop)
            position += stop - start

    def hand_over(self, job, log_probs, start, stop):
        """Keep a job's answers from `start` to `stop`; after the last ones it is done."""
        if stop - start == len(job.images):
            job.log_probs = log_probs.copy()
        else:
            if job.log_probs is None:
                job.log_probs = np.empty((len(job.images),) + log_probs.shape[1:], np.float32)
            job.log_probs[start:stop] = log_probs
        if stop == len(job.images):
            self.metrics.queue.observe(job.queued)
            self.metrics.answered.observe(time.perf_counter() - job.arrived)
            job.done(job)

    def fail(self, parts, error):
        """The engine raised `error`: so end all jobs that were in the batch."""
        for job, _, _ in parts:
            if job.taken < len(job.images):
                self.cancel(job)
            else:
                self.metrics.failed.inc()
            job.error = error
            job.done(job)
