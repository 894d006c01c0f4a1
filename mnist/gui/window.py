"""The window around canvas and views: its tools, the test images, and the worker that reads."""

import collections
import functools
import os
import random
import threading

import numpy as np
from PyQt5.QtCore import QSettings, Qt, QThread, pyqtSignal
from PyQt5.QtGui import QImage, QKeySequence
from PyQt5.QtWidgets import (
    QAction,
    QActionGroup,
    QFileDialog,
    QHBoxLayout,
    QLabel,
    QMainWindow,
    QMessageBox,
    QSizePolicy,
    QSlider,
    QSpinBox,
    QToolBar,
    QVBoxLayout,
    QWidget,
)

from mnist.datasets import drawing
from mnist.datasets.folder import to_shape
from mnist.datasets.image_set import as_picture
from mnist.errors import DataError
from mnist.gui.canvas import PEN_WIDTH, PEN_WIDTHS, Canvas, to_array, write_picture


class Worker(QThread):
    """A thread for everything slow, so that the window never waits.

    Jobs run one after another. Of the jobs waiting under one key only the newest is kept: the
    newest drawing wins, however slow the network. `done(result)` or `failed(error)` is called in
    the thread of the window.
    """

    ready = pyqtSignal(object, object)

    def __init__(self, parent):
        super().__init__(parent)
        self.jobs = collections.OrderedDict()
        self.changed = threading.Condition()
        self.ready.connect(lambda callback, value: callback(value))

    def submit(self, key, job, done, failed):
        with self.changed:
            self.jobs[key] = job, done, failed
            self.changed.notify()

    def stop(self):
        """Drop the waiting jobs and wait for the running one."""
        with self.changed:
            self.jobs.clear()
            self.jobs["stop"] = None
            self.changed.notify()
        self.wait()

    def run(self):
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.jobs)
                _, task = self.jobs.popitem(last=False)
            if task is None:
                return
            job, done, failed = task
            try:
                self.ready.emit(done, job())
            except Exception as error:
                self.ready.emit(failed, error)


class ImageWindow(QMainWindow):
    """A canvas with its tools and the test images, and what a program adds: its panel.

    `panel.beside` and `panel.below` are the widgets right of and below the canvas; None for none.

    `open_reader()` is called once in the worker thread. It returns an object with two methods,
    called there too: `look(image)`, for uint8 (C, H, W), whose result goes to the panel, and
    `read(images)`, for uint8 (B, C, H, W), B <= its `batch_size`, which returns the network's
    outputs, float32 (B, K); its `network` is a `mnist.models.weights.Network`.

    `load_test_set(image_set)` is called there when that has returned. It gives the test images,
    uint8 (N, C, H, W), as `images`, and their `targets`; DataError where they aren't here.

    `panel.opened(reader)` is called when the network has been opened, and
    `panel.show(image, target, result)` whenever the canvas has changed: the uint8 (C, H, W) that
    the network received or None, its target or None, and what `look` returned, None where there is
    no image or no network yet.
    """

    failed = pyqtSignal(object)

    def __init__(self, program, panel, open_reader, load_test_set, size, stretch):
        super().__init__()
        self.program, self.panel = program, panel
        self.load_test_set = load_test_set
        self.reader = self.image_set = None
        self.images = self.targets = None  # the test set
        self.predictions = np.zeros(0, np.int64)  # for the test images, as far as read
        self.mistake_wanted = False
        self.canvas = Canvas()
        self.canvas.changed.connect(self.look)
        self.build(stretch)
        self.setWindowTitle(program)
        self.settings = QSettings("MNIST-TensorRT", program)
        self.resize(*size)
        self.restoreGeometry(self.settings.value("geometry", b""))
        self.width_slider.setValue(int(self.settings.value("pen_width", PEN_WIDTH)))
        self.worker = Worker(self)
        self.worker.start()
        self.worker.submit("network", open_reader, self.take_reader, self.failed.emit)
        self.report("Loading the network …")

    # How it is put together

    def build(self, stretch):
        body = QWidget()
        columns = QHBoxLayout(body)
        columns.setContentsMargins(16, 0, 16, 0)
        columns.setSpacing(20)
        left = QVBoxLayout()
        left.setSpacing(12)
        left.addWidget(self.canvas, 3)
        if self.panel.below is not None:
            left.addWidget(self.panel.below, 2)
        columns.addLayout(left, stretch[0])
        columns.addWidget(self.panel.beside, stretch[1])
        self.setCentralWidget(body)
        self.build_tools()
        self.build_test_set_tools()
        self.setMinimumWidth(max(bar.sizeHint().width() for bar in self.findChildren(QToolBar)))
        self.status = QLabel(objectName="status")
        self.status.setContentsMargins(14, 0, 14, 8)
        self.statusBar().addWidget(self.status, 1)
        self.statusBar().setSizeGripEnabled(False)
        self.canvas.setFocus()

    def build_tools(self):
        bar = self.tool_bar(Qt.TopToolBarArea)
        tools = QActionGroup(self)
        self.drawing_tools = [
            self.add_action(bar, "pen", "Pen", "P", "Draw", lambda: self.take_tool(False)),
            self.add_action(bar, "eraser", "Eraser", "E",
                            "Erase; so does the right mouse button, or the pen turned over",
                            lambda: self.take_tool(True))]
        for tool in self.drawing_tools:
            tool.setCheckable(True)
            tools.addAction(tool)
        self.drawing_tools[0].setChecked(True)
        self.width_slider = QSlider(Qt.Horizontal, objectName="pen_width")
        self.width_slider.setRange(*PEN_WIDTHS)
        self.width_slider.setFixedWidth(110)
        self.width_slider.setToolTip("Pen width ([ thinner, ] thicker)")
        self.width_slider.setFocusPolicy(Qt.NoFocus)
        self.width_slider.valueChanged.connect(self.set_pen_width)
        self.drawing_tools += [
            bar.addWidget(self.width_slider),
            self.add_action(None, "thinner", "Thinner", "[", "A thinner pen",
                            lambda: self.widen(-8)),
            self.add_action(None, "thicker", "Thicker", "]", "A thicker pen",
                            lambda: self.widen(8))]
        self.add_action(bar, "undo", "Undo", "Ctrl+Z", "Undo", self.canvas.undo)
        self.add_action(bar, "clear", "Clear", "Delete", "Clear the canvas", self.canvas.clear)
        spacer = QWidget()  # pushes what follows to the right
        spacer.setSizePolicy(QSizePolicy.Expanding, QSizePolicy.Preferred)
        bar.addWidget(spacer)
        self.add_action(bar, "open", "Open", "Ctrl+O", "Open a picture", self.open_picture)
        self.add_action(bar, "save", "Save", "Ctrl+S", "Save the canvas as PNG", self.save_picture)
        self.add_action(bar, "help", "Help", "F1", "Show all keys", self.show_help)
        self.add_action(None, "quit", "Quit", "Ctrl+Q", "Close the window", self.close)

    def build_test_set_tools(self):
        bar = self.test_set_bar = self.tool_bar(Qt.BottomToolBarArea)
        bar.setEnabled(False)
        bar.addWidget(QLabel("Test image"))
        self.add_action(bar, "previous_sample", "Previous", "Left", "The test image before",
                        lambda: self.step(-1))
        self.go_to = QSpinBox(objectName="go_to")
        self.go_to.setRange(-1, -1)  # -1: none of them
        self.go_to.setSpecialValueText("–")
        self.go_to.setKeyboardTracking(False)
        self.go_to.setFocusPolicy(Qt.ClickFocus)
        self.go_to.setToolTip("The test image shown; type another number (G)")
        self.go_to.valueChanged.connect(self.show_sample)
        self.go_to.editingFinished.connect(self.canvas.setFocus)
        bar.addWidget(self.go_to)
        self.add_action(bar, "next_sample", "Next", "Right", "The next test image",
                        lambda: self.step(1))
        self.add_action(None, "go", "Go to", "G", "Type the number of a test image",
                        self.type_number)
        self.add_action(bar, "random_sample", "Random", "R", "Any test image",
                        lambda: self.go_to.setValue(random.randrange(self.count())))
        self.next_mistake_action = self.add_action(
            bar, "next_mistake", "Next mistake", "M",
            "The next test image that this network gets wrong", self.next_mistake)

    def tool_bar(self, area):
        bar = QToolBar()
        bar.setMovable(False)
        bar.setContextMenuPolicy(Qt.PreventContextMenu)
        self.addToolBar(area, bar)
        return bar

    def add_action(self, bar, name, text, key, tip, slot):
        """An action with a key, and a button `name` for it in `bar` where that isn't None."""
        action = QAction(text, self)
        action.setShortcut(QKeySequence(key))
        action.setToolTip(f"{tip} ({action.shortcut().toString(QKeySequence.NativeText)})")
        action.triggered.connect(lambda checked: slot())
        self.addAction(action)
        if bar is not None:
            bar.addAction(action)
            bar.widgetForAction(action).setObjectName(name)
        return action

    # Drawing

    def take_tool(self, erasing):
        self.canvas.erasing = erasing

    def set_pen_width(self, width):
        self.canvas.pen_width = width

    def widen(self, step):
        self.width_slider.setValue(self.width_slider.value() + step)

    def open_picture(self):
        path, _ = QFileDialog.getOpenFileName(
            self, "Open a picture", "", "Pictures (*.png *.jpg *.jpeg *.bmp *.gif *.ppm *.webp)")
        if path:
            self.worker.submit("open", functools.partial(self.prepare, path), self.take_picture,
                               self.report)

    def prepare(self, path):
        """In the worker: (what the canvas shows, what the network gets, what there is to say)."""
        picture = drawing.read_picture(path)
        if self.canvas.drawable:
            digit = drawing.digit_from_picture(picture)
            return digit.ink, digit.image, digit.note
        shape = (3,) + picture.shape[:2]
        return (to_shape(picture, shape).transpose(1, 2, 0),
                to_shape(picture, self.image_set.shape), "")

    def take_picture(self, prepared):
        array, image, note = prepared
        self.canvas.show_array(array, image)
        self.report(note)

    def save_picture(self):
        path, _ = QFileDialog.getSaveFileName(self, "Save the canvas", "digit.png", "PNG (*.png)")
        if path:
            if not os.path.splitext(path)[1]:
                path += ".png"
            job = functools.partial(write_picture, QImage(self.canvas.picture), path)
            self.worker.submit("save", job, lambda _: self.report(f"Saved {path}"), self.report)

    def show_help(self):
        QMessageBox.about(self, "Keys", self.help_text())

    def help_text(self):
        rows = "".join(
            f"<tr><td><b>{action.shortcut().toString(QKeySequence.NativeText)}</b>&nbsp;&nbsp;</td>"
            f"<td>{action.toolTip().rpartition(' (')[0]}</td></tr>" for action in self.actions()
            if action.isVisible())
        return f"<h3>{self.program}</h3><table cellpadding=2>{rows}</table>"

    def report(self, text):
        """Show a line, or an error's, in the status bar."""
        self.status.setText(" ".join(str(text).split()))

    # Reading

    def take_reader(self, reader):
        self.reader, self.image_set = reader, reader.network.image_set
        self.setWindowTitle(f"{self.program} – {reader.network.name}, {reader.network.origin}")
        if not drawing.is_drawable(self.image_set):
            self.canvas.allow_drawing(False)
            for tool in self.drawing_tools:
                tool.setVisible(False)
        self.next_mistake_action.setVisible(self.image_set.task == "classification")
        self.panel.opened(reader)
        self.report("")
        self.look()
        self.worker.submit("data", functools.partial(self.load_test_set, self.image_set),
                           self.take_test_set, self.do_without_test_set)

    def look(self):
        """Have what the canvas shows looked at."""
        if self.canvas.sample is not None:  # undo may have brought back another one
            self.go_to.setValue(self.canvas.sample)
        job = functools.partial(self.look_at, QImage(self.canvas.picture), self.canvas.image,
                                self.target())
        self.worker.submit("look", job, self.show_seen, self.failed.emit)

    def look_at(self, picture, image, target):
        """In the worker: (image, target, what the network says, what there is to say of a drawing).
        """
        note = None
        if image is None and self.canvas.drawable:
            found = drawing.digit_from_picture(to_array(picture))
            image = found.image
            note = found.note if image is not None else ""
        result = None if image is None or self.reader is None else self.reader.look(image)
        return image, target, result, note

    def show_seen(self, seen):
        image, target, result, note = seen
        self.panel.show(image, target, result)
        if note is not None and self.reader is not None:
            self.report(note)

    # The test set

    def take_test_set(self, test_set):
        self.images, self.targets = test_set.images, test_set.targets
        self.go_to.setMaximum(self.count() - 1)
        self.test_set_bar.setEnabled(True)
        if not self.canvas.drawable and self.canvas.image is None:
            self.go_to.setValue(0)
        if self.image_set.task == "classification":
            self.read_test_set()

    def do_without_test_set(self, error):
        absent = isinstance(error, DataError)
        notice = QLabel(f"No test images of {self.image_set.name} here" if absent else str(error))
        notice.setToolTip(str(error))
        notice.setContentsMargins(0, 0, 14, 8)
        self.statusBar().addPermanentWidget(notice)

    def count(self):
        return len(self.images)

    def target(self):
        """The target of the test image that the canvas shows, or None."""
        return None if self.canvas.sample is None else self.targets[self.canvas.sample]

    def show_sample(self, index):
        if index not in (-1, self.canvas.sample):
            image = self.images[index]
            self.canvas.show_array(as_picture(image), image, index)

    def step(self, by):
        """Go one test image on or back; from none to the first or the last."""
        start = self.go_to.value()
        if start < 0 and by < 0:
            start = 0
        self.go_to.setValue((start + by) % self.count())

    def type_number(self):
        self.go_to.setFocus()
        self.go_to.selectAll()

    def read_test_set(self):
        """Have the next batch of test images read, so that the mistakes become known."""
        start = len(self.predictions)
        if start < self.count():
            job = functools.partial(self.reader.read,
                                    self.images[start:start + self.reader.batch_size])
            self.worker.submit("test set", job, self.take_outputs, self.failed.emit)
        else:
            wrong = len(self.mistakes())
            self.report(f"Of the {start:,} test images, {wrong:,} are misread")
        if self.mistake_wanted:
            self.next_mistake()

    def take_outputs(self, outputs):
        self.predictions = np.concatenate([self.predictions, outputs.argmax(1)])
        self.read_test_set()

    def mistakes(self):
        """The indices of the test images known to be misread."""
        return np.flatnonzero(self.predictions != self.targets[:len(self.predictions)])

    def next_mistake(self):
        """Go to the next misread image, after the last to the first, as soon as it is known."""
        mistakes = self.mistakes()
        later = mistakes[mistakes > self.go_to.value()]
        all_read = len(self.predictions) == self.count()
        self.mistake_wanted = not len(later) and not all_read
        if len(later):
            self.go_to.setValue(int(later[0]))
        elif len(mistakes) and all_read:
            self.go_to.setValue(int(mistakes[0]))

    def closeEvent(self, event):
        self.settings.setValue("geometry", self.saveGeometry())
        self.settings.setValue("pen_width", self.width_slider.value())
        self.hide()
        self.worker.stop()
        super().closeEvent(event)
