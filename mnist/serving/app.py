"""The server: one ASGI application, which uvicorn carries.

uvicorn and httptools read HTTP, `mnist.serving.requests` what a request may ask for and take; here
is which path means what, and the models behind it.
"""

import asyncio
import collections
import functools
import gc
import threading
import traceback

import prometheus_client

from mnist.engines.registry import set_threads
from mnist.serving.batching import Batcher, Engines, fastest_engines, usable_engines
from mnist.serving.page import PageRoutes
from mnist.serving.protocol import MODEL_VERSION, SERVER, Protocol, RequestError
from mnist.serving.requests import Bodies, Gate, Request, Response, as_json, refusal

GET, POST = ("GET", "HEAD"), ("POST",)
BINARY = b"application/octet-stream"
REQUESTS = prometheus_client.Counter("mnist_requests", "HTTP requests answered, by their status",
                                     ["status"])


class Model:
    """A network that is served, with its `protocol` and the `batcher` before its engines."""

    def __init__(self, name, network, options):
        self.name, self.network = name, network
        self.protocol = Protocol(name, network.image_set, options.max_batch)
        engine, tuning = options.engine, True
        if engine == "auto":  # the first that can run answers while the fastest is looked for
            engine, tuning = next(iter(usable_engines(options)), "torch"), False
        engines = Engines(engine, network, options, tuning)
        self.batcher = Batcher(name, engines, options.max_waiting)
        print(f"{name}: {engines.detail}", flush=True)


class Application:
    """The ASGI application. When it is made, each engine has answered a first image.

    networks     {name: its `mnist.models.weights.Network`}
    test_images  {image set's name: (its test images, their targets)}, as far as they are here
    options      what ServeMNIST.py's flags say, see there
    """

    def __init__(self, networks, test_images, options):
        self.options = options
        self.gate, self.bodies = Gate(options.allow_host), Bodies()
        self.answered = functools.lru_cache(None)(REQUESTS.labels)
        self.ending = threading.Event()
        set_threads(options.threads)
        self.models = collections.OrderedDict(
            (name, Model(name, network, options)) for name, network in networks.items())
        self.routes = self.make_routes(test_images)
        gc.collect()
        getattr(gc, "freeze", int)()  # Python 3.7: never look through torch for garbage again

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            await self.live(receive, send)
        else:
            await self.serve(Request(scope, receive), send)

    async def live(self, receive, send):
        """See the server through its start and its end."""
        await receive()
        tasks = [asyncio.ensure_future(task) for task in (self.find_faster(), self.bodies.watch())]
        await send({"type": "lifespan.startup.complete"})
        await receive()
        for task in tasks:
            task.cancel()
        for model in self.models.values():
            model.batcher.engines.close()
        await send({"type": "lifespan.shutdown.complete"})

    async def find_faster(self):
        """With the engine "auto", give each model the one that is the fastest here, looking for it
        in a thread."""
        for model in self.models.values() if self.options.engine == "auto" else ():
            engines, trial = await asyncio.get_event_loop().run_in_executor(
                None, fastest_engines, model.network, self.options, self.ending.is_set)
            if engines:  # go on with them, between two batches
                model.batcher.engines.close()
                model.batcher.engines = engines
            print(f"{model.name}: {model.batcher.engines.detail} (auto; {trial})", flush=True)

    async def serve(self, request, send):
        """Answer a request; whatever fails is answered too."""
        try:
            self.gate.check(request.headers)
            response = await self.respond(request)
        except ConnectionError:
            return
        except RequestError as error:
            response = refusal(error)
        except Exception as error:  # a fault of ours; the server goes on
            traceback.print_exc()
            response = refusal(RequestError(f"{type(error).__name__}: {error}", 500))
        finally:
            self.bodies.reserved -= request.room
        self.answered(response.status).inc()
        if self.ending.is_set():
            response.headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": response.status,
                    "headers": response.headers})
        await send({"type": "http.response.body", "body": response.body})

    async def respond(self, request):
        """The `Response` to a request. Raises RequestError."""
        methods, function, models = self.routes.get(request.path, (None, None, None))
        if function is None:
            raise RequestError(f"nothing is at {request.path}; the models are "
                               f"{', '.join(self.models)}, of version {MODEL_VERSION}", 404)
        if request.method not in methods:
            raise RequestError(f"{request.path} takes {', '.join(methods)}", 405,
                               allow=", ".join(methods))
        if request.method == "POST":
            request.body = await self.bodies.read(request)
        response = function(request, *models)
        return await response if asyncio.iscoroutine(response) else response

    # --- Where a request goes ---------------------------------------------------------------------

    def make_routes(self, test_images):
        """{path: (its methods, function of a request and models, the models)}; all paths there are.
        """
        models, page = list(self.models.values()), PageRoutes(self.models, test_images)
        routes = {
            "/": (GET, page.give_page, ()),
            "/page/about": (GET, page.about, models),
            "/v2": (GET, lambda request: as_json(SERVER), ()),
            "/v2/health/live": (GET, lambda request: as_json({"live": True}), ()),
            "/v2/health/ready": (GET, self.ready, models),
            "/v2/models/stats": (GET, self.statistics, models),
            "/v2/repository/index": (POST, self.index, models),
            "/metrics": (GET, self.give_metrics, ()),
        }
        protocol = {"": (GET, self.metadata), "/config": (GET, self.config),
                    "/ready": (GET, self.ready), "/stats": (GET, self.statistics),
                    "/infer": (POST, self.infer)}
        pages = {"/picture": (POST, page.picture), "/drawing": (POST, page.drawing),
                 "/layer": (POST, page.layer), "/test": (GET, page.test_image),
                 "/mistake": (GET, page.mistake)}
        for name, model in self.models.items():
            for path, ends in (("/v2/models/" + name, protocol),
                               (f"/v2/models/{name}/versions/{MODEL_VERSION}", protocol),
                               ("/page/models/" + name, pages)):
                for end, (methods, function) in ends.items():
                    routes[path + end] = methods, function, [model]
        return routes

    # --- The protocol -----------------------------------------------------------------------------

    def ready(self, request, *models):
        """200 where the models can answer, else 503."""
        failed = [model.name for model in models if not model.batcher.healthy]
        if failed:
            raise RequestError(f"the engine of {', '.join(failed)} failed", 503)
        return as_json({"ready": True})

    def index(self, request, *models):
        return as_json([{"name": model.name, "version": MODEL_VERSION, "state": "READY",
                         "reason": ""} for model in models])

    def metadata(self, request, model):
        return as_json(model.protocol.metadata(model.batcher.engines.name))

    def config(self, request, model):
        return as_json(model.protocol.config(model.batcher.engines.name))

    async def infer(self, request, model):
        """Run images through a network."""
        length = request.headers.get(b"inference-header-content-length")
        if length is not None:
            if not length.isdigit() or len(length) > 12:
                raise RequestError("Inference-Header-Content-Length is not a number")
            length = int(length)
        header, images = model.protocol.read_request(request.body, length)
        outputs = await model.batcher.read(images, header.timeout, request.receive)
        content, json_length = model.protocol.write_response(header, outputs)
        if json_length is None:
            return Response(content)
        return Response(content, BINARY, headers=[
            (b"inference-header-content-length", b"%d" % json_length)])

    def statistics(self, request, *models):
        """Triton's statistics, from what is counted for Prometheus."""
        return as_json({"model_stats": [model_statistics(model.name) for model in models]})

    def give_metrics(self, request):
        return Response(prometheus_client.generate_latest(),
                        prometheus_client.CONTENT_TYPE_LATEST.encode())


def model_statistics(name):
    """A model's entry of Triton's statistics."""
    def value(sample):
        return prometheus_client.REGISTRY.get_sample_value("mnist_" + sample, {"model": name})

    def duration(sample):
        return {"count": int(value(sample + "_seconds_count")),
                "ns": int(1e9 * value(sample + "_seconds_sum"))}

    nothing = {"count": 0, "ns": 0}
    return {"name": name, "version": MODEL_VERSION,
            "inference_count": int(value("images_total")),
            "execution_count": int(value("batch_images_count")),
            "inference_stats": {
                "success": duration("infer"),
                "fail": {"count": int(value("failed_total")), "ns": 0},
                "queue": duration("queue"), "compute_input": nothing,
                "compute_infer": duration("engine"), "compute_output": nothing},
            "batch_stats": []}
