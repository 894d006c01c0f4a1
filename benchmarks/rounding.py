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

from mnist.cli import add_flags, make_parser, positive_int, run_program


def main():
    parser = make_parser(__doc__)
    add_flags(parser, "data", "data-dir", "network", "weights", "threads")
    parser.add_argument("--digits", type=positive_int, default=10000, metavar="N",
                        help="the first N training digits (default: %(default)s)")
    arguments = parser.parse_args()

    from mnist.engines.registry import ENGINES, reference_log_probs, set_threads, why_not
    from MNISTdsource import load_digits
    set_threads(arguments.threads)
    images, _, source = load_digits("train", arguments.data, arguments.data_dir, arguments.digits)
    for network in networks(arguments):
        print(f"{network.name}, {network.origin}, {len(images)} digits ({source})", flush=True)
        reference = reference_log_probs(network.net, images)
        for kind in ENGINES.values():
            if kind.name == "usual-loop" or kind.on_request:
                continue
            for precision in kind.precisions.get("cpu", ()):
                reason = why_not(kind.name, "cpu", precision)
                if reason:
                    print(f"  {kind.name} {precision}: skipped, {reason}")
                else:
                    show(f"{kind.name} {precision}", engine_answers(
                        kind.name, network, precision, images), reference)
        for name, make in (("fp16, in torch's stead", half), ("tf32, rounded", tf32)):
            show(name, grey_level_answers(make(network.net), images), reference)


def networks(arguments):
    """The network asked for, else every one that is shipped."""
    from mnist.models.weights import SHIPPED, load_network
    from MNISTmodel import NETWORKS
    if arguments.network or arguments.weights:
        return [load_network(arguments.weights, arguments.network)]
    paths = [os.path.join(SHIPPED, name + ".pth") for name in NETWORKS]
    return [load_network(path) for path in paths if os.path.isfile(path)]


def show(what, answers, reference):
    import numpy as np
    changed = int((answers.argmax(1) != reference.argmax(1)).sum())
    print(f"  {what:24} largest difference {np.abs(answers - reference).max():.2g}, "
          f"{changed} answers changed", flush=True)


def engine_answers(name, network, precision, images):
    """The answers of one engine, float32 (N, 10)."""
    import numpy as np

    from mnist.bench.stopwatch import in_batches
    from mnist.engines.registry import open_engine
    engine = open_engine(name, network.net, "cpu", precision, 64, network.stem)
    answers = np.concatenate([engine(batch).copy() for batch in in_batches(images, 64)])
    engine.close()
    return answers


def grey_level_answers(net, images):
    """The answers of a network that takes grey levels, float32 (N, 10)."""
    import numpy as np
    import torch

    from mnist.bench.stopwatch import in_batches
    with torch.no_grad():
        return np.concatenate([net(torch.from_numpy(batch[:, None]).float()).numpy()
                               for batch in in_batches(images, 64)])


def half(net):
    """The network as fp16 engines compute it."""
    from mnist.models.fold import fold, rounded
    return rounded(fold(net), "fp16")


def tf32(net):
    """The network as a GPU computes it in TF32."""
    import torch
    from torch import nn

    from mnist.models.fold import fold
    net = fold(net)

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
