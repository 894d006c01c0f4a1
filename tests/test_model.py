"""The network, its weights on disk, and the weights files that other people send."""

import os
import zipfile

import fuzz_files
import pytest
import torch

from mnist.datasets.image_set import MNIST
from mnist.errors import MNISTError, UnavailableError
from mnist.models.weights import load_network, save_weights
from MNISTmodel import Net


class RunsCode:
    """A pickle of this makes a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


heeds_pickle_module = pytest.mark.skipif(
    torch.__version__.startswith("1.13."), reason="torch.load of 1.13 ignores its pickle_module")


@pytest.fixture(params=["zip", "legacy"])
def torch_save(request):
    """torch.save in both of its file formats."""
    def save(thing, path):
        torch.save(thing, path, _use_new_zipfile_serialization=request.param == "zip")
        return path
    return save


def same_weights(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters()))


def test_network_is_the_samples(net):
    assert {key: tuple(tensor.shape) for key, tensor in net.state_dict().items()} == {
        "conv1.weight": (20, 1, 5, 5), "conv1.bias": (20,),
        "conv2.weight": (50, 20, 5, 5), "conv2.bias": (50,),
        "fc1.weight": (500, 800), "fc1.bias": (500,),
        "fc2.weight": (10, 500), "fc2.bias": (10,)}


def test_weights_come_back_as_saved(net, tmp_path):
    net = net.to(memory_format=torch.channels_last)
    save_weights(net, tmp_path / "net.pth")
    loaded = load_network(tmp_path / "net.pth").net
    assert same_weights(net, loaded) and not loaded.training
    assert os.listdir(tmp_path) == ["net.pth"]


def test_state_dict_of_either_format(net, tmp_path, torch_save):
    assert same_weights(net, load_network(torch_save(net.state_dict(), tmp_path / "net.pth")).net)


def test_pickled_module_is_refused_unless_trusted(net, tmp_path, torch_save):
    path = torch_save(net, tmp_path / "module.pth")
    with pytest.raises(MNISTError, match="(?s)names code to run.*--trust-pickle"):
        load_network(path)
    assert same_weights(net, load_network(path, trust_pickle=True).net)


def test_code_in_a_pickle_is_not_run(tmp_path, torch_save):
    path = torch_save({"conv1.weight": RunsCode(tmp_path / "proof")}, tmp_path / "evil.pth")
    with pytest.raises(MNISTError, match="refused"):
        load_network(path)
    assert not (tmp_path / "proof").exists()
    with pytest.raises(MNISTError):  # the trap does work: the file isn't weights, but code ran
        load_network(path, trust_pickle=True)
    assert (tmp_path / "proof").exists()


@heeds_pickle_module
def test_without_weights_only_nothing_is_run_either(net, tmp_path, torch_save, monkeypatch):
    """torch before 1.13 has no weights_only: our own unpickler stands in."""
    from mnist.models import weights
    torch_load = torch.load
    monkeypatch.setattr(weights, "HAS_WEIGHTS_ONLY", False)
    monkeypatch.setattr(torch, "load", lambda *args, **named: torch_load(
        *args, weights_only=False, **named))
    evil = torch_save({"conv1.weight": RunsCode(tmp_path / "proof")}, tmp_path / "evil.pth")
    with pytest.raises(MNISTError, match="refused"):
        load_network(evil)
    assert not (tmp_path / "proof").exists()
    with pytest.raises(MNISTError, match="refused"):
        load_network(torch_save(net, tmp_path / "module.pth"))
    assert same_weights(net, load_network(torch_save(net.state_dict(), tmp_path / "net.pth")).net)


@pytest.mark.parametrize("damage, words", [
    (lambda state: state.pop("fc1.bias"), "fc1.bias is missing"),
    (lambda state: state.update({"fc1.weight": torch.zeros(3, 4)}),
     r"fc1.weight has shape \(3, 4\)"),
    (lambda state: state.update({"fc3.weight": torch.zeros(1)}), "fc3.weight, unknown"),
    (lambda state: state.update({"fc2.bias": torch.zeros(10).long()}),
     "fc2.bias holds torch.int64"),
    (lambda state: state.update({"fc2.bias": [0] * 10}), "fc2.bias is missing"),
], ids=["missing", "shape", "unknown", "dtype", "no tensor"])
def test_foreign_state_names_the_tensor(net, tmp_path, damage, words):
    state = dict(net.state_dict())
    damage(state)
    torch.save(state, tmp_path / "net.pth")
    with pytest.raises(MNISTError, match=words):
        load_network(tmp_path / "net.pth")


def test_no_weights_file(tmp_path):
    with pytest.raises(UnavailableError, match="no weights file.*TrainMNIST.py"):
        load_network(tmp_path / "net.pth")
    with pytest.raises(UnavailableError):
        load_network(tmp_path)


def test_a_zip_bomb_is_not_expanded(net, tmp_path):
    path = tmp_path / "net.pth"
    save_weights(net, path)
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in records.items():
            archive.writestr(name, bytes(300 << 20) if name.endswith("/data/4") else content)
    assert fuzz_files.is_refused(load_network, str(path))  # within 200 MB and a second
    with pytest.raises(MNISTError, match="bytes packed into fewer"):
        load_network(path)


def test_what_is_no_whole_weights_file_is_refused(net, tmp_path):
    path = tmp_path / "net.pth"
    save_weights(net, path)
    whole = path.read_bytes()
    half = len(whole) // 2
    flipped = whole[:half] + bytes([whole[half] ^ 1]) + whole[half + 1:]
    for content, words in ((whole[:100], "damaged"), (whole[:half], "damaged"),
                           (whole[:-1], "damaged"), (flipped, "wrong checksum"),
                           (b"", "net.pth"), (b"hello", "net.pth"), (b"\x80\x02K\x01.", "net.pth")):
        path.write_bytes(content)
        with pytest.raises(MNISTError, match=words):
            load_network(path)


@pytest.mark.parametrize("wrap", [
    lambda state: {"state_dict": state, "epoch": 3}, lambda state: {"model_state_dict": state},
    lambda state: {"module." + key: value for key, value in state.items()},
    lambda state: {"_orig_mod." + key: value for key, value in state.items()},
    lambda state: {"state_dict": {"model." + key: value for key, value in state.items()},
                   "pytorch-lightning_version": "2.0"}])
def test_wrapped_weights_are_unwrapped_with_a_word(tmp_path, capsys, wrap):
    net = Net()
    torch.save(wrap(net.state_dict()), tmp_path / "wrapped.pth")
    loaded = load_network(str(tmp_path / "wrapped.pth")).net
    assert torch.equal(loaded.fc2.weight, net.fc2.weight)
    assert "wrapped.pth: " in capsys.readouterr().err


def test_what_is_no_weights_file_is_named_for_what_it_is(tmp_path):
    torch.jit.save(torch.jit.trace(Net(), torch.zeros(1, 1, 28, 28)), str(tmp_path / "net.pt"))
    with pytest.raises(UnavailableError, match="is TorchScript, a program"):
        load_network(str(tmp_path / "net.pt"))
    for name, words in (("a.npz", "numpy's"), ("a.rt", "a TensorRT engine"),
                        ("a.onnx", "give the .pth file.*--precision int8")):
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(UnavailableError, match=words):
            load_network(str(tmp_path / name))


def test_weights_carry_their_image_set_and_stay_a_plain_state_dict(tmp_path):
    image_set = MNIST._replace(name="pets", shape=(3, 28, 28), classes=("cat", "dog"),
                               mean=(0.5,) * 3, std=(0.2,) * 3)
    net = Net(image_set.shape, 2)
    save_weights(net, tmp_path / "a.pth", "net", image_set)
    Net(image_set.shape, 2).load_state_dict(torch.load(tmp_path / "a.pth"))
    os.rename(tmp_path / "a.pth", tmp_path / "b.pth")
    assert load_network(str(tmp_path / "b.pth")).image_set == image_set
