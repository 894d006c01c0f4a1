"""Where digits come from: MNIST's files, digits drawn from fonts, drawings of your own.

A digit's way: IDX file → `load_split` → uint8 (N, 28, 28), white on black → an engine. MNIST is
looked for where you say, else where the environment variable MNIST_DATA says, else in data/ beside
the scripts, into which it is downloaded where it is missing. Knows numpy.
"""

import os

import numpy as np

from mnist.datasets.download import DataError, fetch
from mnist.datasets.fonts import GENERATED, generated_digits
from mnist.datasets.idx import IdxError, read_idx
from mnist.errors import warn
from mnist.files import ROOT

DEFAULT_DATA_DIR = os.path.join(ROOT, "data")

# The file of images and the file of labels of each split.
SPLITS = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


# --- MNIST ----------------------------------------------------------------------------------------


def load_split(split, data_dir=None, download=True):
    """MNIST's "train" or "test" digits: images uint8 (N, 28, 28), targets uint8 (N,).

    Looks in `data_dir`, else in the folder that the environment variable MNIST_DATA names, else in
    data/ beside the scripts, and no further: a folder that was named and doesn't hold the files is
    an error. What is missing in data/ is downloaded into it, unless `download` is False.

    Raises DataError where the files can't be had, IdxError where one isn't what it should be.
    """
    names = SPLITS[split]
    folder = data_dir or os.environ.get("MNIST_DATA") or DEFAULT_DATA_DIR
    missing = [name for name in names if find_file(folder, name) is None]
    if missing and (folder != DEFAULT_DATA_DIR or not download):
        raise DataError(f"{folder} doesn't hold {' and '.join(missing)} (or .gz, or in MNIST/raw)"
                        if os.access(folder, os.R_OK | os.X_OK) else
                        f"{folder}, where MNIST should be, is not a folder that can be read")
    for name in missing:
        fetch(name, folder)
    image_path, label_path = (find_file(folder, name) for name in names)
    images, targets = read_idx(image_path), read_idx(label_path)
    if images.dtype != np.uint8 or images.shape[1:] != (28, 28):
        raise IdxError(f"{image_path} holds {images.dtype} {images.shape}, not images: "
                       "uint8 (N, 28, 28)")
    if targets.dtype != np.uint8 or targets.ndim != 1:
        raise IdxError(f"{label_path} holds {targets.dtype} {targets.shape}, not labels: "
                       "uint8 (N,)")
    if len(images) != len(targets):
        raise IdxError(f"{image_path} holds {len(images)} images, but {label_path} "
                       f"{len(targets)} labels")
    if len(targets) == 0:
        raise IdxError(f"{label_path} holds no labels at all")
    if targets.max() > 9:
        raise IdxError(f"{label_path} holds the label {targets.max()}, above 9")
    return images, targets


def find_file(folder, name):
    """The path of one of MNIST's files in any of its usual places and spellings, or None."""
    for place in (folder, os.path.join(folder, "MNIST", "raw")):  # flat, and torchvision's layout
        for spelling in (name, name.replace("-idx", ".idx")):
            for suffix in ("", ".gz"):
                path = os.path.join(place, spelling + suffix)
                if os.path.isfile(path):
                    return path
    return None


def load_digits(split, source="auto", data_dir=None, limit=None):
    """The first `limit` digits of a split, and where they are from: (images, targets, source).

    `source` asks for "mnist", for "generated" digits, or with "auto" for MNIST, and where that
    can't be had for generated digits, with a warning. A folder that was named, by `data_dir` or by
    MNIST_DATA, has to hold MNIST. The source given back is "MNIST" or "generated".
    """
    if source != "generated":
        try:
            images, targets = load_split(split, data_dir)
            return images[:limit], targets[:limit], "MNIST"
        except DataError as error:
            if source == "mnist" or data_dir or os.environ.get("MNIST_DATA"):
                raise
            warn(str(error))
            warn("going on with GENERATED digits, drawn after fonts: "
                 "any accuracy below is on these, not on MNIST")
    number, seed = GENERATED[split]
    return generated_digits(min(number, limit or number), seed) + ("generated",)
