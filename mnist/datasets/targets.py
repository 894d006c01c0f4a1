"""Pictures with values to predict in place of a class: where to steer, what to point at.

Values come from a CSV beside the pictures (a column of file names, others of numbers, perhaps
`split`), from a Donkeycar tub (`catalog_*.catalog`), or from the pictures' names: JetBot's
`xy_112_084_UUID.jpg` and JetRacer's `112_084_UUID.jpg`, clicked pixels that become -1 to 1 by width
and height.
"""

import csv
import glob
import json
import os
import re
from typing import NamedTuple, Optional, Tuple

import numpy as np

from mnist.datasets.decoded import decode_once
from mnist.datasets.folder import (
    IMAGE_SIZE,
    SPLIT_FOLDERS,
    TEST_SHARE,
    decode_pictures,
    find_pictures,
    pictures_below,
    with_statistics,
)
from mnist.datasets.image_set import ImageSet
from mnist.errors import UnavailableError

XY_NAME = re.compile(r"(?:xy_)?(\d{1,4})_(\d{1,4})_[0-9a-fA-F-]{8,}$")
# Columns that aren't targets; how fast somebody drove isn't to be seen in a frame.
NO_VALUES = ("split", "timestamp", "timestamp_ms", "time", "index", "throttle")


class Frame(NamedTuple):
    """A picture with its values."""

    path: str
    values: Tuple[float, ...]
    split: Optional[str] = None  # "train", "test" or "val" where the data says so
    time: float = 0.0  # what to order by, where there is an order
    clicked: bool = False  # whether the values are pixels of the picture


def find_frames(folder):
    """(names of the values, list of `Frame`) of a folder, or None where nothing there has values.

    Raises UnavailableError, naming the file, where one isn't a number.
    """
    tables = sorted(glob.glob(os.path.join(glob.escape(folder), "*.csv")))
    catalogs = sorted(glob.glob(os.path.join(glob.escape(folder), "*.catalog")))
    if tables:
        names, frames = frames_of_csv(tables[0])
    elif catalogs:
        names, frames = frames_of_catalogs(catalogs)
    else:
        names, frames = frames_of_names(folder)
        classes = find_pictures(folder, "train").values()
        if len(frames) < sum(map(len, classes)) / 2:  # names that look so by chance
            return None
    return (tuple(names), frames) if names and frames else None


def has_values(folder):
    """Whether the pictures of a folder have values to predict. A table that isn't of them, beside
    a folder for each class, doesn't count. Raises UnavailableError as `find_frames`."""
    try:
        return find_frames(folder) is not None
    except UnavailableError:
        if sum(map(bool, find_pictures(folder, "train").values())) > 1:
            return False
        raise


def describe_frames(folder, image_size=None, channels=3):
    """The `ImageSet` of a folder of frames. Raises UnavailableError where nothing has values."""
    found = find_frames(folder)
    if found is None:
        raise UnavailableError(f"{folder} has no values to predict: neither a CSV, nor catalogs, "
                               "nor pictures called like 112_084_UUID.jpg")
    size = image_size or IMAGE_SIZE
    image_set = ImageSet(os.path.basename(os.path.abspath(folder)), (channels, size, size),
                         found[0], (0.0,) * channels, (1.0,) * channels, "regression", "frames")
    return with_statistics(image_set, read_frames(folder, "train", image_set)[0])


def read_frames(folder, split, image_set):
    """images uint8 (N, C, H, W), targets float32 (N, K), None, of a split, as the image set says.

    Where the data has no split of its own, the last fifth is for testing, in the order of time; a
    fifth by a fixed seed where there is no order. What isn't a picture is named on stderr and left
    out.
    """
    found = find_frames(folder)
    if found is None or found[0] != image_set.classes:
        raise UnavailableError(f"{folder} has the values {found and ', '.join(found[0])}, not "
                               f"{', '.join(image_set.classes)}")
    frames = frames_of_split(found[1], split)
    name = f"frames-{split}-" + "{}x{}x{}".format(*image_set.shape)
    return decode_once(folder, name, [(frame.path, frame.values) for frame in frames],
                       lambda: decode_frames(frames, image_set.shape))


def frames_of_split(frames, split):
    """The frames of "train" or "test"."""
    splits = {frame.split for frame in frames}
    if splits != {None}:
        wanted = "val" if split == "test" and "test" not in splits else split
        return [frame for frame in frames if (frame.split or "train") == wanted]
    number = max(1, round(TEST_SHARE * len(frames)))
    if len({frame.time for frame in frames}) > 1:
        frames = sorted(frames, key=lambda frame: frame.time)
    else:
        frames = [frames[k] for k in np.random.RandomState(0).permutation(len(frames))]
    return frames[-number:] if split == "test" else frames[:-number]


def decode_frames(frames, shape):
    """(images, targets, None) of frames, as far as they can be read."""
    images, targets, _ = decode_pictures([(frame.path, frame) for frame in frames], shape,
                                         values_of)
    targets = targets.astype(np.float32)
    if not (np.abs(targets) <= 1).all():  # a NaN is none either
        raise UnavailableError(f"values go from -1 to 1, not from {targets.min():g} to "
                               f"{targets.max():g}: scale them")
    return images, targets, None


def values_of(frame, picture):
    """The values of a frame; a clicked pixel as NVIDIA's course scales it: -1 at the left or upper
    edge, 1 at the other. x may equal the width, which gives 1."""
    if not frame.clicked:
        return frame.values
    x, y = frame.values
    height, width = picture.shape[:2]
    return (x - width / 2) / (width / 2), (y - height / 2) / (height / 2)


def frames_of_csv(path):
    """The values in a CSV with a header: the first column names the pictures."""
    with open(path, newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        return (), []
    picture, *others = rows[0]
    names = tuple(name for name in others if name not in NO_VALUES)
    folder = os.path.dirname(path)
    frames = []
    for number, row in enumerate(rows):
        try:
            values = tuple(float(row[name]) for name in names)
        except (TypeError, ValueError):
            raise UnavailableError(f"{path}, line {number + 2}: not a number for each of "
                                   f"{', '.join(names)}") from None
        word = (row.get("split") or "").strip().lower()
        if word and word not in SPLITS:
            raise UnavailableError(f"{path}, line {number + 2}: the split {word}; there are "
                                   f"{', '.join(SPLITS)}")
        time = next((float(row[key]) for key in NO_VALUES[1:] if row.get(key)), number)
        frames.append(Frame(find_picture(folder, row[picture]), values,
                            SPLITS.get(word), time))
    return names, frames


# How a table may spell its splits. Rows for validation are for testing where no others are.
SPLITS = dict({spelling: "val" for spelling in SPLIT_FOLDERS["test"]}, train="train",
              training="train", test="test", testing="test")


def frames_of_catalogs(paths):
    """The values in a Donkeycar tub (version 2): JSON lines with `user/angle`, `user/throttle`."""
    names, frames = ("angle",), []
    for path in paths:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file):
                try:
                    record = json.loads(line)
                    frames.append(Frame(
                        find_picture(os.path.dirname(path), record["cam/image_array"]),
                        tuple(float(record["user/" + name]) for name in names),
                        time=record.get("_timestamp_ms", record.get("_index", number))))
                except (KeyError, TypeError, ValueError) as error:
                    raise UnavailableError(f"{path}, line {number + 1}: not a record of "
                                           f"Donkeycar's ({error!r})") from error
    return names, frames


def find_picture(folder, name):
    """Where a picture that a table names lies: in `folder`, or in its images/."""
    for place in (folder, os.path.join(folder, "images")):
        if os.path.isfile(os.path.join(place, name)):
            return os.path.join(place, name)
    raise UnavailableError(f"{folder}: there is no picture {name}, which its table names")


def frames_of_names(folder):
    """The clicked points in the names of all pictures below a folder."""
    frames = []
    for path in pictures_below(folder):
        point = XY_NAME.match(os.path.splitext(os.path.basename(path))[0])
        if point:
            frames.append(Frame(path, tuple(map(float, point.groups())), clicked=True))
    return ("x", "y"), frames
