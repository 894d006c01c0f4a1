"""The server: which path means what, the models behind it, the page, and a clean end.

`serve` runs it until SIGTERM or Ctrl-C. Everything happens on one event loop: http1.py carries
requests here, `mnist.serving.protocol` reads them, `mnist.serving.batching` has them answered.
"""

import asyncio
import collections
import gc
import os
import signal
import time

import prometheus_client
import prometheus_client.multiprocess

from mnist.engines.registry import set_threads
from mnist.errors import warn
from mnist.serving.batching import Batcher, Engines, Job, Metrics
from mnist.serving.http1 import BINARY, HttpServer
from mnist.serving.page import FirstLayer, PageRoutes
from mnist.serving.protocol import (
    MODEL_VERSION,
    RequestError,
    model_config,
    model_metadata,
    read_request,
    server_metadata,
    write_response,
)

STOP_SECONDS = 8  # for what is in flight when the server is told to stop

Model = collections.namedtuple("Model", "name engines batcher first_layer facts")
Model.__doc__ = """A network that is served.

batcher      the `Batcher` before its `engines`
first_layer  a `mnist.serving.page.FirstLayer`
facts        what the page says of it, a dictionary
"""

Settings = collections.namedtuple(
    "Settings", "networks engines device precision threads max_batch max_waiting max_delay "
    "data_dir access_log names workers")
Settings.__doc__ = """What the server is to be.

networks     {name: mnist.models.weights.Network}
engines      {name: the engine that runs it}
device, precision, threads   for all of them
max_batch    digits in one call of an engine
max_waiting  digits that may wait for an engine
max_delay    seconds that a batch which isn't full waits for more
data_dir     where MNIST's test digits are, or None
access_log   whether each request is printed
names        hosts by which clients may call the server, beside addresses
workers      how many processes share the port
"""


class Application:
    """Answers requests: `handle(request)` is what an `HttpServer` calls."""

    def __init__(self, settings, models, metrics):
        self.settings, self.models, self.metrics = settings, models, metrics
        self.stopping = False
        self.counters = {}
        self.routes = self.make_routes()

    # Where a request goes

    def make_routes(self):
        """{path: {method: function of a request}}; all paths there are."""
        routes = PageRoutes(self.models, self.settings.data_dir).routes()
        routes.update({
            "/v2": {"GET": lambda request: request.answer_json(server_metadata())},
            "/v2/health/live": {"GET": lambda request: request.answer_json({"live": True})},
            "/v2/health/ready": {"GET": self.ready},
            "/v2/models/stats": {"GET": self.stats},
            "/metrics": {"GET": self.give_metrics},
        })
        for model in self.models.values():
            for version in ("", "/versions/" + MODEL_VERSION):
                routes.update(self.model_routes("/v2/models/" + model.name + version, model))
        routes["/v2/"] = routes["/v2"]
        return {path: with_head(methods) for path, methods in routes.items()}

    def model_routes(self, path, model):
        """The routes of one model under one of its paths."""
        platform = model.facts["platform"]
        metadata = model_metadata(model.name, platform)
        config = model_config(model.name, platform, model.engines.max_batch)
        return {
            path: {"GET": lambda request: request.answer_json(metadata)},
            path + "/ready": {"GET": lambda request: self.ready(request, model)},
            path + "/config": {"GET": lambda request: request.answer_json(config)},
            path + "/stats": {"GET": lambda request: self.stats(request, model)},
            path + "/infer": {"POST": lambda request: self.infer(request, model)},
        }

    def handle(self, request):
        """Answer a request, now or later; whatever fails is answered too."""
        try:
            methods = self.routes.get(request.path)
            if methods is None:
                raise RequestError(self.not_found(request.path), 404)
            function = methods.get(request.method)
            if function is None:
                raise RequestError(f"{request.path} takes {', '.join(methods)}", 405,
                                   allow=", ".join(methods))
            function(request)
        except RequestError as error:
            request.refuse(error)
        except Exception as error:  # a fault of ours; the server goes on
            warn(f"{request.method} {request.path}: {type(error).__name__}: {error}")
            request.refuse(error)

    def not_found(self, path):
        """What to say of a path that isn't there."""
        parts = path.split("/")
        if parts[1:3] == ["v2", "models"] and len(parts) > 3 and parts[3] not in self.models:
            return f"unknown model {parts[3]!r}; there are: {', '.join(self.models)}"
        if len(parts) > 5 and parts[4] == "versions" and parts[5] != MODEL_VERSION:
            return f"unknown version {parts[5]!r} of {parts[3]}; there is: {MODEL_VERSION}"
        return f"nothing is at {path}"

    def count(self, request, status, size):
        """Count an answered request, and print it where that is wanted."""
        key = request.kind, status
        if key not in self.counters:
            self.counters[key] = self.metrics.requests.labels(request.kind, str(status))
        self.counters[key].inc()
        if self.settings.access_log:
            peer = request.connection.transport.get_extra_info("peername") or ("-",)
            print(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {peer[0]} {request.method} "
                  f"{request.path!r} {status} {size} bytes "
                  f"{1000 * (time.perf_counter() - request.arrived):.2f} ms", flush=True)

    # The protocol

    def ready(self, request, *models):
        """200 where the models (all of them, if none is named) can answer, else 503."""
        if self.stopping:
            raise RequestError("the server is stopping", 503)
        failed = [model.name for model in models or self.models.values()
                  if not model.batcher.healthy]
        if failed:
            raise RequestError(f"the engine of {', '.join(failed)} failed", 503)
        request.answer_json({"ready": True})

    def infer(self, request, model):
        """Read digits."""
        request.kind = "infer"
        length = request.headers.get(b"inference-header-content-length")
        if length is not None:
            if not length.isdigit() or len(length) > 12:
                raise RequestError("Inference-Header-Content-Length is not a number")
            length = int(length)
        header, images = read_request(request.body, length)

        def done(job):
            if job.error:
                request.refuse(job.error)
                return
            body, json_length = write_response(model.name, header, job.log_probs)
            if json_length is None:
                request.answer(body)
            else:
                request.answer(body, BINARY, headers=[
                    (b"Inference-Header-Content-Length", b"%d" % json_length)])

        job = Job(images, done, header.timeout)
        request.on_gone = lambda: model.batcher.cancel(job)
        model.batcher.submit(job)

    def stats(self, request, *models):
        """Triton's statistics, from what is counted for Prometheus."""
        registry = self.registry()
        request.answer_json({"model_stats": [
            model_statistics(model.name, registry) for model in models or self.models.values()]})

    def registry(self):
        """Where the counts are: of this process, or of all where several share the port."""
        if self.settings.workers == 1:
            return self.metrics.registry
        registry = prometheus_client.CollectorRegistry()
        prometheus_client.multiprocess.MultiProcessCollector(registry)
        return registry

    def give_metrics(self, request):
        request.answer(prometheus_client.generate_latest(self.registry()),
                       prometheus_client.CONTENT_TYPE_LATEST.encode())


def with_head(methods):
    """The same methods, and HEAD where there is GET."""
    return dict(methods, HEAD=methods["GET"]) if "GET" in methods else methods


def model_statistics(name, registry):
    """A model's entry of Triton's statistics."""
    def value(sample):
        return registry.get_sample_value("mnist_" + sample, {"model": name}) or 0

    def duration(count, seconds):
        return {"count": int(count), "ns": int(1e9 * seconds)}

    requests = value("infer_seconds_count")
    nothing = duration(requests, 0)
    return {"name": name, "version": MODEL_VERSION,
            "inference_count": int(value("digits_total")),
            "execution_count": int(value("batch_digits_count")),
            "inference_stats": {
                "success": duration(requests, value("infer_seconds_sum")),
                "fail": duration(value("failed_total"), 0),
                "queue": duration(requests, value("queue_seconds_sum")),
                "compute_input": nothing,
                "compute_infer": duration(requests, value("request_engine_seconds_total")),
                "compute_output": nothing,
                "cache_hit": duration(0, 0), "cache_miss": duration(0, 0)},
            "batch_stats": []}


# --- Running --------------------------------------------------------------------------------------


def open_models(settings, metrics):
    """{name: Model}; each engine has answered a first digit."""
    models = collections.OrderedDict()
    for name, network in settings.networks.items():
        engine = settings.engines[name]
        engines = Engines(engine, network, settings.device, settings.precision,
                          settings.max_batch)
        parameters = sum(tensor.numel() for tensor in network.net.parameters())
        models[name] = Model(
            name, engines, Batcher(name, engines, metrics, settings.max_waiting,
                                   settings.max_delay),
            FirstLayer(network.net),
            {"name": name, "platform": engine, "engine": engines.detail,
             "weights": network.origin, "parameters": parameters})
    return models


def new_event_loop():
    """An event loop: uvloop's, which takes half the time, where that is installed."""
    try:
        import uvloop
    except ImportError:
        loop = asyncio.new_event_loop()
    else:
        loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)
    return loop


def serve(settings, sock, opened, parent=None):
    """Serve on a bound socket until SIGTERM or Ctrl-C; a second one ends it at once, status 1.

    `opened(models)` is called once it serves. `parent`: a pipe to the process that watches this
    one; the server ends when that one has gone, and leaves Ctrl-C to it.
    """
    set_threads(settings.threads)
    loop = new_event_loop()
    metrics = Metrics()
    models = open_models(settings, metrics)
    application = Application(settings, models, metrics)
    server = HttpServer(application.handle, settings.names, on_answer=application.count)
    stopped = loop.create_future()

    async def stop():
        await server.stop(STOP_SECONDS)
        stopped.set_result(None)

    def begin_to_stop():
        if application.stopping:
            os._exit(1)
        application.stopping = True
        loop.create_task(stop())

    on_signal(loop, signal.SIGTERM, begin_to_stop)
    if parent is None:
        on_signal(loop, signal.SIGINT, begin_to_stop)
    else:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        loop.add_reader(parent.fileno(), begin_to_stop)
    gc.collect()
    getattr(gc, "freeze", int)()  # Python 3.7: never look through all of torch for garbage again
    loop.run_until_complete(server.start(sock))
    opened(models)
    loop.run_until_complete(stopped)
    for model in models.values():
        model.engines.close()


def on_signal(loop, number, function):
    """Call `function` on the event loop when a signal comes."""
    if os.name == "posix":
        loop.add_signal_handler(number, function)
    else:
        signal.signal(number, lambda *_: loop.call_soon_threadsafe(function))
