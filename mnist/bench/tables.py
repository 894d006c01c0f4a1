"""How a run's numbers are shown: tables, Markdown, plots, and records read back and merged.

A record is what `mnist.bench.stopwatch.make_record` makes and `--json` writes, or a study's.
"""

import collections
import itertools
import json
import string
import textwrap

from mnist.bench.stopwatch import SCHEMA
from mnist.cli import dashed
from mnist.errors import UnavailableError
from mnist.files import save_json
from mnist.machine import describe_machine

# --- Tables ---------------------------------------------------------------------------------------


def milliseconds(value):
    """At most six characters for a time in ms, with three or four digits that mean something."""
    if value is None:
        return "-"
    return f"{value:.{3 if value < 10 else 2 if value < 100 else 1 if value < 1000 else 0}f}"


TABLE_WIDTH = 100

# The table's columns: two lines of header, and how a row fills them. The first ones name the row.
COLUMNS = (
    ("engine", "", lambda row: row["engine"]),
    ("on", "", lambda row: f"{row['device']} {row['precision']}".rstrip()),
    ("network", "", lambda row: row["network"]),
    ("batch", "", lambda row: str(row["batch_size"])),
    ("total", "s", lambda row: f"{row['end_to_end']['total_s']:.3f}"),
    ("images", "per s", lambda row: f"{row['end_to_end']['images_per_s']:.0f}"),
    ("median", "ms", lambda row: milliseconds(row["end_to_end"]["median_ms"])),
    ("p90", "ms", lambda row: milliseconds(row["end_to_end"]["p90_ms"])),
    ("p99", "ms", lambda row: milliseconds(row["end_to_end"]["p99_ms"])),
    ("first", "ms", lambda row: milliseconds(row["end_to_end"]["first_call_ms"])),
    ("compute", "ms", lambda row: milliseconds(row["compute"]["median_ms"])),
    ("correct", "%", lambda row: f"{row['accuracy']:.2%}"[:-1]),
    ("RMSE", "", lambda row: f"{row['rmse']:.4f}"),
    ("loss", "", lambda row: "-" if row["loss"] is None else f"{row['loss']:.4f}"),
    ("max", "diff", lambda row: "nan" if row["max_difference"] is None
     else f"{row['max_difference']:.0e}"),
)

LEGEND = """\
total, images per s, median, p90, p99, first: end-to-end, from pixels to log-probabilities in host
memory; median, p90, p99 and first (the open engine's first call) per batch. compute: the network
alone, median per batch. max diff: largest difference of a log-probability from torch in float32."""


def networks_of(rows):
    """The names of the networks in some rows, each once, in their order."""
    return list(collections.OrderedDict.fromkeys(row["network"] for row in rows))


def row_name(row, with_network):
    """A row's name without its batch size: "torch cpu fp32", "torch cpu fp32 net"."""
    name = f"{row['engine']} {row['device']} {row['precision']}"
    return f"{name} {row['network']}" if with_network else name


def columns_for(rows, left_out=()):
    """The columns of a table with these rows: the network's where there are several."""
    left_out += ("correct",) if any("rmse" in row for row in rows) else ("RMSE",)
    if len(networks_of(rows)) == 1:
        left_out += ("network",)
    return [column for column in COLUMNS if column[0] not in left_out]


def names_in(columns):
    """How many of the columns name the row: those up to the batch size."""
    return 1 + [column[0] for column in columns].index("batch")


def format_table(rows, columns):
    """Rows of the record as lines of text, numbers right-aligned; a row that didn't run keeps
    its place and says why."""
    names = names_in(columns)
    header = [[column[part] for column in columns] for part in (0, 1)]
    body = list(table_cells(rows, columns))
    lines = header + [cells for cells, _ in body]
    aligned = align(lines, names - 1)
    indent = " " * (max(map(len, align([line[:names] for line in lines]))) + 2)
    table = aligned[:2] + ["-" * max(map(len, aligned))]
    for line, (cells, reason) in zip(aligned[2:], body):
        measured = len(cells) > names
        if measured or not reason:
            table.append(line)
        if reason:  # to the right of the row's name, below its numbers if there are any
            lead = indent if measured else line.ljust(len(indent) - 1) + " "
            table += textwrap.wrap(reason, TABLE_WIDTH, initial_indent=lead,
                                   subsequent_indent=indent)
    return "\n".join(table)


def format_markdown(rows, columns):
    """The same table in Markdown."""
    names = names_in(columns)
    lines = [[f"{top} {unit}".strip().replace(" -", "-") for top, unit, _ in columns]]
    for cells, reason in table_cells(rows, columns):
        if reason and len(cells) > names:
            cells[0] += f" ({reason})"
        elif reason:
            cells += [reason] + [""] * (len(columns) - names - 1)
        lines.append(cells)
    return as_markdown(lines, range(names - 1))


def as_markdown(lines, left=(0,)):
    """Lines of cells, the first the header, as a table in Markdown; `left`: the columns that aren't
    numbers."""
    header = lines[0]
    rule = ["---" if k in left else "--:" for k in range(len(header))]
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, rule] + lines[1:])


def table_cells(rows, columns):
    """Yield for each line of the table its cells, and what is wrong with it, or None.

    Rows that weren't measured have the cells of their name alone, and share a line where only
    their precisions, networks and batch sizes differ.
    """
    def alike(row):
        skipped = row["end_to_end"] is None
        return (skipped, row["engine"], row["device"], skipped or row["precision"], row["reason"])

    def each_once(rows, name):
        return " ".join(collections.OrderedDict.fromkeys(str(row[name]) for row in rows))

    names = names_in(columns)
    for (skipped, *_), group in itertools.groupby(rows, alike):
        group = list(group)
        if skipped:
            several = len({row["precision"] for row in group}) > 1
            group = [dict(group[0], batch_size=each_once(group, "batch_size"),
                          network=each_once(group, "network"),
                          precision="" if several else group[0]["precision"])]
        for row in group:
            reason = None if row["status"] == "ok" else f"{row['status']}: {row['reason']}"
            yield [fill(row) for _, _, fill in (columns[:names] if skipped else columns)], reason


def align(lines, names=1, gap=" "):
    """Lines of cells as lines of text: the first `names` columns to the left, numbers to the right.

    A line may be shorter than the others.
    """
    columns = max(map(len, lines))
    widths = [max(len(line[k]) for line in lines if k < len(line)) for k in range(columns)]
    return [gap.join(cell.ljust(width) if k < names else cell.rjust(width)
                     for k, (cell, width) in enumerate(zip(line, widths))).rstrip()
            for line in lines]


def format_report(record, markdown=False):
    """What it was, table, legend, machine and warnings of a record."""
    rows = record["rows"]
    return assemble(record, columns_for(rows, left_out=("network",)), LEGEND, markdown)


def assemble(record, columns, legend, markdown):
    """The parts of a report; in Markdown without the legend."""
    if markdown:
        return "\n\n".join([describe_settings(record),
                            format_markdown(record["rows"], columns)] + notes(record))
    return "\n\n".join([describe_settings(record) + "\n" + format_table(record["rows"], columns),
                        legend, "\n".join(notes(record))])


def describe_settings(record):
    """What was timed: networks with their weights, the digits, how often."""
    weights = collections.OrderedDict((row["network"], row["weights"]) for row in record["rows"])
    networks = ", ".join(f"{name} from {origin}" for name, origin in weights.items())
    data = record["settings"]["data"]
    data = ("GENERATED digits, not MNIST" if data == "generated" else
            f"test {'digits' if data == 'MNIST' else 'images'} of {data}")
    passes = [row["passes"] for row in record["rows"] if row["end_to_end"]]
    made = [f"{number:.3g}" for number in sorted({min(passes), max(passes)})] if passes else []
    made = "; passes made: " + " to ".join(made) if made else ""
    return textwrap.fill(f"{networks} on {record['rows'][0]['images']:,} {data}{made}",
                         TABLE_WIDTH)


def publish(record, json_path, report=None, interrupted=False):
    """Print the report (text; None: `format_report`'s), write the JSON where asked for; gives the
    exit status: 1 where a row failed.

    Raises KeyboardInterrupt, once all that is done, where the run was `interrupted`.
    """
    print(report or format_report(record), flush=True)
    measured = any(row["end_to_end"] for row in record["rows"])
    if json_path and (measured or not interrupted):  # never lose a record for nothing
        save_json(json_path, record)
    if interrupted:
        raise KeyboardInterrupt
    return int(any(row["status"] == "failed" for row in record["rows"]))


def notes(record):
    """The machine and the warnings of a record, each a text of lines that fit the screen."""
    texts = describe_machine(record["machine"]).split("\n")
    texts += ["warning: " + text for text in record["warnings"]]
    return [textwrap.fill(text, TABLE_WIDTH) for text in texts]


# --- Comparisons ----------------------------------------------------------------------------------

# What was published by the scripts this collection follows, a public GitHub collection of MNIST
# scripts for the Jetson Nano: where, and seconds for 10,000 digits by batch size.
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


COMPARISON_LEGEND = LEGEND + """
speed-up: of end-to-end, over torch on the CPU in float32, the first network, same batch size."""


def format_comparison(record, markdown=False):
    """A report with speed-ups and the published reference."""
    columns = columns_for(record["rows"], left_out=("loss",))
    columns.append(("speed", "-up", lambda row: ratio(row["speed_up"])))
    legend = COMPARISON_LEGEND
    if is_of_mnist(record):
        legend += "\n\n" + format_published()
    return assemble(record, columns, legend, markdown)


def add_speed_ups(rows):
    """Give each row its speed-up over torch on the CPU in float32 at the same batch size, with the
    first network; None without."""
    base = {}
    for row in rows:
        if (row["engine"], row["device"], row["precision"]) == ("torch", "cpu", "fp32") \
                and row["end_to_end"]:
            base.setdefault(row["batch_size"], row["end_to_end"]["images_per_s"])
    for row in rows:
        reference = base.get(row["batch_size"])
        row["speed_up"] = (row["end_to_end"]["images_per_s"] / reference
                           if row["end_to_end"] and reference else None)


def is_of_mnist(record):
    """Whether a record is of MNIST's images, as the published reference is."""
    return record["settings"].get("image_set", "mnist") == "mnist"


def format_published():
    """The published reference, as text."""
    lines = [f"published by the scripts this collection follows, seconds for {PUBLISHED_IMAGES:,} "
             "digits:"]
    for who, seconds in PUBLISHED:
        lines.append(f"  {who:24}" + "".join(f"batch {batch_size}: {seconds[batch_size]:5.1f}   "
                                             for batch_size in sorted(seconds)))
    return "\n".join(line.rstrip() for line in lines)


# --- Several records ------------------------------------------------------------------------------


# A, B, … Z, AA, AB … ZZ: one for each record.
LETTERS = [*string.ascii_uppercase,
           *map("".join, itertools.product(string.ascii_uppercase, repeat=2))]

RECORDS_LEGEND = """\
total, images per s, median, p90: end-to-end, from pixels to log-probabilities in host memory;
median and p90 per batch. compute: the network alone, median per batch. ratio: images per s,
compared with the first record that has this row."""


def format_records(names, records, markdown=False):
    """Several records beside each other; `names` are those of their files."""
    rows = merge_rows(records)
    columns = columns_for(rows, left_out=("loss", "p99", "first"))
    columns.insert(names_in(columns), ("", "", lambda row: row["letter"]))
    columns.append(("ratio", "", lambda row: ratio(row["ratio"])))
    between = "\n\n" if markdown else "\n"
    sources = [between.join([f"{letter}: {name}, {record['machine']['utc']}",
                             describe_settings(record)] + notes(record))
               for letter, name, record in zip(LETTERS, names, records)]
    table = format_markdown if markdown else format_table
    parts = [table(rows, columns), RECORDS_LEGEND] + sources
    if len({record["settings"].get("data_sha256") for record in records}) > 1:
        parts.insert(0, "warning: not all of these records are of the same images (see below): "
                        "compare no accuracies")
    if not markdown and all(map(is_of_mnist, records)):
        parts.append(format_published())
    return "\n\n".join(parts)


def read_record(path):
    """A record that `--json` wrote. Raises UnavailableError where the file isn't one."""
    try:
        with open(path, encoding="utf-8") as file:
            record = json.load(file)
        if record["schema"] == SCHEMA and record["machine"]["utc"] and record["rows"][0]["network"]:
            if not any(row["end_to_end"] for row in record["rows"]):
                raise UnavailableError(f"nothing was measured in {path}")
            return record
    except OSError as error:
        raise UnavailableError(f"can't read {path}: {error.strerror}") from error
    except (ValueError, KeyError, IndexError, TypeError):
        pass
    raise UnavailableError(f"{path} is not a record that --json wrote")


def row_key(row):
    return row["engine"], row["device"], row["precision"], row["network"], row["batch_size"]


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


# --- A study --------------------------------------------------------------------------------------


def setting_text(value):
    """A setting's value for people; older records have booleans."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def format_study(record, markdown=False, most=None):
    """A study's ranking: what was varied, the accuracy, the seconds. `most`: so many rows at most.

    record  as `SearchMNIST.py --json` writes it
    """
    varied = record["varied"]
    lines = [[""] + [dashed(name) for name in varied] + ["held-out %", "±", "s", ""]]
    for place, row in enumerate(record["rows"][:most], 1):
        deviation = "-" if row["deviation"] is None else f"{row['deviation'] * 100:.2f}"
        lines.append(
            [str(place)] + [setting_text(row["settings"][name]) for name in varied]
            + ["diverged" if row["diverged"] else f"{row['mean'] * 100:.2f}", deviation,
               f"{row['seconds']:.1f}",
               f"stopped after epoch {row['epochs']}" if row["pruned"] else
               "not told apart from the best" if place > 1 and row["as_good_as_the_best"] else ""])
    if markdown:
        return as_markdown(lines, left=[len(lines[0]) - 1])
    notes = [line.pop() for line in lines]
    return "\n".join((text + "  " + note).rstrip()
                     for text, note in zip(align(lines, 0, "  "), notes))
