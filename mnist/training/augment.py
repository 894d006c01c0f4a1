"""What is done to the images on the way, a whole batch at once on its device."""

import math

import torch
from torch.nn.functional import affine_grid, grid_sample

from mnist.datasets.image_set import MEAN, STD

# The most that a digit is turned, stretched, slanted, moved and thickened or thinned.
ROTATION_DEGREES = 12
SCALE = 0.12
SHEAR = 0.2
SHIFT_PIXELS = 2
THICKNESS = 0.7


def augment(x, generator):
    """Each digit of a normalised batch (B, 1, 28, 28) turned, stretched, slanted, moved, and
    thickened or thinned at random, the whole batch at once on its device."""
    def uniform(limit, *shape):
        return (torch.rand(len(x), *shape, generator=generator, device=x.device) * 2 - 1) * limit

    angle = uniform(math.radians(ROTATION_DEGREES))
    across, down = 1 + uniform(SCALE), 1 + uniform(SCALE)
    cos, sin, slant = torch.cos(angle), torch.sin(angle), uniform(SHEAR)
    shift = uniform(SHIFT_PIXELS / 14, 2)  # grid_sample's unit is half a picture
    matrix = torch.stack([
        torch.stack([across * cos, across * (slant * cos - sin), shift[:, 0]], 1),
        torch.stack([down * sin, down * (slant * sin + cos), shift[:, 1]], 1)], 1)
    background = -MEAN / STD
    grid = affine_grid(matrix, x.shape, align_corners=False)
    x = grid_sample(x - background, grid, align_corners=False) + background
    return change_thickness(x, uniform(THICKNESS, 1, 1, 1))


def change_thickness(x, amount):
    """Blend each digit with its dilation (amount up to 1) or its erosion (down to -1)."""
    thick, thin = dilate(x), -dilate(-x)
    return x + amount.clamp(min=0) * (thick - x) + amount.clamp(max=0) * (x - thin)


def dilate(x):
    """The largest of each pixel's 3×3 neighbourhood: what max-pooling gives with a stride of 1,
    which on a CPU takes ten times as long for a single channel."""
    for axis in (2, 3):
        rest = x.shape[axis] - 1
        wide = x.clone()
        for target, source in ((1, 0), (0, 1)):
            part = wide.narrow(axis, target, rest)
            torch.maximum(part, x.narrow(axis, source, rest), out=part)
        x = wide
    return x
