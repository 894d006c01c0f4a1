"""Measure how far each precision lies from the reference, on training digits.

examples:
  python benchmarks/rounding.py                     the shipped networks, 10,000 digits
  python benchmarks/rounding.py --network mine.py:MyNet --weights MyNet.pth

What it prints stands behind the tolerances in mnist/engines/precision.py. For every engine of this
CPU: the largest difference of a log-probability from torch in float32, nothing folded, and how many
predictions are other digits. What only a GPU computes is computed here in its stead: fp16 by torch
on the CPU, tf32 by rounding what goes into each convolution and linear layer to its 10 bits.
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import numpy as np
import torch
from torch import nn

from mnist.bench.stopwatch import in_batches
from mnist.cli import add_flags, make_parser, positive_int, run_program
from mnist.engines.registry import ENGINES, open_engine, reference_log_probs, set_threads, why_not
from mnist.models.fold import fold, rounded
from mnist.models.weights import SHIPPED, load_network
from MNISTdsource import find_image_set, load_images
from MNISTmodel import NETWORKS


def main():
    parser = make_parser(__doc__)
    add_flags(parser, "data", "data-dir", "network", "weights", "threads")
    parser.add_argument("--images", type=positive_int, default=10000, metavar="N",
                        help="the first N training images (default: %(default)s)")
    arguments = parser.parse_args()
    set_threads(arguments.threads)
    for network in networks(arguments):
        data = load_images(network.image_set, "train", arguments.data, arguments.data_dir,
                           arguments.images)
        print(f"{network.name}, {network.origin}, {len(data.images)} images ({data.source})",
              flush=True)
        reference = reference_log_probs(network, data.images)
        for kind in ENGINES.values():
            if kind.is_baseline or kind.on_request:
                continue
            for precision in kind.precisions.get("cpu", ()):
                reason = why_not(kind.name, "cpu", precision)
                if reason:
                    print(f"  {kind.name} {precision}: skipped, {reason}")
                    continue
                engine = open_engine(kind.name, network, "cpu", precision, 64)
                show(f"{kind.name} {precision}", engine, data.images, reference)
                engine.close()
        show("fp16, in torch's stead", on_pixels(half(network)), data.images, reference)
        show("tf32, rounded", on_pixels(tf32(network)), data.images, reference)


def networks(arguments):
    """The network asked for, else every one of MNIST that is shipped."""
    image_set = find_image_set(arguments.data or "mnist")
    if arguments.network or arguments.weights or image_set.name != "mnist":
        return [load_network(arguments.weights, arguments.network, image_set)]
    paths = [os.path.join(SHIPPED, name + ".pth") for name in NETWORKS]
    return [load_network(path) for path in paths if os.path.isfile(path)]


def show(what, compute, images, reference):
    """Print how far from the reference what `compute` makes of batches of images lies."""
    log_probs = np.concatenate([compute(batch).copy() for batch in in_batches(images, 64)])
    changed = int((log_probs.argmax(1) != reference.argmax(1)).sum())
    print(f"  {what:24} largest difference {np.abs(log_probs - reference).max():.2g}, "
          f"{changed} predictions changed", flush=True)


def on_pixels(net):
    """A network that takes pixels as a function of numpy's arrays."""
    def compute(images):
        with torch.no_grad():
            return net(torch.from_numpy(images).float()).numpy()
    return compute


def half(network):
    """The network as fp16 engines compute it."""
    return rounded(fold(network.net, network.image_set), "fp16")


def tf32(network):
    """The network as a GPU computes it in TF32."""
    net = fold(network.net, network.image_set)

    def round_to_tf32(x):
        """To 10 bits of mantissa, to nearest."""
        bits = x.detach().float().contiguous().view(torch.int32)
        return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)

    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.weight.data = round_to_tf32(module.weight.data)
            module.register_forward_pre_hook(lambda module, inputs: round_to_tf32(inputs[0]))
    return net


if __name__ == "__main__":
    run_program(main)
