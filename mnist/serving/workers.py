"""Several server processes that share one port, watched by the process that started them.

The kernel deals connections out among them (SO_REUSEPORT, Linux). Each opens its engines for
itself; what they count, Prometheus' files in a temporary folder add up.
"""

import multiprocessing
import multiprocessing.connection
import os
import signal
import tempfile

from mnist.errors import MNISTError
from mnist.serving.app import STOP_SECONDS, serve
from mnist.serving.http1 import bind

COUNTS = "PROMETHEUS_MULTIPROC_DIR"  # where prometheus_client keeps what processes share


def serve_shared(settings, sock, opened):
    """Serve with `settings.workers` processes until SIGTERM or Ctrl-C.

    `sock` is bound, as shared, and holds the port; `opened(details)` is called once all serve, with
    {model: its engine's detail}. Raises MNISTError where a worker ends by itself; then all end.
    """
    signals = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: signals.append(1))
    with tempfile.TemporaryDirectory(prefix="mnist-counts-") as folder:
        os.environ[COUNTS] = folder
        context = multiprocessing.get_context("spawn")
        workers, pipes = [], []
        for _ in range(settings.workers):
            ours, theirs = context.Pipe()
            worker = context.Process(target=run_worker,
                                     args=(settings, sock.getsockname()[:2], theirs))
            worker.start()
            theirs.close()
            workers.append(worker)
            pipes.append(ours)
        try:
            details = [wait_for(pipe, signals) for pipe in pipes]
            if None not in details:
                opened(details[0])
                watch(workers, signals)
        finally:
            end(workers, pipes)
        if not signals:
            raise MNISTError("a worker ended by itself; so did the others")


def run_worker(settings, address, parent):
    """The life of one worker; `parent` is its end of the pipe."""
    def opened(models):
        parent.send({model.name: model.engines.detail for model in models.values()})

    serve(settings, bind(*address, shared=True), opened, parent)


def wait_for(pipe, signals):
    """What a worker sends once it serves; None where it ended, or a signal came."""
    while not signals:
        try:
            if pipe.poll(0.1):
                return pipe.recv()
        except EOFError:
            break
    return None


def watch(workers, signals):
    """Wait until a signal comes or a worker ends."""
    while not signals and all(worker.is_alive() for worker in workers):
        multiprocessing.connection.wait([worker.sentinel for worker in workers], 0.1)


def end(workers, pipes):
    """End the workers: closing its pipe tells each to stop."""
    for pipe in pipes:
        pipe.close()
    for worker in workers:
        worker.join(STOP_SECONDS + 2)
        if worker.is_alive():
            worker.terminate()
            worker.join(2)
