"""Driving the page in a real Chromium, as a person would: mouse, finger, keys."""

import contextlib
import math
import shutil
import time

import numpy as np
import pytest

FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync",
         "--force-color-profile=srgb")

# A 3 as one stroke of (x, y), on a scale of 0 to 1.
THREE = [(0.5 + 0.19 * math.sin(a), 0.32 - 0.15 * math.cos(a)) for a in np.linspace(-1.2, 2.9, 25)]
THREE += [(0.5 + 0.21 * math.sin(a), 0.64 - 0.17 * math.cos(a)) for a in np.linspace(0.1, 4.4, 25)]


class Page:
    """The page of a server in a Chromium window."""

    def __init__(self, driver, url):
        self.driver, self.url = driver, url

    def load(self):
        self.driver.get("http://" + self.url)
        self.wait("models.length > 0 && !busy")

    def js(self, expression):
        """The value of a JavaScript expression."""
        return self.driver.execute_script("return " + expression)

    def wait(self, condition, seconds=20):
        """Wait until a JavaScript condition holds; gives its value."""
        end = time.monotonic() + seconds
        while not self.js(condition):
            assert time.monotonic() < end, f"never came true: {condition}"
            time.sleep(0.01)

    def settle(self):
        """Wait until what was drawn is answered; gives the answer, "" for none."""
        self.wait("!busy")
        return self.text("answer")

    def text(self, element):
        return self.js(f"document.getElementById('{element}').textContent")

    def click(self, element):
        self.driver.find_element("id", element).click()

    def event(self, kind, **facts):
        self.driver.execute_cdp_cmd("Input." + kind, facts)

    def place(self):
        """The canvas in the window: left, top, side."""
        self.driver.execute_script("canvas.scrollIntoView({block: 'nearest'})")
        box = self.js("canvas.getBoundingClientRect().toJSON()")
        return box["left"], box["top"], box["width"]

    def draw(self, *strokes, release=True):
        """Draw strokes of (x, y), from 0 to 1 over the canvas, with the mouse."""
        left, top, side = self.place()
        for stroke in strokes:
            points = [(left + x * side, top + y * side) for x, y in stroke]
            self.mouse("mousePressed", points[0])
            for point in points[1:]:
                self.mouse("mouseMoved", point)
            if release:
                self.mouse("mouseReleased", points[-1])

    def mouse(self, kind, point):
        self.event("dispatchMouseEvent", type=kind, x=point[0], y=point[1], button="left",
                   buttons=1, clickCount=1)

    def touch(self, stroke):
        """Draw a stroke with a finger."""
        left, top, side = self.place()
        for i, (x, y) in enumerate(stroke):
            self.event("dispatchTouchEvent", type="touchMove" if i else "touchStart",
                       touchPoints=[{"x": left + x * side, "y": top + y * side}])
        self.event("dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def key(self, *keys):
        """Press keys, as the window's focus has it."""
        from selenium.webdriver.common.action_chains import ActionChains
        for key in keys:
            ActionChains(self.driver).send_keys(key).perform()

    def resize(self, width, height, scale=1, touch=False):
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {
            "width": width, "height": height, "deviceScaleFactor": scale, "mobile": touch})
        self.driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": touch})

    def dark(self, dark):
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]})

    def ink(self):
        """How much is on the canvas: mean grey level."""
        return self.js("pen.getImageData(0, 0, SIDE, SIDE).data.filter((_, i) => i % 4 === 0)"
                       ".reduce((a, b) => a + b) / (SIDE * SIDE)")

    def console(self):
        """What the console has said since it was asked last."""
        return [entry["message"] for entry in self.driver.get_log("browser")]


@contextlib.contextmanager
def chromium(url, folder):
    """A `Page` in a Chromium of its own; skips the test where there is none."""
    pytest.importorskip("selenium", reason="selenium isn't installed")
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not browser or not driver:
        pytest.skip("no chromium with its chromedriver here (Debian: chromium-driver)")
    from selenium import webdriver
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in (*FLAGS, f"--user-data-dir={folder}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    window = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        yield Page(window, url)
    finally:
        window.quit()
