"""The pictures of the notebook: images, maps, filters, drawings, times.

Each function gives a matplotlib figure, which a notebook shows and `save_figure` saves.
"""

import numpy as np
from matplotlib.patches import Rectangle

from mnist.bench.plots import draw_trade_off, draw_training, new_figure, plain_ticks, show_image

DPI = 80


def show_images(images, captions=None, columns=10):
    """Images uint8 (N, C, H, W) side by side, each with its caption."""
    rows = -(-len(images) // columns)
    figure = new_figure(columns * 0.95, rows * (1.25 if captions is not None else 1), DPI)
    for k, image in enumerate(images):
        panel = figure.add_subplot(rows, columns, k + 1)
        show_image(panel, image)
        if captions is not None:
            panel.set_title(captions[k], fontsize=9)
    figure.tight_layout(pad=0.4)
    return figure


def draw_image(panel, image, cmap="gray_r", **how):
    """A picture without axes: grey levels as ink on paper, unless another colour map is said."""
    panel.imshow(image, cmap=cmap, **how)
    panel.set_xticks([])
    panel.set_yticks([])


def show_numbers(image, rows, columns):
    """The grey levels of a part of a digit, beside the whole: rows and columns are slices."""
    figure = new_figure(9, 3.6, DPI)
    whole, part = figure.subplots(1, 2)
    draw_image(whole, image)
    height, width = image[rows, columns].shape
    whole.add_patch(Rectangle((columns.start - 0.5, rows.start - 0.5), width, height, fill=False,
                              edgecolor="C3", linewidth=2))
    draw_image(part, image[rows, columns], vmin=0, vmax=255)
    for y in range(height):
        for x in range(width):
            level = image[rows, columns][y, x]
            part.text(x, y, level, ha="center", va="center", fontsize=8,
                      color="white" if level > 127 else "black")
    figure.tight_layout()
    return figure


def show_maps(digit, layers, maps, shown=10):
    """A digit (1, H, W), and below it the first maps of each layer.

    layers: `Layer`s of mnist/models/features.py; maps: their `Maps` of the digit.
    """
    figure = new_figure(9.5, 1.15 * (len(layers) + 1), DPI)
    grid = figure.add_gridspec(len(layers) + 1, shown)
    show_image(figure.add_subplot(grid[0, 0]), digit)
    for line, (layer, made) in enumerate(zip(layers, maps), start=1):
        low, high = made.maps.min(), made.maps.max()
        for k, image in enumerate(made.maps[:shown]):
            panel = figure.add_subplot(grid[line, k])
            draw_image(panel, image, cmap="viridis", vmin=low, vmax=high)
            if k == 0:
                panel.set_title(f"{layer.name}: {len(made.maps)} maps of {image.shape[0]}×"
                                f"{image.shape[1]}", fontsize=9, loc="left")
    figure.tight_layout(pad=0.4)
    return figure


def show_filters(before, after):
    """Filters (N, H, W) before the training, and below them the same after it."""
    figure = new_figure(9.5, 2.6, DPI)
    axes = figure.subplots(2, len(before))
    for line, filters, title in ((0, before, "before"), (1, after, "after")):
        reach = np.abs(filters).max()
        for k, image in enumerate(filters):
            draw_image(axes[line, k], image, cmap="RdBu_r", vmin=-reach, vmax=reach)
        axes[line, 0].set_title(title, fontsize=9, loc="left")
    figure.tight_layout(pad=0.3)
    return figure


def show_training(history, digits):
    """Loss and share of misread digits by epoch; `digits`: which were watched."""
    figure = new_figure(9, 3.3, DPI)
    draw_training(figure, history, digits)
    figure.tight_layout()
    return figure


def show_answers(images, answers, titles):
    """Images, and below each the probabilities that the network gives it.

    images: a list of arrays (H, W) of any size; answers: log-probabilities float32 (10,) for each,
    or None where it was given none.
    """
    figure = new_figure(9.5, 3.8, DPI)
    above, below = figure.subplots(2, len(images), gridspec_kw={"height_ratios": (3, 2)})
    for image, answer, title, panel, bars in zip(images, answers, titles, above, below):
        draw_image(panel, image)
        panel.set_title(title, fontsize=9)
        if answer is None:
            bars.set_axis_off()
            continue
        bars.bar(range(10), np.exp(answer), color=["C0" if k == answer.argmax() else "0.7"
                                                   for k in range(10)])
        bars.set_xticks(range(10))
        bars.set_ylim(0, 1)
        bars.set_ylabel("probability")
    figure.tight_layout()
    return figure


def show_latencies(latencies):
    """Box plots of the time of single calls, {engine: seconds}: half of the calls lie in the box,
    the line in it is the median, the whiskers reach to the 1st and the 99th percentile."""
    figure = new_figure(9, 0.9 + 0.42 * len(latencies), DPI)
    panel = figure.add_subplot()
    names = list(latencies)[::-1]
    panel.boxplot([np.array(latencies[name]) * 1e3 for name in names], vert=False, whis=(1, 99),
                  sym="", medianprops={"color": "C3"})
    panel.set_yticks(range(1, len(names) + 1))
    panel.set_yticklabels(names)
    panel.set_xscale("log")
    plain_ticks(panel.xaxis)
    panel.set_xlabel("milliseconds per call")
    panel.grid(axis="x", alpha=0.3, which="both")
    figure.tight_layout()
    return figure


def show_trade_off(points, xlabel):
    """What is misread over what it costs: {name: (cost, share read)}."""
    figure = new_figure(9, 3.6, DPI)
    panel = figure.add_subplot()
    draw_trade_off(panel, points, xlabel)
    panel.set_ylabel("misread, %")
    figure.tight_layout()
    return figure
