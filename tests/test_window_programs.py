"""The two windows as programs: where they can't open, how they end, and on a real X server."""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from scripts import ROOT, run, start

PROGRAMS = "GraphMNIST.py", "MNISTshowFeat.py"
NO_DISPLAY = {"DISPLAY": "", "WAYLAND_DISPLAY": "", "QT_QPA_PLATFORM": ""}
OFFSCREEN = {"QT_QPA_PLATFORM": "offscreen"}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere there is a display")
@pytest.mark.parametrize("program, display, said", zip(
    PROGRAMS, ("", ":987"), ("DISPLAY is not set", "DISPLAY=:987")))
def test_no_display(program, display, said):
    _, err = run(program, env={**NO_DISPLAY, "DISPLAY": display}, status=2)
    assert err.startswith("error: no window can be opened here") and said in err
    assert len(err.splitlines()) == 2


def test_weights_that_are_not_there(tmp_path):
    _, err = run("GraphMNIST.py", "--weights", tmp_path / "none.pth", env=OFFSCREEN, status=2)
    assert err.splitlines()[-1].startswith("error: no weights file")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT to send")
def test_ctrl_c(tmp_path):
    process = start("GraphMNIST.py", "--data-dir", tmp_path, env=OFFSCREEN)
    time.sleep(3)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("xvfb-run"), reason="xvfb-run is not installed")
def test_on_an_x_server():
    """The tests of the windows once more, on an X server without a screen."""
    in_x = ["xvfb-run", "-a", "-s", "-screen 0 1400x1000x24", sys.executable]
    env = {**os.environ, "QT_QPA_PLATFORM": "xcb"}
    window = "from PyQt5.QtWidgets import QApplication; QApplication([])"
    if subprocess.run([*in_x, "-c", window], env=env, capture_output=True).returncode:
        pytest.skip("Qt's xcb plugin doesn't load here (libraries missing)")
    subprocess.run([*in_x, "-m", "pytest", "-q", "-m", "not slow", "test_windows.py",
                    "test_features.py"], cwd=os.path.join(ROOT, "tests"), env=env, check=True,
                   timeout=600)
