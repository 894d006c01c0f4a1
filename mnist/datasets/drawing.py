"""A digit as MNIST's are, made of a drawing, a photo or a scan.

    picture = read_picture("seven.jpg")        a file of any kind, or its bytes
    digit = digit_from_picture(picture)        digit.image, digit.note
"""

import io
from typing import Any, NamedTuple

import numpy as np

from mnist.errors import MNISTError, UnavailableError

READ_SIDE = 2048  # larger pictures are read scaled
WORK_SIDE = 320  # the ink is looked for in a picture of this many pixels, which evens out noise
CLEAN = 2 / 3  # the share of exactly black pixels from which a picture is a drawing
DOUBTFUL = 0.8  # a probability below which an answer is shown as doubtful, see `is_doubtful`


class Digit(NamedTuple):
    """What was found in a picture."""

    image: Any  # uint8 (1, 28, 28), as an engine takes it; None where nothing is drawn
    ink: Any  # uint8 (H, W), white on black: what the digit was made of, at the scale worked at
    note: str  # what there is to say, "" for nothing


def read_picture(source):
    """A picture's pixels, upright: uint8 (H, W), (H, W, 3), or (H, W, 4) where it has transparency.

    `source`: the path of a file, or its bytes. EXIF's orientation is applied. The longer side is
    2048 pixels at most: larger pictures are read scaled. Of an animation the first picture is
    taken. Raises MNISTError where it can't be read, UnavailableError without Pillow.
    """
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ImportError as error:
        raise UnavailableError("reading pictures needs Pillow: pip install pillow") from error
    inside = isinstance(source, bytes)
    try:
        with Image.open(io.BytesIO(source) if inside else source) as file:
            file.draft(None, (READ_SIDE, READ_SIDE))  # a large JPEG is decoded smaller
            picture = ImageOps.exif_transpose(file)
            if picture.mode.startswith("I"):  # 16 bits a pixel
                picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
            transparent = "A" in picture.getbands() or "transparency" in picture.info
            grey = picture.mode in ("1", "L") and not transparent
            picture = picture.convert("RGBA" if transparent else "L" if grey else "RGB")
            picture.thumbnail((READ_SIDE, READ_SIDE))
            return np.array(picture)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        name = "the picture" if inside else source
        what = "it is none of a kind that Pillow knows" \
            if isinstance(error, UnidentifiedImageError) else error
        raise MNISTError(f"can't read {name}: {what}") from error


def is_drawable(image_set):
    """Whether drawings can be prepared for an image set: digits, letters, white on black."""
    return image_set.shape == (1, 28, 28) and image_set.augment == "digits"


def is_doubtful(log_probs):
    """Whether a network's log-probabilities of one image, (K,), leave its answer in doubt.

    Below 0.8 `net` is with 1.2 % of the last 10,000 training digits, and with 74 % of those among
    them that it misreads.
    """
    return bool(np.max(log_probs) < np.log(DOUBTFUL))


# --- Pictures -------------------------------------------------------------------------------------


def digit_from_picture(picture):
    """The `Digit` in a picture, uint8 (H, W), (H, W, 3) or (H, W, 4), of any size.

    A drawing, white on pure black, is taken as it is. Elsewhere the ink may be darker or lighter
    than what is around it; shadows, specks, ruled lines, a form's box and a table under the sheet
    are left out. Of several digits the largest is taken, and the note says so.
    """
    levels = grey_levels(picture)
    if np.mean(levels == 0) >= CLEAN:
        mask, several = main_pieces(levels > levels.max() // 4, levels)
        ink = levels * mask if several else levels
    else:
        ink, several = find_ink(levels)
    image = digit_from_drawing(ink)
    if image is None:
        return Digit(None, ink, "nothing drawn")
    return Digit(image, ink, "several pieces: the largest is read" if several else "")


def grey_levels(picture):
    """uint8 (H, W) of a picture. What is transparent gets the tone of the rest; where most of it is
    transparent, so that the rest is ink, black under light ink and white under dark."""
    if picture.ndim == 2:
        return picture
    grey = picture[..., :3] @ np.array([0.299, 0.587, 0.114], np.float32)
    if picture.shape[2] == 4:
        alpha = picture[..., 3] / np.float32(255)
        visible = grey[alpha > 0.5]
        tone = np.median(visible) if visible.size else 0
        if visible.size < 0.5 * grey.size:
            tone = 0 if tone > 127 else 255
        grey = tone + alpha * (grey - tone)
        if not visible.size:
            grey[:] = 0
    return np.rint(grey).astype(np.uint8)


def find_ink(levels):
    """The ink of a digit in a photo or scan, uint8 (H, W): (white on black, whether there were
    several digits); all black where there is none.

    Worked on is the logarithm of the light, so that ink in a shadow is as far from its paper as in
    the sun. Ink is what is narrower than `window` and darker (or lighter) than both what a closing
    of that window leaves and the local median. Which of the two it is, the paper just around it
    tells: it is even around ink, not around the corner of a sheet or the hole of a 0.
    """
    small = shrink(np.kron(levels, np.ones((max(1, 128 // max(levels.shape)),) * 2, np.uint8)),
                   WORK_SIDE)
    tone = np.log(smooth(small) + 30)
    window = max(5, int(0.3 * min(tone.shape)))
    ground = local_median(tone)
    noise = 2 * np.median(np.abs(np.diff(tone[:, ::2], axis=1)))
    best, ink, several = 0, np.zeros(tone.shape, np.uint8), False
    for sign in (1, -1):
        depth = closing(sign * tone, window) - sign * tone
        depth = np.minimum(depth - np.median(depth), sign * (ground - tone)).clip(0)
        faintest = max(0.08, 5 * noise)
        peak = np.percentile(depth, 99.7)
        if peak < faintest:
            continue
        inner = np.where(grow(on_edge(depth > 0.4 * peak), 7), 0, depth)
        if np.percentile(inner, 99.7) > faintest:  # there is more than what reaches the edge
            depth, peak = inner, np.percentile(inner, 99.7)
        mask, more = main_pieces(depth > max(0.4 * peak, 3 * noise), depth)
        if not mask.any():
            continue
        around = tone[grow(mask, 13) & ~grow(mask, 7)]
        uneven = np.mean(np.abs(around - np.median(around)) > 0.35 * peak) if around.size else 1
        likeliness = depth[mask].sum() * (1 - uneven) ** 8
        if likeliness > best:
            scale = np.percentile(depth[mask], 75)
            soft = np.clip((depth / scale - 0.3) / 0.5, 0, 1) * grow(mask, 3)
            best, ink, several = likeliness, np.rint(255 * soft).astype(np.uint8), more
    return ink, several


def main_pieces(mask, strength):
    """Of the ink `mask`, bool (H, W), the pieces that make up the largest digit, and whether there
    is another one of its kind. `strength` (H, W) is how strong the ink is."""
    labels, number = label(mask)
    if not number:
        return mask, False
    height, width = mask.shape
    rows, columns = np.nonzero(labels)
    which = labels[rows, columns] - 1
    top, left = np.full(number, height), np.full(number, width)
    bottom, right = np.zeros(number, int), np.zeros(number, int)
    strongest = np.zeros(number)
    for extreme, box, values in ((np.minimum, top, rows), (np.maximum, bottom, rows + 1),
                                 (np.minimum, left, columns), (np.maximum, right, columns + 1),
                                 (np.maximum, strongest, strength[rows, columns])):
        extreme.at(box, which, values)
    area = np.bincount(which)
    outer = (top == 0) | (left == 0) | (bottom == height) | (right == width)
    strong = strongest > 0.6 * np.percentile(strength[mask], 90)
    main = int((area * np.where(outer, 0.3, 1) * strong).argmax())
    length = np.maximum(bottom - top, right - left)
    gap = np.maximum(np.maximum(top - bottom[main], top[main] - bottom),
                     np.maximum(left - right[main], left[main] - right)) / length[main]
    own = (gap < 0.35) & (length > 0.12 * length[main]) & (area > 0.03 * area[main]) & strong
    own &= ~outer | outer[main]
    own[main] = True
    others = ~own & strong & ~outer & (length > 0.5 * length[main]) & (area > 0.3 * area[main])
    return np.isin(labels, np.flatnonzero(own) + 1), bool(others.any())


def on_edge(mask):
    """The pieces of a mask that reach the edge of the picture."""
    labels, _ = label(mask)
    edge = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    return mask & np.isin(labels, edge)


# --- Filters, numpy alone -------------------------------------------------------------------------


def shrink(levels, side):
    """float32 (h, w), the longer side `side` pixels at most; each averages the area it covers."""
    scale = max(levels.shape) / side
    levels = levels.astype(np.float32)
    if scale <= 1:
        return levels

    def weights(length):
        edges = np.linspace(0, length, max(1, int(round(length / scale))) + 1)[:, np.newaxis]
        lines = np.arange(length)
        overlap = np.minimum(edges[1:], lines + 1) - np.maximum(edges[:-1], lines)
        return (overlap.clip(0) / (edges[1] - edges[0])).astype(np.float32)
    return weights(levels.shape[0]) @ levels @ weights(levels.shape[1]).T


def smooth(levels):
    """Each pixel averaged with its neighbours, 1 2 1 both ways."""
    padded = np.pad(levels, 1, "edge")
    rows = (padded[:-2] + 2 * padded[1:-1] + padded[2:]) / 4
    return (rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]) / 4


def running(extreme, values, window, axis):
    """The largest (np.maximum) or smallest of each pixel's `window` along an axis."""
    padding = [(0, 0), (0, 0)]
    padding[axis] = (window // 2, window - 1 - window // 2)
    values = np.moveaxis(np.pad(values, padding, "edge"), axis, 0)
    reach = 1
    while reach < window:
        step = min(reach, window - reach)
        values = extreme(values[:-step], values[step:])
        reach += step
    return np.moveaxis(values, 0, axis)


def closing(values, window):
    """Morphological closing: what is narrower than `window` and lower than around it is filled."""
    for extreme in (np.maximum, np.minimum):
        for axis in (0, 1):
            values = running(extreme, values, window, axis)
    return values


def grow(mask, window):
    """The mask dilated by a square of `window` pixels."""
    return running(np.maximum, running(np.maximum, mask, window, 0), window, 1)


def local_median(values):
    """The median of half the picture around each pixel, found at a coarse scale: (H, W)."""
    small = shrink(values, 48)
    window = max(3, min(small.shape) // 2) | 1
    padded = np.pad(small, window // 2, "edge")
    windows = np.lib.stride_tricks.as_strided(padded, small.shape + (window, window),
                                              padded.strides * 2)
    medians = np.median(windows.reshape(small.shape + (-1,)), -1)
    for fine in values.shape[::-1]:  # along the columns, then turned, along the rows
        coarse = medians.shape[1]
        at = (np.arange(fine) + 0.5) * coarse / fine - 0.5
        medians = np.array([np.interp(at, np.arange(coarse), line) for line in medians]).T
    return medians


def label(mask):
    """The connected pieces of a mask, bool (H, W), corners included: (int (H, W), from 1 on and 0
    where there is none; how many)."""
    steps = np.diff(np.pad(mask, ((0, 0), (1, 1)), "constant").astype(np.int8), axis=1)
    rows, starts = np.nonzero(steps == 1)  # the runs of each row
    stops = np.nonzero(steps == -1)[1]
    first = np.searchsorted(rows, np.arange(len(mask) + 1)).tolist()
    begins, ends = starts.tolist(), stops.tolist()
    parents = list(range(len(rows)))

    def root(run):
        while parents[run] != run:
            parents[run] = run = parents[parents[run]]
        return run

    for row in range(1, len(mask)):
        above, run = first[row - 1], first[row]
        while above < first[row] and run < first[row + 1]:
            if begins[above] <= ends[run] and begins[run] <= ends[above]:
                one, other = root(above), root(run)
                parents[max(one, other)] = min(one, other)
            if ends[above] < ends[run]:
                above += 1
            else:
                run += 1
    roots, pieces = np.unique([root(run) for run in range(len(rows))], return_inverse=True)
    labels = np.zeros((len(mask), mask.shape[1] + 1), np.int32)
    labels[rows, starts] = pieces + 1
    labels[rows, stops] -= (pieces + 1).astype(np.int32)
    return labels.cumsum(1)[:, :-1], len(roots)


# --- Drawings -------------------------------------------------------------------------------------


def digit_from_drawing(gray):
    """Prepare a drawing, uint8 (H, W), white on black, as MNIST's digits were: uint8 (1, 28, 28).

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
    return (digit * (255 / digit.max()) + 0.5).astype(np.uint8)[np.newaxis]


def ink_along(gray, axis, peak):
    """Where the ink is, summed over one axis: its amount (N,) and the start and stop of its box.

    A faint edge is not yet ink: a quarter of the brightest level, as measured.
    """
    marked = np.flatnonzero(gray.max(axis) > peak // 4)
    return gray.sum(axis, dtype=np.float64), marked[0], marked[-1] + 1


def averaging_weights(amount, start, stop, pixel, window):
    """Weights float32 (28, N) that average a line of the drawing into each of 28 pixels.

    A pixel of the digit spans `pixel` pixels of the drawing and averages over `window` times as
    much. The centre of mass falls on the middle of pixel 14, where MNIST has it to half a pixel;
    here exactly, with which more digits were read than when they are moved by whole pixels.
    """
    mass_centre = amount @ (np.arange(len(amount)) + 0.5) / amount.sum()
    first = mass_centre - 14.5 * pixel
    first = min(max(first, stop - 28 * pixel), start)  # nothing drawn is lost over the edge
    centres = first + (np.arange(28)[:, np.newaxis] + 0.5) * pixel
    low, high = centres - window * pixel / 2, centres + window * pixel / 2
    lines = np.arange(len(amount))
    overlap = np.minimum(high, lines + 1) - np.maximum(low, lines)
    return (overlap.clip(0) / (window * pixel)).astype(np.float32)
