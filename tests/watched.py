"""Notes what a module of ours does with TensorRT: every name it reads, sets, calls or asks for.

The module is loaded from its source with each `x.name`, `x.name(…)`, `x.name = …`, `hasattr` and
`getattr` rerouted through a `Notes`; what it works on is left as it is, so that the same code runs
on a stand-in or on the real thing.
"""

import ast
import builtins
import collections
import os
import types

from mnist.files import ROOT

Note = collections.namedtuple("Note", "kind name how arguments keywords")
Note.__doc__ = """One thing done to TensorRT.

kind       what it was done to: "module", a class such as "Builder", an instance's class
name       the attribute
how        "read", "set", "call", or "absent": asked for and not there
arguments  of a call: the names of each argument's class and its bases; of "set": of the value
keywords   of a call: the same, by keyword
"""


class Notes:
    """What was done to the classes and the module `trt`."""

    def __init__(self, trt):
        self.trt, self.noted = trt, []
        self.kinds = {value: name for name, value in vars(trt).items() if isinstance(value, type)}
        self.kinds[trt.ILogger.Severity] = "ILogger.Severity"

    def kind(self, thing):
        """The name of TensorRT's class that it is or is an instance of; None: not TensorRT's."""
        if thing is self.trt:
            return "module"
        for cls in (thing if isinstance(thing, type) else type(thing)).__mro__:
            if cls in self.kinds:
                return self.kinds[cls]
        return None

    def classes(self, value):
        return tuple(self.kinds.get(cls, cls.__name__) for cls in type(value).__mro__)

    def note(self, thing, name, how, arguments=(), keywords=()):
        kind = self.kind(thing)
        if kind is None:
            return
        is_ours = (thing if isinstance(thing, type) else type(thing)) not in self.kinds
        if kind != "module" and is_ours and not hasattr(builtins.getattr(self.trt, kind), name):
            return  # a name that our subclass brings
        self.noted.append(Note(kind, name, how, tuple(map(self.classes, arguments)),
                               {key: self.classes(value) for key, value in dict(keywords).items()}))

    # what the rerouted source calls

    def get(self, thing, name):
        self.note(thing, name, "read")
        return builtins.getattr(thing, name)

    def set(self, thing, name, value):
        self.note(thing, name, "set", [value])
        setattr(thing, name, value)

    def call(self, thing, name, *arguments, **keywords):
        function = builtins.getattr(thing, name, None)
        unbound = isinstance(thing, type) and isinstance(function, types.FunctionType)
        self.note(thing, name, "call", arguments[unbound:], keywords)  # without Class.method's self
        return builtins.getattr(thing, name)(*arguments, **keywords)

    def call_class(self, function, *arguments, **keywords):
        """A call by a plain name: worth a note where it is one of TensorRT's classes."""
        if isinstance(function, type) and function in self.kinds:
            self.note(self.trt, self.kinds[function], "call", arguments, keywords)
        return function(*arguments, **keywords)

    def hasattr(self, thing, name):
        there = builtins.hasattr(thing, name)
        self.note(thing, name, "read" if there else "absent")
        return there

    def getattr(self, thing, name, *default):
        self.hasattr(thing, name)
        return builtins.getattr(thing, name, *default)


class Rerouted(ast.NodeTransformer):
    """A module's source with its attributes rerouted through `notes_`."""

    def through(self, function, node, value, *rest, keywords=()):
        notes = ast.Attribute(ast.Name("notes_", ast.Load()), function, ast.Load())
        arguments = [self.visit(value), ast.Constant(node.attr), *rest]
        return ast.copy_location(ast.Call(notes, arguments, list(keywords)), node)

    def visit_Attribute(self, node):
        if not isinstance(node.ctx, ast.Load):
            return self.generic_visit(node)
        return self.through("get", node, node.value)

    def visit_Call(self, node):
        if isinstance(node.func, ast.Name) and node.func.id != "super":
            notes = ast.Attribute(ast.Name("notes_", ast.Load()), "call_class", ast.Load())
            return ast.copy_location(ast.Call(
                notes, [node.func, *map(self.visit, node.args)],
                list(map(self.visit, node.keywords))), node)
        if not isinstance(node.func, ast.Attribute):
            return self.generic_visit(node)
        return self.through("call", node.func, node.func.value, *map(self.visit, node.args),
                            keywords=map(self.visit, node.keywords))

    def visit_Assign(self, node):
        target = node.targets[0]
        if len(node.targets) > 1 or not isinstance(target, ast.Attribute):
            return self.generic_visit(node)
        return ast.copy_location(
            ast.Expr(self.through("set", target, target.value, self.visit(node.value))), node)


def run_watched(source, names, notes):
    """Run `source` with `names` (a dict), its doings noted."""
    tree = ast.fix_missing_locations(Rerouted().visit(ast.parse(source)))
    names.update(notes_=notes, hasattr=notes.hasattr, getattr=notes.getattr)
    exec(compile(tree, "watched", "exec"), names)


def watched(name, notes):
    """The project's module `name`, loaded anew and watched."""
    module = types.ModuleType(name)
    with open(os.path.join(ROOT, *name.split(".")) + ".py", encoding="utf-8") as file:
        run_watched(file.read(), vars(module), notes)
    return module
