"""Image sets other than MNIST: what their files become, on made data and on the real."""

import glob
import os
import pickle
import re
import shutil
import sys
import types
import zipfile

import numpy as np
import pytest
from conftest import SHARED_DATA, idx_bytes
from PIL import Image
from scripts import ROOT, refused, run

import MNISTdsource
from mnist.datasets import cifar, download, folder, gtsrb
from mnist.errors import DataError, MNISTError, UnavailableError
from mnist.models.weights import load_network
from mnist.training.loop import hold_out
from MNISTdsource import IMAGE_SETS, Images, find_image_set, load_images, load_split


def write_idx(path, array):
    path.write_bytes(idx_bytes(array))


def noise(*shape, seed=0):
    return np.random.RandomState(seed).randint(0, 256, shape).astype(np.uint8)


# --- IDX kin --------------------------------------------------------------------------------------


def test_emnist_stands_upright_and_its_letters_count_from_0(tmp_path):
    images = noise(26, 28, 28)
    write_idx(tmp_path / "emnist-letters-test-images-idx3-ubyte", images)
    write_idx(tmp_path / "emnist-letters-test-labels-idx1-ubyte",
              np.arange(1, 27).astype(np.uint8))
    found, targets = load_split("test", str(tmp_path), "emnist-letters")
    assert np.array_equal(found[:, 0], images.transpose(0, 2, 1))
    assert targets.tolist() == list(range(26))


def test_qmnist_takes_the_class_of_its_eight_columns(tmp_path):
    labels = np.zeros((10, 8), np.int32)
    labels[:, 0] = np.arange(10)
    write_idx(tmp_path / "qmnist-test-images-idx3-ubyte", noise(10, 28, 28))
    write_idx(tmp_path / "qmnist-test-labels-idx2-int", labels)
    assert load_split("test", str(tmp_path), "qmnist")[1].tolist() == list(range(10))


def test_idx_files_of_your_own_have_their_own_size_mean_and_classes(tmp_path, capsys):
    images, labels = noise(30, 12, 20), (np.arange(30) % 3).astype(np.uint8)
    for split in ("train", "t10k"):
        write_idx(tmp_path / f"{split}-images-idx3-ubyte", images)
        write_idx(tmp_path / f"{split}-labels-idx1-ubyte", labels)
    image_set = find_image_set(str(tmp_path))
    assert (image_set.shape, image_set.classes) == ((1, 12, 20), ("0", "1", "2"))
    assert image_set.mean == pytest.approx(((images / 255).mean(),), abs=1e-4)
    assert image_set.std == pytest.approx(((images / 255).std(),), abs=1e-4)
    assert "30 images of 12×20, 3 classes" in capsys.readouterr().err
    assert load_images(image_set, "test", str(tmp_path)).images.shape == (30, 1, 12, 20)


# --- CIFAR-10 -------------------------------------------------------------------------------------


def test_both_versions_of_cifar10_are_the_same_images(tmp_path):
    images, labels = noise(20, 3072), (np.arange(20) % 10).astype(np.uint8)
    (tmp_path / "binary" / "cifar-10-batches-bin").mkdir(parents=True)
    (tmp_path / "binary" / "cifar-10-batches-bin" / "test_batch.bin").write_bytes(
        np.concatenate([labels[:, None], images], 1).tobytes())
    (tmp_path / "python").mkdir()
    (tmp_path / "python" / "test_batch").write_bytes(
        pickle.dumps({b"data": images, b"labels": labels.tolist()}, protocol=2))
    for version in ("binary", "python"):
        found, targets = load_split("test", str(tmp_path / version), "cifar10")
        assert np.array_equal(found.reshape(20, 3072), images)
        assert targets.tolist() == labels.tolist()


@pytest.mark.parametrize("name, content, words", [
    ("test_batch.bin", b"\0" * 3000, "has 3000 bytes, no multiple of 3073"),
    ("test_batch.bin", b"\x0b" + b"\0" * 3072, "the label 11, above 9: is it CIFAR-100's"),
    ("test_batch", pickle.dumps(os.system), "isn't a batch .*UnpicklingError"),
])
def test_a_batch_that_is_none_is_refused_by_name(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(MNISTError, match=words) as caught:
        cifar.read_cifar(str(tmp_path), "test")
    assert str(tmp_path / name) in str(caught.value)


# --- Traffic signs --------------------------------------------------------------------------------


def ppm(pixels, comment=b""):
    return b"P6\n%s%d %d\n255\n" % (comment, pixels.shape[1], pixels.shape[0]) + pixels.tobytes()


@pytest.fixture
def signs(tmp_path):
    """A folder with small zips of GTSRB: for each of 43 classes 2 tracks of 3 frames, and 9 test
    images."""
    with zipfile.ZipFile(tmp_path / "GTSRB_Final_Training_Images.zip", "w") as archive:
        for number in range(43 * 6):
            target, track, frame = number // 6, number // 3 % 2, number % 3
            archive.writestr(f"GTSRB/Final_Training/Images/{target:05}/{track:05}_{frame:05}.ppm",
                             ppm(noise(32, 32, 3, seed=number), b"# by OpenCV\n"))
    with zipfile.ZipFile(tmp_path / "GTSRB_Final_Test_Images.zip", "w") as archive:
        for number in range(9):
            archive.writestr(f"GTSRB/Final_Test/Images/{number:05}.ppm",
                             ppm(np.full((50, 64, 3), 20 * number, np.uint8)))
    with zipfile.ZipFile(tmp_path / "GTSRB_Final_Test_GT.zip", "w") as archive:
        archive.writestr("GT-final_test.csv", "Filename;Width;Height;ClassId\r\n" + "".join(
            f"{number:05}.ppm;64;50;{number + 3}\r\n" for number in range(9)))
    return tmp_path


def test_signs_from_the_zips_have_class_track_and_size(signs):
    data = load_images(gtsrb.GTSRB, "train", data_dir=str(signs))
    assert data.images.shape == (258, 3, 32, 32) and len(set(data.groups.tolist())) == 86
    assert data.targets.tolist() == [number // 6 for number in range(258)]
    assert np.array_equal(data.images[7].transpose(1, 2, 0), noise(32, 32, 3, seed=7))
    test = load_images(gtsrb.GTSRB, "test", data_dir=str(signs))
    assert test.targets.tolist() == list(range(3, 12)) and test.images[5].max() == 100


def test_signs_unpacked_are_the_same_as_from_the_zips(signs, tmp_path):
    zipped = load_images(gtsrb.GTSRB, "test", data_dir=str(signs))
    for name in ("GTSRB_Final_Test_Images.zip", "GTSRB_Final_Test_GT.zip"):
        with zipfile.ZipFile(signs / name) as archive:
            archive.extractall(tmp_path / "unpacked")
    assert load_images(gtsrb.GTSRB, "test", data_dir=str(tmp_path / "unpacked")).digest == \
        zipped.digest


def test_decoded_signs_are_kept_until_a_zip_changes(signs, monkeypatch):
    first = load_images(gtsrb.GTSRB, "test", data_dir=str(signs)).digest
    monkeypatch.setattr(gtsrb, "decode_ppm", None)  # nothing is decoded again
    assert load_images(gtsrb.GTSRB, "test", data_dir=str(signs)).digest == first
    os.utime(signs / "GTSRB_Final_Test_Images.zip", (1, 1))
    with pytest.raises(TypeError):
        load_images(gtsrb.GTSRB, "test", data_dir=str(signs))


def test_a_track_is_never_parted(signs):
    training, held_out = hold_out(load_images(gtsrb.GTSRB, "train", data_dir=str(signs)), "cpu")
    assert (len(training[1]), len(held_out[1])) == (129, 129)  # one track of the two of each class
    assert held_out[1].bincount().tolist() == [3] * 43


def test_what_is_held_out_of_images_sorted_by_class_is_of_all():
    targets = np.arange(600) // 60
    _, held_out = hold_out(Images(noise(600, 1, 8, 8), targets, None, "", ""), "cpu")
    assert len(held_out[1]) == 100 and set(held_out[1].tolist()) == set(range(10))


def test_a_damaged_ppm_is_refused_by_name():
    content = ppm(noise(32, 32, 3))
    with pytest.raises(MNISTError, match="x.ppm is damaged: 3071 bytes of pixels, not 32 × 32"):
        gtsrb.decode_ppm(content[:-1], "x.ppm")
    with pytest.raises(MNISTError, match="x.ppm isn't a PPM file"):
        gtsrb.decode_ppm(b"P5" + content, "x.ppm")


# --- A folder of pictures -------------------------------------------------------------------------

COLOURS = "blue", "green", "red"


@pytest.fixture
def photos(tmp_path):
    """A folder of pictures: 3 colours, 12 pictures each, of several formats and sizes."""
    for target, colour in enumerate(COLOURS):
        (tmp_path / colour).mkdir()
        for number in range(12):
            picture = np.clip(noise(40, 50 + number, 3, seed=number) // 4, 0, 255).astype(np.uint8)
            picture[..., 2 - target] += 150
            suffix = ("jpg", "png", "ppm")[number % 3]
            Image.fromarray(picture).save(tmp_path / colour / f"{number}.{suffix}")
    return tmp_path


def test_a_folder_of_pictures_is_split_by_class_and_brought_to_a_size(photos):
    image_set = find_image_set(str(photos), image_size=24)
    assert (image_set.shape, image_set.classes) == ((3, 24, 24), COLOURS)
    train, test = (load_images(image_set, split, str(photos)) for split in ("train", "test"))
    assert np.bincount(train.targets).tolist() == [10] * 3 and len(test.images) == 6
    assert (train.images.mean((2, 3)).argmax(1) == 2 - train.targets).all()
    assert all(len(part.unique()) == 3 for _, part in hold_out(train, "cpu"))  # all classes
    grey = find_image_set(str(photos), image_size=24, channels=1)
    assert load_images(grey, "test", str(photos)).images.shape == (6, 1, 24, 24)


def test_photos_teach_a_network_of_ones_own(photos, tmp_path_factory):
    weights = tmp_path_factory.mktemp("weights") / "own.pth"
    own = os.path.join(ROOT, "tests", "own_networks.py:ViewsOfColours")
    out, err = run("TrainMNIST.py", "--data", photos, "--network", own, "--image-size", 24,
                   "--epochs", 1, "--batch-size", 29, "--output", weights)  # one is left over
    assert "training on 30 images" in out
    for colour in COLOURS:  # pictures that came later, without any to train on
        os.renames(photos / colour, photos / "Testing" / colour)
    out, err = run("InferenceMNIST.py", "--data", photos, "--network", own, "--weights", weights,
                   "--repeat", 1)
    assert "on 36 test images" in out and "32×32" not in err


def test_targets_that_were_corrected_are_taken(photos, tmp_path_factory):
    for colour in COLOURS:
        os.renames(photos / colour, photos / "train" / colour)
    image_set = find_image_set(str(photos))
    load_images(image_set, "train", str(photos))
    os.rename(photos / "train" / "red" / "0.jpg", photos / "train" / "blue" / "of red.jpg")
    train = load_images(image_set, "train", str(photos))
    assert np.bincount(train.targets).tolist() == [13, 12, 11]
    frames = tmp_path_factory.mktemp("frames")
    for number in range(10):
        Image.fromarray(noise(8, 8, 3, seed=number)).save(frames / f"{number}.png")
    for sign in (1, -1):
        (frames / "table.csv").write_text("filename,angle\n" + "".join(
            f"{number}.png,{sign * number / 20}\n" for number in range(10)))
        image_set = find_image_set(str(frames))
        assert load_images(image_set, "train", str(frames)).targets[4, 0] == \
            pytest.approx(sign * 0.2)


def test_what_is_no_picture_is_named_and_left_out(photos, capsys):
    (photos / "red" / "text.jpg").write_text("no picture")
    (photos / "red" / "empty.png").write_bytes(b"")
    sixteen = noise(40, 40).astype(np.uint16) << 8
    Image.fromarray(sixteen).save(photos / "red" / "sixteen.png")
    Image.fromarray(noise(40, 40, 4), "CMYK").save(photos / "red" / "cmyk.jpg")
    frames = [Image.fromarray(np.full((40, 40), level, np.uint8)) for level in (200, 10)]
    frames[0].save(photos / "red" / "animated.gif", save_all=True, append_images=frames[1:])
    image_set = find_image_set(str(photos))
    assert 36 + 3 == sum(len(load_images(image_set, split, str(photos)).images)
                         for split in ("train", "test"))
    said = capsys.readouterr().err
    for name in ("text.jpg", "empty.png"):
        assert f"left out: can't read {photos}/red/{name}" in said
    pixels = folder.to_shape(folder.read_picture(str(photos / "red" / "sixteen.png")), (1, 40, 40))
    assert np.array_equal(pixels[0], sixteen >> 8)
    animated = folder.read_picture(str(photos / "red" / "animated.gif"))
    assert folder.to_shape(animated, (1, 9, 9)).mean() == 200  # the first picture


def test_a_folder_that_can_teach_nothing_is_refused(photos):
    for name in sorted(os.listdir(photos / "red"))[1:]:
        os.remove(photos / "red" / name)
    with pytest.raises(UnavailableError, match="class red has 1 picture"):
        find_image_set(str(photos))
    for colour in ("red", "green"):
        shutil.rmtree(photos / colour)
    with pytest.raises(UnavailableError, match="only the class blue"):
        find_image_set(str(photos))


def test_a_class_that_only_the_test_images_have_is_refused(photos):
    for colour, split in zip(COLOURS, ("train", "train", "val")):
        os.renames(photos / colour, photos / split / colour)
    image_set = find_image_set(str(photos))
    with pytest.raises(UnavailableError, match="test has the class red, which"):
        load_images(image_set, "test", str(photos))


# --- Downloads ------------------------------------------------------------------------------------


def test_without_torchvision_a_download_tells_the_way_by_hand(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(DataError, match="needs torchvision\nBy hand: put its files into"):
        download.fetch_by_torchvision("kmnist", "KMNIST", str(tmp_path), train=False)


@pytest.mark.parametrize("name, dataset, settings", [
    ("emnist-letters", "EMNIST", {"train": False, "split": "letters"}),
    ("cifar10", "CIFAR10", {"train": False}), ("gtsrb", "GTSRB", {"split": "test"})])
def test_each_set_is_asked_for_as_torchvision_knows_it(tmp_path, monkeypatch, name, dataset,
                                                       settings):
    asked = []
    datasets = types.SimpleNamespace(**{dataset: lambda folder, **how: asked.append(how)})
    monkeypatch.setitem(sys.modules, "torchvision", types.SimpleNamespace(datasets=datasets))
    MNISTdsource.SOURCES[name].fetch(str(tmp_path), "test")
    assert asked == [dict(settings, download=True)]


def test_torchvision_downloads_from_where_it_knows(tmp_path, monkeypatch):
    """Against a server that isn't there: what failed is told, with the way by hand."""
    datasets = pytest.importorskip("torchvision.datasets")
    monkeypatch.setattr(datasets.FashionMNIST, "mirrors", ["http://127.0.0.1:9/"])
    monkeypatch.setattr(MNISTdsource, "DEFAULT_DATA_DIR", str(tmp_path))
    with pytest.raises(DataError, match="couldn't be downloaded: .*\nBy hand"):
        load_split("test", data="fashion-mnist")


# --- The programs ---------------------------------------------------------------------------------


def test_a_network_of_your_pictures_from_training_to_timing(photos, tmp_path):
    weights = tmp_path / "mine.pth"
    out, err = run("TrainMNIST.py", "--data", photos, "--image-size", 28, "--epochs", 3,
                   "--augment", "--batch-size", 8, "--output", weights)
    assert "30 pictures to train on, brought to 28×28, 3 classes; a fifth" in err
    assert "training on 30 images of pictures in" in out and "% on" not in out
    network = load_network(str(weights))
    assert network.image_set.classes == COLOURS
    assert network.name == "pooled-80"
    os.rename(weights, tmp_path / "renamed.pth")  # the set travels with the weights
    out, _ = run("InferenceMNIST.py", "--weights", tmp_path / "renamed.pth", "--data", photos,
                 "--repeat", 1, "--batch-size", 4, "--mistakes", tmp_path / "mistakes.png")
    assert "on 6 test images of pictures in" in " ".join(out.split())
    assert (tmp_path / "mistakes.png").exists()
    _, err = refused("InferenceMNIST.py", "--weights", tmp_path / "renamed.pth")
    assert "say where they are with --data FOLDER" in err
    _, err = refused("InferenceMNIST.py", "--weights", tmp_path / "renamed.pth",
                     "--data", "cifar10")
    assert "images of 3×28×28 and 3 classes; cifar10 has 3×32×32 and 10" in err


def test_an_image_set_that_there_is_none_of_gets_a_hint():
    with pytest.raises(UnavailableError, match="no such image set; did you mean cifar10?"):
        find_image_set("cifar-10")
    with pytest.raises(UnavailableError, match="neither a folder nor one of mnist, fashion-mnist"):
        find_image_set("/no/such/photos")


def test_test_images_that_were_trained_on_are_told(signs):
    with zipfile.ZipFile(signs / "GTSRB_Final_Test_Images.zip", "a") as archive:
        archive.writestr("GTSRB/Final_Test/Images/00009.ppm", ppm(noise(32, 32, 3, seed=7)))
    with zipfile.ZipFile(signs / "GTSRB_Final_Test_GT.zip", "w") as archive:
        archive.writestr("GT-final_test.csv", "Filename;ClassId\r\n" + "".join(
            f"{number:05}.ppm;{number}\r\n" for number in range(10)))
    out, _ = run("TrainMNIST.py", "--data", "gtsrb", "--data-dir", signs, "--network", "resnet8",
                 "--epochs", 1, "--output", signs / "x.pth")
    assert "1 of the test images is also among the training images; accuracy" in out


# --- The real ones --------------------------------------------------------------------------------


@pytest.mark.parametrize("name, place, split, number", [
    ("fashion-mnist", "idx/fashion", "test", 10000),
    ("emnist-letters", "idx/emnist-letters", "test", 20800),
    ("gtsrb", "gtsrb", "test", 12630),
])
def test_the_real_sets_are_read(name, place, split, number, tmp_path):
    real = os.path.join(SHARED_DATA, "imagesets", place)
    if not os.path.isdir(real):
        pytest.skip(f"{real} isn't there")
    for file in os.listdir(real):
        os.symlink(os.path.join(real, file), tmp_path / file)
    data = load_images(IMAGE_SETS[name], split, data_dir=str(tmp_path))
    assert len(data.images) == number
    assert set(data.targets.tolist()) == set(range(IMAGE_SETS[name].outputs))


# --- The code knows no image set by heart ---------------------------------------------------------

# Where MNIST's shape, number of classes or statistics may stand: in its own record, in the
# networks' definitions, and where digits are drawn.
KNOWS_MNIST = ("MNISTmodel.py", "MNISTdsource.py", "mnist/datasets/image_set.py",
               "mnist/datasets/drawing.py", "mnist/datasets/fonts.py")
BUILT_IN = re.compile(
    r"\b28, 28\b|\b784\b|0\.1307|0\.3081|range\(10\)|(?<!fontsize=)\b10\)|== 10\b")


def test_nothing_of_mnist_is_built_in_elsewhere():
    paths = glob.glob(os.path.join(ROOT, "*.py")) + glob.glob(
        os.path.join(ROOT, "mnist", "**", "*.py"), recursive=True)
    lines = [(os.path.relpath(path, ROOT).replace(os.sep, "/"), line) for path in paths
             for line in open(path, encoding="utf-8")]
    found = [(path, line) for path, line in lines if BUILT_IN.search(line)]
    assert {path for path, _ in found} >= set(KNOWS_MNIST)  # it finds what is there
    assert not [(path, line) for path, line in found if path not in KNOWS_MNIST]
