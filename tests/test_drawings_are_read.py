"""Drawings are read as well as MNIST's own digits are, wherever on the canvas and however large."""

import numpy as np
import pytest
import torch
from PyQt5.QtCore import Qt
from windows import draw, ink

from MNISTdsource import digit_from_drawing, load_split, normalise
from MNISTmodel import load_weights
from MNISTwidgets import Canvas, to_array, to_image

SIZES = 0.3, 0.85  # of the canvas, for digits drawn with the pen


def share_read(digits, labels):
    """The share of the digits, uint8 (N, 28, 28), that the shipped network reads as labelled."""
    with torch.no_grad():
        log_probabilities = load_weights()(torch.from_numpy(normalise(digits)))
    return (log_probabilities.argmax(1).numpy() == labels).mean()


@pytest.mark.mnist
@pytest.mark.slow
def test_enlarged_test_digits(mnist_dir):
    """All 10,000, enlarged to 60 to 260 pixels, anywhere on a canvas of 280."""
    images, labels = load_split("test", mnist_dir)
    random = np.random.default_rng(0)
    digits = np.stack([digit_from_drawing(enlarged(image, random)) for image in images])
    plain, drawn = share_read(images, labels), share_read(digits, labels)
    print(f"{100 * plain:.2f} % read as they are, {100 * drawn:.2f} % enlarged")
    assert drawn >= plain - 0.005


def enlarged(image, random):
    """A test digit at a random size and place, uint8 (280, 280)."""
    size = int(random.integers(60, 261))
    row, column = random.integers(0, 280 - size + 1, 2)
    drawing = np.zeros((280, 280), np.uint8)
    drawing[row:row + size, column:column + size] = to_array(
        to_image(image).scaled(size, size, Qt.IgnoreAspectRatio, Qt.SmoothTransformation))
    return drawing


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
