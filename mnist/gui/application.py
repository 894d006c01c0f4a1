"""A program with a window: Qt started, or why it can't be; run to its end, by Ctrl-C too.

The programs import this before anything else of Qt: where PyQt5 is missing it raises the
UnavailableError that says so. Runs with PyQt5 5.10 (Jetson Nano) to the newest.
"""

import os
import signal
import subprocess
import sys

from mnist.errors import UnavailableError

try:
    from PyQt5.QtCore import Qt, QTimer
    from PyQt5.QtGui import QColor, QPalette
    from PyQt5.QtWidgets import QApplication
except ImportError as error:
    raise UnavailableError(f"the window needs PyQt5 ({error}): pip install PyQt5\n"
                           "(on a Jetson: sudo apt install python3-pyqt5)") from error

PALETTE = {
    QPalette.Window: "#f4f5f7", QPalette.WindowText: "#1d2530", QPalette.Base: "#ffffff",
    QPalette.AlternateBase: "#e9ecf0", QPalette.Text: "#1d2530", QPalette.Button: "#f4f5f7",
    QPalette.ButtonText: "#1d2530", QPalette.Mid: "#c3c9d2", QPalette.Highlight: "#2f6fdb",
    QPalette.HighlightedText: "#ffffff", QPalette.ToolTipBase: "#ffffff",
    QPalette.ToolTipText: "#1d2530",
}

STYLE = """
QToolBar { border: none; spacing: 6px; padding: 10px 16px; }
QToolBar QToolButton { border: 1px solid palette(mid); border-radius: 5px; padding: 5px 10px;
                       background: palette(base); }
QToolBar QToolButton:hover { border-color: palette(highlight); }
QToolBar QToolButton:pressed, QToolBar QToolButton:checked {
    background: palette(highlight); border-color: palette(highlight);
    color: palette(highlighted-text); }
QToolBar QToolButton:disabled { color: palette(mid); background: transparent; }
QStatusBar::item { border: none; }
"""


def start_application(name):
    """The QApplication of a program called `name`; UnavailableError where no window can open."""
    sys.setswitchinterval(0.0005)  # the worker thread soon lets the window's have its turn
    application = QApplication.instance()
    if application is None:
        check_display()
        QApplication.setAttribute(Qt.AA_EnableHighDpiScaling)
        QApplication.setAttribute(Qt.AA_UseHighDpiPixmaps)
        if hasattr(QApplication, "setHighDpiScaleFactorRoundingPolicy"):  # 5.14: sharp at 150 %
            QApplication.setHighDpiScaleFactorRoundingPolicy(
                Qt.HighDpiScaleFactorRoundingPolicy.PassThrough)
        application = QApplication([name])
    application.setStyle("Fusion")
    palette = application.palette()
    for role, colour in PALETTE.items():
        palette.setColor(role, QColor(colour))
    for role in (QPalette.Text, QPalette.WindowText, QPalette.ButtonText):
        palette.setColor(QPalette.Disabled, role, QColor("#9aa3af"))
    application.setPalette(palette)
    application.setStyleSheet(STYLE)
    return application


def check_display():
    """Raise UnavailableError where Qt can't open windows.

    Qt doesn't say so, it aborts the process; so a child process tries it first.
    """
    if not sys.platform.startswith("linux"):
        return
    trial = "from PyQt5.QtWidgets import QApplication; QApplication([])"
    try:
        child = subprocess.run([sys.executable, "-c", trial], timeout=20, stdout=subprocess.DEVNULL,
                               stderr=subprocess.PIPE)
    except subprocess.TimeoutExpired as error:
        raise UnavailableError("no window can be opened: the display doesn't answer") from error
    if child.returncode:
        lines = [line for line in child.stderr.decode(errors="replace").splitlines()
                 if line.startswith("qt.qpa")] or [f"Qt failed with status {child.returncode}"]
        displays = [f"{name}={os.environ[name]}" for name in
                    ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM") if os.environ.get(name)]
        raise UnavailableError(
            f"no window can be opened here ({', '.join(displays) or 'DISPLAY is not set'}); "
            f"start it on the machine's desktop, or through ssh -X\n({lines[0]})")


def run_window(program, make_window):
    """Show the window that `make_window()` gives until it is closed.

    Raises what made it fail, KeyboardInterrupt on Ctrl-C.
    """
    application = start_application(program)
    window = make_window()
    failures = []

    def fail(error):
        failures.append(error)
        application.quit()

    excepthook, sys.excepthook = sys.excepthook, lambda kind, error, trace: fail(error)
    signal.signal(signal.SIGINT, lambda *_: fail(KeyboardInterrupt()))
    heartbeat = QTimer()  # lets Python run now and then, so that it sees Ctrl-C
    heartbeat.timeout.connect(lambda: None)
    heartbeat.start(200)
    window.failed.connect(fail)
    window.show()
    application.exec_()
    window.close()  # waits for its worker
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.excepthook = excepthook
    if failures:
        raise failures[0]
