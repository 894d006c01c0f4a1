"""What the top-level files call of torch, numpy, PyQt5, matplotlib and TensorRT, and since when.

    /path/to/python3.6 tests/nano_calls.py    with a Jetson Nano's versions: what is missing

nano_calls.txt lists every such name that was looked up, and found, in the Nano's own versions
(TensorRT 8.2's in its reference); NEWER lists what isn't in them and how the code finds out. A name
in neither fails the tests, also on a machine without those versions. Keeps to Python 3.6, as it
runs there.
"""

import ast
import glob
import inspect
import os
import pydoc
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
KNOWN = os.path.join(ROOT, "tests", "nano_calls.txt")
LIBRARIES = ("numpy", "torch", "matplotlib", "PyQt5", "tensorrt")

# Newer than a Jetson Nano's versions: since when, and the feature test that has to stand in every
# file that uses it.
NAMED_TENSORS = ("TensorRT 8.5", 'hasattr(engine, "num_io_tensors")')
MEMORY_POOLS = ("TensorRT 8.4", 'hasattr(config, "set_memory_pool_limit")')
RUNTIME_CONFIG = ("TensorRT-RTX", 'getattr(trt, "DynamicShapesKernelSpecializationStrategy", None)')
ROUNDING = ("PyQt5 5.14", 'hasattr(QApplication, "setHighDpiScaleFactorRoundingPolicy")')
NEWER = {
    "torch.load(weights_only)": ("torch 1.13", '"weights_only" in inspect.signature(torch.load)'),
    "torch.compile": ("torch 2.0", 'hasattr(torch, "compile")'),
    "torch.onnx.export(dynamo)": (
        "torch 2.5", '"dynamo" in inspect.signature(torch.onnx.export).parameters'),
    "torch.optim.SGD(fused)": ("torch 2.0", '"fused" in inspect.signature(kind).parameters'),
    "PyQt5.QtWidgets.QApplication.setHighDpiScaleFactorRoundingPolicy": ROUNDING,
    "PyQt5.QtCore.Qt.HighDpiScaleFactorRoundingPolicy.PassThrough": ROUNDING,
    "tensorrt.MemoryPoolType.WORKSPACE": MEMORY_POOLS,
    ".set_memory_pool_limit": MEMORY_POOLS,
    **dict.fromkeys((".create_runtime_config", ".EAGER"), RUNTIME_CONFIG),
    **dict.fromkeys(("tensorrt.TensorIOMode.INPUT", ".num_io_tensors", ".get_tensor_dtype",
                     ".get_tensor_mode", ".get_tensor_name", ".get_tensor_profile_shape",
                     ".get_tensor_shape", ".set_input_shape", ".set_tensor_address",
                     ".execute_async_v3"), NAMED_TENSORS),
    ".reconfigure": ("Python 3.7", 'hasattr(stream, "reconfigure")'),
}


def programs():
    """The programs and all that they share."""
    library = glob.glob(os.path.join(ROOT, "mnist", "**", "*.py"), recursive=True)
    return sorted(glob.glob(os.path.join(ROOT, "*.py")) + library)


def read(path):
    with open(path, encoding="utf-8") as file:
        return file.read()


def uses(path):
    """The names of the libraries that a file uses: {name: line}.

    "torch.cuda.Stream"; with a keyword "torch.load(weights_only)". What only the running program
    knows, as a tensor's methods, isn't among them: the tests with the oldest libraries find those.
    """
    tree = ast.parse(read(path))
    known = {"trt": "tensorrt"}
    for node in ast.walk(tree):
        known.update(imported(node))
    found, parts = {}, set()
    for node in ast.walk(tree):  # an attribute comes before its parts
        name = dotted(node, known)
        if isinstance(node, ast.Attribute):
            parts.add(id(node.value))
        if name and id(node) not in parts:
            found[name] = node.lineno
        elif isinstance(node, ast.Call):
            function = dotted(node.func, known)
            for keyword in node.keywords:
                if function and keyword.arg:
                    found[f"{function}({keyword.arg})"] = node.lineno
    return found


def imported(node):
    """What an import statement calls a library's things: {"F": "torch.nn.functional"}."""
    if isinstance(node, ast.Import):
        names = {alias.asname or alias.name.split(".")[0]:
                 alias.name if alias.asname else alias.name.split(".")[0] for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
        names = {alias.asname or alias.name: node.module + "." + alias.name
                 for alias in node.names}
    else:
        return {}
    return {name: full for name, full in names.items() if full.split(".")[0] in LIBRARIES}


def dotted(node, known):
    """ "torch.cuda.Stream" for this chain of attributes; None for other nodes."""
    names = []
    while isinstance(node, ast.Attribute):
        names.insert(0, node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return None
    if node.id == "self" and names and names[0] in known:  # self.torch, self.trt
        node, names = ast.Name(id=names[0]), names[1:]
    return ".".join([known[node.id]] + names) if node.id in known else None


def all_uses():
    """The uses that have to be looked up, those that aren't in NEWER: {name: "file:line"}."""
    return {name: f"{os.path.basename(path)}:{line}"
            for path in programs() for name, line in uses(path).items()
            if name not in NEWER and name.partition("(")[0] not in NEWER}


def exists(name):
    """Whether this Python's libraries have a name of `uses`; yes where it can't be known."""
    path, _, keyword = name.rstrip(")").partition("(")
    thing = pydoc.locate(path)
    if thing is None or not keyword:
        return thing is not None or path == "numpy.newaxis"  # which is None
    try:
        parameters = inspect.signature(thing).parameters
    except (TypeError, ValueError):
        return True
    return keyword in parameters or any(p.kind == p.VAR_KEYWORD for p in parameters.values())


if __name__ == "__main__":
    sys.exit("\n".join(
        f"{place}: {name} is not in these versions" for name, place in all_uses().items()
        if not name.startswith("tensorrt") and not exists(name)) or 0)
