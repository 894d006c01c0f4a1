"""Damaged IDX and weights files, thrown at their readers.

Only the project's own error may come out, naming the file; no file may take more processor time
than the checksum of four gigabytes (about a second), nor (on Linux) more than 200 MB of memory.
"""

import functools
import gzip
import io
import random
import re
import struct
import time
import zipfile
import zlib

from scripts import LINUX

from mnist.datasets.idx import IDX_TYPES
from mnist.errors import MNISTError

MEMORY = 200 << 20  # bytes above what was held before
PIECES = (b"\0", b"\xff", bytes(4), b"\xff" * 4, b"\x7f\xff\xff\xff", b"\x80\0\0\0", b"\0\1\0\0",
          b"\xff" * 8)


def damage(content, chance):
    """`content`, changed in up to four places: near its start, near its end or anywhere."""
    for _ in range(chance.randrange(5)):
        at = chance.choice([chance.randrange(121), -chance.randrange(1, 401),
                            chance.randrange(1 << 22)]) % (len(content) + 1)
        piece = chance.choice(PIECES + (bytes(chance.choices(range(256), k=5)),))
        rest = chance.choice([piece + content[at + len(piece):], piece + content[at:],
                              content[at + len(piece):], b"",
                              content[:at][-64:] * chance.randrange(1, 256) + content[at:]])
        content = content[:at] + rest
    return content


# --- IDX files ------------------------------------------------------------------------------------


def idx_file(kind, shape, size):
    """An IDX file of `size` bytes of content after a header that promises `shape` elements."""
    return bytes([0, 0, kind, len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + bytes(size)


IDX_FILES = [idx_file(kind, (3, 4), 12 * width)
             for kind, width in zip(IDX_TYPES, (1, 1, 2, 4, 4, 8))] + [
    idx_file(0x08, (10, 28, 28), 7840),
    idx_file(0x0D, (2, 0, 3), 0),
    idx_file(0x08, (1,) * 70, 1),  # more dimensions than numpy has
    idx_file(0x08, (1 << 16,) * 4, 100),  # 2^64 bytes
    idx_file(0x0E, (4000, 1000, 1000), 100),  # 32 GB
]


def damaged_idx(chance):
    """The bytes of an IDX file, damaged before and after it was gzipped, if it was."""
    pack = chance.choice([bytes, gzip.compress])
    return damage(pack(damage(chance.choice(IDX_FILES), chance)), chance)


# --- Weights files --------------------------------------------------------------------------------


@functools.lru_cache()
def weights_files():
    """A good weights file in both of torch's formats: a zip archive, and the one before it."""
    import torch

    from MNISTmodel import Net

    files = io.BytesIO(), io.BytesIO()
    for file, zipped in zip(files, (True, False)):
        torch.save(Net().state_dict(), file, _use_new_zipfile_serialization=zipped)
    return [file.getvalue() for file in files]


def damaged_weights(chance):
    """The bytes of a weights file: damaged as a whole, or a whole archive of damaged records."""
    zipped, legacy = weights_files()
    record = chance.choice(["data.pkl", "/data/", None])
    if record is None:
        return damage(chance.choice([zipped, legacy]), chance)
    packed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(zipped)) as old, zipfile.ZipFile(packed, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, damage(content, chance) if record in name else content)
    return packed.getvalue()


# --- The check ------------------------------------------------------------------------------------


def memory(field):
    """Bytes that this process holds ("VmRSS") or held at most ("VmHWM"); Linux only."""
    with open("/proc/self/status") as file:
        return int(re.search(rf"{field}:\s+(\d+)", file.read()).group(1)) << 10


@functools.lru_cache()
def most_seconds():
    """The processor time that one file may take: that of the checksum of 4 GB."""
    block, start = bytes(64 << 20), time.process_time()
    for _ in range(64):
        zlib.crc32(block)
    return time.process_time() - start


def is_refused(read, path):
    """Whether `read` refuses a file; fails where it raises another error, or takes too much."""
    limit = most_seconds()
    if LINUX:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # the peak begins anew
        held = memory("VmRSS")
    start, refused = time.process_time(), False
    try:
        read(path)
    except MNISTError as error:
        assert path in str(error), error
        refused = True
    assert time.process_time() - start < limit
    assert not LINUX or memory("VmHWM") - held < MEMORY
    return refused


def fuzz(read, make, number, path):
    """How many of so many damaged files `read` refuses; where it fails, `path` has the file."""
    refused = 0
    for seed in range(number):
        with open(path, "wb") as file:
            file.write(make(random.Random(seed)))
        refused += is_refused(read, path)
    return refused
