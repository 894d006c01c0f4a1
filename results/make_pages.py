"""Write results/README.md and fill the tables of docs/*.md from the records here.

examples:
  python CompareMNIST.py --json results/2026-01-31-jetson-nano.json \\
                         --plot results/2026-01-31-jetson-nano.png
  python results/make_pages.py

results/*.json   comparisons, named by date and machine, each with its plot beside it; the newest
                 *-networks.json also makes docs/networks.md, with the records of the trainings in
                 weights/ and training/
search/*.json    studies, each for the place of its name in docs/search.md
compress/*.json  of CompressMNIST.py, for docs/compression.md
"""

import collections
import glob
import json
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
sys.path.insert(0, ROOT)

from mnist.bench.tables import as_markdown, format_comparison, format_study, read_record
from mnist.cli import make_parser, run_program
from mnist.errors import MNISTError
from mnist.files import write_atomically
from MNISTmodel import NETWORKS

INTRODUCTION = """\
# Results

Records of real machines, made by `CompareMNIST.py --json` and named by date and machine. This page
is made from them: `python results/make_pages.py`. Two or more beside each other, with ratios:
`python CompareMNIST.py --compare results/*.json`.

Times are end-to-end, from raw pixels to log-probabilities in host memory; `compute` is the network
alone. Latencies are per batch, the total is for all the digits. The speed-up is over torch on the
same CPU.
"""
STUDY_ROWS = 10  # of a study; the record has the rest
BATCHES = (1, 64)


def main():
    make_parser(__doc__).parse_args()
    with write_atomically(os.path.join(HERE, "README.md")) as file:
        file.write("\n".join([INTRODUCTION] + list(map(comparison, records("*")))).encode())
    fill("docs/networks.md", "networks", networks(read_record(records("*-networks")[-1])))
    for path in records("search", "*"):
        fill("docs/search.md", name_of(path), study(read_json(path)))
    fill("docs/compression.md", "compressed",
         "\n\n".join(compression(read_json(path)) for path in records("compress", "*")))


def records(*name):
    """The paths of the records here of such a name, in its order."""
    return sorted(glob.glob(os.path.join(HERE, *name) + ".json"))


def name_of(path):
    return os.path.splitext(os.path.basename(path))[0]


def read_json(path):
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def fill(page, name, text):
    """Put `text` between the marks called `name` of a page. Raises MNISTError where it lacks them.
    """
    path = os.path.join(ROOT, page)
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    with open(path, encoding="utf-8") as file:
        content = file.read()
    if begin not in content or end not in content:
        raise MNISTError(f"{page} lacks the lines between which the table goes: {begin}, {end}")
    before, after = content.split(begin)[0], content.split(end)[1]
    with write_atomically(path) as file:
        file.write(f"{before}{begin}\n{text}\n{end}{after}".encode())


def by_batch(times):
    """{batch size: time} as "1.399 / 0.220"."""
    return " / ".join(f"{times[size]:.3f}" if size in times else "-" for size in BATCHES)


# --- What the pages show --------------------------------------------------------------------------


def comparison(path):
    """One record: its name, its plot where there is one, its table, machine and warnings."""
    name = name_of(path)
    plot = f"![latency and throughput]({name}.png)\n\n" if os.path.exists(
        os.path.join(HERE, name + ".png")) else ""
    return f"## {name}\n\n{plot}{format_comparison(read_record(path), markdown=True)}\n"


# What was published for these networks, % of the test digits.
PUBLISHED = {"net": "98.9", "lenet5": "98.92", "separable": "97.87"}


def networks(compared):
    """The networks of MNIST whose training has a record, with their times in a comparison."""
    paths = glob.glob(os.path.join(ROOT, "weights", "*[!x].json"))  # no ONNX file's
    found = {record["settings"]["network"]: record
             for record in map(read_json, paths + records("training", "*"))
             if record.get("image_set", {"name": "mnist"})["name"] == "mnist"}
    rows = [row for row in compared["rows"]
            if row["end_to_end"] and row["engine"] != "usual-loop"
            and (row["device"], row["precision"]) == ("cpu", "fp32")]
    engines = list(collections.OrderedDict.fromkeys(row["engine"] for row in rows))
    lines = [["network", "parameters", "MACs", "file KB", "accuracy %", "published %", "training"]
             + [f"{engine} s, batch 1 / 64" for engine in engines]]
    for name in (name for name in NETWORKS if name in found):
        lines.append(training(name, found[name]) + [
            by_batch({row["batch_size"]: row["end_to_end"]["total_s"] for row in rows
                      if (row["network"], row["engine"]) == (name, engine)}) for engine in engines])
    return as_markdown(lines)


def training(name, record):
    """What the training says of one network: its accuracy with its standard error."""
    accuracy, epochs = record["result"]["accuracy"], record["settings"]["epochs"]
    error = (accuracy * (1 - accuracy) / 10000) ** 0.5
    path = os.path.join(ROOT, "weights", name + ".pth")
    size = f"{os.path.getsize(path) / 1000:,.0f}" if os.path.exists(path) else "not shipped"
    return [
        f"`{name}`", f"{record['weights']['parameters']:,}", f"{record['weights']['macs']:,}",
        size, f"{100 * accuracy:.2f} ± {100 * error:.2f}", PUBLISHED.get(name, "-"),
        f"{epochs} epoch{'s' if epochs > 1 else ''}, {record['result']['seconds'] / 60:.0f} min"]


def study(record):
    """A study's ranking, and what it was of."""
    stopped = sum(row["pruned"] for row in record["rows"])
    seeds = record["study"]["seeds"]
    facts = [f"{len(record['rows'])} settings"
             + (f" of which {stopped} were stopped early" if stopped else ""),
             f"{seeds} seed{'s' if seeds > 1 else ''} each",
             f"trained on {record['trained_on']:,} digits",
             f"judged on {record['held_out']:,} others"]
    rest = len(record["rows"]) - STUDY_ROWS
    return (f"{', '.join(facts)}.\n\n{format_study(record, markdown=True, most=STUDY_ROWS)}\n"
            + (f"\n{rest} more are in the record.\n" if rest > 0 else "")
            + f"\nThe best reads {record['choice']['test_accuracy']:.2%} of the test digits.")


TIMED = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}


def compression(record):
    """What compression made of the network of one image set."""
    rows = record["rows"]
    lines = [["", "not zero", "ONNX KB", "gzipped KB", "ideal KB", "correct %", "changed"]
             + [f"{name} ms, batch 1 / 64" for name in TIMED.values()]]
    for row in rows:
        kilobytes = ["-" if row[key] is None else f"{row[key] / 1e3:,.1f}"
                     for key in ("onnx_bytes", "gzip_bytes", "ideal_bytes")]
        times = [by_batch({time["batch_size"]: time["median_ms"] for time in row["times"]
                           if (time["engine"], time["device"]) == (engine, "cpu")})
                 for engine in TIMED]
        lines.append([row["method"], f"{row['non_zero']:,}", *kilobytes,
                      f"{row['right'] / row['images']:.2%}"[:-1], f"{row['changed']:,}", *times])
    return (f"**{record['settings']['image_set']}**, {rows[0]['parameters']:,} parameters, "
            f"{rows[0]['images']:,} test images:\n\n{as_markdown(lines)}")


if __name__ == "__main__":
    run_program(main)
