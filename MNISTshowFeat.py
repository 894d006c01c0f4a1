"""Look at a network's first-layer filters, and at what its convolutions respond to in an image.

    python MNISTshowFeat.py
    python MNISTshowFeat.py --weights weights/gtsrb.pth
    python MNISTshowFeat.py --network mine.py:MyNet --weights MyNet.pth --data-dir ~/mnist
    python MNISTshowFeat.py --save pictures --sample 7

The window needs PyQt5 and a display; F1 in it shows its keys. --save needs neither: it writes
filters.png, and maps-conv1.png and the like for each convolution. Test images are used where they
are already there, never fetched.
"""

import functools
import os
import re

from mnist.cli import add_flags, make_parser, run_program
from mnist.errors import DataError, UnavailableError, warn


def open_reader(options):
    """The network with its inner layers, as the flags ask for it.

    Raises UnavailableError where it has no convolution.
    """
    from mnist.models.features import FeatureReader
    from MNISTdsource import network_of_flags

    network = network_of_flags(options)
    reader = FeatureReader(network)
    if not reader.layers:
        raise UnavailableError(f"{network.name} has no convolution: there are no filters and no "
                               "maps to look at")
    return reader


# --- Pictures -------------------------------------------------------------------------------------


def save_pictures(options):
    """Write what the window shows as pictures, with matplotlib alone."""
    from mnist.datasets.image_set import as_picture
    from mnist.gui.maps import columns_for, filter_colours, largest, size_of

    reader = open_reader(options)
    try:
        os.makedirs(options.save, exist_ok=True)
    except OSError as error:
        raise UnavailableError(f"can't make the folder {options.save}: {error.strerror}") from error
    first = reader.layers[0]
    if first.filters is not None:
        scale = largest(first.filters)
        filters = first.filters[:, 0] if first.filters.shape[1] == 1 else \
            filter_colours(first.filters, scale)
        save_picture(options.save, "filters.png", f"{first.name} of {reader.network.origin}", [
            (f"{len(filters)} filters, {size_of(first.filters)}", filters,
             columns_for(len(filters)), scale)])
    image, name = choose_image(options, reader.network.image_set)
    maps, outputs = reader.look(image)
    for layer, seen in zip(reader.layers, maps):
        columns = columns_for(len(seen.maps), wide=layer.filters is None)
        grids = [(f"{len(seen.maps)} feature maps of {layer.name}, {size_of(seen.maps)}",
                  seen.maps, columns, largest(seen.maps))]
        if seen.pooled is not None:
            grids.append((f"after pooling, {size_of(seen.pooled)}", seen.pooled, columns,
                          largest(seen.maps)))
        save_picture(options.save, f"maps-{re.sub('[^0-9A-Za-z_.-]', '_', layer.name)}.png",
                     f"{name}, read as {reader.network.image_set.describe(outputs)}", grids,
                     as_picture(image))


def choose_image(options, image_set):
    """The image to look at, uint8 (C, H, W), and what to call it."""
    from MNISTdsource import load_images

    try:
        images, targets = load_images(image_set, "test", options.data, options.data_dir,
                                      download=False)[:2]
    except DataError as error:
        if options.sample is not None or image_set.name != "mnist":
            raise
        warn(f"MNIST is not here ({str(error).splitlines()[0]}); taking a generated digit")
        images, targets = load_images(image_set, "test", "generated", limit=1)[:2]
        return images[0], f"A generated {targets[0]}"
    index = options.sample or 0
    if index >= len(images):
        raise UnavailableError(f"--sample {index}: there are {len(images)} test images, from 0")
    return images[index], f"Test image {index}, {image_set.describe(targets[index])}"


def save_picture(folder, name, title, grids, picture=None):
    """One file with grids of maps, each (caption, maps, columns, scale), after the picture if any.
    """
    from mnist.bench.plots import new_figure, save_figure

    widths = [2] * (picture is not None) + [4.6] * len(grids)
    tiles = [tile(maps, columns) for _, maps, columns, _ in grids]
    height = 4.6 * max(tiled.shape[0] / tiled.shape[1] for tiled in tiles) + 1.35  # inches
    figure = new_figure(sum(widths) + 0.3 * len(widths), height)
    figure.suptitle(title, y=1 - 0.12 / height, va="top")
    axes = figure.subplots(1, len(widths), squeeze=False, gridspec_kw=dict(width_ratios=widths))[0]
    figure.subplots_adjust(left=0.03, right=0.97, top=1 - 0.65 / height, bottom=0.3 / height,
                           wspace=0.08)
    for ax in axes:
        ax.set_axis_off()
    if picture is not None:
        axes[0].imshow(picture, cmap="gray", vmin=0, vmax=255)
    for ax, tiled, (caption, _, _, scale) in zip(axes[-len(grids):], tiles, grids):
        shown = ax.imshow(tiled, cmap=diverging_map(), vmin=-scale, vmax=scale)
        ax.set_title(caption, fontsize=10)
        if tiled.ndim == 2:  # a colour filter is shown in its own colours
            figure.colorbar(shown, ax=ax, orientation="horizontal", fraction=0.05, pad=0.03,
                            aspect=40)
    path = os.path.join(folder, name)
    save_figure(figure, path)
    print(f"wrote {path}")


def tile(maps, columns):
    """Maps, float (N, H, W), or filters in colour, uint8 (N, H, W, 3) → one array with all of them,
    enlarged, in rows of `columns`; NaN, or light grey, between."""
    import numpy as np

    zoom, gap = max(1, 96 // max(maps.shape[1:3])), 9
    maps = maps.repeat(zoom, 1).repeat(zoom, 2)
    count, height, width = maps.shape[:3]
    rows = -(-count // columns)
    between = 200 if maps.dtype == np.uint8 else np.nan
    tiles = np.full((rows * columns, height + gap, width + gap) + maps.shape[3:], between,
                    maps.dtype)
    tiles[:count, :height, :width] = maps
    tiles = tiles.reshape((rows, columns) + tiles.shape[1:]).swapaxes(1, 2)
    return tiles.reshape((rows * (height + gap), columns * (width + gap)) + maps.shape[3:])[
        :-gap, :-gap]


def diverging_map():
    """`diverging_colours` as matplotlib wants it."""
    import numpy as np
    from matplotlib.colors import ListedColormap

    from mnist.gui.maps import diverging_colours

    colours = ListedColormap(diverging_colours(np.linspace(-1, 1, 255), 1) / 255)
    colours.set_bad("#c3c9d2")  # what lies between the maps
    return colours


def read_options(argv=None):
    """The command line's options."""
    parser = make_parser(__doc__)
    add_flags(parser, "network", "weights", "trust-pickle", "data", "data-dir")
    parser.add_argument("--save", type=os.path.expanduser, metavar="DIR",
                        help="write the pictures into DIR; no window")
    parser.add_argument("--sample", type=int, metavar="N",
                        help="with --save: the test image to take (default: the first)")
    options = parser.parse_args(argv)
    if options.sample is not None and not options.save:
        parser.error("--sample has no effect without --save; in the window, G goes to an image")
    if options.sample is not None and options.sample < 0:
        parser.error("--sample counts from 0")
    return options


def make_window(options):
    """The window, not yet shown."""
    from mnist.gui.panels import FeaturePanel
    from mnist.gui.window import ImageWindow
    from MNISTdsource import load_images

    load_test_set = functools.partial(load_images, split="test", data=options.data,
                                      data_dir=options.data_dir, download=False)
    return ImageWindow("MNISTshowFeat", FeaturePanel(), lambda: open_reader(options),
                       load_test_set, size=(1180, 760), stretch=(2, 5))


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
