"""What the page in the browser asks for beside the inference protocol: itself, a drawing made a
digit, test digits, and the first layer of a network.
"""

import asyncio
import base64
import functools
import hashlib
import os
import re

import numpy as np

from mnist.datasets.drawing import digit_from_drawing
from mnist.datasets.image_set import normalise
from mnist.errors import MNISTError
from mnist.serving.http1 import BINARY, HTML
from mnist.serving.protocol import RequestError
from MNISTdsource import load_split

PAGE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "page.html")
LARGEST_DRAWING = 2048  # pixels along a side


class PageRoutes:
    """Answers the page. `models`: {name: `Model`}; `data_dir`: where MNIST is, which is
    used where it is already there, never fetched."""

    def __init__(self, models, data_dir):
        self.models = models
        self.loop = asyncio.get_event_loop()
        self.page, self.page_headers = load_page()
        try:
            self.images, self.targets = load_split("test", data_dir, download=False)
        except MNISTError:
            self.images, self.targets = np.zeros((0, 28, 28), np.uint8), np.zeros(0, np.uint8)

    def routes(self):
        """{path: {method: function of a request}}."""
        routes = {
            "/": {"GET": self.give_page},
            "/page/about": {"GET": self.about},
            "/page/prepare": {"POST": self.prepare},
            "/page/test": {"GET": self.test_digit},
        }
        for model in self.models.values():
            path = "/page/models/" + model.name
            routes[path + "/layer"] = {"POST": functools.partial(self.layer, model)}
            routes[path + "/mistake"] = {"GET": functools.partial(self.mistake, model)}
        return routes

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

    def layer(self, model, request):
        """The first layer's filters, and its maps of a digit, 784 grey levels."""
        request.kind = "page"
        if len(request.body) != 784:
            raise RequestError("the body is a digit, 784 grey levels")
        if model.first_layer.layer is None:
            raise RequestError(f"{model.name} has no first layer of filters", 404)
        digit = np.frombuffer(request.body, np.uint8).reshape(28, 28)
        request.answer_json(model.first_layer.show(digit))

    def test_digit(self, request):
        """A test digit with its label, by its index."""
        request.kind = "page"
        index = number(request, "index", len(self.images) - 1)
        request.answer_json({"index": index, "label": int(self.targets[index]),
                             "digit": encode(self.images[index])})

    def mistake(self, model, request):
        """The index of the first test digit after another that the model reads wrongly, or null."""
        request.kind = "page"
        after = number(request, "after", len(self.images) - 1)
        task = self.loop.create_task(self.find_mistake(request, model, after))
        request.on_gone = task.cancel

    async def find_mistake(self, request, model, after):
        try:
            order = np.roll(np.arange(len(self.images)), -after - 1)
            for start in range(0, len(order), model.engines.max_batch):
                chosen = order[start:start + model.engines.max_batch]
                log_probs = await model.batcher.read(self.images[chosen])
                wrong = chosen[log_probs.argmax(1) != self.targets[chosen]]
                if len(wrong):
                    request.answer_json({"index": int(wrong[0])})
                    return
            request.answer_json({"index": None})
        except Exception as error:
            request.refuse(error)


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


# --- The first layer ------------------------------------------------------------------------------


class FirstLayer:
    """The first convolution of a network that reads the digit itself: its filters and maps.

    `layer` is a `mnist.models.features.Layer`, or None where the network has none.
    """

    def __init__(self, net):
        from mnist.models.features import convolutions
        self.net = net
        self.layer = next((layer for layer in convolutions(net) if layer.filters is not None), None)

    def show(self, digit):
        """The filters and the maps of a digit, uint8 (28, 28), as JSON takes them: each a shape
        and base64 of bytes, 128 standing for 0."""
        import torch

        from mnist.models.features import maps_of
        from MNISTmodel import calls
        with torch.no_grad():
            made, _ = calls(self.net, torch.from_numpy(normalise(digit[np.newaxis])), copied=True)
        maps = maps_of(made, self.layer.module).maps
        return {"filters": grey_pictures(self.layer.filters), "maps": grey_pictures(maps)}


def grey_pictures(values):
    """Numbers around 0, float32 (N, H, W), as grey levels around 128, the farthest 1 or 255."""
    scaled = 128 + values * (127 / max(1e-9, np.abs(values).max()))
    return {"shape": list(values.shape), "data": encode(np.rint(scaled).astype(np.uint8))}


def encode(array):
    """The bytes of an array, as base64 text."""
    return base64.b64encode(array.tobytes()).decode()
