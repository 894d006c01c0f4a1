"""What the page in the browser asks for beside the inference protocol: itself, a picture made an
image, test images, and the first layer of a network.
"""

import base64
import functools
import hashlib
import os
import re

import numpy as np

from mnist.datasets.drawing import digit_from_picture, is_drawable, read_picture
from mnist.datasets.folder import to_shape
from mnist.errors import MNISTError, UnavailableError
from mnist.models.features import convolutions, maps_of
from mnist.serving.protocol import RequestError
from mnist.serving.requests import Response, as_json

PAGE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "page.html")
LARGEST_DRAWING = 2048  # pixels along a side
HTML = b"text/html; charset=utf-8"


class PageRoutes:
    """Answers the page.

    models       {name: `mnist.serving.app.Model`}
    test_images  {image set's name: (its test images, their targets)}, as far as they are here
    """

    def __init__(self, models, test_images):
        self.models, self.test_images = models, test_images
        self.page, self.page_headers = load_page()

    def routes(self):
        """{path: {method: function of a request, and for POST of its body}}."""
        routes = {"/": {"GET": self.give_page}, "/page/about": {"GET": self.about}}
        for model in self.models.values():
            path = "/page/models/" + model.name
            for name, method, function in (("picture", "POST", self.picture),
                                           ("drawing", "POST", self.drawing),
                                           ("layer", "POST", self.layer),
                                           ("test", "GET", self.test_image),
                                           ("mistake", "GET", self.mistake)):
                routes[f"{path}/{name}"] = {method: functools.partial(function, model)}
        return routes

    def give_page(self, request):
        return Response(self.page, HTML, headers=self.page_headers)

    def about(self, request):
        """What the page needs to know of the models."""
        return as_json({"models": [dict(
            model.facts, drawable=is_drawable(model.network.image_set),
            test_images=len(self.images_of(model)[0])) for model in self.models.values()]})

    def images_of(self, model):
        """(images, targets) to test a model on; empty ones where there are none here."""
        image_set = model.network.image_set
        nothing = np.zeros((0,) + image_set.shape, np.uint8), np.zeros(0, np.int64)
        return self.test_images.get(image_set.name, nothing)

    async def picture(self, model, request, body):
        """The image in a picture's bytes, a file of any kind."""
        request.kind = "page"
        try:
            return self.prepared(model, read_picture(bytes(body)))
        except UnavailableError as error:
            raise RequestError(str(error), 501) from error
        except MNISTError as error:
            raise RequestError(str(error)) from error

    async def drawing(self, model, request, body):
        """The image in a drawing: grey levels, width × height bytes."""
        request.kind = "page"
        width, height = (number(request, name, LARGEST_DRAWING) for name in ("width", "height"))
        if not width or len(body) != width * height:
            raise RequestError("the body is width × height grey levels")
        return self.prepared(model, np.frombuffer(body, np.uint8).reshape(height, width))

    def prepared(self, model, picture):
        """A picture as the model takes it, and what there is to say of it."""
        image_set = model.network.image_set
        if not is_drawable(image_set):
            return as_json({"image": encode(to_shape(picture, image_set.shape)), "note": ""})
        digit = digit_from_picture(picture)
        return as_json({"image": None if digit.image is None else encode(digit.image),
                        "note": digit.note})

    async def layer(self, model, request, body):
        """The first layer's filters, and its maps of an image."""
        request.kind = "page"
        shape = model.network.image_set.shape
        if len(body) != int(np.prod(shape)):
            raise RequestError(f"the body is an image, {int(np.prod(shape))} bytes")
        if model.first_layer is None:
            raise RequestError(f"{model.name} has no first layer of filters", 404)
        image = np.frombuffer(body, np.uint8).reshape(shape)
        return as_json(show_layer(model.network, model.first_layer, image))

    def test_image(self, model, request):
        """A test image with its target, by its index."""
        request.kind = "page"
        images, targets = self.images_of(model)
        index = number(request, "index", len(images) - 1)
        return as_json({"index": index, "target": targets[index].tolist(),
                        "image": encode(images[index])})

    async def mistake(self, model, request):
        """The index of the first test image after another that the model misreads, or null."""
        request.kind = "page"
        images, targets = self.images_of(model)
        after = number(request, "after", len(images) - 1)
        order = np.roll(np.arange(len(images)), -after - 1)
        size = model.batcher.engines.max_batch
        for start in range(0, len(order), size):
            chosen = order[start:start + size]
            outputs = await model.batcher.read(images[chosen])
            wrong = chosen[outputs.argmax(1) != targets[chosen]]
            if len(wrong):
                return as_json({"index": int(wrong[0])})
        return as_json({"index": None})


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
    return page, [(b"content-security-policy", "; ".join(rules).encode()),
                  (b"referrer-policy", b"no-referrer"), (b"x-frame-options", b"DENY")]


# --- The first layer ------------------------------------------------------------------------------


def first_layer(network):
    """The `mnist.models.features.Layer` of the first convolution that reads the image; or None."""
    layers = convolutions(network.net, network.image_set.shape)
    return next((layer for layer in layers if layer.filters is not None), None)


def show_layer(network, layer, image):
    """The filters and the maps of an image, uint8 (C, H, W), as JSON takes them: each a shape and
    base64 of bytes, 128 standing for 0."""
    import torch

    from MNISTmodel import calls
    x = network.image_set.normalise(image[np.newaxis])
    with torch.no_grad():
        made, _ = calls(network.net, torch.from_numpy(x), copied=True)
    maps = maps_of(made, layer.module).maps
    filters = layer.filters.mean(1)  # of a colour filter the mean of its channels
    return {"filters": grey_pictures(filters), "maps": grey_pictures(maps)}


def grey_pictures(values):
    """Numbers around 0, float32 (N, H, W), as grey levels around 128, the farthest 1 or 255."""
    scaled = 128 + values * (127 / max(1e-9, np.abs(values).max()))
    return {"shape": list(values.shape), "data": encode(np.rint(scaled).astype(np.uint8))}


def encode(array):
    """The bytes of an array, as base64 text."""
    return base64.b64encode(array.tobytes()).decode()
