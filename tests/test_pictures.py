"""Photos, scans and layers made digits as MNIST's are."""

import io

import numpy as np
import photos
import pytest
import torch
from PIL import Image

from mnist.datasets.drawing import (
    digit_from_drawing,
    digit_from_picture,
    is_doubtful,
    read_picture,
)
from mnist.errors import MNISTError
from mnist.models.weights import SHIPPED, load_network


def log_probs(images):
    """What the shipped `net` says of digits, uint8 (N, 1, 28, 28): float32 (N, 10)."""
    x = (torch.from_numpy(images).float() / 255 - 0.1307) / 0.3081
    with torch.no_grad():
        return load_network(SHIPPED + "/net.pth").net(x).numpy()


@pytest.fixture(scope="module")
def pens(pen_digits):
    """30 digits drawn with a pen: functions that give one as ink, see `photos.photo`; targets."""
    chosen = [pen_digits[k] for k in np.random.RandomState(7).permutation(len(pen_digits))[:30]]
    return [lambda side, width, strokes=strokes: photos.pen_ink(strokes, side, width)
            for strokes, _ in chosen], np.array([target for _, target in chosen])


@pytest.mark.pen
@pytest.mark.parametrize("style", photos.STYLES)
def test_a_photographed_digit_is_read(pens, style):
    generator = np.random.RandomState(photos.STYLES.index(style))
    found = [digit_from_picture(photos.photo(ink, style, generator)) for ink in pens[0]]
    images = np.stack([np.zeros((1, 28, 28), np.uint8) if digit.image is None else digit.image
                       for digit in found])
    right = (log_probs(images).argmax(1) == pens[1]).sum()
    print(f"{style}: {right} of {len(found)}")
    assert right >= (25 if style in ("form's box", "ruled paper") else 29)


def sevens(*places, size=300, ink=20, paper=200):
    """Paper, uint8 (size, size), with a 7 of 80 pixels at each place (top, left)."""
    picture = np.full((size, size), paper, np.uint8)
    for top, left in places:
        picture[top:top + 10, left:left + 60] = ink
        for row in range(80):
            start = left + 50 - row // 3
            picture[top + row, start:start + 10] = ink
    return picture


@pytest.mark.parametrize("ink, paper", [(255, 0), (20, 200), (0, 255), (230, 40)])
def test_of_two_digits_one_is_read_with_a_word(ink, paper):
    both = digit_from_picture(sevens((100, 30), (100, 180), ink=ink, paper=paper))
    alone = digit_from_picture(sevens((100, 30), ink=ink, paper=paper))
    assert both.note == "several pieces: the largest is read" and alone.note == ""
    assert log_probs(np.stack([both.image, alone.image])).argmax(1).tolist() == [7, 7]


@pytest.mark.parametrize("paper", [0, 90, 255])
def test_paper_alone_is_nothing_drawn(paper):
    noise = np.random.RandomState(0).normal(0, 5, (400, 300)) if paper else 0
    found = digit_from_picture(np.clip(np.full((400, 300), paper) + noise, 0, 255).astype(np.uint8))
    assert found.image is None and found.note == "nothing drawn"


@pytest.mark.parametrize("layer, ink", [("clear", 255), ("clear", 0), ("clear", 90), ("paper", 30)])
def test_ink_on_a_transparent_layer_is_read(layer, ink):
    """Where all colours are alike, the alpha channel is the drawing."""
    shape = sevens((100, 100), ink=255, paper=0)
    picture = np.full((300, 300, 4), ink, np.uint8)
    picture[..., 3] = shape
    if layer == "paper":  # a photo whose rim was cut away
        picture = np.full((300, 300, 4), 210, np.uint8)
        picture[shape > 0, :3] = ink
        picture[..., 3] = 0
        picture[20:-20, 20:-20, 3] = 255
    assert log_probs(digit_from_picture(picture).image[None]).argmax() == 7


def as_file(picture, kind, **settings):
    file = io.BytesIO()
    Image.fromarray(picture).save(file, kind, **settings)
    return file.getvalue()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_lies_as_its_exif_says(orientation):
    upright = sevens((60, 100), size=256)
    turned = {1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
              5: upright.T, 6: upright.T[::-1], 7: upright.T[::-1, ::-1], 8: upright.T[:, ::-1]}
    exif = Image.Exif()
    exif[274] = orientation
    picture = read_picture(as_file(np.ascontiguousarray(turned[orientation]), "JPEG", exif=exif))
    assert log_probs(digit_from_picture(picture).image[None]).argmax() == 7
    assert np.abs(picture.astype(int) - upright).mean() < 3


def test_a_48_megapixel_photo_is_read_scaled():
    large = np.kron(sevens((100, 100)), np.ones((23, 23), np.uint8))
    picture = read_picture(as_file(large, "JPEG"))
    assert max(picture.shape) <= 2048
    assert log_probs(digit_from_picture(picture).image[None]).argmax() == 7


@pytest.mark.parametrize("mode", ["1", "P", "I;16", "CMYK", "LA"])
def test_any_mode_of_picture_is_read(mode, tmp_path):
    grey = Image.fromarray(sevens((100, 100)))
    picture = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257) if mode == "I;16" \
        else grey.convert(mode)
    path = str(tmp_path / ("seven.tiff" if mode == "CMYK" else "seven.png"))
    picture.save(path)
    assert log_probs(digit_from_picture(read_picture(path)).image[None]).argmax() == 7


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_picture_is_an_error(content, tmp_path):
    path = tmp_path / "other.png"
    path.write_bytes(content)
    for source in (content, str(path)):
        with pytest.raises(MNISTError, match="can't read"):
            read_picture(source)


@pytest.mark.pen
def test_a_clean_drawing_is_taken_as_it_is(pen_digits):
    for strokes, _ in pen_digits[::40]:
        drawing = np.zeros((280, 280), np.uint8)
        ink = np.asarray(photos.pen_ink(strokes, 180, 16))
        drawing[20:20 + len(ink), 20:20 + ink.shape[1]] = ink
        found = digit_from_picture(drawing)
        assert found.note == "" and np.array_equal(found.image, digit_from_drawing(drawing))


def test_a_low_probability_is_doubtful():
    assert is_doubtful(np.log([0.5, 0.4, 0.1])) and not is_doubtful(np.log([0.98, 0.01, 0.01]))
