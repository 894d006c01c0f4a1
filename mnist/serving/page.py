"""What the page in the browser asks for beside the inference protocol: itself, a picture made an
image, test images, and the first layer of a network.
"""

import base64
import hashlib
import os
import re
import urllib.parse

import numpy as np

from mnist.datasets.drawing import digit_from_picture, is_drawable, read_picture
from mnist.datasets.folder import to_shape
from mnist.errors import MNISTError
from mnist.models.features import FeatureReader
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
        self.test_images = test_images
        self.readers = {name: FeatureReader(model.network) for name, model in models.items()}
        self.page, self.page_headers = load_page()

    def give_page(self, request):
        return Response(self.page, HTML, headers=self.page_headers)

    def about(self, request, *models):
        """What the page needs to know of the models."""
        facts = []
        for model in models:
            network, image_set = model.network, model.network.image_set
            facts.append({
                "name": model.name, "engine": model.batcher.engines.detail,
                "weights": network.origin,
                "parameters": sum(tensor.numel() for tensor in network.net.parameters()),
                "image_set": image_set.name, "shape": image_set.shape,
                "classes": image_set.classes, "task": image_set.task,
                "drawable": is_drawable(image_set), "test_images": len(self.images_of(model)[0])})
        return as_json({"models": facts})

    def images_of(self, model):
        """(images, targets) to test a model on; empty ones where there are none here."""
        return self.test_images.get(model.network.image_set.name, (np.zeros(0), np.zeros(0)))

    def picture(self, request, model):
        """The image in a picture's bytes, a file of any kind."""
        try:
            return self.prepared(model, read_picture(request.body))
        except MNISTError as error:
            raise RequestError(str(error)) from error

    def drawing(self, request, model):
        """The image in a drawing: grey levels, width × height bytes."""
        width, height = (number(request, name, LARGEST_DRAWING) for name in ("width", "height"))
        if not width or len(request.body) != width * height:
            raise RequestError("the body is width × height grey levels")
        return self.prepared(model, np.frombuffer(request.body, np.uint8).reshape(height, width))

    def prepared(self, model, picture):
        """A picture as the model takes it, and what there is to say of it."""
        image_set = model.network.image_set
        if not is_drawable(image_set):
            return as_json({"image": encode(to_shape(picture, image_set.shape)), "note": ""})
        digit = digit_from_picture(picture)
        return as_json({"image": None if digit.image is None else encode(digit.image),
                        "note": digit.note})

    def layer(self, request, model):
        """The filters of the first layer that reads the image, and its maps of one."""
        shape = model.network.image_set.shape
        if len(request.body) != int(np.prod(shape)):
            raise RequestError(f"the body is an image, {int(np.prod(shape))} bytes")
        reader = self.readers[model.name]
        made, _ = reader.look(np.frombuffer(request.body, np.uint8).reshape(shape))
        for layer, result in zip(reader.layers, made):
            if layer.filters is not None:  # of a colour filter the mean of its channels
                return as_json({"filters": grey_pictures(layer.filters.mean(1)),
                                "maps": grey_pictures(result.maps)})
        raise RequestError(f"{model.name} has no first layer of filters", 404)

    def test_image(self, request, model):
        """A test image with its target, by its index."""
        images, targets = self.images_of(model)
        index = number(request, "index", len(images) - 1)
        return as_json({"index": index, "target": targets[index].tolist(),
                        "image": encode(images[index])})

    async def mistake(self, request, model):
        """The index of the first test image after another that the model misreads, or null."""
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
    text = dict(urllib.parse.parse_qsl(request.query.decode("latin-1"))).get(name, "")
    if not re.match(r"[0-9]{1,9}$", text) or int(text) > largest:
        raise RequestError(f"{name} is a whole number from 0 to {largest}")
    return int(text)


def load_page():
    """The page's bytes, and headers that let it use nothing but itself and this server."""
    with open(PAGE, "rb") as file:
        page = file.read()
    rules = ["default-src 'none'", "connect-src 'self'", "img-src 'self' data: blob:",
             "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"]
    for tag in ("script", "style"):
        for content in re.findall(f"<{tag}>(.*?)</{tag}>".encode(), page, re.DOTALL):
            digest = base64.b64encode(hashlib.sha256(content).digest()).decode()
            rules.append(f"{tag}-src 'sha256-{digest}'")
    return page, [(b"content-security-policy", "; ".join(rules).encode()),
                  (b"referrer-policy", b"no-referrer"), (b"x-frame-options", b"DENY")]


def grey_pictures(values):
    """Numbers around 0, float32 (N, H, W), as the page takes pictures: their shape, and base64 of
    grey levels around 128, the farthest 1 or 255."""
    scaled = 128 + values * (127 / max(1e-9, np.abs(values).max()))
    return {"shape": list(values.shape), "data": encode(np.rint(scaled).astype(np.uint8))}


def encode(array):
    """The bytes of an array, as base64 text."""
    return base64.b64encode(array.tobytes()).decode()
