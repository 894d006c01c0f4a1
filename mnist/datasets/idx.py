"""Reading IDX files, the format of MNIST: a short header, then one array. Knows numpy."""

import gzip
import os
import struct
import zlib

import numpy as np

from mnist.errors import MNISTError

# The third byte of an IDX file names the type of its elements, which are big-endian.
# Source: "The IDX file format" on Yann LeCun's MNIST page.
IDX_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}

GZIP_MAGIC = b"\x1f\x8b"
GZIP_MAX_RATIO = 1032  # deflate can't shrink further; source: zlib's technical notes
CHUNK = 1 << 20  # bytes


class IdxError(MNISTError):
    """A file is not the IDX file it should be."""


def read_idx(path):
    """Read an IDX file, plain or gzipped, into a writable array of this machine's byte order.

    Nothing is allocated because a header promises it: memory grows with the bytes that are really
    there, and reading stops at the first byte too many.

    Raises IdxError, naming the file and what is wrong with it.
    """
    if not os.path.isfile(path):
        raise IdxError(f"{path} is not a file")
    try:
        with open(path, "rb") as file:
            zipped = file.read(len(GZIP_MAGIC)) == GZIP_MAGIC
        with (gzip.open if zipped else open)(path, "rb") as file:
            dtype, shape = read_idx_header(file, path)
            size = dtype.itemsize
            for length in shape:  # Python's whole numbers don't overflow
                size *= length
            promise = f"its header promises {' × '.join(map(str, shape))} elements, {size} bytes"
            room = os.path.getsize(path) * (GZIP_MAX_RATIO if zipped else 1)
            if size > room:
                raise IdxError(f"{path} is truncated: {promise}; it can't hold more than {room}")
            content = read_at_most(file, size + 1)
    except (EOFError, zlib.error) as error:
        raise IdxError(f"{path} is a damaged gzip file: {error}") from error
    except OSError as error:
        if error.errno is None:  # gzip's own: a bad header, checksum or length
            raise IdxError(f"{path} is a damaged gzip file: {error}") from error
        raise IdxError(f"can't read {path}: {error.strerror}") from error
    if len(content) < size:
        raise IdxError(f"{path} is truncated: {promise}; {len(content)} are there")
    if len(content) > size:
        raise IdxError(f"{path} is too long: {promise}; more bytes follow")
    try:
        array = np.frombuffer(content, dtype).reshape(shape)
    except ValueError as error:
        raise IdxError(f"{path} has a shape that numpy can't hold: {error}") from error
    return array.astype(dtype.newbyteorder("="), copy=False)


def read_idx_header(file, path):
    """The dtype and the shape (a tuple of ints) that an open IDX file's header promises."""
    magic = file.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0":
        raise IdxError(f"{path} is not an IDX file: it begins with {magic.hex() or 'nothing'}")
    if magic[2] not in IDX_TYPES:
        raise IdxError(f"{path} has an unknown element type, 0x{magic[2]:02x}")
    lengths = file.read(4 * magic[3])
    if len(lengths) < 4 * magic[3]:
        raise IdxError(f"{path} is truncated: its header ends amid its {magic[3]} dimensions")
    return np.dtype(IDX_TYPES[magic[2]]), struct.unpack(f">{magic[3]}I", lengths)


def read_at_most(file, size):
    """The next `size` bytes of a file, or all there are where these are fewer, as a bytearray."""
    content = bytearray()
    while len(content) < size:
        chunk = file.read(min(CHUNK, size - len(content)))
        if not chunk:
            break
        content += chunk
    return content
