"""Look at a network's first-layer filters, and at what its convolutions respond to in a digit.

    python MNISTshowFeat.py
    python MNISTshowFeat.py --network small
    python MNISTshowFeat.py --network mine.py:MyNet --weights MyNet.pth --data-dir ~/mnist
    python MNISTshowFeat.py --save pictures --sample 7

The window needs PyQt5 and a display; F1 in it shows its keys. --save needs neither: it writes
filters.png, and maps-conv1.png and the like for each convolution. MNIST is used where it is already
there, never fetched.
"""

import functools
import math
import os
import re

from mnist.cli import add_flags, make_parser, run_program
from mnist.errors import UnavailableError, warn
from mnist.files import write_atomically

READABLE = 7  # the most numbers side by side

# Blue for negative, white for zero, red for positive: RGB at -1, -1/2, 0, 1/2, 1.
DIVERGING = (28, 78, 160), (130, 178, 224), (255, 255, 255), (240, 150, 120), (178, 22, 40)


def diverging_colours(values, scale):
    """float (...) → uint8 (..., 3): blue at -scale, white at zero, red at scale."""
    import numpy as np

    positions = np.clip(values / (scale or 1), -1, 1)
    levels = [np.interp(positions, np.linspace(-1, 1, 5), channel) for channel in zip(*DIVERGING)]
    return np.stack(levels, -1).round().astype(np.uint8)


def largest(values):
    """The largest magnitude in an array: the scale that all its pictures share."""
    return float(abs(values).max())


def strongest(feature_map):
    """(row, column) of the largest value of a 2-D array."""
    return divmod(int(feature_map.argmax()), feature_map.shape[1])


def open_reader(options):
    """The network with its inner layers, as the flags ask for it."""
    from mnist.models.features import FeatureReader
    from mnist.models.weights import load_network

    weights = load_network(options.weights, options.network, options.trust_pickle)
    print(f"weights: {weights.origin}", flush=True)
    return FeatureReader(weights)


def size_of(maps):
    """Height and width of some maps (N, H, W) as text: "24×24"."""
    return "{}×{}".format(*maps.shape[1:])


def columns_for(number, wide=False):
    """In how many columns so many maps are shown: in a square, or in one twice as wide."""
    return max(1, math.ceil(math.sqrt(2 * number if wide else number)))


def readable(values):
    """An array (H, W), or the part of it around its largest value that leaves room for numbers."""
    row, column = strongest(values)
    height, width = (min(READABLE, size) for size in values.shape)
    top = min(max(row - height // 2, 0), values.shape[0] - height)
    left = min(max(column - width // 2, 0), values.shape[1] - width)
    return values[top:top + height, left:left + width]


class LayerTab:
    """One convolution: its maps, these as the next layer receives them, its filters where it reads
    the digit itself, and the numbers of the one chosen."""

    def __init__(self, layer, maps):
        """`maps`: those of any digit, for their number and size."""
        from PyQt5.QtWidgets import QLabel

        from mnist.gui.widgets import MapGrid, NumberGrid

        self.layer = layer
        number, wide = len(maps.maps), layer.filters is None
        columns = columns_for(number, wide)
        self.conv = MapGrid(f"Maps, {size_of(maps.maps)}", columns, diverging_colours)
        self.pool = self.filters = None
        if maps.pooled is not None:
            self.pool = MapGrid(f"Pooled, {size_of(maps.pooled)}", columns, diverging_colours)
        if layer.filters is not None:
            self.filters = MapGrid(f"Filters, {size_of(layer.filters)}", columns, diverging_colours)
            self.filters.set_maps(layer.filters, largest(layer.filters))
        self.grids = [grid for grid in (self.filters, self.conv, self.pool) if grid]
        self.facts = QLabel(wordWrap=True)
        self.numbers = NumberGrid(diverging_colours)
        self.maps = None
        self.chosen = 0

    def page(self):
        """The widget of the tab."""
        from PyQt5.QtWidgets import QGridLayout, QWidget

        page = QWidget()
        grid = QGridLayout(page)
        grid.setContentsMargins(16, 16, 16, 16)
        grid.setSpacing(18)
        below = [widget for widget in (self.conv, self.pool) if widget]
        rows = [(self.filters, self.number_box()), below] if self.filters else [
            (widget, self.number_box()) if widget is self.conv else (widget,) for widget in below]
        for column, stretch in enumerate((1, 1) if self.filters else (5, 2)):
            grid.setColumnStretch(column, stretch)
        for row, widgets in enumerate(rows):
            grid.setRowStretch(row, 1)
            for column, widget in enumerate(widgets):
                grid.addWidget(widget, row, column)
        return page

    def number_box(self):
        """The facts above the numbers."""
        from PyQt5.QtWidgets import QVBoxLayout, QWidget

        box = QWidget()
        rows = QVBoxLayout(box)
        rows.setContentsMargins(0, 0, 0, 0)
        rows.setSpacing(8)
        rows.addWidget(self.facts)
        rows.addWidget(self.numbers, 1)
        return box

    def set_maps(self, maps):
        """Show `mnist.models.features.Maps` in one scale, or nothing for None."""
        self.maps = maps
        scale = 0.0 if maps is None else largest(maps.maps)
        self.conv.set_maps(maps and maps.maps, scale)
        if self.pool:
            self.pool.set_maps(maps and maps.pooled, scale)

    def show_choice(self):
        """Frame the chosen map everywhere, say how it responds, and show its numbers."""
        from mnist.gui.widgets import signed

        for grid in self.grids:
            grid.choose(self.chosen)
        kind = "Filter" if self.filters else "Map"
        text = f"{kind} {self.chosen}, bias {signed(self.layer.biases[self.chosen])}"
        if self.maps is not None:
            values = self.maps.maps[self.chosen]
            row, column = strongest(values)
            text += (f"\nresponds from {signed(values.min())} to {signed(values.max())}, "
                     f"most at row {row}, column {column}, marked on the digit")
        self.facts.setText(text)
        grid = self.filters or self.pool or self.conv
        self.numbers.set_values(None if grid.maps is None else readable(grid.maps[self.chosen]),
                                grid.scale)

    def patch(self):
        """(row, column, height, width) of the patch of the digit that excites the chosen map most;
        None where it sees none."""
        if self.maps is None:
            return None
        patch = self.layer.patches[strongest(self.maps.maps[self.chosen])]
        return tuple(int(number) for number in patch) if patch[2] else None


class FeaturePanel:
    """What stands below and beside the canvas; a tab for each convolution of the network."""

    def __init__(self):
        from PyQt5.QtWidgets import QHBoxLayout, QTabWidget, QWidget

        from mnist.gui.widgets import AnswerView, DigitView, captioned

        self.answer = AnswerView()
        self.network_input = DigitView()
        self.below = QWidget()
        columns = QHBoxLayout(self.below)
        columns.setContentsMargins(0, 0, 0, 0)
        columns.setSpacing(16)
        columns.addWidget(captioned("The network sees", self.network_input), 1)
        columns.addWidget(captioned("Answer", self.answer), 1)
        self.layers = []
        self.beside = QTabWidget()
        self.beside.setUsesScrollButtons(True)
        self.beside.currentChanged.connect(self.show_choice)

    def opened(self, reader):
        """Make the tabs of this network."""
        import numpy as np

        maps, _ = reader.look(np.zeros((28, 28), np.uint8))
        for layer, example in zip(reader.layers, maps):
            tab = LayerTab(layer, example)
            for grid in tab.grids:
                grid.hovered.connect(functools.partial(self.choose, tab))
            self.layers.append(tab)
            self.beside.addTab(tab.page(), layer.name)
        if not self.layers:
            self.beside.addTab(note(NO_CONVOLUTION), "No layer")
        self.show_choice()

    def show(self, digit, label, result):
        """Show the newest drawing; `result` is what `FeatureReader.look` returned, or None."""
        maps, answer = result or ([None] * len(self.layers), None)
        self.network_input.set_digit(digit)
        self.answer.set_answer(answer, label)
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


NO_CONVOLUTION = "This network has no convolution: there are no filters and no maps to look at."


def note(text):
    """A page with a text in its middle."""
    from PyQt5.QtCore import Qt
    from PyQt5.QtWidgets import QLabel

    label = QLabel(text, wordWrap=True)
    label.setAlignment(Qt.AlignCenter)
    return label


# --- Pictures -------------------------------------------------------------------------------------


def save_pictures(options):
    """Write what the window shows as pictures, with matplotlib alone."""
    reader = open_reader(options)
    if not reader.layers:
        raise UnavailableError(NO_CONVOLUTION)
    digit, name = choose_digit(options)
    maps, answer = reader.look(digit)
    try:
        os.makedirs(options.save, exist_ok=True)
    except OSError as error:
        raise UnavailableError(f"can't make the folder {options.save}: {error.strerror}") from error
    first = reader.layers[0]
    if first.filters is not None:
        save_picture(options.save, "filters.png", f"{first.name} of {reader.weights.origin}", [
            (f"{len(first.filters)} filters, {size_of(first.filters)}", first.filters,
             columns_for(len(first.filters)), largest(first.filters))])
    for layer, seen in zip(reader.layers, maps):
        columns = columns_for(len(seen.maps), wide=layer.filters is None)
        grids = [(f"{len(seen.maps)} feature maps of {layer.name}, {size_of(seen.maps)}",
                  seen.maps, columns, largest(seen.maps))]
        if seen.pooled is not None:
            grids.append((f"after pooling, {size_of(seen.pooled)}", seen.pooled, columns,
                          largest(seen.maps)))
        save_picture(options.save, f"maps-{re.sub('[^0-9A-Za-z_.-]', '_', layer.name)}.png",
                     f"{name}, read as {answer}", grids, digit)


def choose_digit(options):
    """The digit to look at, uint8 (28, 28), and what to call it."""
    from mnist.datasets.download import DataError
    from mnist.datasets.fonts import generated_digits
    from MNISTdsource import load_split

    try:
        images, targets = load_split("test", options.data_dir, download=False)
    except DataError as error:
        if options.sample is not None:
            raise
        warn(f"MNIST is not here ({str(error).splitlines()[0]}); taking a generated digit")
        images, targets = generated_digits(1, seed=0)
        return images[0], f"A generated {targets[0]}"
    index = options.sample or 0
    if index >= len(images):
        raise UnavailableError(f"--sample {index}: there are {len(images)} test digits, from 0")
    return images[index], f"Test digit {index}, a {targets[index]}"


def save_picture(folder, name, title, grids, digit=None):
    """One file with grids of maps, each (caption, maps, columns, scale), after the digit if any."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    digits = [] if digit is None else [digit]
    tiles = [tile(maps, columns) for _, maps, columns, _ in grids]
    height = 4.6 * max(tiled.shape[0] / tiled.shape[1] for tiled in tiles) + 1.35  # inches
    figure = Figure(figsize=(4.9 * len(grids) + 2.2 * len(digits), height), dpi=150)
    FigureCanvasAgg(figure)
    figure.suptitle(title, y=1 - 0.12 / height, va="top")
    axes = figure.subplots(1, len(digits) + len(grids), squeeze=False,
                           gridspec_kw=dict(width_ratios=[2] * len(digits) + [4.6] * len(grids)))[0]
    figure.subplots_adjust(left=0.03, right=0.97, top=1 - 0.65 / height, bottom=0.3 / height,
                           wspace=0.08)
    for ax in axes:
        ax.set_axis_off()
    for ax in axes[:len(digits)]:
        ax.imshow(digit, cmap="gray", vmin=0, vmax=255)
    for ax, tiled, (caption, _, _, scale) in zip(axes[len(digits):], tiles, grids):
        picture = ax.imshow(tiled, cmap=diverging_map(), vmin=-scale, vmax=scale)
        ax.set_title(caption, fontsize=10)
        figure.colorbar(picture, ax=ax, orientation="horizontal", fraction=0.05, pad=0.03,
                        aspect=40)
    path = os.path.join(folder, name)
    with write_atomically(path) as file:
        figure.savefig(file, format="png")
    print(f"wrote {path}")


def tile(maps, columns):
    """float (N, H, W) → 2-D array with the maps, enlarged, in rows of `columns`; NaN between."""
    import numpy as np

    zoom, gap = max(1, 96 // max(maps.shape[1:])), 9
    maps = maps.repeat(zoom, 1).repeat(zoom, 2)
    count, height, width = maps.shape
    rows = -(-count // columns)
    tiles = np.full((rows * columns, height + gap, width + gap), np.nan, np.float32)
    tiles[:count, :height, :width] = maps
    tiles = tiles.reshape(rows, columns, height + gap, width + gap).swapaxes(1, 2)
    return tiles.reshape(rows * (height + gap), -1)[:-gap, :-gap]


def diverging_map():
    """`diverging_colours` as matplotlib wants it."""
    import numpy as np
    from matplotlib.colors import ListedColormap

    colours = ListedColormap(diverging_colours(np.linspace(-1, 1, 255), 1) / 255)
    colours.set_bad("#c3c9d2")  # what lies between the maps
    return colours


def read_options(argv=None):
    """The command line's options."""
    parser = make_parser(__doc__)
    add_flags(parser, "network", "weights", "trust-pickle", "data-dir")
    parser.add_argument("--save", metavar="DIR", help="write the pictures into DIR; no window")
    parser.add_argument("--sample", type=int, metavar="N",
                        help="with --save: the test digit to take (default: the first)")
    options = parser.parse_args(argv)
    if options.sample is not None and not options.save:
        parser.error("--sample has no effect without --save; in the window, G goes to a digit")
    if options.sample is not None and options.sample < 0:
        parser.error("--sample counts from 0")
    return options


def make_window(options):
    """The window, not yet shown."""
    from mnist.gui.window import DigitWindow

    return DigitWindow("MNISTshowFeat", FeaturePanel(), lambda: open_reader(options),
                       options.data_dir, size=(1180, 760), stretch=(2, 5))


def main(argv=None):
    """Open the window and wait until it is closed; or write the pictures."""
    options = read_options(argv)
    if options.save:
        save_pictures(options)
        return
    from mnist.gui.application import run_window

    run_window("MNISTshowFeat", lambda: make_window(options))


if __name__ == "__main__":
    run_program(main)
