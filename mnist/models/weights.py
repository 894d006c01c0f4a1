"""Networks with their weights: found, loaded, checked, saved.

`load_network` gives what a program's `--network` and `--weights` ask for. The shipped weights lie
in weights/; what you train lies beside the programs and is taken where it exists. Which network and
which image set weights are of travels with them, in the file itself.
"""

import collections
import hashlib
import inspect
import io
import os
import pickle
import re
import sys
import types
import zipfile
from typing import NamedTuple

import torch
from torch import nn

from mnist.datasets.image_set import MNIST, ImageSet
from mnist.errors import MNISTError, UnavailableError
from mnist.files import ROOT, write_atomically
from mnist.models.backbones import find_transfer
from mnist.models.registry import find_network, first_line, make_network
from MNISTmodel import DEFAULT_NETWORKS, NETWORKS

SHIPPED = os.path.join(ROOT, "weights")

# --- Which network --------------------------------------------------------------------------------


class Network(NamedTuple):
    """A network with its weights.

    An engine needs `net` and `image_set` alone; the rest says where they are from.
    """

    net: nn.Module  # in eval mode, float32, on the CPU
    image_set: ImageSet = MNIST  # what it was trained on
    name: str = "net"  # of a built-in network, or of the class of your own ("MyNet")
    path: str = None  # of its weights file
    origin: str = ""  # the same for the screen: "weights/net.pth (shipped)"
    flag: str = None  # what `load_network` was told as `network`

    @property
    def stem(self):
        """The path, without extension, of what is made from these weights: graphs and engines.

        Beside the weights they came from; nothing is written beside the shipped ones. None where
        the network is from no file.
        """
        if self.path is None:
            return None
        folder, name = os.path.split(os.path.splitext(self.path)[0])
        return os.path.join(ROOT if folder == SHIPPED else folder, name)


def load_network(weights=None, network=None, image_set=None, trust_pickle=False):
    """The `Network` that a program's flags ask for.

    weights: the path of its weights; None: what you trained (see `trained_path`) where that exists,
        else what is shipped.
    network: a built-in NAME or FILE.py:CLASS; None: the one that the weights are of.
    image_set: whose weights to look for, and what to take those for that don't say: an `ImageSet`,
        or a function that gives it, called where it is needed; None: MNIST.
    trust_pickle: also load a whole pickled module, which can run any code while it loads.

    Raises UnavailableError where there is no such network or file, MNISTError where the file isn't
    what it should be: no weights, damaged, or with a tensor missing, unknown or of another shape.
    """
    name, make = find_network(network) if network else (None, None)
    path = (os.path.expanduser(weights) if weights
            else default_weights(name, called(image_set)))
    state = read_state(path, trust_pickle)
    facts = facts_of(state, path)
    image_set = facts.get("image_set") or called(image_set)
    if make is None:
        name, make = network_of(state, facts.get("network"), image_set, path)
    net = make_network(name, make, image_set)
    check_state(state, net.state_dict(), path)
    net.load_state_dict(state)
    return Network(net, image_set, name, path, describe_path(path), network)


def called(image_set):
    """The `ImageSet` of `load_network`'s argument."""
    return MNIST if image_set is None else image_set() if callable(image_set) else image_set


def network_of(state, name, image_set, path):
    """(name, function that makes one) of the network that a weights file says it is of, or else of
    the built-in one that it fits."""
    if name is None:
        return recognise(state, image_set)
    if name not in NETWORKS and not find_transfer(name):
        raise UnavailableError(f"{path} is of a network {name} that isn't built in; "
                               f"--network FILE.py:{name} says where it is")
    return find_network(name)


def trained_path(name, image_set=MNIST):
    """Where the weights go that you train: NetMNIST.pth for "net" on MNIST, MyNet.pth for your
    `MyNet`, Net-cifar10.pth on another image set."""
    stem = name.capitalize() if name in NETWORKS else name
    if image_set.name != MNIST.name:
        stem += "-" + re.sub(r"[^\w-]", "_", image_set.name)
    elif name in NETWORKS:
        stem += "MNIST"
    return os.path.join(ROOT, stem + ".pth")


def shipped_path(name, image_set=MNIST):
    """Where shipped weights lie: weights/net.pth for MNIST's, weights/cifar10.pth for the default
    network of another image set, weights/cifar10-resnet8.pth for one more."""
    if image_set.name == MNIST.name:
        stem = name
    elif name == default_network(image_set):
        stem = image_set.name
    else:
        stem = f"{image_set.name}-{name}"
    return os.path.join(SHIPPED, stem + ".pth")


def default_network(image_set):
    """The name of the network that an image set gets where none is named."""
    usual = "net" if image_set.shape[0] == 1 else "pooled-80"
    return DEFAULT_NETWORKS.get(image_set.name, usual)


def default_weights(name, image_set=MNIST):
    """The weights of the network `name` (None: the set's default): yours where you trained some,
    else those shipped."""
    name = name or default_network(image_set)
    for path in (trained_path(name, image_set), shipped_path(name, image_set)):
        if os.path.isfile(path):
            return path
    flag = name if name in NETWORKS else "FILE.py:" + name
    raise UnavailableError(f"no weights of {name} for {image_set.name} are shipped: --weights FILE "
                           f"names yours,\nTrainMNIST.py --data {image_set.name} --network {flag} "
                           "makes some")


def describe_path(path):
    """A weights file for the screen, saying where it is from."""
    path = os.path.abspath(path)
    if os.path.dirname(path) == SHIPPED:
        return os.path.relpath(path, ROOT) + " (shipped)"
    return os.path.relpath(path, ROOT) if os.path.dirname(path) == ROOT else path


def recognise(state, image_set):
    """The built-in network (name, function) with just the keys and shapes of a state dict; where
    none has, the set's default, so that `check_state` can tell what is amiss."""
    for name, make in NETWORKS.items():
        if name.startswith("separable") and "conv2a.1.weight" not in state:
            continue  # a hundred megabytes, not to be made for nothing
        expected = make(image_set.shape, image_set.outputs).state_dict()
        if len(state) == len(expected) and all(
                getattr(state.get(key), "shape", None) == expected[key].shape for key in expected):
            return name, make
    return find_network(default_network(image_set))


# --- Weights files --------------------------------------------------------------------------------

def save_weights(net, path, name=None, image_set=None):
    """Write the state dict of `net` to `path`, whole or not at all (see `write_atomically`), and
    with it the network's name and the image set it was trained on.

    They are an attribute of the ordered dictionary, which every torch keeps and
    `load_state_dict` doesn't mind.
    """
    state = collections.OrderedDict(
        (key, tensor.detach().cpu().contiguous()) for key, tensor in net.state_dict().items())
    state.facts = {"network": name, "image_set": image_set and image_set.to_json()}
    write_pickle(state, path)


def facts_of(state, path):
    """{"network": name, "image_set": its `ImageSet`} as far as a state dict tells."""
    facts = dict(getattr(state, "facts", None) or {})
    if facts.get("image_set"):
        try:
            facts["image_set"] = ImageSet.from_json(facts["image_set"])
        except (TypeError, ValueError) as error:
            raise MNISTError(f"{path} says wrongly what it was trained on: {error}") from error
    return facts


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
    other = NOT_WEIGHTS.get(os.path.splitext(path)[1].lower())
    if other:
        raise UnavailableError(f"{path} is {other}")
    state = read_pickle(path, trust_pickle)
    if isinstance(state, nn.Module):
        state = state.state_dict()
    if not isinstance(state, dict):
        raise MNISTError(f"{path} holds a {type(state).__name__}, not a state dict")
    return unwrap(state, path)


def unwrap(state, path):
    """The state dict inside what other trainings write: a checkpoint's dictionary, or keys that a
    wrapper has given a prefix. It is said what was unwrapped."""
    for key in WRAPPERS:
        if isinstance(state.get(key), dict):
            print(f"{path}: taken out of its {key!r}", file=sys.stderr)
            state = state[key]
    for prefix in PREFIXES:
        if state and all(str(key).startswith(prefix) for key in state):
            print(f"{path}: without {prefix!r} before each name", file=sys.stderr)
            facts = getattr(state, "facts", None)
            state = collections.OrderedDict((key[len(prefix):], state[key]) for key in state)
            state.facts = facts
    return state


# Files that are something else, by their extension, with the way to weights.
ENGINE = ("what engines make of weights: give the .pth file it was made of; --precision int8 takes "
          "the int8 one beside that")
NOT_WEIGHTS = {".onnx": ENGINE, ".rt": "a TensorRT engine; InfMNISTcudaRT.py --engine times it",
               ".engine": "a TensorRT engine; InfMNISTcudaRT.py --engine times it",
               ".npz": "numpy's: torch.save a state dict of the arrays, torch.from_numpy each"}
WRAPPERS = ("state_dict", "model_state_dict", "model", "net")  # Lightning's and most tutorials'
# DataParallel's, a compiled module's, Lightning's.
PREFIXES = ("module.", "_orig_mod.", "model.", "net.")


def read_pickle(path, trust_pickle):
    """What `torch.load` finds in `path`; nothing but tensors and containers unless trusted."""
    how = dict(weights_only=not trust_pickle) if HAS_WEIGHTS_ONLY else {}
    if not HAS_WEIGHTS_ONLY and not trust_pickle:
        how = dict(pickle_module=TENSORS_ONLY)
    try:
        check_archive(path)
        return torch.load(path, map_location="cpu", **how)
    except UnavailableError:
        raise
    except OSError as error:
        raise MNISTError(f"can't read {path}: {error.strerror or error}") from error
    except Exception as error:  # a damaged file makes torch raise almost anything
        if re.search("unsupported (global|class)", str(error), re.IGNORECASE):
            raise MNISTError(
                f"{path} is not a plain state dict: it names code to run, as whole pickled modules "
                "do; refused.\nWhere you trust it, --trust-pickle loads it; to convert it where it "
                "was made: torch.save(net.state_dict(), FILE)") from error
        why = first_line(error)
        why = "" if why.startswith("Weights only load failed") else f" ({why})"  # any file's
        raise MNISTError(f"{path} is not a weights file, or is damaged{why}") from error


def check_archive(path):
    """Raise zipfile.BadZipFile where torch's zip archive `path` is damaged or would expand,
    UnavailableError where it is TorchScript.

    torch doesn't compress, but expands what is compressed to any size before it looks at it; and it
    doesn't check the checksums.
    """
    if not zipfile.is_zipfile(path):
        return  # torch's older format, or no weights: torch.load will tell
    with zipfile.ZipFile(path) as archive:
        if any("/code/" in name for name in archive.namelist()):
            raise UnavailableError(
                f"{path} is TorchScript, a program: save its weights where it is loaded: "
                "torch.save(torch.jit.load(FILE).state_dict(), WEIGHTS)")
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


# What torch.load takes as `pickle_module`.
TENSORS_ONLY = types.SimpleNamespace(
    __name__="pickle", Unpickler=TensorsOnlyUnpickler,
    load=lambda file, **arguments: TensorsOnlyUnpickler(file, **arguments).load())


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
