"""Decoded pictures, kept in one file beside the set they were made of and memory-mapped."""

import contextlib
import glob
import os

import numpy as np

from mnist.errors import MNISTError
from mnist.files import digest, write_atomically


def decode_once(folder, name, made_of, decode):
    """(images uint8 (N, C, H, W), targets, groups or None): what `decode()` gave, now or earlier.

    name      of the file kept in `folder`: a split and a size
    made_of   the files it is made of, in their order, each a path and its target (None: it has
              none of its own); where anything of that changes it is made anew
    """
    facts = [(os.path.relpath(path, folder), target, os.stat(path).st_size,
              os.stat(path).st_mtime_ns) for path, target in made_of]
    path = os.path.join(folder, f"decoded-{name}-{digest(repr(facts).encode())[:16]}.npy")
    with contextlib.suppress(OSError, ValueError):
        return read_decoded(path)
    images, targets, groups = decode()
    for old in glob.glob(os.path.join(glob.escape(folder), f"decoded-{name}-*.npy")):
        with contextlib.suppress(OSError):
            os.remove(old)
    with contextlib.suppress(MNISTError):  # a folder to read only: decoded anew each time
        with write_atomically(path) as file:
            for array in (targets, np.zeros(0) if groups is None else groups, images):
                np.save(file, array, allow_pickle=False)
    return images, targets, groups


def read_decoded(path):
    """What a kept file holds; the images are mapped, not read, and may be changed in memory."""
    with open(path, "rb") as file:
        targets, groups = (np.load(file, allow_pickle=False) for _ in range(2))
        np.lib.format.read_magic(file)
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        start = file.tell()
    images = np.memmap(path, dtype, "c", start, shape)
    return images, targets, groups if groups.dtype == np.int64 else None
