"""IDX files, MNIST's places, drawings, generated digits, normalisation."""

import gzip
import os
import struct

import fuzz_files
import numpy as np
import pytest
from conftest import idx_bytes

import MNISTdsource
from mnist.datasets import download, idx
from mnist.datasets.drawing import digit_from_drawing
from mnist.datasets.fonts import generated_digits
from mnist.datasets.idx import IdxError, read_idx
from mnist.datasets.image_set import MNIST
from mnist.errors import DataError
from mnist.models.weights import load_network
from MNISTdsource import load_images, load_split

FUZZ = int(os.environ.get("FUZZ", 300))  # damaged files

def split_files(split="test", n=20):
    """{name: content} of a small split's two files."""
    images = np.random.RandomState(0).randint(0, 256, (n, 28, 28)).astype(np.uint8)
    labels = (np.arange(n) % 10).astype(np.uint8)
    return dict(zip(idx.MNIST_FILES[split], (idx_bytes(images), idx_bytes(labels))))


def write_files(folder, files, suffix=""):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / (name + suffix)).write_bytes(
            gzip.compress(content) if suffix == ".gz" else content)


@pytest.fixture(autouse=True)
def nowhere(monkeypatch, tmp_path):
    """No test finds MNIST by itself, and none reaches the network."""
    monkeypatch.delenv("MNIST_DATA", raising=False)
    monkeypatch.setattr(MNISTdsource, "DEFAULT_DATA_DIR", str(tmp_path / "default"))
    monkeypatch.setattr(download, "MIRRORS", ("http://127.0.0.1:9/",))


# --- IDX files ------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [bytes, gzip.compress], ids=["plain", "gzip"])
@pytest.mark.parametrize("shape", [(), (7,), (3, 4), (2, 3, 4, 5), (2, 0, 3)], ids=str)
@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "int32", "float32", "float64"])
def test_reads_every_type_and_any_number_of_dimensions(tmp_path, dtype, shape, packed):
    array = np.asarray(np.random.RandomState(0).normal(0, 50, shape)).astype(dtype)
    path = tmp_path / "array"
    path.write_bytes(packed(idx_bytes(array)))
    read = read_idx(str(path))
    assert read.dtype == np.dtype(dtype) and read.dtype.isnative
    assert read.flags.writeable
    np.testing.assert_array_equal(read, array, strict=True)


GOOD = idx_bytes(np.arange(100, dtype=np.uint8).reshape(10, 10))
HUGE = bytes([0, 0, 8, 4]) + struct.pack(">4I", *[0xFFFFFFFF] * 4) + bytes(100)
ZIPPED = gzip.compress(GOOD)


@pytest.mark.parametrize("content, complaint", [
    (b"", "not an IDX file: it begins with nothing"),
    (b"\x89PNG" + GOOD, "not an IDX file: it begins with 89504e47"),
    (b"\0\0\x0a" + GOOD[3:], "not an IDX file: it begins with 00000a02"),
    (GOOD[:7], "damaged, or not whole"),
    (GOOD[:-1], "damaged, or not whole"),
    (GOOD + b"\0", "damaged, or not whole"),
    (HUGE, "damaged, or not whole"),
    (ZIPPED[:-9], "damaged gzip"),
    (ZIPPED[:-8] + bytes([ZIPPED[-8] ^ 1]) + ZIPPED[-7:], "damaged gzip.*CRC"),
    (ZIPPED[:10] + b"\xff" + ZIPPED[11:], "damaged gzip.*invalid block type"),
    (gzip.compress(ZIPPED), "gzipped twice: unpack it once"),
], ids=lambda value: value if isinstance(value, str) else "")
def test_refuses_a_bad_file_by_name(tmp_path, content, complaint):
    path = tmp_path / "bad"
    path.write_bytes(content)
    with pytest.raises(IdxError, match=complaint) as caught:
        read_idx(str(path))
    assert str(path) in str(caught.value)


@pytest.mark.fuzz
@pytest.mark.filterwarnings("ignore")  # torch's own, about odd pickle protocols
@pytest.mark.parametrize("read, make, number", [
    (read_idx, fuzz_files.damaged_idx, FUZZ),
    (load_network, fuzz_files.damaged_weights, FUZZ // 5)])
def test_damaged_files_give_only_the_projects_error(tmp_path, read, make, number):
    assert fuzz_files.fuzz(read, make, number, str(tmp_path / "damaged")) > number // 2


# --- MNIST's places -------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("place", ["", "MNIST/raw", "{name}"])  # torchvision's and Kaggle's
@pytest.mark.parametrize("dotted", [False, True])
def test_finds_every_layout_and_spelling(tmp_path, suffix, place, dotted):
    files = split_files()
    for name, content in files.items():
        name = name.replace("-idx", ".idx") if dotted else name
        write_files(tmp_path / "d" / place.format(name=name), {name: content}, suffix)
    images, labels = load_split("test", str(tmp_path / "d"))
    assert images.shape == (20, 1, 28, 28) and images.dtype == np.uint8
    np.testing.assert_array_equal(labels, np.arange(20) % 10)
    assert images.tobytes() == list(files.values())[0][16:]


def test_the_folder_named_comes_before_the_environment_and_that_before_the_default(
        tmp_path, monkeypatch):
    for folder, n in (("flag", 11), ("environment", 12), ("default", 13)):
        write_files(tmp_path / folder, split_files(n=n))
    assert len(load_split("test")[1]) == 13
    monkeypatch.setenv("MNIST_DATA", str(tmp_path / "environment"))
    assert len(load_split("test")[1]) == 12
    assert len(load_split("test", str(tmp_path / "flag"))[1]) == 11
    monkeypatch.setenv("MNIST_DATA", "")
    assert len(load_split("test")[1]) == 13


def test_only_the_files_of_the_split_are_read(tmp_path):
    write_files(tmp_path, split_files("test"))
    write_files(tmp_path, {name: b"broken" for name in idx.MNIST_FILES["train"]})
    assert len(load_split("test", str(tmp_path))[1]) == 20


@pytest.mark.parametrize("by", ["flag", "environment"])
@pytest.mark.parametrize("name, complaint", [
    ("empty", "doesn't hold t10k-images-idx3-ubyte and t10k-labels"),
    ("absent", "not a folder that can be read")])
def test_a_named_folder_without_mnist_is_an_error_and_nothing_else(
        tmp_path, monkeypatch, by, name, complaint):
    write_files(tmp_path / "default", split_files())
    (tmp_path / "empty").mkdir()
    folder = str(tmp_path / name)
    if by == "environment":
        monkeypatch.setenv("MNIST_DATA", folder)
    with pytest.raises(DataError, match=complaint) as caught:
        load_images(MNIST, "test", data_dir=folder if by == "flag" else None)
    assert folder in str(caught.value) and caught.value.exit_status == 2


def test_half_a_split_says_which_file_is_missing(tmp_path):
    files = split_files()
    del files["t10k-labels-idx1-ubyte"]
    write_files(tmp_path, files)
    with pytest.raises(DataError, match="doesn't hold t10k-labels-idx1-ubyte "):
        load_split("test", str(tmp_path))


IMAGES, LABELS = idx.MNIST_FILES["test"]


@pytest.mark.parametrize("name, array, complaint", [
    (IMAGES, np.zeros((20, 28, 27), np.uint8), "not images"),
    (IMAGES, np.zeros((19, 28, 28), np.uint8), "19 images, but .* 20 labels"),
    (IMAGES, np.zeros((20, 784), np.uint8), r"images.reshape\(-1, 28, 28\)"),
    (LABELS, np.zeros(20, np.float32), "not labels"),
    (LABELS, np.full(20, 10, np.uint8), "the label 10, not 0 to 9"),
    (LABELS, np.arange(20, dtype=np.uint8) % 10 + 1, "subtract 1"),
])
def test_a_split_that_is_not_one_is_refused_by_name(tmp_path, name, array, complaint):
    write_files(tmp_path, {**split_files(), name: idx_bytes(array)})
    with pytest.raises(IdxError, match=complaint) as caught:
        load_split("test", str(tmp_path))
    assert str(tmp_path / name) in str(caught.value)


def test_without_mnist_generated_digits_stand_in_and_it_is_said(capsys):
    data = load_images(MNIST, "test", limit=30)
    assert data.source == "generated" and data.images.shape == (30, 1, 28, 28)
    said = capsys.readouterr().err
    assert "couldn't be downloaded" in said and "GENERATED" in said
    with pytest.raises(DataError):
        load_images(MNIST, "test", "mnist")


def test_generated_digits_when_asked_for_are_no_warning(capsys, tmp_path):
    write_files(tmp_path / "default", split_files())
    data = load_images(MNIST, "train", "generated", limit=30)
    assert data.source == "generated" and capsys.readouterr().err == ""
    other = load_images(MNIST, "test", "generated", limit=30)
    assert not np.array_equal(data.images, other.images) and data.digest != other.digest
    assert len(load_images(MNIST, "test", limit=5).images) == 5


def test_data_has_its_honest_name(tmp_path):
    """Not MNIST whatever lies in MNIST's files."""
    write_files(tmp_path / "default", split_files())
    data = load_images(MNIST, "test")
    assert data.source == f"IDX files in {tmp_path}/default (sha256 {data.digest[:8]}…)"


@pytest.mark.mnist
def test_the_real_mnist(mnist_dir):
    for split, n in (("train", 60000), ("test", 10000)):
        images, labels = load_split(split, mnist_dir)
        assert images.shape == (n, 1, 28, 28) and labels.shape == (n,)
        assert images.flags.writeable
        assert load_images(MNIST, split, data_dir=mnist_dir).source == "MNIST"
        if split == "train":
            shares, levels = np.bincount(images.ravel()) / images.size, np.arange(256) / 255
            mean = shares @ levels
            std = np.sqrt(shares @ (levels - mean) ** 2)
            assert (round(mean, 4), round(std, 4)) == MNIST.mean + MNIST.std


def test_normalised_images_have_each_channel_s_own_mean_and_deviation():
    image_set = MNIST._replace(mean=(0.1, 0.5), std=(0.3, 0.2))
    images = np.array([[[[0, 255]], [[51, 102]]]], np.uint8)
    x = image_set.normalise(images)
    assert x.dtype == np.float32 and x.shape == (1, 2, 1, 2)
    np.testing.assert_allclose(x[:, 0] * 0.3 + 0.1, images[:, 0] / 255, atol=1e-6)
    np.testing.assert_allclose(x[:, 1] * 0.2 + 0.5, images[:, 1] / 255, atol=1e-6)
    assert images.max() == 255  # untouched


# --- Drawings -------------------------------------------------------------------------------------


def drawn(gray):
    """The digit of a drawing, uint8 (28, 28)."""
    digit, = digit_from_drawing(gray)
    return digit


def centre_of_mass(image):
    image = image.astype(float)
    at = np.arange(len(image))
    return (image.sum(1) @ at) / image.sum(), (image.sum(0) @ at) / image.sum()


def canvas(*strokes, size=560):
    """A drawing with white rectangles (top, bottom, left, right)."""
    gray = np.zeros((size, size), np.uint8)
    for top, bottom, left, right in strokes:
        gray[top:bottom, left:right] = 255
    return gray


@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (1, 1), (560, 560)], ids=str)
def test_nothing_drawn_gives_nothing(shape):
    assert digit_from_drawing(np.zeros(shape, np.uint8)) is None


@pytest.mark.parametrize("gray", [
    np.full((1, 1), 1, np.uint8), np.full((560, 560), 255, np.uint8),
    np.full((1, 9000), 255, np.uint8), canvas((0, 560, 0, 1), (559, 560, 0, 560))], ids=range(4))
def test_odd_drawings_give_an_image(gray):
    before = gray.copy()
    digit = drawn(gray)
    assert digit.shape == (28, 28) and digit.dtype == np.uint8 and digit.max() == 255
    np.testing.assert_array_equal(gray, before)


def test_the_longer_side_is_20_pixels_and_the_aspect_kept():
    for height, width in ((300, 150), (150, 300), (240, 240), (400, 30)):
        digit = drawn(canvas((50, 50 + height, 100, 100 + width))) / 255
        unit = max(height, width) / 20
        assert digit.sum(0).max() == pytest.approx(height / unit, abs=0.1)
        assert digit.sum(1).max() == pytest.approx(width / unit, abs=0.1)


def test_the_centre_of_mass_is_where_mnist_has_it():
    digit = drawn(canvas((100, 400, 100, 140), (360, 400, 100, 300)))
    assert centre_of_mass(digit) == pytest.approx((14, 14), abs=0.05)


def test_nothing_drawn_is_lost_over_the_edge():
    heavy_end = canvas((20, 140, 20, 140), (138, 540, 20, 30))
    digit = drawn(heavy_end) / 255
    area = (heavy_end > 0).sum() / (520 / 20) ** 2
    assert digit.sum() == pytest.approx(area, rel=0.01)


def strokes_of_width(pen):
    """An open 4, drawn by a pen of this width in pixels."""
    half = pen / 2
    return canvas(*[tuple(int(round(v)) for v in s) for s in (
        (150, 300, 200 - half, 200 + half), (300 - half, 300 + half, 200, 330),
        (180, 420, 310 - half, 310 + half))])


def test_place_size_pen_and_grey_level_hardly_matter():
    gray = strokes_of_width(24)
    reference = drawn(gray).astype(int)
    np.testing.assert_array_equal(drawn(np.roll(gray, (-100, 150), (0, 1))), reference)
    for alike in (np.repeat(np.repeat(gray, 3, 0), 3, 1), gray // 3):
        assert np.abs(drawn(alike) - reference).max() <= 1
    for pen in (2, 4, 8):
        thin = drawn(strokes_of_width(pen))
        assert (thin > 128).sum() >= 30  # a stroke stays bright all along, not only at a crossing


# --- Generated digits -----------------------------------------------------------------------------


def test_generated_digits_are_balanced_reproducible_and_prepared_as_mnist():
    images, labels = generated_digits(1000, seed=5)
    assert images.shape == (1000, 1, 28, 28)
    assert (images.dtype, labels.dtype) == (np.uint8, np.int64)
    np.testing.assert_array_equal(np.bincount(labels), np.full(10, 100))
    assert len(set(map(bytes, labels.astype(np.uint8).reshape(-1, 10)))) > 90  # shuffled
    assert len(set(map(bytes, images))) == 1000
    fewer, fewer_labels = generated_digits(123, seed=5)
    np.testing.assert_array_equal(fewer, images[:123])
    np.testing.assert_array_equal(fewer_labels, labels[:123])
    assert not np.array_equal(generated_digits(10, seed=6)[0], images[:10])
    assert (images.max((1, 2, 3)) == 255).all()
    centres = np.array([centre_of_mass(image) for image in images[:, 0]])
    assert np.median(np.abs(centres - 14)) < 0.02 and np.abs(centres - 14).max() < 2
    ink = (images > 64).sum((1, 2, 3))
    assert ink.min() > 20 and ink.max() < 350 and 80 < ink.mean() < 180


def test_a_label_is_what_the_digit_shows():
    """The mean image of each label reads fresh digits of that label far better than chance."""
    images, labels = generated_digits(1000, seed=1)
    means = np.stack([images[labels == digit].mean(0) for digit in range(10)]).reshape(10, -1)
    fresh, fresh_labels = generated_digits(300, seed=2)
    flat = fresh.reshape(len(fresh), -1).astype(float)
    distances = ((flat ** 2).sum(1)[:, None] - 2 * flat @ means.T + (means ** 2).sum(1))
    assert (distances.argmin(1) == fresh_labels).mean() > 0.7
