"""Smaller networks made of a trained one: weights pruned, weights shared, and what that saves.

`prune` and `cluster` leave a network of the same shape, whose weights file every program takes;
what a file of it could shrink to, `ideal_bytes` says.
"""

import copy
import math

import numpy as np
import torch
from torch import nn

from mnist.errors import MNISTError, UnavailableError
from mnist.models.backbones import Transfer
from mnist.training.loop import Run, train

# Pruning climbs to its sparsity over this part of the fine-tuning; the rest heals what it did.
CLIMB = 0.5
STEPS_BETWEEN_CUTS = 50


def weights_of(net):
    """{name: weights} of a network's convolutions and linear layers, without the biases."""
    return {name + ".weight": module.weight for name, module in net.named_modules()
            if isinstance(module, (nn.Conv2d, nn.Linear))}


class Pruner:
    """Sets the smallest weights of a network to zero while it is trained: a `Run`'s `after_step`.

    Global and gradual: one threshold for all layers, so that those which can spare little lose
    little, climbing to `sparsity`, the share of the weights that end as zeros. Source: Zhu and
    Gupta, "To prune, or not to prune", 2017.
    """

    def __init__(self, net, sparsity, steps):
        """`steps`: how many the training makes."""
        self.weights = list(weights_of(net).values())
        self.sparsity, self.done = sparsity, 0
        self.climb = max(1, round(CLIMB * steps))
        self.masks = [torch.ones_like(weight, dtype=torch.bool) for weight in self.weights]

    def __call__(self):
        self.done += 1
        if self.done == self.climb or (self.done < self.climb
                                       and self.done % STEPS_BETWEEN_CUTS == 0):
            self.cut(self.sparsity * (1 - (1 - self.done / self.climb) ** 3))
        with torch.no_grad():
            for weight, mask in zip(self.weights, self.masks):
                weight.masked_fill_(~mask, 0)  # a product would leave zeros of two signs

    def cut(self, sparsity):
        """Choose anew which weights are zeros; those that are already are the smallest."""
        sizes = torch.cat([weight.detach().abs().flatten() for weight in self.weights])
        zeros = round(sparsity * len(sizes))
        threshold = sizes.kthvalue(zeros).values if zeros else -1
        self.masks = [weight.detach().abs() > threshold for weight in self.weights]


class Sharer:
    """Keeps the weights of a layer at the few values that they have, while these are trained: a
    `Run`'s `after_step`. Zeros stay zeros. Source: the trained quantisation of "Deep Compression".
    """

    def __init__(self, net):
        self.layers = [(weight, *weight.detach().unique(return_inverse=True, return_counts=True))
                       for weight in weights_of(net).values()]

    def __call__(self):
        with torch.no_grad():
            for weight, values, places, counts in self.layers:
                means = torch.zeros_like(values).index_add_(
                    0, places.flatten(), weight.flatten()) / counts
                weight.copy_(means.masked_fill_(values == 0, 0)[places])


def prune(network, sparsity, recipe, training):
    """A pruned copy of a `Network`, fine-tuned with the network as the teacher, on (images,
    targets) as `to_tensors` gives them."""
    net = copy.deepcopy(network.net)
    steps = recipe.epochs * math.ceil(len(training[1]) / recipe.batch_size)
    return fine_tune(network, net, Pruner(net, sparsity, steps), recipe, training)


def cluster(network, clusters, recipe, training):
    """A copy of a `Network` in which the weights of each layer have no more than so many values:
    k-means, then fine-tuned as a pruned one.

    Source: Han, Mao and Dally, "Deep Compression", 2016. Raises as `share_values`.
    """
    net = share_values(network.net, clusters)
    if isinstance(net, Transfer):
        net.keeps_norms = True  # batch norm's averages are of more images than these
    return fine_tune(network, net, Sharer(net), recipe, training)


def fine_tune(network, student, after_step, recipe, training):
    """The `Network` of a trained student, of which the network is the teacher. Raises MNISTError
    where the training diverges."""
    run = Run(student, network.image_set, recipe, training, None, copy.deepcopy(network.net))
    run.after_step = after_step
    for line in train(run):
        if not math.isfinite(line["train_loss"]):
            raise MNISTError("the fine-tuning diverged; a smaller --lr may help")
    return network._replace(net=run.net.cpu().eval())


def share_values(net, clusters):
    """A copy of `net` in which each weight is the centre of its cluster in the layer.

    Zeros stay zeros, where some were pruned, and count as one of the values. Raises
    UnavailableError for a layer of fewer weights than clusters.
    """
    net = copy.deepcopy(net)
    for name, weight in weights_of(net).items():
        values = weight.detach().numpy()
        if values.size < clusters:
            raise UnavailableError(f"--clusters {clusters}: {name} has only {values.size} weights")
        kept = values != 0
        if not kept.any():
            continue  # pruned as a whole
        shared = values.copy()
        centres = k_means(values[kept], clusters - (not kept.all()))
        shared[kept] = centres[nearest(values[kept], centres)]
        weight.data.copy_(torch.from_numpy(shared))
    return net


def k_means(values, clusters, rounds=100):
    """The centres, ascending, of the clusters of some numbers (N,), from an even start."""
    centres = np.linspace(values.min(), values.max(), clusters)
    for _ in range(rounds):
        nearby = nearest(values, centres)
        count = np.bincount(nearby, minlength=clusters)
        moved = np.where(count, np.bincount(nearby, values, clusters) / np.maximum(count, 1),
                         centres)
        if np.allclose(moved, centres, rtol=0, atol=1e-7):
            break
        centres = np.sort(moved)
    return centres.astype(np.float32)


def nearest(values, centres):
    """Which of the ascending centres is nearest to each value."""
    return np.searchsorted((centres[1:] + centres[:-1]) / 2, values)


def count_non_zero(net):
    """How many of a network's parameters aren't zero."""
    return sum(int(parameter.count_nonzero()) for parameter in net.parameters())


def ideal_bytes(net):
    """What an ideal coding of the parameters would take: a bound, no file that anything reads.

    For each layer the entropy of its weights' values and a table of these values in float32;
    everything else in float32.
    """
    weights = weights_of(net)
    bits = 0.0
    for weight in weights.values():
        _, counts = np.unique(weight.detach().numpy(), return_counts=True)
        share = counts / counts.sum()
        bits += counts.sum() * -(share * np.log2(share)).sum() + 32 * len(counts)
    coded = {id(weight) for weight in weights.values()}
    rest = sum(p.numel() for p in net.parameters() if id(p) not in coded)
    return math.ceil(bits / 8) + 4 * rest
