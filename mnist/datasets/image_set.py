"""An image set: one record of what the images are, handed through everything that works on them.

    image_set.shape, image_set.classes      (3, 32, 32), ("airplane", …)
    x = image_set.normalise(images)         what a network takes
    images, targets, groups = image_set.load("test", data_dir)
    image_set.score(log_probs, targets)     accuracy, or RMSE where the targets are values

The sets by name are `MNISTdsource.IMAGE_SETS`. Nothing of ours that works on images knows a shape, a
number of classes or a mean but from here.
"""

import json
from typing import Any, Callable, NamedTuple, Tuple

import numpy as np


class ImageSet(NamedTuple):
    """What a set of images is. All but `load` travels with the weights trained on it."""

    name: str  # "mnist", "cifar10", …, or a folder's
    shape: Tuple[int, int, int]  # channels, height, width of the uint8 images a network gets
    classes: Tuple[str, ...]  # texts by index; empty for regression
    outputs: int  # how many numbers a network puts out: classes, or values
    mean: Tuple[float, ...]  # by channel, on a scale of 0 to 1
    std: Tuple[float, ...]
    task: str = "classification"  # or "regression"
    augment: str = "none"  # what training may do to the images, see mnist/training/augment.py
    # load(split, data_dir=None, download=True): images uint8 (N, C, H, W), targets int64 (N,) or
    # float32 (N, K), groups int64 (N,) of images of the same thing, or None
    load: Callable[..., Any] = None

    def normalise(self, images):
        """What a network takes, float32 (N, C, H, W), from images, uint8 (N, C, H, W).

        Of a numpy array an array, of a torch tensor a tensor on the same device.
        """
        x = images.astype(np.float32) if isinstance(images, np.ndarray) else images.float()
        shape = (1, -1, 1, 1)
        mean, std = (255 * np.float32(values).reshape(shape) for values in (self.mean, self.std))
        if not isinstance(x, np.ndarray):
            mean, std = (x.new_tensor(values) for values in (mean, std))
        x -= mean
        x /= std
        return x

    # --- The task ---

    @property
    def metric(self):
        """The name of the score: "accuracy" or "rmse"."""
        return "accuracy" if self.task == "classification" else "rmse"

    @property
    def higher_is_better(self):
        """Whether a higher score is a better one."""
        return self.task == "classification"

    @property
    def output_name(self):
        """What a network puts out: "log_probs", or "values" for regression."""
        return "log_probs" if self.task == "classification" else "values"

    def score(self, outputs, targets):
        """Accuracy, 0 to 1, of log-probabilities float32 (N, K) against targets (N,); for
        regression the RMSE of values (N, K) against targets (N, K)."""
        if self.task == "classification":
            return float(np.mean(np.argmax(outputs, 1) == targets))
        return float(np.sqrt(np.mean((np.asarray(outputs, np.float64) - targets) ** 2)))

    def format_score(self, score):
        """The score for the screen: "99.12 %", or "0.0683"."""
        return f"{score:.2%}".replace("%", " %") if self.higher_is_better else f"{score:.4f}"

    def describe(self, values):
        """A target, or the outputs for one image, (K,), for the screen: the class, or the values."""
        if self.task == "classification":
            return self.classes[int(np.argmax(values) if np.ndim(values) else values)]
        return ", ".join(f"{value:.3f}" for value in values)

    # --- Its facts, as they travel with weights, graphs and records ---

    def facts(self):
        """All but `load`, ready for JSON."""
        facts = self._asdict()
        del facts["load"]
        return dict(facts)

    def to_json(self):
        """`facts` as one line of text."""
        return json.dumps(self.facts())

    @classmethod
    def from_facts(cls, facts):
        """The image set of `facts`, without its `load`; raises TypeError where they aren't such."""
        return cls(**{key: tuple(value) if isinstance(value, list) else value
                      for key, value in facts.items()})


# What the networks of the old collection are of. Mean and standard deviation are those of the
# training images.
DIGITS = ImageSet("mnist", (1, 28, 28), tuple("0123456789"), 10, (0.1307,), (0.3081,),
                  augment="digits")


MEAN, STD = DIGITS.mean[0], DIGITS.std[0]  # TO GO: every room takes them from its image set


def normalise(images):
    """TO GO: `ImageSet.normalise`."""
    return DIGITS.normalise(images[:, None])
