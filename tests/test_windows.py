"""GraphMNIST's window, driven by real mouse and key events."""

import re
import time

import numpy as np
import own_networks
import pytest
import torch
import windows
from conftest import write_mnist
from PIL import Image
from PyQt5.QtCore import QEvent, QPoint, QRect, Qt
from PyQt5.QtGui import QTabletEvent
from PyQt5.QtTest import QTest
from PyQt5.QtWidgets import QApplication, QFileDialog
from windows import ONE, SEVEN, ZERO, click, draw, ink, key, opened, part, place, settle

import GraphMNIST
from mnist.datasets.drawing import digit_from_drawing
from mnist.engines import registry
from mnist.gui.canvas import TABLET_PHASES
from mnist.models.weights import Network, save_weights
from MNISTdsource import find_image_set


@pytest.fixture
def window(tmp_path):
    with opened(GraphMNIST, tmp_path) as window:
        yield window


@pytest.fixture
def mnist(tmp_path, window):
    """Twelve test digits, 3 and 7 of them with a label that the network doesn't agree with."""
    images = np.zeros((12, 1, 28, 28), np.uint8)
    for index, strokes in enumerate([ONE, SEVEN, ZERO] * 4):
        window.canvas.clear()
        window.set_pen_width(50 + index)
        draw(window.canvas, strokes)
        images[index] = digit_from_drawing(ink(window.canvas))
    labels = window.reader.read(images).argmax(1)
    labels[[3, 7]] = (labels[[3, 7]] + 1) % 10
    (tmp_path / "mnist").mkdir()
    test = images, labels
    return (write_mnist(tmp_path / "mnist", test, test), *test)


@pytest.fixture
def full(tmp_path, mnist):
    """A window with those twelve."""
    with opened(GraphMNIST, tmp_path, mnist=mnist[0]) as window:
        window.test_images, window.test_labels = mnist[1:]
        yield window


# The answer


@pytest.mark.parametrize("strokes, digit", [(SEVEN, 7), (ONE, 1), (ZERO, 0)])
def test_drawing_is_read(window, strokes, digit):
    draw(window.canvas, strokes)
    settle(window)
    assert part(window, "answer").text() == str(digit)
    values = part(window, "probabilities").values
    assert values.argmax() == digit and values.sum() == pytest.approx(1, abs=1e-4)
    assert re.fullmatch(r"\d+\.\d\d ms on torch, cpu, fp32", part(window, "time").text())


@pytest.mark.parametrize("name", ["Dense", "NormFirst", "Named"])
def test_any_network(tmp_path, name):
    """The answer is that of the network itself, whatever its build."""
    torch.manual_seed(0)
    net = getattr(own_networks, name)().eval()
    save_weights(net, str(tmp_path / "mine.pth"))
    with opened(GraphMNIST, tmp_path, "--network", f"{own_networks.__file__}:{name}",
                "--weights", str(tmp_path / "mine.pth")) as window:
        draw(window.canvas, SEVEN)
        settle(window)
        digit = part(window, "network_input").image
        log_probs = registry.reference_log_probs(Network(net), digit[None])[0]
        values = part(window, "probabilities").values
        assert np.allclose(values, np.exp(log_probs), atol=1e-4)
        assert part(window, "answer").text() == str(values.argmax())


class Values(torch.nn.Sequential):
    """Gives values for images of 3×32×32."""

    def __init__(self, shape, outputs):
        super().__init__(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, outputs))


def test_a_network_of_values_shows_them_for_the_first_frame(tmp_path):
    (tmp_path / "labels.csv").write_text("image,angle\n" + "".join(
        f"{number}.png,{number / 10}\n" for number in range(10)))
    for number in range(10):
        frame = np.full((40, 40, 3), 20 * number, np.uint8)
        Image.fromarray(frame).save(tmp_path / f"{number}.png")
    image_set = find_image_set(str(tmp_path))
    save_weights(Values(image_set.shape, 1), tmp_path / "values.pth", "Values", image_set)
    with opened(GraphMNIST, tmp_path, "--network", f"{__file__}:Values", "--weights",
                str(tmp_path / "values.pth"), "--data", str(tmp_path)) as window:
        windows.wait_until(lambda: window.go_to.value() == 0)
        settle(window)
        assert re.fullmatch(r"angle [+-]\d\.\d+", part(window, "answer").text())
        assert part(window, "target").text().startswith("target angle ")
        assert not part(window, "probabilities").isVisible()


def test_answer_comes_while_drawing(window):
    points = [place(window.canvas, *xy) for xy in SEVEN[0]]
    windows.mouse(window.canvas, QEvent.MouseButtonPress, points[0])
    for point in points[1:]:
        windows.mouse(window.canvas, QEvent.MouseMove, point)
    settle(window)
    assert part(window, "answer").text() == "7"


def test_newest_drawing_wins(window):
    """A slow network skips drawings, and never shows an old one after a newer one."""
    looked, shown = [], []
    window.reader.look = lambda digit: looked.append(digit) or time.sleep(0.05)
    window.panel.show = lambda image, target, result: shown.append(image)
    draw(window.canvas, ZERO)
    settle(window)
    assert len(looked) < 10 < len(ZERO[0])
    assert [id(digit) for digit in shown] == [id(digit) for digit in looked]
    assert np.array_equal(shown[-1], digit_from_drawing(ink(window.canvas)))


def test_a_drawing_is_read_by_an_engine_for_one_digit(window):
    """One for 64 would compute all 64 of them."""
    assert (window.reader.engine.batch_size, window.reader.batch_engine.batch_size) == (1, 64)
    assert "weights/net.pth (shipped)" in window.windowTitle()


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_another_engine(tmp_path, engine):
    if registry.why_not(engine):
        pytest.skip(registry.why_not(engine))
    with opened(GraphMNIST, tmp_path, "--engine", engine, "--device", "cpu") as window:
        draw(window.canvas, SEVEN)
        settle(window)
        assert part(window, "answer").text() == "7"
        assert part(window, "time").text().split(" on ")[1].startswith(f"{engine}, cpu, fp32")


# The canvas


def test_strokes_are_round_and_smooth(window):
    canvas = window.canvas
    draw(canvas, [[(0.5, 0.5)]])
    dot = ink(canvas)
    area = np.pi * (canvas.pen_width / 2) ** 2
    assert dot.sum() / 255 == pytest.approx(area, rel=0.01)
    assert len(np.unique(dot)) > 20  # grey edges


def test_soft_edges_survive_many_moves(window):
    """However many events make a line, its edges are those of one line."""
    canvas = window.canvas
    draw(canvas, [[(0.2, 0.501), (0.5, 0.501), (0.8, 0.501)]])
    few = ink(canvas).astype(int)
    canvas.clear()
    draw(canvas, [[(x, 0.501) for x in np.linspace(0.2, 0.8, 600)]])
    assert abs(ink(canvas) - few).max() <= 8


def test_clear_and_undo(window):
    draw(window.canvas, SEVEN)
    before = ink(window.canvas)
    draw(window.canvas, ZERO)
    click(window, "clear")
    assert part(window, "answer").text() == "" and not ink(window.canvas).any()
    click(window, "undo")
    click(window, "undo")
    assert part(window, "answer").text() == "7" and np.array_equal(ink(window.canvas), before)
    key(window, Qt.Key_Z, Qt.ControlModifier)
    assert not ink(window.canvas).any()
    click(window, "undo")  # nothing left to undo
    assert part(window, "answer").text() == ""


@pytest.mark.parametrize("how", ["button", "key", "right mouse button"])
def test_eraser(window, how):
    draw(window.canvas, ZERO)
    if how == "button":
        click(window, "eraser")
    elif how == "key":
        key(window, Qt.Key_E)
    window.set_pen_width(140)
    button = Qt.RightButton if how.startswith("right") else Qt.LeftButton
    before = ink(window.canvas)
    draw(window.canvas, ZERO, button)
    assert before.max() == 255 and ink(window.canvas).max() == 0
    key(window, Qt.Key_P)
    draw(window.canvas, ONE)
    assert ink(window.canvas).max() == 255


def test_pen_width(window):
    thin, thick = [], []
    for key_pressed, widths in ((Qt.Key_BracketLeft, thin), (Qt.Key_BracketRight, thick)):
        key(window, key_pressed)
        window.canvas.clear()
        draw(window.canvas, ONE)
        widths.append((ink(window.canvas)[400] > 127).sum())
    assert thin[0] + 8 == thick[0] == window.canvas.pen_width == window.width_slider.value()


def test_tablet_pen(window):
    for tip, level in ((QTabletEvent.Pen, 255), (QTabletEvent.Eraser, 0)):
        for kind, x in zip(TABLET_PHASES, (0.2, 0.5, 0.8)):
            point = place(window.canvas, x, 0.5)
            QApplication.sendEvent(window.canvas, QTabletEvent(
                kind, point, point, QTabletEvent.Stylus, tip, 0.5, 0, 0, 0, 0, 0, Qt.NoModifier, 1,
                Qt.LeftButton, Qt.LeftButton))
        assert (ink(window.canvas)[420, 168:672] == level).all()


def test_drawing_survives_resizing(window):
    draw(window.canvas, SEVEN)
    before = ink(window.canvas)
    window.resize(700, 620)
    QTest.qWait(20)
    draw(window.canvas, SEVEN)  # the same again at another size falls on the same places
    assert (ink(window.canvas) > 127).sum() == pytest.approx((before > 127).sum(), rel=0.02)


# The test set


def test_paging(full):
    answer, target, go_to = (part(full, name) for name in ("answer", "target", "go_to"))
    assert target.text() == ""
    click(full, "next_sample")
    assert go_to.value() == 0 and target.text() == f"true class {full.test_labels[0]}"
    assert np.array_equal(part(full, "network_input").image, full.test_images[0])
    click(full, "previous_sample")
    assert go_to.value() == 11
    key(full, Qt.Key_Right)
    key(full, Qt.Key_Right)
    assert go_to.value() == 1 and answer.text() == str(full.test_labels[1])
    key(full, Qt.Key_R)
    assert 0 <= go_to.value() < 12
    assert np.array_equal(part(full, "network_input").image, full.test_images[go_to.value()])


def test_go_to(full):
    key(full, Qt.Key_G)
    go_to = part(full, "go_to")
    QTest.keyClicks(go_to, "5")
    QTest.keyClick(go_to, Qt.Key_Return)
    settle(full)
    assert np.array_equal(part(full, "network_input").image, full.test_images[5])


def test_next_mistake(full):
    for mistake in (3, 7, 3):
        click(full, "next_mistake")
        assert part(full, "go_to").value() == mistake
        assert part(full, "target").text() == f"true class {full.test_labels[mistake]}"
        assert part(full, "answer").text() != str(full.test_labels[mistake])
    assert part(full, "status").text() == "Of the 12 test images, 2 are misread"


def test_next_mistake_waits_until_one_is_known(full):
    full.predictions = full.predictions[:0]
    full.reader.batch_size = 1
    full.read_test_set()
    full.next_mistake()
    windows.wait_until(lambda: len(full.predictions) == 12)
    assert part(full, "go_to").value() == 3


def test_test_digit_can_be_altered(full):
    click(full, "next_sample")
    original = part(full, "network_input").image
    draw(full.canvas, [[(0.2, 0.5), (0.5, 0.5), (0.8, 0.5)]])
    settle(full)
    altered = part(full, "network_input").image
    assert np.array_equal(altered, digit_from_drawing(ink(full.canvas)))
    assert not np.array_equal(altered, original)
    assert part(full, "target").text() == f"true class {full.test_labels[0]}"
    click(full, "undo")
    assert np.array_equal(part(full, "network_input").image, original)


def test_undo_brings_back_the_sample_before(full):
    full.go_to.setValue(4)
    full.go_to.setValue(9)
    click(full, "undo")
    assert full.go_to.value() == 4
    assert part(full, "target").text() == f"true class {full.test_labels[4]}"


def test_without_mnist(window):
    assert not part(window, "next_sample").isEnabled() and not part(window, "go_to").isEnabled()
    labels = [label.text() for label in window.statusBar().findChildren(type(window.status))]
    assert "No test images of mnist here" in labels


# Files, keys, settings


def test_save_and_open(window, tmp_path, monkeypatch):
    path = str(tmp_path / "drawing.png")
    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_: (path[:-4], ""))
    monkeypatch.setattr(QFileDialog, "getOpenFileName", lambda *_: (path, ""))
    draw(window.canvas, SEVEN)
    before = ink(window.canvas)
    click(window, "save")
    assert part(window, "status").text() == f"Saved {path}"
    click(window, "clear")
    click(window, "open")
    assert np.array_equal(ink(window.canvas), before) and part(window, "answer").text() == "7"
    click(window, "undo")
    assert not ink(window.canvas).any()


def test_open_something_else(window, tmp_path, monkeypatch):
    path = tmp_path / "other.png"
    path.write_bytes(b"no picture")
    monkeypatch.setattr(QFileDialog, "getOpenFileName", lambda *_: (str(path), ""))
    draw(window.canvas, SEVEN)
    click(window, "open")
    assert part(window, "status").text().startswith(f"can't read {path}")
    assert part(window, "answer").text() == "7"


def test_save_where_it_cannot_be(window, tmp_path, monkeypatch):
    path = tmp_path / "missing" / "drawing.png"
    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_: (str(path), ""))
    click(window, "save")
    assert part(window, "status").text().startswith(f"can't write {path}")


def test_every_action_has_a_key_in_its_tooltip_and_in_help(window):
    keys = [action.shortcut().toString() for action in window.actions()]
    assert len(keys) == 15 and all(keys) and len(set(keys)) == 15
    for action, key_name in zip(window.actions(), keys):
        assert action.toolTip().endswith(f" ({key_name})")
        assert f"<b>{key_name}</b>" in window.help_text()


def test_size_and_pen_width_are_remembered(tmp_path):
    with opened(GraphMNIST, tmp_path) as window:
        window.resize(801, 655)
        window.width_slider.setValue(33)
    with opened(GraphMNIST, tmp_path) as window:
        assert (window.width(), window.height()) == (801, 655)
        assert window.canvas.pen_width == window.width_slider.value() == 33


def test_fits_a_small_screen(window):
    window.resize(100, 100)
    assert window.width() <= 800 and window.height() <= 600
    QTest.qWait(20)
    draw(window.canvas, SEVEN)
    settle(window)
    assert part(window, "answer").text() == "7"
    for name in ("help", "next_mistake"):
        button = part(window, name)
        assert window.rect().contains(QRect(button.mapTo(window, QPoint()), button.size()))
