"""Fill docs/compression.md's tables from the records of CompressMNIST.py.

examples:
  python CompressMNIST.py --data gtsrb --json results/compress/2026-01-31-desktop-gtsrb.json
  python results/make_compress.py
"""

import glob
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(HERE))

from pages import fill, read_json

from mnist.cli import make_parser, run_program

TIMED = ("onnxruntime", "ONNX Runtime"), ("openvino", "OpenVINO")
COLUMNS = ["", "not zero", "ONNX KB", "gzipped KB", "ideal KB", "correct %", "changed"]


def main():
    make_parser(__doc__).parse_args()
    tables = []
    for path in sorted(glob.glob(os.path.join(HERE, "compress", "*.json"))):
        record = read_json(path)
        rows = record["rows"]
        tables.append(f"**{record['settings']['image_set']}**, {rows[0]['parameters']:,} "
                      f"parameters, {rows[0]['images']:,} test images:\n\n" + make_table(rows))
    fill("docs/compression.md", "compressed", "\n\n".join(tables))


def make_table(rows):
    """A set's table in Markdown."""
    lines = [COLUMNS + [f"{name} ms, batch 1 / 64" for _, name in TIMED],
             ["---"] + ["--:"] * (len(COLUMNS) + len(TIMED) - 1)]
    for row in rows:
        kilobytes = ["-" if row[key] is None else f"{row[key] / 1e3:,.1f}"
                     for key in ("onnx_bytes", "gzip_bytes", "ideal_bytes")]
        lines.append([row["method"], f"{row['non_zero']:,}", *kilobytes,
                      f"{row['right'] / row['images']:.2%}"[:-1], f"{row['changed']:,}"]
                     + [times(row, engine) for engine, _ in TIMED])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def times(row, engine):
    """The median ms of batches of 1 and 64 on the CPU."""
    found = {time["batch_size"]: time["median_ms"] for time in row["times"]
             if (time["engine"], time["device"]) == (engine, "cpu")}
    return " / ".join(f"{found[size]:.3f}" if size in found else "-" for size in (1, 64))


if __name__ == "__main__":
    run_program(main)
