"""Measure whether a row is the same in the whole comparison as alone.

examples:
  python benchmarks/company.py                          net and small, about ten minutes
  python benchmarks/company.py --network net --rounds 3

In each round CompareMNIST.py runs once with everything, and once for each of its rows with nothing
else; everything has as much longer to get steady. Each line shows a row's median over the rounds in
both, of the whole time and of the 90th percentile of its calls, and the ratio of the two.
"""

import json
import os
import statistics
import subprocess
import sys

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, HERE)

from mnist.cli import make_parser, positive_int, run_program
from mnist.errors import MNISTError

KEYS = ("network", "engine", "device", "precision", "batch_size")


def main():
    parser = make_parser(__doc__)
    parser.add_argument("--network", nargs="+", default=["net", "small"], metavar="NAME",
                        help="built-in networks (default: net small)")
    parser.add_argument("--rounds", type=positive_int, default=1, metavar="N",
                        help="how often all of it is measured (default: 1)")
    options = parser.parse_args()
    company, alone = {}, {}
    for _ in range(options.rounds):
        for key, row in compare("--seconds", "300", "--network", *options.network).items():
            company.setdefault(key, []).append(row)
            flags = [part for name, value in zip(KEYS, key)
                     for part in ("--" + name.replace("_", "-"), str(value))]
            alone.setdefault(key, []).append(compare(*flags)[key])
    show(company, alone)


def compare(*flags):
    """{key: row} of the rows that a run of CompareMNIST.py could measure."""
    done = subprocess.run([sys.executable, "CompareMNIST.py", "--json", "-", *flags], cwd=HERE,
                          capture_output=True, text=True)
    if done.returncode:
        raise MNISTError(f"CompareMNIST.py {' '.join(flags)}:\n{done.stderr}")
    return {tuple(row[name] for name in KEYS): row["end_to_end"]
            for row in json.loads(done.stdout)["rows"] if row["end_to_end"]}


def show(company, alone):
    """Print each row, and how far the worst are from each other."""
    ratios = []
    for key, rows in company.items():
        times = {name: [statistics.median(row[name] for row in measured)
                        for measured in (rows, alone[key])] for name in ("total_s", "p90_ms")}
        ratios.append({name: together / single for name, (together, single) in times.items()})
        total, p90 = times["total_s"], times["p90_ms"]
        print(f"{' '.join(map(str, key)):40} {total[0]:.3f} / {total[1]:.3f} s = "
              f"{ratios[-1]['total_s']:.3f}, p90 {p90[0]:.4f} / {p90[1]:.4f} ms = "
              f"{ratios[-1]['p90_ms']:.3f}", flush=True)
    for name in ("total_s", "p90_ms"):
        values = [ratio[name] for ratio in ratios]
        within = sum(abs(value - 1) <= 0.05 for value in values)
        print(f"{name}: {within} of {len(values)} rows within 5 %, ratios {min(values):.3f} to "
              f"{max(values):.3f}")


if __name__ == "__main__":
    run_program(main)
