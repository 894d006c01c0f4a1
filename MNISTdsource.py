"""Where images come from: the image sets by name, folders of your own, digits drawn from fonts.

    images, targets = load_split("test")                           MNIST's 10,000
    image_set = find_image_set("cifar10")                          what is known of it
    data = load_images(image_set, "train")                         data.images, data.targets, …

A set is looked for where you say, else in data/NAME beside the programs (MNIST: where the
environment variable MNIST_DATA says, else in data/ itself), into which it is downloaded where it is
missing.
"""

import collections
import difflib
import functools
import hashlib
import os
import sys
from typing import Any, Callable, NamedTuple

import numpy as np

from mnist.datasets.cifar import CIFAR10, read_cifar
from mnist.datasets.download import fetch, fetch_by_torchvision
from mnist.datasets.folder import describe_folder, read_folder, with_statistics
from mnist.datasets.fonts import GENERATED, generated_digits
from mnist.datasets.gtsrb import GTSRB, read_gtsrb
from mnist.datasets.idx import MNIST_FILES, IdxError, find_file, read_idx, read_idx_split
from mnist.datasets.image_set import MNIST, ImageSet
from mnist.datasets.targets import describe_frames, has_values, read_frames
from mnist.errors import DataError, UnavailableError, warn
from mnist.files import ROOT

DEFAULT_DATA_DIR = os.path.join(ROOT, "data")
CALIBRATION_IMAGES = 1000


class Images(NamedTuple):
    """Images as they were loaded."""

    images: Any  # uint8 (N, C, H, W)
    targets: Any  # int64 (N,) class numbers; float32 (N, K) for regression
    groups: Any  # int64 (N,), the same for images of the same thing, or None
    source: str  # where they are from, for the screen and for records: "MNIST"
    digest: str  # SHA-256 of the whole split's images and targets


class Source(NamedTuple):
    """An image set by name, and how it is had."""

    image_set: ImageSet
    files: str  # what it is in: "IDX files"
    read: Callable  # of (folder, split): images, targets, groups; DataError where they aren't there
    fetch: Callable  # of (folder, split): downloads what is missing


# --- The image sets -------------------------------------------------------------------------------

CLOTHES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag",
           "ankle boot")
KANA = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")
LETTERS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
DIGITS = MNIST.classes


def idx_source(name, classes, mean, std, augment, dataset, settings=None, files=MNIST_FILES, **how):
    """The `Source` of a set in IDX files, which torchvision's `dataset` downloads.

    `settings`: what the dataset wants to know beside the folder and train=….
    """
    image_set = ImageSet(name, MNIST.shape, classes, (mean,), (std,), augment=augment)

    def download(folder, split):
        fetch_by_torchvision(name, dataset, folder, train=split == "train", **settings or {})

    read = functools.partial(read_idx_split, image_set=image_set, files=files, **how)
    return Source(image_set, "IDX files", read, download)


def emnist(part, classes, mean, std, first_label=0):
    """The `Source` of a part of EMNIST, whose images lie on their side.

    Source: Cohen, Afshar, Tapson and van Schaik, "EMNIST: an extension of MNIST to handwritten
    letters", 2017.
    """
    files = {split: tuple(f"emnist-{part}-{split}-{kind}" for kind in
                          ("images-idx3-ubyte", "labels-idx1-ubyte")) for split in MNIST_FILES}
    return idx_source("emnist-" + part, classes, mean, std, "digits", "EMNIST", {"split": part},
                      files, transposed=True, first_label=first_label)


def fetch_mnist(folder, split):
    """Download the files of a split of MNIST that are missing."""
    for name in MNIST_FILES[split]:
        if find_file(folder, name) is None:
            fetch(name, folder)


QMNIST_FILES = {split: (f"qmnist-{split}-images-idx3-ubyte", f"qmnist-{split}-labels-idx2-int")
                for split in MNIST_FILES}

# Means and standard deviations of the training images; those of KMNIST and EMNIST are published
# ones, since these files weren't at hand.
SOURCES = collections.OrderedDict((source.image_set.name, source) for source in (
    Source(MNIST, "IDX files",
           functools.partial(read_idx_split, image_set=MNIST, files=MNIST_FILES), fetch_mnist),
    idx_source("fashion-mnist", CLOTHES, 0.2860, 0.3530, "pictures", "FashionMNIST"),
    idx_source("kmnist", KANA, 0.1918, 0.3483, "digits", "KMNIST"),
    emnist("letters", LETTERS, 0.1722, 0.3309, first_label=1),
    emnist("digits", DIGITS, 0.1736, 0.3317),
    emnist("balanced", DIGITS + LETTERS + tuple("abdefghnqrt"), 0.1751, 0.3332),
    idx_source("qmnist", DIGITS, 0.1307, 0.3081, "digits", "QMNIST", files=QMNIST_FILES),
    Source(CIFAR10, "CIFAR-10", read_cifar, lambda folder, split: fetch_by_torchvision(
        "cifar10", "CIFAR10", folder, train=split == "train")),
    Source(GTSRB, "GTSRB", read_gtsrb, lambda folder, split: fetch_by_torchvision(
        "gtsrb", "GTSRB", folder, split=split)),
))

IMAGE_SETS = collections.OrderedDict((name, source.image_set) for name, source in SOURCES.items())

# The digests of whole splits, see `digest_of`: what may be called by its name.
KNOWN = {
    "MNIST": ("d18cfd466eb143ac1097fde604dba9eec4116885869d04cc648b510949f9e88c",
              "a0863a96c44e5666edbb30c4071ee79ca0514c621e6349c5967fc78e7305c891"),
    "Fashion-MNIST": ("1f243a60b4b748a44c48b9a6f6907be2a08bee3e4e226f0e86fbde8e147b745a",
                      "9a494dc49efeb996f4076c469b31cd058152067b1594ba6ab85dd739fce3775e"),
}


def find_image_set(data, image_size=None, channels=3, task="auto"):
    """The `ImageSet` of a `--data`: a name, or a folder of pictures or IDX files.

    image_size, channels: what pictures are brought to, as for `describe_folder`. task:
    "classification", "regression" (values in a CSV, in catalogs or in the pictures' names), or
    "auto": what the folder looks like. Raises UnavailableError where there is none.
    """
    if data in IMAGE_SETS:
        return IMAGE_SETS[data]
    if data == "generated":
        return MNIST
    folder = os.path.expanduser(data)
    if not os.path.isdir(folder):
        near = difflib.get_close_matches(data, IMAGE_SETS, n=1)
        raise UnavailableError(f"--data {data}: " + (
            f"no such image set; did you mean {near[0]}?" if near else
            f"neither a folder nor one of {', '.join(IMAGE_SETS)}"))
    if find_file(folder, MNIST_FILES["train"][0]):
        return describe_idx(folder)
    if task == "regression" or task == "auto" and has_values(folder):
        return describe_frames(folder, image_size, channels)
    return describe_folder(folder, image_size, channels)


def network_of_flags(arguments):
    """The `Network` that --data, --network, --weights and --trust-pickle ask for; which weights
    these are is said. Raises as `mnist.models.weights.load_network`."""
    from mnist.models.weights import load_network  # torch only where a network is wanted
    image_set = arguments.data and functools.partial(find_image_set, arguments.data)
    network = load_network(arguments.weights, arguments.network, image_set, arguments.trust_pickle)
    print(f"weights: {network.origin}", flush=True)
    return network


def describe_idx(folder):
    """The `ImageSet` of IDX files of your own, named as MNIST's are."""
    images, labels = (read_idx(find_file(folder, name) or os.path.join(folder, name))
                      for name in MNIST_FILES["train"])
    if images.ndim != 3 or not len(images) or labels.dtype.kind not in "iu" or not len(labels):
        raise IdxError(f"{folder} holds images {images.dtype} {images.shape} and labels "
                       f"{labels.dtype} {labels.shape}, not uint8 (N, H, W) and whole numbers (N,)")
    classes = tuple(map(str, range(int(labels.max()) + 1)))
    name = os.path.basename(os.path.abspath(folder))
    image_set = ImageSet(name, (1,) + images.shape[1:], classes, (0.0,), (1.0,))
    images = read_idx_split(folder, "train", image_set, MNIST_FILES)[0]
    image_set = with_statistics(image_set, images)
    print(f"{folder}: {len(images)} images of {images.shape[2]}×{images.shape[3]}, {len(classes)} "
          f"classes, mean {image_set.mean[0]}, standard deviation {image_set.std[0]}",
          file=sys.stderr)
    return image_set


# --- Loading --------------------------------------------------------------------------------------


def load_split(split, data_dir=None, data="mnist", download=True):
    """The "train" or "test" images of a set by name: uint8 (N, C, H, W), targets int64 (N,).

    Looks in `data_dir`, else where the module's text says, and no further: a folder that was named
    and doesn't hold the files is an error. What is missing in data/ is downloaded into it, unless
    `download` is False.

    Raises DataError where the files aren't available, MNISTError where one isn't what it should be.
    """
    return read_split(SOURCES[data], split, data_dir, download)[:2]


def read_split(source, split, data_dir=None, download=True):
    """(images, targets, groups) as `load_split` says."""
    folder, named = folder_of(source.image_set.name, data_dir)
    try:
        return source.read(folder, split)
    except DataError:
        if named or not download:
            raise
    source.fetch(folder, split)
    return source.read(folder, split)


def folder_of(name, data_dir=None):
    """(the folder where a set by name is, whether it was named)."""
    if data_dir:
        return os.path.expanduser(data_dir), True
    if name == "mnist":
        named = os.environ.get("MNIST_DATA")
        return os.path.expanduser(named or DEFAULT_DATA_DIR), bool(named)
    return os.path.join(DEFAULT_DATA_DIR, name), False


def load_images(image_set, split, data=None, data_dir=None, limit=None, download=True):
    """The first `limit` images of a split of an image set, as `Images`.

    data: where from: a name, a folder, or "generated" digits; None: the set's own name, and where
        that is MNIST and isn't available, generated digits, with a warning. A folder that was
        named, by `data_dir` or MNIST_DATA, has to hold the set.

    Raises UnavailableError where the images aren't of the set's kind, and as `load_split` does.
    """
    if data == "generated":
        return generated(split, limit)
    if data and data not in IMAGE_SETS:
        kind, read = folder_reader(image_set, os.path.expanduser(data))
        return as_images(read(split), f"{kind} in {data}", limit)
    name = data or image_set.name
    if name not in IMAGE_SETS:
        raise UnavailableError(f"the weights are of the images of {name!r}: say where they are "
                               "with --data FOLDER")
    source = SOURCES[name]
    check_alike(image_set, source.image_set)
    try:
        arrays = read_split(source, split, data_dir, download)
    except DataError as error:
        if not download or name != "mnist" or data or folder_of(name, data_dir)[1]:
            raise
        warn(str(error))
        warn("going on with GENERATED digits, drawn after fonts: "
             "any accuracy below is on these, not on MNIST")
        return generated(split, limit)
    return as_images(arrays, f"{source.files} in {folder_of(name, data_dir)[0]}", limit)


def calibration_images(image_set, data=None, data_dir=None):
    """The training images that int8 is calibrated on, a thousand where there are so many, the same
    every time: uint8 (N, C, H, W). Nothing is downloaded for them.

    Raises UnavailableError where there are none.
    """
    images = load_images(image_set, "train", data, data_dir, download=False).images
    return images[np.random.RandomState(0).permutation(len(images))[:CALIBRATION_IMAGES]]


def check_alike(image_set, other):
    """Raise UnavailableError where images of `other` can't be given to a network of `image_set`."""
    if (image_set.shape, image_set.outputs) != (other.shape, other.outputs):
        raise UnavailableError(
            "the weights are of {}, images of {}×{}×{} and {} classes; ".format(
                image_set.name, *image_set.shape, image_set.outputs)
            + "{} has {}×{}×{} and {}".format(other.name, *other.shape, other.outputs))


def folder_reader(image_set, folder):
    """("IDX files" or "pictures", function of a split that reads them) of a folder."""
    if not os.path.isdir(folder):
        raise UnavailableError(f"--data {folder}: neither a folder nor one of "
                               f"{', '.join(IMAGE_SETS)}")
    if any(find_file(folder, names[0]) for names in MNIST_FILES.values()):
        return "IDX files", functools.partial(read_idx_split, folder, image_set=image_set,
                                              files=MNIST_FILES)
    read = read_folder if image_set.task == "classification" else read_frames
    return "pictures", functools.partial(read, folder, image_set=image_set)


def as_images(arrays, where, limit):
    """The `Images` of a split's whole arrays, under the name that their digest allows."""
    images, targets, groups = arrays
    found = digest_of(images, targets)
    source = next((name for name, digests in KNOWN.items() if found in digests),
                  f"{where} (sha256 {found[:8]}…)")
    return Images(images[:limit], targets[:limit], groups if groups is None else groups[:limit],
                  source, found)


def digest_of(images, targets):
    """SHA-256 of a split's images and targets."""
    content = hashlib.sha256(images)
    content.update(targets)
    return content.hexdigest()


def generated(split, limit=None):
    """Digits drawn after fonts, as `Images`."""
    number, seed = GENERATED[split]
    images, targets = generated_digits(min(number, limit or number), seed)
    return Images(images, targets, None, "generated", digest_of(images, targets))
