"""The views beside the canvas: the image the network sees, its answer, bars, maps and numbers."""

import numpy as np
from PyQt5.QtCore import QRect, QRectF, QSize, Qt, pyqtSignal
from PyQt5.QtGui import QColor, QPainter, QPen
from PyQt5.QtWidgets import QLabel, QSizePolicy, QVBoxLayout, QWidget

from mnist.datasets.drawing import is_doubtful
from mnist.datasets.image_set import as_picture
from mnist.gui.canvas import largest_square, to_image

ACCENT = QColor("#2f6fdb")
RIGHT, WRONG, MARK = QColor("#1a7f4b"), QColor("#c62f3b"), QColor("#ff9d00")
CENTRED = int(Qt.AlignCenter)
BARS = 10  # at most


def signed(value):
    """A number with two decimals and its sign, a real minus for negative ones."""
    return f"{value:+.2f}".replace("-", "−")


class InputView(QWidget):
    """The pixels that the network receives, each pixel a square; a patch can be marked."""

    def __init__(self):
        super().__init__(objectName="network_input")
        self.setMinimumSize(112, 112)
        self.setSizePolicy(QSizePolicy.Expanding, QSizePolicy.Expanding)
        self.image = None
        self.patch = None

    def sizeHint(self):
        return QSize(196, 196)

    def set_image(self, image):
        """Show uint8 (C, H, W), or nothing for None."""
        self.image = image
        self.update()

    def set_patch(self, patch):
        """Mark the pixels (row, column, height, width), or none for None."""
        self.patch = patch
        self.update()

    def paintEvent(self, event):
        square = largest_square(self.rect())
        painter = QPainter(self)
        painter.fillRect(square, Qt.black)
        if self.image is None:
            painter.setPen(QColor("#7d8795"))
            painter.drawText(square, CENTRED, "nothing yet")
            return
        cell = square.width() / max(self.image.shape[1:])
        shown = QRectF(square.x(), square.y(),
                       cell * self.image.shape[2], cell * self.image.shape[1])
        painter.drawImage(shown, to_image(as_picture(self.image)))
        if self.patch is not None:
            row, column, height, width = self.patch
            painter.setRenderHint(QPainter.Antialiasing)
            painter.setPen(QPen(MARK, 2.5))
            painter.drawRect(QRectF(square.x() + column * cell, square.y() + row * cell,
                                    width * cell, height * cell))


class AnswerView(QWidget):
    """What the network reads, large, and under it the target where it is known."""

    def __init__(self):
        super().__init__()
        self.answer = QLabel(objectName="answer", wordWrap=True)
        self.target = QLabel(objectName="target", wordWrap=True)
        self.answer.setFixedHeight(112)
        self.answer.setMinimumWidth(110)
        rows = QVBoxLayout(self)
        rows.setContentsMargins(0, 0, 0, 0)
        rows.setSpacing(2)
        rows.addWidget(self.answer)
        rows.addWidget(self.target)
        rows.addStretch()

    def show_outputs(self, image_set, outputs, target):
        """Show what a network's outputs, float32 (K,), mean, and the target where it is known;
        nothing for None."""
        self.answer.clear()
        self.target.clear()
        if outputs is None:
            return
        answer = image_set.describe(outputs)
        of_classes = image_set.task == "classification"
        self.answer.setText(answer)
        self.answer.setStyleSheet(f"font-size: {104 if len(answer) <= 2 else 26}px; "
                                  f"font-weight: bold; color: {ACCENT.name()}")
        truth = "" if target is None else image_set.describe(target)
        kind = "true class" if of_classes else "target"
        doubtful = of_classes and is_doubtful(outputs)
        self.target.setText(f"{kind} {truth}" if truth else "doubtful" if doubtful else "")
        colour = RIGHT if answer == truth or not of_classes else WRONG
        self.target.setStyleSheet(f"font-weight: bold; color: {colour.name()}")


class ProbabilityBars(QWidget):
    """A bar for each class, for the likeliest ones where there are many; the likeliest stands out.
    """

    def __init__(self):
        super().__init__(objectName="probabilities")
        self.setMinimumSize(200, 180)
        self.setSizePolicy(QSizePolicy.Expanding, QSizePolicy.Expanding)
        self.classes = ()
        self.values = None

    def sizeHint(self):
        return QSize(260, 260)

    def set_values(self, classes, values):
        """Show the probabilities of the classes, or empty bars for None."""
        self.classes, self.values = classes, values
        self.update()

    def paintEvent(self, event):
        painter = QPainter(self)
        painter.setRenderHint(QPainter.Antialiasing)
        shown = range(len(self.classes))
        if len(shown) > BARS:
            shown = shown[:BARS] if self.values is None else np.argsort(-self.values)[:BARS]
        height = self.height() / BARS
        for row, index in enumerate(shown):
            self.paint_bar(painter, index, QRectF(0, row * height, self.width(), height))

    def paint_bar(self, painter, index, rect):
        best = self.values is not None and index == int(np.argmax(self.values))
        font = self.font()
        font.setBold(best)
        painter.setFont(font)
        painter.setPen(self.palette().windowText().color())
        metrics = self.fontMetrics()
        widest = max(metrics.boundingRect(text).width() for text in self.classes)
        name = min(0.4 * rect.width(), 8 + widest)
        painter.drawText(QRectF(rect.x(), rect.y(), name, rect.height()),
                         int(Qt.AlignLeft | Qt.AlignVCenter),
                         metrics.elidedText(self.classes[index], Qt.ElideRight, int(name) - 8))
        bar = QRectF(rect.x() + name, rect.y() + 0.18 * rect.height(),
                     rect.width() - name - 76, 0.64 * rect.height())
        radius = min(4, bar.height() / 2)
        painter.setPen(Qt.NoPen)
        painter.setBrush(self.palette().alternateBase())
        painter.drawRoundedRect(bar, radius, radius)
        if self.values is None:
            return
        value = float(self.values[index])
        painter.setBrush(ACCENT if best else QColor("#9db7e4"))
        painter.setClipRect(QRectF(bar.x(), bar.y(), bar.width() * value, bar.height()))
        painter.drawRoundedRect(bar, radius, radius)
        painter.setClipping(False)
        painter.setPen(self.palette().windowText().color())
        painter.drawText(QRectF(bar.right(), rect.y(), 76, rect.height()),
                         int(Qt.AlignRight | Qt.AlignVCenter), f"{100 * value:.1f} %")


class MapGrid(QWidget):
    """Small maps side by side, all in one colour scale, which stands above them.

    `colours(maps, scale)` turns maps into uint8 (N, H, W, 3), see `mnist.gui.maps`. Hovering a map
    emits its index.
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
        """Show float (N, H, W), or (N, 3, H, W) for filters that read colours, coloured from -scale
        to scale; nothing for None."""
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
        ramp = np.linspace(-1, 1, 61)[np.newaxis]
        if self.maps.ndim == 4:  # filters that read colours
            ramp = np.stack([ramp] * self.maps.shape[1])
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


def arranged(layout, spacing, *parts):
    """A widget with some others in a new `layout` (QHBoxLayout, QVBoxLayout), each given with its
    stretch."""
    box = QWidget()
    row = layout(box)
    row.setContentsMargins(0, 0, 0, 0)
    row.setSpacing(spacing)
    for widget, stretch in parts:
        row.addWidget(widget, stretch)
    return box


def captioned(text, widget):
    """`widget` with a line of text above it."""
    return arranged(QVBoxLayout, 6, (QLabel(text), 0), (widget, 1))
