"""An image set: one record of what the images are, handed through everything that works on them.

    image_set.shape, image_set.classes      (3, 32, 32), ("airplane", …)
    x = image_set.normalise(images)         what a network takes
    image_set.score(log_probs, targets)     accuracy, or RMSE where the targets are values

The sets by name are `MNISTdsource.IMAGE_SETS`; a record travels with the weights trained on it.
Nothing that works on images knows a shape, a number of classes or a mean but from here.
"""

import json
from typing import NamedTuple, Tuple

import numpy as np


class ImageSet(NamedTuple):
    """What a set of images is."""

    name: str  # "mnist", "cifar10", …, or a folder's
    shape: Tuple[int, int, int]  # channels, height, width of the uint8 images a network gets
    classes: Tuple[str, ...]  # texts by index; for regression the names of the values
    mean: Tuple[float, ...]  # of the training images by channel, on a scale of 0 to 1
    std: Tuple[float, ...]
    task: str = "classification"  # or "regression"
    augment: str = "none"  # what training may do to its images: see mnist/training/augment.py

    @property
    def outputs(self):
        """How many numbers a network puts out: one for each class, or value."""
        return len(self.classes)

    def normalise(self, images):
        """What a network takes, float32 (N, C, H, W), from images, uint8 (N, C, H, W).

        Of a numpy array an array, of a torch tensor a tensor on the same device.
        """
        mean, std = (255 * np.array(values, np.float32).reshape(1, -1, 1, 1)
                     for values in (self.mean, self.std))
        if isinstance(images, np.ndarray):
            x = images.astype(np.float32)
        else:
            x = images.float()
            mean, std = x.new_tensor(mean), x.new_tensor(std)
        x -= mean
        x /= std
        return x

    # --- The task ---------------------------------------------------------------------------------

    @property
    def metric(self):
        """The name of the score: "accuracy", the higher the better, or "rmse", the lower."""
        return "accuracy" if self.task == "classification" else "rmse"

    @property
    def output_name(self):
        """What a network puts out: "log_probs", or "values" for regression."""
        return "log_probs" if self.task == "classification" else "values"

    def score(self, outputs, targets):
        """The accuracy, 0 to 1, of log-probabilities (N, K) against targets (N,); for regression
        the RMSE of values (N, K) against targets (N, K)."""
        if self.task == "classification":
            return float(np.mean(np.argmax(outputs, 1) == targets))
        return float(np.sqrt(np.mean((np.asarray(outputs, np.float64) - targets) ** 2)))

    def format_score(self, score):
        """A score for the screen: "99.12 %", or "0.0683"."""
        return f"{score * 100:.2f} %" if self.task == "classification" else f"{score:.4f}"

    def describe(self, values):
        """A target, or the outputs for one image (K,), for the screen: the class, or the values."""
        if self.task == "classification":
            return self.classes[int(np.argmax(values) if np.ndim(values) else values)]
        return ", ".join(f"{name} {value:+.3f}" for name, value in zip(self.classes, values))

    # --- As it travels with weights, graphs and records -------------------------------------------

    def to_json(self):
        """The record as one line of text."""
        return json.dumps(self._asdict())

    @classmethod
    def from_json(cls, text):
        """The record from its text; raises ValueError or TypeError where it isn't one."""
        return cls(**{key: tuple(value) if isinstance(value, list) else value
                      for key, value in json.loads(text).items()})


def as_picture(image):
    """An image, uint8 (C, H, W), as pictures are: uint8 (H, W), or (H, W, 3)."""
    return image[0] if len(image) == 1 else image.transpose(1, 2, 0)


MNIST = ImageSet("mnist", (1, 28, 28), tuple("0123456789"), (0.1307,), (0.3081,), augment="digits")
