"""CIFAR-10's files, the binary version and the Python one.

Source: Alex Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
"""

import os
import pickle

import numpy as np

from mnist.datasets.image_set import ImageSet
from mnist.errors import DataError, MNISTError

CIFAR10 = ImageSet(
    "cifar10", (3, 32, 32),
    ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), augment="pictures")

BATCHES = {"train": tuple(f"data_batch_{number}" for number in range(1, 6)),
           "test": ("test_batch",)}
IMAGE_BYTES = 3 * 32 * 32


def read_cifar(folder, split):
    """images uint8 (N, 3, 32, 32), targets int64 (N,), None, of a split in `folder`, or in
    cifar-10-batches-bin/ or cifar-10-batches-py/ there.

    Raises DataError where the files aren't there, MNISTError where one isn't what it should be.
    """
    batches = [read_batch(find_batch(folder, name)) for name in BATCHES[split]]
    images, targets = (np.concatenate(arrays) for arrays in zip(*batches))
    return images.reshape(-1, 3, 32, 32), targets.astype(np.int64), None


def find_batch(folder, name):
    """The path of a batch, in either version."""
    for place in ("", "cifar-10-batches-bin", "cifar-10-batches-py"):
        for suffix in (".bin", ""):
            path = os.path.join(folder, place, name + suffix)
            if os.path.isfile(path):
                return path
    raise DataError(f"{folder} doesn't hold {name}.bin (or {name}, of the Python version; or "
                    "either in the folder that it is packed in)")


def read_batch(path):
    """(images uint8 (N, 3072), labels uint8 (N,)) of a file of either version."""
    if path.endswith(".bin"):
        records = np.fromfile(path, np.uint8)
        if not len(records) or len(records) % (1 + IMAGE_BYTES):
            raise MNISTError(f"{path} has {len(records)} bytes, no multiple of {1 + IMAGE_BYTES}: "
                             "it isn't of CIFAR-10's binary version, or is truncated")
        records = records.reshape(-1, 1 + IMAGE_BYTES)
        images, labels = records[:, 1:], records[:, 0]
    else:
        images, labels = read_python_batch(path)
    if labels.max() >= len(CIFAR10.classes):
        raise MNISTError(f"{path} holds the label {labels.max()}, above 9: is it CIFAR-100's?")
    return images, labels


def read_python_batch(path):
    """The same of the Python version: a pickled dictionary."""
    with open(path, "rb") as file:
        try:
            batch = ArraysOnlyUnpickler(file, encoding="bytes").load()
            images = np.asarray(batch[b"data"], np.uint8).reshape(-1, IMAGE_BYTES)
            labels = np.asarray(batch[b"labels"], np.uint8)
        except Exception as error:  # a damaged pickle raises almost anything
            raise MNISTError(f"{path} isn't a batch of CIFAR-10's Python version "
                             f"({type(error).__name__})") from error
    if len(images) != len(labels) or not len(labels):
        raise MNISTError(f"{path} holds {len(images)} images and {len(labels)} labels")
    return images, labels


class ArraysOnlyUnpickler(pickle.Unpickler):
    """An unpickler that makes numpy arrays and nothing else: a batch is somebody else's file."""

    def find_class(self, module, name):
        arrays = module.split(".")[0] == "numpy" and name in ("ndarray", "dtype", "_reconstruct")
        text = (module, name) == ("_codecs", "encode")  # how protocol 2 writes bytes
        if arrays or text:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"unsupported global {module}.{name}")
