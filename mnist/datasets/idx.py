"""IDX files, the format of MNIST and its kin: a short header, then one array.

    array = read_idx("train-images-idx3-ubyte.gz")
    images, targets, groups = read_idx_split(folder, "test", MNIST, MNIST_FILES)
"""

import gzip
import os
import struct
import zlib

import numpy as np

from mnist.errors import DataError, MNISTError

# The file of images and the file of labels of each split.
MNIST_FILES = {"train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
               "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")}

# The third byte of an IDX file names the type of its elements, which are big-endian.
# Source: "The IDX file format" on Yann LeCun's MNIST page.
IDX_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}

GZIP_MAGIC = b"\x1f\x8b"


class IdxError(MNISTError):
    """A file is not the IDX file it should be."""


def read_idx(path):
    """Read an IDX file, plain or gzipped, into a writable array of this machine's byte order.

    Raises IdxError, naming the file and what is wrong with it.
    """
    try:
        with open(path, "rb") as file:
            content = file.read()
        if content.startswith(GZIP_MAGIC):
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        what = getattr(error, "strerror", None) or f"it is a damaged gzip file: {error}"
        raise IdxError(f"can't read {path}: {what}") from error
    if content.startswith(GZIP_MAGIC):
        raise IdxError(f"{path} was gzipped twice: unpack it once (gunzip) and try again")
    magic = content[:4]
    if magic[:2] != b"\0\0" or len(magic) < 4 or magic[2] not in IDX_TYPES:
        raise IdxError(f"{path} is not an IDX file: it begins with {magic.hex() or 'nothing'}")
    dtype, dimensions = np.dtype(IDX_TYPES[content[2]]), content[3]
    try:
        shape = struct.unpack_from(f">{dimensions}I", content, 4)
        array = np.frombuffer(content, dtype, offset=4 + 4 * dimensions).reshape(shape)
    except (struct.error, ValueError) as error:
        raise IdxError(f"{path} is damaged, or not whole: {error}") from error
    return array.astype(dtype.newbyteorder("="))


# --- An image set in IDX files --------------------------------------------------------------------


def find_file(folder, name):
    """The path of an IDX file in any of its usual places and spellings, or None.

    Flat, as torchvision lays it out (MNIST/raw), or in a folder of its own name (Kaggle).
    """
    places = [folder] + [os.path.join(folder, kind, "raw") for kind in
                         ("MNIST", "FashionMNIST", "KMNIST", "EMNIST", "QMNIST")]
    for place in places:
        for spelling in (name, name.replace("-idx", ".idx")):
            for inside in ("", spelling):
                for suffix in ("", ".gz"):
                    path = os.path.join(place, inside, spelling + suffix)
                    if os.path.isfile(path):
                        return path
    return None


def read_idx_split(folder, split, image_set, files, transposed=False, first_label=0):
    """images uint8 (N, 1, H, W), targets int64 (N,), None, of a split in `folder`.

    files        names of its two files, by split: `MNIST_FILES`
    transposed   whether the images lie on their side, as EMNIST's do
    first_label  what the labels count from

    Raises DataError where the files aren't there, IdxError where one isn't what it should be.
    """
    paths = [find_file(folder, name) for name in files[split]]
    missing = [name for name, path in zip(files[split], paths) if path is None]
    if missing:
        raise DataError(f"{folder} doesn't hold {' and '.join(missing)} (or .gz)"
                        if os.access(folder, os.R_OK | os.X_OK) else
                        f"{folder}, where {image_set.name} should be, is not a folder that can be "
                        "read")
    images, labels = read_idx(paths[0]), read_idx(paths[1])
    if labels.ndim == 2 and labels.shape[1] == 8:  # QMNIST's: the class is the first of eight
        labels = labels[:, 0]
    check_images(images, image_set.shape, paths[0])
    check_labels(labels, len(images), image_set.outputs, first_label, paths)
    if transposed:
        images = np.ascontiguousarray(images.transpose(0, 2, 1))
    return images[:, None], labels.astype(np.int64) - first_label, None


def check_images(images, shape, path):
    """Raise IdxError unless `images` are uint8 (N, H, W) of the shape (1, H, W)."""
    if images.dtype == np.uint8 and images.shape[1:] == tuple(shape[1:]):
        return
    message = f"{path} holds {images.dtype} {images.shape}, not images: uint8 (N, {shape[1]}, " \
              f"{shape[2]})"
    if images.ndim == 2 and images.shape[1] == shape[1] * shape[2]:
        message += ". Write them with that shape: images.reshape(-1, {}, {})".format(*shape[1:])
    raise IdxError(message)


def check_labels(labels, number, classes, first, paths):
    """Raise IdxError unless `labels` are `number` whole numbers of one of the classes."""
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise IdxError(f"{paths[1]} holds {labels.dtype} {labels.shape}, not labels: whole numbers "
                       "(N,)")
    if len(labels) != number:
        raise IdxError(f"{paths[0]} holds {number} images, but {paths[1]} {len(labels)} labels")
    if not len(labels):
        raise IdxError(f"{paths[1]} holds no labels at all")
    last = first + classes - 1
    if labels.min() < first or labels.max() > last:
        wrong = labels.min() if labels.min() < first else labels.max()
        raise IdxError(f"{paths[1]} holds the label {wrong}, not {first} to {last}"
                       + ("; they seem to count from 1: subtract 1"
                          if labels.min() == first + 1 and wrong == last + 1 else ""))
