"""A network as an ONNX graph, checked: raw pixels in, log-probabilities or values out.

Uses onnx and onnxruntime for the checks, as far as they are installed.
"""

import inspect
import io
import warnings

import numpy as np
import torch

from mnist.engines.precision import TOLERANCE
from mnist.errors import MNISTError, UnavailableError
from mnist.files import ROOT, write_atomically
from mnist.models.fold import fold, rounded

OPSET = 13  # the newest that TensorRT 8.0 reads


def export_onnx(network, path, precision="fp32"):
    """Write a `Network` to `path` as one self-contained ONNX file that takes raw pixels.

    Input `image`: float32 (batch, C, H, W), 0…255; the normalisation is part of the graph, folded
    into the first layer where that is exact. Output `log_probs`, or `values` for regression:
    float32 (batch, K). "fp16" keeps both in float32 and holds float16 weights and arithmetic
    between them, for TensorRTs that take the precision from the graph alone (11 and newer,
    TensorRT-RTX). The image set stands in `metadata_props`, where the package onnx is installed.

    The graph is checked before the file appears (see `check_onnx`); returns how, as text.
    """
    graph = onnx_bytes(network, precision)
    checked = check_onnx(graph, network, precision)
    with write_atomically(path) as file:
        file.write(graph)
    return checked


def onnx_bytes(network, precision="fp32"):
    """The ONNX file that `export_onnx` writes, unchecked.

    Raises UnavailableError where this torch can't export it.
    """
    image_set = network.image_set
    net = rounded(fold(network.net, image_set), precision)
    image = torch.zeros((1,) + image_set.shape)
    if precision == "fp16":
        # The exporter runs the network once, and older torches compute float16 on CUDA only.
        if torch.cuda.is_available():
            net, image = net.cuda(), image.cuda()
    batch_axis = {0: "batch"}
    output = image_set.output_name
    arguments = dict(input_names=["image"], output_names=[output], opset_version=OPSET,
                     dynamic_axes={"image": batch_axis, output: batch_axis})
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
            raise UnavailableError(f"torch can't read the path {ROOT} under this locale: "
                                   "export LC_ALL=C.UTF-8") from error
        if "not implemented for 'Half'" in str(error):
            raise UnavailableError("this torch computes float16 on a CUDA GPU only, so it can't "
                                   "export fp16 here; a newer torch can") from error
        raise
    return with_image_set(file.getvalue(), image_set)


def with_image_set(graph, image_set):
    """An ONNX file's bytes with the image set in its metadata, where onnx is installed."""
    try:
        import onnx
    except ImportError:
        return graph
    model = onnx.load_model_from_string(graph)
    onnx.helper.set_model_props(model, properties(image_set))
    return model.SerializeToString()


def properties(image_set):
    """What an ONNX file says of itself in its `metadata_props`: {name: text}."""
    channels, height, width = image_set.shape
    return {"image_set": image_set.to_json(),
            "input": f"image: float32 (batch, {channels}, {height}, {width}), "
                     f"{'RGB' if channels == 3 else 'grey levels'}, 0 to 255; the graph normalises "
                     "with the image set's mean and std, so nobody else must"}


def check_onnx(graph, network, precision):
    """Check an ONNX file's bytes, as far as the installed packages can; returns how, as text.

    It was made from the other arguments. Raises MNISTError where the ONNX checker refuses the
    graph, or ONNX Runtime's results on random pixels, in batches of 1, 64 and 16, lie further than
    TOLERANCE from torch's. It doesn't compute in bf16, and the predictions of int8 are for the
    engine's row to judge.
    """
    checks = []
    try:
        import onnx
    except ImportError:
        pass
    else:
        try:
            # Convolutions in bfloat16 came with opset 22; TensorRT takes them in 13 as well.
            onnx.checker.check_model(onnx.load_model_from_string(graph),
                                     full_check=precision != "bf16")
        except onnx.checker.ValidationError as error:
            raise MNISTError(f"the exported ONNX graph is invalid: {error}") from error
        checks.append(f"ONNX checker {onnx.__version__}")
    try:
        import onnxruntime
    except ImportError:
        onnxruntime = None
    if onnxruntime and precision in ("fp32", "fp16"):
        tolerance = TOLERANCE[precision]
        difference = onnxruntime_difference(onnxruntime, graph, network)
        if not difference <= tolerance:  # a NaN is a failure too
            raise MNISTError("the exported ONNX graph gives other log-probabilities than torch: by "
                             f"{difference:.2g}, tolerated is {tolerance:g}")
        checks.append(f"ONNX Runtime {onnxruntime.__version__} (differs by {difference:.1e} from "
                      f"torch, tolerated {tolerance:g})")
    return " and ".join(checks) or "not checked: neither onnx nor onnxruntime is installed"


def onnxruntime_difference(onnxruntime, graph, network):
    """The largest difference of ONNX Runtime's outputs from torch's, nothing folded."""
    image_set = network.image_set
    images = np.random.RandomState(0).randint(0, 256, (81,) + image_set.shape, np.uint8)
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    differences = []
    for batch in (images[:1], images[1:65], images[65:81]):
        with torch.no_grad():
            expected = network.net(torch.from_numpy(image_set.normalise(batch))).numpy()
        outputs, = session.run([image_set.output_name], {"image": batch.astype(np.float32)})
        differences.append(np.abs(outputs - expected).max())
    return float(np.max(differences))
