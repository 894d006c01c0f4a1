"""Run the notebook docs/MNIST.ipynb from top to bottom, and keep what it prints and draws.

  python docs/run_notebook.py

Needs nbclient and ipykernel (requirements/test.txt). What differs from run to run and says nothing
(times of execution, the path of this folder) is left out.
"""

import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(HERE))

from mnist.cli import make_parser, run_program
from mnist.files import write_atomically

NOTEBOOK = os.path.join(HERE, "MNIST.ipynb")


def main():
    make_parser(__doc__).parse_args()
    import nbformat
    text = nbformat.writes(execute(NOTEBOOK))
    with write_atomically(NOTEBOOK) as file:
        file.write((text + "\n").encode())


def execute(path):
    """The notebook at `path` with the outputs of a run; an error in it is raised."""
    import nbformat
    from nbclient import NotebookClient
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=600, kernel_name="python3", record_timing=False,
                   resources={"metadata": {"path": HERE}}).execute()
    notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python",
                                        "name": "python3"}, "language_info": {"name": "python"}}
    return notebook


if __name__ == "__main__":
    run_program(main)
