"""An image set's facts, and what a network gets of its images."""

import numpy as np

# Mean and standard deviation of the grey levels of MNIST's training images, on a scale of 0 to 1.
MEAN = 0.1307
STD = 0.3081


def normalise(images):
    """What a network takes, float32 (N, 1, 28, 28), from grey levels, uint8 (N, 28, 28).

    Of a numpy array an array, of a torch tensor a tensor on the same device.
    """
    x = images[:, None]
    x = x.astype(np.float32) if isinstance(x, np.ndarray) else x.float()
    x -= 255 * MEAN
    x /= 255 * STD
    return x
