"""TransferMNIST.py: backbones, values to predict, and what often goes wrong elsewhere."""

import base64
import hashlib
import json
import shutil
import types

import numpy as np
import pytest
import torch
from PIL import Image
from scripts import run_here
from test_image_sets import noise

from mnist.datasets import targets
from mnist.datasets.folder import to_shape
from mnist.datasets.image_set import ImageSet
from mnist.engines import registry
from mnist.errors import UnavailableError
from mnist.models.backbones import Transfer, find_transfer, load_pretrained, transfer_name
from mnist.models.fold import fold
from mnist.models.weights import load_network, read_state
from mnist.training.augment import augment
from mnist.training.loop import make_generator
from MNISTdsource import find_image_set

LITE0 = "efficientnet-lite0"
FRAMES = ImageSet(
    "frames", (3, 20, 20), ("x", "y"), (0.5,) * 3, (0.25,) * 3, "regression", "frames")


@pytest.fixture
def photos(tmp_path):
    """Two classes of six pictures, light ones and dark ones."""
    for level, name in enumerate(("dark", "light")):
        folder = tmp_path / "photos" / name
        folder.mkdir(parents=True)
        for number in range(6):
            picture = noise(30, 40, 3, seed=number) // 4 + 150 * level
            Image.fromarray(picture.astype(np.uint8)).save(folder / f"{number}.png")
    return tmp_path / "photos"


def transfer(tmp_path, *flags, **settings):
    return run_here("TransferMNIST.py", "--backbone", LITE0, "--pretrained", "none", "--size", 32,
                    "--epochs", 1, "--threads", 1, "--output", tmp_path / "transfer.pth", *flags,
                    **settings)


# --- Backbones ------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", [LITE0, "resnet18", "mobilenet_v2", "squeezenet1_1"])
def test_a_backbone_gets_a_head_of_its_own(backbone):
    if backbone != LITE0:
        pytest.importorskip("torchvision")
    name = transfer_name(backbone, 64, bgr=True)
    net = find_transfer(name)((3, 20, 30), 7).eval()
    with torch.no_grad():
        outputs = net(torch.zeros(2, 3, 20, 30))
    assert outputs.shape == (2, 7) and net.bgr and net.size == 64
    assert torch.allclose(outputs.exp().sum(1), torch.ones(2))


def test_lite0_has_the_parameters_of_the_paper_s_network():
    net = Transfer((3, 224, 224), 1000, LITE0)
    assert sum(parameter.numel() for parameter in net.parameters()) == 4652008


def test_pretrained_weights_are_held_against_the_digits_in_their_name(tmp_path):
    """As torchvision's resnet18-f37072fd.pth: right names and shapes, here with our own numbers."""
    models = pytest.importorskip("torchvision.models")
    mine = tmp_path / "mine.pth"
    torch.save(models.resnet18().state_dict(), mine)
    digits = hashlib.sha256(mine.read_bytes()).hexdigest()[:8]
    right, wrong = (str(shutil.copy(mine, tmp_path / f"resnet18-{name}.pth"))
                    for name in (digits, "f37072fd"))
    net = Transfer((3, 32, 32), 4, "resnet18", 32)
    before = net.backbone.conv1.weight.clone()
    load_pretrained(net, read_state, right)
    assert not torch.equal(net.backbone.conv1.weight, before)
    assert not any(module.training for module in net.train().modules()
                   if isinstance(module, torch.nn.BatchNorm2d))  # their averages are kept
    with pytest.raises(UnavailableError, match=f"SHA-256 begins with {digits}, not f37072fd"):
        load_pretrained(net, read_state, wrong)
    with pytest.raises(UnavailableError, match="isn't of resnet34"):
        load_pretrained(Transfer((3, 32, 32), 4, "resnet34", 32), read_state, str(mine))


@pytest.mark.parametrize("flags, words", [
    (["--pretrained", "nowhere.pth"], "there is no file nowhere.pth"),
    (["--backbone", "nonsense"], "nonsense")])
def test_weights_that_cannot_be_had_are_told_in_a_line(photos, tmp_path, flags, words):
    _, err = transfer(tmp_path, "--data", photos, *flags, status=2)
    assert words in err


def test_bgr_weights_see_the_channels_turned_round():
    torch.manual_seed(0)
    net = Transfer((3, 32, 32), 3, LITE0, 32).eval()
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        plain = net(x.flip(1))
        net.bgr = True
        assert torch.equal(net(x), plain)


def test_a_stopped_transfer_goes_on_to_the_same_weights(photos, tmp_path, monkeypatch):
    flags = "--data", photos, "--epochs", 2
    transfer(tmp_path, *flags)
    whole = load_network(str(tmp_path / "transfer.pth")).net.state_dict()
    assert not (tmp_path / "transfer.pth.resume").exists()
    from mnist.training import state
    save = state.save_state

    def save_and_stop(*arguments):
        save(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(state, "save_state", save_and_stop)
        _, err = transfer(tmp_path, *flags, status=130)
        assert "the same command with --resume goes on" in err
        _, err = transfer(tmp_path, *flags, status=130)
        assert "the unfinished run in" in err and "is lost" in err
    out, _ = transfer(tmp_path, *flags, "--resume")
    assert "resuming after epoch 1 of 2" in out and "this takes up to 0.1 GiB of memory" in out
    again = load_network(str(tmp_path / "transfer.pth")).net.state_dict()
    assert all(torch.equal(whole[key], again[key]) for key in whole)
    _, err = transfer(tmp_path, *flags, "--resume", status=2)
    assert "there is no unfinished run" in err


# --- The five complaints --------------------------------------------------------------------------


def test_one_preprocessing_in_training_evaluation_engine_and_server(photos, tmp_path):
    """A picture has the same outputs on every way, and the classes keep their order."""
    from mnist.serving.page import PageRoutes
    transfer(tmp_path, "--data", photos, "--plot", tmp_path / "mistakes.svg")
    assert "transfer.pth: " in (tmp_path / "mistakes.svg").read_text()
    network = load_network(str(tmp_path / "transfer.pth"))
    assert network.image_set.classes == ("dark", "light")
    picture = noise(50, 70, 3, seed=9)
    image = to_shape(picture, network.image_set.shape)
    reference = registry.reference_log_probs(network, image[None])
    with torch.no_grad():
        raw = fold(network.net, network.image_set)(torch.from_numpy(image[None]).float())
    np.testing.assert_allclose(raw.numpy(), reference, atol=1e-3)
    for name in ("torch", "onnxruntime"):
        if not registry.why_not(name):
            engine = registry.open_engine(name, network, batch_size=1, tuning=False, threads=1)
            np.testing.assert_allclose(engine(image[None]), reference, atol=1e-3)
    model = types.SimpleNamespace(network=network)
    prepared = json.loads(PageRoutes({}, {}).prepared(model, picture).body)
    assert base64.b64decode(prepared["image"]) == image.tobytes()


def test_what_lies_across_changes_its_sign_when_a_frame_is_flipped():
    """A clicked pixel p becomes w-1-p, exactly."""
    pixels = torch.tensor([3.0, 20.0, 0.0] * 20)
    wanted = torch.stack([(pixels - 10) / 10, torch.full((60,), 0.25)], 1)
    x = torch.arange(20.0).expand(60, 3, 20, 20)
    flipped, values = augment(FRAMES, x, wanted, make_generator("cpu", 0))
    turned = flipped[:, 0, 0, 0] > flipped[:, 0, 0, 19]
    assert 15 < turned.sum() < 45
    assert torch.allclose(values[turned][:, 0], ((19 - pixels[turned]) - 10) / 10)
    assert torch.equal(values[~turned], wanted[~turned]) and (values[:, 1] == 0.25).all()


# --- Values ---------------------------------------------------------------------------------------


def test_splits_of_a_table_by_any_spelling(tmp_path):
    for number in range(4):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{number}.png")
    table = tmp_path / "table.csv"
    table.write_text("image,angle,split\n0.png,0,Train\n1.png,1,test \n2.png,0,valid\n3.png,1,\n")
    frames = targets.find_frames(str(tmp_path))[1]
    for split, names in (("train", ["0.png", "3.png"]), ("test", ["1.png"])):
        assert [frame.path[-5:] for frame in targets.frames_of_split(frames, split)] == names
    table.write_text("image,angle,split\n0.png,0,someday\n")
    with pytest.raises(UnavailableError, match="line 2: the split someday"):
        targets.find_frames(str(tmp_path))


def test_values_from_names_csv_and_catalogs(tmp_path):
    uuid = "40ab7cec-9630-11f1-bdbe-02178c8ee66d"
    for folder, name in (("jetbot", f"xy_050_010_{uuid}.jpg"), ("jetracer", f"100_020_{uuid}.jpg"),
                         ("csv", "a.jpg"), ("tub", "1_cam_image_array_.jpg")):
        (tmp_path / folder).mkdir()
        Image.fromarray(noise(40, 100, 3)).save(tmp_path / folder / name)
    (tmp_path / "csv" / "labels.csv").write_text("image,angle,throttle\na.jpg,-0.5,1\n")
    (tmp_path / "tub" / "catalog_0.catalog").write_text(json.dumps(
        {"cam/image_array": "1_cam_image_array_.jpg", "user/angle": 0.25, "_index": 1}) + "\n")
    for folder, expected in (("jetbot", (0.0, -0.5)), ("jetracer", (1.0, 0.0)), ("csv", (-0.5,)),
                             ("tub", (0.25,))):
        names, frames = targets.find_frames(str(tmp_path / folder))
        _, values, _ = targets.decode_frames(frames, (3, 8, 8))
        assert values[0].tolist() == pytest.approx(list(expected)) and len(names) == len(expected)


def test_frames_are_parted_by_time_where_there_is_an_order():
    frames = [targets.Frame(str(k), (0.0,), time=float(10 - k)) for k in range(10)]
    assert [frame.path for frame in targets.frames_of_split(frames, "test")] == ["1", "0"]


@pytest.mark.parametrize("content, words", [
    ("image,angle\na.jpg,2\n", "values go from -1 to 1, not from 2 to 2: scale them"),
    ("image,angle\na.jpg,left\n", "line 2: not a number"),
    ("image,angle\nb.jpg,0\n", "there is no picture b.jpg"),
])
def test_a_table_that_is_wrong_is_told_in_a_line(tmp_path, content, words):
    Image.fromarray(noise(9, 9, 3)).save(tmp_path / "a.jpg")
    (tmp_path / "labels.csv").write_text(content)
    with pytest.raises(UnavailableError, match=words):
        targets.decode_frames(targets.find_frames(str(tmp_path))[1], (3, 8, 8))


@pytest.mark.parametrize("content", ["image,label\na.jpg,cat\n", "number,width\n1,32\n",
                                     "image\na.jpg\n"])
def test_a_table_of_something_else_beside_folders_of_classes(tmp_path, content):
    for name in ("cat/a.png", "cat/b.png", "cat/c.png", "dog/d.png", "dog/e.png", "dog/f.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(noise(9, 9, 3)).save(tmp_path / name)
    (tmp_path / "list.csv").write_text(content)
    assert find_image_set(str(tmp_path)).classes == ("cat", "dog")


def test_values_are_learned_judged_and_drawn(tmp_path):
    folder = tmp_path / "frames"
    folder.mkdir()
    lines = ["image,angle,timestamp_ms"]
    for number in range(20):
        Image.fromarray(noise(24, 24, 3, seed=number)).save(folder / f"{number}.png")
        lines.append(f"{number}.png,{number / 20 - 0.5},{number}")
    (folder / "labels.csv").write_text("\n".join(lines))
    out, _ = transfer(tmp_path, "--data", folder, "--plot", tmp_path / "values.png")
    assert "angle: RMSE" in out and "always the mean" in out
    assert (tmp_path / "values.png").stat().st_size > 5000
    network = load_network(str(tmp_path / "transfer.pth"))
    assert network.image_set.task == "regression" and network.image_set.classes == ("angle",)
    out, _ = run_here("InferenceMNIST.py", "--weights", tmp_path / "transfer.pth", "--data", folder,
                      "--repeat", 1, "--batch-size", 2, "--threads", 1, "--mistakes",
                      tmp_path / "worst.png")
    assert "RMSE" in out and "correct" not in out
    assert (tmp_path / "worst.png").read_bytes()[:4] == b"\x89PNG"
