"""Write results/README.md from the records beside it.

examples:
  python CompareMNIST.py --json results/2026-01-31-jetson-nano.json \\
                         --plot results/2026-01-31-jetson-nano.png
  python results/make_readme.py

A record is named by its date and machine; its plot has the same name.
"""

import glob
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(HERE))

from mnist.bench.tables import format_comparison, read_record
from mnist.cli import make_parser, run_program
from mnist.files import write_atomically

INTRODUCTION = """\
# Results

Records of real machines, made by `CompareMNIST.py --json` and named by date and machine. This page
is made from them: `python results/make_readme.py`. Two or more beside each other, with ratios:
`python CompareMNIST.py --compare results/*.json`.

Times are end-to-end, from raw pixels to log-probabilities in host memory; `compute` is the network
alone. Latencies are per batch, the total is for all the digits. The speed-up is over torch on the
same CPU.
"""


def main():
    make_parser(__doc__).parse_args()
    paths = sorted(glob.glob(os.path.join(HERE, "*.json")))
    page = "\n".join([INTRODUCTION] + [section(path) for path in paths])
    with write_atomically(os.path.join(HERE, "README.md")) as file:
        file.write(page.encode())


def section(path):
    """One record: its name, its plot where there is one, its table, machine and warnings."""
    stem = os.path.splitext(path)[0]
    name = os.path.basename(stem)
    plot = f"![latency and throughput]({name}.png)\n\n" if os.path.exists(stem + ".png") else ""
    return f"## {name}\n\n{plot}{format_comparison(read_record(path), markdown=True)}\n"


if __name__ == "__main__":
    run_program(main)
