"""The server: which path means what, the models behind it, the page, and a clean end.

`serve` runs it until SIGTERM or Ctrl-C. Everything happens on one event loop: `MNISThttp` carries
requests here, `MNISTprotocol` reads them, `MNISTbatching` has them answered.
"""

import asyncio
import base64
import collections
import hashlib
import os
import re
import signal
import socket
import sys
import time

import numpy as np
import prometheus_client
import prometheus_client.multiprocess

from MNISTbatching import Batcher, Engines, Job, Metrics
from MNISTdsource import digit_from_drawing, load_split, normalise
from MNISThttp import BINARY, HTML, JSON, HttpServer
from MNISTprotocol import (
    EXTENSIONS,
    MODEL_VERSION,
    RequestError,
    model_config,
    model_metadata,
    read_request,
    server_metadata,
    write_response,
)
from MNISTscript import HERE, MNISTError, UnavailableError, warn

PAGE = os.path.join(HERE, "web", "index.html")
STOP_SECONDS = 8  # for what is in flight when the server is told to stop
LARGEST_DRAWING = 2048  # pixels along a side

Model = collections.namedtuple("Model", "name engines batcher first_layer facts")
Model.__doc__ = """A network that is served.

batcher      the `Batcher` before its `engines`
first_layer  a `FirstLayer`, or None where it has none that can be shown
facts        what the page says of it, a dictionary
"""

Settings = collections.namedtuple(
    "Settings", "models engine device precision max_batch max_waiting max_delay data_dir "
    "access_log names workers")
Settings.__doc__ = """What the server is to be.

models       {name: MNISTweights.Network}
engine, device, precision   as `MNISTengine.open_engine` takes them
max_batch    digits in one call of an engine
max_waiting  digits that may wait for an engine
max_delay    seconds that a batch which isn't full waits for more
data_dir     where MNIST's test digits are, or None
access_log   whether each request is printed
names        hosts by which clients may call the server, beside addresses
workers      how many processes share the port
"""


class FirstLayer:
    """The first layer of a network that looks at the digit with filters: its filters and maps.

    Found with forward hooks, whatever the network calls it.
    """

    def __init__(self, net):
        import torch
        self.torch, self.net = torch, net
        self.layer = None
        hooks = [module.register_forward_hook(self.find) for module in net.modules()
                 if getattr(module, "weight", None) is not None]
        self.run(np.zeros((28, 28), np.uint8))
        for hook in hooks:
            hook.remove()

    def find(self, module, inputs, output):
        if self.layer is None and module.weight.dim() == 4 and output.dim() == 4:
            self.layer = module

    def run(self, digit):
        with self.torch.no_grad():
            self.net(self.torch.from_numpy(normalise(digit[np.newaxis])))

    def show(self, digit):
        """The filters and the maps of a digit, uint8 (28, 28), as JSON takes them: each a shape
        and base64 of bytes, 128 standing for 0."""
        maps = []
        hook = self.layer.register_forward_hook(lambda _, __, output: maps.append(output[0]))
        self.run(digit)
        hook.remove()
        filters = self.layer.weight.detach()[:, 0]
        return {"filters": grey_pictures(filters.numpy()), "maps": grey_pictures(maps[0].numpy())}


def grey_pictures(values):
    """Numbers around 0, float32 (N, H, W), as grey levels around 128, the farthest 1 or 255."""
    scaled = 128 + values * (127 / max(1e-9, np.abs(values).max()))
    return {"shape": list(values.shape), "data": encode(np.rint(scaled).astype(np.uint8))}


def encode(array):
    """The bytes of an array, as base64 text."""
    return base64.b64encode(array.tobytes()).decode()


class Application:
    """Answers requests: `handle(request)` is what an `HttpServer` calls."""

    def __init__(self, settings, models, metrics):
        self.settings, self.models, self.metrics = settings, models, metrics
        self.loop = asyncio.get_event_loop()
        self.stopping = False
        self.page, self.page_headers = load_page()
        try:
            self.images, self.labels = load_split("test", settings.data_dir, download=False)
        except MNISTError:
            self.images, self.labels = np.zeros((0, 28, 28), np.uint8), np.zeros(0, np.uint8)
        self.counters = {}
        self.routes = self.make_routes()

    # Where a request goes

    def make_routes(self):
        """{path: {method: function of a request}}; all paths there are."""
        routes = {
            "/": {"GET": self.give_page},
            "/v2": {"GET": lambda request: request.answer_json(server_metadata())},
            "/v2/health/live": {"GET": lambda request: request.answer_json({"live": True})},
            "/v2/health/ready": {"GET": self.ready},
            "/v2/models/stats": {"GET": self.stats},
            "/metrics": {"GET": self.give_metrics},
            "/page/about": {"GET": self.about},
            "/page/prepare": {"POST": self.prepare},
            "/page/test": {"GET": self.test_digit},
        }
        for model in self.models.values():
            for version in ("", "/versions/" + MODEL_VERSION):
                path = "/v2/models/" + model.name + version
                routes.update(self.model_routes(path, model))
            page = "/page/models/" + model.name
            routes[page + "/layer"] = {"POST": lambda request, m=model: self.layer(request, m)}
            routes[page + "/mistake"] = {"GET": lambda request, m=model: self.mistake(request, m)}
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
            body, json_length = write_response(model.name, header, job.answers)
            if json_length is None:
                request.answer(body)
            else:
                request.answer(body, BINARY, headers=[
                    (b"Inference-Header-Content-Length", b"%d" % json_length)])

        job = Job(images, done, header.timeout)
        request.on_gone = job.cancel
        model.batcher.submit(job)

    def stats(self, request, *models):
        """Triton's statistics, from what is counted for Prometheus."""
        registry = self.registry()
        request.answer_json({"model_stats": [
            model_statistics(model.name, registry) for model in models or self.models.values()]})

    def registry(self):
        """Where the counts are: of this process, or of all where several share the port."""
        if self.settings.workers == 1:
            return prometheus_client.REGISTRY
        registry = prometheus_client.CollectorRegistry()
        prometheus_client.multiprocess.MultiProcessCollector(registry)
        return registry

    def give_metrics(self, request):
        request.answer(prometheus_client.generate_latest(self.registry()),
                       prometheus_client.CONTENT_TYPE_LATEST.encode())

    # The page

    def give_page(self, request):
        request.answer(self.page, HTML, headers=self.page_headers)

    def about(self, request):
        """What the page needs to know: the models, and how many test digits there are."""
        request.answer_json({"models": [model.facts for model in self.models.values()],
                             "digits": len(self.images)})

    def prepare(self, request):
        """The digit in a drawing: grey levels, width × height bytes, to 28 × 28; 204 if empty."""
        request.kind = "page"
        width, height = (number(request, name, LARGEST_DRAWING) for name in ("width", "height"))
        if not width or len(request.body) != width * height:
            raise RequestError("the body is width × height grey levels")
        drawing = np.frombuffer(request.body, np.uint8).reshape(height, width)
        digit = digit_from_drawing(drawing)
        if digit is None:
            request.answer(b"", BINARY, 204)
        else:
            request.answer(digit.tobytes(), BINARY)

    def layer(self, request, model):
        """The first layer's filters, and its maps of a digit, 784 grey levels."""
        request.kind = "page"
        if len(request.body) != 784:
            raise RequestError("the body is a digit, 784 grey levels")
        if model.first_layer is None:
            raise RequestError(f"{model.name} has no first layer of filters", 404)
        digit = np.frombuffer(request.body, np.uint8).reshape(28, 28)
        request.answer_json(model.first_layer.show(digit))

    def test_digit(self, request):
        """A test digit with its label, by its index."""
        request.kind = "page"
        index = number(request, "index", len(self.images) - 1)
        request.answer_json({"index": index, "label": int(self.labels[index]),
                             "digit": encode(self.images[index])})

    def mistake(self, request, model):
        """The first test digit after an index that the model reads wrongly; 404 if none."""
        request.kind = "page"
        after = number(request, "after", len(self.images) - 1)
        task = self.loop.create_task(self.find_mistake(request, model, after))
        request.on_gone = task.cancel

    async def find_mistake(self, request, model, after):
        try:
            order = np.roll(np.arange(len(self.images)), -after - 1)
            for start in range(0, len(order), model.engines.max_batch):
                chosen = order[start:start + model.engines.max_batch]
                answers = await model.batcher.read(self.images[chosen])
                wrong = chosen[answers.argmax(1) != self.labels[chosen]]
                if len(wrong):
                    request.answer_json({"index": int(wrong[0])})
                    return
            raise RequestError(f"{model.name} reads all test digits correctly", 404)
        except Exception as error:
            request.refuse(error)


def with_head(methods):
    """The same methods, and HEAD where there is GET."""
    return dict(methods, HEAD=methods["GET"]) if "GET" in methods else methods


def number(request, name, largest):
    """A whole number among a request's query, from 0 to `largest`."""
    text = request.query.get(name, "")
    if not re.match(r"[0-9]{1,9}$", text) or int(text) > largest:
        raise RequestError(f"{name} is a whole number from 0 to {largest}")
    return int(text)


def load_page():
    """The page's bytes, and headers that let it use nothing but itself and this server."""
    try:
        with open(PAGE, "rb") as file:
            page = file.read()
    except OSError as error:
        raise MNISTError(f"can't read the page {PAGE}: {error.strerror}") from error
    rules = ["default-src 'none'", "connect-src 'self'", "img-src 'self' data: blob:",
             "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"]
    for tag in ("script", "style"):
        for content in re.findall(f"<{tag}>(.*?)</{tag}>".encode(), page, re.DOTALL):
            digest = base64.b64encode(hashlib.sha256(content).digest()).decode()
            rules.append(f"{tag}-src 'sha256-{digest}'")
    return page, [(b"Content-Security-Policy", "; ".join(rules).encode()),
                  (b"Referrer-Policy", b"no-referrer"), (b"X-Frame-Options", b"DENY")]


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


def bind(host, port, shared):
    """A socket bound to an address, not yet listening. `shared`: other processes may bind it too.

    Raises UnavailableError where it can't be had.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM,
                                                      flags=socket.AI_PASSIVE)[0]
        sock = socket.socket(family, socket.SOCK_STREAM)
        if os.name == "posix":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(address)
    except OSError as error:
        raise UnavailableError(f"can't listen on {host} port {port}: {error.strerror}; "
                               "--port takes another") from error
    return sock


def open_models(settings, metrics):
    """{name: Model}, each engine opened and having answered a first digit."""
    models = collections.OrderedDict()
    for name, network in settings.models.items():
        engines = Engines(settings.engine, network, settings.device, settings.precision,
                          settings.max_batch)
        batcher = Batcher(name, engines, metrics, settings.max_waiting, settings.max_delay)
        batcher.healthy = True
        first_layer = FirstLayer(network.net)
        weights = sum(parameter.numel() for parameter in network.net.parameters())
        models[name] = Model(name, engines, batcher, first_layer if first_layer.layer else None, {
            "name": name, "platform": settings.engine, "engine": engines.detail,
            "weights": network.origin, "parameters": weights})
    return models


def new_event_loop():
    """An event loop, uvloop's where that is installed: it takes half the time."""
    try:
        import uvloop
    except ImportError:
        loop = asyncio.new_event_loop()
    else:
        loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)
    return loop


def serve(settings, sock, opened):
    """Serve on a bound socket until SIGTERM or Ctrl-C; `opened(models)` is called once it can."""
    loop = new_event_loop()
    metrics = Metrics()
    models = open_models(settings, metrics)
    application = Application(settings, models, metrics)
    server = HttpServer(application.handle, settings.names, on_answer=application.count)
    stopped = loop.create_future()

    async def stop():
        application.stopping = True
        await server.stop(STOP_SECONDS)
        stopped.set_result(None)

    def on_signal(*_):
        if application.stopping:  # a second signal: now
            os._exit(1)
        application.stopping = True
        loop.call_soon_threadsafe(lambda: loop.create_task(stop()))

    for number in (signal.SIGINT, signal.SIGTERM):
        if hasattr(loop, "add_signal_handler") and os.name == "posix":
            loop.add_signal_handler(number, on_signal)
        else:
            signal.signal(number, on_signal)
    loop.run_until_complete(server.start(sock))
    opened(models)
    loop.run_until_complete(stopped)
    for model in models.values():
        model.engines.close()
    loop.close()
