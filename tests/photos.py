"""Photo-like pictures of a digit: what people open in the window and on the page."""

import io

import numpy as np
from PIL import Image, ImageDraw

from mnist.datasets.drawing import grow

STYLES = ("grey noise", "gradient", "shadow edge", "vignette", "pencil", "ruled paper",
          "sheet on a table", "form's box", "specks", "JPEG quality 30", "light on dark")


def pen_ink(strokes, side, width):
    """Pen strokes, 0 to 1000, drawn `side` pixels long by a round pen: an "L" picture."""
    scale, margin = 4 * side / 1000, 2 * width + 4
    drawn = [[tuple(point * scale + margin) for point in stroke] for stroke in strokes]
    size = np.concatenate([np.array(stroke) for stroke in drawn]).max(0) + margin
    ink = Image.new("L", tuple(int(length) + 1 for length in size))
    pen = ImageDraw.Draw(ink)
    radius = 2 * width
    for stroke in drawn:
        pen.line(stroke, fill=255, width=int(4 * width) | 1)
        for x, y in stroke:
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    return ink.resize((max(1, ink.width // 4), max(1, ink.height // 4)), Image.BOX)


def photo(make_ink, style, generator):
    """uint8 (H, W, 3) of a digit; `make_ink(side, width)` gives it as an "L" picture whose longer
    side has about `side` pixels."""
    uniform = generator.uniform
    height = int(np.exp(uniform(np.log(100), np.log(1000))))
    width = int(np.clip(height * uniform(0.7, 1.4), 100, 1000))
    central = style in ("form's box", "sheet on a table")
    length = min(height, width) * (uniform(0.3, 0.55) if central else uniform(0.25, 0.85))
    thickness = length * (uniform(0.025, 0.05) if style == "pencil" else uniform(0.035, 0.13))
    ink = make_ink(length, max(thickness, 1.2))
    ink.thumbnail((width - 2, height - 2))
    free = np.array([width - ink.width, height - ink.height])
    left, top = (free * (uniform(0.38, 0.62, 2) if central else uniform(0.04, 0.96, 2))).astype(int)
    mask = np.zeros((height, width))
    mask[top:top + ink.height, left:left + ink.width] = np.asarray(ink) / 255
    y, x = np.mgrid[:height, :width]

    paper = uniform(130, 250) * uniform(0.9, 1, 3)
    colour = paper * uniform(0.05, 0.5) * np.array(
        [(1, 1, 1), (0.5, 0.6, 1.6), (1.6, 0.5, 0.5), (0.6, 1.2, 0.6)][generator.randint(4)])
    if style == "pencil":
        colour = paper * uniform(0.5, 0.72)
        mask *= np.clip(generator.normal(0.85, 0.2, mask.shape), 0, 1)
    if style == "light on dark":
        paper, colour = uniform(15, 70) * uniform(0.8, 1, 3), uniform(150, 250) * uniform(0.9, 1, 3)
    ground = np.ones((height, width, 3)) * paper
    if style == "ruled paper":
        slope, spacing = uniform(-0.035, 0.035), min(height, width) * uniform(0.12, 0.35)
        thickness = max(1, min(height, width) * uniform(0.003, 0.009))
        ground[(y + slope * x) % spacing < thickness] *= uniform(0.55, 0.85)
    if style == "form's box":
        away = np.maximum(abs(x - left - ink.width / 2), abs(y - top - ink.height / 2))
        thickness = max(1, length * uniform(0.008, 0.03))
        ground[abs(away - length * uniform(0.58, 0.8)) < thickness / 2] = \
            colour + uniform(0, 0.5) * (paper - colour)
    if style == "specks":
        off = np.argwhere(~grow(mask > 0.2, int(0.16 * length) | 1))
        for row, column in off[generator.randint(len(off), size=generator.randint(2, 6))]:
            ground[np.hypot(y - row, x - column) < length * uniform(0.01, 0.04)] = colour
    picture = ground + mask[..., np.newaxis] * (colour - ground)
    if style == "sheet on a table":
        angle, across, down = uniform(-0.14, 0.14), x - width / 2, y - height / 2
        inset = uniform(0.15, 0.6) * min(left, top, *(free - (left, top)))
        table = np.maximum(abs(across * np.cos(angle) + down * np.sin(angle)) - width / 2,
                           abs(down * np.cos(angle) - across * np.sin(angle)) - height / 2) > -inset
        picture[table] = uniform(15, 70) + generator.normal(0, 6, (table.sum(), 1))
    picture *= 1 - shade(style, 2 * x / width - 1, 2 * y / height - 1, uniform)[..., np.newaxis]
    noise = uniform(8, 28) if style == "grey noise" else uniform(1, 6)
    picture += generator.normal(0, noise, (height, width, 1))
    picture = np.clip(picture + 0.5, 0, 255).astype(np.uint8)
    if style == "JPEG quality 30":
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "JPEG", quality=30)
        picture = np.asarray(Image.open(file))
    return picture


def shade(style, x, y, uniform):
    """How dark each place is, 0 to 1; x and y from -1 to 1."""
    if style == "vignette":
        return uniform(0.2, 0.38) * (x ** 2 + y ** 2)
    angle = uniform(0, 2 * np.pi)
    along = x * np.cos(angle) + y * np.sin(angle)
    if style == "shadow edge":
        softness = uniform(0.003, 0.15)
        return uniform(0.25, 0.6) * np.clip((along - uniform(-0.5, 0.5)) / softness + 0.5, 0, 1)
    return (uniform(0.3, 0.65) if style == "gradient" else uniform(0, 0.12)) * (along + 1.42) / 2.84
