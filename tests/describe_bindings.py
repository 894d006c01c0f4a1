"""Prints as JSON what a module of TensorRT's bindings has: {class: {name: what it is}}.

A process of its own for each version: `python describe_bindings.py tensorrt`, with the module's
folder on PYTHONPATH and its libraries on LD_LIBRARY_PATH. The module's own names stand under
"module". What it is: "method", with its documented signatures; "property", with its setter's
signature where it can be set; "class"; "value", an enumeration's member for one.
"""

import importlib
import json
import sys


def signatures(function):
    """The lines of a pybind11 docstring that are signatures: one, or numbered overloads."""
    lines = (function.__doc__ or "").strip().split("\n")
    numbered = [line.split(". ", 1)[1] for line in lines if line.split(". ", 1)[0].isdigit()]
    return numbered if any("Overloaded function" in line for line in lines[:2]) else lines[:1]


def describe(value):
    if isinstance(value, type):
        return {"is": "class"}
    if isinstance(value, property):
        return {"is": "property", "setter": signatures(value.fset) if value.fset else []}
    if callable(value):
        return {"is": "method", "signatures": signatures(value)}
    return {"is": "value"}


def describe_class(cls):
    return {name: describe(getattr(cls, name)) for name in dir(cls)}


def surface(trt):
    classes = {name: value for name, value in vars(trt).items() if isinstance(value, type)}
    classes["ILogger.Severity"] = trt.ILogger.Severity
    described = {name: describe_class(cls) for name, cls in classes.items()}
    described["module"] = {name: describe(value) for name, value in vars(trt).items()}
    return described


if __name__ == "__main__":
    print(json.dumps(surface(importlib.import_module(sys.argv[1]))))
