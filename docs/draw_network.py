"""Draw the README's picture of the network: one digit on its way through it, and the filters.

  python docs/draw_network.py          writes docs/network.png

The digit is a generated one; the maps and filters are those of NetMNIST.pth.
"""

import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(HERE))

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from matplotlib.patches import Rectangle
from torch.nn.functional import max_pool2d, relu

from mnist.datasets.fonts import generated_digits
from mnist.datasets.image_set import MNIST
from mnist.models.weights import load_network

SHOWN = 7  # maps drawn of each layer, one behind the other


def main():
    net = load_network().net
    images, labels = generated_digits(100, seed=5)
    x = torch.from_numpy(MNIST.normalise(images[labels == 3][:1]))
    figure = plt.figure(figsize=(11, 4), facecolor="white")
    draw_way(figure.add_axes([0, 0.27, 1, 0.72]), stages(net, x))
    draw_filters(figure, net.conv1.weight.detach()[:, 0])
    figure.savefig(os.path.join(HERE, "network.png"), dpi=110)


@torch.no_grad()
def stages(net, x):
    """(caption, maps (C, H, W)) of each layer for the input x (1, 1, 28, 28)."""
    conv1 = net.conv1(x)
    pool1 = max_pool2d(conv1, 2)
    conv2 = net.conv2(pool1)
    pool2 = max_pool2d(conv2, 2)
    fc1 = relu(net.fc1(pool2.flatten(1)))
    return [("input\n28×28", x[0]), ("conv1 5×5\n20 maps of 24×24", conv1[0]),
            ("max-pool 2\n20 of 12×12", pool1[0]), ("conv2 5×5\n50 maps of 8×8", conv2[0]),
            ("max-pool 2\n50 of 4×4", pool2[0]),
            ("fc1, ReLU\n500", fc1.view(1, 25, 20)),
            ("fc2, log-softmax\n10", net(x).view(1, 10, 1))]


def draw_way(axes, layers):
    """The layers from left to right, the larger maps to one scale."""
    axes.set_axis_off()
    left = 0.0
    for caption, maps in layers:
        height = max(14, maps.shape[1]) if maps.shape[2] > 1 else 26
        width = height * maps.shape[2] / maps.shape[1]
        shown = list(maps[:SHOWN])
        for number in reversed(range(len(shown))):
            x, y = left + 1.6 * number, 1.6 * number - height / 2
            draw_map(axes, shown[number], x, y, width, height, zorder=len(shown) - number)
        depth = 1.6 * (len(shown) - 1)
        axes.text(left + (width + depth) / 2, -height / 2 - 2, caption, ha="center", va="top",
                  fontsize=9)
        if maps.shape[2] == 1:
            label_answers(axes, maps[0, :, 0], left + width, height)
        left += width + depth + 9
    axes.set(xlim=(-4, left + 2), ylim=(-23, 25), aspect="equal")


def draw_map(axes, values, x, y, width, height, zorder):
    axes.imshow(values, cmap="gray", extent=(x, x + width, y, y + height), zorder=zorder,
                interpolation="nearest")
    axes.add_patch(Rectangle((x, y), width, height, fill=False, color="0.6", lw=0.6,
                             zorder=zorder + 0.5))


def label_answers(axes, log_probabilities, x, height):
    """The digit beside each of the ten answers, the network's choice in bold."""
    for digit in range(10):
        y = height / 2 - (digit + 0.5) * height / 10
        chosen = digit == int(log_probabilities.argmax())
        axes.text(x + 0.8, y, str(digit), va="center", fontsize=7,
                  weight="bold" if chosen else "normal", color="black" if chosen else "0.5")


def draw_filters(figure, filters):
    """The 20 first-layer filters, zero white, one scale for all."""
    limit = float(filters.abs().max())
    for number, weights in enumerate(filters):
        axes = figure.add_axes([0.03 + number * 0.0472, 0.03, 0.042, 0.16])
        axes.imshow(weights, cmap="RdBu_r", vmin=-limit, vmax=limit)
        axes.set(xticks=[], yticks=[])
    figure.text(0.03, 0.2, f"the 20 trained filters of conv1 (blue −{limit:.2f}, white 0, red "
                f"+{limit:.2f})", fontsize=9)


if __name__ == "__main__":
    main()
