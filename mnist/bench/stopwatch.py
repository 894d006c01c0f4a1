"""The stopwatch: how an engine is timed, and what is said of the result.

Two times are taken, and always named. end-to-end: raw uint8 pixels in host memory to
log-probabilities in host memory, copies included, which is what a user gets. compute: the network
alone, its input already normalised and already where the engine wants it.

A latency is per batch, a throughput per image, a total for all the images of one pass.
"""

import gc
import os
import time
from typing import Any, NamedTuple

import numpy as np

from mnist.cli import show_progress
from mnist.engines.precision import judge_outputs
from mnist.engines.tuning import begin_turn
from mnist.errors import describe_error
from mnist.machine import machine_record

# Calls that aren't timed, at least, by device: as an engine is opened, and before each of its
# turns, since another engine has used the caches meanwhile. A GPU that was idle has lowered its
# clock, too.
WARM_UP = {"cpu": {"calls": 10, "seconds": 0.05}, "cuda": {"calls": 10, "seconds": 0.2}}
TURN_WARM_UP = {"cpu": {"calls": 3, "seconds": 0.02}, "cuda": {"calls": 3, "seconds": 0.15}}

# A pass over the images is timed in this many turns, each on another part of them.
TURNS = 5

# An engine is steady when the medians of its last pass's turns lie at most this far apart.
STEADY = 1.05

# Of the record: a new number whenever a field is renamed or goes.
SCHEMA = 2

# A percentile needs this many calls beyond it to mean anything: p99 from 1,000 calls on.
CALLS_BEYOND_PERCENTILE = 10

# Other programs that use more than this part of the CPUs during a run disturb it.
QUIET = 0.05
DISTURBING = 0.02  # enough to explain a row that never got steady


def take_turns(stopwatches, repeat=None, deadline=None):
    """Time every engine, one part of the images after the other, in turns.

    So whatever slows this machine for a while slows all of them, and shows in each as unsteady.
    Every engine makes one pass over the images. Those that aren't steady then go on, turn by turn,
    until they are, or until there is no time left for another round before `deadline`
    (`time.perf_counter()`; None: one pass is all). `repeat`: so many passes instead, steady or not.

    Gives whether Ctrl-C ended it; what was measured until then stays. An engine that fails has its
    `failure`, and the others go on.
    """
    turns = TURNS * (repeat or 1)
    gc.collect()
    gc.disable()  # as timeit does: a collection in the middle of a call isn't the engine's time
    try:
        for stopwatch in stopwatches:
            if not stopwatch.first:
                stopwatch.attempt(stopwatch.make_first_calls)
        go_round(stopwatches, turns, repeat, deadline)
        return False
    except KeyboardInterrupt:
        return True
    finally:
        gc.enable()
        show_progress(None)


def go_round(stopwatches, turns, repeat, deadline):
    """Turn after turn of those that have not had enough."""
    started = time.perf_counter()
    round_seconds = 0.0
    while True:
        waiting = [stopwatch for stopwatch in stopwatches if not stopwatch.failure and (
            len(stopwatch.turns) < turns
            or not repeat and not stopwatch.is_steady()
            and deadline is not None and time.perf_counter() + round_seconds < deadline)]
        if not waiting:
            return
        round_started = time.perf_counter()
        for stopwatch in waiting:
            show_turn(stopwatches, turns, started, deadline)
            stopwatch.attempt(stopwatch.time_turn)
        round_seconds = time.perf_counter() - round_started


def show_turn(stopwatches, turns, started, deadline):
    """The progress of the first passes, then of the time that the unsteady ones may take."""
    done = sum(min(len(stopwatch.turns), turns) for stopwatch in stopwatches)
    if done < turns * len(stopwatches) or deadline is None:
        show_progress(done / (turns * len(stopwatches)), "timing")
    else:
        show_progress(min(1, (time.perf_counter() - started) / (deadline - started)),
                      "timing until steady")


class Stopwatch:
    """The two clocks on one engine.

    The last, shorter batch is timed as it comes and counts in the totals; latencies are of the
    full batches. No outlier is removed.
    """

    def __init__(self, engine, images, **facts):
        """`facts`: what else the engine's row says (its network, its weights …)."""
        self.engine, self.images, self.facts = engine, images, facts
        size = engine.batch_size
        self.batches = -(-len(images) // size)
        self.first, self.turns, self.log_probs, self.failure = {}, [], [], None

    def make_first_calls(self):
        """Time the first call of each clock, and warm up both shapes of batches."""
        self.first = self.measure_first_calls()

    def measure_first_calls(self):
        """{clock: the seconds of its first call}."""
        engine, images, size = self.engine, self.images, self.engine.batch_size
        first = {}
        for clock, calls in CLOCKS.items():
            (first[clock], _), = calls(engine, images[:size])
            warm_up(engine, images[:size], calls, **WARM_UP[engine.device])
            if len(images) % size and len(images) > size:
                warm_up(engine, images[-(len(images) % size):], calls, **WARM_UP[engine.device])
        return first

    def attempt(self, work):
        """Do some work with the engine; what goes wrong becomes the `failure`."""
        try:
            work()
        except Exception as error:  # whatever breaks one engine, the others still run
            self.failure = describe_error(error)

    def time_turn(self):
        """Time the next turn of a pass with both clocks."""
        seconds, full, outputs = self.measure_turn(len(self.turns))
        self.turns.append(Turn(seconds, full))
        self.log_probs += outputs
        if len(self.turns) == TURNS and self.takes_other_settings():
            self.turns, self.log_probs = [], []
            self.make_first_calls()

    def takes_other_settings(self):
        """Whether the engine goes on with other settings than its first pass was timed with."""
        return False

    def measure_turn(self, turn):
        """({clock: the seconds of each call}, how many had a full batch, the outputs of each call
        in the first pass)."""
        size = self.engine.batch_size
        start, stop = (self.batches * k // TURNS * size for k in (turn % TURNS, turn % TURNS + 1))
        images = self.images[start:stop]
        times, collected = {}, []
        for clock, calls in CLOCKS.items():
            if len(images):
                warm_up(self.engine, images[:size], calls, **TURN_WARM_UP[self.engine.device])
            times[clock] = []
            for seconds, log_probs in calls(self.engine, images):
                times[clock].append(seconds)
                if log_probs is not None:
                    collected.append(log_probs)
        full = len(images) // size if self.batches > 1 else 1  # the only batch may be a short one
        return times, full, collected if turn < TURNS else []

    def outputs_of(self, images):
        """The outputs, float32 (N, K), of other images than those that are timed."""
        return np.concatenate([self.engine(batch).copy()
                               for batch in in_batches(images, self.engine.batch_size)])

    def latencies(self, clock="end_to_end"):
        """The seconds of all the calls with a full batch."""
        return [seconds for turn in self.turns for seconds in turn.latencies(clock)]

    def median_ms(self, clock="end_to_end"):
        """The median of the `latencies`, in ms per batch."""
        return percentile(sorted(self.latencies(clock)), 50)

    def is_steady(self):
        """Whether the last pass's turns took equally long, end-to-end."""
        spread = unsteadiness(self.turns[-TURNS:], "end_to_end")
        return spread is None or spread <= STEADY

    def reported(self):
        """The turns that the row is of: the last pass where that was steady, else all passes."""
        whole = len(self.turns) // TURNS * TURNS
        return self.turns[-TURNS:] if self.is_steady() else self.turns[:whole]

    def row(self, targets, reference, repeat=None):
        """The engine's row of the record.

        targets (N,) or (N, K), reference float32 (N, K), see
        `engines.registry.reference_log_probs`.
        `repeat`: so many passes were asked for, and all of them are reported.
        """
        engine = self.engine
        row = empty_row(engine.name, engine.device, engine.precision, engine.batch_size,
                        len(self.images), detail=engine.detail, **self.facts)
        row["passes"] = len(self.turns) / TURNS
        if len(self.turns) < TURNS:
            row["reason"] = self.failure or "interrupted before its first pass was whole"
            row["status"] = "failed" if self.failure else "skipped"
            return row
        row.update(judge(self.log_probs, targets, reference, engine.precision,
                         engine.image_set))
        if self.failure:
            row.update(status="failed", reason=f"{self.failure} (after {len(self.turns)} turns)")
        turns = self.turns[:len(self.turns) // TURNS * TURNS] if repeat else self.reported()
        for clock in CLOCKS:
            row[clock] = statistics(self.first[clock], turns, clock, len(self.images))
        return row


class Turn(NamedTuple):
    """What one turn took."""

    seconds: Any  # of each call, by clock
    full: int  # how many of the calls had a full batch, the first ones

    def latencies(self, clock):
        """The seconds of the full batches."""
        return self.seconds[clock][:self.full]


def in_batches(images, size):
    return [images[start:start + size] for start in range(0, len(images), size)]


def end_to_end_calls(engine, images):
    """Yield for each batch the seconds from host memory to host memory, and its log_probs."""
    batches = in_batches(images, engine.batch_size)
    results = engine.loop(images) if hasattr(engine, "loop") else map(engine, batches)
    for _ in batches:
        start = time.perf_counter()
        log_probs = next(results)
        seconds = time.perf_counter() - start
        yield seconds, log_probs.copy()  # the engine may reuse its buffer


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
    begin_turn(engine)
    start, called = time.perf_counter(), 0
    while called < calls or time.perf_counter() - start < seconds:
        for _ in clock(engine, batch):
            called += 1


def statistics(first, turns, clock, images):
    """What is reported of one clock.

    first: seconds of the first call; turns: the `Turn`s of whole passes; images: how many a pass
    covers. Latencies in ms per batch, of the full batches.
    """
    totals = sorted(sum(sum(turn.seconds[clock]) for turn in turns[start:start + TURNS])
                    for start in range(0, len(turns), TURNS))
    total = totals[len(totals) // 2]
    latencies = [seconds for turn in turns for seconds in turn.latencies(clock)]
    ordered = sorted(latencies)
    return {
        "total_s": total,
        "images_per_s": images / total,
        "first_call_ms": first * 1e3,
        "median_ms": percentile(ordered, 50),
        "p90_ms": percentile(ordered, 90),
        "p99_ms": percentile(ordered, 99),
        "unsteady": unsteadiness(turns, clock),
        "first_timed_ms": latencies[0] * 1e3,
    }


def percentile(ordered, percent):
    """The percentile of ascending seconds, in ms (nearest rank); None from too few calls."""
    beyond = len(ordered) * (100 - percent) // 100
    if percent > 50 and beyond < CALLS_BEYOND_PERCENTILE:
        return None
    return ordered[min(len(ordered) * percent // 100, len(ordered) - 1)] * 1e3


def unsteadiness(turns, clock):
    """How far the medians of some turns lie apart: highest / lowest; None for fewer than two."""
    medians = [sorted(latencies)[len(latencies) // 2]
               for latencies in (turn.latencies(clock) for turn in turns) if latencies]
    return max(medians) / min(medians) if len(medians) > 1 and min(medians) > 0 else None


def judge(outputs, targets, reference, precision, image_set):
    """Score, loss and largest difference from the reference, with the verdict."""
    outputs = np.concatenate(outputs)
    difference, reason = judge_outputs(image_set, outputs, reference, precision)
    row = {image_set.metric: image_set.score(outputs, targets)}
    if image_set.task == "regression":
        loss = row["rmse"] ** 2
    else:
        loss = float(-outputs[np.arange(len(targets)), targets].mean())
        row["changed_answers"] = int((outputs.argmax(1) != reference.argmax(1)).sum())
    return dict(row, loss=loss if np.isfinite(loss) else None, max_difference=difference,
                status="failed" if reason else "ok", reason=reason)


def empty_row(engine, device, precision, batch_size, images, status="skipped", reason=None,
              **facts):
    """A row of the record with nothing measured yet: of an engine that can't run, with why."""
    return dict({
        "engine": engine, "device": device, "precision": precision, "batch_size": batch_size,
        "images": images, "status": status, "reason": reason, "accuracy": None, "loss": None,
        "max_difference": None, "end_to_end": None, "compute": None,
    }, **facts)


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

    def share(self, ours=0.0):
        """Their share of all the CPUs until now, from 0 to 1; None where that isn't known.

        `ours`: CPU seconds of processes that are ours too.
        """
        used, started = self.start
        if used is None:
            return None
        cpu_seconds = (time.perf_counter() - started) * os.cpu_count()
        return max(0.0, (self.used_by_others() - used - ours) / cpu_seconds)


def make_record(settings, rows, used_by_others=None):
    """The JSON record of a run: machine, settings, rows and the warnings that go with them.

    `used_by_others`: what `OtherPrograms.share` said at its end.
    """
    machine = machine_record()
    warnings = machine_warnings(machine)
    if used_by_others is not None and used_by_others > QUIET:
        warnings.append(f"other programs used {used_by_others:.0%} of the CPUs during the run: "
                        "all times are too long, and another run may well differ")
    if settings.get("groups", 1) > 1:
        warnings.append(f"memory didn't hold all engines at once: they were timed in "
                        f"{settings['groups']} groups, and took turns only within each")
    warnings += unsteady_warnings(rows, why_unsteady(machine, used_by_others))
    warnings += first_call_warnings(rows) + launch_warnings(rows)
    return {"schema": SCHEMA, "machine": machine, "settings": settings, "rows": rows,
            "used_by_others": used_by_others, "warnings": warnings}


def unsteady_warnings(rows, why):
    """Which medians still moved when the time was up, in one warning for all of them, and why."""
    moved = [f"{describe_row(row)} ({row['end_to_end']['unsteady'] - 1:.0%})" for row in rows
             if row["end_to_end"] and (row["end_to_end"]["unsteady"] or 0) > STEADY]
    return [f"never got steady, the median still moved: {', '.join(moved)}; {why}"] if moved else []


def why_unsteady(machine, used_by_others):
    """What disturbed the engines, which don't disturb each other: only one is ever awake."""
    if machine["cpu_quota"] and machine["cpu_quota"] < machine["cpus"]:
        return (f"the cgroup's quota of {machine['cpu_quota']:g} of {machine['cpus']} CPUs "
                "interrupts them")
    if used_by_others is None:
        return "something else ran, or the clock changed"
    if used_by_others > DISTURBING:
        return f"other programs used {used_by_others:.0%} of the CPUs"
    return ("hardly anything else ran: the clock changed or, on a virtual machine, a neighbour "
            "took part of a core")


def first_call_warnings(rows):
    """Where the timing began before an engine was warm."""
    warnings = []
    for row in rows:
        times = row["end_to_end"]
        if times and times["first_timed_ms"] > 5 * times["median_ms"]:
            warnings.append(f"{describe_row(row)}: the first timed call took "
                            f"{times['first_timed_ms']:.3g} ms, far from the median "
                            f"{times['median_ms']:.3g} ms; warming up was not enough")
    return warnings


def launch_warnings(rows):
    """Where a GPU takes about as long for one digit as for a large batch."""
    warnings = []
    smallest = {}
    measured = [row for row in rows if row["device"] != "cpu" and row["compute"] is not None]
    for row in sorted(measured, key=lambda row: row["batch_size"]):
        key = row["engine"], row["precision"], row.get("network")
        small = smallest.setdefault(key, row)
        times = row["compute"]["median_ms"] / small["compute"]["median_ms"]
        if row["batch_size"] >= 16 * small["batch_size"] and times < 2:
            warnings.append(
                f"{describe_row(small)}: launch-bound; computing {row['batch_size']} digits takes "
                f"only {times:.1f} times as long, so most of the time goes into starting the GPU's "
                "work, and a faster GPU would hardly help")
    return warnings


def describe_row(row):
    """A row's name: "net: torch cpu fp32 batch 64"."""
    name = f"{row['engine']} {row['device']} {row['precision']} batch {row['batch_size']}"
    return f"{row['network']}: {name}" if row.get("network") else name


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
