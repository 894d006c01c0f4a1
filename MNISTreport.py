"""How a run's numbers are shown: tables, Markdown, plots, and records read back and merged.

A record is what `MNISTtiming.make_record` makes and `--json` writes.
"""

import collections
import itertools
import json
import os
import textwrap

from MNISTmachine import describe_machine
from MNISTscript import UnavailableError, save_json, write_atomically

# --- Tables ---------------------------------------------------------------------------------------

def milliseconds(value):
    """At most six characters for a time in ms, with three or four digits that mean something."""
    if value is None:
        return "-"
    return f"{value:.{3 if value < 10 else 2 if value < 100 else 1 if value < 1000 else 0}f}"


TABLE_WIDTH = 100

# The table's columns: two lines of header, and how a row fills them.
COLUMNS = (
    ("engine", "", lambda row: row["engine"]),
    ("on", "", lambda row: f"{row['device']} {row['precision']}"),
    ("batch", "", lambda row: str(row["batch_size"])),
    ("total", "s", lambda row: f"{row['end_to_end']['total_s']:.3f}"),
    ("images", "per s", lambda row: f"{row['end_to_end']['images_per_s']:.0f}"),
    ("median", "ms", lambda row: milliseconds(row["end_to_end"]["median_ms"])),
    ("p90", "ms", lambda row: milliseconds(row["end_to_end"]["p90_ms"])),
    ("p99", "ms", lambda row: milliseconds(row["end_to_end"]["p99_ms"])),
    ("first", "ms", lambda row: milliseconds(row["end_to_end"]["first_call_ms"])),
    ("compute", "ms", lambda row: milliseconds(row["compute"]["median_ms"])),
    ("correct", "%", lambda row: f"{row['accuracy']:.2%}"[:-1]),
    ("loss", "", lambda row: "-" if row["loss"] is None else f"{row['loss']:.4f}"),
    ("max", "diff", lambda row: "nan" if row["max_difference"] is None
     else f"{row['max_difference']:.0e}"),
)

LEGEND = """\
total, images per s, median, p90, p99, first: end-to-end, from pixels to log-probabilities in host
memory; median, p90, p99 and first (before any warm-up) per batch. compute: the network alone,
median per batch. max diff: largest difference of a log-probability from torch, CPU, float32."""


def format_table(rows, columns=COLUMNS):
    """Rows of the record as lines of text, numbers right-aligned; a row that didn't run keeps
    its place and says why."""
    header = [[column[part] for column in columns] for part in (0, 1)]
    body = list(table_cells(rows, columns))
    lines = header + [cells for cells, _ in body]
    widths = [max(len(line[k]) for line in lines if k < len(line)) for k in range(len(columns))]
    table = [align(line, widths) for line in header]
    table.append("-" * (sum(widths) + len(widths) - 1))
    for cells, reason in body:
        table.append(align(cells, widths))
        if reason:  # to the right of the row's name, below its numbers if there are any
            indent = " " * (sum(widths[:3]) + 4)
            lead = indent if len(cells) > 3 else table.pop().ljust(len(indent))
            table += textwrap.wrap(reason, TABLE_WIDTH, initial_indent=lead,
                                   subsequent_indent=indent)
    return "\n".join(table)


def format_markdown(rows, columns=COLUMNS):
    """The same table in Markdown."""
    header = [f"{top} {unit}".strip() for top, unit, _ in columns]
    lines = [header, ["---" if k < 2 else "--:" for k in range(len(columns))]]
    for cells, reason in table_cells(rows, columns):
        if reason and len(cells) > 3:
            cells[0] += f" ({reason})"
        elif reason:
            cells += [reason] + [""] * (len(columns) - 4)
        lines.append(cells)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def table_cells(rows, columns):
    """Yield for each line of the table its cells, and what is wrong with it, or None.

    Rows that weren't measured have the first three cells, and share a line where only their batch
    sizes differ.
    """
    def alike(row):
        return (row["end_to_end"] is None, row["engine"], row["device"], row["precision"],
                row["reason"])

    for (skipped, *_), group in itertools.groupby(rows, alike):
        group = list(group)
        if skipped:
            group = [dict(group[0], batch_size=" ".join(str(row["batch_size"]) for row in group))]
        for row in group:
            reason = None if row["status"] == "ok" else f"{row['status']}: {row['reason']}"
            yield [fill(row) for _, _, fill in (columns[:3] if skipped else columns)], reason


def align(line, widths):
    """One line of the table: the two columns of names to the left, the numbers to the right."""
    return " ".join(cell.ljust(width) if k < 2 else cell.rjust(width)
                    for k, (cell, width) in enumerate(zip(line, widths))).rstrip()


def format_report(record, columns=COLUMNS):
    """Table, legend, machine and warnings of a record, for the screen."""
    return "\n\n".join([format_table(record["rows"], columns), LEGEND, "\n".join(notes(record))])


def publish(record, json_path, report=None):
    """Print the report (text; None: `format_report`'s), write the JSON where asked for; gives the
    exit status: 1 where a row is wrong."""
    print(report or format_report(record))
    if json_path:
        save_json(json_path, record)
    return int(any(row["status"] == "failed" for row in record["rows"]))


def notes(record):
    """The machine and the warnings of a record, each a text of lines that fit the screen."""
    texts = describe_machine(record["machine"]).split("\n")
    texts += ["warning: " + text for text in record["warnings"]]
    return [textwrap.fill(text, TABLE_WIDTH) for text in texts]




# --- Comparisons ---------------------------------------------------------------------------------

# What was published for this network: who, and seconds for 10,000 digits by batch size.
PUBLISHED = (
    ("Intel i7, Windows: CPU", {1: 13.5, 64: 4.9}),
    ("Jetson Nano: CPU", {1: 104.0, 64: 34.0}),
    ("Jetson Nano: CUDA", {1: 81.0, 64: 20.0}),
    ("Jetson Nano: TensorRT", {1: 50.0}),
)
PUBLISHED_IMAGES = 10000


def ratio(value):
    """A ratio with three digits: 12.3x."""
    return "-" if value is None else f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}x"


COMPARE_COLUMNS = [column for column in COLUMNS if column[0] != "loss"]
COMPARE_COLUMNS.append(("speed", "-up", lambda row: ratio(row.get("speed_up"))))

COMPARE_LEGEND = LEGEND + """
speed-up: of end-to-end, over torch on the CPU at the same batch size."""


def format_comparison(record, markdown=False):
    """Table, legend, published reference, machine and warnings of one record, as text."""
    if markdown:
        return "\n\n".join([format_markdown(record["rows"], COMPARE_COLUMNS)]
                           + notes(record))
    return "\n\n".join([format_table(record["rows"], COMPARE_COLUMNS), COMPARE_LEGEND,
                        format_published(), "\n".join(notes(record))])


def format_published():
    """The published reference, as text."""
    lines = [f"published for this network, seconds for {PUBLISHED_IMAGES:,} digits:"]
    for who, seconds in PUBLISHED:
        lines.append(f"  {who:24}" + "".join(f"batch {batch_size}: {seconds[batch_size]:5.1f}   "
                                             for batch_size in sorted(seconds)))
    return "\n".join(line.rstrip() for line in lines)


RECORDS_COLUMNS = [column for column in COMPARE_COLUMNS
                   if column[0] not in ("p99", "first", "speed")]
RECORDS_COLUMNS.insert(3, ("", "", lambda row: row["letter"]))
RECORDS_COLUMNS.append(("ratio", "", lambda row: ratio(row["ratio"])))

RECORDS_LEGEND = """\
total, images per s, median, p90: end-to-end, from pixels to log-probabilities in host memory;
median and p90 per batch. compute: the network alone, median per batch. ratio: images per s,
compared with the first record that has this row."""
LETTERS = [chr(ord("A") + k) for k in range(26)]


def read_record(path):
    """A record that `--json` wrote. Raises UnavailableError where the file isn't one."""
    try:
        with open(path, encoding="utf-8") as file:
            record = json.load(file)
        if record["schema"] == 1 and record["machine"]["utc"] and record["rows"][0]["engine"]:
            return record
    except OSError as error:
        raise UnavailableError(f"can't read {path}: {error.strerror}") from error
    except (ValueError, KeyError, IndexError, TypeError):
        pass
    raise UnavailableError(f"{path} is not a record that --json wrote")


def row_key(row):
    return row["engine"], row["device"], row["precision"], row["batch_size"]


def merge_rows(records):
    """The measured rows of all records, those of the same engine together, each with its record's
    `letter` and its `ratio` to the first of them."""
    groups = collections.OrderedDict()
    for letter, record in zip(LETTERS, records):
        for row in record["rows"]:
            if row["end_to_end"]:
                groups.setdefault(row_key(row), []).append(dict(row, letter=letter))
    for rows in groups.values():
        for row in rows:
            row["ratio"] = (row["end_to_end"]["images_per_s"]
                            / rows[0]["end_to_end"]["images_per_s"])
    return [row for rows in groups.values() for row in rows]


def check_plot(path):
    """Raise UnavailableError where no plot could be saved there, before any time is spent."""
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except ImportError as error:
        raise UnavailableError("--plot needs matplotlib: pip install matplotlib") from error
    if plot_format(path) not in FigureCanvasBase.get_supported_filetypes():
        raise UnavailableError(f"--plot {path}: end it in .png, .svg or .pdf")


def plot_format(path):
    return os.path.splitext(path)[1][1:].lower()


# A marker and its place on the line for each batch size, told apart without colours.
MARKERS = (("o", "white", -0.15), ("s", "black", 0.15), ("^", "0.6", 0), ("D", "white", 0.3),
           ("v", "black", -0.3))


def save_plot(path, records):
    """Draw latency and throughput of every engine, from top to bottom as in the table."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter
    measured, published = plot_lines(records)
    lines = measured + published
    machines = [record["machine"]["utc"][:10] + ", "
                + describe_machine(record["machine"]).split("\n")[0] for record in records]
    if len(records) > 1:
        machines = [f"{letter}: {machine}" for letter, machine in zip(LETTERS, machines)]
    margin = 1.1 + 0.17 * len(machines)  # inches: title and legend above, machines below
    height = margin + 0.36 * len(lines)
    figure = Figure(figsize=(10, height), dpi=150)
    FigureCanvasAgg(figure)  # needs no display
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
    with write_atomically(path) as file:
        figure.savefig(file, format=plot_format(path))


def add_text(panel, x, y, text):
    """A small number to the right of a marker."""
    panel.annotate(text, (x, y), (5, 0), textcoords="offset points", fontsize=7, va="center")


def plot_lines(records):
    """The plot's lines, measured and published: (name, {batch size: (median in ms, p90 in ms or
    the median where there is none, images per s, text to add)})."""
    measured = collections.OrderedDict()
    for row in merge_rows(records):
        times = row["end_to_end"]
        name = f"{row['engine']} {row['device']} {row['precision']}"
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
