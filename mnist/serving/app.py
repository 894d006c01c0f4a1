"""The server: one ASGI application, which uvicorn carries.

uvicorn and httptools read HTTP, `mnist.serving.requests` what a request may ask for and take; here
is which path means what, and the models behind it.
"""

import asyncio
import collections
import gc
import sys
import threading
import time
import traceback

import prometheus_client

from mnist.engines.registry import set_threads
from mnist.errors import MNISTError, describe_error, warn
from mnist.serving.batching import Batcher, Engines, Metrics, choose_engine, first_engine
from mnist.serving.page import PageRoutes, first_layer
from mnist.serving.protocol import MODEL_VERSION, Protocol, RequestError, server_metadata
from mnist.serving.requests import (
    BINARY,
    SECURITY,
    Bodies,
    Gate,
    Request,
    Response,
    as_json,
    refusal,
)

# --- The models -----------------------------------------------------------------------------------


class Model:
    """A network that is served: its `protocol`, its `batcher` before its engines, its first layer,
    and for the page its `facts`. `options`: see `Application`."""

    def __init__(self, name, network, engine, options, metrics):
        engines = Engines(engine, network, options.device, options.precision, options.max_batch,
                          tuning=options.engine != "auto",  # a better one is looked for then
                          threads=options.threads or 1)  # more gain little on small batches
        self.name, self.network = name, network
        self.batcher = Batcher(name, engines, metrics, options.max_waiting, options.max_delay)
        self.protocol = Protocol(name, engine, network.image_set, options.max_batch)
        self.first_layer = first_layer(network)

    def replace_engines(self, engines, platform):
        """Go on with other engines, between two batches."""
        old, self.batcher.engines = self.batcher.engines, engines
        self.protocol.platform = platform
        old.close()

    @property
    def facts(self):
        """What the page says of it."""
        image_set = self.network.image_set
        return {"name": self.name, "platform": self.protocol.platform,
                "engine": self.batcher.engines.detail, "weights": self.network.origin,
                "parameters": sum(tensor.numel() for tensor in self.network.net.parameters()),
                "image_set": image_set.name, "shape": image_set.shape,
                "classes": image_set.classes, "task": image_set.task,
                "output": image_set.output_name}


async def find_faster(models, options, stop):
    """Give each model the engine that is the fastest here, looking for it in a thread, until
    `stop()`."""
    loop = asyncio.get_event_loop()
    for model in models.values():
        try:
            best, engines, report = await loop.run_in_executor(
                None, choose_engine, model.network, options.device, options.precision,
                options.max_batch, options.threads or 1, stop)
        except MNISTError as error:
            warn(f"{model.name}: {error}")
            continue
        print(f"{model.name}: {report}", flush=True)
        model.replace_engines(engines, best)


# --- The application ------------------------------------------------------------------------------


class Application:
    """The ASGI application.

    options  what ServeMNIST.py's flags say, see there
    load     function that gives {name: its `mnist.models.weights.Network`} and, as far as they are
             here, {image set's name: (its test images, their targets)}
    opened   function that is called once the models are open
    """

    def __init__(self, options, load, opened):
        self.options, self.load, self.opened = options, load, opened
        self.gate, self.bodies = Gate(options.allow_host), Bodies()
        self.models, self.routes, self.counters = collections.OrderedDict(), {}, {}
        self.failure = None  # what went wrong as the server started
        self.looking = None  # the task that looks for the fastest engine
        self.ending = threading.Event()

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            await self.live(receive, send)
        elif scope["type"] == "http":
            await self.serve(Request(scope, receive), scope, send)

    async def live(self, receive, send):
        """Open the models as the server starts, close them when it ends."""
        await receive()
        try:
            self.start()
        except Exception as error:
            self.failure = error
            if self.options.workers > 1:  # the process that could say so is another
                print("error: " + describe_error(error), file=sys.stderr, flush=True)
            await send({"type": "lifespan.startup.failed"})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        self.ending.set()
        if self.looking:
            self.looking.cancel()
        for model in self.models.values():
            model.batcher.engines.close()
        await send({"type": "lifespan.shutdown.complete"})

    def start(self):
        """Open the models; each engine has answered a first image then. With the engine "auto" it
        is the first that can run: the fastest is looked for while the server answers already."""
        options = self.options
        networks, test_images = self.load()
        set_threads(options.threads or 1)
        self.metrics = Metrics()
        engine = options.engine
        if engine == "auto":
            engine = first_engine(options.device, options.precision)
        for name, network in networks.items():
            self.models[name] = Model(name, network, engine, options, self.metrics)
            print(f"{name}: {self.models[name].batcher.engines.detail}", flush=True)
        self.routes = self.make_routes(test_images)
        gc.collect()
        getattr(gc, "freeze", int)()  # Python 3.7: never look through torch for garbage again
        if options.engine == "auto":
            self.looking = asyncio.ensure_future(find_faster(self.models, options,
                                                             self.ending.is_set))
        self.opened()

    async def serve(self, request, scope, send):
        """Answer a request; whatever fails is answered too."""
        started = time.perf_counter()
        try:
            self.gate.check(request.headers)
            response = await self.respond(request)
        except ConnectionError:
            return
        except Exception as error:
            if not isinstance(error, RequestError):  # a fault of ours; the server goes on
                traceback.print_exc()
            response = refusal(error)
        finally:
            self.bodies.reserved -= request.room
        self.count(request, response, scope, started)
        headers = [(b"content-type", response.content_type),
                   (b"content-length", b"%d" % len(response.body))]
        headers += SECURITY + list(response.headers)
        await send({"type": "http.response.start", "status": response.status, "headers": headers})
        body = b"" if request.method == "HEAD" else response.body
        await send({"type": "http.response.body", "body": body})

    async def respond(self, request):
        """The `Response` to a request. Raises RequestError."""
        methods = self.routes.get(request.path)
        if methods is None:
            raise RequestError(self.not_found(request.path), 404)
        function = methods.get(request.method)
        if function is None:
            raise RequestError(f"{request.path} takes {', '.join(methods)}", 405,
                               allow=", ".join(methods))
        if request.method == "POST":
            return await function(request, await self.bodies.read(request))
        response = function(request)
        return await response if asyncio.iscoroutine(response) else response

    def count(self, request, response, scope, started):
        """Count an answered request, and print it where that is wanted."""
        key = request.kind, response.status
        if key not in self.counters:
            self.counters[key] = self.metrics.requests.labels(request.kind, str(response.status))
        self.counters[key].inc()
        if self.options.access_log:
            peer = (scope.get("client") or "-")[0]
            print(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {peer} {request.method} "
                  f"{request.path!r} {response.status} {len(response.body)} bytes "
                  f"{1000 * (time.perf_counter() - started):.2f} ms", flush=True)

    # --- Where a request goes ---------------------------------------------------------------------

    def make_routes(self, test_images):
        """{path: {method: function of a request, and for POST of its body}}; all paths there are.
        """
        routes = PageRoutes(self.models, test_images).routes()
        index = [{"name": name, "version": MODEL_VERSION, "state": "READY", "reason": ""}
                 for name in self.models]

        async def give_index(request, body):
            return as_json(index)

        routes.update({
            "/v2": {"GET": lambda request: as_json(server_metadata())},
            "/v2/health/live": {"GET": lambda request: as_json({"live": True})},
            "/v2/health/ready": {"GET": self.ready},
            "/v2/models/stats": {"GET": self.statistics},
            "/v2/repository/index": {"POST": give_index},
            "/metrics": {"GET": self.give_metrics},
        })
        for model in self.models.values():
            for version in ("", "/versions/" + MODEL_VERSION):
                routes.update(self.model_routes("/v2/models/" + model.name + version, model))
        routes["/v2/"] = routes["/v2"]
        return {path: dict(methods, HEAD=methods["GET"]) if "GET" in methods else methods
                for path, methods in routes.items()}

    def model_routes(self, path, model):
        """The routes of one model under one of its paths."""
        async def infer(request, body):
            return await self.infer(request, body, model)

        return {
            path: {"GET": lambda request: as_json(model.protocol.metadata())},
            path + "/ready": {"GET": lambda request: self.ready(request, model)},
            path + "/config": {"GET": lambda request: as_json(model.protocol.config())},
            path + "/stats": {"GET": lambda request: self.statistics(request, model)},
            path + "/infer": {"POST": infer},
        }

    def not_found(self, path):
        """What to say of a path that isn't there."""
        parts = path.split("/")
        if parts[1:3] == ["v2", "models"] and len(parts) > 3 and parts[3] not in self.models:
            return f"unknown model {parts[3]!r}; there are: {', '.join(self.models)}"
        if len(parts) > 5 and parts[4] == "versions" and parts[5] != MODEL_VERSION:
            return f"unknown version {parts[5]!r} of {parts[3]}; there is: {MODEL_VERSION}"
        return f"nothing is at {path}"

    # --- The protocol -----------------------------------------------------------------------------

    def ready(self, request, *models):
        """200 where the models (all of them, if none is named) can answer, else 503."""
        failed = [model.name for model in models or self.models.values()
                  if not model.batcher.healthy]
        if failed:
            raise RequestError(f"the engine of {', '.join(failed)} failed", 503)
        return as_json({"ready": True})

    async def infer(self, request, body, model):
        """Run images through a network."""
        request.kind = "infer"
        length = request.headers.get(b"inference-header-content-length")
        if length is not None:
            if not length.isdigit() or len(length) > 12:
                raise RequestError("Inference-Header-Content-Length is not a number")
            length = int(length)
        header, images = model.protocol.read_request(body, length)
        outputs = await model.batcher.read(images, header.timeout, request.receive)
        content, json_length = model.protocol.write_response(header, outputs)
        if json_length is None:
            return Response(content)
        return Response(content, BINARY, headers=[
            (b"inference-header-content-length", b"%d" % json_length)])

    def statistics(self, request, *models):
        """Triton's statistics, from what is counted for Prometheus."""
        return as_json({"model_stats": [model_statistics(model.name, self.metrics.registry)
                                        for model in models or self.models.values()]})

    def give_metrics(self, request):
        return Response(prometheus_client.generate_latest(self.metrics.registry),
                        prometheus_client.CONTENT_TYPE_LATEST.encode())


def model_statistics(name, registry):
    """A model's entry of Triton's statistics."""
    def value(sample):
        return registry.get_sample_value("mnist_" + sample, {"model": name}) or 0

    def duration(count, seconds):
        return {"count": int(count), "ns": int(1e9 * seconds)}

    requests = value("infer_seconds_count")
    nothing = duration(requests, 0)
    return {"name": name, "version": MODEL_VERSION,
            "inference_count": int(value("images_total")),
            "execution_count": int(value("batch_images_count")),
            "inference_stats": {
                "success": duration(requests, value("infer_seconds_sum")),
                "fail": duration(value("failed_total"), 0),
                "queue": duration(requests, value("queue_seconds_sum")),
                "compute_input": nothing,
                "compute_infer": duration(requests, value("request_engine_seconds_total")),
                "compute_output": nothing,
                "cache_hit": duration(0, 0), "cache_miss": duration(0, 0)},
            "batch_stats": []}
