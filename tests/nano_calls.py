"""What the top-level files call of torch, numpy, PyQt5, matplotlib and TensorRT, and since when.

    /path/to/python3.6 tests/nano_calls.py            with a Jetson Nano's versions: what is missing
    /path/to/python3.6 tests/nano_calls.py --write    nano_calls.txt anew, with all that is there

nano_calls.txt lists every such name that was looked up, and found, in the Nano's own versions;
NEWER lists what isn't in them and how the code finds out. A name in neither fails the tests, also
on a machine without those versions. Keeps to Python 3.6, as it runs there.
"""

import ast
import glob
import importlib
import inspect
import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
KNOWN = os.path.join(ROOT, "tests", "nano_calls.txt")
LIBRARIES = ("numpy", "torch", "matplotlib", "PyQt5", "tensorrt")
OPTIONAL = ("tensorrt_rtx", "pycuda", "onnx", "onnxruntime", "openvino", "torchvision",
            "httptools", "orjson", "prometheus_client", "uvicorn", "uvloop", "optuna", "sqlalchemy")

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
    "tensorrt.TensorIOMode.INPUT": NAMED_TENSORS,
    ".num_io_tensors": NAMED_TENSORS,
    ".get_tensor_dtype": NAMED_TENSORS,
    ".get_tensor_mode": NAMED_TENSORS,
    ".get_tensor_name": NAMED_TENSORS,
    ".get_tensor_profile_shape": NAMED_TENSORS,
    ".get_tensor_shape": NAMED_TENSORS,
    ".set_input_shape": NAMED_TENSORS,
    ".set_tensor_address": NAMED_TENSORS,
    ".execute_async_v3": NAMED_TENSORS,
    ".create_runtime_config": RUNTIME_CONFIG,
    ".EAGER": RUNTIME_CONFIG,
    ".reconfigure": ("Python 3.7", 'hasattr(stream, "reconfigure")'),
}

# What can't be looked up: in TensorRT 8.2 and pycuda 2021.1 (not for this Python on a desktop;
# names from their references), in what comes on its own (Pillow, onnx, ONNX Runtime,
# OpenVINO, torchvision, Optuna), and attributes that only instances have.
ELSEWHERE = set("""
.Config .Server .prctl .set_model_props .VisionDataset .model_urls .submodule_search_locations
.response_complete .get_model_weights .optimize .GridSampler .RetryFailedTrialCallback .URL
.RetryHeartbeatStaleTrialCallback
.render_as_string .epsilon .create .exc .exif_transpose .draft .convert .thumbnail .getbands
.fromarray .DecompressionBombError .Draw .truetype
tensorrt tensorrt.__name__ tensorrt.__version__ tensorrt.Builder tensorrt.BuilderFlag
tensorrt.BuilderFlag.FP16 tensorrt.BuilderFlag.TF32 tensorrt.DataType.FLOAT tensorrt.ILogger
tensorrt.ILogger.__init__ tensorrt.ILogger.Severity.ERROR tensorrt.ILogger.Severity.INTERNAL_ERROR
tensorrt.ILogger.Severity.WARNING tensorrt.NetworkDefinitionCreationFlag tensorrt.OnnxParser
tensorrt.Runtime .add_optimization_profile .binding_is_input .build_serialized_network .clear_flag
.create_builder_config .create_execution_context .create_network .create_optimization_profile
.deserialize_cuda_engine .execute_async_v2 .get_binding_dtype .get_binding_shape .get_error
.get_input .get_profile_shape .num_bindings .num_errors .set_binding_shape .set_flag
.Context .mem_alloc .memcpy_dtoh_async .memcpy_htod_async .pagelocked_zeros
.retain_primary_context
.InferenceSession .ValidationError .check_model .checker .load_model_from_string
.SessionOptions .GraphOptimizationLevel .ORT_ENABLE_EXTENDED .get_available_providers
.get_providers .preload_dlls .OrtValue
.ortvalue_from_numpy .io_binding .bind_ortvalue_input .bind_ortvalue_output .run_with_iobinding
.synchronize_outputs .update_inplace
.Core .read_model .compile_model .create_infer_request .get_input_tensor .get_output_tensor .infer
.Compose .MNIST .ToTensor
.HttpRequestParser .HttpParserUpgrade .HttpParserError .should_upgrade .should_keep_alive
.get_http_version .OPT_SERIALIZE_NUMPY .multiprocess .CollectorRegistry .MultiProcessCollector
.ProcessCollector .disable_created_metrics .generate_latest .CONTENT_TYPE_LATEST
.get_sample_value .observe .inc
.dim_param .tensor_type .CopyFrom .make_tensor_value_info .UINT8 .numpy_helper .from_array
.initializer .make_node .helper .TensorProto .SerializeToString
.ClearField .QDQ .QInt8 .domain .get_property .metadata_props .op_type .opset_import .value_info
.param_groups .affine .running_mean .running_var .returncode .xaxis .yaxis .eof .unused_data
.phrase .utils
.COMPLETE .DBAPIError .ExperimentalWarning .FAIL .IntegrityError .MedianPruner .NopPruner .PRUNED
.RDBStorage .SQLAlchemyError .StorageInternalError .TPESampler .TrialPruned .TrialState
.UpdateFinishedTrialError ._trial_id .ask .create_study .dispose .enqueue_trial .exec_driver_sql
.fail_stale_trials .get_trials .logging .orig .pruners .record_heartbeat .samplers .set_user_attr
.set_verbosity .should_prune .study_name .suggest_categorical .suggest_float .user_attrs
""".split())


def programs():
    """The programs and all that they share."""
    library = glob.glob(os.path.join(ROOT, "mnist", "**", "*.py"), recursive=True)
    return sorted(glob.glob(os.path.join(ROOT, "*.py")) + library)


def read(path):
    with open(path, encoding="utf-8") as file:
        return file.read()


def uses(path):
    """The names of the libraries that a file uses: {name: line}.

    "torch.cuda.Stream"; with a keyword "torch.load(weights_only)"; and ".item" for an attribute of
    something that only the running program knows, unless the project defines such a one.
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
        elif isinstance(node, ast.Attribute) and not name:
            found["." + node.attr] = node.lineno
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


def own_names():
    """The attributes that the project itself defines."""
    own = set()
    for path in programs():
        for node in ast.walk(ast.parse(read(path))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                own.add(node.name)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                own.add(node.attr)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                own.add(node.id)  # a class's or a module's variable
            elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") in (
                    "namedtuple", "add_argument"):
                for argument in node.args:
                    words = getattr(argument, "value", getattr(argument, "s", ""))
                    own.update(str(words).lstrip("-").replace("-", "_").split())
    return own | {flag.replace("-", "_") for flag in shared_flags()}


def shared_flags():
    sys.path.insert(0, ROOT)
    from mnist.cli import FLAGS
    return FLAGS


def all_uses():
    """The uses that have to be looked up: {name: "file:line"}.

    Not those in NEWER and ELSEWHERE, nor attributes that may be the project's own or Python's.
    """
    listed = ELSEWHERE | set(NEWER)
    listed |= {"." + name for name in own_names() | standard_attributes()}
    return {name: f"{os.path.basename(path)}:{line}"
            for path in programs() for name, line in uses(path).items()
            if name not in listed and name.partition("(")[0] not in NEWER}


def standard_attributes():
    """The attributes of Python's own types and of the standard modules that the project imports
    (whether Python 3.6 has them is for vermin to say)."""
    modules = {"builtins"}
    for path in programs():
        for node in ast.walk(ast.parse(read(path))):
            if isinstance(node, ast.Import):
                modules.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                modules.add(node.module)
    return attributes_of(importlib.import_module(name) for name in modules
                         if name.split(".")[0] not in LIBRARIES + OPTIONAL
                         and name.split(".")[0] != "mnist"
                         and not os.path.exists(os.path.join(ROOT, name + ".py")))


# --- Looking the names up, in the versions that this Python has -----------------------------------


def exists(name, attributes):
    """Whether this Python's libraries have a name of `uses`."""
    if name.startswith("."):
        return name[1:] in attributes
    path, _, keyword = name.partition("(")
    parts = path.split(".")
    thing = importlib.import_module(parts[0])
    for k, part in enumerate(parts[1:], start=1):
        if not hasattr(thing, part):
            try:
                importlib.import_module(".".join(parts[:k + 1]))
            except ImportError:
                return False
        thing = getattr(thing, part)
    return not keyword or takes(thing, keyword.rstrip(")"))


def takes(function, keyword):
    """Whether a function has this keyword; yes where it can't be known."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return True
    return keyword in parameters or any(p.kind == p.VAR_KEYWORD for p in parameters.values())


def attributes_of(modules):
    """The attributes of modules and of the classes in them."""
    found = set()
    for module in modules:
        found.update(dir(module))
        for thing in list(getattr(module, "__dict__", {}).values()):
            if isinstance(thing, type):
                found.update(dir(thing))
    return found


def main():
    for name in ("torch", "numpy", "matplotlib.pyplot", "PyQt5.QtCore", "PyQt5.QtGui",
                 "PyQt5.QtWidgets"):
        importlib.import_module(name)
    attributes = attributes_of(list(sys.modules.values()))
    used = all_uses()
    missing = [name for name in sorted(used) if not exists(name, attributes)]
    for name in missing:
        print(f"{used[name]}: {name} is not in these versions")
    if "--write" in sys.argv:
        with open(KNOWN, "w") as file:
            file.write("\n".join(sorted(set(used) - set(missing))) + "\n")
    return int(bool(missing))


if __name__ == "__main__":
    sys.exit(main())
