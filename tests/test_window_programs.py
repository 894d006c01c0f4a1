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
@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("display, said", [("", "DISPLAY is not set"), (":987", "DISPLAY=:987")])
def test_no_display(program, display, said):
    _, err = run(program, env={**NO_DISPLAY, "DISPLAY": display}, status=2)
    assert err.startswith("error: no window can be opened here") and said in err
    assert len(err.splitlines()) == 2


@pytest.mark.parametrize("program", PROGRAMS)
def test_no_pyqt5(program, tmp_path):
    broken = tmp_path / "PyQt5"
    broken.mkdir()
    (broken / "__init__.py").write_text("raise ImportError('No module named PyQt5')")
    _, err = run(program, env={"PYTHONPATH": str(tmp_path)}, status=2)
    assert "pip install PyQt5" in err and "sudo apt install python3-pyqt5" in err
    out, _ = run(program, "--help", env={"PYTHONPATH": str(tmp_path)})
    assert "--weights" in out


@pytest.mark.parametrize("program", PROGRAMS)
def test_weights_that_are_not_there(program, tmp_path):
    _, err = run(program, "--weights", tmp_path / "none.pth", env=OFFSCREEN, status=2)
    assert err.splitlines()[-1].startswith("error: no weights file")


def test_unknown_engine():
    _, err = run("GraphMNIST.py", "--engine", "torhc", env=OFFSCREEN, status=2)
    assert "did you mean torch?" in err


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT to send")
@pytest.mark.parametrize("program", PROGRAMS)
def test_ctrl_c(program, tmp_path):
    process = start(program, "--data-dir", tmp_path, env=OFFSCREEN)
    time.sleep(3)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("Xvfb"), reason="Xvfb is not installed")
def test_on_an_x_server():
    """The tests of the windows once more, on an X server without a screen."""
    read_end, write_end = os.pipe()
    command = ["Xvfb", "-displayfd", str(write_end), "-screen", "0", "1400x1000x24"]
    server = subprocess.Popen(command, pass_fds=[write_end], stderr=subprocess.DEVNULL)
    try:
        display = ":" + os.read(read_end, 16).decode().strip()
        env = {**os.environ, "DISPLAY": display, "QT_QPA_PLATFORM": "xcb"}
        window = "from PyQt5.QtWidgets import QApplication; QApplication([])"
        if subprocess.run([sys.executable, "-c", window], env=env, capture_output=True).returncode:
            pytest.skip("Qt's xcb plugin doesn't load here (libraries missing)")
        command = [sys.executable, "-m", "pytest", "-q", "-m", "not slow", "test_windows.py",
                   "test_features.py"]
        subprocess.run(command, cwd=os.path.join(ROOT, "tests"), env=env, check=True, timeout=600)
    finally:
        server.terminate()
        server.wait()
        os.close(read_end)
        os.close(write_end)
