"""CompareMNIST.py: table, plot and comparison from synthetic records; and a real run."""

import copy
import json
import os
import re
import stat

import numpy as np
import own_networks
import pytest
import stub_engines
from scripts import refused, run, start
from test_readme import check_columns

import CompareMNIST
import mnist.bench.processes  # noqa: F401 - knows the engines before a test replaces them
import MNISTdsource
from mnist.bench import plots, reference, tables
from mnist.bench.stopwatch import empty_row, make_record
from mnist.engines import registry
from mnist.errors import MNISTError, UnavailableError
from mnist.models.weights import SHIPPED, Network, load_network, save_weights

QUICK = "--threads", "1", "--seconds", "0", "--no-tuning"
RIGHT = "\nonnxruntime cpu fp32"  # the row of an engine that is as it should be
SHIPPED_NET = os.path.join(SHIPPED, "net.pth")

SPEED = {("torch", 1): 6000, ("torch", 64): 12000, ("onnxruntime", 1): 15000,
         ("onnxruntime", 64): 21000}


FACTS = {"network": "net", "weights": "weights/net.pth (shipped)"}


def measured(engine, batch_size, speed):
    calls = -(-10000 // batch_size)
    clock = dict(total_s=10000 / speed, images_per_s=speed, first_call_ms=99.9,
                 median_ms=1e7 / speed / calls, p90_ms=1.2e7 / speed / calls, p99_ms=None,
                 unsteady=1.0, first_timed_ms=1.0)
    return dict(empty_row(engine, "cpu", "fp32", batch_size, 10000, "ok", **FACTS),
                accuracy=0.9901, loss=0.03, max_difference=1e-5, end_to_end=clock, compute=clock,
                passes=1)


def make(scale=1.0):
    rows = [measured(engine, batch, scale * speed) for (engine, batch), speed in SPEED.items()]
    rows += [empty_row("tensorrt", "cuda", "fp16", batch, 10000, **FACTS,
                       reason="no GPU, " * 15 + "alas") for batch in (1, 64)]
    tables.add_speed_ups(rows)
    return make_record({"data": "MNIST"}, rows)


@pytest.fixture
def record():
    return make()


def test_speed_up_is_over_torch_on_the_cpu_at_the_same_batch(record):
    assert [row["speed_up"] for row in record["rows"]] == [1, 1, 2.5, 1.75, None, None]
    rows = [row for row in record["rows"] if row["engine"] != "torch"]
    tables.add_speed_ups(rows)
    assert all(row["speed_up"] is None for row in rows)


def test_report_fits_the_screen_and_holds_everything(record):
    record["warnings"].append("long " * 50)
    report = tables.format_comparison(record)
    assert max(map(len, report.split("\n"))) <= 100
    for text in ("2.50x", "99.01", "skipped: no GPU", "alas", "Jetson Nano: TensorRT", "50.0",
                 "13.5", "warning: long", record["machine"]["os"][:10]):
        assert text in report


def test_records_beside_each_other(tmp_path):
    files = tmp_path / "a.json", tmp_path / "b.json"
    for path, scale in zip(files, (1, 0.5)):  # the second half as fast
        path.write_text(json.dumps(make(scale)))
    out, _ = run("CompareMNIST.py", "--compare", *files, "--plot", tmp_path / "both.png")
    lines = out.split("\n")
    assert max(map(len, lines)) <= 100
    pairs = [line.split() for line in lines if line.startswith(("torch", "onnxruntime"))]
    assert [line[4] for line in pairs] == ["A", "B"] * 4
    assert [line[-1] for line in pairs] == ["1.00x", "0.50x"] * 4
    assert "A: a.json" in out and "B: b.json" in out
    assert (tmp_path / "both.png").read_bytes().startswith(b"\x89PNG")


def test_a_row_that_the_first_record_lacks_is_compared_with_the_next(record):
    first = copy.deepcopy(record)
    del first["rows"][0]
    rows = tables.merge_rows([first, record])
    assert [(row["letter"], row["ratio"]) for row in rows
            if tables.row_key(row) == ("torch", "cpu", "fp32", "net", 1)] == [("B", 1)]


@pytest.mark.parametrize("content", [None, "[]", '{"schema": 1, "rows": []}', "\0"])
def test_what_is_no_record_is_refused(tmp_path, content):
    path = tmp_path / "record.json"
    if content is not None:
        path.write_text(content)
    _, err = refused("CompareMNIST.py", "--compare", path)
    assert str(path) in err and len(err.strip().split("\n")) == 1


@pytest.mark.parametrize("program, flags, words", [
    ("CompareMNIST.py", ["--plot", "plot.xyz"], ".png, .svg or .pdf"),
    ("CompareMNIST.py", ["--json", "."], "is a folder"),
    ("InferenceMNIST.py", ["--mistakes", "nosuch/plot.png"], "there is no folder"),
    ("CompareMNIST.py", ["--compare", "a.json", "b.json", "--limit", 5], "--limit has no effect"),
    ("CompareMNIST.py", ["--network", "net", "--weights", "a.pth", "b.pth"],
     "one file for each --network"),
    ("CompareMNIST.py", ["--engine", "onxruntime"], "did you mean onnxruntime"),
    ("CompareMNIST.py", ["--engine", "torch-graph", "--device", "cpu"],
     "torch-graph: no engine does all"),
])
def test_what_cannot_be_is_found_out_first(tmp_path, program, flags, words):
    out, err = refused(program, *flags, cwd=tmp_path)
    assert words in err and out == ""


def test_plot(record, tmp_path):
    record["rows"][2].update(status="failed", reason="WRONG: answers differ")
    plots.save_plot(str(tmp_path / "plot.svg"), [record])
    text = (tmp_path / "plot.svg").read_text()
    for word in ("batch 64", "published, Jetson Nano: TensorRT", "12,000", "15,000 WRONG"):
        assert word in text, word


def test_several_networks_in_one_run(tmp_path, small_mnist):
    record = tmp_path / "record.json"
    save_weights(own_networks.Dense(), tmp_path / "dense.pth")
    out, _ = run("CompareMNIST.py", "--network", "net", f"{own_networks.__file__}:Dense",
                 "--weights", SHIPPED_NET, tmp_path / "dense.pth", "--data-dir", small_mnist,
                 "--limit", 64, "--batch-size", 16, "--device", "cpu", "--engine", "torch",
                 "onnxruntime", "--precision", "fp32", *QUICK, "--json", record, "--plot",
                 tmp_path / "plot.svg")
    rows = json.loads(record.read_text())["rows"]
    assert [(row["engine"], row["network"]) for row in rows] == [
        ("torch", "net"), ("torch", "Dense"), ("onnxruntime", "net"), ("onnxruntime", "Dense")]
    assert "torch cpu fp32 Dense" in (tmp_path / "plot.svg").read_text()
    assert "net from weights/net.pth (shipped), Dense from" in out and "network" in out
    assert "on 64 test images of IDX files in" in " ".join(out.split())


def test_record_goes_into_a_pipe(small_mnist, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with start("CompareMNIST.py", "--data-dir", small_mnist, "--limit", 16, "--batch-size", 16,
               "--engine", "torch", "--device", "cpu", *QUICK, "--json", pipe,
               "--markdown") as process:
        record = json.loads(pipe.read_text())
        out, _ = process.communicate()
    assert record["rows"][0]["engine"] == "torch" and stat.S_ISFIFO(os.stat(pipe).st_mode)
    assert out.startswith("net from") and "\n\n| engine |" in out
    assert "torch | cpu fp32 | 16 |" in out


def test_a_plot_that_fails_comes_after_the_table(monkeypatch, small_mnist, tmp_path, capsys):
    def fail(*_):
        raise MNISTError("can't write it: disk full")

    monkeypatch.setattr(plots, "save_plot", fail)
    with pytest.raises(MNISTError, match="disk full"):
        in_process(monkeypatch, small_mnist, "--engine", "torch", "--precision", "fp32", "--plot",
                   str(tmp_path / "a.png"), "--json", str(tmp_path / "a.json"))
    assert "\ntorch  cpu fp32" in capsys.readouterr().out and (tmp_path / "a.json").exists()


def test_no_digit_misread_and_all_of_them(tmp_path):
    labels = np.arange(200) % 10
    images = np.zeros((200, 1, 28, 28), np.uint8)
    for name, shift in (("none", 0), ("all", 1)):
        answers = np.log(np.full((200, 10), 0.01, np.float32))
        answers[np.arange(200), (labels + shift) % 10] = np.log(0.91)
        plots.plot_mistakes(str(tmp_path / f"{name}.svg"), images, labels, answers,
                            Network(None, origin="net"))
    assert "net: 0 of 200 images misread" in (tmp_path / "none.svg").read_text()
    assert "the 120 surest shown" in (tmp_path / "all.svg").read_text()


def test_a_real_run(tmp_path, small_mnist):
    path = tmp_path / "record.json"
    out, err = run("CompareMNIST.py", "--data-dir", small_mnist, "--limit", 130, "--device", "cpu",
                   "--batch-size", 64, *QUICK, "--json", path, "--plot", tmp_path / "plot.png")
    record = json.loads(path.read_text())
    usable = [(name, precision) for name, kind in registry.ENGINES.items()
              if not kind.on_request for precision in kind.precisions.get("cpu", ())
              if registry.why_not(name, "cpu", precision) is None]
    ran = [row for row in record["rows"] if row["status"] == "ok"]
    assert [(row["engine"], row["precision"]) for row in ran] == usable
    assert all(row["images"] == 130 and row["speed_up"] > 0 and row["prepare_s"] > 0
               and row["end_to_end"]["total_s"] > 0 for row in ran)
    assert all(row["max_difference"] < 1e-3 for row in ran if row["precision"] == "fp32")
    assert record["settings"]["threads"] == 1 and "1 thread," in err
    check_columns("python CompareMNIST.py", out)
    assert (tmp_path / "plot.png").stat().st_size > 5000


def in_process(monkeypatch, small_mnist, *flags):
    monkeypatch.setattr("sys.argv", ["CompareMNIST.py", "--data-dir", str(small_mnist), "--limit",
                                     "64", "--batch-size", "64", "--device", "cpu", *QUICK, *flags])
    return CompareMNIST.main()


def with_engines(monkeypatch, *behaviours):
    """Register some engines more, here and in their processes."""
    for name, kind in stub_engines.kinds(*behaviours).items():
        monkeypatch.setitem(registry.ENGINES, name, kind)
    monkeypatch.setattr("MNISTdsource.calibration_images", stub_engines.Stowaway(*behaviours))


def test_an_engine_that_goes_wrong_costs_its_own_row(monkeypatch, small_mnist, capfd):
    failures = {"wrong": "failed: WRONG", "breaks": "failed: RuntimeError: lost the GPU",
                "fails": "failed: RuntimeError: out of memory",
                "segv": "failed: SIGSEGV while opening",
                "exits": "failed: ended with status 3 while opening",
                "hangs": "failed: no answer for 6 s while opening; ended"}
    with_engines(monkeypatch, *failures)
    monkeypatch.setattr("mnist.bench.processes.OPENING_SECONDS", 6)
    assert in_process(monkeypatch, small_mnist, "--engine", *failures, "onnxruntime", "--precision",
                      "fp32") == 1
    out, err = capfd.readouterr()
    assert max(map(len, out.split("\n"))) <= 100
    for name, words in failures.items():
        row = re.search(rf"^{name} .*(\n .*)*", out, re.MULTILINE).group()
        assert words in " ".join(row.split()), name
        assert f"net: {name} cpu fp32 batch 64: opening" in err
    assert RIGHT in out


def test_a_reference_that_computes_wrongly_is_noticed(monkeypatch, small_mnist, capsys):
    """As torch 2.13 on an aarch64 with SVE did: the other engines are right, and say so."""
    right = reference.reference_log_probs
    monkeypatch.setattr(reference, "reference_log_probs",
                        lambda network, images: np.roll(right(network, images), 1, axis=1))
    with_engines(monkeypatch, "wrong")
    assert in_process(monkeypatch, small_mnist, "--engine", "onnxruntime", "wrong", "--precision",
                      "fp32", "--weights", SHIPPED_NET) == 1
    out, err = capsys.readouterr()
    assert "computes wrongly on this machine" in err and "known answers differ by" in err
    assert out.count("failed: WRONG") == 1 and RIGHT in out


def test_engines_go_in_groups_that_memory_holds(monkeypatch, small_mnist, tmp_path, capsys):
    with_engines(monkeypatch, "missing")  # comes last, and needs no group
    monkeypatch.setattr(registry, "ENGINES", {
        name: registry.ENGINES[name] for name in ("onnxruntime", "missing")})
    monkeypatch.setattr("mnist.bench.processes.free_memory", lambda device: 5e8)
    in_process(monkeypatch, small_mnist, "--precision", "fp32", "--batch-size", "1", "64", "--json",
               str(tmp_path / "record.json"))
    record = json.loads((tmp_path / "record.json").read_text())
    assert [row["status"] for row in record["rows"]] == ["ok", "ok", "skipped", "skipped"]
    assert record["settings"]["groups"] == 2 and "timed in 2 groups" in "".join(record["warnings"])
    out, err = capsys.readouterr()
    assert "memory holds no more engines at once" in err
    assert "skipped: it is not there; pip install it" in out
    with pytest.raises(UnavailableError, match="missing: it is not there"):
        in_process(monkeypatch, small_mnist, "--engine", "missing")


@pytest.mark.mnist
@pytest.mark.parametrize("change, words", [
    (lambda images: images.transpose(0, 1, 3, 2), "transposed"), (lambda images: 255 - images,
                                                                  "inverted")])
def test_images_that_lie_otherwise_than_the_network_s_are_hinted_at(mnist_dir, change, words):
    images, targets = (array[:600] for array in MNISTdsource.load_split("test", mnist_dir))
    network = load_network(SHIPPED_NET)
    outputs = registry.reference_log_probs(network, images)
    assert reference.hint_at_orientation(network, images, targets, outputs) is None
    changed = np.ascontiguousarray(change(images))
    outputs = registry.reference_log_probs(network, changed)
    wrong = outputs.argmax(1) != targets
    assert wrong.mean() > 0.5 and words in reference.hint_at_orientation(
        network, changed[wrong], targets[wrong], outputs[wrong])
