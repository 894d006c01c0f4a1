"""Time every engine of this machine side by side, over the 10,000 test digits.

examples:
  python CompareMNIST.py                                  everything usable here, about a minute
  python CompareMNIST.py --plot compare.png --json compare.json
  python CompareMNIST.py --engine torch torch-compile onnxruntime --device cpu --threads 1
  python CompareMNIST.py --markdown                       a table to paste into a page
  python CompareMNIST.py --compare a.json b.json --plot both.png      two machines, versions, days

The engines take turns, so that what disturbs this machine for a while disturbs all of them alike.
An engine that can't run keeps its row and says why. One whose answers are wrong is marked, and the
exit status is 1.
"""

import collections
import itertools
import json
import os
import sys
import time

import MNISTtiming
from MNISTmachine import describe_machine
from MNISTscript import (
    UnavailableError,
    add_flags,
    describe_error,
    keep_stdout_for_json,
    make_parser,
    run_program,
    write_atomically,
)

# What was published for this network: who, and seconds for 10,000 digits by batch size.
PUBLISHED = (
    ("Intel i7, Windows: CPU", {1: 13.5, 64: 4.9}),
    ("Jetson Nano: CPU", {1: 104.0, 64: 34.0}),
    ("Jetson Nano: CUDA", {1: 81.0, 64: 20.0}),
    ("Jetson Nano: TensorRT", {1: 50.0}),
)
PUBLISHED_IMAGES = 10000


def main():
    arguments = parse_arguments()
    keep_stdout_for_json(arguments.json)
    if arguments.plot:
        check_plot(arguments.plot)
    if arguments.compare:
        return compare_records(arguments)
    return compare_engines(arguments)


def parse_arguments():
    parser = make_parser(__doc__)
    add_flags(parser, "data", "data-dir", "weights", "trust-pickle")
    parser.add_argument("--engine", nargs="+", metavar="NAME",
                        help="engines to time (default: all but torch-compile, which takes minutes "
                             "to prepare)")
    parser.add_argument("--device", nargs="+", choices=("cpu", "cuda"),
                        help="where to run (default: cpu cuda)")
    parser.add_argument("--precision", nargs="+", choices=("fp32", "fp16"),
                        help="what to compute in (default: fp32 fp16)")
    add_flags(parser, "batch-size", "threads", "limit", "repeat", "json", "plot")
    parser.add_argument("--markdown", action="store_true", help="print the table in Markdown")
    parser.add_argument("--compare", nargs="+", metavar="FILE",
                        help="measure nothing; show these records (from --json) beside each other")
    arguments = parser.parse_args()
    if arguments.compare and arguments.json:
        parser.error("--compare measures nothing that --json could write")
    return arguments


# --- Measuring ------------------------------------------------------------------------------------


def compare_engines(arguments):
    """Time every engine asked for; gives the exit status."""
    from MNISTdsource import load_digits
    from MNISTengine import reference_answers, set_threads
    from MNISTmodel import load_weights

    wanted = wanted_engines(arguments)
    threads = set_threads(arguments.threads)
    net = load_weights(arguments.weights, arguments.trust_pickle)
    images, labels, source = load_digits("test", arguments.data, arguments.data_dir,
                                         arguments.limit)
    reference = reference_answers(net, images)

    entries = [start(net, images, combination, batch_size)
               for combination in wanted for batch_size in arguments.batch_size]
    others = MNISTtiming.OtherPrograms()
    MNISTtiming.take_turns([stopwatch for stopwatch, _ in entries if stopwatch], arguments.repeat)
    used_by_others = others.share()
    rows = [dict(stopwatch.row(labels, reference), **notes) if stopwatch else notes
            for stopwatch, notes in entries]
    for stopwatch, _ in entries:
        if stopwatch:
            stopwatch.engine.close()
    add_speed_ups(rows)
    settings = {"weights": os.path.basename(arguments.weights), "data": source,
                "threads": threads, "repeat": arguments.repeat}
    record = MNISTtiming.make_record(settings, rows, used_by_others)
    if arguments.plot:
        save_plot(arguments.plot, [record])
    return MNISTtiming.publish(record, arguments.json, format_report(record, arguments.markdown))


def wanted_engines(arguments):
    """The (engine, device, precision) to time, whether usable here or not.

    Raises UnavailableError where nothing that was asked for by name can be had.
    """
    from MNISTengine import ENGINES, why_not
    for name in arguments.engine or []:
        why_not(name)  # raises for a name that no engine has
    wanted = [(kind.name, device, precision)
              for kind in ENGINES.values()
              if (kind.name in arguments.engine if arguments.engine else not kind.on_request)
              for device in arguments.device or ("cpu", "cuda") if device in kind.devices
              for precision in arguments.precision or ("fp32", "fp16")
              if precision in kind.precisions]
    for named in (arguments.engine, arguments.device, arguments.precision):
        for name in named or []:
            reasons = [why_not(*combination) for combination in wanted if name in combination]
            if all(reasons):
                raise UnavailableError(
                    f"{name}: {reasons[0] if reasons else 'no engine does all that was asked for'}")
    return wanted


def start(net, images, combination, batch_size):
    """Open and warm up an engine, saying so: (its stopwatch, what its row says beside the times);
    (None, its whole row) where it can't be had."""
    from MNISTengine import open_engine, why_not
    status, reason = "skipped", why_not(*combination)
    if not reason:
        name, device, precision = combination
        started = time.perf_counter()
        try:
            engine = open_engine(name, net, device, precision, batch_size)
            seconds = time.perf_counter() - started
            print(f"{name} {device} {precision} batch {batch_size}: ready after {seconds:.1f} s "
                  f"({engine.detail})", file=sys.stderr, flush=True)
            stopwatch = MNISTtiming.Stopwatch(engine, images)
            return stopwatch, {"detail": engine.detail, "prepare_s": seconds}
        except UnavailableError as error:
            reason = str(error)
        except Exception as error:  # whatever breaks one engine, the others still run
            status, reason = "failed", describe_error(error)
    reason = " ".join(reason.split())
    return None, MNISTtiming.empty_row(*combination, batch_size, len(images), status, reason)


def add_speed_ups(rows):
    """Give each row its speed-up over torch on the CPU at the same batch size; None without."""
    speed = {row["batch_size"]: row["end_to_end"]["images_per_s"] for row in rows
             if (row["engine"], row["device"]) == ("torch", "cpu") and row["end_to_end"]}
    for row in rows:
        base = speed.get(row["batch_size"])
        row["speed_up"] = row["end_to_end"] and base and row["end_to_end"]["images_per_s"] / base


# --- Reporting ------------------------------------------------------------------------------------


def ratio(value):
    """A ratio with three digits: 12.3x."""
    return "-" if value is None else f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}x"


COLUMNS = [column for column in MNISTtiming.COLUMNS if column[0] != "loss"]
COLUMNS.append(("speed", "-up", lambda row: ratio(row.get("speed_up"))))

LEGEND = MNISTtiming.LEGEND + """
speed-up: of end-to-end, over torch on the CPU at the same batch size."""


def format_report(record, markdown=False):
    """Table, legend, published reference, machine and warnings of one record, as text."""
    if markdown:
        return "\n\n".join([MNISTtiming.format_markdown(record["rows"], COLUMNS)]
                           + MNISTtiming.notes(record))
    return "\n\n".join([MNISTtiming.format_table(record["rows"], COLUMNS), LEGEND,
                        format_published(), "\n".join(MNISTtiming.notes(record))])


def format_published():
    """The published reference, as text."""
    lines = [f"published for this network, seconds for {PUBLISHED_IMAGES:,} digits:"]
    for who, seconds in PUBLISHED:
        lines.append(f"  {who:24}" + "".join(f"batch {batch_size}: {seconds[batch_size]:5.1f}   "
                                             for batch_size in sorted(seconds)))
    return "\n".join(line.rstrip() for line in lines)


# --- Several records ------------------------------------------------------------------------------

RECORDS_COLUMNS = [column for column in COLUMNS if column[0] not in ("p99", "first", "speed")]
RECORDS_COLUMNS.insert(3, ("", "", lambda row: row["letter"]))
RECORDS_COLUMNS.append(("ratio", "", lambda row: ratio(row["ratio"])))

RECORDS_LEGEND = """\
total, images per s, median, p90: end-to-end, from pixels to log-probabilities in host memory;
median and p90 per batch. compute: the network alone, median per batch. ratio: images per s,
compared with the first record that has this row."""


def compare_records(arguments):
    """Show several records beside each other."""
    records = [read_record(path) for path in arguments.compare]
    rows = merge_rows(records)
    sources = ["\n".join([f"{letter}: {os.path.basename(path)}, {record['machine']['utc']}"]
                         + MNISTtiming.notes(record))
               for letter, path, record in zip(LETTERS, arguments.compare, records)]
    table = MNISTtiming.format_markdown if arguments.markdown else MNISTtiming.format_table
    parts = [table(rows, RECORDS_COLUMNS), RECORDS_LEGEND] + sources
    if not arguments.markdown:
        parts.append(format_published())
    print("\n\n".join(parts))
    if arguments.plot:
        save_plot(arguments.plot, records)


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


# --- The plot -------------------------------------------------------------------------------------


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
            add_text(latency, p90, y, MNISTtiming.milliseconds(median))
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


if __name__ == "__main__":
    run_program(main)
