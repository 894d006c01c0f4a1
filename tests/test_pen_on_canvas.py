"""What people drew with a pen, drawn again on the real canvas, is read by the shipped weights."""

import numpy as np
import pytest
from test_shipped_weights import share_read
from windows import draw, ink

from mnist.datasets.drawing import digit_from_drawing
from mnist.gui.canvas import Canvas


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
        size = random.uniform(0.3, 0.85) / 1000  # of the canvas
        extent = np.concatenate(strokes).max(0) * size
        corner = 0.04 + random.uniform(0, 1, 2) * (0.92 - extent)
        canvas.clear()
        draw(canvas, [stroke * size + corner for stroke in strokes])
        digits.append(digit_from_drawing(ink(canvas)))
        labels.append(label)
    share = share_read(np.stack(digits), np.array(labels))
    print(f"{100 * share:.1f} % read")
    assert share >= 0.965
