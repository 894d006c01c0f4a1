"""What a training does, apart from the network and the images."""

import math
from typing import NamedTuple

# Peak learning rates in batches of 128, and at other sizes as the root of the size. For SGD with
# Nesterov momentum 0.08 in batches of 128 reads as many held-out digits as 0.05 in batches of 64
# (both 99.33 %, mean of three seeds) in less time; 0.1 in batches of 64 and 0.08 in batches of 16
# diverge. AdamW gets worse from 0.005 on.
LEARNING_RATES = {"sgd": 0.08, "adamw": 0.002}
USUAL_BATCH = 128
MOMENTUM = 0.9
WARM_UP = 0.25  # the part of the training in which the learning rate climbs to its peak

# Distillation: how far teacher's and student's outputs are softened before they are compared, and
# what share of the loss that comparison has; the rest is that of the targets.
TEMPERATURE = 4
TEACHER_SHARE = 0.9

HELD_OUT = 6  # one in so many training images is kept to choose by, with --validate


def usual_batch(images):
    """The batch size for so many training images: 128, or less where that would make less than 64
    steps an epoch, but 8 at least.

    With 32 steps one training of `net` in four on 4,000 digits diverged; with 64 none of 24, on
    1,000 to 6,000.
    """
    return min(USUAL_BATCH, max(8, images // 64))


class Recipe(NamedTuple):
    """What a training does, apart from the network and the images."""

    epochs: int = 5
    batch_size: int = USUAL_BATCH  # images a step, over all processes
    optimizer: str = "sgd"  # with Nesterov momentum, or "adamw"
    lr: float = None  # the peak; None: `peak` chooses
    weight_decay: float = 5e-4
    label_smoothing: float = 0.05  # weight of the wrong classes in the loss
    augment: float = 0.0  # the share of each batch's images that is augmented
    precision: str = "auto"  # "fp32", "bf16", or what `use_bfloat16` makes of "auto"
    seed: int = 0

    def peak(self):
        """The peak learning rate."""
        if self.lr is not None:
            return self.lr
        return LEARNING_RATES[self.optimizer] * math.sqrt(self.batch_size / USUAL_BATCH)


# What a study tries without and with: (off, on).
OPTIONS = {"augment": (0.0, 1.0), "label_smoothing": (0.0, Recipe().label_smoothing),
           "weight_decay": (0.0, Recipe().weight_decay)}
