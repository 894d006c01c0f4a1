"""Driving the real windows: Qt without a screen, mouse events."""

import contextlib
import functools
import math
import os
import time

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

import numpy as np
import pytest

pytest.importorskip("PyQt5.QtTest")

from PyQt5.QtCore import QEvent, QPointF, QSettings, Qt
from PyQt5.QtGui import QMouseEvent
from PyQt5.QtTest import QTest
from PyQt5.QtWidgets import QApplication, QWidget

import mnist.gui.application
import mnist.gui.canvas

application = mnist.gui.application.start_application("tests")

# A digit as strokes of (x, y), on a scale of 0 to 1.
SEVEN = [[(0.25, 0.2), (0.5, 0.2), (0.75, 0.2), (0.62, 0.5), (0.48, 0.85)]]
ONE = [[(0.5, 0.15), (0.5, 0.5), (0.5, 0.85)]]
ZERO = [[(0.5 + 0.22 * math.sin(a), 0.5 - 0.32 * math.cos(a)) for a in np.linspace(0, 6.4, 60)]]


@contextlib.contextmanager
def opened(program, tmp_path, *arguments, mnist=None):
    """The window of `program` (GraphMNIST, MNISTshowFeat), shown and with its network loaded."""
    QSettings.setPath(QSettings.NativeFormat, QSettings.UserScope, str(tmp_path / "settings"))
    data_dir = mnist or tmp_path / "no-mnist"
    window = program.make_window(program.read_options(["--data-dir", str(data_dir), *arguments]))
    failures = []
    window.failed.connect(failures.append)
    window.show()
    application.setActiveWindow(window)  # an X server without a window manager doesn't
    try:
        wait_until(lambda: window.reader is not None or failures)
        if mnist is not None:
            wait_until(lambda: window.images is not None
                       and len(window.predictions) == window.count())
        settle(window)
        yield window
        settle(window)
    finally:
        window.close()
    assert not failures


def wait_until(condition, seconds=120):
    """Let the window work until `condition()` holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the window didn't get there in time"
        QTest.qWait(2)


def settle(window):
    """Wait until everything asked of the worker, and what that asked, is done and shown."""
    done = []
    for count in (1, 2):
        window.worker.submit("settle", lambda: None, done.append, done.append)
        wait_until(functools.partial(lambda count: len(done) == count, count))


def part(window, name):
    """The widget called `name`."""
    return window.findChild(QWidget, name)


def click(window, name):
    QTest.mouseClick(part(window, name), Qt.LeftButton)
    settle(window)


def key(window, key, modifier=Qt.NoModifier):
    QTest.keyClick(window, key, modifier)
    settle(window)


def place(canvas, x, y):
    """QPointF of the canvas widget for coordinates from 0 to 1."""
    square = mnist.gui.canvas.largest_square(canvas.rect())
    return QPointF(square.x() + x * square.width(), square.y() + y * square.height())


def mouse(canvas, kind, point, button=Qt.LeftButton, down=True):
    event = QMouseEvent(kind, point, button, button if down else Qt.NoButton, Qt.NoModifier)
    QApplication.sendEvent(canvas, event)


def draw(canvas, strokes, button=Qt.LeftButton):
    """Draw strokes of (x, y), on a scale of 0 to 1, as the mouse does."""
    for stroke in strokes:
        points = [place(canvas, x, y) for x, y in stroke]
        mouse(canvas, QEvent.MouseButtonPress, points[0], button)
        for point in points[1:]:
            mouse(canvas, QEvent.MouseMove, point, button)
        mouse(canvas, QEvent.MouseButtonRelease, points[-1], button, down=False)


def hover(grid, index):
    """Move the mouse over one map of a MapGrid."""
    point = grid.cell(index).center()
    QApplication.sendEvent(grid, QMouseEvent(QEvent.MouseMove, point, Qt.NoButton, Qt.NoButton,
                                             Qt.NoModifier))


def ink(canvas):
    """The drawing, uint8 (H, W)."""
    return mnist.gui.canvas.to_array(canvas.picture)
