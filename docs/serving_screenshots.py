"""Take the screenshots of the page from a real Chromium: docs/serving*.png.

    python docs/serving_screenshots.py          needs chromium with its chromedriver, and selenium
"""

import os
import sys
import tempfile

DOCS = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.dirname(DOCS), os.path.join(os.path.dirname(DOCS), "tests")]

from browser import THREE, chromium
from serving import serving


def main():
    with serving("--engine", "auto") as server, tempfile.TemporaryDirectory() as folder, \
            chromium(server.url, folder) as page:
        page.resize(1040, 640)
        page.load()
        page.draw(THREE)
        save(page, "serving")
        page.resize(390, 844, scale=2, touch=True)
        page.load()
        page.touch(THREE)
        save(page, "serving-phone")
        page.resize(1040, 1010)
        page.dark(True)
        page.load()
        page.click("mistake")
        page.wait("$('answer').textContent !== ''")
        page.driver.find_element("css selector", "summary").click()
        page.wait("$('maps').children.length > 0")
        save(page, "serving-dark")


def save(page, name):
    page.settle()
    page.driver.save_screenshot(os.path.join(DOCS, name + ".png"))


if __name__ == "__main__":
    main()
