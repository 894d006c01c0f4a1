"""Fill docs/search.md's tables from the records of studies.

examples:
  python SearchMNIST.py grid --json results/search/grid-net.json --plot results/search/grid-net.png
  python results/make_search.py
"""

import glob
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(HERE))

from pages import fill, read_json

from mnist.bench.tables import format_study
from mnist.cli import make_parser, run_program

SHOWN = 10  # rows of a study; the record has the rest


def main():
    make_parser(__doc__).parse_args()
    for path in sorted(glob.glob(os.path.join(HERE, "search", "*.json"))):
        name = os.path.splitext(os.path.basename(path))[0]
        fill("docs/search.md", name, describe(read_json(path)))


def describe(record):
    """A study's ranking, and what it was of."""
    stopped = sum(row["pruned"] for row in record["rows"])
    seeds = record["study"]["seeds"]
    facts = [f"{len(record['rows'])} settings"
             + (f" of which {stopped} were stopped early" if stopped else ""),
             f"{seeds} seed{'s' if seeds > 1 else ''} each",
             f"trained on {record['trained_on']:,} digits",
             f"judged on {record['held_out']:,} others"]
    rest = len(record["rows"]) - SHOWN
    return (f"{', '.join(facts)}.\n\n{format_study(record, markdown=True, most=SHOWN)}\n"
            + (f"\n{rest} more are in the record.\n" if rest > 0 else "")
            + f"\nThe best reads {record['choice']['test_accuracy']:.2%} of the test digits.")


if __name__ == "__main__":
    run_program(main)
