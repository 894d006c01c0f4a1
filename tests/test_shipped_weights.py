"""What the weights that the project ships can read."""

import numpy as np
import pytest
import torch

from MNISTdsource import digit_from_drawing, load_split, normalise
from MNISTmodel import load_weights

SIZE, MARGIN = 280, 30  # pixels of a drawing: the digit's longer side, and the border
PEN_WIDTH = 28  # pixels: a tenth of the digit, two of its 20 pixels, as MNIST's strokes are


def share_read(images, labels):
    """The share of the images that the shipped network reads as their labels."""
    with torch.no_grad():
        log_probabilities = load_weights()(torch.from_numpy(normalise(images)))
    return float((log_probabilities.argmax(1).numpy() == labels).mean())


def draw(strokes):
    """Draw one digit's strokes, arrays (points, 2) from 0 to 1000, with a round pen."""
    from PIL import Image, ImageDraw
    image = Image.new("L", (SIZE + 2 * MARGIN, SIZE + 2 * MARGIN))
    pen = ImageDraw.Draw(image)
    for stroke in strokes:
        points = [tuple(point) for point in stroke * (SIZE / 1000) + MARGIN]
        pen.line(points, fill=255, width=PEN_WIDTH)
        for x, y in points:
            radius = PEN_WIDTH / 2
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    return np.asarray(image)


@pytest.mark.mnist
def test_reads_the_test_digits(mnist_dir):
    assert share_read(*load_split("test", mnist_dir)) >= 0.9965


@pytest.mark.pen
@pytest.mark.slow
def test_reads_what_people_drew_with_a_pen(pen_digits):
    digits = np.stack([digit_from_drawing(draw(strokes)) for strokes, _ in pen_digits])
    assert share_read(digits, np.array([label for _, label in pen_digits])) >= 0.970
