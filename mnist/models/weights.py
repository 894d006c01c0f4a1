"""Networks with their weights: found, loaded, checked, saved.

`load_network` gives what a program's `--network` and `--weights` ask for. The shipped weights lie
in weights/; what you train lies beside the scripts and is taken where it exists.
"""

import collections
import hashlib
import inspect
import io
import os
import pickle
import re
import types
import zipfile

import torch
from torch import nn

from mnist.errors import MNISTError, UnavailableError
from mnist.files import ROOT, write_atomically
from mnist.models.registry import find_network, first_line, make_network
from MNISTmodel import NETWORKS

SHIPPED = os.path.join(ROOT, "weights")

# --- Which network --------------------------------------------------------------------------------


class Network(collections.namedtuple("Network", "net name path origin")):
    """A network with its weights.

    net     the `torch.nn.Module`, in eval mode, float32, on the CPU
    name    of a built-in network ("net"), or of the class of your own ("MyNet")
    path    of its weights file
    origin  the same for the screen: "weights/net.pth (shipped)"
    """

    @property
    def stem(self):
        """The path, without extension, of what is made from these weights: graphs and engines.

        Beside the weights they came from; nothing is written beside the shipped ones.
        """
        folder, name = os.path.split(os.path.splitext(self.path)[0])
        return os.path.join(ROOT if folder == SHIPPED else folder, name)


def load_network(weights=None, network=None, trust_pickle=False):
    """The `Network` that a program's flags ask for.

    `network`: a built-in NAME or FILE.py:CLASS; None: the built-in one that `weights` is of, else
    "net". `weights`: the path of its weights; None: what you trained (see `trained_path`) where
    that exists, else what is shipped. `trust_pickle`: also load a whole pickled module, which can
    run any code while it loads.

    Raises UnavailableError where there is no such network or file, MNISTError where the file isn't
    what it should be: no weights, damaged, or with a tensor missing, unknown or of another shape.
    """
    name, make = find_network(network) if network else (None, None)
    path = weights or default_weights(name or "net")
    state = read_state(path, trust_pickle)
    if make is None:
        name, make = recognise(state)
    net = make_network(name, make)
    check_state(state, net.state_dict(), path)
    net.load_state_dict(state)
    return Network(net.float().eval(), name, path, describe_path(path))


def trained_path(name):
    """Where the weights go that you train: NetMNIST.pth for "net", MyNet.pth for your `MyNet`."""
    return os.path.join(ROOT, (name.capitalize() + "MNIST" if name in NETWORKS else name) + ".pth")


def default_weights(name):
    """The weights of the network `name`: yours where you trained some, else those shipped."""
    for path in (trained_path(name), os.path.join(SHIPPED, name + ".pth")):
        if os.path.isfile(path):
            return path
    raise UnavailableError(f"no weights of {name} are shipped; TrainMNIST.py --network makes some")


def describe_path(path):
    """A weights file for the screen, saying where it is from."""
    path = os.path.abspath(path)
    if os.path.dirname(path) == SHIPPED:
        return os.path.relpath(path, ROOT) + " (shipped)"
    return os.path.relpath(path, ROOT) if os.path.dirname(path) == ROOT else path


def recognise(state):
    """The built-in network (name, class) of a state dict: the first that has just these keys and
    shapes, else the one that shares most of them, so that `check_state` can tell what is amiss."""
    likeness = collections.OrderedDict()
    for name, make in NETWORKS.items():
        if name.startswith("separable") and "conv2a.1.weight" not in state:
            continue  # a hundred megabytes, not to be made for nothing
        expected = make().state_dict()
        alike = [key for key in expected
                 if getattr(state.get(key), "shape", None) == expected[key].shape]
        if len(alike) == len(expected) == len(state):
            return name, make
        likeness[name] = 2 * len(alike) - len(expected)
    name = max(likeness, key=likeness.get)
    return name, NETWORKS[name]


# --- Weights files --------------------------------------------------------------------------------

def save_weights(net, path):
    """Write the state dict of `net` to `path`, whole or not at all (see `write_atomically`)."""
    state = {key: tensor.detach().cpu().contiguous() for key, tensor in net.state_dict().items()}
    write_pickle(state, path)


def write_pickle(thing, path):
    """Write what `torch.save` makes of it to `path`, whole or not at all (see `write_atomically`).

    By way of memory, because torch meets a full disk with an error that doesn't say so.
    """
    content = io.BytesIO()
    torch.save(thing, content)
    with write_atomically(path) as file:
        file.write(content.getbuffer())


def read_state(path, trust_pickle=False):
    """The state dict in a weights file.

    `path` holds one as `save_weights` writes it. A whole pickled module, as written by
    `torch.save(net, path)`, can run any code while it loads: refused unless `trust_pickle`.
    """
    if not os.path.isfile(path):
        raise UnavailableError(f"no weights file {path}; TrainMNIST.py makes one")
    if os.path.splitext(path)[1] == ".onnx":
        raise UnavailableError(f"{path} is what engines make of weights: give the .pth file it was "
                               "made of; --precision int8 takes the int8 one beside that")
    state = read_pickle(path, trust_pickle)
    if isinstance(state, nn.Module):
        state = state.state_dict()
    if not isinstance(state, dict):
        raise MNISTError(f"{path} holds a {type(state).__name__}, not a state dict")
    return state


def read_pickle(path, trust_pickle):
    """What `torch.load` finds in `path`; nothing but tensors and containers unless trusted."""
    how = dict(weights_only=not trust_pickle) if HAS_WEIGHTS_ONLY else {}
    if not HAS_WEIGHTS_ONLY and not trust_pickle:
        how = dict(pickle_module=tensors_only())
    try:
        check_archive(path)
        return torch.load(path, map_location="cpu", **how)
    except OSError as error:
        raise MNISTError(f"can't read {path}: {error.strerror or error}") from error
    except Exception as error:  # a damaged file makes torch raise almost anything
        if re.search("unsupported (global|class)", str(error), re.IGNORECASE):
            raise MNISTError(
                f"{path} is not a plain state dict: it names code to run, as whole pickled modules "
                "do; refused.\nWhere you trust it, --trust-pickle loads it; to convert it where it "
                "was made: torch.save(net.state_dict(), FILE)") from error
        raise MNISTError(f"{path} is not a weights file, or is damaged "
                         f"({first_line(error)})") from error


def check_archive(path):
    """Raise zipfile.BadZipFile where torch's zip archive `path` is damaged or would expand.

    torch doesn't compress, but expands what is compressed to any size before it looks at it; and it
    doesn't check the checksums.
    """
    if not zipfile.is_zipfile(path):
        return  # torch's older format, or no weights: torch.load will tell
    with zipfile.ZipFile(path) as archive:
        size = sum(record.file_size for record in archive.infolist())
        if size > os.path.getsize(path):
            raise zipfile.BadZipFile(f"{size} bytes packed into fewer")
        damaged = archive.testzip()
        if damaged:
            raise zipfile.BadZipFile(f"wrong checksum: {damaged}")


# torch.load(weights_only=...) came with torch 1.13; before that we bring an unpickler of our own.
HAS_WEIGHTS_ONLY = "weights_only" in inspect.signature(torch.load).parameters


class TensorsOnlyUnpickler(pickle.Unpickler):
    """An unpickler that knows tensors and ordered dictionaries, and refuses every other name."""

    def find_class(self, module, name):
        tensors = module == "torch._utils" and name in (
            "_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter")
        storages = module == "torch" and name.endswith("Storage")
        containers = (module, name) == ("collections", "OrderedDict")
        if tensors or storages or containers:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"unsupported global {module}.{name}")


def tensors_only():
    """What torch.load takes as `pickle_module`, with `TensorsOnlyUnpickler`."""
    def load(file, **arguments):
        return TensorsOnlyUnpickler(file, **arguments).load()

    return types.SimpleNamespace(__name__="pickle", Unpickler=TensorsOnlyUnpickler, load=load)


def check_state(state, expected, path):
    """Raise MNISTError naming the first tensor of `state` that isn't as in `expected`."""
    for key in expected:
        tensor = state.get(key)
        if not isinstance(tensor, torch.Tensor):
            raise MNISTError(f"{path} is not of this network: {key} is missing")
        if tensor.shape != expected[key].shape:
            raise MNISTError(f"{path} is not of this network: {key} has shape "
                             f"{tuple(tensor.shape)}, not {tuple(expected[key].shape)}")
        if tensor.is_floating_point() != expected[key].is_floating_point():
            raise MNISTError(f"{path} is not of this network: {key} holds {tensor.dtype}, "
                             f"not {expected[key].dtype}")
    unknown = [str(key) for key in state if key not in expected]
    if unknown:
        raise MNISTError(f"{path} is not of this network: it holds {', '.join(unknown[:3])}, "
                         "unknown here")


def weights_digest(net):
    """SHA-256 of a network's tensors, names included: the same however they were saved."""
    content = hashlib.sha256()
    for name, tensor in sorted(net.state_dict().items()):
        content.update(name.encode())
        content.update(tensor.cpu().contiguous().numpy().tobytes())
    return content.hexdigest()
