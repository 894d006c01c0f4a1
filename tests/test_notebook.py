"""The notebook runs from top to bottom and prints what it was committed with, numbers apart."""

import json
import os
import re
import sys

import pytest

from mnist.files import ROOT

pytest.importorskip("nbclient", reason="pip install -r requirements/test.txt")
pytest.importorskip("ipykernel", reason="pip install -r requirements/test.txt")

DOCS = os.path.join(ROOT, "docs")
sys.path.insert(0, DOCS)
import run_notebook  # noqa: E402


@pytest.fixture(scope="module")
def committed():
    with open(run_notebook.NOTEBOOK, encoding="utf-8") as file:
        return json.load(file)


def code_cells(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def source(cell):
    return "".join(cell["source"])


def outputs(cell):
    """What a cell printed, numbers struck out and reasons of engines that are missing left out, and
    how many pictures it drew."""
    printed = "".join("".join(output.get("text", "")) for output in cell["outputs"])
    lines = [re.sub(r"\s*[\d.,]+", " N", line) for line in printed.splitlines()
             if " cpu " in line or not re.match(r"[\w-]+ +(on )?(cuda|cpu)|warning: ", line)]
    return lines, sum("image/png" in output.get("data", {}) for output in cell["outputs"])


def test_it_is_committed_with_its_outputs_and_without_traces_of_the_machine(committed):
    text = json.dumps(committed)
    assert not re.search(r"/(home|root|tmp|work|Users)/", text)
    assert "Traceback" not in text and "warning" not in text.lower()
    numbers = [cell["execution_count"] for cell in code_cells(committed)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert sum(outputs(cell)[1] for cell in code_cells(committed)) == 12
    assert all(output["output_type"] != "error" for cell in code_cells(committed)
               for output in cell["outputs"])
    assert os.path.getsize(run_notebook.NOTEBOOK) < 1.5e6


@pytest.mark.slow
@pytest.mark.mnist
def test_it_says_the_same_when_run_again(committed, mnist_dir, monkeypatch):
    monkeypatch.setenv("MNIST_DATA", str(mnist_dir))
    again = json.loads(json.dumps(run_notebook.execute(run_notebook.NOTEBOOK)))
    for before, after in zip(code_cells(committed), code_cells(again)):
        if "gtsrb.pth" not in source(before):  # whose images may not be at hand
            assert outputs(after) == outputs(before), source(before)
