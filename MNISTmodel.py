"""The networks, and the registry of the built-in ones. Knows torch.

A network takes normalised float32 (B, 1, 28, 28) and gives float32 (B, 10) log-probabilities; that
is the whole contract, for these and for your own (`--network FILE.py:CLASS`). A built-in one is
recognised from the keys and shapes of its weights alone (see `MNISTweights`).
"""

import collections

import torch.nn.functional as F
from torch import nn


class Net(nn.Module):
    """LeNet-style classifier of 28×28 digits, 431,080 parameters: the network of the project.

    Input: float32 (B, 1, 28, 28), normalised as `MNISTdsource.normalise` does. Output: float32
    (B, 10), the log-probability of each digit. Source: the network of NVIDIA's TensorRT sample
    `network_api_pytorch_mnist`, with the same state-dict keys, so that weights travel both ways.
    """

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 20, kernel_size=5)
        self.conv2 = nn.Conv2d(20, 50, kernel_size=5)
        self.conv2_drop = nn.Dropout2d()  # as in the sample: there, without parameters, unused
        self.fc1 = nn.Linear(800, 500)
        self.fc2 = nn.Linear(500, 10)

    def forward(self, x):
        x = F.max_pool2d(self.conv1(x), 2)
        x = F.max_pool2d(self.conv2(x), 2)
        x = F.relu(self.fc1(x.flatten(1)))
        return F.log_softmax(self.fc2(x), dim=1)


# Those that `--network` takes by name.
NETWORKS = collections.OrderedDict((("net", Net),))
