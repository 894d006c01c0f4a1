"""Digits drawn after fonts, as if by hand: a stand-in where MNIST isn't available."""

import functools
import os

import numpy as np

from mnist.datasets.drawing import digit_from_drawing
from mnist.errors import UnavailableError

# Of the fonts that matplotlib carries, those whose digits come nearest to handwriting, and the
# letters to take for 0 to 9: people write a 1 like the l of a font without serifs.
FONTS = (("DejaVuSans", "0l23456789"), ("DejaVuSans-Oblique", "0123456789"),
         ("DejaVuSerif-Italic", "0123456789"), ("STIXGeneral", "0123456789"),
         ("STIXGeneralItalic", "0123456789"), ("cmr10", "0123456789"),
         ("cmss10", "0l23456789"), ("cmtt10", "0123456789"))
GENERATED = {"train": (60000, 1), "test": (10000, 0)}  # what stands for a split: how many, seed
CANVAS, HEIGHT = 64, 36  # pixels; a digit is drawn on so many, then prepared like any drawing


def generated_digits(n, seed):
    """Draw digits after fonts, as if by hand: images uint8 (n, 1, 28, 28), targets int64
    (n,).

    The same seed gives the same digits (where matplotlib's and Pillow's versions are the same), and
    fewer of them are the first of more. Every ten digits hold each label once, in random order.

    Raises UnavailableError where matplotlib, whose fonts these are, isn't installed.
    """
    fonts = open_fonts()
    random = np.random.RandomState(seed)
    images, targets = np.empty((n, 1, 28, 28), np.uint8), np.empty(n, np.int64)
    for k in range(n):
        if k % 10 == 0:
            order = random.permutation(10)
        targets[k] = order[k % 10]
        images[k] = digit_from_drawing(draw_digit(order[k % 10], fonts, random))
    return images, targets


def draw_digit(target, fonts, random):
    """A digit after one of the fonts, uint8 (CANVAS, CANVAS): its stroke made thicker, and the
    whole turned, slanted, stretched and bent at random."""
    from PIL import Image, ImageDraw
    font, letters = fonts[random.randint(len(fonts))]
    picture = Image.new("L", (CANVAS, CANVAS))
    ImageDraw.Draw(picture).text((CANVAS / 3, CANVAS / 5), letters[target], 255, font,
                                 stroke_width=random.randint(2))
    turn, slant = np.radians(random.normal(0, 8)), random.normal(0.1, 0.18)
    matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    matrix = matrix @ [[random.uniform(0.75, 1.3), slant], [0, 1]]
    corners = np.array([(-1, -1), (-1, 1), (1, 1), (1, -1)]) + random.normal(0, 0.15, (4, 2))
    corners = (corners @ matrix.T + 1) * CANVAS / 2
    return np.asarray(picture.transform(picture.size, Image.QUAD, corners.flatten().tolist(),
                                        Image.BILINEAR))


@functools.lru_cache(maxsize=None)
def open_fonts():
    """Pillow's fonts, each with its letters for 0 to 9."""
    try:
        import matplotlib
    except ImportError as error:
        raise UnavailableError(f"generated digits need the fonts of matplotlib ({error}): "
                               "pip install matplotlib") from error
    from PIL import ImageFont
    folder = os.path.join(matplotlib.get_data_path(), "fonts", "ttf")
    return [(ImageFont.truetype(os.path.join(folder, name + ".ttf"), HEIGHT), letters)
            for name, letters in FONTS]
