"""What is done to the images on the way, a whole batch at once on its device.

    x, targets = augment(image_set, x, targets, generator)

Each function of `AUGMENT`, one for each of `ImageSet.augment`, takes and gives a batch of
normalised images, float32 (B, C, H, W).
"""

import math

import torch
from torch.nn.functional import affine_grid, grid_sample, pad

# The most that a digit is turned, stretched, slanted, moved and thickened or thinned.
ROTATION_DEGREES = 12
SCALE = 0.12
SHEAR = 0.2
SHIFT_PIXELS = 2
THICKNESS = 0.7

# Of the ones so many get a flag, as much of Europe writes them and hardly one of MNIST's is.
FLAGGED = 0.3
FLAG_DEGREES = 25, 60  # off the vertical
FLAG_LENGTH = 6, 14  # pixels
FLAG_WIDTH = 2.4  # pixels, as MNIST's strokes

PICTURE_SHIFT = 4  # pixels

# Signs, which are never flipped: a bend to the left isn't one to the right.
SIGN_SCALE, SIGN_SHEAR, SIGN_SHIFT_PIXELS = 0.15, 0.15, 3
SIGN_BRIGHTNESS = 0.5  # standard deviations up or down, and as exponent the contrast


# Values that lie across the picture: flipped left to right they change their sign.
ACROSS = ("x", "angle", "steering")


def augment(image_set, x, targets, generator):
    """A batch of normalised images and their targets, changed at random as the set allows."""
    if image_set.augment == "frames":
        return augment_frames(image_set, x, targets, generator)
    if image_set.augment == "digits" and "1" in image_set.classes:
        ones = targets == image_set.classes.index("1")
        ones &= torch.rand(len(x), generator=generator, device=x.device) < FLAGGED
        x = x.clone()
        x[ones] = add_flags(x[ones], generator)
    return AUGMENT[image_set.augment](x, generator), targets


def augment_frames(image_set, x, targets, generator):
    """Frames in other light, half of them flipped left to right with the values that lie across.

    A clicked pixel p of w becomes w-1-p: of x, scaled by half the width, -x - 2/w.
    """
    flipped = torch.rand(len(x), generator=generator, device=x.device) < 0.5
    x = torch.where(flipped[:, None, None, None], x.flip(3), x)
    targets = targets.clone()
    for column, name in enumerate(image_set.classes):
        if name in ACROSS:
            pixel = 2 / image_set.shape[2] if name == "x" else 0
            targets[:, column] = torch.where(flipped, -targets[:, column] - pixel,
                                             targets[:, column])
    contrast, brightness = (uniform(x, generator, 0.3, 1, 1, 1) for _ in range(2))
    return x * torch.exp(contrast) + brightness, targets


def augment_digits(x, generator):
    """Each digit turned, stretched, slanted, moved, and thickened or thinned at random."""
    background = x.amin((1, 2, 3), keepdim=True)  # outside is as dark as the margin
    x = bend(x - background, generator, SCALE, SHEAR, SHIFT_PIXELS, "zeros") + background
    return change_thickness(x, uniform(x, generator, THICKNESS, 1, 1, 1))


def add_flags(x, generator):
    """Ones with a stroke from their top down to the left, moved so that they stay in the middle."""
    darkest = x.amin((1, 2, 3))[:, None, None]
    contrast = (x.amax((1, 2, 3))[:, None, None] - darkest).clamp(min=1e-6)
    ink = (x[:, 0] - darkest) / contrast
    side = torch.arange(x.shape[-1], dtype=x.dtype, device=x.device)
    rows, columns = side[:, None], side[None]
    top = (ink.amax(2) > 0.5).to(x.dtype).argmax(1)
    line = ink[torch.arange(len(x), device=x.device), top]
    tip = (line @ side / line.sum(1).clamp(min=1e-6))[:, None, None]
    (least, most), (short, long) = FLAG_DEGREES, FLAG_LENGTH
    share = uniform(x, generator, 0.5, 2, 1, 1) + 0.5
    angle = torch.deg2rad(least + (most - least) * share[:, 0])
    length = short + (long - short) * share[:, 1]
    left, down = tip - columns, rows - top[:, None, None] - FLAG_WIDTH / 4
    along = (left * torch.sin(angle) + down * torch.cos(angle)).clamp(min=0).minimum(length)
    distance = torch.hypot(left - along * torch.sin(angle), down - along * torch.cos(angle))
    flagged = torch.maximum(ink, (FLAG_WIDTH / 2 + 0.5 - distance).clamp(0, 1))
    before, after = ((image.sum(1) @ side) / image.sum((1, 2)).clamp(min=1e-6)
                     for image in (ink, flagged))
    moved = (side[None].long() - (before - after).round().long()[:, None]) % x.shape[-1]
    flagged = flagged.gather(2, moved[:, None].expand_as(flagged))
    return (darkest + flagged * contrast)[:, None]


def augment_pictures(x, generator):
    """Each picture moved up to 4 pixels, mirrored at its edge, and half of them flipped left to
    right."""
    flipped = torch.rand(len(x), 1, 1, 1, generator=generator, device=x.device) < 0.5
    x = torch.where(flipped, x.flip(3), x)
    height, width = x.shape[2:]
    padded = pad(x, (PICTURE_SHIFT,) * 4, mode="reflect").permute(0, 2, 3, 1)
    top, left = torch.randint(0, 2 * PICTURE_SHIFT + 1, (2, len(x), 1), generator=generator,
                              device=x.device)
    rows = (top + torch.arange(height, device=x.device))[:, :, None]
    columns = (left + torch.arange(width, device=x.device))[:, None, :]
    images = torch.arange(len(x), device=x.device)[:, None, None]
    return padded[images, rows, columns].permute(0, 3, 1, 2)


def augment_signs(x, generator):
    """Each sign turned, stretched, slanted and moved, in other light."""
    x = bend(x, generator, SIGN_SCALE, SIGN_SHEAR, SIGN_SHIFT_PIXELS, "border")
    contrast, brightness = (uniform(x, generator, SIGN_BRIGHTNESS, 1, 1, 1) for _ in range(2))
    return x * torch.exp(contrast) + brightness


AUGMENT = {"digits": augment_digits, "pictures": augment_pictures, "signs": augment_signs,
           "none": lambda x, generator: x}


def uniform(x, generator, limit, *shape):
    """Random numbers from -limit to limit, of this shape for each image of the batch."""
    return (torch.rand(len(x), *shape, generator=generator, device=x.device) * 2 - 1) * limit


def bend(x, generator, scale, shear, shift, outside):
    """Each image turned by up to 12 degrees, stretched, slanted and moved (by pixels) at random.

    `outside`: what lies beyond its edge, "zeros" or its "border".
    """
    angle = uniform(x, generator, math.radians(ROTATION_DEGREES))
    across, down = (1 + uniform(x, generator, scale) for _ in range(2))
    cos, sin, slant = torch.cos(angle), torch.sin(angle), uniform(x, generator, shear)
    # grid_sample's unit is half a picture
    moved = uniform(x, generator, 2 * shift / x.shape[-1], 2)
    matrix = torch.stack([
        torch.stack([across * cos, across * (slant * cos - sin), moved[:, 0]], 1),
        torch.stack([down * sin, down * (slant * sin + cos), moved[:, 1]], 1)], 1)
    grid = affine_grid(matrix, x.shape, align_corners=False)
    return grid_sample(x, grid, padding_mode=outside, align_corners=False)


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
