"""What the weights that the project ships can read, and what their records say of them."""

import glob
import hashlib
import json
import os

import numpy as np
import photos
import pytest
import torch

from mnist.datasets.drawing import digit_from_drawing
from mnist.datasets.image_set import MNIST
from mnist.models.weights import SHIPPED, load_network
from MNISTdsource import load_split
from MNISTmodel import count_macs, count_parameters


def share_read(images, labels, name="net"):
    """The share of the images that the shipped network reads as their labels."""
    net = load_network(os.path.join(SHIPPED, name + ".pth")).net
    with torch.no_grad():
        log_probabilities = torch.cat([net(part) for part in
                                       torch.from_numpy(MNIST.normalise(images)).split(1000)])
    return float((log_probabilities.argmax(1).numpy() == labels).mean())


def drawn(strokes, pen_width):
    """The digit of strokes drawn 280 pixels long; a tenth is as wide as MNIST's strokes are."""
    return digit_from_drawing(np.asarray(photos.pen_ink(strokes, 280, pen_width)))


@pytest.mark.mnist
@pytest.mark.parametrize("name, share", [("net", 0.9965), ("small", 0.9960), ("lenet5", 0.9920)])
def test_reads_the_test_digits(mnist_dir, name, share):
    assert share_read(*load_split("test", mnist_dir), name) >= share


@pytest.mark.pen
@pytest.mark.parametrize("pen_width", [3, 8, 14, 28, 56])
def test_the_width_of_the_pen_hardly_matters(pen_digits, pen_width):
    some = pen_digits[::10]
    digits = np.stack([drawn(strokes, pen_width) for strokes, _ in some])
    assert share_read(digits, np.array([label for _, label in some])) >= 0.965


@pytest.mark.pen
@pytest.mark.slow
def test_reads_what_people_drew_with_a_pen(pen_digits):
    digits = np.stack([drawn(strokes, 28) for strokes, _ in pen_digits])
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
