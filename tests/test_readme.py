"""The commands that docs/programs.md shows, run: they print what it shows; links and tables.

Left out of the comparison: numbers, how wide a column is, what describes the machine, warnings, and
what README itself leaves out, at a line "…".
"""

import difflib
import glob
import os
import re
import shlex
import shutil

import pytest
from scripts import ROOT, run

# What makes a command quick; it changes no more than numbers.
QUICK = {"CompareMNIST.py": ["--seconds", "0"], "InferenceMNIST.py": ["--seconds", "0"],
         "CompressMNIST.py": ["--epochs", "1"], "SearchMNIST.py": ["--trials", "2"]}
HANDS_OFF = ("GraphMNIST.py", "ServeMNIST.py")  # these run until somebody ends them


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


def shape(text):
    """The lines of an output, without what differs from run to run and from machine to machine."""
    kept = []
    for paragraph in re.split(r"\n\s*\n", text):
        if re.search(r"^Python \d|^Intel|\d CPUs?,", paragraph, re.M):
            continue  # the machine and, right below it, the warnings
        for line in paragraph.splitlines():
            if re.match(r"warning:|  +what is there|device: |downloading ", line):
                continue
            line = re.sub(r"^(training .*digits):.*", r"\1", line)
            line = re.sub(r" skipped: .*", " skipped", line)
            if re.match(r" {15,}\S", line):
                continue  # a reason's second line
            line = re.sub(r"(?<![\w-])[-+]?(\d[\d.,]*\d|\d)(e[-+]?\d+)?x?|(?<= )-(?= )", "0", line)
            kept.append(" ".join(re.sub(r"-{3,}", "---", line).split()))
    return [line for line in kept if line]


def differences(expected, printed):
    """What README shows and isn't printed, or the other way round, as lines with - and +."""
    parts, at = [], 0  # what lies between README's "…", each to be found after the one before
    for line in [*expected, "…"]:
        if line == "…":
            parts.append(expected[at:expected.index("…", at) if "…" in expected[at:] else None])
            at += len(parts[-1]) + 1
    if len(parts) == 1:
        return [line for line in difflib.ndiff(expected, printed) if line[0] in "-+"]
    left = list(printed)
    for part in parts:
        while part and left[:len(part)] != part:
            if len(left) <= len(part):
                return ["- " + line for line in part]
            del left[0]
        del left[:len(part)]
    return []


@pytest.fixture
def copy(tmp_path, small_mnist):
    """A copy of the checkout, with few digits in its data/."""
    folder = tmp_path / "copy"
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(
        ".*", "__pycache__", "*.rt", "*.onnx", "NetMNIST*", "data"))
    shutil.copytree(small_mnist, folder / "data")
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_prints_what_the_page_shows(copy, command):
    program, *flags = shlex.split(command)[1:]
    if program in HANDS_OFF and "--help" not in flags:
        pytest.skip(f"{program} runs until somebody ends it")
    if program == "CompareMNIST.py":
        pytest.importorskip("torchvision", reason="README shows the usual loop, which needs it")
    if program == "InfMNISTcudaRT.py":
        pytest.importorskip("tensorrt_rtx")
    out, err = run(copy / program, *flags, *QUICK.get(program, []), cwd=copy,
                   env={"MNIST_DATA": ""})
    # What goes to stderr README shows at the place where it appears, or not at all.
    missing = differences(shape(COMMANDS[command]), shape(out.replace(str(copy) + os.sep, "")))
    said = shape(err.replace(str(copy) + os.sep, ""))
    missing = [line for line in missing if not (line[0] == "-" and line[2:] in said)]
    assert not missing, "\n".join(missing)


def test_the_page_shows_commands():
    assert len(COMMANDS) >= 4


def test_the_comparison_can_fail():
    table = "engine batch total\n-----\ntorch cpu fp32 1 3.8\ntorch cpu fp32 64 0.5\n"
    assert differences(shape(table), shape(table.replace("3.8", " 12.25"))) == []
    assert differences(shape(table), shape(table.replace("total", "seconds")))
    assert differences(shape(table), shape(table + "torch cuda fp32 1 2.0\n"))
    elided = "engine batch total\n-----\n…\ntorch cpu fp32 64 0.5\n"
    assert differences(shape(elided), shape(table)) == []
    assert differences(shape(elided), shape(table.replace("torch", "onnx")))


def test_tables_made_from_records_are_as_the_records_have_them(tmp_path):
    """Run where the pages are copied to, the programs that fill them change nothing."""
    for name in ("README.md", "docs", "results", "weights"):
        source, target = os.path.join(ROOT, name), str(tmp_path / name)
        (shutil.copytree if os.path.isdir(source) else shutil.copy)(source, target)
    shutil.copytree(os.path.join(ROOT, "mnist"), str(tmp_path / "mnist"))
    for source in glob.glob(os.path.join(ROOT, "MNIST*.py")):
        shutil.copy(source, str(tmp_path))
    networks, = glob.glob(os.path.join(ROOT, "results", "*-networks.json"))
    for program in ("make_readme.py", "make_search.py", f"make_networks.py {networks}"):
        run(*shlex.split(os.path.join(str(tmp_path), "results", program)))
    for page in ("docs/networks.md", "docs/search.md", "results/README.md"):
        with open(os.path.join(ROOT, page), encoding="utf-8") as file:
            assert file.read() == (tmp_path / page).read_text(encoding="utf-8"), page


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


def test_readme_is_short():
    with open(os.path.join(ROOT, "README.md"), encoding="utf-8") as file:
        assert len(file.readlines()) <= 120
