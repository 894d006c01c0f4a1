"""The stopwatch, on a clock of its own, against engines whose delay and answers are known.

No time passes here: the clock stands still but for what the engines take, so that the tests say the
same on a busy machine.
"""

import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest

from mnist.bench import stopwatch as bench
from mnist.bench import tables
from mnist.datasets.image_set import MNIST
from mnist.engines.precision import judge_outputs

IMAGES, CLASSES = 100, 10
LABELS = np.arange(IMAGES) % CLASSES
FACTS = {"network": "net", "weights": "weights/net.pth (shipped)"}


class Clock:
    """Seconds that pass only when somebody sleeps."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(bench, "time", clock)
    monkeypatch.setattr(FakeEngine, "clock", clock)
    return clock


class FakeEngine:
    """Right answers after a known delay; `compute` takes a quarter of it. Reuses one buffer."""

    name, device, precision, detail = "fake", "cpu", "fp32", "fake 1.0"
    image_set = MNIST._replace(classes=tuple(map(str, range(CLASSES))))
    clock = None

    def __init__(self, batch_size, delay=0.001, first_delay=0.0):
        self.batch_size, self.delay, self.first_delay = batch_size, delay, first_delay
        self.buffer = np.zeros((batch_size, CLASSES), np.float32)
        self.calls, self.pending = [], 0.0

    def __call__(self, images):
        self.clock.sleep(self.delay + (self.first_delay if not self.calls else 0))
        self.calls.append(len(images))
        answers = self.buffer[:len(images)]
        answers[:] = log_probabilities(images[:, 0, 0])
        return answers

    def prepare(self, images):
        self.clock.sleep(self.delay)  # must not be on the compute clock
        return images

    def compute(self, x):
        self.pending = self.delay / 4  # asynchronous, as on a GPU: the work ends in synchronise

    def synchronise(self):
        self.clock.sleep(self.pending)
        self.pending = 0.0


def log_probabilities(labels):
    return np.log(np.where(np.eye(CLASSES)[labels % CLASSES] > 0, 0.91, 0.01)).astype(np.float32)


def stopwatch_of(engine):
    images = np.zeros((IMAGES, 28, 28), np.uint8)
    images[:, 0, 0] = LABELS
    stopwatch = bench.Stopwatch(engine, images, **FACTS)
    stopwatch.make_first_calls()
    return stopwatch


def row_of(stopwatch, repeat=None):
    return stopwatch.row(LABELS, log_probabilities(LABELS), repeat)


def measure(engine, repeat=None, deadline=None):
    stopwatch = stopwatch_of(engine)
    assert not bench.take_turns([stopwatch], repeat, deadline)
    return row_of(stopwatch, repeat)


def test_known_delay_is_measured():
    row = measure(FakeEngine(batch_size=16, delay=0.004, first_delay=0.05))
    end_to_end, compute = row["end_to_end"], row["compute"]
    assert end_to_end["median_ms"] == pytest.approx(4)
    assert compute["median_ms"] == pytest.approx(1)
    assert end_to_end["first_call_ms"] == pytest.approx(54)
    assert end_to_end["total_s"] == pytest.approx(7 * 0.004)  # the first call isn't among them
    assert end_to_end["images_per_s"] == pytest.approx(IMAGES / end_to_end["total_s"])
    assert compute["total_s"] == pytest.approx(7 * 0.001)


def test_answers_are_judged_although_the_engine_reuses_its_buffer():
    row = measure(FakeEngine(batch_size=7))
    assert row["status"] == "ok" and row["accuracy"] == 1.0 and row["max_difference"] == 0.0
    assert row["changed_answers"] == 0
    assert row["loss"] == pytest.approx(-np.log(0.91), rel=1e-5)
    assert {key: row[key] for key in FACTS} == FACTS and row["detail"] == "fake 1.0"


def test_every_shape_is_warmed_up_and_the_remainder_comes_as_it_is():
    engine = FakeEngine(batch_size=16, delay=0.001)
    stopwatch = stopwatch_of(engine)
    for size in (16, 4):
        calls = engine.calls[1:].count(size)
        assert calls >= 10 and calls * engine.delay >= bench.WARM_UP["cpu"]["seconds"]
    engine.calls.clear()
    bench.take_turns([stopwatch], repeat=2)
    assert engine.calls.count(4) == 2 and engine.calls.count(16) >= 12
    for name in bench.CLOCKS:
        assert sum(len(turn.seconds[name]) for turn in stopwatch.turns) == 2 * 7
        assert len(stopwatch.latencies(name)) == 2 * 6


def test_a_gpu_is_woken_before_each_of_its_turns():
    calls = []
    for device in ("cpu", "cuda"):
        engine = FakeEngine(batch_size=20, delay=0.001)
        engine.device = device
        stopwatch = stopwatch_of(engine)
        engine.calls.clear()
        stopwatch.time_turn()
        calls.append(len(engine.calls))
    assert calls[1] * 0.001 >= bench.TURN_WARM_UP["cuda"]["seconds"] > 5 * calls[0] * 0.001


def test_engines_take_turns_and_each_answers_every_image_once():
    stopwatches, order = [stopwatch_of(FakeEngine(batch_size=size)) for size in (10, 1)], []
    for stopwatch in stopwatches:
        stopwatch.engine.calls = order
    bench.take_turns(stopwatches, repeat=2)
    changes = sum(before != after for before, after in zip(order, order[1:]))
    assert changes == 2 * 2 * bench.TURNS - 1
    for stopwatch in stopwatches:
        row = row_of(stopwatch, repeat=2)
        assert row["accuracy"] == 1.0 and row["images"] == IMAGES and row["passes"] == 2


def test_an_engine_that_brings_its_own_loop_is_timed_in_it():
    class Looping(FakeEngine):
        def loop(self, images):
            for image in images:
                self.clock.sleep(0.002)
                yield log_probabilities(image[None, 0, 0])

    row = measure(Looping(batch_size=1, delay=0.001))
    assert row["status"] == "ok" and row["accuracy"] == 1.0
    assert row["end_to_end"]["median_ms"] == pytest.approx(2)


# --- Until it is steady ---------------------------------------------------------------------------


class Settling(FakeEngine):
    """Takes twice as long until the clock shows `settled`."""

    settled = 1.0

    def __call__(self, images):
        slow = self.clock.now < self.settled
        self.clock.sleep(self.delay if slow else 0)
        return super().__call__(images)


def test_passes_go_on_until_the_engine_is_steady():
    engine = Settling(batch_size=2, delay=0.01)
    row = measure(engine, deadline=60)
    assert row["end_to_end"]["median_ms"] == pytest.approx(10)
    assert row["end_to_end"]["total_s"] == pytest.approx(0.5)  # of one pass, the steady one
    assert row["end_to_end"]["unsteady"] == pytest.approx(1) and row["passes"] > 1
    assert bench.unsteady_warnings([row], "why") == bench.first_call_warnings([row]) == []
    assert engine.clock.now < 20  # and no longer


class Slowing(FakeEngine):
    def __call__(self, images):
        self.delay *= 1.003
        return super().__call__(images)


def test_what_never_gets_steady_is_said_when_the_time_is_up():
    row = measure(Slowing(batch_size=2, delay=1e-4), deadline=2)
    assert row["passes"] > 1
    warning, = bench.unsteady_warnings([row, row], "the clock")
    assert "never got steady" in warning and warning.count("net: fake cpu fp32 batch 2 (") == 2
    assert warning.endswith("; the clock")
    assert bench.unsteady_warnings([dict(row, end_to_end=None)], "why") == []  # one that failed


@pytest.mark.parametrize("quota, used, why", [
    (0.3, 0.9, "quota of 0.3 of 2 CPUs"), (None, 0.3, "other programs used 30%"),
    (2.0, 0.01, "the clock changed"), (None, None, "something else")])
def test_what_disturbed_is_said(quota, used, why):
    assert why in bench.why_unsteady({"cpus": 2, "cpu_quota": quota}, used)


def test_a_first_call_far_from_the_median_is_warned_of():
    row = measure(FakeEngine(batch_size=2, delay=0.01))
    times = row["end_to_end"]
    times["first_timed_ms"] = 4.9 * times["median_ms"]
    assert bench.first_call_warnings([row]) == []
    times["first_timed_ms"] = 5.1 * times["median_ms"]
    warning, = bench.first_call_warnings([row])
    assert "51 ms, far from the median 10 ms" in warning


def test_a_steady_engine_rests_while_the_others_go_on():
    steady, slowing = stopwatch_of(FakeEngine(2)), stopwatch_of(Slowing(2, 1e-4))
    bench.take_turns([steady, slowing], deadline=steady.engine.clock.now + 2)
    assert len(steady.turns) == bench.TURNS < len(slowing.turns)


def test_one_pass_is_made_however_little_time_there_is():
    assert measure(FakeEngine(batch_size=1, delay=10), deadline=0)["passes"] == 1


# --- Nothing measured is lost ---------------------------------------------------------------------


class Breaking(FakeEngine):
    last = None

    def __call__(self, images):
        if len(self.calls) == self.last:
            raise self.error("out of memory")
        return super().__call__(images)


def breaking(calls, error=RuntimeError):
    """A stopwatch on an engine that breaks after so many more calls."""
    stopwatch = stopwatch_of(Breaking(batch_size=10))
    engine = stopwatch.engine
    engine.last, engine.error = len(engine.calls) + calls, error
    return stopwatch


def test_an_engine_that_breaks_while_it_is_timed_keeps_its_row():
    stopwatches = breaking(1), breaking(160), stopwatch_of(FakeEngine(10))
    bench.take_turns(stopwatches, repeat=3)
    early, late, well = (row_of(stopwatch, repeat=3) for stopwatch in stopwatches)
    assert early["status"] == "failed" and "out of memory" in early["reason"]
    assert early["end_to_end"] is None
    assert late["status"] == "failed" and "out of memory" in late["reason"]
    assert late["end_to_end"]["median_ms"] == pytest.approx(1) and late["accuracy"] == 1
    assert well["status"] == "ok" and well["passes"] == 3


def test_ctrl_c_keeps_what_was_measured():
    well, interrupted = stopwatch_of(FakeEngine(10)), breaking(17, KeyboardInterrupt)
    bench.take_turns([well])
    assert bench.take_turns([well, interrupted], repeat=2)  # says that it was
    assert row_of(well)["status"] == "ok"
    row = row_of(interrupted)
    assert row["status"] == "skipped" and row["reason"].startswith("interrupted before")
    assert row["end_to_end"] is None


@pytest.mark.parametrize("wrong", [0.5, np.nan, -np.inf])
def test_wrong_answers_fail_the_row(wrong):
    class Wrong(FakeEngine):
        def __call__(self, images):
            answers = super().__call__(images)
            answers[-1, 3] += wrong
            return answers

    row = measure(Wrong(batch_size=32))
    assert row["status"] == "failed" and "WRONG" in row["reason"]
    record = bench.make_record({"data": "MNIST"}, [row])
    json.dumps(record, allow_nan=False)
    assert "failed: WRONG" in tables.format_report(record)


def test_int8_may_change_what_the_reference_was_not_sure_of():
    reference = np.log(np.array([[0.75, 0.25]] * 50 + [[0.9, 0.1]] * 50, np.float32))
    for changed, wrong in ((slice(0, 50), False), (slice(50, 51), True)):
        outputs = reference + 5  # which no other precision may
        outputs[changed] = outputs[changed, ::-1]
        assert bool(judge_outputs(MNIST, outputs, reference, "int8")[1]) == wrong


# --- Statistics -----------------------------------------------------------------------------------


def test_percentiles_need_calls_beyond_them():
    seconds = [k / 1000 for k in range(1, 1001)]
    assert [bench.percentile(seconds, percent) for percent in (50, 90, 99)] == \
        pytest.approx([501, 901, 991])
    assert bench.percentile(seconds[:999], 99) is None  # nine calls lie beyond it
    assert bench.percentile(seconds[:156], 90) is not None
    assert bench.percentile(seconds[:1], 50) == 1.0


def test_no_outlier_is_removed_and_the_median_pass_is_reported():
    passes = [[1, 1, 1, 1, 4], [2, 2, 2, 2, 1], [9, 1, 1, 1, 1]]
    turns = [bench.Turn({"end_to_end": [seconds]}, 1) for calls in passes
             for seconds in calls]
    result = bench.statistics(0.5, turns, "end_to_end", images=100)
    assert result["total_s"] == 9 and result["median_ms"] == 1000
    assert result["first_call_ms"] == 500 and result["unsteady"] == 9


# --- Tables and warnings --------------------------------------------------------------------------


def test_table_fits_the_screen_and_rows_skipped_for_one_reason_share_a_line():
    reason = "no usable NVIDIA GPU or driver; " + "nvidia-smi shows what is there, " * 4
    rows = [bench.empty_row("torch", "cuda", "fp32", size, IMAGES, reason=reason, **FACTS)
            for size in (1, 64)]
    rows.append(dict(measure(FakeEngine(batch_size=64)), engine="torch-compile"))
    rows[2]["end_to_end"].update(total_s=1234.567, images_per_s=1234567, median_ms=1234.5)
    lines = tables.format_table(rows, tables.columns_for(rows)).split("\n")
    assert max(map(len, lines)) <= 100
    skipped = " ".join(" ".join(lines[3:-1]).split())
    assert skipped == "torch cuda fp32 1 64 skipped: " + reason.strip()
    markdown = tables.format_markdown(rows, tables.columns_for(rows)).split("\n")
    assert len(markdown) == 4 and len({line.count("|") for line in markdown}) == 1


def test_launch_bound_gpu_is_explained():
    rows = [measure(FakeEngine(batch_size=size)) for size in (64, 1)]
    for row, median in zip(rows, (0.12, 0.10)):
        row["compute"]["median_ms"] = median
    assert bench.launch_warnings(rows) == []  # a CPU isn't launched
    for row in rows:
        row["device"] = "cuda"
    warning, = bench.launch_warnings(rows)
    assert "batch 1: launch-bound" in warning and "1.2 times" in warning
    rows[0]["compute"]["median_ms"] = 0.5
    assert bench.launch_warnings(rows) == []


@pytest.mark.skipif(not os.path.exists("/proc/stat"), reason="the system doesn't say")
def test_what_other_programs_use_is_noticed(monkeypatch):
    monkeypatch.setattr(bench, "time", time)
    others = bench.OtherPrograms()
    burn = "import time; end = time.time() + 0.6\nwhile time.time() < end: pass"
    subprocess.run([sys.executable, "-c", burn], check=True)
    busy = others.share()
    assert busy > 0.2 / os.cpu_count()
    warnings = bench.make_record({}, [], busy)["warnings"]
    assert any("other programs used" in text for text in warnings)
    assert bench.make_record({}, [], 0.01)["warnings"] == bench.make_record({}, [])["warnings"]
