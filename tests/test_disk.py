"""A full disk, folders without permission, a folder in place of a file: one line, nothing lost."""

import ctypes
import os
import resource
import subprocess
import sys

import pytest
from scripts import run, run_here

import mnist.bench.processes  # noqa: F401 - knows the engines before a test replaces them
from mnist.engines import registry
from mnist.models.weights import SHIPPED

SHIPPED_NET = os.path.join(SHIPPED, "net.pth")

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux's ways to fail")


def heed_permissions():
    """In a child before it runs: root, too, needs a file's permission (it gives up the two
    capabilities that override them; see capabilities(7))."""
    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP


@pytest.fixture
def forbid():
    """Take permissions from paths, and give them back."""
    changed = []

    def forbid(path, mode):
        path.chmod(mode)
        changed.append(path)
        return path
    yield forbid
    for path in reversed(changed):
        path.chmod(0o755)


@pytest.fixture
def full_disk(tmp_path):
    """A folder that takes no more than a megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)],
                             capture_output=True)
    if mounted.returncode:
        pytest.skip("no permission to mount a small file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_full_disk(small_mnist, full_disk):
    (full_disk / "net.pth").write_bytes(b"weights of old")
    _, err = run("TrainMNIST.py", "--data-dir", small_mnist, "--epochs", 1, "--threads", 1,
                 "--output", full_disk / "net.pth", status=1)
    assert err.startswith(f"error: can't write {full_disk}/net.pth.resume: ")
    assert err.count("\n") == 1 and os.listdir(full_disk) == ["net.pth"]
    assert (full_disk / "net.pth").read_bytes() == b"weights of old"


def test_full_disk_for_a_record(small_mnist, tmp_path):
    (tmp_path / "record.json").write_text("{}")
    _, err = run("InferenceMNIST.py", "--data-dir", small_mnist, "--limit", 10, "--seconds", 0,
                 "--batch-size", 64, "--json", tmp_path / "record.json", status=1,
                 prepare=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100)))
    assert err == f"error: can't write {tmp_path}/record.json: File too large\n"
    assert os.listdir(tmp_path) == ["record.json"]
    assert (tmp_path / "record.json").read_text() == "{}"


def test_a_smaller_network_that_finds_no_room_leaves_the_others(small_mnist, full_disk,
                                                                monkeypatch):
    (full_disk / "net-clustered.pth").write_bytes(b"of old")
    monkeypatch.setattr(registry, "ENGINES", {"onnxruntime": registry.ENGINES["onnxruntime"]})
    out, err = run_here("CompressMNIST.py", "--data-dir", small_mnist, "--method", "int8",
                        "clustered", "--output-dir", full_disk, "--threads", 1, "--no-tuning",
                        "--repeat", 1, "--weights", SHIPPED_NET, status=1)
    assert f"warning: clustered is missing: can't write {full_disk}/net-clustered.pth: " in err
    assert out.count("\noriginal ") == out.count("\nint8 ") == 2  # in both tables
    assert os.listdir(full_disk) == ["net-clustered.pth"]
    assert (full_disk / "net-clustered.pth").read_bytes() == b"of old"


@pytest.mark.parametrize("program, flag", [("TrainMNIST.py", "--output"),
                                           ("InferenceMNIST.py", "--json")])
def test_read_only_folder(small_mnist, tmp_path, forbid, program, flag):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "old").write_bytes(b"of old")
    forbid(folder, 0o555)
    _, err = run(program, "--data-dir", small_mnist, flag, folder / "old", status=2,
                 prepare=heed_permissions)
    assert err == f"error: {flag} {folder}/old: no permission to write in {folder}\n"
    assert os.listdir(folder) == ["old"] and (folder / "old").read_bytes() == b"of old"


def test_data_without_permission(small_mnist, tmp_path, forbid):
    folder = tmp_path / "data"
    folder.mkdir()
    for path in small_mnist.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    images = forbid(folder / "t10k-images-idx3-ubyte", 0o000)
    _, err = run("InferenceMNIST.py", "--data-dir", folder, status=1, prepare=heed_permissions)
    assert err == f"error: can't read {images}: Permission denied\n"
    forbid(folder, 0o000)
    _, err = run("InferenceMNIST.py", "--data-dir", folder, status=2, prepare=heed_permissions)
    assert err == f"error: {folder}, where mnist should be, is not a folder that can be read\n"
