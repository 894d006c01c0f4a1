"""The network, its weights on disk, and its export to ONNX. Knows torch.

The network is the LeNet-style one of NVIDIA's `network_api_pytorch_mnist` TensorRT sample, with the
same state-dict keys, so that weights travel both ways. To use your own network, give it the same
contract (normalised float32 (B, 1, 28, 28) in, float32 (B, 10) log-probabilities out).
"""

import copy
import inspect
import io
import os
import pickle
import re
import types
import warnings
import zipfile

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from MNISTscript import HERE, MNISTError, UnavailableError, write_atomically

DEFAULT_WEIGHTS = os.path.join(HERE, "NetMNIST.pth")


class Net(nn.Module):
    """LeNet-style classifier of 28×28 digits, 431,080 parameters.

    Input: float32 (B, 1, 28, 28), normalised as `MNISTdsource.normalise` does. Output: float32
    (B, 10), the log-probability of each digit.
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


def fold_normalisation(net, mean, std):
    """A copy of `net` that takes raw grey levels 0…255 (float32) instead of normalised ones.

    (x/255 - mean)/std is affine and conv1 has no padding, so it moves into conv1's weights: nobody
    downstream can forget the normalisation, and it costs nothing.
    """
    folded = copy.deepcopy(net)
    weight = net.conv1.weight.detach().double()
    with torch.no_grad():
        folded.conv1.weight.copy_(weight / (255 * std))
        folded.conv1.bias.copy_(net.conv1.bias.double() - weight.sum((1, 2, 3)) * mean / std)
    return folded


def save_weights(net, path):
    """Write the state dict of `net` to `path`, whole or not at all (see `write_atomically`)."""
    state = {key: tensor.detach().cpu().contiguous() for key, tensor in net.state_dict().items()}
    write_pickle(state, path)


def write_pickle(thing, path):
    """Write what `torch.save` makes of it to `path`, whole or not at all (see `write_atomically`).

    By way of memory, because torch answers a full disk with an error that doesn't say so.
    """
    content = io.BytesIO()
    torch.save(thing, content)
    with write_atomically(path) as file:
        file.write(content.getbuffer())


def load_weights(path=DEFAULT_WEIGHTS, trust_pickle=False):
    """Read a `Net` from a weights file: in eval mode, float32, on the CPU.

    `path` holds a state dict as `save_weights` writes it. A whole pickled module, as written by
    `torch.save(net, path)`, can run any code while it loads: refused unless `trust_pickle`.

    Raises UnavailableError where there is no such file, MNISTError where it isn't what it should
    be: not a weights file, truncated, or a tensor missing, unknown, or of another shape.
    """
    if not os.path.isfile(path):
        raise UnavailableError(f"no weights file {path}; TrainMNIST.py makes one")
    state = read_pickle(path, trust_pickle)
    if isinstance(state, nn.Module):
        state = state.state_dict()
    net = Net()
    check_state(state, net.state_dict(), path)
    net.load_state_dict(state)
    return net.eval()


def read_pickle(path, trust_pickle):
    """What `torch.load` finds in `path`; nothing but tensors and containers unless trusted."""
    if trust_pickle:
        how = dict(pickle_module=_pickle_with(TrustingUnpickler))
        if HAS_WEIGHTS_ONLY:
            how["weights_only"] = False
    elif HAS_WEIGHTS_ONLY:
        how = dict(weights_only=True)
    else:
        how = dict(pickle_module=_pickle_with(TensorsOnlyUnpickler))
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
        reason = (str(error).strip() or type(error).__name__).split("\n")[0]
        raise MNISTError(f"{path} is not a weights file, or is damaged ({reason[:150]})") from error


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


class TrustingUnpickler(pickle.Unpickler):
    """An unpickler that takes our `Net` where a pickled module's own class `Net` isn't here."""

    def find_class(self, module, name):
        try:
            return super().find_class(module, name)
        except (ImportError, AttributeError):
            if name == "Net":
                return Net
            raise


def _pickle_with(unpickler):
    """What torch.load takes as `pickle_module`, with this unpickler."""
    def load(file, **arguments):
        return unpickler(file, **arguments).load()

    return types.SimpleNamespace(__name__="pickle", Unpickler=unpickler, load=load)


def check_state(state, expected, path):
    """Raise MNISTError naming the first tensor of `state` that isn't as in `expected`."""
    if not isinstance(state, dict):
        raise MNISTError(f"{path} holds a {type(state).__name__}, not a state dict")
    for key in expected:
        tensor = state.get(key)
        if not isinstance(tensor, torch.Tensor):
            raise MNISTError(f"{path} is not of this network: {key} is missing")
        if tensor.shape != expected[key].shape:
            raise MNISTError(f"{path} is not of this network: {key} has shape "
                             f"{tuple(tensor.shape)}, not {tuple(expected[key].shape)}")
        if not tensor.is_floating_point():
            raise MNISTError(f"{path} is not of this network: {key} holds {tensor.dtype}, "
                             "not floating-point numbers")
    unknown = [str(key) for key in state if key not in expected]
    if unknown:
        raise MNISTError(f"{path} is not of this network: it holds {', '.join(unknown[:3])}, "
                         "unknown here")


OPSET = 13  # the newest that TensorRT 8.0 reads
# How far an exported network's log-probabilities may lie from torch's in float32. Measured with
# the shipped weights on 10,000 training digits: fp32 1.5e-5, fp16 0.055. Folding the normalisation
# in makes float16 no worse: whole grey levels are exact in it.
ONNX_TOLERANCE = {"fp32": 1e-3, "fp16": 0.1}


def export_onnx(net, path, mean, std, precision="fp32", digits=None):
    """Write `net` to `path` as one self-contained ONNX file that takes raw grey levels.

    Input `image`: float32 (batch, 1, 28, 28), grey levels 0…255; the normalisation with `mean` and
    `std` is folded into conv1. Output `log_probs`: float32 (batch, 10). "fp16" keeps both in
    float32 and holds float16 weights and arithmetic between them, for TensorRTs that take the
    precision from the graph alone (11 and newer, TensorRT-RTX).

    The graph is checked before the file appears (see `check_onnx`); returns how, as text.
    """
    graph = onnx_bytes(net, mean, std, precision)
    checked = check_onnx(graph, net, mean, std, precision, digits)
    with write_atomically(path) as file:
        file.write(graph)
    return checked


class HalfInside(nn.Module):
    """A network, turned to float16, between its float32 input and output."""

    def __init__(self, net):
        super().__init__()
        self.net = net.half()

    def forward(self, x):
        return self.net(x.half()).float()


def onnx_bytes(net, mean, std, precision="fp32"):
    """The ONNX file that `export_onnx` writes, unchecked.

    Raises UnavailableError where this torch can't export it.
    """
    net = fold_normalisation(net, mean, std).eval()
    image = torch.zeros(1, 1, 28, 28)
    if precision == "fp16":
        net = HalfInside(net)
        # The exporter runs the network once, and older torches compute float16 on CUDA only.
        if torch.cuda.is_available():
            net, image = net.cuda(), image.cuda()
    batch_axis = {0: "batch"}
    arguments = dict(input_names=["image"], output_names=["log_probs"], opset_version=OPSET,
                     dynamic_axes={"image": batch_axis, "log_probs": batch_axis})
    if "dynamo" in inspect.signature(torch.onnx.export).parameters:
        arguments["dynamo"] = False  # the newer exporter can't write opset 13
    file = io.BytesIO()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch deprecates the exporter we need
            torch.onnx.export(net, (image,), file, **arguments)
    except RuntimeError as error:
        if isinstance(error.__cause__, ImportError):
            raise UnavailableError("torch's ONNX exporter needs the package onnx: "
                                   "pip install onnx") from error
        if "unpacking string as utf-8" in str(error):  # torch notes from which line each node is
            raise UnavailableError(f"torch can't read the path {HERE} under this locale: "
                                   "export LC_ALL=C.UTF-8") from error
        if "not implemented for 'Half'" in str(error):
            raise UnavailableError("this torch computes float16 on a CUDA GPU only, so it can't "
                                   "export fp16 here; a newer torch can") from error
        raise
    return file.getvalue()


def check_onnx(graph, net, mean, std, precision, digits=None):
    """Check an ONNX file's bytes, as far as the installed packages can; returns how, as text.

    It was made from the other arguments. `digits`: uint8 (N, 28, 28) to compare it with torch on,
    in batches of 1, 64 and 16; None: random grey levels. Raises MNISTError where the ONNX checker
    refuses the graph, or ONNX Runtime's answers lie further than ONNX_TOLERANCE from torch's.
    """
    tolerance = ONNX_TOLERANCE[precision]
    checks = []
    try:
        import onnx
    except ImportError:
        pass
    else:
        try:
            onnx.checker.check_model(onnx.load_model_from_string(graph), full_check=True)
        except onnx.checker.ValidationError as error:
            raise MNISTError(f"the exported ONNX graph is invalid: {error}") from error
        checks.append(f"ONNX checker {onnx.__version__}")
    try:
        import onnxruntime
    except ImportError:
        pass
    else:
        difference = onnxruntime_difference(onnxruntime, graph, net, mean, std, digits)
        if not difference <= tolerance:  # a NaN is a failure too
            raise MNISTError(f"the exported ONNX graph answers differently from torch: by "
                             f"{difference:.2g}, tolerated is {tolerance:g}")
        checks.append(f"ONNX Runtime {onnxruntime.__version__} (differs by {difference:.1e} from "
                      f"torch, tolerated {tolerance:g})")
    return " and ".join(checks) or "not checked: neither onnx nor onnxruntime is installed"


def onnxruntime_difference(onnxruntime, graph, net, mean, std, digits):
    """The largest difference between ONNX Runtime's answers and those of torch, nothing folded."""
    if digits is None:
        digits = np.random.RandomState(0).randint(0, 256, (81, 28, 28), np.uint8)
    digits = np.resize(digits, (81, 28, 28))  # repeats them where there are fewer
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    differences = []
    for batch in (digits[:1], digits[1:65], digits[65:81]):
        image = batch[:, None].astype(np.float32)
        with torch.no_grad():
            expected = net((torch.from_numpy(image) / 255 - mean) / std).numpy()
        answer, = session.run(["log_probs"], {"image": image})
        differences.append(np.abs(answer - expected).max())
    return float(np.max(differences))
