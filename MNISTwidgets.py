"""The Qt pieces of the windows: canvas, digit view, probability bars, and the window around them.

Knows PyQt5 and numpy; whoever imports it where PyQt5 is missing gets an UnavailableError. Runs with
PyQt5 5.10 (Jetson Nano) to the newest.
"""

import collections
import functools
import os
import random
import signal
import subprocess
import sys
import threading

import numpy as np

from MNISTdsource import DataError, digit_from_drawing, load_split
from MNISTscript import MNISTError, UnavailableError, write_atomically

try:
    from PyQt5.QtCore import (
        QBuffer,
        QEvent,
        QPointF,
        QRect,
        QRectF,
        QSettings,
        QSize,
        Qt,
        QThread,
        QTimer,
        pyqtSignal,
    )
    from PyQt5.QtGui import (
        QColor,
        QImage,
        QImageReader,
        QKeySequence,
        QPainter,
        QPainterPath,
        QPalette,
        QPen,
        QTabletEvent,
    )
    from PyQt5.QtWidgets import (
        QAction,
        QActionGroup,
        QApplication,
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
except ImportError as error:
    raise UnavailableError(f"the window needs PyQt5 ({error}): pip install PyQt5\n"
                           "(on a Jetson: sudo apt install python3-pyqt5)") from error

CANVAS_SIDE = 840  # pixels of the picture behind the canvas, whatever size it is shown at
PEN_WIDTH = 56  # of those pixels; a digit of two thirds of the canvas gets MNIST's stroke width
PEN_WIDTHS = 16, 140
UNDO_STEPS = 40
LARGEST_PICTURE = 6000 * 6000  # pixels of a file that Open accepts

BEGINS, GOES_ON, ENDS = range(3)  # the phases of a stroke
TABLET_PHASES = {QEvent.TabletPress: BEGINS, QEvent.TabletMove: GOES_ON, QEvent.TabletRelease: ENDS}

ACCENT = QColor("#2f6fdb")
RIGHT, WRONG, MARK = QColor("#1a7f4b"), QColor("#c62f3b"), QColor("#ff9d00")
CENTRED = int(Qt.AlignCenter)
PALETTE = {
    QPalette.Window: "#f4f5f7", QPalette.WindowText: "#1d2530", QPalette.Base: "#ffffff",
    QPalette.AlternateBase: "#e9ecf0", QPalette.Text: "#1d2530", QPalette.Button: "#f4f5f7",
    QPalette.ButtonText: "#1d2530", QPalette.Mid: "#c3c9d2", QPalette.Highlight: "#2f6fdb",
    QPalette.HighlightedText: "#ffffff", QPalette.ToolTipBase: "#ffffff",
    QPalette.ToolTipText: "#1d2530",
}
STYLE = """
QToolBar { border: none; spacing: 6px; padding: 10px 16px; }
QToolBar QToolButton { border: 1px solid palette(mid); border-radius: 5px; padding: 5px 10px;
                       background: palette(base); }
QToolBar QToolButton:hover { border-color: palette(highlight); }
QToolBar QToolButton:pressed, QToolBar QToolButton:checked {
    background: palette(highlight); border-color: palette(highlight);
    color: palette(highlighted-text); }
QToolBar QToolButton:disabled { color: palette(mid); background: transparent; }
QStatusBar::item { border: none; }
"""


def start_application(name):
    """The QApplication of a program called `name`; UnavailableError where no window can open."""
    sys.setswitchinterval(0.0005)  # the worker thread soon lets the window's have its turn
    application = QApplication.instance()
    if application is None:
        check_display()
        QApplication.setAttribute(Qt.AA_EnableHighDpiScaling)
        QApplication.setAttribute(Qt.AA_UseHighDpiPixmaps)
        if hasattr(QApplication, "setHighDpiScaleFactorRoundingPolicy"):  # 5.14: sharp at 150 %
            QApplication.setHighDpiScaleFactorRoundingPolicy(
                Qt.HighDpiScaleFactorRoundingPolicy.PassThrough)
        application = QApplication([name])
    application.setStyle("Fusion")
    palette = application.palette()
    for role, colour in PALETTE.items():
        palette.setColor(role, QColor(colour))
    for role in (QPalette.Text, QPalette.WindowText, QPalette.ButtonText):
        palette.setColor(QPalette.Disabled, role, QColor("#9aa3af"))
    application.setPalette(palette)
    application.setStyleSheet(STYLE)
    return application


def check_display():
    """Raise UnavailableError where Qt can't open windows.

    Qt doesn't say so, it aborts the process; so a child process tries it first.
    """
    if not sys.platform.startswith("linux"):
        return
    trial = "from PyQt5.QtWidgets import QApplication; QApplication([])"
    try:
        child = subprocess.run([sys.executable, "-c", trial], timeout=20, stdout=subprocess.DEVNULL,
                               stderr=subprocess.PIPE)
    except subprocess.TimeoutExpired as error:
        raise UnavailableError("no window can be opened: the display doesn't answer") from error
    if child.returncode:
        lines = [line for line in child.stderr.decode(errors="replace").splitlines()
                 if line.startswith("qt.qpa")] or [f"Qt failed with status {child.returncode}"]
        displays = [f"{name}={os.environ[name]}" for name in
                    ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM") if os.environ.get(name)]
        raise UnavailableError(
            f"no window can be opened here ({', '.join(displays) or 'DISPLAY is not set'}); "
            f"start it on the machine's desktop, or through ssh -X\n({lines[0]})")


def run_window(program, make_window):
    """Show the window that `make_window()` gives until it is closed.

    Raises what made it fail, KeyboardInterrupt on Ctrl-C.
    """
    application = start_application(program)
    window = make_window()
    failures = []

    def fail(error):
        failures.append(error)
        application.quit()

    excepthook, sys.excepthook = sys.excepthook, lambda kind, error, trace: fail(error)
    signal.signal(signal.SIGINT, lambda *_: fail(KeyboardInterrupt()))
    heartbeat = QTimer()  # lets Python run now and then, so that it sees Ctrl-C
    heartbeat.timeout.connect(lambda: None)
    heartbeat.start(200)
    window.failed.connect(fail)
    window.show()
    application.exec_()
    if not any(isinstance(failure, KeyboardInterrupt) for failure in failures):
        window.close()  # waits for its worker, which Ctrl-C doesn't
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.excepthook = excepthook
    if failures:
        raise failures[0]


def to_image(array):
    """uint8 (H, W) grey levels, or (H, W, 3) red-green-blue → QImage with memory of its own."""
    array = np.ascontiguousarray(array)
    height, width = array.shape[:2]
    kind = QImage.Format_Grayscale8 if array.ndim == 2 else QImage.Format_RGB888
    return QImage(array.tobytes(), width, height, array.strides[0], kind).copy()


def to_array(image):
    """QImage → uint8 (H, W) grey levels, a copy."""
    image = image.convertToFormat(QImage.Format_Grayscale8)
    stride, height = image.bytesPerLine(), image.height()
    data = np.frombuffer(image.constBits().asstring(stride * height), np.uint8)
    return data.reshape(height, stride)[:, :image.width()]


def largest_square(rect):
    """The largest square QRect in the top left of `rect`."""
    side = min(rect.width(), rect.height())
    return QRect(rect.x(), rect.y(), side, side)


def signed(value):
    """A number with two decimals and its sign, a real minus for negative ones."""
    return f"{value:+.2f}".replace("-", "−")


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


class Canvas(QWidget):
    """A black square to draw on in white, with mouse, pen or touch.

    The drawing is `picture`, a grey QImage of CANVAS_SIDE × CANVAS_SIDE pixels whatever the size of
    the widget. Where it is a test digit, `sample` is its index, and `digit` its own 28×28 pixels
    as long as nobody has altered it.
    """

    changed = pyqtSignal()

    def __init__(self):
        super().__init__(objectName="canvas")
        self.setCursor(Qt.CrossCursor)
        self.setFocusPolicy(Qt.ClickFocus)
        self.setSizePolicy(QSizePolicy.Expanding, QSizePolicy.Expanding)
        self.setMinimumSize(200, 200)
        self.pen_width = PEN_WIDTH
        self.erasing = False  # the tool chosen
        self.stroke = None  # while drawing: (middle of the last two points, last point, erases?)
        self.history = []
        self.picture, self.digit, self.sample = blank_picture(), None, None

    def sizeHint(self):
        return QSize(520, 520)

    def resizeEvent(self, event):
        self.setMaximumWidth(max(self.minimumWidth(), self.height()))  # room that's left goes right

    # What the window does

    def clear(self):
        self.replace(blank_picture())

    def show_digit(self, digit, sample):
        """Put a test digit, uint8 (28, 28), on the canvas."""
        picture = to_image(digit).scaled(CANVAS_SIDE, CANVAS_SIDE, Qt.IgnoreAspectRatio,
                                         Qt.SmoothTransformation)
        self.replace(picture.convertToFormat(QImage.Format_Grayscale8), digit, sample)

    def replace(self, picture, digit=None, sample=None):
        self.stroke = None
        self.remember()
        self.picture, self.digit, self.sample = picture, digit, sample
        self.update()
        self.changed.emit()

    def undo(self):
        if self.history:
            self.stroke = None
            self.picture, self.digit, self.sample = self.history.pop()
            self.update()
            self.changed.emit()

    def remember(self):
        # Qt shares the pixels of a copied QImage until one of the two is drawn on.
        self.history.append((QImage(self.picture), self.digit, self.sample))
        del self.history[:-UNDO_STEPS]

    # Strokes, in pixels of the picture: quadratic curves from middle to middle of the points, so
    # that a fast hand leaves neither gaps nor corners.

    def begin_stroke(self, point, erases):
        self.remember()
        self.digit = None
        self.stroke = point, point, erases
        self.draw_curve(point, point, point)

    def continue_stroke(self, point):
        middle, last, erases = self.stroke
        next_middle = (last + point) / 2
        self.draw_curve(middle, last, next_middle)
        self.stroke = next_middle, point, erases

    def end_stroke(self, point):
        middle, last, _ = self.stroke
        self.draw_curve(middle, last, point)
        self.stroke = None

    def draw_curve(self, start, control, end):
        erases = self.stroke[2]
        path = QPainterPath(start)
        path.quadTo(control, end)
        path.lineTo(end + QPointF(0.01, 0))  # a path of no length would leave no dot
        margin = self.pen_width
        touched = path.boundingRect().adjusted(-margin, -margin, margin, margin).toAlignedRect()
        box = touched & self.picture.rect()
        if not box.isEmpty():
            self.blend(box, path, erases)
        self.update(self.to_widget(touched))
        self.changed.emit()

    def blend(self, box, path, erases):
        """Draw `path` onto the `box` of the picture.

        The lighter of old and new wins (the darker where it erases), so that the soft edges of
        overlapping pieces don't add up to jagged ones.
        """
        ink, paper = (Qt.black, Qt.white) if erases else (Qt.white, Qt.black)
        piece = QImage(box.size(), QImage.Format_RGB32)
        piece.fill(paper)
        painter = QPainter(piece)
        painter.setRenderHint(QPainter.Antialiasing)
        painter.translate(-box.topLeft())
        painter.strokePath(path, round_pen(ink, self.pen_width))
        painter.end()
        painter = QPainter(self.picture)
        painter.setCompositionMode(QPainter.CompositionMode_Darken if erases
                                   else QPainter.CompositionMode_Lighten)
        painter.drawImage(box.topLeft(), piece)
        painter.end()

    # Events. A finger's need no code: Qt makes mouse events of them.

    def mousePressEvent(self, event):
        if event.button() in (Qt.LeftButton, Qt.RightButton):
            self.draw(BEGINS, event.localPos(), erases=event.button() == Qt.RightButton)

    def mouseMoveEvent(self, event):
        self.draw(GOES_ON, event.localPos())

    def mouseReleaseEvent(self, event):
        if not event.buttons():
            self.draw(ENDS, event.localPos())

    def tabletEvent(self, event):
        self.draw(TABLET_PHASES[event.type()], event.posF(),
                  erases=event.pointerType() == QTabletEvent.Eraser)
        event.accept()

    def draw(self, phase, position, erases=False):
        """One step of a stroke at a QPointF of the widget, whatever it is drawn with."""
        point = self.to_picture(position)
        if self.stroke is None:
            if phase == BEGINS:
                self.begin_stroke(point, self.erasing or erases)
        elif phase == GOES_ON:
            self.continue_stroke(point)
        elif phase == ENDS:
            self.end_stroke(point)

    def paintEvent(self, event):
        square = largest_square(self.rect())
        painter = QPainter(self)
        painter.setRenderHints(QPainter.Antialiasing | QPainter.SmoothPixmapTransform)
        painter.setClipRect(square)
        painter.drawImage(square, self.picture)
        if self.stroke is not None:  # the last bit, not yet part of a curve
            middle, last, erases = self.stroke
            scale = square.width() / CANVAS_SIDE
            painter.translate(square.topLeft())
            painter.scale(scale, scale)
            painter.setPen(round_pen(Qt.black if erases else Qt.white, self.pen_width))
            painter.drawLine(middle, last)

    def to_picture(self, position):
        """QPointF of the widget → QPointF of the picture."""
        square = largest_square(self.rect())
        return (position - QPointF(square.topLeft())) * (CANVAS_SIDE / square.width())

    def to_widget(self, box):
        """QRect of the picture → the QRect of the widget that shows it, generously."""
        square = largest_square(self.rect())
        scale = square.width() / CANVAS_SIDE
        shown = QRectF(box.x() * scale, box.y() * scale, box.width() * scale, box.height() * scale)
        return shown.toAlignedRect().translated(square.topLeft()).adjusted(-2, -2, 2, 2)


def blank_picture():
    """A black picture for the canvas."""
    picture = QImage(CANVAS_SIDE, CANVAS_SIDE, QImage.Format_Grayscale8)
    picture.fill(Qt.black)
    return picture


def round_pen(colour, width):
    """A pen with round ends and corners."""
    return QPen(QColor(colour), width, Qt.SolidLine, Qt.RoundCap, Qt.RoundJoin)


def read_picture(path):
    """A picture file, fitted into a picture for the canvas; dark on light is turned round."""
    reader = QImageReader(path)
    size = reader.size()
    if not reader.canRead():
        raise MNISTError(f"can't read {path}: {reader.errorString()}")
    if size.width() * size.height() > LARGEST_PICTURE:
        raise MNISTError(f"can't read {path}: {size.width()} x {size.height()} pixels are too many")
    image = reader.read()
    if image.isNull():
        raise MNISTError(f"can't read {path}: {reader.errorString()}")
    opaque = QImage(image.size(), QImage.Format_RGB32)
    opaque.fill(Qt.white)
    painter = QPainter(opaque)
    painter.drawImage(0, 0, image)
    painter.end()
    grey = to_array(opaque)
    edge = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    if edge.mean() > 127:
        opaque.invertPixels()
    fitted = opaque.scaled(CANVAS_SIDE, CANVAS_SIDE, Qt.KeepAspectRatio, Qt.SmoothTransformation)
    picture = blank_picture()
    box = fitted.rect()
    box.moveCenter(picture.rect().center())
    painter = QPainter(picture)
    painter.drawImage(box, fitted)
    painter.end()
    return picture


def write_picture(picture, path):
    """Write a QImage as PNG, whole or not at all."""
    buffer = QBuffer()
    buffer.open(QBuffer.WriteOnly)
    picture.save(buffer, "PNG")
    with write_atomically(path) as file:
        file.write(bytes(buffer.data()))


class DigitView(QWidget):
    """The 28×28 pixels that the network receives, each pixel a square; a patch can be marked."""

    def __init__(self):
        super().__init__(objectName="network_input")
        self.setMinimumSize(112, 112)
        self.setSizePolicy(QSizePolicy.Expanding, QSizePolicy.Expanding)
        self.digit = None
        self.patch = None

    def sizeHint(self):
        return QSize(196, 196)

    def set_digit(self, digit):
        """Show uint8 (28, 28), or nothing for None."""
        self.digit = digit
        self.update()

    def set_patch(self, patch):
        """Mark the pixels (row, column, side), or none for None."""
        self.patch = patch
        self.update()

    def paintEvent(self, event):
        square = largest_square(self.rect())
        painter = QPainter(self)
        painter.fillRect(square, Qt.black)
        if self.digit is None:
            painter.setPen(QColor("#7d8795"))
            painter.drawText(square, CENTRED, "nothing drawn")
            return
        painter.drawImage(square, to_image(self.digit))
        if self.patch is not None:
            row, column, side = self.patch
            cell = square.width() / 28
            painter.setRenderHint(QPainter.Antialiasing)
            painter.setPen(QPen(MARK, 2.5))
            painter.drawRect(QRectF(square.x() + column * cell, square.y() + row * cell,
                                    side * cell, side * cell))


class AnswerView(QWidget):
    """The digit read, large, and under it the true label where there is one."""

    def __init__(self):
        super().__init__()
        self.answer = QLabel(objectName="answer")
        self.true_label = QLabel(objectName="true_label")
        self.answer.setFixedHeight(112)
        self.answer.setMinimumWidth(110)
        self.answer.setStyleSheet(f"font-size: 104px; font-weight: bold; color: {ACCENT.name()}")
        rows = QVBoxLayout(self)
        rows.setContentsMargins(0, 0, 0, 0)
        rows.setSpacing(2)
        rows.addWidget(self.answer)
        rows.addWidget(self.true_label)
        rows.addStretch()

    def set_answer(self, answer, label):
        """Show digits; None for what isn't known."""
        self.answer.setText("" if answer is None else str(answer))
        self.true_label.setText("" if label is None else f"true label {label}")
        colour = RIGHT if answer == label else WRONG
        self.true_label.setStyleSheet(f"font-weight: bold; color: {colour.name()}")


class ProbabilityBars(QWidget):
    """Ten bars, one for each digit; the likeliest stands out."""

    def __init__(self):
        super().__init__(objectName="probabilities")
        self.setMinimumSize(200, 180)
        self.setSizePolicy(QSizePolicy.Expanding, QSizePolicy.Expanding)
        self.values = None

    def sizeHint(self):
        return QSize(260, 260)

    def set_values(self, values):
        """Show ten probabilities, or empty bars for None."""
        self.values = values
        self.update()

    def paintEvent(self, event):
        painter = QPainter(self)
        painter.setRenderHint(QPainter.Antialiasing)
        row = self.height() / 10
        best = -1 if self.values is None else int(np.argmax(self.values))
        for digit in range(10):
            self.paint_bar(painter, digit, QRectF(0, digit * row, self.width(), row), digit == best)

    def paint_bar(self, painter, digit, rect, best):
        font = self.font()
        font.setBold(best)
        painter.setFont(font)
        painter.setPen(self.palette().windowText().color())
        painter.drawText(QRectF(rect.x(), rect.y(), 20, rect.height()), CENTRED, str(digit))
        bar = QRectF(rect.x() + 28, rect.y() + 0.18 * rect.height(),
                     rect.width() - 28 - 76, 0.64 * rect.height())
        radius = min(4, bar.height() / 2)
        painter.setPen(Qt.NoPen)
        painter.setBrush(self.palette().alternateBase())
        painter.drawRoundedRect(bar, radius, radius)
        if self.values is None:
            return
        value = float(self.values[digit])
        painter.setBrush(ACCENT if best else QColor("#9db7e4"))
        painter.setClipRect(QRectF(bar.x(), bar.y(), bar.width() * value, bar.height()))
        painter.drawRoundedRect(bar, radius, radius)
        painter.setClipping(False)
        painter.setPen(self.palette().windowText().color())
        painter.drawText(QRectF(bar.right(), rect.y(), 76, rect.height()),
                         int(Qt.AlignRight | Qt.AlignVCenter), f"{100 * value:.1f} %")


class MapGrid(QWidget):
    """Small maps side by side, all in one colour scale, which stands above them.

    `colours(values, scale)` turns float (..., H, W) into uint8 (..., H, W, 3). Hovering a map emits
    its index.
    """

    hovered = pyqtSignal(int)

    def __init__(self, title, columns, colours):
        super().__init__()
        self.setMouseTracking(True)
        self.setMinimumSize(self.fontMetrics().boundingRect(title).width() + 210, 150)
        self.setSizePolicy(QSizePolicy.Expanding, QSizePolicy.Expanding)
        self.title, self.columns, self.colours = title, columns, colours
        self.maps, self.scale, self.chosen = None, 0.0, None
        self.images = []

    def set_maps(self, maps, scale):
        """Show float (N, H, W), coloured from -scale to scale, or nothing for None."""
        self.maps, self.scale = maps, scale
        self.images = [] if maps is None else [to_image(picture)
                                               for picture in self.colours(maps, scale)]
        self.update()

    def choose(self, index):
        """Frame the map `index`."""
        self.chosen = index
        self.update()

    def header_height(self):
        return self.fontMetrics().height() + 10

    def cell(self, index):
        """The QRect of the map `index`."""
        rows = -(-len(self.images) // self.columns)
        room = self.rect().adjusted(0, self.header_height(), 0, 0)
        side = max(1, min(room.width() // self.columns, room.height() // rows))
        row, column = divmod(index, self.columns)
        return QRect(column * side, room.y() + row * side, side, side).adjusted(2, 2, -2, -2)

    def mouseMoveEvent(self, event):
        for index in range(len(self.images)):
            if self.cell(index).contains(event.pos()) and index != self.chosen:
                self.hovered.emit(index)

    def paintEvent(self, event):
        painter = QPainter(self)
        self.paint_header(painter)
        for index, image in enumerate(self.images):
            cell = self.cell(index)
            painter.drawImage(cell, image)
            painter.setPen(QPen(MARK, 3) if index == self.chosen else QPen(QColor("#d3d8df"), 1))
            painter.drawRect(cell.adjusted(-1, -1, 0, 0))

    def paint_header(self, painter):
        """The title, and the colour bar with the numbers at its ends."""
        line = QRect(0, 0, self.width(), self.header_height() - 6)
        painter.setPen(self.palette().windowText().color())
        painter.drawText(line, int(Qt.AlignLeft | Qt.AlignVCenter), self.title)
        if not self.images:
            return
        number = f"{self.scale:.3g}"
        width = 64
        right = QRect(line.right() - width, 0, width, line.height())
        bar = QRect(right.left() - 64, 4, 60, line.height() - 8)
        left = QRect(bar.left() - width - 4, 0, width, line.height())
        painter.drawText(left, int(Qt.AlignRight | Qt.AlignVCenter), "−" + number)
        painter.drawText(right, int(Qt.AlignLeft | Qt.AlignVCenter), "+" + number)
        ramp = np.linspace(-1, 1, 61)[None, :]
        painter.drawImage(bar, to_image(self.colours(ramp, 1.0)))


class NumberGrid(QWidget):
    """One map with its numbers written into it."""

    def __init__(self, colours):
        super().__init__()
        self.setMinimumSize(190, 150)
        self.setSizePolicy(QSizePolicy.Expanding, QSizePolicy.Expanding)
        self.colours = colours
        self.values = self.fills = None

    def set_values(self, values, scale):
        """Show float (H, W), coloured from -scale to scale, or nothing for None."""
        self.values = values
        self.fills = None if values is None else self.colours(values, scale)
        self.update()

    def paintEvent(self, event):
        if self.values is None:
            return
        painter = QPainter(self)
        square = largest_square(self.rect())
        height, width = self.values.shape
        font = self.font()
        font.setPixelSize(max(8, min(15, int(0.26 * square.width() / width))))
        painter.setFont(font)
        for row in range(height):
            for column in range(width):
                fill = QColor(*(int(level) for level in self.fills[row, column]))
                cell = QRectF(square.x() + column * square.width() / width,
                              square.y() + row * square.height() / height,
                              square.width() / width - 1, square.height() / height - 1)
                painter.fillRect(cell, fill)
                painter.setPen(Qt.black if fill.lightness() > 120 else Qt.white)
                painter.drawText(cell, CENTRED, signed(self.values[row, column]))


class DigitWindow(QMainWindow):
    """A canvas with its tools and the test set, and what a program adds: its panel.

    `panel.beside` and `panel.below` are the widgets right of and below the canvas; None for none.

    `open_network()` is called once in the worker thread. It returns an object with two methods,
    called there too: `look(digit)`, for uint8 (28, 28), whose result goes to the panel, and
    `read(images)`, for uint8 (B, 28, 28), B <= its `batch_size`, which returns the digits read.

    `panel.opened(network)` is called when that has returned, and `panel.show(digit, label, result)`
    whenever the drawing has changed: the uint8 (28, 28) that the network received or None, the true
    label or None, and what `look` returned, None where there is no digit or no network yet.
    """

    failed = pyqtSignal(object)

    def __init__(self, program, panel, open_network, data_dir, size, stretch):
        super().__init__()
        self.program, self.panel = program, panel
        self.network = None
        self.images = self.labels = None  # the test set
        self.answers = np.zeros(0, np.int64)  # of the network for the test set, as far as read
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
        self.worker.submit("data", lambda: load_split("test", data_dir, download=False),
                           self.take_test_set, self.do_without_test_set)
        self.worker.submit("network", open_network, self.take_network, self.failed.emit)
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
        pen = self.add_action(bar, "pen", "Pen", "P", "Draw", lambda: self.take_tool(False))
        eraser = self.add_action(bar, "eraser", "Eraser", "E",
                                 "Erase; so does the right mouse button, or the pen turned over",
                                 lambda: self.take_tool(True))
        for tool in (pen, eraser):
            tool.setCheckable(True)
            tools.addAction(tool)
        pen.setChecked(True)
        self.width_slider = QSlider(Qt.Horizontal, objectName="pen_width")
        self.width_slider.setRange(*PEN_WIDTHS)
        self.width_slider.setFixedWidth(110)
        self.width_slider.setToolTip("Pen width ([ thinner, ] thicker)")
        self.width_slider.setFocusPolicy(Qt.NoFocus)
        self.width_slider.valueChanged.connect(self.set_pen_width)
        bar.addWidget(self.width_slider)
        self.add_action(None, "thinner", "Thinner", "[", "A thinner pen", lambda: self.widen(-8))
        self.add_action(None, "thicker", "Thicker", "]", "A thicker pen", lambda: self.widen(8))
        self.add_action(bar, "undo", "Undo", "Ctrl+Z", "Undo", self.canvas.undo)
        self.add_action(bar, "clear", "Clear", "Delete", "Clear the canvas", self.canvas.clear)
        bar.addWidget(spacer())
        self.add_action(bar, "open", "Open", "Ctrl+O", "Open a drawing", self.open_drawing)
        self.add_action(bar, "save", "Save", "Ctrl+S", "Save the drawing as PNG", self.save_drawing)
        self.add_action(bar, "help", "Help", "F1", "Show all keys", self.show_help)
        self.add_action(None, "quit", "Quit", "Ctrl+Q", "Close the window", self.close)

    def build_test_set_tools(self):
        bar = self.test_set_bar = self.tool_bar(Qt.BottomToolBarArea)
        bar.setEnabled(False)
        bar.addWidget(QLabel("Test digit"))
        self.add_action(bar, "previous_sample", "Previous", "Left", "The test digit before",
                        lambda: self.step(-1))
        self.go_to = QSpinBox(objectName="go_to")
        self.go_to.setRange(-1, -1)  # -1: none of them
        self.go_to.setSpecialValueText("–")
        self.go_to.setKeyboardTracking(False)
        self.go_to.setFocusPolicy(Qt.ClickFocus)
        self.go_to.setToolTip("The test digit shown; type another number (G)")
        self.go_to.valueChanged.connect(self.show_sample)
        self.go_to.editingFinished.connect(self.canvas.setFocus)
        bar.addWidget(self.go_to)
        self.add_action(bar, "next_sample", "Next", "Right", "The next test digit",
                        lambda: self.step(1))
        self.add_action(None, "go", "Go to", "G", "Type the number of a test digit",
                        self.type_number)
        self.add_action(bar, "random_sample", "Random", "R", "Any test digit",
                        lambda: self.go_to.setValue(random.randrange(self.count())))
        self.add_action(bar, "next_mistake", "Next mistake", "M",
                        "The next test digit that this network gets wrong", self.next_mistake)

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

    def open_drawing(self):
        path, _ = QFileDialog.getOpenFileName(self, "Open a drawing", "",
                                              "Pictures (*.png *.jpg *.jpeg *.bmp)")
        if path:
            self.worker.submit("open", functools.partial(read_picture, path), self.canvas.replace,
                               self.report)

    def save_drawing(self):
        path, _ = QFileDialog.getSaveFileName(self, "Save the drawing", "digit.png", "PNG (*.png)")
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
            f"<td>{action.toolTip().rpartition(' (')[0]}</td></tr>" for action in self.actions())
        return f"<h3>{self.program}</h3><table cellpadding=2>{rows}</table>"

    def report(self, text):
        """Show a line, or an error's, in the status bar."""
        self.status.setText(" ".join(str(text).split()))

    # Reading

    def take_network(self, network):
        self.network = network
        self.panel.opened(network)
        self.report("")
        self.look()
        self.read_test_set()

    def look(self):
        """Have the newest drawing looked at."""
        self.sync_sample()
        job = functools.partial(self.look_at, QImage(self.canvas.picture), self.canvas.digit,
                                self.label())
        self.worker.submit("look", job, lambda seen: self.panel.show(*seen), self.failed.emit)

    def look_at(self, picture, digit, label):
        """In the worker: (digit, label, what the network says)."""
        if digit is None:
            digit = digit_from_drawing(to_array(picture))
        if digit is None or self.network is None:
            return digit, label, None
        return digit, label, self.network.look(digit)

    # The test set

    def take_test_set(self, test_set):
        self.images, self.labels = test_set
        self.go_to.setMaximum(self.count() - 1)
        self.test_set_bar.setEnabled(True)
        self.read_test_set()

    def do_without_test_set(self, error):
        absent = isinstance(error, DataError)
        notice = QLabel("No MNIST here: drawing only" if absent else f"Drawing only: {error}")
        notice.setToolTip(str(error))
        notice.setContentsMargins(0, 0, 14, 8)
        self.statusBar().addPermanentWidget(notice)

    def count(self):
        return len(self.images)

    def label(self):
        """The true label of what the canvas shows, or None."""
        return None if self.canvas.sample is None else int(self.labels[self.canvas.sample])

    def show_sample(self, index):
        if index >= 0:
            self.canvas.show_digit(self.images[index], index)

    def sync_sample(self):
        """Undo may have brought back another test digit."""
        if self.canvas.sample is not None:
            self.go_to.blockSignals(True)
            self.go_to.setValue(self.canvas.sample)
            self.go_to.blockSignals(False)

    def step(self, by):
        """Go one test digit on or back; from none to the first or the last."""
        start = self.go_to.value()
        if start < 0 and by < 0:
            start = 0
        self.go_to.setValue((start + by) % self.count())

    def type_number(self):
        self.go_to.setFocus()
        self.go_to.selectAll()

    def read_test_set(self):
        """Have the next batch of test digits read, so that the mistakes become known."""
        if self.network is None or self.images is None:
            return
        start = len(self.answers)
        if start < self.count():
            batch = self.images[start:start + self.network.batch_size]
            job = functools.partial(self.network.read, batch)
            self.worker.submit("test set", job, self.take_answers, self.failed.emit)
        else:
            wrong = len(self.mistakes())
            self.report(f"Of the {start:,} test digits, {wrong:,} are misread")
        if self.mistake_wanted:
            self.next_mistake()

    def take_answers(self, answers):
        self.answers = np.concatenate([self.answers, answers])
        self.read_test_set()

    def mistakes(self):
        """The indices of the test digits known to be misread."""
        return np.flatnonzero(self.answers != self.labels[:len(self.answers)])

    def next_mistake(self):
        """Go to the next misread digit, after the last to the first, as soon as it is known."""
        mistakes = self.mistakes()
        later = mistakes[mistakes > self.go_to.value()]
        all_read = len(self.answers) == self.count()
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


def captioned(text, widget):
    """`widget` with a line of text above it."""
    box = QWidget()
    rows = QVBoxLayout(box)
    rows.setContentsMargins(0, 0, 0, 0)
    rows.setSpacing(6)
    rows.addWidget(QLabel(text))
    rows.addWidget(widget, 1)
    return box


def spacer():
    """An empty widget that pushes what follows it in a tool bar to the right."""
    widget = QWidget()
    widget.setSizePolicy(QSizePolicy.Expanding, QSizePolicy.Preferred)
    return widget
