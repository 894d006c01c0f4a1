"""The page in a real Chromium: drawn on with mouse, finger and keys, with the server lost too."""

import base64
import re
import socket

import numpy as np
import pytest
from browser import THREE, chromium
from PIL import Image, ImageDraw
from serving import serving


@pytest.fixture(scope="module")
def window(server, tmp_path_factory):
    with chromium(server.url, tmp_path_factory.mktemp("chromium")) as page:
        yield page


@pytest.fixture
def page(window):
    """The page, freshly loaded; its console has to stay silent."""
    window.resize(1100, 1200)
    window.dark(False)
    window.load()
    yield window
    assert window.console() == []


def shares(page):
    return page.js("[...document.querySelectorAll('#bars .share')].map(one => one.textContent)")


def test_drawing_is_read_while_it_is_drawn(page):
    assert page.text("answer") == ""
    page.draw(THREE[:30], release=False)
    page.wait("$('answer').textContent !== ''")  # the mouse is still down
    page.load()
    page.draw(THREE)
    assert page.settle() == "3"
    percents = [float(text.rstrip(" %")) for text in shares(page)]
    assert sum(percents) == pytest.approx(100, abs=1) and np.argmax(percents) == 3
    page.wait("/^Answer: 3, [0-9]+ percent$/.test($('spoken').textContent)")  # for a screen reader
    assert re.match(r"[0-9.]+ ms", page.text("time"))
    seen = page.js("[...$('seen').getContext('2d').getImageData(0, 0, 28, 28).data]")[::4]
    assert max(seen) > 250 and seen[0] == 0
    assert "431,080 parameters" in page.text("facts")


def test_undo_eraser_width_and_clear(page):
    assert page.js("$('undo').disabled")
    page.draw(THREE)
    full = page.ink()
    page.draw([(0.05, 0.05), (0.1, 0.05)])
    assert page.ink() > full
    page.click("undo")
    assert page.ink() == full and page.settle() == "3"
    page.click("eraser")
    page.draw([(0, 0.1), (1, 0.9)])
    assert page.ink() < full
    page.key("p")
    assert page.js("$('pen').getAttribute('aria-pressed')") == "true"
    page.click("clear")
    assert page.ink() == 0 and page.settle() == "" and set(shares(page)) == {""}
    page.key("+", "+", "+")
    page.draw(THREE)
    assert page.ink() > full


def test_fingers_draw(page):
    page.resize(390, 800, touch=True)
    page.load()
    page.touch(THREE)
    assert page.settle() == "3"
    assert page.js("scrollY") == 0


@pytest.mark.parametrize("width", [320, 390, 720, 1400])
def test_every_width_shows_everything(page, width):
    page.resize(width, 800)
    page.load()
    assert page.js("document.documentElement.scrollWidth") <= width
    for element in ("canvas", "answer", "seen", "bars", "clear", "model"):
        box = page.js(f"$('{element}').getBoundingClientRect().toJSON()")
        assert box["left"] >= 0 and box["right"] <= width and box["width"] > 20
    left, top, side = page.place()
    assert page.js("canvas.clientWidth") == pytest.approx(page.js("canvas.clientHeight"), abs=1)


def test_keys_alone(page):
    """A 1: to the canvas with Tab, pen down, downwards, pen up."""
    from selenium.webdriver.common.keys import Keys
    for _ in range(20):
        page.key(Keys.TAB)
        if page.js("document.activeElement.id") == "canvas":
            break
    page.key(*[Keys.ARROW_UP] * 7, Keys.SPACE, *[Keys.ARROW_DOWN] * 14, Keys.SPACE)
    assert page.settle() == "1"
    page.key(Keys.DELETE)
    assert page.settle() == ""


def test_a_dark_scheme_makes_the_page_dark(page):
    light = page.js("getComputedStyle(document.documentElement).backgroundColor")
    page.dark(True)
    dark = page.js("getComputedStyle(document.documentElement).backgroundColor")
    assert sum(map(int, re.findall(r"\d+", dark))) < 150 < 600 < sum(
        map(int, re.findall(r"\d+", light)))


def test_open_paste_and_drop(page, tmp_path):
    """A photo of dark ink on paper, with a shadow, is read like a drawing."""
    photo = Image.fromarray(np.tile(np.linspace(190, 230, 300).astype(np.uint8), (400, 1)))
    ImageDraw.Draw(photo).line([(300 * x, 50 + 300 * y) for x, y in THREE], 30, 24, "curve")
    photo.save(tmp_path / "three.png")
    page.driver.find_element("id", "file").send_keys(str(tmp_path / "three.png"))
    page.wait("$('answer').textContent === '3'")
    page.click("clear")
    page.settle()
    for event in (["ClipboardEvent", "paste", "clipboardData"],
                  ["DragEvent", "drop", "dataTransfer"]):
        page.driver.execute_script("""
            const [kind, name, field] = arguments[0];
            const bytes = Uint8Array.from(atob(arguments[1]), one => one.charCodeAt(0));
            const files = new DataTransfer();
            files.items.add(new File([bytes], "three.png", {type: "image/png"}));
            dispatchEvent(new window[kind](name, {[field]: files}));
            """, event, base64.b64encode((tmp_path / "three.png").read_bytes()).decode())
        page.wait("$('answer').textContent === '3'")
        page.click("clear")
        assert page.settle() == ""
    (tmp_path / "none.png").write_bytes(b"no picture")
    page.driver.find_element("id", "file").send_keys(str(tmp_path / "none.png"))
    page.wait("$('trouble').textContent.includes('picture')")
    refusal, = page.console()  # Chromium itself logs every answer of 400
    assert "page/models/net/picture" in refusal and "400" in refusal


def test_the_first_layers_maps_follow_the_drawing(page):
    page.draw(THREE)
    page.driver.find_element("css selector", "summary").click()
    page.wait("$('maps').children.length === 20 && $('filters').children.length === 20")
    assert page.js("$('maps').firstChild.width") == 24
    before = page.js("$('maps').firstChild.toDataURL()")
    page.draw([(0.1, 0.9), (0.9, 0.9)])
    page.settle()
    assert page.js("$('maps').firstChild.toDataURL()") != before


@pytest.mark.slow
@pytest.mark.mnist
def test_test_digits_are_paged_through(mnist_dir, tmp_path):
    with serving("--data-dir", mnist_dir) as server, chromium(server.url, tmp_path) as page:
        page.load()
        page.click("next")
        page.wait("$('index').value === '0'")
        assert page.settle() == "7" and page.text("label") == "labelled 7"
        page.click("previous")
        page.wait("$('index').value === '9999'")
        page.click("random")
        page.wait("$('index').value !== '9999'")
        page.settle()
        page.click("mistake")
        page.wait("!busy && $('answer').classList.contains('wrong')")
        assert page.text("label") != "labelled " + page.text("answer")
        page.draw([(0.1, 0.1), (0.2, 0.1)])  # it is no test digit any more
        page.settle()
        assert page.text("label") in ("", "doubtful") and page.js("$('index').value") == ""
        page.click("undo")
        page.settle()
        assert page.text("label").startswith("labelled")
        assert page.console() == []


@pytest.mark.slow
def test_a_server_that_comes_back_is_found_again(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with chromium(f"127.0.0.1:{port}", tmp_path) as page:
        with serving("--port", port) as server:
            page.load()
            page.draw(THREE)
            assert page.settle() == "3"
            server.stop()
        page.draw([(0.05, 0.05), (0.1, 0.05)])
        page.wait("!$('trouble').hidden && /doesn.t answer/.test($('trouble').textContent)")
        page.click("undo")
        with serving("--port", port):
            page.wait("$('trouble').hidden && !busy", seconds=30)
            assert page.text("answer") == "3"


@pytest.mark.slow
@pytest.mark.pen
def test_drawn_strokes_are_read(page, pen_digits):
    """Five hundred, each drawn at its own size and place."""
    random = np.random.default_rng(0)
    right = 0
    for index in random.choice(len(pen_digits), 500, replace=False):
        strokes, label = pen_digits[index]
        size = random.uniform(0.3, 0.85)
        extent = np.concatenate(strokes).max(0) / 1000 * size
        corner = 0.05 + random.uniform(0, 1, 2) * (0.9 - extent)
        page.driver.execute_script("clear()")
        page.draw(*[stroke / 1000 * size + corner for stroke in strokes])
        right += page.settle() == str(label)
    print(f"{right / 5:.1f} % of 500 read")
    assert right >= 0.97 * 500
