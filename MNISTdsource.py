"""Where digits come from: MNIST's files, digits drawn from fonts, drawings of your own.

A digit's way: IDX file → `load_split` → uint8 (N, 28, 28), white on black → an engine. MNIST is
looked for where you say, else where the environment variable MNIST_DATA says, else in data/ beside
the scripts, into which it is downloaded where it is missing. Knows numpy.
"""

import gzip
import http.client
import io
import os
import sys
import time
import urllib.request
import zlib

import numpy as np

from mnist.cli import show_progress
from mnist.errors import MNISTError, UnavailableError, warn
from mnist.files import ROOT, digest, write_atomically
from MNISTidx import IdxError, read_at_most, read_idx

# Mean and standard deviation of the grey levels of MNIST's training images, on a scale of 0 to 1.
MEAN = 0.1307
STD = 0.3081

DEFAULT_DATA_DIR = os.path.join(ROOT, "data")

# The file of images and the file of labels of each split.
SPLITS = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}

# Where MNIST is downloaded from, gzipped, tried in this order.
MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
    "https://azureopendatastorage.blob.core.windows.net/mnist/",
)

# What makes a download MNIST: the digest of each file, decompressed.
SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}

TIMEOUT = 10  # seconds for a mirror to answer, and without a byte from it
SLOWEST = 10000  # bytes per second; a slower mirror is given up
MAX_DOWNLOAD = 16 << 20  # bytes; the largest of the files has 9.9 million
MAX_FILE = 48 << 20  # bytes; decompressed, it has 47 million


class DataError(UnavailableError):
    """MNIST is not where it was said to be, or can't be had at all."""


def normalise(images):
    """What a network takes, float32 (N, 1, 28, 28), from grey levels, uint8 (N, 28, 28).

    Of a numpy array an array, of a torch tensor a tensor on the same device.
    """
    x = images[:, None]
    x = x.astype(np.float32) if isinstance(x, np.ndarray) else x.float()
    x -= 255 * MEAN
    x /= 255 * STD
    return x


# --- MNIST ----------------------------------------------------------------------------------------


def load_split(split, data_dir=None, download=True):
    """MNIST's "train" or "test" digits: images uint8 (N, 28, 28), labels uint8 (N,).

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
    images, labels = read_idx(image_path), read_idx(label_path)
    if images.dtype != np.uint8 or images.shape[1:] != (28, 28):
        raise IdxError(f"{image_path} holds {images.dtype} {images.shape}, not images: "
                       "uint8 (N, 28, 28)")
    if labels.dtype != np.uint8 or labels.ndim != 1:
        raise IdxError(f"{label_path} holds {labels.dtype} {labels.shape}, not labels: uint8 (N,)")
    if len(images) != len(labels):
        raise IdxError(f"{image_path} holds {len(images)} images, but {label_path} "
                       f"{len(labels)} labels")
    if len(labels) == 0:
        raise IdxError(f"{label_path} holds no labels at all")
    if labels.max() > 9:
        raise IdxError(f"{label_path} holds the label {labels.max()}, above 9")
    return images, labels


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
    """The first `limit` digits of a split, and where they are from: (images, labels, source).

    `source` asks for "mnist", for "generated" digits, or with "auto" for MNIST, and where that
    can't be had for generated digits, with a warning. A folder that was named, by `data_dir` or by
    MNIST_DATA, has to hold MNIST. The source given back is "MNIST" or "generated".
    """
    if source != "generated":
        try:
            images, labels = load_split(split, data_dir)
            return images[:limit], labels[:limit], "MNIST"
        except DataError as error:
            if source == "mnist" or data_dir or os.environ.get("MNIST_DATA"):
                raise
            warn(str(error))
            warn("going on with GENERATED digits, drawn after fonts: "
                 "any accuracy below is on these, not on MNIST")
    number, seed = GENERATED[split]
    return generated_digits(min(number, limit or number), seed) + ("generated",)


# --- Download -------------------------------------------------------------------------------------


def fetch(name, folder):
    """Download one of MNIST's files into `folder`, as name.gz, from the first mirror that has it.

    The file appears there whole and verified or not at all. Raises DataError with what was tried.
    """
    failures = []
    for mirror in MIRRORS:
        url = mirror + name + ".gz"
        try:
            content = download(url)
            verify(content, name)
        # urllib's errors are OSErrors; a bad address in a redirect is a ValueError
        except (OSError, ValueError, http.client.HTTPException) as error:
            reason = (str(error).strip("<>") or type(error).__name__).split("\n")[0]
            failures.append(f"\n  {url}: {reason}")
            continue
        try:
            os.makedirs(folder, exist_ok=True)
            with write_atomically(os.path.join(folder, name + ".gz")) as file:
                file.write(content)
            return
        except (OSError, MNISTError) as error:
            raise DataError(f"downloaded {name}.gz, but can't keep it: {error}") from error
    raise DataError(
        f"{folder} doesn't hold MNIST, and it couldn't be downloaded:" + "".join(failures)
        + "\nBy hand: get " + ", ".join(sorted(name + ".gz" for name in SHA256))
        + f"\nfrom one of these addresses and put them into {folder} as they are, or into any "
        "folder that you name with --data-dir or MNIST_DATA.")


def download(url):
    """The bytes at `url`. Raises OSError, ValueError or http.client.HTTPException."""
    print(f"downloading {url}", file=sys.stderr, flush=True)
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
            return read_response(response)
    finally:
        show_progress(None)


def read_response(response):
    """The bytes of an HTTP response; raises as `download` does."""
    start = time.monotonic()
    content = bytearray()
    total = int(response.headers.get("Content-Length") or 0)
    while not total or len(content) < total:
        chunk = response.read1(1 << 16)  # what has come; read() could wait for ever on a drip
        if not chunk:
            break
        content += chunk
        if total:
            show_progress(len(content) / total, f"{len(content) / 1e6:.1f} MB")
        if len(content) > MAX_DOWNLOAD:
            raise OSError(f"more than {MAX_DOWNLOAD} bytes: that is not MNIST")
        if time.monotonic() - start > TIMEOUT + len(content) / SLOWEST:
            raise OSError(f"too slow: {len(content)} bytes in {TIMEOUT} s")
    if len(content) < total:
        raise OSError(f"broke off after {len(content)} of {total} bytes")
    return content


def verify(content, name):
    """Raise OSError unless the gzipped `content` is MNIST's file `name`."""
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
            found = digest(read_at_most(file, MAX_FILE))
    except (OSError, EOFError, zlib.error) as error:
        raise OSError(f"not a whole gzip file ({error})") from error
    if found != SHA256[name]:
        raise OSError(f"not MNIST's {name}: SHA-256 {found}")


# --- Drawings -------------------------------------------------------------------------------------


def digit_from_drawing(gray):
    """Prepare a drawing, uint8 (H, W), white on black, as MNIST's digits were: uint8 (28, 28).

    The ink's longer side becomes 20 pixels, the aspect is kept, each pixel is the average of the
    area it covers, and the centre of mass falls on the centre of the image. None where nothing is
    drawn. Source: Yann LeCun's MNIST page; what it leaves open was chosen by measurement, on the
    last 10,000 training digits enlarged to canvas size.
    """
    peak = gray.max() if gray.size else 0
    if peak == 0:
        return None
    rows, columns = (ink_along(gray, axis, peak) for axis in (1, 0))
    pixel = max(stop - start for _, start, stop in (rows, columns)) / 20  # in pixels of the drawing
    canvas = gray.astype(np.float32)

    def shrink(window):
        down, across = (averaging_weights(*ink, pixel, window) for ink in (rows, columns))
        return down @ canvas @ across.T

    digit = shrink(window=1)
    # A stroke thinner than a pixel is a faint one by now. MNIST has neither: its strokes are about
    # two pixels wide and all its digits reach 254. So let it spread to its neighbours and brighten.
    thinness = 1 - digit.max() / peak
    if thinness > 0.02:
        digit = shrink(window=1 + thinness)
    return (digit * (255 / digit.max()) + 0.5).astype(np.uint8)


def ink_along(gray, axis, peak):
    """Where the ink is, summed over one axis: its amount (N,) and the start and stop of its box.

    A faint edge is not yet ink: a quarter of the brightest level, as measured.
    """
    marked = np.flatnonzero(gray.max(axis) > peak // 4)
    return gray.sum(axis, dtype=np.float64), marked[0], marked[-1] + 1


def averaging_weights(amount, start, stop, pixel, window):
    """Weights float32 (28, N) that average a line of the drawing into each of 28 pixels.

    A pixel of the digit spans `pixel` pixels of the drawing and averages over `window` times as
    much. The centre of mass falls on the middle of pixel 14, where MNIST has it, to half a pixel;
    placed exactly, 99.13 % of the digits are read, and 98.89 % when moved by whole pixels.
    """
    mass_centre = amount @ (np.arange(len(amount)) + 0.5) / amount.sum()
    first = mass_centre - 14.5 * pixel
    first = min(max(first, stop - 28 * pixel), start)  # nothing drawn is lost over the edge
    centres = first + (np.arange(28)[:, np.newaxis] + 0.5) * pixel
    low, high = centres - window * pixel / 2, centres + window * pixel / 2
    lines = np.arange(len(amount))
    overlap = np.minimum(high, lines + 1) - np.maximum(low, lines)
    return (overlap.clip(0) / (window * pixel)).astype(np.float32)

# --- Generated digits -----------------------------------------------------------------------------

# Of the fonts that matplotlib carries, those whose digits come nearest to handwriting, and the
# letters to take for 0 to 9: people write a 1 like the l of a font without serifs.
FONTS = (("DejaVuSans", "0l23456789"), ("DejaVuSans-Oblique", "0123456789"),
         ("DejaVuSerif-Italic", "0123456789"), ("STIXGeneral", "0123456789"),
         ("STIXGeneralItalic", "0123456789"), ("cmr10", "0123456789"),
         ("cmss10", "0l23456789"), ("cmtt10", "0123456789"))
FIELD = 40  # lines and columns of a distance field
FIELD_EDGE = 0.85  # it spans -0.85 to 0.85 both ways; the digit's height is 1
GENERATED = {"train": (60000, 1), "test": (10000, 0)}  # what stands for a split: how many, seed
CANVAS = 36  # pixels; a digit is drawn on so many, then prepared like any drawing
BLOCK = 500  # digits drawn at once


def generated_digits(n, seed):
    """Draw digits after fonts, as if by hand: images uint8 (n, 28, 28), labels uint8 (n,).

    The same seed gives the same digits (where matplotlib's version is the same), and fewer of them
    are the first of more. Every ten digits hold each label once, in random order.

    Raises UnavailableError where matplotlib, whose fonts these are, isn't installed.
    """
    fields, radii = font_digits()
    random = np.random.RandomState(seed)
    images = np.empty((n, 28, 28), np.uint8)
    labels = np.empty(n, np.uint8)
    for start in range(0, n, BLOCK):
        block_labels = np.concatenate([random.permutation(10) for _ in range(BLOCK // 10)])
        drawings = draw_digits(block_labels, fields, radii, random)
        for i in range(start, min(start + BLOCK, n)):
            images[i] = digit_from_drawing(drawings[i - start])
            labels[i] = block_labels[i - start]
    return images, labels


def draw_digits(labels, fields, radii, random):
    """Draw each label after two fonts, distorted at random: uint8 (N, CANVAS, CANVAS).

    Each shape is a field of distances to the outline. Their weighted mean is a shape between the
    two fonts, a constant added makes the stroke thicker or thinner, and clipping at half a pixel
    from the outline gives anti-aliased greys.
    """
    def uniform(low, high):
        return random.uniform(low, high, (len(labels), 1, 1))

    def normal(mean, deviation):
        return random.normal(mean, deviation, (len(labels), 1, 1))

    first, second = random.randint(len(FONTS), size=(2, len(labels)))
    share = uniform(0, 0.5)
    field = fields[first, labels] * (1 - share) + fields[second, labels] * share
    radius = radii[first, labels] * (1 - share) + radii[second, labels] * share
    thicken = uniform(0.04, 0.085) - radius

    # From each pixel back to the point of the field that it shows, in heights of the digit.
    size = uniform(0.55, 0.75) * CANVAS
    line = np.arange(CANVAS) - (CANVAS - 1) / 2
    y = (line[:, np.newaxis] - uniform(-1, 1)) / size
    x = (line - uniform(-1, 1)) / size
    wave_y, wave_x = smooth_noise(random, len(labels))
    y, x = y + wave_y, x + wave_x
    angle = np.radians(normal(0, 8))
    y, x = y * np.cos(angle) + x * np.sin(angle), x * np.cos(angle) - y * np.sin(angle)
    x = (x + y * normal(0.1, 0.18)) / uniform(0.75, 1.3)  # slant and width

    inside = (interpolate(field, y, x) + thicken) * size  # pixels from the outline inwards
    return (255 * np.clip(inside + 0.5, 0, 1)).astype(np.uint8)


def smooth_noise(random, n, knots=5, strength=0.2):
    """Elastic distortion: two random fields (2, n, CANVAS, CANVAS), cubic B-splines over knots."""
    place = np.linspace(0, knots - 3, CANVAS, endpoint=False)
    knot = place.astype(int)
    t = place - knot
    spline = np.zeros((CANVAS, knots))
    for i, weight in enumerate(((1 - t) ** 3, 3 * t ** 3 - 6 * t ** 2 + 4,
                                -3 * t ** 3 + 3 * t ** 2 + 3 * t + 1, t ** 3)):
        spline[np.arange(CANVAS), knot + i] = weight / 6
    return spline @ random.normal(0, strength, (2, n, knots, knots)) @ spline.T


def interpolate(fields, y, x):
    """Read each field (N, FIELD, FIELD) at its own points (N, H, W), bilinearly."""
    step = 2 * FIELD_EDGE / (FIELD - 1)
    y, x = (np.clip((at + FIELD_EDGE) / step, 0, FIELD - 1.001) for at in (y, x))
    line, column = y.astype(np.intp), x.astype(np.intp)
    y, x = y - line, x - column
    corner = (np.arange(len(fields))[:, np.newaxis, np.newaxis] * FIELD + line) * FIELD + column
    values = fields.reshape(-1)
    top = values[corner] * (1 - x) + values[corner + 1] * x
    bottom = values[corner + FIELD] * (1 - x) + values[corner + FIELD + 1] * x
    return top * (1 - y) + bottom * y


def font_digits():
    """Each font's digits, as `distance_field` gives them: (fonts, 10, FIELD, FIELD) and radii."""
    try:
        import matplotlib
        from matplotlib.font_manager import FontProperties
        from matplotlib.textpath import TextPath
    except ImportError as error:
        raise UnavailableError(f"generated digits need the fonts of matplotlib ({error}): "
                               "pip install matplotlib") from error
    folder = os.path.join(matplotlib.get_data_path(), "fonts", "ttf")
    digits = []
    for font, letters in FONTS:
        properties = FontProperties(fname=os.path.join(folder, font + ".ttf"))
        for letter in letters:
            polygons = TextPath((0, 0), letter, size=100, prop=properties).to_polygons()
            digits.append(distance_field(polygons))
    fields, radii = zip(*digits)
    return (np.reshape(fields, (len(FONTS), 10, FIELD, FIELD)),
            np.reshape(radii, (len(FONTS), 10, 1, 1)))


def distance_field(polygons):
    """The distance of FIELD × FIELD points to a digit's outline, positive inside, in its heights.

    `polygons` are its closed outlines, arrays (corners, 2) of x, y upwards. The second result is
    half the mean width of its strokes: the area of a long stroke over its circumference.
    """
    corners = np.concatenate(polygons)
    low, high = corners.min(axis=0), corners.max(axis=0)
    flip = np.array([1, -1]) / (high[1] - low[1])
    polygons = [(polygon - (low + high) / 2) * flip for polygon in polygons]
    x0, y0 = np.concatenate([polygon[:-1] for polygon in polygons]).T
    x1, y1 = np.concatenate([polygon[1:] for polygon in polygons]).T
    dx, dy = x1 - x0, y1 - y0
    lengths = np.hypot(dx, dy)
    line = np.linspace(-FIELD_EDGE, FIELD_EDGE, FIELD)
    y, x = (axis.reshape(-1, 1) for axis in np.meshgrid(line, line, indexing="ij"))

    along = ((x - x0) * dx + (y - y0) * dy) / np.maximum(lengths ** 2, 1e-12)
    along = along.clip(0, 1)  # the nearest point of each side
    distance = np.hypot(x - x0 - along * dx, y - y0 - along * dy).min(axis=1)
    # A ray to the right crosses the outline an odd number of times from inside.
    spanning = (y0 > y) != (y1 > y)
    crossing = x0 + (y - y0) * dx / np.where(dy == 0, 1, dy)
    inside = (spanning & (x < crossing)).sum(axis=1) % 2 == 1
    field = np.where(inside, distance, -distance).reshape(FIELD, FIELD)
    area = abs((x0 * y1 - x1 * y0).sum()) / 2
    return field, area / lengths.sum()
