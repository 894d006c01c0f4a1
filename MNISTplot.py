"""What a run's numbers look like: the plot of a comparison, the digits that were misread.

Needs matplotlib, but no display.
"""

import collections
import itertools
import os

from MNISTmachine import describe_machine
from MNISTreport import (
    LETTERS,
    PUBLISHED,
    PUBLISHED_IMAGES,
    merge_rows,
    milliseconds,
    networks_of,
    ratio,
    row_name,
)
from MNISTscript import UnavailableError, check_writable, write_atomically


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


# --- A comparison ---------------------------------------------------------------------------------

# A marker and its place on the line for each batch size, told apart without colours.
MARKERS = (("o", "white", -0.15), ("s", "black", 0.15), ("^", "0.6", 0), ("D", "white", 0.3),
           ("v", "black", -0.3))


def save_plot(path, records):
    """Draw latency and throughput of every engine, from top to bottom as in the table."""
    from matplotlib.ticker import FuncFormatter
    measured, published = plot_lines(records)
    lines = measured + published
    machines = [record["machine"]["utc"][:10] + ", "
                + describe_machine(record["machine"]).split("\n")[0] for record in records]
    if len(records) > 1:
        machines = [f"{letter}: {machine}" for letter, machine in zip(LETTERS, machines)]
    margin = 1.1 + 0.17 * len(machines)  # inches: title and legend above, machines below
    height = margin + 0.36 * len(lines)
    figure = new_figure(10, height)
    figure.text(0.012, 1 - 0.1 / height, "Reading MNIST digits, end-to-end: from pixels to answers",
                fontsize=12, va="top")
    figure.text(0.012, 0.08 / height, "\n".join(machines), fontsize=8, color="0.3")

    latency, throughput = figure.subplots(1, 2, sharey=True)
    batch_sizes = sorted({batch_size for _, points in lines for batch_size in points})
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
    for panel, title in ((latency, "median latency, ms per batch (line: to p90)"),
                         (throughput, "throughput, digits per second")):
        panel.set_title(title, fontsize=10)
        panel.set_xscale("log")
        low, high = panel.get_xlim()  # with room for the numbers
        panel.set_xlim(low, high * (high / low) ** (0.12 if len(records) == 1 else 0.25))
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
        panel.grid(axis="x", color="0.85", linewidth=0.6)
        panel.axhspan(len(measured) - 0.5, len(lines) - 0.5, color="0.93", zorder=0)
        panel.tick_params(labelsize=9, length=2)
        panel.set_axisbelow(True)
    latency.set_yticks(range(len(lines)))
    latency.set_yticklabels([name for name, _ in lines])
    latency.set_ylim(len(lines) - 0.5, -0.5)
    figure.legend(*latency.get_legend_handles_labels(), loc="upper right", ncol=len(batch_sizes),
                  frameon=False, fontsize=10)
    figure.tight_layout(rect=(0, 0.17 * (len(machines) + 0.5) / height, 1, 1 - 0.35 / height))
    save_figure(figure, path)


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
    for who, seconds in PUBLISHED:
        points = {}
        for batch_size, total in seconds.items():
            mean = total * 1e3 / -(-PUBLISHED_IMAGES // batch_size)
            points[batch_size] = (mean, mean, PUBLISHED_IMAGES / total, "")
        published.append(("published, " + who, points))
    return list(measured.items()), published


# --- Mistakes -------------------------------------------------------------------------------------

MISTAKES_SHOWN = 120


def plot_mistakes(path, images, labels, answers, title):
    """Draw the confusion matrix, and the misread digits, the surest first.

    images uint8 (N, 28, 28), labels (N,), answers float32 (N, 10) log-probabilities. A digit's
    caption: its number, its label, what it was read as, and with which probability.
    """
    import numpy as np
    read = answers.argmax(1)
    wrong = np.flatnonzero(read != labels)
    surest = wrong[np.argsort(-answers[wrong, read[wrong]], kind="stable")][:MISTAKES_SHOWN]
    columns = 10
    rows = max(-(-len(surest) // columns), 4)
    width, height = 15, max(6.2, 1.3 * rows + 1.2)
    figure = new_figure(width, height, dpi=110)
    text = f"{title}: {len(wrong):,} of {len(labels):,} digits misread"
    if len(surest) < len(wrong):
        text += f", the {len(surest)} surest shown"
    figure.text(0.01, 1 - 0.12 / height, text, fontsize=13, va="top")
    draw_confusion(figure.add_axes([0.035, 1 - 5.7 / height, 5 / width, 5 / height]), labels, read)
    for k, index in enumerate(surest):
        row, column = divmod(k, columns)
        panel = figure.add_axes([(5.8 + 0.9 * column) / width, 1 - (1.75 + 1.3 * row) / height,
                                 0.8 / width, 0.8 / height])
        panel.imshow(images[index], cmap="gray_r", vmin=0, vmax=255)
        panel.set_xticks([])
        panel.set_yticks([])
        panel.set_title(f"#{index}\n{labels[index]} read {read[index]}, "
                        f"{np.exp(answers[index, read[index]]):.0%}", fontsize=7, pad=2)
    save_figure(figure, path)


def draw_confusion(panel, labels, read):
    """How many digits of each label were read as what; the mistakes are shaded."""
    import numpy as np
    matrix = np.zeros((10, 10), int)
    np.add.at(matrix, (labels, read), 1)
    mistakes = matrix * (1 - np.eye(10, dtype=int))
    panel.imshow(mistakes, cmap="Oranges", vmin=0, vmax=max(1, mistakes.max()))
    for label in range(10):
        for answer in range(10):
            if matrix[label, answer]:
                panel.text(answer, label, matrix[label, answer], ha="center", va="center",
                           fontsize=8, color="0.55" if label == answer else
                           "white" if 2 * mistakes[label, answer] > mistakes.max() else "black")
    panel.set_xticks(range(10))
    panel.set_yticks(range(10))
    panel.set_xlabel("read as")
    panel.set_ylabel("label")
    panel.tick_params(length=0)
