"""Take the README's screenshots from the real windows, without a screen: docs/*.png.

    python docs/screenshots.py
"""
# ruff: noqa: E402 (Qt reads its environment when it is imported)

import os
import sys

DOCS = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(DOCS))
sys.path.insert(0, os.path.join(os.path.dirname(DOCS), "tests"))
os.environ["QT_QPA_PLATFORM"] = "offscreen"
os.environ["QT_SCALE_FACTOR"] = "1.5"

import math
import pathlib
import tempfile

from PyQt5.QtTest import QTest
from windows import draw, hover, opened, settle

import GraphMNIST
import MNISTshowFeat


def arc(x, y, width, height, start, stop):
    """Points of an arc around (x, y), from one angle to another in degrees, 0 at three o'clock."""
    angles = [math.radians(start + (stop - start) * step / 30) for step in range(31)]
    return [(x + width * math.cos(angle), y + height * math.sin(angle)) for angle in angles]


THREE = [arc(0.48, 0.33, 0.2, 0.16, -160, 90) + arc(0.48, 0.67, 0.23, 0.18, -90, 150)]
FIVE = [[(0.72, 0.16), (0.5, 0.17), (0.36, 0.18), (0.35, 0.3), (0.33, 0.44)]
        + arc(0.48, 0.63, 0.22, 0.21, -140, 140)]


def take(program, strokes, *pictures):
    """Draw on a program's window and save it once for each (name, what to do first)."""
    with tempfile.TemporaryDirectory() as folder:
        with opened(program, pathlib.Path(folder), mnist=os.environ.get("MNIST_DATA")) as window:
            draw(window.canvas, strokes)
            settle(window)
            for name, prepare in pictures:
                prepare(window)
                QTest.qWait(200)
                path = os.path.join(DOCS, name)
                window.grab().save(path)
                print(f"wrote {path}")


def show_layer(layer, index):
    """What brings a tab of MNISTshowFeat forward and hovers one of its maps."""
    def prepare(window):
        window.panel.beside.setCurrentIndex(layer)
        QTest.qWait(50)
        hover(window.panel.layers[layer].conv, index)
    return prepare


take(GraphMNIST, THREE, ("GraphMNIST.png", lambda window: None))
take(MNISTshowFeat, FIVE, ("MNISTshowFeat-1.png", show_layer(0, 6)),
     ("MNISTshowFeat-2.png", show_layer(1, 17)))
