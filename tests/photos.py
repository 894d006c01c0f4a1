"""Photo-like pictures of a digit: what people open in the window and on the page."""

import io

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

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
    side = min(height, width)
    low, high = {"form's box": (0.4, 0.6), "sheet on a table": (0.25, 0.5)}.get(style, (0.25, 0.85))
    length = side * uniform(low, high)
    thickness = length * (uniform(0.025, 0.05) if style == "pencil" else uniform(0.035, 0.13))
    ink = make_ink(length, max(thickness, 1.2))
    ink.thumbnail((width - 2, height - 2))
    # On a sheet or in a box it lies near the middle, else anywhere.
    free = np.array([width - ink.width, height - ink.height])
    place = uniform(0.38, 0.62, 2) if style in ("form's box", "sheet on a table") \
        else uniform(0.04, 0.96, 2)
    left, top = (free * place).astype(int)
    mask = Image.new("L", (width, height))
    mask.paste(ink, (left, top))
    mask = np.asarray(mask, np.float32) / 255

    paper = uniform(130, 250) * uniform(0.9, 1, 3)
    colour = paper * uniform(0.05, 0.5) * np.array(
        [(1, 1, 1), (0.5, 0.6, 1.6), (1.6, 0.5, 0.5), (0.6, 1.2, 0.6)][generator.randint(4)])
    if style == "pencil":
        colour = paper * uniform(0.5, 0.72)
        mask = mask * np.clip(generator.normal(0.85, 0.2, mask.shape), 0, 1)
    if style == "light on dark":
        paper, colour = uniform(15, 70) * uniform(0.8, 1, 3), uniform(150, 250) * uniform(0.9, 1, 3)
    ground = np.ones((height, width, 3), np.float32) * paper
    x, y = np.meshgrid(np.linspace(-1, 1, width), np.linspace(-1, 1, height))
    if style == "ruled paper":
        ground = ruled(ground, paper, side, generator)
    if style == "form's box":
        ground = boxed(ground, paper, colour, (left, top, left + ink.width, top + ink.height),
                       generator)
    if style == "specks":
        ground = specked(ground, colour, mask, length, generator)
    picture = ground + mask[..., np.newaxis] * (colour - ground)
    if style == "sheet on a table":
        picture = on_a_table(picture, (left, top, left + ink.width, top + ink.height), generator)
    picture = picture * light(style, x, y, generator)[..., np.newaxis]
    noise = uniform(8, 28) if style == "grey noise" else uniform(1, 6)
    picture = picture + generator.normal(0, noise, (height, width, 1)) \
        + generator.normal(0, noise / 3, (height, width, 3))
    picture = np.clip(picture + 0.5, 0, 255).astype(np.uint8)
    if style == "JPEG quality 30" or generator.random_sample() < 0.3:
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "JPEG",
                                      quality=30 if style == "JPEG quality 30" else 85)
        picture = np.asarray(Image.open(file))
    return picture


def light(style, x, y, generator):
    """How bright each place is, 0 to 1; x and y from -1 to 1."""
    angle = generator.uniform(0, 2 * np.pi)
    along = x * np.cos(angle) + y * np.sin(angle)
    if style == "gradient":
        return 1 - generator.uniform(0.3, 0.65) * (along + 1.42) / 2.84
    if style == "shadow edge":
        softness = generator.uniform(0.003, 0.15)
        edge = 1 / (1 + np.exp(-np.clip((along - generator.uniform(-0.5, 0.5)) / softness,
                                        -50, 50)))
        return 1 - generator.uniform(0.25, 0.6) * edge
    if style == "vignette":
        return 1 - generator.uniform(0.2, 0.38) * (x ** 2 + y ** 2)
    return 1 - generator.uniform(0, 0.12) * (along + 1.42) / 2.84


def ruled(ground, paper, side, generator):
    """Lines across the page, a little tilted, fainter than the ink."""
    height, width = ground.shape[:2]
    picture = Image.fromarray(ground.astype(np.uint8))
    pen = ImageDraw.Draw(picture)
    line = tuple(int(level) for level in paper * generator.uniform(0.55, 0.85)
                 * np.array([(1, 1, 1), (0.8, 0.95, 1.1)][generator.randint(2)]))
    spacing = side * generator.uniform(0.12, 0.35)
    slope = np.tan(np.radians(generator.uniform(-2, 2)))
    thickness = max(1, int(side * generator.uniform(0.003, 0.009)))
    for y in np.arange(generator.uniform(-spacing, 0), height + spacing, spacing):
        pen.line((0, y, width, y + slope * width), fill=line, width=thickness)
    return np.asarray(picture, np.float32)


def boxed(ground, paper, colour, box, generator):
    """The box of a form around the digit, sometimes one of a row of them."""
    left, top, right, bottom = box
    picture = Image.fromarray(ground.astype(np.uint8))
    pen = ImageDraw.Draw(picture)
    length = max(right - left, bottom - top)
    thickness = max(1, int(length * generator.uniform(0.008, 0.03)))
    dark = colour.mean() + generator.uniform(0, 0.5) * (paper.mean() - colour.mean())
    room = length * generator.uniform(0.08, 0.3)
    across = (length - (right - left)) / 2 * generator.uniform(0.3, 1)
    sides = [left - room - across, top - room, right + room + across, bottom + room]
    for shift in (-1, 0, 1) if generator.random_sample() < 0.4 else (0,):
        x = shift * (sides[2] - sides[0])
        pen.rectangle((sides[0] + x, sides[1], sides[2] + x, sides[3]), outline=(int(dark),) * 3,
                      width=thickness)
    return np.asarray(picture, np.float32)


def specked(ground, colour, mask, length, generator):
    """Specks of dirt of the ink's colour, off the digit."""
    height, width = mask.shape
    ground = ground.copy()
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    near = np.asarray(Image.fromarray((mask > 0.2).astype(np.uint8) * 255).resize(
        (64, 64), Image.BOX).filter(ImageFilter.MaxFilter(5)).resize((width, height)))
    placed = 0
    for _ in range(40):
        centre = generator.uniform(0.02, 0.98, 2) * (height, width)
        if placed < generator.randint(2, 6) and not near[int(centre[0]), int(centre[1])]:
            radius = max(0.7, length * generator.uniform(0.008, 0.04))
            ground[np.hypot(y - centre[0], x - centre[1]) < radius] = colour
            placed += 1
    return ground


def on_a_table(picture, box, generator):
    """The picture as a sheet of paper, a little turned, on a dark table."""
    height, width = picture.shape[:2]
    left, top, right, bottom = box
    angle = np.radians(generator.uniform(-8, 8))
    reach = min(left, top, width - right, height - bottom)
    inset = generator.uniform(0.15, 0.6) * reach
    middle = np.array([width, height]) / 2
    corners = np.array([(inset, inset), (width - inset, inset), (width - inset, height - inset),
                        (inset, height - inset)]) - middle
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    sheet = Image.new("L", (width, height))
    ImageDraw.Draw(sheet).polygon([tuple(corner @ turn + middle) for corner in corners], fill=255)
    sheet = np.asarray(sheet, np.float32)[..., np.newaxis] / 255
    table = generator.uniform(15, 70) * generator.uniform(0.7, 1, 3) \
        + generator.normal(0, 6, (height, width, 1))
    return sheet * picture + (1 - sheet) * table
