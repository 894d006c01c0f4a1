"""Draw a digit, open a picture or page through MNIST's test digits, and watch the network read.

    python GraphMNIST.py
    python GraphMNIST.py --weights mine.pth --data-dir ~/mnist
    python GraphMNIST.py --engine onnxruntime --device cpu

Needs PyQt5 and a display. MNIST is used where it is already there, never fetched. F1 in the window
shows its keys.
"""

import os
import time

from mnist.cli import add_flags, make_parser, run_program


class Reader:
    """The network on one engine, as `DigitWindow` wants it. Opening takes seconds."""

    batch_size = 64

    def __init__(self, options):
        import numpy as np

        from mnist.engines.registry import choose_device, open_engine, set_threads
        from mnist.models.weights import load_network

        set_threads(max(1, os.cpu_count() - 1))  # one is the window's
        self.weights = load_network(options.weights, options.network, options.trust_pickle)
        print(f"weights: {self.weights.origin}", flush=True)
        device = choose_device(options.device, options.engine, options.precision)
        # A drawing comes alone, and an engine of a larger batch would compute all of it.
        self.engine, self.batch_engine = (
            open_engine(options.engine, self.weights.net, device, options.precision, batch_size,
                        self.weights.stem) for batch_size in (1, self.batch_size))
        self.look(np.zeros((28, 28), np.uint8))  # an engine's first call is a slow one

    def look(self, digit):
        """uint8 (28, 28) → (log-probabilities float32 (10,), seconds it took)."""
        start = time.perf_counter()
        log_probabilities = self.engine(digit[None])[0].copy()
        return log_probabilities, time.perf_counter() - start

    def read(self, images):
        """uint8 (B, 28, 28) → the digits read, (B,)."""
        return self.batch_engine(images).argmax(1)


class AnswerPanel:
    """What stands beside the canvas: the answer, the probabilities, what the network received."""

    below = None

    def __init__(self):
        from PyQt5.QtWidgets import QHBoxLayout, QLabel, QVBoxLayout, QWidget

        from mnist.gui.widgets import AnswerView, DigitView, ProbabilityBars, captioned

        self.answer = AnswerView()
        self.bars = ProbabilityBars()
        self.network_input = DigitView()
        self.time = QLabel(objectName="time")
        self.beside = QWidget()
        top = QHBoxLayout()
        top.setSpacing(20)
        top.addWidget(captioned("Answer", self.answer), 1)
        top.addWidget(captioned("The network sees", self.network_input), 1)
        rows = QVBoxLayout(self.beside)
        rows.setContentsMargins(0, 0, 0, 0)
        rows.setSpacing(16)
        rows.addLayout(top, 2)
        rows.addWidget(captioned("Probabilities", self.bars), 3)
        rows.addWidget(self.time)

    def opened(self, reader):
        engine = reader.engine
        self.engine = f"{engine.name}, {engine.device}, {engine.precision}"

    def show(self, digit, label, result):
        """Show the newest drawing's answer; `result` is what `Reader.look` returned, or None."""
        import numpy as np

        from mnist.datasets.drawing import is_doubtful

        self.network_input.set_digit(digit)
        if result is None:
            self.answer.set_answer(None, label)
            self.bars.set_values(None)
            return
        log_probabilities, seconds = result
        self.answer.set_answer(int(log_probabilities.argmax()), label,
                               is_doubtful(log_probabilities))
        self.bars.set_values(np.exp(log_probabilities))
        self.time.setText(f"{1000 * seconds:.2f} ms on {self.engine}")


def make_window(options):
    """The window, not yet shown."""
    from mnist.gui.window import DigitWindow

    return DigitWindow("GraphMNIST", AnswerPanel(), lambda: Reader(options), options.data_dir,
                       size=(960, 660), stretch=(3, 2))


def read_options(argv=None):
    """The command line's options."""
    parser = make_parser(__doc__)
    parser.add_argument("--engine", default="torch", metavar="NAME",
                        help="what runs the network; CompareMNIST.py lists all (default: torch)")
    parser.add_argument("--precision", default="fp32", metavar="NAME",
                        help="what it computes in: fp32, tf32, bf16, fp16 or int8, as far as the "
                             "engine can (default: fp32)")
    add_flags(parser, "network", "weights", "trust-pickle", "device", "data-dir")
    return parser.parse_args(argv)


def main(argv=None):
    """Open the window and wait until it is closed."""
    options = read_options(argv)
    from mnist.gui.application import run_window

    run_window("GraphMNIST", lambda: make_window(options))


if __name__ == "__main__":
    run_program(main)
