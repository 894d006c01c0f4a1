"""The stopwatch: how an engine is timed, and how the result is shown and stored.

Two times are taken, and always named. end-to-end: raw uint8 pixels in host memory to
log-probabilities in host memory, copies included, which is what a user gets. compute: the network
alone, its input already normalised and already where the engine wants it.

A latency is per batch, a throughput per image, a total for all the images of one pass.
"""

import gc
import time

from MNISTmachine import describe_machine, machine_record
from MNISTscript import save_json

WARM_UP_CALLS = 10
WARM_UP_SECONDS = 0.2

# A percentile needs this many calls beyond it to mean anything: p99 from 1,000 calls on.
CALLS_BEYOND_PERCENTILE = 10

# How far log-probabilities may lie from the reference before an engine is wrong, not merely
# rounded. They reach -40 or so, where float16 steps by 0.03, and layers add up such steps.
TOLERANCE = {"fp32": 1e-3, "tf32": 0.25, "fp16": 0.25}

# Medians of the consecutive fifths of a run that lie further apart than this are unsteady.
STEADY = 1.10


def time_engine(engine, images, labels, reference, repeat=1):
    """Time an engine over `images` and check its answers; gives a row of the record.

    images uint8 (N, 28, 28), labels (N,), reference float32 (N, 10), see
    `MNISTengine.reference_answers`. `repeat` passes are made for each of the two times.

    The last, shorter batch is timed as it comes and counts in the totals; latencies are of the
    full batches. No outlier is removed.
    """
    batches = [images[start:start + engine.batch_size]
               for start in range(0, len(images), engine.batch_size)]
    gc.collect()
    gc.disable()  # as timeit does: a collection in the middle of a call isn't the engine's time
    try:
        end_to_end, answers = clock(engine, batches, repeat, end_to_end_call)
        compute, _ = clock(engine, batches, repeat, compute_call)
    finally:
        gc.enable()
    row = empty_row(engine.name, engine.device, engine.precision, engine.batch_size, len(images))
    row.update(judge(answers, labels, reference, engine.precision))
    row.update(end_to_end=end_to_end, compute=compute)
    return row


def end_to_end_call(engine, batch):
    """Answers for a batch and the seconds they took, from host memory to host memory."""
    start = time.perf_counter()
    answers = engine(batch)
    return time.perf_counter() - start, answers.copy()  # the engine may reuse its buffer


def compute_call(engine, batch):
    """Nothing, and the seconds that the network alone took on the prepared batch."""
    x = engine.prepare(batch)
    engine.synchronise()
    start = time.perf_counter()
    engine.compute(x)
    engine.synchronise()
    return time.perf_counter() - start, None


def clock(engine, batches, repeat, call):
    """Time `repeat` passes of `call` over the batches: (statistics, answers of the first pass)."""
    first, _ = call(engine, batches[0])
    for batch in (batches[0], batches[-1]) if len(batches[-1]) < len(batches[0]) else batches[:1]:
        warm_up(engine, batch, call)
    passes, answers = [], []
    for number in range(repeat):
        seconds = []
        for batch in batches:
            taken, answer = call(engine, batch)
            seconds.append(taken)
            if number == 0:
                answers.append(answer)
        passes.append(seconds)
    full = len(batches) - (len(batches[-1]) < len(batches[0]))
    return statistics(first, passes, full, sum(map(len, batches))), answers


def warm_up(engine, batch, call):
    """Call until this batch shape's one-time work is done and the clocks are up."""
    start, calls = time.perf_counter(), 0
    while calls < WARM_UP_CALLS or time.perf_counter() - start < WARM_UP_SECONDS:
        call(engine, batch)
        calls += 1


def statistics(first, passes, full, images):
    """What is reported of one clock.

    first: seconds of the first call; passes: for each pass the seconds of each call, of which the
    first `full` had a full batch; images: how many a pass covers. Latencies in ms per batch.
    """
    totals = sorted(map(sum, passes))
    total = totals[len(totals) // 2]
    latencies = [seconds for calls in passes for seconds in calls[:full]]
    ordered = sorted(latencies)
    return {
        "total_s": total,
        "images_per_s": images / total,
        "first_call_ms": first * 1e3,
        "median_ms": percentile(ordered, 50),
        "p90_ms": percentile(ordered, 90),
        "p99_ms": percentile(ordered, 99),
        "unsteady": unsteadiness(latencies),
        "first_timed_ms": latencies[0] * 1e3,
    }


def percentile(ordered, percent):
    """The percentile of ascending seconds, in ms (nearest rank); None from too few calls."""
    beyond = len(ordered) * (100 - percent) // 100
    if percent > 50 and beyond < CALLS_BEYOND_PERCENTILE:
        return None
    return ordered[min(len(ordered) * percent // 100, len(ordered) - 1)] * 1e3


def unsteadiness(latencies):
    """How far the medians of five consecutive parts of a run lie apart: highest / lowest."""
    size = len(latencies) // 5
    if size == 0:
        return None
    medians = [sorted(latencies[k * size:(k + 1) * size])[size // 2] for k in range(5)]
    return max(medians) / min(medians) if min(medians) > 0 else None


def judge(answers, labels, reference, precision):
    """Accuracy (a fraction), loss and largest difference from the reference, with the verdict."""
    import numpy as np
    answers = np.concatenate(answers)
    difference = float(np.abs(answers - reference).max())
    verdict = {
        "accuracy": float((answers.argmax(1) == labels).mean()),
        "loss": float(-answers[np.arange(len(labels)), labels].mean()),
        "max_difference": difference,
        "status": "ok",
        "reason": None,
    }
    if not difference <= TOLERANCE[precision]:  # a NaN is wrong too
        finite = difference if np.isfinite(difference) else None
        verdict.update(status="failed", max_difference=finite, reason="WRONG: answers differ from "
                       f"the reference by {difference:.2g}, more than {TOLERANCE[precision]:g}")
        if not np.isfinite(verdict["loss"]):
            verdict["loss"] = None
    return verdict


def empty_row(engine, device, precision, batch_size, images, status="skipped", reason=None):
    """A row of the record with nothing measured yet: of an engine that can't run, with why."""
    return {
        "engine": engine, "device": device, "precision": precision, "batch_size": batch_size,
        "images": images, "status": status, "reason": reason, "accuracy": None, "loss": None,
        "max_difference": None, "end_to_end": None, "compute": None,
    }


def make_record(settings, rows):
    """The JSON record of a run: machine, settings, rows and the warnings that go with them."""
    machine = machine_record()
    return {"schema": 1, "machine": machine, "settings": settings, "rows": rows,
            "warnings": machine_warnings(machine) + [w for row in rows for w in row_warnings(row)]}


def publish(record, json_path):
    """Print the report, write the JSON where asked for; gives the exit status: 1 where a row
    is wrong."""
    print(format_report(record))
    if json_path:
        save_json(json_path, record)
    return int(any(row["status"] == "failed" for row in record["rows"]))


def row_warnings(row):
    """What makes a row's numbers doubtful, in words for whoever reads them the first time."""
    if row["end_to_end"] is None:
        return []
    what = f"{row['engine']} {row['device']} {row['precision']} batch {row['batch_size']}"
    warnings = []
    times = row["end_to_end"]
    if times["unsteady"] and times["unsteady"] > STEADY:
        warnings.append(f"{what}: unsteady, its median moved by {times['unsteady'] - 1:.0%} during "
                        "the run; something else used this machine, or its clock changed")
    if times["first_timed_ms"] > 5 * times["median_ms"]:
        warnings.append(f"{what}: the first timed call took {times['first_timed_ms']:.3g} ms, far "
                        f"from the median {times['median_ms']:.3g} ms; warming up was not enough")
    return warnings


def machine_warnings(machine):
    """What about this machine makes every number unrepresentative."""
    warnings = []
    if machine["cpu_governor"] in ("powersave", "conservative", "ondemand", "schedutil"):
        warnings.append(f"the CPU governor is {machine['cpu_governor']}: the clock follows the "
                        "load and short runs look slow; 'performance' gives steady numbers")
    if machine["jetson"] and machine["jetson"]["power_mode"] not in (0, None):
        warnings.append(f"the Jetson's power mode is {machine['jetson']['power_mode']}, not 0 "
                        "(the full one): sudo nvpmodel -m 0 && sudo jetson_clocks")
    return warnings


def milliseconds(value):
    """At most six characters for a time in ms, with three or four digits that mean something."""
    if value is None:
        return "-"
    return f"{value:.{3 if value < 10 else 2 if value < 100 else 1 if value < 1000 else 0}f}"


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
    cells = [[top for top, _, _ in columns], [unit for _, unit, _ in columns]]
    for row in rows:
        measured = row["end_to_end"] is not None
        cells.append([fill(row) for _, _, fill in (columns if measured else columns[:3])])
    widths = [max(len(line[k]) for line in cells if k < len(line)) for k in range(len(columns))]
    lines = [align(line, widths) for line in cells]
    for number, row in enumerate(rows, start=2):
        if row["status"] != "ok":
            lines[number] += f"  {row['status']}: {row['reason']}"
    lines.insert(2, "-" * (sum(widths) + len(widths) - 1))
    return "\n".join(lines)


def align(line, widths):
    """One line of the table: the two columns of names to the left, the numbers to the right."""
    return " ".join(cell.ljust(width) if k < 2 else cell.rjust(width)
                    for k, (cell, width) in enumerate(zip(line, widths))).rstrip()


def format_report(record, columns=COLUMNS):
    """Table, legend, machine and warnings of a record, for the screen."""
    parts = [format_table(record["rows"], columns), LEGEND, describe_machine(record["machine"])]
    parts += ["warning: " + text for text in record["warnings"]]
    return "\n\n".join(parts[:2]) + "\n\n" + "\n".join(parts[2:])
