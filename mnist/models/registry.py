"""Networks by name: the built-in ones, and your own as FILE.py:CLASS."""

import difflib
import importlib.util
import inspect
import os
import sys

import numpy as np
import torch
from torch import nn

from mnist.errors import UnavailableError
from mnist.files import digest
from mnist.models.backbones import find_transfer
from MNISTmodel import NETWORKS


def find_network(network):
    """(name, function of (shape, outputs) that makes one) of a built-in NAME or of FILE.py:CLASS.

    Your own class takes (shape, outputs), or no arguments at all. Raises UnavailableError where
    there is none, saying what there is.
    """
    if network in NETWORKS:
        return network, NETWORKS[network]
    transfer = find_transfer(network)
    if transfer:
        return network, transfer
    path, colon, name = network.partition(".py:")
    path += ".py"
    if not colon:
        near = difflib.get_close_matches(network, NETWORKS, n=1)
        raise UnavailableError(f"--network {network}: there is " + (
            f"no such network; did you mean {near[0]}?" if near else
            f"none of that name, only {', '.join(NETWORKS)}; your own is FILE.py:CLASS"))
    module = import_file(path)
    make = getattr(module, name, None)
    if not callable(make):
        classes = [key for key, value in vars(module).items()
                   if inspect.isclass(value) and issubclass(value, nn.Module)]
        raise UnavailableError(f"--network: {path} has no class {name}"
                               + (f", but {', '.join(classes)}" if classes else ""))
    return name, for_any_shape(make)


def for_any_shape(make):
    """A user's class as a function of (shape, outputs), which it needn't take."""
    try:
        parameters = inspect.signature(make).parameters
    except ValueError:  # it doesn't say
        parameters = ()
    needed = [parameter for parameter in dict(parameters).values()
              if parameter.default is parameter.empty and parameter.kind in (
                  parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)]
    if len(needed) == 2 or "shape" in parameters and "outputs" in parameters:
        return make
    return lambda shape, outputs: make()


def import_file(path):
    """The module in a Python file, imported under a private name, with what lies beside it."""
    path = os.path.abspath(os.path.expanduser(path))
    if not os.path.isfile(path):
        raise UnavailableError(f"--network: there is no file {path}")
    # A name of its own, so that no file of a user's is taken for one of ours or of a library's.
    name = "network_file_" + digest(os.fsencode(path))[:12]
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # for what pickles or looks up its own classes
    sys.path.insert(0, os.path.dirname(path))
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever a user's file raises
        raise UnavailableError(f"--network: {path} can't be imported "
                               f"({type(error).__name__}: {first_line(error)})") from error
    finally:
        sys.path.remove(os.path.dirname(path))
    return module


def make_network(name, make, image_set):
    """A network for an image set, in eval mode, checked to keep the contract: see `MNISTmodel`.

    `name`, `make`: as `find_network` gives them. Raises UnavailableError, naming what is wrong.
    """
    if image_set.task == "regression" and make is NETWORKS.get(name):
        raise UnavailableError(f"{image_set.name} has values to predict, and {name} gives "
                               "log-probabilities of classes: take TransferMNIST.py, or a network "
                               "of your own (docs/own-networks.md)")
    shape = tuple(image_set.shape)
    images = "{}×{}×{}".format(*shape)
    try:
        net = make(shape, image_set.outputs)
    except Exception as error:
        raise UnavailableError(
            f"the network {name} can't be made for images of {images} and {image_set.outputs} "
            f"outputs ({type(error).__name__}: {first_line(error)})") from error
    if not isinstance(net, nn.Module):
        raise UnavailableError(f"{name} gives a {type(net).__name__}, not a torch.nn.Module")
    net = net.float().eval()
    x = torch.linspace(-1, 3, 2 * int(np.prod(shape))).reshape((2,) + shape)
    try:
        with torch.no_grad():
            outputs = net(x)
    except Exception as error:
        raise UnavailableError(
            f"the network {name} fails on float32 (2, {', '.join(map(str, shape))}), two "
            f"normalised images ({type(error).__name__}: {first_line(error)})") from error
    found = tuple(getattr(outputs, "shape", ()))
    if found != (2, image_set.outputs):
        raise UnavailableError(f"the network {name} gives {found or type(outputs).__name__} for "
                               f"two images of {image_set.name}, not (2, {image_set.outputs})")
    if image_set.task == "classification" and not (
            (outputs.exp().sum(1) - 1).abs().max() < 1e-3):  # a NaN is none either
        raise UnavailableError(f"the network {name} doesn't give log-probabilities: end it with "
                               "torch.nn.functional.log_softmax(x, dim=1)")
    return net


def first_line(error):
    """The first line of an exception's message."""
    return (str(error).strip() or type(error).__name__).split("\n")[0][:150]
