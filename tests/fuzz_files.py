"""Throw damaged files at the readers of IDX files and of weights, and see what comes out.

    python tests/fuzz_files.py --idx 100000 --weights 20000

Only the project's own error may come out, naming the file; no file may take more processor time
than the checksum of four gigabytes (about a second), and the memory stays (on Linux) within 200 MB
of what was held before. The ordinary tests do a smaller number through the same code. hypothesis
chooses the damage, the same each time, and shows the smallest that it finds to fail.
"""

import argparse
import functools
import gzip
import io
import os
import struct
import sys
import tempfile
import time
import warnings
import zipfile
import zlib

try:
    import resource
except ImportError:  # Windows
    resource = None

import hypothesis
from hypothesis import strategies

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from mnist.datasets.idx import IDX_TYPES, read_idx  # noqa: E402
from mnist.errors import MNISTError  # noqa: E402

LINUX = sys.platform == "linux"
MEMORY = 200 << 20  # bytes above what was held before the first
BATCH = 1000  # files of one run of hypothesis, which remembers them all

# --- Damage ---------------------------------------------------------------------------------------

# Where: near the start, near the end (a zip archive's directory), or anywhere.
places = strategies.one_of(strategies.integers(0, 120), strategies.integers(-400, -1),
                           strategies.integers(0, 1 << 22))
pieces = strategies.one_of(
    strategies.binary(min_size=1, max_size=8),
    strategies.sampled_from([b"\0", b"\xff", b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff",
                             b"\x80\0\0\0", b"\0\1\0\0", b"\xff" * 8, b"\0" * 8]))
damages = strategies.lists(
    strategies.tuples(strategies.sampled_from(["overwrite", "insert", "delete", "cut", "repeat"]),
                      places, pieces), max_size=4)


def apply(damage, content):
    """`content` with each (kind, place, piece) of `damage` done to it, one after the other."""
    for kind, place, piece in damage:
        at = place % (len(content) + 1)
        if kind == "overwrite":
            content = content[:at] + piece + content[at + len(piece):]
        elif kind == "insert":
            content = content[:at] + piece + content[at:]
        elif kind == "delete":
            content = content[:at] + content[at + len(piece):]
        elif kind == "cut":
            content = content[:at]
        else:
            content = content[:at] + content[:at][-64:] * (1 + piece[0]) + content[at:]
    return content


# --- IDX files ------------------------------------------------------------------------------------


def idx_file(kind, shape, size):
    """An IDX file of `size` bytes of content after a header that promises `shape` elements."""
    return bytes([0, 0, kind, len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + bytes(size)


def gzipped(content, zeros):
    """`content` and so many zero bytes, gzipped without ever holding them all."""
    packer = zlib.compressobj(wbits=31)
    packed = packer.compress(content)
    for _ in range(zeros >> 20):
        packed += packer.compress(bytes(1 << 20))
    return packed + packer.flush()


def two_members(content):
    """`content` gzipped in two halves, one after the other."""
    half = len(content) // 2
    return gzip.compress(content[:half]) + gzip.compress(content[half:])


IDX_FILES = [idx_file(kind, (3, 4), 12 * width)
             for kind, width in zip(IDX_TYPES, (1, 1, 2, 4, 4, 8))] + [
    idx_file(0x08, (10, 28, 28), 7840),
    idx_file(0x08, (10,), 10),
    idx_file(0x0E, (), 8),
    idx_file(0x0D, (2, 0, 3), 0),
    idx_file(0x08, (1,) * 70, 1),  # more dimensions than numpy has
    idx_file(0x08, (1 << 16,) * 4, 100),  # 2^64 bytes
    idx_file(0x0E, (4000, 1000, 1000), 100),  # 32 GB
]
BOMBS = [
    gzipped(idx_file(0x08, (100,), 0), 100 << 20),  # expands far past its promise
    gzipped(idx_file(0x0E, (4000, 1000, 1000), 0), 1 << 20),  # and far less
    gzipped(idx_file(0x08, (20, 1 << 10, 1 << 10), 0), 20 << 20),  # big, as promised
]
PACKINGS = {"plain": bytes, "gzip": gzip.compress, "members": two_members}

# A damaged IDX file: what is damaged, how it is packed, and the damage done to the packed file.
idx_recipes = strategies.tuples(
    strategies.sampled_from(IDX_FILES + BOMBS), damages,
    strategies.sampled_from(sorted(PACKINGS)), damages)


def build_idx(recipe):
    """The bytes that a recipe for a damaged IDX file describes."""
    content, inner, packing, outer = recipe
    return apply(outer, PACKINGS[packing](apply(inner, content)))


# --- Weights files --------------------------------------------------------------------------------


@functools.lru_cache()
def weights_files():
    """A good weights file in both of torch's formats: a zip archive, and the one before it."""
    import torch

    from MNISTmodel import Net

    files = []
    for zipped in (True, False):
        file = io.BytesIO()
        torch.save(Net().state_dict(), file, _use_new_zipfile_serialization=zipped)
        files.append(file.getvalue())
    return files


def repack(archive, damage, record):
    """A zip archive like `archive` and whole, but with damage in the records named so."""
    packed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(packed, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, apply(damage, content) if record in name else content)
    return packed.getvalue()


weights_recipes = strategies.tuples(
    strategies.sampled_from(["zip", "data.pkl", "/data/", "legacy"]), damages)


def build_weights(recipe):
    """The bytes that a recipe for a damaged weights file describes."""
    zipped, legacy = weights_files()
    kind, damage = recipe
    if kind in ("data.pkl", "/data/"):
        return repack(zipped, damage, kind)
    return apply(damage, zipped if kind == "zip" else legacy)


# --- The check ------------------------------------------------------------------------------------


def memory_held():
    """Bytes of memory this process holds now; its peak begins anew from there. Linux only."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def memory_peak():
    """Bytes of memory this process held at most since `memory_held`."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


@functools.lru_cache()
def most_seconds():
    """The processor time that one file may take: that of the checksum of 4 GB."""
    block = bytes(64 << 20)
    start = time.process_time()
    for _ in range(64):
        zlib.crc32(block)
    return time.process_time() - start


class Fuzzer:
    """Gives a reader one damaged file after the other, and keeps count of what comes of it."""

    def __init__(self, read):
        self.read = read
        self.refused = self.accepted = 0
        self.slowest, self.largest = 0.0, 0  # seconds, bytes
        self.idle = memory_held() if LINUX else 0

    def run(self, recipes, build, number):
        """Read `number` files, built from what the strategy `recipes` draws."""
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "damaged")

            def check(recipe):
                with open(path, "wb") as file:
                    file.write(build(recipe))
                self.check(path)

            for start in range(0, number, BATCH):
                settings = hypothesis.settings(
                    max_examples=min(BATCH, number - start), deadline=None, database=None,
                    report_multiple_bugs=False,
                    suppress_health_check=list(hypothesis.HealthCheck))
                hypothesis.seed(start)(settings(hypothesis.given(recipes)(check)))()
        return self

    def check(self, path):
        """Read one file; an AssertionError, or what the reader shouldn't raise, tells a fault."""
        start = time.process_time()
        try:
            self.read(path)
            self.accepted += 1
        except MNISTError as error:
            assert path in str(error), error
            self.refused += 1
        seconds = time.process_time() - start
        self.slowest = max(self.slowest, seconds)
        if LINUX:
            self.largest = max(self.largest, memory_peak() - self.idle)
            if self.largest >= MEMORY:
                taken, self.largest = self.largest, 0
                memory_held()  # let hypothesis try smaller files
                raise AssertionError(f"took {taken >> 20} MB")
        assert seconds < most_seconds(), f"took {seconds:.1f} s"

    def __str__(self):
        return (f"{self.refused} files refused, {self.accepted} read; at most {self.slowest:.3f} s "
                f"and {self.largest >> 20} MB")


def fuzz_idx(number):
    """Throw damaged IDX files at the reader; returns the Fuzzer, for its counts."""
    return Fuzzer(read_idx).run(idx_recipes, build_idx, number)


def fuzz_weights(number):
    """Throw damaged weights files at the loader; returns the Fuzzer, for its counts."""

    from mnist.models.weights import load_network
    warnings.simplefilter("ignore")  # torch's own, about odd pickle protocols
    return Fuzzer(load_network).run(weights_recipes, build_weights, number)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--idx", type=int, default=0, help="how many damaged IDX files")
    parser.add_argument("--weights", type=int, default=0, help="how many damaged weights files")
    arguments = parser.parse_args()
    if arguments.idx:
        print("IDX:", fuzz_idx(arguments.idx))
    if arguments.weights:
        print("weights:", fuzz_weights(arguments.weights))


if __name__ == "__main__":
    main()
