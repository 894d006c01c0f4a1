"""The map of the project: which file imports which."""

import ast
import glob
import os

import graphlib
from scripts import ROOT

PATHS = glob.glob(os.path.join(ROOT, "*.py")) + glob.glob(
    os.path.join(ROOT, "mnist", "**", "*.py"), recursive=True)
MODULES = {os.path.relpath(path, ROOT)[:-3].replace(os.sep, "."): path for path in PATHS
           if not path.endswith("__init__.py")}
# A room may use those below it, and the ground floor.
FLOORS = (("mnist.errors", "mnist.files", "mnist.cli", "mnist.machine", "MNISTmodel"),
          ("mnist.datasets",), ("mnist.models",), ("mnist.engines",),
          ("mnist.training", "mnist.bench", "mnist.serving", "mnist.gui"))


def imported(module):
    """The project's modules that one imports, at its top or within a function."""
    with open(MODULES[module], encoding="utf-8") as file:
        tree = ast.parse(file.read())
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found.intersection(MODULES)


def floor(module):
    """How high a module lies; None for the programs and MNISTdsource, on top of the library."""
    for height, rooms in enumerate(FLOORS):
        if any(module == room or module.startswith(room + ".") for room in rooms):
            return height
    return None


def test_imports_go_down_never_round_and_never_to_a_program():
    arrows = {module: imported(module) for module in MODULES}
    graphlib.TopologicalSorter(arrows).prepare()  # raises CycleError
    programs = {module for module, path in MODULES.items() if "." not in module
                and "run_program(main)\n" in open(path, encoding="utf-8").read()}
    assert len(programs) == 10
    wrong = [(module, other) for module in MODULES for other in arrows[module]
             if other in programs or None not in (floor(module), floor(other))
             and floor(other) > floor(module)]
    assert not wrong
