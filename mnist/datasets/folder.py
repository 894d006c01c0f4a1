"""A folder of your own pictures: train/CLASS/*.jpg and test/CLASS/*.jpg, or CLASS/*.jpg alone."""

import os
import sys

import numpy as np

from mnist.datasets.decoded import decode_once
from mnist.datasets.drawing import read_picture
from mnist.datasets.image_set import ImageSet
from mnist.errors import DataError, MNISTError, UnavailableError, warn

# Pillow may lack what reads the last three: they are named then, and left out.
PICTURES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".heic",
            ".heif", ".avif")
IMAGE_SIZE = 32  # pixels a side where nothing else is said
TEST_SHARE = 0.2  # of each class, where the folder has no test/ or val/
SPLIT_FOLDERS = {"train": ("train", "training"),
                 "test": ("test", "testing", "val", "valid", "validation")}


def describe_folder(folder, image_size=None, channels=3):
    """The `ImageSet` of a folder of pictures: its classes are the folders in it, in the order of
    their names; mean and standard deviation are those of its training images.

    image_size: pixels a side that the pictures are brought to. Raises UnavailableError where there
    is no class, or one of a single picture.
    """
    height = width = image_size or IMAGE_SIZE
    pictures = find_pictures(folder, "train")
    classes = tuple(sorted(pictures))
    for name, paths in pictures.items():
        if len(paths) < 2:
            raise UnavailableError(f"{folder}: class {name} has {len(paths)} picture"
                                   f"{'' if paths else 's'} to train on; it takes 2 at least")
    if len(classes) < 2:
        found = f"only the class {classes[0]}" if classes else "no classes of pictures"
        raise UnavailableError(f"{folder} has {found}: put the pictures into a folder for each "
                               "class, two at least, or these into train/ and test/")
    name = os.path.basename(os.path.abspath(folder))
    image_set = ImageSet(name, (channels, height, width), classes, (0.0,) * channels,
                         (1.0,) * channels, augment="pictures")
    images = read_folder(folder, "train", image_set)[0]
    inside = split_folders(folder)["train"]
    print(f"{folder}: {len(images)} pictures to train on, brought to {height}×{width}, "
          f"{len(classes)} classes; "
          + (f"those in {inside}/" if inside else
             "a fifth of each class, always the same, is kept for testing"), file=sys.stderr)
    return with_statistics(image_set, images)


def split_folders(folder):
    """{"train", "test": the name of the folder with that split's pictures, or None}."""
    top = sorted(os.listdir(folder))
    return {key: next((name for spelling in spellings for name in top if name.lower() == spelling),
                      None) for key, spellings in SPLIT_FOLDERS.items()}


def with_statistics(image_set, images):
    """An image set with the mean and the standard deviation of some images by channel."""
    parts = [images[start:start + 256].astype(np.float64) / 255
             for start in range(0, len(images), 256)]  # a few at a time: float64 takes 8 times more
    number = images[:, 0].size
    mean = sum(part.sum((0, 2, 3)) for part in parts) / number
    square = sum((part ** 2).sum((0, 2, 3)) for part in parts) / number
    std = np.sqrt(np.maximum(square - mean ** 2, 1e-6))
    return image_set._replace(mean=tuple(np.round(mean, 4).tolist()),
                              std=tuple(np.round(std, 4).tolist()))


def find_pictures(folder, split):
    """{class: paths of its pictures, sorted} of a split.

    Where the folder has no train/ and test/ (or val/), a fifth of each class, chosen by a fixed
    seed, is for testing.
    """
    names = split_folders(folder)
    inside = names[split]
    if inside is None and names["train"] and split == "test":
        raise DataError(f"{folder} has {names['train']}/ but neither test/ nor val/")
    root = os.path.join(folder, inside) if inside else folder
    pictures = {name: pictures_below(os.path.join(root, name)) for name in sorted(os.listdir(root))
                if os.path.isdir(os.path.join(root, name)) and not name.startswith(".")}
    if inside is None:
        pictures = {name: part_of(paths, split) for name, paths in pictures.items()}
    return pictures


def pictures_below(folder):
    """The paths of all pictures in a folder and the folders in it, sorted."""
    return sorted(os.path.join(place, name) for place, _, names in os.walk(folder)
                  for name in names if name.lower().endswith(PICTURES))


def part_of(paths, split):
    """The paths of a class that a split gets."""
    order = np.random.RandomState(0).permutation(len(paths))
    test = max(1, round(TEST_SHARE * len(paths))) if len(paths) > 1 else 0
    chosen = order[:test] if split == "test" else order[test:]
    return [paths[k] for k in sorted(chosen)]


def read_folder(folder, split, image_set):
    """images uint8 (N, C, H, W), targets int64 (N,), None, of a split, as the image set says, mixed
    by a fixed seed: a part of them, held out or by --limit, is to be of all classes.

    What isn't a picture is named on stderr and left out. Decoded once, see `decode_once`. Raises
    UnavailableError for a class that the image set doesn't have.
    """
    pictures = find_pictures(folder, split)
    unknown = sorted(set(pictures) - set(image_set.classes))
    if unknown:
        raise UnavailableError(f"{folder}: {split} has the class {unknown[0]}, which "
                               f"{image_set.name} doesn't ({', '.join(image_set.classes[:10])})")
    where = [(path, image_set.classes.index(name)) for name, paths in sorted(pictures.items())
             for path in paths]
    where = [where[k] for k in np.random.RandomState(0).permutation(len(where))]
    if not where:
        raise DataError(f"{folder} has no pictures for {split}: {', '.join(PICTURES[:4])}… "
                        "in a folder for each class")
    name = split + "-{}x{}x{}".format(*image_set.shape)
    images, targets, _ = decode_once(folder, name, where,
                                     lambda: decode_pictures(where, image_set.shape))
    return images, targets.astype(np.int64), None


def decode_pictures(where, shape, value=lambda target, picture: target):
    """(images, targets, None) of pictures, given as (path, target), as far as they can be read.

    value: of a target and the picture as `read_picture` gives it: what to take for the target.
    """
    images = np.empty((len(where),) + tuple(shape), np.uint8)
    targets = []
    for path, target in where:
        try:
            picture = read_picture(path)
            images[len(targets)] = to_shape(picture, shape)
            targets.append(value(target, picture))
        except MNISTError as error:
            warn(f"left out: {error}")
    if not targets:
        raise MNISTError(f"none of {len(where)} pictures can be read" if where else
                         "there are no pictures for it")
    return images[:len(targets)], np.array(targets), None


def to_shape(picture, shape):
    """uint8 (C, H, W) of a picture as `read_picture` gives it, uint8 (h, w) or (h, w, 3 or 4).

    Stretched to the size with anti-aliasing: nothing is cut off. What is transparent becomes white.
    """
    from PIL import Image
    image = Image.fromarray(picture)
    if image.mode == "RGBA":
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    image = image.convert("L" if shape[0] == 1 else "RGB").resize(shape[:0:-1], Image.BILINEAR)
    pixels = np.asarray(image)
    return pixels[None] if shape[0] == 1 else pixels.transpose(2, 0, 1)
