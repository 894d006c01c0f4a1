"""The commands that docs/programs.md shows, run; links; tables made from records."""

import glob
import os
import re
import shlex
import shutil

import pytest
from scripts import ROOT, copy_programs, run

# What makes a command quick; it changes no more than numbers.
QUICK = {"InferenceMNIST.py": ["--seconds", "0"],
         "CompressMNIST.py": ["--epochs", "1"], "SearchMNIST.py": ["--trials", "2"]}
ELSEWHERE = ("CompareMNIST.py",)  # test_compare.py


def shown():
    """(command, what is shown below it) of each block of docs/programs.md that begins with
    `$ python`."""
    with open(os.path.join(ROOT, "docs", "programs.md"), encoding="utf-8") as file:
        blocks = re.findall(r"^```\w*\n(\$ python .*?)^```$", file.read(), re.M | re.S)
    for block in blocks:
        for part in re.split(r"^\$ ", block, flags=re.M)[1:]:
            command, _, output = part.partition("\n")
            yield command, output


COMMANDS = dict(shown())


@pytest.fixture
def copy(tmp_path, small_mnist):
    """A copy of the programs, with few digits in its data/."""
    return copy_programs(tmp_path / "copy", small_mnist)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_prints_what_the_page_shows(copy, command, monkeypatch):
    program, *flags = shlex.split(command)[1:]
    if program in ELSEWHERE:
        pytest.skip("another test runs it")
    if program == "InfMNISTcudaRT.py":
        pytest.importorskip("tensorrt_rtx")
    monkeypatch.setenv("MNIST_DATA", "")
    out, _ = run(copy / program, *flags, *QUICK.get(program, []), cwd=copy)
    check_columns(command, out)


def check_columns(command, out):
    """That the tables' columns are the page's: its words above a line of dashes."""
    for header in re.findall(r"^(.*)\n.*\n-{20,}$", COMMANDS[command], re.M):
        assert header.split() in [line.split() for line in out.splitlines()], header


def test_the_page_shows_commands():
    assert len(COMMANDS) >= 4


def test_tables_made_from_records_are_as_the_records_have_them(copy):
    """Run where the pages are copied to, the programs that fill them change nothing."""
    shutil.copy(os.path.join(ROOT, "README.md"), copy)
    for name in ("docs", "results"):
        shutil.copytree(os.path.join(ROOT, name), copy / name)
    run(copy / "results" / "make_pages.py")
    for page in ("docs/networks.md", "docs/search.md", "docs/compression.md", "results/README.md"):
        with open(os.path.join(ROOT, page), encoding="utf-8") as file:
            assert file.read() == (copy / page).read_text(encoding="utf-8"), page


PAGES = ["README.md", "CONTRIBUTING.md"] + [
    os.path.relpath(path, ROOT) for folder in ("docs", "data", "weights", "results")
    for path in glob.glob(os.path.join(ROOT, folder, "*.md"))]


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    with open(os.path.join(ROOT, page), encoding="utf-8") as file:
        links = re.findall(r"\]\(([^)#\s]+)", file.read())
    folder = os.path.dirname(os.path.join(ROOT, page))
    assert not [link for link in links if "://" not in link
                and not os.path.exists(os.path.join(folder, link))]
