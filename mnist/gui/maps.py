"""Feature maps and filters as pictures, for the window and for files."""

import math

import numpy as np

# Blue for negative, white for zero, red for positive: RGB at -1, -1/2, 0, 1/2, 1.
DIVERGING = (28, 78, 160), (130, 178, 224), (255, 255, 255), (240, 150, 120), (178, 22, 40)


def diverging_colours(values, scale):
    """float (...) → uint8 (..., 3): blue at -scale, white at zero, red at scale."""
    positions = np.clip(values / (scale or 1), -1, 1)
    levels = [np.interp(positions, np.linspace(-1, 1, 5), channel) for channel in zip(*DIVERGING)]
    return np.stack(levels, -1).round().astype(np.uint8)


def filter_colours(filters, scale):
    """Filters of a colour image, float (..., 3, H, W) → uint8 (..., H, W, 3): each channel from 0
    at -scale to 255 at scale, so that zero is grey."""
    levels = np.clip(filters / (scale or 1), -1, 1) * 127.5 + 127.5
    return np.moveaxis(levels, -3, -1).round().astype(np.uint8)


def largest(values):
    """The largest magnitude in an array: the scale that all its pictures share."""
    return float(abs(values).max())


def size_of(maps):
    """Height and width of some maps (..., H, W) as text: "24×24"."""
    return "{}×{}".format(*maps.shape[-2:])


def columns_for(number, wide=False):
    """In how many columns so many maps are shown: in a square, or in one twice as wide."""
    return max(1, math.ceil(math.sqrt(2 * number if wide else number)))
