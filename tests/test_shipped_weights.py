"""What the weights that the project ships can read, and what their records say of them."""

import glob
import hashlib
import json
import os

import numpy as np
import pytest
import torch

from mnist.datasets.drawing import digit_from_drawing
from mnist.datasets.image_set import MNIST
from mnist.models.weights import SHIPPED, load_network
from MNISTdsource import load_split
from MNISTmodel import count_macs, count_parameters

SIZE, MARGIN = 280, 30  # pixels of a drawing: the digit's longer side, and the border
PEN_WIDTH = 28  # pixels: a tenth of the digit, two of its 20 pixels, as MNIST's strokes are


def share_read(images, labels, name="net"):
    """The share of the images that the shipped network reads as their labels."""
    net = load_network(os.path.join(SHIPPED, name + ".pth")).net
    with torch.no_grad():
        log_probabilities = torch.cat([net(part) for part in
                                       torch.from_numpy(MNIST.normalise(images)).split(1000)])
    return float((log_probabilities.argmax(1).numpy() == labels).mean())


def enlarge(image, size):
    """A square image enlarged to `size` pixels, smoothly: bilinear between the pixels' centres."""
    at = ((np.arange(size) + 0.5) * len(image) / size - 0.5).clip(0, len(image) - 1)
    weights = (1 - np.abs(at[:, np.newaxis] - np.arange(len(image)))).clip(0).astype(np.float32)
    return np.rint(weights @ image @ weights.T).astype(np.uint8)


def draw(strokes, pen_width=PEN_WIDTH):
    """Draw one digit's strokes, arrays (points, 2) from 0 to 1000, with a round pen."""
    from PIL import Image, ImageDraw
    image = Image.new("L", (SIZE + 2 * MARGIN, SIZE + 2 * MARGIN))
    pen = ImageDraw.Draw(image)
    for stroke in strokes:
        points = [tuple(point) for point in stroke * (SIZE / 1000) + MARGIN]
        pen.line(points, fill=255, width=pen_width)
        for x, y in points:
            radius = pen_width / 2
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    return np.asarray(image)


@pytest.mark.mnist
@pytest.mark.parametrize("name, share", [("net", 0.9965), ("small", 0.9960), ("lenet5", 0.9920)])
def test_reads_the_test_digits(mnist_dir, name, share):
    assert share_read(*load_split("test", mnist_dir), name) >= share


@pytest.mark.mnist
@pytest.mark.slow
def test_reads_the_test_digits_at_any_place_and_size_of_a_canvas(mnist_dir):
    images, labels = load_split("test", mnist_dir)
    random = np.random.RandomState(0)
    prepared = np.empty_like(images)
    for i, size in enumerate(random.randint(60, 261, len(images))):
        canvas = np.zeros((280, 280), np.uint8)
        top, left = random.randint(0, 281 - size, 2)
        canvas[top:top + size, left:left + size] = enlarge(images[i, 0], size)
        prepared[i] = digit_from_drawing(canvas)
    assert abs(share_read(prepared, labels) - share_read(images, labels)) < 0.005


@pytest.mark.pen
@pytest.mark.parametrize("pen_width", [3, 8, 14, 28, 56])
def test_the_width_of_the_pen_hardly_matters(pen_digits, pen_width):
    some = pen_digits[::10]
    digits = np.stack([digit_from_drawing(draw(strokes, pen_width)) for strokes, _ in some])
    assert share_read(digits, np.array([label for _, label in some])) >= 0.965


@pytest.mark.pen
@pytest.mark.slow
def test_reads_what_people_drew_with_a_pen(pen_digits):
    digits = np.stack([digit_from_drawing(draw(strokes)) for strokes, _ in pen_digits])
    labels = np.array([label for _, label in pen_digits])
    for name, share in (("net", 0.983), ("small", 0.980)):
        assert share_read(digits, labels, name) >= share, name


RECORDS = sorted(glob.glob(os.path.join(SHIPPED, "*[!x].json")))


@pytest.mark.parametrize("path", RECORDS, ids=os.path.basename)
def test_record_is_that_of_the_weights(path):
    with open(path) as file:
        record = json.load(file)
    stem = os.path.splitext(path)[0]
    with open(stem + ".pth", "rb") as file:
        assert record["weights"]["sha256"] == hashlib.sha256(file.read()).hexdigest()
    shipped = load_network(stem + ".pth")
    assert record["settings"]["network"] == shipped.name
    assert record["weights"]["parameters"] == count_parameters(shipped.net)
    assert record["weights"]["macs"] == count_macs(shipped.net, shipped.image_set.shape)
    assert len(record["epochs"]) == record["settings"]["epochs"]
    assert record["result"]["accuracy"] == record["epochs"][-1]["accuracy"]
    assert os.path.isfile(stem + ".png")
    with open(stem + "-int8.onnx", "rb") as graph, open(stem + "-int8.onnx.json") as file:
        assert json.load(file)["sha256"] == hashlib.sha256(graph.read()).hexdigest()
