"""What the two programs show beside the canvas: the answer, or the layers of the network."""

import functools

import numpy as np
from PyQt5.QtWidgets import QGridLayout, QHBoxLayout, QLabel, QTabWidget, QVBoxLayout, QWidget

from mnist.gui.maps import columns_for, diverging_colours, filter_colours, largest, size_of
from mnist.gui.widgets import (
    AnswerView,
    InputView,
    MapGrid,
    NumberGrid,
    ProbabilityBars,
    arranged,
    captioned,
    signed,
)

READABLE = 7  # the most numbers side by side


class AnswerPanel:
    """GraphMNIST's: the answer, the probabilities of classes, what the network received."""

    below = image_set = None

    def __init__(self):
        self.answer = AnswerView()
        self.bars = ProbabilityBars()
        self.probabilities = captioned("Probabilities", self.bars)
        self.network_input = InputView()
        self.time = QLabel(objectName="time")
        top = arranged(QHBoxLayout, 20, (captioned("Answer", self.answer), 1),
                       (captioned("The network sees", self.network_input), 1))
        self.beside = arranged(QVBoxLayout, 16, (top, 2), (self.probabilities, 3), (self.time, 0))

    def opened(self, reader):
        self.image_set = reader.network.image_set
        self.engine = f"{reader.engine.name}, {reader.engine.device}, {reader.engine.precision}"
        self.bars.set_values(self.image_set.classes, None)
        self.probabilities.setVisible(self.image_set.task == "classification")

    def show(self, image, target, result):
        """Show the newest image's answer; `result` is (outputs float32 (K,), seconds), or None."""
        outputs, seconds = result or (None, None)
        self.network_input.set_image(image)
        self.answer.show_outputs(self.image_set, outputs, target)
        self.bars.set_values(self.bars.classes, None if outputs is None else np.exp(outputs))
        if result:
            self.time.setText(f"{1000 * seconds:.2f} ms on {self.engine}")


# --- Layers ---------------------------------------------------------------------------------------


class FeaturePanel:
    """MNISTshowFeat's, below and beside the canvas: a tab for each convolution of the network."""

    image_set = None

    def __init__(self):
        self.answer = AnswerView()
        self.network_input = InputView()
        self.below = arranged(QHBoxLayout, 16,
                              (captioned("The network sees", self.network_input), 1),
                              (captioned("Answer", self.answer), 1))
        self.layers = []
        self.beside = QTabWidget()
        self.beside.setUsesScrollButtons(True)
        self.beside.currentChanged.connect(self.show_choice)

    def opened(self, reader):
        """Make the tabs of this network."""
        self.image_set = reader.network.image_set
        maps, _ = reader.look(np.zeros(self.image_set.shape, np.uint8))
        for layer, example in zip(reader.layers, maps):
            tab = LayerTab(layer, example)
            for grid in tab.grids:
                grid.hovered.connect(functools.partial(self.choose, tab))
            self.layers.append(tab)
            self.beside.addTab(tab, layer.name)
        self.show_choice()

    def show(self, image, target, result):
        """Show the newest image; `result` is what `FeatureReader.look` returned, or None."""
        maps, outputs = result or ([None] * len(self.layers), None)
        self.network_input.set_image(image)
        self.answer.show_outputs(self.image_set, outputs, target)
        for tab, seen in zip(self.layers, maps):
            tab.set_maps(seen)
        self.show_choice()

    def choose(self, tab, index):
        tab.chosen = index
        self.show_choice()

    def show_choice(self):
        """Frame what is chosen, show its numbers, mark the patch that excites it most."""
        for tab in self.layers:
            tab.show_choice()
        if self.layers:
            self.network_input.set_patch(self.layers[self.beside.currentIndex()].patch())


class LayerTab(QWidget):
    """One convolution: its maps, these as the next layer receives them, its filters where it reads
    the image itself, and the numbers of the one chosen."""

    def __init__(self, layer, maps):
        """`maps`: those of any image, for their number and size."""
        super().__init__()
        self.layer = layer
        columns = columns_for(len(maps.maps), wide=layer.filters is None)
        self.conv = MapGrid(f"Maps, {size_of(maps.maps)}", columns, diverging_colours)
        self.pool = self.filters = None
        if maps.pooled is not None:
            self.pool = MapGrid(f"Pooled, {size_of(maps.pooled)}", columns, diverging_colours)
        if layer.filters is not None:
            grey = layer.filters.shape[1] == 1
            self.filters = MapGrid(f"Filters, {size_of(layer.filters)}", columns,
                                   diverging_colours if grey else filter_colours)
            self.filters.set_maps(layer.filters[:, 0] if grey else layer.filters,
                                  largest(layer.filters))
        self.grids = [grid for grid in (self.filters, self.conv, self.pool) if grid]
        self.facts = QLabel(wordWrap=True)
        self.numbers = NumberGrid(diverging_colours)
        self.maps = None
        self.chosen = 0

        grid = QGridLayout(self)
        grid.setContentsMargins(16, 16, 16, 16)
        grid.setSpacing(18)
        for column, stretch in enumerate((1, 1) if self.filters else (5, 2)):
            grid.setColumnStretch(column, stretch)
        box = arranged(QVBoxLayout, 8, (self.facts, 0), (self.numbers, 1))
        for index, widget in enumerate(self.grids[:1] + [box] + self.grids[1:]):
            row, column = divmod(index, 2)
            grid.setRowStretch(row, 1)
            grid.addWidget(widget, row, column)

    def set_maps(self, maps):
        """Show `mnist.models.features.Maps` in one scale, or nothing for None."""
        self.maps = maps
        scale = 0.0 if maps is None else largest(maps.maps)
        self.conv.set_maps(maps and maps.maps, scale)
        if self.pool:
            self.pool.set_maps(maps and maps.pooled, scale)

    def show_choice(self):
        """Frame the chosen map everywhere, say how it responds, and show its numbers."""
        for grid in self.grids:
            grid.choose(self.chosen)
        kind = "Filter" if self.filters else "Map"
        text = f"{kind} {self.chosen}, bias {signed(self.layer.biases[self.chosen])}"
        if self.maps is not None:
            values = self.maps.maps[self.chosen]
            row, column = strongest(values)
            text += (f"\nresponds from {signed(values.min())} to {signed(values.max())}, "
                     f"most at row {row}, column {column}, marked on the image")
        self.facts.setText(text)
        grids = [self.filters, self.pool, self.conv]
        grid = next(grid for grid in grids if grid and (grid.maps is None or grid.maps.ndim == 3))
        self.numbers.set_values(None if grid.maps is None else readable(grid.maps[self.chosen]),
                                grid.scale)

    def patch(self):
        """(row, column, height, width) of the patch of the image that excites the chosen map most;
        None where it sees none."""
        if self.maps is None:
            return None
        patch = self.layer.patches[strongest(self.maps.maps[self.chosen])]
        return tuple(int(number) for number in patch) if patch[2] else None


def strongest(feature_map):
    """(row, column) of the largest value of a 2-D array."""
    return divmod(int(feature_map.argmax()), feature_map.shape[1])


def readable(values):
    """An array (H, W), or the part of it around its largest value that leaves room for numbers."""
    row, column = strongest(values)
    height, width = (min(READABLE, size) for size in values.shape)
    top = min(max(row - height // 2, 0), values.shape[0] - height)
    left = min(max(column - width // 2, 0), values.shape[1] - width)
    return values[top:top + height, left:left + width]
