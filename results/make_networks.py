"""Write docs/networks.md's table from the records of trainings and of one comparison.

examples:
  python CompareMNIST.py --network net small lenet5 --json results/2026-01-31-desktop.json
  python results/make_networks.py results/2026-01-31-desktop.json

The trainings: weights/NAME.json for what is shipped, results/training/*.json for others.
"""

import collections
import glob
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(HERE))

from pages import ROOT, fill, read_json

from mnist.bench.tables import read_record
from mnist.cli import make_parser, run_program
from MNISTmodel import NETWORKS, count_macs, count_parameters

# What was published for these networks, % of the test digits.
PUBLISHED = {"net": "98.9", "lenet5": "98.92", "separable": "97.87"}


def main():
    parser = make_parser(__doc__)
    parser.add_argument("record", metavar="FILE", help="a record of CompareMNIST.py --json")
    arguments = parser.parse_args()
    fill("docs/networks.md", "networks", make_table(trainings(), read_record(arguments.record)))


def trainings():
    """The records of the trainings on MNIST by network: of what is shipped, and others."""
    records = [read_json(path) for path in
               glob.glob(os.path.join(ROOT, "weights", "*[!x].json"))  # no ONNX file's
               + glob.glob(os.path.join(HERE, "training", "*.json"))]
    return {record["settings"]["network"]: record for record in records
            if record.get("image_set", {"name": "mnist"})["name"] == "mnist"}


def make_table(found, comparison):
    """The table in Markdown."""
    engines = list(collections.OrderedDict.fromkeys(
        row["engine"] for row in comparison["rows"]
        if row["end_to_end"] and row["engine"] != "usual-loop"
        and (row["device"], row["precision"]) == ("cpu", "fp32")))
    header = ["network", "parameters", "MACs", "file KB", "accuracy %", "published %",
              "training"] + [f"{engine} s, batch 1 / 64" for engine in engines]
    lines = [header, ["---"] + ["--:"] * (len(header) - 1)]
    for name in NETWORKS:
        if name.startswith(("separable-", "pooled-", "resnet")):
            continue  # variants that are trained in studies alone, and other image sets'
        known = cells(name, found[name]) if name in found else cells_without_record(name)
        lines.append(known + [times(comparison, name, engine) for engine in engines])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cells(name, record):
    """What the training says of one network: its accuracy with its standard error."""
    accuracy, epochs = record["result"]["accuracy"], record["settings"]["epochs"]
    error = (accuracy * (1 - accuracy) / 10000) ** 0.5
    return [
        f"`{name}`", f"{record['weights']['parameters']:,}", f"{record['weights']['macs']:,}",
        kilobytes(name), f"{100 * accuracy:.2f} ± {100 * error:.2f}", PUBLISHED.get(name, "-"),
        f"{epochs} epoch{'s' if epochs > 1 else ''}, {record['result']['seconds'] / 60:.0f} min"]


def cells_without_record(name):
    """What is known of a network whose training wasn't recorded."""
    net = NETWORKS[name]().eval()
    return [f"`{name}`", f"{count_parameters(net):,}", f"{count_macs(net):,}",
            kilobytes(name), "-", PUBLISHED.get(name, "-"), "not yet"]


def kilobytes(name):
    """The size of a network's shipped weights."""
    path = os.path.join(ROOT, "weights", name + ".pth")
    return f"{os.path.getsize(path) / 1000:,.0f}" if os.path.exists(path) else "not shipped"


def times(comparison, name, engine):
    """Seconds for all the digits at batch 1 and 64."""
    seconds = {row["batch_size"]: row["end_to_end"]["total_s"] for row in comparison["rows"]
               if (row["network"], row["engine"], row["device"], row["precision"])
               == (name, engine, "cpu", "fp32") and row["end_to_end"]}
    return " / ".join(f"{seconds[size]:.3f}" if size in seconds else "-" for size in (1, 64))


if __name__ == "__main__":
    run_program(main)
