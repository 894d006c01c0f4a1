"""Networks by name: the built-in ones, and your own as FILE.py:CLASS."""

import ast
import collections
import difflib
import functools
import importlib.util
import inspect
import os
import sys

import torch
from torch import nn

from mnist.errors import UnavailableError
from MNISTmodel import NETWORKS


def find_network(network):
    """(name, function that makes one) of a built-in NAME or of FILE.py:CLASS, where options of the
    class may follow: FILE.py:CLASS:batch_norm=True:dropout=0.5.

    Raises UnavailableError where there is none, saying what there is.
    """
    if network in NETWORKS:
        return network, NETWORKS[network]
    path, colon, rest = network.partition(".py:")
    path, (name, *options) = path + ".py", rest.split(":")
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
    return name, functools.partial(make, **dict(map(read_option, options))) if options else make


def read_option(text):
    """("dropout", 0.5) from "dropout=0.5". Raises UnavailableError for anything else."""
    name, _, value = text.partition("=")
    try:
        return name, ast.literal_eval(value)
    except (SyntaxError, ValueError):
        raise UnavailableError(f"--network: an option is NAME=VALUE, not {text!r}") from None


def variants_of(network):
    """What can be switched on and off in a network: ({option: (off, on)}, function of {option:
    value} that gives the variant's `--network`).

    Options are what the class takes by name: True or False, or a share that is 0 when left alone
    and one half when switched on.
    """
    name, make = find_network(network)
    base = make.func if isinstance(make, functools.partial) else make
    options = collections.OrderedDict()
    for parameter in inspect.signature(base).parameters.values():
        if isinstance(parameter.default, (bool, float)):
            off = type(parameter.default)(0)
            options[parameter.name] = (off, True if off is False else 0.5)

    def variant(values):
        values = {option: value for option, value in values.items() if value}
        for other, made in NETWORKS.items():
            if made == base and not values or (
                    getattr(made, "func", None) == base and made.keywords == values):
                return other
        path_and_class = network.split(".py:")[0] + ".py:" + name
        return ":".join([path_and_class] + [f"{key}={value}" for key, value in values.items()])

    return options, variant


def import_file(path):
    """The module in a Python file, imported from where it lies, with what lies beside it."""
    path = os.path.abspath(path)
    if not os.path.isfile(path):
        raise UnavailableError(f"--network: there is no file {path}")
    name = os.path.splitext(os.path.basename(path))[0]
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # for what pickles or looks up its own classes
    sys.path.insert(0, os.path.dirname(path))
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever a stranger's file raises
        raise UnavailableError(f"--network: {path} can't be imported "
                               f"({type(error).__name__}: {first_line(error)})") from error
    finally:
        sys.path.remove(os.path.dirname(path))
    return module


def make_network(name, make):
    """A network in eval mode, checked to keep the contract: see `MNISTmodel`.

    Raises UnavailableError, naming what is wrong with it.
    """
    try:
        net = make()
    except Exception as error:
        raise UnavailableError(f"the network {name} can't be made without arguments "
                               f"({type(error).__name__}: {first_line(error)})") from error
    if not isinstance(net, nn.Module):
        raise UnavailableError(f"{name} gives a {type(net).__name__}, not a torch.nn.Module")
    net = net.float().eval()
    try:
        with torch.no_grad():
            answers = net(torch.linspace(-1, 3, 2 * 784).reshape(2, 1, 28, 28))
    except Exception as error:
        raise UnavailableError(
            f"the network {name} fails on float32 (B, 1, 28, 28), two normalised digits "
            f"({type(error).__name__}: {first_line(error)})") from error
    shape = tuple(getattr(answers, "shape", ()))
    if shape != (2, 10):
        raise UnavailableError(f"the network {name} gives "
                               f"{shape or type(answers).__name__} for two digits, not (2, 10)")
    if not (answers.exp().sum(1) - 1).abs().max() < 1e-3:  # a NaN is none either
        raise UnavailableError(f"the network {name} doesn't give log-probabilities: end it with "
                               "torch.nn.functional.log_softmax(x, dim=1)")
    return net


def first_line(error):
    """The first line of an exception's message."""
    return (str(error).strip() or type(error).__name__).split("\n")[0][:150]
