"""Drawings made digits as MNIST's are."""

import numpy as np
import pytest

from mnist.datasets.drawing import digit_from_drawing


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


@pytest.mark.parametrize("gray", [
    np.zeros((0, 0), np.uint8), np.zeros((0, 5), np.uint8), np.zeros((1, 1), np.uint8),
    np.zeros((560, 560), np.uint8), np.zeros((3, 900), np.uint8)], ids=lambda a: str(a.shape))
def test_nothing_drawn_gives_nothing(gray):
    assert digit_from_drawing(gray) is None


@pytest.mark.parametrize("gray", [
    np.full((1, 1), 1, np.uint8), np.full((560, 560), 255, np.uint8), canvas((3, 4, 550, 551)),
    np.full((1, 9000), 255, np.uint8), np.full((9000, 1), 7, np.uint8),
    canvas((0, 560, 0, 1), (559, 560, 0, 560)), np.eye(1000, dtype=np.uint8)[::-1, ::3],
    np.full((300, 200), 255, np.uint8).T], ids=range(8))
def test_odd_drawings_give_an_image(gray):
    before = gray.copy()
    digit = digit_from_drawing(gray)
    assert digit.shape == (1, 28, 28) and digit.dtype == np.uint8
    assert digit.max() == 255
    np.testing.assert_array_equal(gray, before)


def test_the_longer_side_is_20_pixels_and_the_aspect_kept():
    for height, width in ((300, 150), (150, 300), (240, 240), (400, 30)):
        digit = digit_from_drawing(canvas((50, 50 + height, 100, 100 + width)))[0] / 255
        unit = max(height, width) / 20
        assert digit.sum(0).max() == pytest.approx(height / unit, abs=0.1)
        assert digit.sum(1).max() == pytest.approx(width / unit, abs=0.1)


def test_the_centre_of_mass_is_where_mnist_has_it():
    digit = digit_from_drawing(canvas((100, 400, 100, 140), (360, 400, 100, 300)))[0]
    assert centre_of_mass(digit) == pytest.approx((14, 14), abs=0.05)


def test_nothing_drawn_is_lost_over_the_edge():
    heavy_end = canvas((20, 140, 20, 140), (138, 540, 20, 30))
    digit = digit_from_drawing(heavy_end) / 255
    drawn = (heavy_end > 0).sum() / (520 / 20) ** 2
    assert digit.sum() == pytest.approx(drawn, rel=0.01)


def test_the_average_is_of_the_area_exactly():
    gray = np.random.RandomState(0).randint(0, 256, (40, 40)).astype(np.uint8)
    gray[[0, -1]] = gray[:, [0, -1]] = 255  # the box is the whole array: two pixels to one
    gray[10:15, 10:15] = 255  # a pixel of the digit is white all over: no stroke is too thin
    digit = digit_from_drawing(gray)[0]
    at = [14.5 - (c + 0.5) / 2 for c in centre_of_mass(gray)]
    low = [int(np.floor(a)) for a in at]
    part = [a - b for a, b in zip(at, low)]
    fine = np.repeat(np.repeat(gray, 100, 0), 100, 1)  # 1/200 of a pixel of the digit
    shift = [int(round(p * 200)) for p in part]
    padded = np.zeros((21 * 200, 21 * 200), np.float32)
    padded[shift[0]:shift[0] + 4000, shift[1]:shift[1] + 4000] = fine
    expected = padded.reshape(21, 200, 21, 200).mean((1, 3))
    found = digit[low[0]:low[0] + 21, low[1]:low[1] + 21]
    np.testing.assert_allclose(found, expected, atol=1.5)


def strokes_of_width(pen):
    """An open 4, drawn by a pen of this width in pixels."""
    half = pen / 2
    return canvas(*[tuple(int(round(v)) for v in s) for s in (
        (150, 300, 200 - half, 200 + half), (300 - half, 300 + half, 200, 330),
        (180, 420, 310 - half, 310 + half))])


def test_a_grey_drawing_is_as_good_as_a_white_one():
    white = strokes_of_width(24)
    grey = digit_from_drawing(white // 3).astype(int)
    assert np.abs(grey - digit_from_drawing(white)).max() <= 1


def test_place_size_and_pen_hardly_matter():
    reference = digit_from_drawing(strokes_of_width(24)).astype(int)
    moved = np.roll(strokes_of_width(24), (-100, 150), (0, 1))
    np.testing.assert_array_equal(digit_from_drawing(moved), reference)
    larger = np.repeat(np.repeat(strokes_of_width(24), 3, 0), 3, 1)
    assert np.abs(digit_from_drawing(larger) - reference).max() <= 1
    for pen in (2, 4, 8):
        thin = digit_from_drawing(strokes_of_width(pen))
        assert (thin > 128).sum() >= 30  # a stroke stays bright all along, not only at a crossing
