"""Pages that programs fill: between two marks of theirs, a table made from records."""

import json
import os

from mnist.errors import MNISTError
from mnist.files import write_atomically

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def fill(page, name, text):
    """Put `text` between the marks called `name` of a page, a path from the project's folder.

    Raises MNISTError where it lacks them.
    """
    path = os.path.join(ROOT, page)
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    with open(path, encoding="utf-8") as file:
        content = file.read()
    if begin not in content or end not in content:
        raise MNISTError(f"{page} lacks the lines between which the table goes: {begin}, {end}")
    before, after = content.split(begin)[0], content.split(end)[1]
    with write_atomically(path) as file:
        file.write(f"{before}{begin}\n{text}\n{end}{after}".encode())


def read_json(path):
    with open(path, encoding="utf-8") as file:
        return json.load(file)
