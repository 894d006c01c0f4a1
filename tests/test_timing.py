"""The stopwatch, against engines whose delay and answers are known."""

import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest

import MNISTreport
import MNISTtiming

IMAGES, CLASSES = 100, 10
LABELS = np.arange(IMAGES) % CLASSES


class FakeEngine:
    """Right answers after a known delay; `compute` takes a quarter of it. Reuses one buffer."""

    name, device, precision = "fake", "cpu", "fp32"

    def __init__(self, batch_size, delay, first_delay=0.0):
        self.batch_size, self.delay, self.first_delay = batch_size, delay, first_delay
        self.buffer = np.zeros((batch_size, CLASSES), np.float32)
        self.calls, self.pending = [], 0.0

    def __call__(self, images):
        time.sleep(self.delay + (self.first_delay if not self.calls else 0))
        self.calls.append(len(images))
        answers = self.buffer[:len(images)]
        answers[:] = log_probabilities(images[:, 0, 0])
        return answers

    def prepare(self, images):
        time.sleep(self.delay)  # must not be on the compute clock
        return images

    def compute(self, x):
        self.pending = self.delay / 4  # asynchronous, as on a GPU: the work ends in synchronise

    def synchronise(self):
        time.sleep(self.pending)
        self.pending = 0.0


def log_probabilities(labels):
    return np.log(np.where(np.eye(CLASSES)[labels % CLASSES] > 0, 0.91, 0.01)).astype(np.float32)


def digits():
    """Images that carry their label in their first pixel."""
    images = np.zeros((IMAGES, 28, 28), np.uint8)
    images[:, 0, 0] = LABELS
    return images


def measure(engine, **settings):
    return MNISTtiming.time_engine(engine, digits(), LABELS, log_probabilities(LABELS), **settings)


def test_known_delay_is_measured():
    row = measure(FakeEngine(batch_size=16, delay=0.004, first_delay=0.05))
    end_to_end, compute = row["end_to_end"], row["compute"]
    assert 4.0 <= end_to_end["median_ms"] < 6.0
    assert 1.0 <= compute["median_ms"] < 2.0
    assert 54 <= end_to_end["first_call_ms"] < 80
    assert 0.028 <= end_to_end["total_s"] < 0.045  # 7 batches, the first call not among them
    assert end_to_end["images_per_s"] == pytest.approx(IMAGES / end_to_end["total_s"])
    assert compute["total_s"] < end_to_end["total_s"] / 2


def test_answers_are_judged_although_the_engine_reuses_its_buffer():
    row = measure(FakeEngine(batch_size=7, delay=0))
    assert row["status"] == "ok" and row["accuracy"] == 1.0 and row["max_difference"] == 0.0
    assert row["loss"] == pytest.approx(-np.log(0.91), rel=1e-5)


def test_every_shape_is_warmed_up_and_the_remainder_comes_as_it_is():
    engine = FakeEngine(batch_size=16, delay=0.001)
    stopwatch = MNISTtiming.Stopwatch(engine, digits())
    warm_up = engine.calls[1:]
    assert warm_up.count(16) >= 10 and warm_up.count(4) >= 10
    assert len(warm_up) * 0.001 > 0.3  # 200 ms each
    engine.calls.clear()
    MNISTtiming.take_turns([stopwatch], repeat=2)
    assert engine.calls.count(4) == 2 and engine.calls.count(16) >= 12
    assert [len(seconds) for seconds in stopwatch.passes["end_to_end"]] == [7, 7]
    assert [len(seconds) for seconds in stopwatch.passes["compute"]] == [7, 7]


def test_engines_take_turns_and_each_answers_every_image_once():
    order = []

    class Noting(FakeEngine):
        def __call__(self, images):
            order.append(self)
            return super().__call__(images)

    engines = [Noting(batch_size=10, delay=0), Noting(batch_size=1, delay=0)]
    stopwatches = [MNISTtiming.Stopwatch(engine, digits()) for engine in engines]
    order.clear()
    MNISTtiming.take_turns(stopwatches, repeat=2)
    changes = sum(before is not after for before, after in zip(order, order[1:]))
    assert changes == 2 * 2 * MNISTtiming.TURNS - 1
    for stopwatch in stopwatches:
        row = stopwatch.row(LABELS, log_probabilities(LABELS))
        assert row["accuracy"] == 1.0 and row["images"] == IMAGES


def test_an_engine_that_brings_its_own_loop_is_timed_in_it():
    class Looping(FakeEngine):
        def loop(self, images):
            for image in images:
                time.sleep(0.002)
                yield log_probabilities(image[None, 0, 0])

        def __call__(self, images):
            raise AssertionError("the loop is there to be timed")

    row = measure(Looping(batch_size=1, delay=0.001))
    assert row["status"] == "ok" and row["accuracy"] == 1.0
    assert 2.0 <= row["end_to_end"]["median_ms"] < 4.0


@pytest.mark.parametrize("wrong", [0.5, np.nan, -np.inf])
def test_wrong_answers_fail_the_row(wrong):
    class Wrong(FakeEngine):
        def __call__(self, images):
            answers = super().__call__(images)
            answers[-1, 3] += wrong
            return answers

    row = measure(Wrong(batch_size=32, delay=0))
    assert row["status"] == "failed" and "WRONG" in row["reason"]
    record = MNISTtiming.make_record({}, [row])
    json.dumps(record, allow_nan=False)
    assert "failed: WRONG" in MNISTreport.format_report(record)


def test_percentiles_need_calls_beyond_them():
    seconds = [k / 1000 for k in range(1, 1001)]
    assert MNISTtiming.percentile(seconds, 50) == pytest.approx(501)
    assert MNISTtiming.percentile(seconds, 90) == pytest.approx(901)
    assert MNISTtiming.percentile(seconds, 99) == pytest.approx(991)
    assert MNISTtiming.percentile(seconds[:156], 90) is not None
    assert MNISTtiming.percentile(seconds[:156], 99) is None
    assert MNISTtiming.percentile(seconds[:5], 90) is None
    assert MNISTtiming.percentile(seconds[:1], 50) == 1.0


def test_no_outlier_is_removed_and_the_median_pass_is_reported():
    result = MNISTtiming.statistics(0.5, [[1, 1, 1, 4], [2, 2, 2, 1], [9, 1, 1, 1]], full=3,
                                    images=100)
    assert result["total_s"] == 7 and result["median_ms"] == 1000
    assert result["first_call_ms"] == 500


def test_unsteady_run_warns():
    class Slowing(FakeEngine):
        def __call__(self, images):
            self.delay += 0.0002
            return super().__call__(images)

    steady = MNISTtiming.row_warnings(measure(FakeEngine(batch_size=2, delay=0.002)))
    unsteady = MNISTtiming.row_warnings(measure(Slowing(batch_size=2, delay=0.002)))
    assert not any("unsteady" in text for text in steady)
    assert any("unsteady" in text for text in unsteady)


def test_table_fits_the_screen_and_keeps_rows_that_did_not_run():
    rows = [measure(FakeEngine(batch_size=size, delay=0)) for size in (1, 64)]
    for row in rows:
        row["engine"] = "torch-compile"
        row["end_to_end"].update(total_s=1234.567, images_per_s=1234567, median_ms=1234.5)
    rows.append(MNISTtiming.empty_row("tensorrt", "cuda", "fp16", 64, IMAGES, reason="no GPU here"))
    lines = MNISTreport.format_table(rows).split("\n")
    assert max(map(len, lines)) <= 100
    assert lines[-1].startswith("tensorrt") and lines[-1].endswith("skipped: no GPU here")


def test_rows_skipped_for_one_reason_share_a_line_of_at_most_100_columns():
    reason = "no usable NVIDIA GPU or driver; " + "nvidia-smi shows what is there, " * 4
    rows = [MNISTtiming.empty_row("torch", "cuda", "fp32", size, IMAGES, reason=reason)
            for size in (1, 64)]
    rows.append(measure(FakeEngine(batch_size=64, delay=0)))
    lines = MNISTreport.format_table(rows).split("\n")
    assert max(map(len, lines)) <= 100
    assert lines[3].startswith("torch  cuda fp32  1 64  skipped: no usable NVIDIA GPU")
    assert " ".join(" ".join(lines[3:-1]).split()).endswith(reason.strip())
    markdown = MNISTreport.format_markdown(rows).split("\n")
    assert len(markdown) == 4 and len({line.count("|") for line in markdown}) == 1


def test_launch_bound_gpu_is_explained():
    rows = [measure(FakeEngine(batch_size=size, delay=0)) for size in (1, 64)]
    for row, median in zip(rows, (0.10, 0.12)):
        row["compute"]["median_ms"] = median
    assert MNISTtiming.launch_warnings(rows) == []  # a CPU isn't launched
    for row in rows:
        row["device"] = "cuda"
    warning, = MNISTtiming.launch_warnings(rows)
    assert "batch 1: launch-bound" in warning and "1.2 times" in warning
    rows[1]["compute"]["median_ms"] = 0.5
    assert MNISTtiming.launch_warnings(rows) == []


@pytest.mark.skipif(not os.path.exists("/proc/stat"), reason="the system doesn't say")
def test_what_other_programs_use_is_noticed():
    others = MNISTtiming.OtherPrograms()
    burn = "import time; end = time.time() + 0.6\nwhile time.time() < end: pass"
    with subprocess.Popen([sys.executable, "-c", burn]):
        pass
    busy = others.share()
    assert busy > 0.2 / os.cpu_count()
    record = MNISTtiming.make_record({}, [], busy)
    assert any("other programs used" in text for text in record["warnings"])
    assert MNISTtiming.make_record({}, [], 0.01)["warnings"] == \
        MNISTtiming.make_record({}, [], None)["warnings"]


def test_record_has_the_schema():
    record = MNISTtiming.make_record({"repeat": 1}, [measure(FakeEngine(batch_size=64, delay=0))])
    record = json.loads(json.dumps(record, allow_nan=False))
    assert record["schema"] == 1 and record["settings"] == {"repeat": 1}
    row = record["rows"][0]
    assert {"engine", "device", "precision", "batch_size", "images", "status", "reason",
            "accuracy", "loss", "max_difference", "end_to_end", "compute"} <= set(row)
    for clock in ("end_to_end", "compute"):
        assert {"total_s", "images_per_s", "first_call_ms", "median_ms", "p90_ms",
                "p99_ms"} <= set(row[clock])
    assert record["machine"]["python"] and "torch" in record["machine"]
