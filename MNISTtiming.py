"""The stopwatch: how an engine is timed, and what is said of the result.

Two times are taken, and always named. end-to-end: raw uint8 pixels in host memory to
log-probabilities in host memory, copies included, which is what a user gets. compute: the network
alone, its input already normalised and already where the engine wants it.

A latency is per batch, a throughput per image, a total for all the images of one pass.
"""

import gc
import os
import time

from MNISTmachine import machine_record
from MNISTscript import show_progress

# Calls that aren't timed, at least: as an engine is opened, and before each of its turns, since
# another engine has used the caches meanwhile.
WARM_UP = {"calls": 10, "seconds": 0.2}
TURN_WARM_UP = {"calls": 3, "seconds": 0.02}

# A pass over the images is timed in this many turns.
TURNS = 5

# A percentile needs this many calls beyond it to mean anything: p99 from 1,000 calls on.
CALLS_BEYOND_PERCENTILE = 10

# How far log-probabilities may lie from the reference before an engine is wrong, not merely
# rounded. They reach -40 or so, where float16 steps by 0.03, and layers add up such steps.
TOLERANCE = {"fp32": 1e-3, "tf32": 0.25, "fp16": 0.25, "bf16": 2.0}

# int8 moves log-probabilities by whole units, so it is judged by the part of the answers that it
# changes: 0.01 to 0.1 % with the shipped networks (docs/compression.md), a tenth in a broken one.
CHANGED = {"int8": 0.01}

# Medians of the consecutive fifths of a run that lie further apart than this are unsteady.
STEADY = 1.10

# Other programs that use more than this part of the CPUs during a run disturb it.
QUIET = 0.05


def time_engine(engine, images, labels, reference, repeat=1):
    """Time one engine over `images` and check its answers; gives a row of the record.

    images uint8 (N, 28, 28), labels (N,), reference float32 (N, 10), see
    `MNISTengine.reference_answers`. `repeat` passes are made for each of the two times.
    """
    stopwatch = Stopwatch(engine, images)
    take_turns([stopwatch], repeat)
    return stopwatch.row(labels, reference)


def take_turns(stopwatches, repeat=1):
    """Time `repeat` passes of every engine, one part of a pass after the other, in turns.

    So whatever slows this machine for a while slows all of them, and shows in each as unsteady.
    """
    turns = [(number, turn) for number in range(repeat) for turn in range(TURNS)]
    gc.collect()
    gc.disable()  # as timeit does: a collection in the middle of a call isn't the engine's time
    try:
        for done, (number, turn) in enumerate(turns):
            show_progress(done / len(turns), "timing")
            for stopwatch in stopwatches:
                stopwatch.time_turn(number, turn)
    finally:
        gc.enable()
        show_progress(None)


class Stopwatch:
    """The two clocks on one engine, which is warmed up as the stopwatch is made.

    The last, shorter batch is timed as it comes and counts in the totals; latencies are of the
    full batches. No outlier is removed.
    """

    def __init__(self, engine, images):
        self.engine, self.images = engine, images
        size = engine.batch_size
        self.batches = -(-len(images) // size)
        self.first, self.passes, self.answers = {}, {}, []
        for clock, calls in CLOCKS.items():
            self.passes[clock] = []
            (self.first[clock], _), = calls(engine, images[:size])
            warm_up(engine, images[:size], calls, **WARM_UP)
            if len(images) % size and len(images) > size:
                warm_up(engine, images[-(len(images) % size):], calls, **WARM_UP)

    def time_turn(self, number, turn):
        """Time one of a pass's turns with both clocks."""
        size = self.engine.batch_size
        start, stop = (self.batches * k // TURNS * size for k in (turn, turn + 1))
        images = self.images[start:stop]
        for clock, calls in CLOCKS.items():
            if turn == 0:
                self.passes[clock].append([])
            if len(images):
                warm_up(self.engine, images[:size], calls, **TURN_WARM_UP)
            for seconds, answers in calls(self.engine, images):
                self.passes[clock][-1].append(seconds)
                if number == 0 and answers is not None:
                    self.answers.append(answers)

    def row(self, labels, reference):
        """The engine's row of the record."""
        engine, images = self.engine, len(self.images)
        row = empty_row(engine.name, engine.device, engine.precision, engine.batch_size, images)
        row.update(judge(self.answers, labels, reference, engine.precision))
        full = images // engine.batch_size or 1
        for clock in CLOCKS:
            row[clock] = statistics(self.first[clock], self.passes[clock], full, images)
        return row


def in_batches(images, size):
    return [images[start:start + size] for start in range(0, len(images), size)]


def end_to_end_calls(engine, images):
    """Yield for each batch the seconds from host memory to host memory, and its answers."""
    batches = in_batches(images, engine.batch_size)
    answers = engine.loop(images) if hasattr(engine, "loop") else map(engine, batches)
    for _ in batches:
        start = time.perf_counter()
        answer = next(answers)
        seconds = time.perf_counter() - start
        yield seconds, answer.copy()  # the engine may reuse its buffer


def compute_calls(engine, images):
    """Yield for each batch the seconds of the network alone on the prepared batch, and None."""
    for batch in in_batches(images, engine.batch_size):
        x = engine.prepare(batch)
        engine.synchronise()
        start = time.perf_counter()
        engine.compute(x)
        engine.synchronise()
        yield time.perf_counter() - start, None


CLOCKS = {"end_to_end": end_to_end_calls, "compute": compute_calls}


def warm_up(engine, batch, clock, calls, seconds):
    """Call until this batch shape's one-time work is done and the clocks are up."""
    start, called = time.perf_counter(), 0
    while called < calls or time.perf_counter() - start < seconds:
        for _ in clock(engine, batch):
            called += 1


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
    changed = int((answers.argmax(1) != reference.argmax(1)).sum())
    verdict = {
        "accuracy": float((answers.argmax(1) == labels).mean()),
        "loss": float(-answers[np.arange(len(labels)), labels].mean()),
        "max_difference": difference,
        "changed": changed,
        "status": "ok",
        "reason": None,
    }
    wrong = None
    if precision in CHANGED:
        if changed > CHANGED[precision] * len(labels) or not np.isfinite(difference):
            wrong = (f"{changed} of {len(labels)} answers changed, more than "
                     f"{CHANGED[precision]:.1%}")
    elif not difference <= TOLERANCE[precision]:  # a NaN is wrong too
        wrong = (f"answers differ from the reference by {difference:.2g}, more than "
                 f"{TOLERANCE[precision]:g}")
    if wrong:
        finite = difference if np.isfinite(difference) else None
        verdict.update(status="failed", max_difference=finite, reason="WRONG: " + wrong)
        if not np.isfinite(verdict["loss"]):
            verdict["loss"] = None
    return verdict


def empty_row(engine, device, precision, batch_size, images, status="skipped", reason=None):
    """A row of the record with nothing measured yet: of an engine that can't run, with why."""
    return {
        "engine": engine, "device": device, "precision": precision, "batch_size": batch_size,
        "images": images, "status": status, "reason": reason, "accuracy": None, "loss": None,
        "max_difference": None, "changed": None, "end_to_end": None, "compute": None,
    }


class OtherPrograms:
    """How much of this machine's CPUs is used by others while a run goes on."""

    def __init__(self):
        self.start = self.used_by_others(), time.perf_counter()

    @staticmethod
    def used_by_others():
        """CPU seconds since the start of the machine, of other programs and, on a virtual machine,
        of its neighbours; None where the system (not Linux) doesn't say. Source: man 5 proc_stat.
        """
        try:
            with open("/proc/stat") as file:
                user, nice, system, _, _, irq, softirq, steal = map(
                    int, file.readline().split()[1:9])
        except (OSError, ValueError):
            return None
        ticks = user + nice + system + irq + softirq + steal
        return ticks / os.sysconf("SC_CLK_TCK") - time.process_time()

    def share(self):
        """Their share of all the CPUs until now, from 0 to 1; None where that isn't known."""
        used, started = self.start
        if used is None:
            return None
        cpu_seconds = (time.perf_counter() - started) * os.cpu_count()
        return max(0.0, (self.used_by_others() - used) / cpu_seconds)


def make_record(settings, rows, used_by_others=None):
    """The JSON record of a run: machine, settings, rows and the warnings that go with them.

    `used_by_others`: what `OtherPrograms.share` said at its end.
    """
    machine = machine_record()
    warnings = machine_warnings(machine)
    if used_by_others is not None and used_by_others > QUIET:
        warnings.append(f"other programs used {used_by_others:.0%} of the CPUs during the run: "
                        "all times are too long, and another run may well differ")
    warnings += [text for row in rows for text in row_warnings(row)] + launch_warnings(rows)
    return {"schema": 1, "machine": machine, "settings": settings, "rows": rows,
            "used_by_others": used_by_others, "warnings": warnings}


def row_warnings(row):
    """What makes a row's numbers doubtful, in words for whoever reads them the first time."""
    if row["end_to_end"] is None:
        return []
    what = describe_row(row)
    warnings = []
    times = row["end_to_end"]
    if times["unsteady"] and times["unsteady"] > STEADY:
        warnings.append(f"{what}: unsteady, the median moved by {times['unsteady'] - 1:.0%}; "
                        "something else ran, or the clock changed")
    if times["first_timed_ms"] > 5 * times["median_ms"]:
        warnings.append(f"{what}: the first timed call took {times['first_timed_ms']:.3g} ms, far "
                        f"from the median {times['median_ms']:.3g} ms; warming up was not enough")
    return warnings


def launch_warnings(rows):
    """Where a GPU takes about as long for one digit as for a large batch."""
    warnings = []
    smallest = {}
    for row in rows:
        if row["device"] == "cpu" or row["compute"] is None:
            continue
        small = smallest.setdefault((row["engine"], row["precision"]), row)
        times = row["compute"]["median_ms"] / small["compute"]["median_ms"]
        if row["batch_size"] >= 16 * small["batch_size"] and times < 2:
            warnings.append(
                f"{describe_row(small)}: launch-bound; computing {row['batch_size']} digits takes "
                f"only {times:.1f} times as long, so most of the time goes into starting the GPU's "
                "work, and a faster GPU would hardly help")
    return warnings


def describe_row(row):
    return f"{row['engine']} {row['device']} {row['precision']} batch {row['batch_size']}"


def machine_warnings(machine):
    """What about this machine makes every number unrepresentative."""
    warnings = []
    if machine["cpu_governor"] in ("powersave", "conservative", "ondemand", "schedutil"):
        warnings.append(f"the CPU governor is {machine['cpu_governor']}: the clock follows the "
                        "load and short runs look slow; 'performance' gives steady numbers")
    jetson = machine["jetson"]
    if jetson and jetson["full_power_mode"] not in (None, jetson["power_mode"]):
        warnings.append("the Jetson's power mode is {power_mode} ({power_mode_name}), which limits "
                        "its clocks: sudo nvpmodel -m {full_power_mode} && sudo jetson_clocks"
                        .format(**jetson))
    return warnings
