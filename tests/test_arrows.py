"""The map of the project: which file imports which, and how long they are."""

import ast
import glob
import os

import graphlib
from scripts import ROOT

NAMES = [os.path.basename(path)[:-3] for path in glob.glob(os.path.join(ROOT, "*.py"))]


def tree(name):
    with open(os.path.join(ROOT, name + ".py"), encoding="utf-8") as file:
        return ast.parse(file.read())


def imported(name):
    """The project's files that one imports, at its top or within a function."""
    found = set()
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module)
    return found.intersection(NAMES)


def test_no_two_files_import_each_other_however_far_around():
    arrows = {name: imported(name) for name in NAMES}
    assert sum(map(len, arrows.values())) > 100
    graphlib.TopologicalSorter(arrows).prepare()  # raises CycleError


def test_no_file_imports_a_program():
    programs = [name for name in NAMES if any(
        isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree(name).body)]
    assert len(programs) == 9
    assert not [(name, imported(name)) for name in NAMES if imported(name).intersection(programs)]


def test_no_file_is_too_long_to_be_read_at_a_stretch():
    for name in NAMES:
        with open(os.path.join(ROOT, name + ".py"), encoding="utf-8") as file:
            assert len(file.readlines()) <= 450, name
