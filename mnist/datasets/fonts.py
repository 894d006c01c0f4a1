"""Digits drawn after fonts, as if by hand: what stands in where MNIST can't be had."""

import os

import numpy as np

from mnist.datasets.drawing import digit_from_drawing
from mnist.errors import UnavailableError

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
    """Draw digits after fonts, as if by hand: images uint8 (n, 1, 28, 28), targets int64
    (n,).

    The same seed gives the same digits (where matplotlib's version is the same), and fewer of them
    are the first of more. Every ten digits hold each label once, in random order.

    Raises UnavailableError where matplotlib, whose fonts these are, isn't installed.
    """
    fields, radii = font_digits()
    random = np.random.RandomState(seed)
    images = np.empty((n, 1, 28, 28), np.uint8)
    targets = np.empty(n, np.int64)
    for start in range(0, n, BLOCK):
        block_targets = np.concatenate([random.permutation(10) for _ in range(BLOCK // 10)])
        drawings = draw_digits(block_targets, fields, radii, random)
        for i in range(start, min(start + BLOCK, n)):
            images[i] = digit_from_drawing(drawings[i - start])
            targets[i] = block_targets[i - start]
    return images, targets


def draw_digits(targets, fields, radii, random):
    """Draw each label after two fonts, distorted at random: uint8 (N, CANVAS, CANVAS).

    Each shape is a field of distances to the outline. Their weighted mean is a shape between the
    two fonts, a constant added makes the stroke thicker or thinner, and clipping at half a pixel
    from the outline gives anti-aliased greys.
    """
    def uniform(low, high):
        return random.uniform(low, high, (len(targets), 1, 1))

    def normal(mean, deviation):
        return random.normal(mean, deviation, (len(targets), 1, 1))

    first, second = random.randint(len(FONTS), size=(2, len(targets)))
    share = uniform(0, 0.5)
    field = fields[first, targets] * (1 - share) + fields[second, targets] * share
    radius = radii[first, targets] * (1 - share) + radii[second, targets] * share
    thicken = uniform(0.04, 0.085) - radius

    # From each pixel back to the point of the field that it shows, in heights of the digit.
    size = uniform(0.55, 0.75) * CANVAS
    line = np.arange(CANVAS) - (CANVAS - 1) / 2
    y = (line[:, np.newaxis] - uniform(-1, 1)) / size
    x = (line - uniform(-1, 1)) / size
    wave_y, wave_x = smooth_noise(random, len(targets))
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
