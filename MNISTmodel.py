"""The networks, and the registry of the built-in ones. Knows torch.

A network takes normalised float32 (B, 1, 28, 28) and gives float32 (B, 10) log-probabilities; that
is the whole contract, for these and for your own (`--network FILE.py:CLASS`). A built-in one is
recognised from the keys and shapes of its weights alone (see `MNISTweights`).
"""

import collections

import torch
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


# --- Looking into a network -----------------------------------------------------------------------

Call = collections.namedtuple("Call", "module input output")


def calls(net, x):
    """Each `Call` of an innermost module while net(x) is computed, in their order."""
    made = []

    def note(module, inputs, output):
        if inputs and isinstance(inputs[0], torch.Tensor):
            made.append(Call(module, inputs[0], output))

    hooks = [module.register_forward_hook(note) for module in net.modules()
             if not list(module.children())]
    try:
        net(x)
    finally:
        for hook in hooks:
            hook.remove()
    return made


def count_parameters(net):
    """How many parameters a network has; those that layers share count once."""
    return sum(parameter.numel() for parameter in net.parameters())


def count_multiply_adds(net):
    """How often a network multiplies and adds for one digit, in its convolutions and linear layers.
    """
    with torch.no_grad():
        made = calls(net, torch.zeros(1, 1, 28, 28))
    return sum(call.output.numel() * call.module.weight[0].numel() for call in made
               if isinstance(call.module, (nn.Conv2d, nn.Linear)))
