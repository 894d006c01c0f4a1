"""What a run's numbers look like: a comparison, a training, the images misread. (A study:
study_plots.py.)

Needs matplotlib, but no display.
"""

import collections
import itertools
import os
import sys
import textwrap

from mnist.bench.tables import (
    LETTERS,
    PUBLISHED,
    PUBLISHED_IMAGES,
    is_of_mnist,
    merge_rows,
    milliseconds,
    networks_of,
    ratio,
    row_name,
)
from mnist.datasets.image_set import as_picture
from mnist.errors import UnavailableError
from mnist.files import check_writable, write_atomically
from mnist.machine import describe_machine


def check_outputs(arguments):
    """Find out before the work, not after it, that a file of --output, --json, --plot or --mistakes
    can't be written; with `--json -` all other prints go to stderr. Raises UnavailableError."""
    if arguments.json == "-":
        sys.stdout = sys.stderr
    for name in ("output", "json"):
        check_writable("--" + name, getattr(arguments, name, None))
    for name in ("plot", "mistakes"):
        if getattr(arguments, name, None):
            check_plot("--" + name, getattr(arguments, name))


def check_plot(flag, path):
    """Raise UnavailableError where no plot could be saved there, before any time is spent."""
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except ImportError as error:
        raise UnavailableError(f"{flag} needs matplotlib: pip install matplotlib") from error
    if plot_format(path) not in FigureCanvasBase.get_supported_filetypes():
        raise UnavailableError(f"{flag} {path}: end it in .png, .svg or .pdf")
    check_writable(flag, path)


def plot_format(path):
    return os.path.splitext(path)[1][1:].lower()


def drawable(text):
    """A text with what no font can draw, as in paths, escaped."""
    return text.encode("utf-8", "backslashreplace").decode()


def new_figure(width, height, dpi=150):
    """A figure of so many inches that needs no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    figure = Figure(figsize=(width, height), dpi=dpi)
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure, path):
    """Write a figure into a file of the format that its name says, whole or not at all."""
    with write_atomically(path) as file:
        figure.savefig(file, format=plot_format(path))


def plain_ticks(axis):
    """Numbers on a logarithmic axis as people write them, also between the powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator
    axis.set_minor_locator(LogLocator(subs=(2, 3, 5)))
    for ticks in (axis.set_major_formatter, axis.set_minor_formatter):
        ticks(FuncFormatter(lambda value, _: f"{value:g}"))


# --- A comparison ---------------------------------------------------------------------------------

# A marker and its place on the line for each batch size, told apart without colours.
MARKERS = (("o", "white", -0.15), ("s", "black", 0.15), ("^", "0.6", 0), ("D", "white", 0.3),
           ("v", "black", -0.3))


def save_plot(path, records):
    """Draw latency and throughput of every engine, from top to bottom as in the table."""
    measured, published = plot_lines(records)
    lines = measured + published
    machines = [record["machine"]["utc"][:10] + ", "
                + describe_machine(record["machine"]).split("\n")[0] for record in records]
    if len(records) > 1:
        machines = [f"{letter}: {machine}" for letter, machine in zip(LETTERS, machines)]
    images = collections.OrderedDict.fromkeys(record["settings"]["data"] for record in records)
    title = textwrap.wrap(drawable(", ".join(images)) + "; end-to-end: from pixels in host memory "
                          "to the network's outputs there", 80)
    above = 0.15 + 0.2 * len(title)  # inches: title and legend
    height = above + 0.75 + 0.17 * len(machines) + 0.36 * len(lines)
    figure = new_figure(10, height)
    figure.text(0.012, 1 - 0.1 / height, "\n".join(title), fontsize=12, va="top")
    figure.text(0.012, 0.08 / height, "\n".join(machines), fontsize=8, color="0.3")

    latency, throughput = figure.subplots(1, 2, sharey=True)
    batch_sizes = sorted({batch_size for _, points in lines for batch_size in points})
    draw_points(latency, throughput, lines, batch_sizes)
    for panel, title in ((latency, "median latency, ms per batch (line: to p90"
                          + ("; published: mean)" if published else ")")),
                         (throughput, "throughput, images per second")):
        dress_panel(panel, title, room=0.12 if len(records) == 1 else 0.25)
        panel.axhspan(len(measured) - 0.5, len(lines) - 0.5, color="0.93", zorder=0)
    latency.set_yticks(range(len(lines)))
    latency.set_yticklabels([name for name, _ in lines])
    latency.set_ylim(len(lines) - 0.5, -0.5)
    figure.legend(*latency.get_legend_handles_labels(), loc="upper right", ncol=len(batch_sizes),
                  frameon=False, fontsize=10)
    figure.tight_layout(rect=(0, 0.17 * (len(machines) + 0.5) / height, 1, 1 - above / height))
    save_figure(figure, path)


def draw_points(latency, throughput, lines, batch_sizes):
    """Each engine's points on its line of both panels, with a marker for each batch size."""
    for batch_size, (marker, face, offset) in zip(batch_sizes, itertools.cycle(MARKERS)):
        style = dict(marker=marker, color="black", markerfacecolor=face, markersize=6,
                     linestyle="none", label=f"batch {batch_size}")
        for place, (_, points) in enumerate(lines):
            if batch_size not in points:
                continue
            y = place + offset
            median, p90, speed, note = points[batch_size]
            latency.plot([median, p90], [y, y], color="black", linewidth=1)
            latency.plot(median, y, **style)
            throughput.plot(speed, y, **style)
            add_text(latency, p90, y, milliseconds(median))
            add_text(throughput, speed, y, f"{speed:,.0f}{note}")
            style["label"] = None


def dress_panel(panel, title, room):
    """A panel's title and its logarithmic axis, with `room` for the numbers beside the points."""
    from matplotlib.ticker import FuncFormatter
    panel.set_title(title, fontsize=10)
    panel.set_xscale("log")
    low, high = panel.get_xlim()
    panel.set_xlim(low, high * (high / low) ** room)
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    panel.grid(axis="x", color="0.85", linewidth=0.6)
    panel.tick_params(labelsize=9, length=2)
    panel.set_axisbelow(True)


def add_text(panel, x, y, text):
    """A small number to the right of a marker."""
    panel.annotate(text, (x, y), (5, 0), textcoords="offset points", fontsize=7, va="center")


def plot_lines(records):
    """The plot's lines, measured and published: (name, {batch size: (median in ms, p90 in ms or
    the median where there is none, images per s, text to add)})."""
    measured = collections.OrderedDict()
    several = len(networks_of(row for record in records for row in record["rows"])) > 1
    for row in merge_rows(records):
        times = row["end_to_end"]
        name = row_name(row, several)
        note = " WRONG" if row["status"] == "failed" else ""
        if len(records) > 1:
            name += "  " + row["letter"]
            note += f"  {ratio(row['ratio'])}" if row["ratio"] != 1 else ""
        measured.setdefault(name, {})[row["batch_size"]] = (
            times["median_ms"], times["p90_ms"] or times["median_ms"], times["images_per_s"], note)
    published = []
    for who, seconds in PUBLISHED if all(map(is_of_mnist, records)) else ():
        points = {}
        for batch_size, total in seconds.items():
            mean = total * 1e3 / -(-PUBLISHED_IMAGES // batch_size)
            points[batch_size] = (mean, mean, PUBLISHED_IMAGES / total, "")
        published.append(("published, " + who, points))
    return list(measured.items()), published


# --- Mistakes -------------------------------------------------------------------------------------

MISTAKES_SHOWN = 120


def plot_mistakes(path, images, targets, outputs, network):
    """Save the figure of `draw_mistakes`; where values are predicted, of `draw_values`."""
    draw = draw_values if network.image_set.task == "regression" else draw_mistakes
    save_figure(draw(images, targets, outputs, network), path)


def draw_mistakes(images, targets, log_probs, network):
    """A figure of the confusion matrix, and of the misread images, the surest first.

    images uint8 (N, C, H, W), targets (N,), log_probs float32 (N, K) of a `Network`. An image's
    caption: its number, its class, what it was read as, and with which probability.
    """
    import numpy as np
    predictions = log_probs.argmax(1)
    wrong = np.flatnonzero(predictions != targets)
    surest = np.argsort(-log_probs[wrong, predictions[wrong]], kind="stable")
    surest = wrong[surest][:MISTAKES_SHOWN]
    columns = 10
    rows = max(-(-len(surest) // columns), 4)
    width, height = 15, max(6.2, 1.3 * rows + 1.2)
    figure = new_figure(width, height, dpi=110)
    classes = [name if len(name) < 12 else name[:10] + "…" for name in network.image_set.classes]
    text = f"{network.origin}: {len(wrong):,} of {len(targets):,} images misread"
    if len(surest) < len(wrong):
        text += f", the {len(surest)} surest shown"
    figure.text(0.01, 1 - 0.12 / height, text, fontsize=13, va="top")
    draw_confusion(figure.add_axes([0.035, 1 - 5.7 / height, 5 / width, 5 / height]), targets,
                   predictions, classes)
    for k, index in enumerate(surest):
        row, column = divmod(k, columns)
        panel = figure.add_axes([(5.8 + 0.9 * column) / width, 1 - (1.75 + 1.3 * row) / height,
                                 0.8 / width, 0.8 / height])
        show_image(panel, images[index])
        panel.set_xticks([])
        panel.set_yticks([])
        sure = f"{np.exp(log_probs[index, predictions[index]]):.0%}"
        caption = f"#{index}\n{classes[targets[index]]} read {classes[predictions[index]]}, {sure}"
        if max(map(len, classes)) > 1:
            caption = f"#{index} {sure}\n{classes[targets[index]]}\n→ {classes[predictions[index]]}"
        panel.set_title(caption, fontsize=7 if max(map(len, classes)) == 1 else 5.5, pad=2)
    return figure


def show_image(panel, image):
    """An image, uint8 (C, H, W): grey levels as ink on paper, or colours."""
    panel.imshow(as_picture(image), cmap="gray_r", vmin=0, vmax=255)


def draw_confusion(panel, targets, predictions, classes):
    """How many images of each class were read as what; the mistakes are shaded."""
    import numpy as np
    number = len(classes)
    matrix = np.zeros((number, number), int)
    np.add.at(matrix, (targets, predictions), 1)
    mistakes = matrix * (1 - np.eye(number, dtype=int))
    panel.imshow(mistakes, cmap="Oranges", vmin=0, vmax=max(1, mistakes.max()))
    for label, prediction in zip(*np.nonzero(matrix)):
        panel.text(prediction, label, matrix[label, prediction], ha="center", va="center",
                   fontsize=min(8, 80 / number), color="0.55" if label == prediction else
                   "white" if 2 * mistakes[label, prediction] > mistakes.max() else "black")
    label_cells(panel, classes, classes, "class", "read as",
                rotation=0 if max(map(len, classes)) == 1 else 90)
    panel.tick_params(labelsize=min(9, 180 / number))


def label_cells(panel, down, across, ylabel, xlabel, **how):
    """Names beside the rows and, drawn so, below the columns of a picture that is a table."""
    panel.set(xticks=range(len(across)), yticks=range(len(down)), xlabel=xlabel, ylabel=ylabel)
    panel.set_xticklabels(across, **how)
    panel.set_yticklabels(down)
    panel.tick_params(length=0)


def draw_values(images, targets, values, network):
    """A figure of predictions against targets, and of the worst frames.

    images uint8 (N, C, H, W), targets and values float32 (N, K) of a `Network`.
    """
    import numpy as np
    image_set = network.image_set
    names, worst = image_set.classes, np.argsort(-np.abs(values - targets).max(1))[:8]
    figure = new_figure(4 * len(names) + 6, 4, dpi=110)
    grid = figure.add_gridspec(2, 4 * len(names) + 8)
    for column, name in enumerate(names):
        panel = figure.add_subplot(grid[:, 4 * column:4 * column + 3])
        panel.plot(targets[:, column], values[:, column], ".", color="black", markersize=3)
        limits = np.array([min(panel.get_xlim()[0], panel.get_ylim()[0]),
                           max(panel.get_xlim()[1], panel.get_ylim()[1])])
        panel.plot(limits, limits, color="0.7", zorder=0)
        panel.set(xlabel=f"{name}, target", ylabel="predicted", xlim=limits, ylim=limits)
    for place, index in enumerate(worst):
        left = 4 * len(names) + 2 * (place % 4)
        panel = figure.add_subplot(grid[place // 4, left:left + 2])
        show_image(panel, images[index])
        panel.set_axis_off()
        panel.set_title(f"#{index}: {image_set.describe(targets[index])}\n"
                        f"read {image_set.describe(values[index])}", fontsize=6)
    return figure


# --- Precisions and networks ----------------------------------------------------------------------


def draw_trade_off(panel, points, xlabel):
    """What is misread over what it costs, on logarithmic axes: {name: (cost, share read)}."""
    by_share = sorted(points.items(), key=lambda point: point[1][::-1])  # neighbours in a row
    for k, (name, (cost, share)) in enumerate(by_share):
        misread = max(100 - share * 100, 0.01)  # none misread has no place on such an axis
        panel.plot(cost, misread, "o", color="black")
        panel.annotate(name, (cost, misread), (0, 7 if k % 2 else -14), ha="center",
                       textcoords="offset points", fontsize=8)
    panel.set_xscale("log")
    panel.set_yscale("log")
    plain_ticks(panel.xaxis)
    plain_ticks(panel.yaxis)
    panel.margins(0.15)
    panel.set_xlabel(xlabel)
    panel.grid(alpha=0.3, which="both")


# --- A training -----------------------------------------------------------------------------------


def plot_training(path, record):
    """Draw a training's record: loss and error rate (or RMSE) by epoch."""
    watched = "held-out" if record["settings"]["validate"] else "test"
    figure = new_figure(9, 3.5, dpi=120)
    draw_training(figure, record["epochs"], watched)
    result = record["result"]
    score = (f"RMSE {result['rmse']:.4f} on" if "rmse" in result
             else f"{result['accuracy']:.2%} of")
    figure.suptitle(f"{record['settings']['network']}: {score} the test images after "
                    f"{len(record['epochs'])} epochs, {result['seconds']:.0f} s")
    figure.tight_layout(rect=(0, 0, 1, 0.97))
    save_figure(figure, path)


def draw_training(figure, history, watched):
    """The two panels of a history (see `train`); `watched`: "test" or "held-out"."""
    epochs = [line["epoch"] for line in history]
    left, right = figure.subplots(1, 2)
    left.plot(epochs, [line["train_loss"] for line in history], "o-", label="training")
    left.plot(epochs, [line["loss"] for line in history], "s--", label=watched)
    left.set(xlabel="epoch", ylabel="mean loss", yscale="log")
    left.legend()
    regression = "rmse" in history[0]
    right.plot(epochs, [line["rmse"] if regression else 100 - line["accuracy"] * 100
                        for line in history], "s--", color="C1")
    right.set(xlabel="epoch", yscale="log",
              ylabel=f"{watched} {'RMSE' if regression else 'error rate, %'}")
    for axes in (left, right):
        plain_ticks(axes.yaxis)
        axes.grid(alpha=0.3, which="both")
        axes.margins(x=0.03)
        axes.xaxis.get_major_locator().set_params(integer=True)
