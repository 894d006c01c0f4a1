"""The German Traffic Sign Recognition Benchmark, from its zips as they are or unpacked.

Source: Stallkamp, Schlipsing, Salmen and Igel, "Man vs. computer: Benchmarking machine learning
algorithms for traffic sign recognition", 2012. A training image belongs to a track: 30 frames,
more or less, of one sign passed by. The whole frame is taken, with the margin around the sign; the
ROI of the CSV files, which is in pixels of the frame's original size, isn't used.
"""

import csv
import io
import os
import re
import zipfile

import numpy as np

from mnist.datasets.decoded import decode_once
from mnist.datasets.image_set import ImageSet
from mnist.errors import DataError, MNISTError, UnavailableError

GTSRB = ImageSet(
    "gtsrb", (3, 32, 32),
    ("20 km/h", "30 km/h", "50 km/h", "60 km/h", "70 km/h", "80 km/h", "end of 80 km/h",
     "100 km/h", "120 km/h", "no passing", "no passing for lorries", "right of way",
     "priority road", "yield", "stop", "no vehicles", "no lorries", "no entry", "danger",
     "curve left", "curve right", "double curve", "bumpy road", "slippery road", "road narrows",
     "road works", "traffic lights", "pedestrians", "children", "bicycles", "ice or snow",
     "wild animals", "end of limits", "turn right", "turn left", "ahead only", "ahead or right",
     "ahead or left",
     "keep right", "keep left", "roundabout", "end of no passing",
     "end of no passing for lorries"),
    (0.3398, 0.3117, 0.3210), (0.2755, 0.2647, 0.2712), augment="signs")

# The official zips, and torchvision's name of the first.
ZIPS = ("GTSRB_Final_Training_Images.zip", "GTSRB-Training_fixed.zip",
        "GTSRB_Final_Test_Images.zip", "GTSRB_Final_Test_GT.zip")
TRAINING = re.compile(r"(?:Final_Training/Images|Training)/(\d{5})/(\d{5})_(\d{5})\.ppm$")
TEST = re.compile(r"Final_Test/Images/(\d{5})\.ppm$")
TEST_CLASSES = "GT-final_test.csv"
PPM = re.compile(rb"P6\s+(?:#.*\n\s*)*(\d+)\s+(\d+)\s+255\s")


def read_gtsrb(folder, split):
    """images uint8 (N, 3, 32, 32), targets int64 (N,), and for training groups int64 (N,), the
    track of each, else None.

    Decoded once, see `decode_once`. Raises DataError where the files aren't there, MNISTError where
    one isn't what it should be.
    """
    files = find_files(folder)
    decode = {"train": decode_training, "test": decode_test}[split]
    made_of = sorted({(container, None) for container, _ in files.values()})
    return decode_once(folder, f"gtsrb-{split}", made_of, lambda: decode(folder, files))


def find_files(folder):
    """{path as in the official zips: (the zip or folder that it is in, its name there)}."""
    places = [place for place in (folder, os.path.join(folder, "gtsrb")) if os.path.isdir(place)]
    found = {}
    for place in places:
        for name in ZIPS:
            path = os.path.join(place, name)
            if os.path.isfile(path):
                try:
                    with zipfile.ZipFile(path) as archive:
                        found.update((inside, (path, inside)) for inside in archive.namelist())
                except zipfile.BadZipFile as error:
                    raise MNISTError(f"{path} is damaged: {error}") from error
    if not found:
        for place, _, names in os.walk(folder):
            found.update((os.path.join(place, name), (place, name)) for name in names
                         if name.endswith((".ppm", ".csv")))
    return {path.replace(os.sep, "/"): where for path, where in found.items()}


def decode_training(folder, files):
    """All training images, with class and track from their names."""
    matches = sorted((match.groups(), path) for path, match in
                     ((path, TRAINING.search(path)) for path in files) if match)
    if not matches:
        raise DataError(f"{folder} doesn't hold GTSRB_Final_Training_Images.zip, nor what is in it")
    numbers = np.array([key for key, _ in matches]).astype(np.int64)
    images = decode([files[path] for _, path in matches])
    return images, numbers[:, 0].copy(), numbers[:, 0] * 100000 + numbers[:, 1]


def decode_test(folder, files):
    """The test images, with classes from GT-final_test.csv."""
    paths = {match.group(1) + ".ppm": path for path, match in
             ((path, TEST.search(path)) for path in files) if match}
    tables = [path for path in files if path.split("/")[-1] == TEST_CLASSES]
    if not paths or not tables:
        raise DataError(f"{folder} doesn't hold GTSRB_Final_Test_Images.zip and "
                        "GTSRB_Final_Test_GT.zip, nor what is in them")
    with Reader() as read:
        text = read(*files[tables[0]]).decode()
    classes = {row["Filename"]: int(row["ClassId"])
               for row in csv.DictReader(io.StringIO(text), delimiter=";")}
    names = sorted(set(classes) & set(paths))
    if len(names) < len(paths):
        raise MNISTError(f"{TEST_CLASSES} names {len(names)} of the {len(paths)} test images in "
                         f"{folder}")
    targets = np.array([classes[name] for name in names], np.int64)
    return decode([files[paths[name]] for name in names]), targets, None


def decode(places):
    """uint8 (N, 3, 32, 32) of PPM files, given as (zip or folder, name)."""
    images = np.empty((len(places),) + GTSRB.shape, np.uint8)
    with Reader() as read:
        for image, place in zip(images, places):
            image[:] = decode_ppm(read(*place), "/".join(place))
    return images


class Reader:
    """Reads files by (zip or folder, name), with every zip opened once."""

    def __enter__(self):
        self.zips = {}
        return self.read

    def __exit__(self, *_):
        for archive in self.zips.values():
            archive.close()

    def read(self, container, name):
        if os.path.isdir(container):
            with open(os.path.join(container, name), "rb") as file:
                return file.read()
        if container not in self.zips:
            self.zips[container] = zipfile.ZipFile(container)
        try:
            return self.zips[container].read(name)
        except (zipfile.BadZipFile, EOFError, OSError) as error:
            raise MNISTError(f"{container} is damaged: {error}") from error


def decode_ppm(content, name):
    """uint8 (3, 32, 32) of a PPM file's bytes, resized with anti-aliasing where it is larger."""
    header = PPM.match(content)
    if not header:
        raise MNISTError(f"{name} isn't a PPM file of 8 bits a channel")
    width, height = map(int, header.groups())
    if len(content) - header.end() != width * height * 3:
        raise MNISTError(f"{name} is damaged: {len(content) - header.end()} bytes of pixels, not "
                         f"{width} × {height} × 3")
    pixels = np.frombuffer(content, np.uint8, offset=header.end()).reshape(height, width, 3)
    if (height, width) != GTSRB.shape[1:]:
        pixels = resize(pixels)
    return pixels.transpose(2, 0, 1)


def resize(pixels):
    """uint8 (H, W, 3) at the set's size."""
    try:
        from PIL import Image
    except ImportError as error:
        raise UnavailableError("resizing the signs needs Pillow: pip install pillow") from error
    return np.asarray(Image.fromarray(pixels).resize(GTSRB.shape[:0:-1], Image.BILINEAR))
