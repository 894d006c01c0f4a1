"""What people drew with a pen, drawn again on the real canvas, is read by the shipped weights."""

import numpy as np
import pytest
import torch
from windows import draw, ink

from mnist.datasets.drawing import digit_from_drawing
from mnist.datasets.image_set import MNIST
from mnist.gui.canvas import Canvas
from mnist.models.weights import load_network

SIZES = 0.3, 0.85  # of the canvas, for digits drawn with the pen


def share_read(digits, labels):
    """The share of the digits, uint8 (N, 28, 28), that the shipped network reads as labelled."""
    with torch.no_grad():
        log_probabilities = load_network().net(torch.from_numpy(MNIST.normalise(digits)))
    return (log_probabilities.argmax(1).numpy() == labels).mean()


@pytest.mark.pen
def test_pen_digits_on_the_canvas(pen_digits):
    """500 drawn by mouse events, each at its own place and size, with the pen as it comes."""
    random = np.random.default_rng(0)
    canvas = Canvas()
    canvas.resize(500, 500)
    canvas.show()
    digits, labels = [], []
    for index in random.choice(len(pen_digits), 500, replace=False):
        strokes, label = pen_digits[index]
        canvas.clear()
        draw(canvas, placed(strokes, random))
        digits.append(digit_from_drawing(ink(canvas)))
        labels.append(label)
    share = share_read(np.stack(digits), labels)
    print(f"{100 * share:.1f} % read")
    assert share >= 0.965


def placed(strokes, random):
    """Strokes from 0 to 1000 → from 0 to 1, of a random size, at a random place on the canvas."""
    size = random.uniform(*SIZES)
    extent = np.concatenate(strokes).max(0) / 1000 * size
    margin = 0.04
    corner = margin + random.uniform(0, 1, 2) * (1 - 2 * margin - extent)
    return [stroke / 1000 * size + corner for stroke in strokes]
