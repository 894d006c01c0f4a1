"""The canvas that one draws on, and pictures between Qt, numpy and files.

Runs with PyQt5 5.10 (Jetson Nano) to the newest.
"""

import numpy as np
from PyQt5.QtCore import QBuffer, QEvent, QPointF, QRect, QRectF, QSize, Qt, pyqtSignal
from PyQt5.QtGui import QColor, QImage, QPainter, QPainterPath, QPen, QTabletEvent
from PyQt5.QtWidgets import QSizePolicy, QWidget

from mnist.files import write_atomically

CANVAS_SIDE = 840  # pixels of the picture behind the canvas, whatever size it is shown at
PEN_WIDTH = 56  # of those pixels; a digit of two thirds of the canvas gets MNIST's stroke width
PEN_WIDTHS = 16, 140
UNDO_STEPS = 40
BEGINS, GOES_ON, ENDS = range(3)  # the phases of a stroke
TABLET_PHASES = {QEvent.TabletPress: BEGINS, QEvent.TabletMove: GOES_ON, QEvent.TabletRelease: ENDS}


class Canvas(QWidget):
    """A black square to draw on in white, with mouse, pen or touch, and that shows pictures.

    The drawing is `picture`, a QImage of CANVAS_SIDE × CANVAS_SIDE pixels, grey where one may draw,
    whatever the size of the widget. As long as nobody has drawn on it, `image` is what the network
    gets, uint8 (C, H, W), of a test image or a picture that was opened; then `sample` is the index
    of the test image, else None.
    """

    changed = pyqtSignal()

    def __init__(self):
        super().__init__(objectName="canvas")
        self.setFocusPolicy(Qt.ClickFocus)
        self.setSizePolicy(QSizePolicy.Expanding, QSizePolicy.Expanding)
        self.setMinimumSize(200, 200)
        self.allow_drawing(True)
        self.pen_width = PEN_WIDTH
        self.erasing = False  # the tool chosen
        self.stroke = None  # while drawing: (middle of the last two points, last point, erases?)
        self.history = []
        self.picture, self.image, self.sample = blank_picture(), None, None

    def sizeHint(self):
        return QSize(520, 520)

    def resizeEvent(self, event):
        self.setMaximumWidth(max(self.minimumWidth(), self.height()))  # room that's left goes right

    # What the window does

    def allow_drawing(self, allowed):
        """Whether one may draw, or only look."""
        self.drawable = allowed
        self.setCursor(Qt.CrossCursor if allowed else Qt.ArrowCursor)

    def clear(self):
        self.replace(blank_picture())

    def show_array(self, array, image=None, sample=None):
        """Put a picture, uint8 (H, W) or (H, W, 3), on the canvas, as large as it fits."""
        fitted = to_image(array).scaled(CANVAS_SIDE, CANVAS_SIDE, Qt.KeepAspectRatio,
                                        Qt.SmoothTransformation)
        picture = blank_picture()
        if not self.drawable:
            picture = picture.convertToFormat(QImage.Format_RGB32)
        box = fitted.rect()
        box.moveCenter(picture.rect().center())
        painter = QPainter(picture)
        painter.drawImage(box, fitted)
        painter.end()
        self.replace(picture, image, sample)

    def replace(self, picture, image=None, sample=None):
        self.stroke = None
        self.remember()
        self.picture, self.image, self.sample = picture, image, sample
        self.update()
        self.changed.emit()

    def undo(self):
        if self.history:
            self.stroke = None
            self.picture, self.image, self.sample = self.history.pop()
            self.update()
            self.changed.emit()

    def remember(self):
        # Qt shares the pixels of a copied QImage until one of the two is drawn on.
        self.history.append((QImage(self.picture), self.image, self.sample))
        del self.history[:-UNDO_STEPS]

    # Strokes, in pixels of the picture: quadratic curves from middle to middle of the points, so
    # that a fast hand leaves neither gaps nor corners.

    def draw(self, phase, position, erases=False):
        """One step of a stroke at a QPointF of the widget, whatever it is drawn with."""
        point = self.to_picture(position)
        if (phase == BEGINS) != (self.stroke is None) or not self.drawable:
            return  # hovering, or another button beside the one that draws
        if phase == BEGINS:
            self.remember()
            self.image = None
            self.stroke = point, point, self.erasing or erases
        middle, last, erases = self.stroke
        end = (last + point) / 2 if phase == GOES_ON else point
        self.draw_curve(middle, last, end)
        self.stroke = None if phase == ENDS else (end, point, erases)

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


def write_picture(picture, path):
    """Write a QImage as PNG, whole or not at all."""
    buffer = QBuffer()
    buffer.open(QBuffer.WriteOnly)
    picture.save(buffer, "PNG")
    with write_atomically(path) as file:
        file.write(bytes(buffer.data()))


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
