"""Look at the network's first-layer filters, and at what both layers respond to in a digit.

    python MNISTshowFeat.py
    python MNISTshowFeat.py --weights mine.pth --data-dir ~/mnist
    python MNISTshowFeat.py --save pictures --sample 7

The window needs PyQt5 and a display; F1 in it shows its keys. --save needs neither: it writes
filters.png, maps-conv1.png and maps-conv2.png. MNIST is used where it is already there, never
fetched.
"""

import collections
import functools
import os

from MNISTscript import (
    UnavailableError,
    add_flags,
    make_parser,
    run_program,
    warn,
    write_atomically,
)

# What the layers make of one digit, float32: conv1 (20, 24, 24), pool1 (20, 12, 12),
# conv2 (50, 8, 8), pool2 (50, 4, 4); and the digit read. No ReLU follows these layers.
Maps = collections.namedtuple("Maps", "conv1 pool1 conv2 pool2 answer")

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


class FeatureReader:
    """The network with its inner layers, as `MNISTwindow.DigitWindow` wants it."""

    batch_size = 64

    def __init__(self, options):
        from MNISTweights import load_network

        self.weights = load_network(options.weights, options.network, options.trust_pickle)
        print(f"weights: {self.weights.origin}", flush=True)
        self.net = self.weights.net
        self.filters = self.net.conv1.weight.detach().numpy()[:, 0]  # (20, 5, 5)
        self.biases = self.net.conv1.bias.detach().numpy()

    def look(self, digit):
        """uint8 (28, 28) → Maps."""
        import torch
        import torch.nn.functional as F

        from MNISTdsource import normalise

        with torch.no_grad():
            x = torch.from_numpy(normalise(digit[None]))
            conv1 = self.net.conv1(x)
            pool1 = F.max_pool2d(conv1, 2)
            conv2 = self.net.conv2(pool1)
            pool2 = F.max_pool2d(conv2, 2)
            answer = int(self.net(x).argmax())
        return Maps(*(maps[0].numpy() for maps in (conv1, pool1, conv2, pool2)), answer)

    def read(self, images):
        """uint8 (B, 28, 28) → the digits read, (B,)."""
        import torch

        from MNISTdsource import normalise

        with torch.no_grad():
            return self.net(torch.from_numpy(normalise(images))).argmax(1).numpy()


class LayerTab:
    """One layer: its maps before and after pooling, and the numbers of the one chosen.

    The value at (row, column) of a map comes from the `side` × `side` pixels of the digit that
    begin at (`stride` × row, `stride` × column).
    """

    def __init__(self, conv_title, pool_title, columns, stride, side):
        from PyQt5.QtWidgets import QLabel

        from MNISTwidgets import MapGrid, NumberGrid

        self.stride, self.side = stride, side
        self.conv = MapGrid(conv_title, columns, diverging_colours)
        self.pool = MapGrid(pool_title, columns, diverging_colours)
        self.grids = [self.conv, self.pool]
        self.facts = QLabel(wordWrap=True)
        self.numbers = NumberGrid(diverging_colours)
        self.maps = None
        self.chosen = 0

    def arrange(self, rows, stretch):
        """A widget with `rows` of widgets in a grid; `stretch` is that of its two columns."""
        from PyQt5.QtWidgets import QGridLayout, QWidget

        page = QWidget()
        grid = QGridLayout(page)
        grid.setContentsMargins(16, 16, 16, 16)
        grid.setSpacing(18)
        for row, widgets in enumerate(rows):
            grid.setRowStretch(row, 1)
            for column, widget in enumerate(widgets):
                grid.setColumnStretch(column, stretch[column])
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

    def set_maps(self, conv, pool):
        """Show float (N, H, W) before and after pooling in one scale, or nothing for None."""
        self.maps = conv
        scale = 0.0 if conv is None else largest(conv)
        self.conv.set_maps(conv, scale)
        self.pool.set_maps(pool, scale)

    def show_choice(self, name):
        """Frame the chosen map everywhere and say how it responds."""
        from MNISTwidgets import signed

        for grid in self.grids:
            grid.choose(self.chosen)
        if self.maps is None:
            self.facts.setText(name)
            return
        values = self.maps[self.chosen]
        row, column = strongest(values)
        self.facts.setText(
            f"{name}\nresponds from {signed(values.min())} to {signed(values.max())}, "
            f"most at row {row}, column {column}, marked on the digit")

    def patch(self):
        """(row, column, side) of the patch of the digit that excites the chosen map most."""
        if self.maps is None:
            return None
        row, column = strongest(self.maps[self.chosen])
        return self.stride * row, self.stride * column, self.side


class FeaturePanel:
    """What stands below and beside the canvas."""

    def __init__(self):
        from PyQt5.QtWidgets import QHBoxLayout, QTabWidget, QWidget

        from MNISTwidgets import AnswerView, DigitView, MapGrid, captioned

        self.answer = AnswerView()
        self.network_input = DigitView()
        self.below = QWidget()
        columns = QHBoxLayout(self.below)
        columns.setContentsMargins(0, 0, 0, 0)
        columns.setSpacing(16)
        columns.addWidget(captioned("The network sees", self.network_input), 1)
        columns.addWidget(captioned("Answer", self.answer), 1)

        self.reader = None
        self.filters = MapGrid("Filters, 5×5", 5, diverging_colours)
        first = LayerTab("Maps, 24×24", "Pooled, 12×12", 5, stride=1, side=5)
        first.grids.append(self.filters)
        second = LayerTab("Maps, 8×8", "Pooled, 4×4", 10, stride=2, side=14)
        self.layers = first, second
        self.beside = QTabWidget()
        self.beside.addTab(first.arrange([(self.filters, first.number_box()),
                                          (first.conv, first.pool)], (1, 1)), "First layer")
        self.beside.addTab(second.arrange([(second.conv, second.number_box()), (second.pool,)],
                                          (5, 2)), "Second layer")
        self.beside.currentChanged.connect(self.show_choice)
        for layer in self.layers:
            for grid in layer.grids:
                grid.hovered.connect(functools.partial(self.choose, layer))

    def opened(self, reader):
        self.reader = reader
        self.filters.set_maps(reader.filters, largest(reader.filters))
        self.show_choice()

    def show(self, digit, label, maps):
        """Show the newest drawing; `maps` is what `FeatureReader.look` returned, or None."""
        first, second = self.layers
        self.network_input.set_digit(digit)
        self.answer.set_answer(maps and maps.answer, label)
        first.set_maps(maps and maps.conv1, maps and maps.pool1)
        second.set_maps(maps and maps.conv2, maps and maps.pool2)
        self.show_choice()

    def choose(self, layer, index):
        layer.chosen = index
        self.show_choice()

    def show_choice(self):
        """Frame what is chosen, show its numbers, mark the patch that excites it most."""
        from MNISTwidgets import signed

        if self.reader is None:
            return
        first, second = self.layers
        weights = self.reader.filters[first.chosen]
        first.show_choice(f"Filter {first.chosen}, bias {signed(self.reader.biases[first.chosen])}")
        first.numbers.set_values(weights, self.filters.scale)
        second.show_choice(f"Map {second.chosen}")
        pooled = second.pool.maps
        second.numbers.set_values(None if pooled is None else pooled[second.chosen],
                                  second.pool.scale)
        self.network_input.set_patch(self.layers[self.beside.currentIndex()].patch())


def save_pictures(options):
    """Write what the window shows as pictures, with matplotlib alone."""
    digit, name = choose_digit(options)
    reader = FeatureReader(options)
    maps = reader.look(digit)
    title = f"{name}, read as {maps.answer}"
    try:
        os.makedirs(options.save, exist_ok=True)
    except OSError as error:
        raise UnavailableError(f"can't make the folder {options.save}: {error.strerror}") from error
    save_picture(options.save, "filters.png", "First layer", [
        ("20 filters, 5×5", reader.filters, 5, largest(reader.filters))])
    save_picture(options.save, "maps-conv1.png", title, [
        ("20 feature maps of the first layer, 24×24", maps.conv1, 5, largest(maps.conv1)),
        ("after pooling, 12×12", maps.pool1, 5, largest(maps.conv1))], digit)
    save_picture(options.save, "maps-conv2.png", title, [
        ("50 feature maps of the second layer, 8×8", maps.conv2, 10, largest(maps.conv2)),
        ("after pooling, 4×4", maps.pool2, 10, largest(maps.conv2))], digit)


def choose_digit(options):
    """The digit to look at, uint8 (28, 28), and what to call it."""
    from MNISTdsource import DataError, generated_digits, load_split

    try:
        images, labels = load_split("test", options.data_dir, download=False)
    except DataError as error:
        if options.sample is not None:
            raise
        warn(f"MNIST is not here ({str(error).splitlines()[0]}); taking a generated digit")
        images, labels = generated_digits(1, seed=0)
        return images[0], f"A generated {labels[0]}"
    index = options.sample or 0
    if index >= len(images):
        raise UnavailableError(f"--sample {index}: there are {len(images)} test digits, from 0")
    return images[index], f"Test digit {index}, a {labels[index]}"


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

    zoom, gap = 96 // maps.shape[1], 9
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
    return parser.parse_args(argv)


def make_window(options):
    """The window, not yet shown."""
    from MNISTwindow import DigitWindow

    return DigitWindow("MNISTshowFeat", FeaturePanel(), lambda: FeatureReader(options),
                       options.data_dir, size=(1180, 760), stretch=(2, 5))


def main(argv=None):
    """Open the window and wait until it is closed; or write the pictures."""
    options = read_options(argv)
    if options.save:
        save_pictures(options)
        return
    from MNISTapplication import run_window

    run_window("MNISTshowFeat", lambda: make_window(options))


if __name__ == "__main__":
    run_program(main)
