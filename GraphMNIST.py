"""Draw a digit, open a picture or page through the test images, and watch the network read them.

    python GraphMNIST.py
    python GraphMNIST.py --weights weights/gtsrb.pth --data-dir ~/gtsrb
    python GraphMNIST.py --engine onnxruntime --device cpu

Needs PyQt5 and a display. For images of 28x28 grey levels one can draw; of any others one opens
pictures. Test images are used where they are already there, never fetched. F1 in the window shows
its keys.
"""

import functools
import time

from mnist.cli import add_flags, make_parser, run_program


class Reader:
    """The network on one engine, as `mnist.gui.window.ImageWindow` wants it."""

    batch_size = 64

    def __init__(self, options):
        import numpy as np

        from mnist.engines.registry import choose_device, open_engine, set_threads
        from mnist.machine import usable_cpus
        from MNISTdsource import network_of_flags

        threads = set_threads(max(1, usable_cpus() - 1))  # one is the window's
        self.network = network_of_flags(options)
        device = choose_device(options.device, options.engine, options.precision)
        # A drawing comes alone, and an engine of a larger batch would compute all of it.
        self.engine, self.batch_engine = (
            open_engine(options.engine, self.network, device, options.precision, batch_size,
                        threads=threads)
            for batch_size in (1, self.batch_size))
        self.look(np.zeros(self.network.image_set.shape, np.uint8))  # the first call is a slow one

    def look(self, image):
        """uint8 (C, H, W) → (outputs float32 (K,), seconds it took)."""
        start = time.perf_counter()
        outputs = self.engine(image[None])[0].copy()
        return outputs, time.perf_counter() - start

    def read(self, images):
        """uint8 (B, C, H, W) → outputs float32 (B, K)."""
        return self.batch_engine(images).copy()


def make_window(options):
    """The window, not yet shown."""
    from mnist.gui.panels import AnswerPanel
    from mnist.gui.window import ImageWindow
    from MNISTdsource import load_images

    load_test_set = functools.partial(load_images, split="test", data=options.data,
                                      data_dir=options.data_dir, download=False)
    return ImageWindow("GraphMNIST", AnswerPanel(), lambda: Reader(options), load_test_set,
                       size=(960, 660), stretch=(3, 2))


def read_options(argv=None):
    """The command line's options."""
    parser = make_parser(__doc__)
    parser.add_argument("--engine", default="torch", metavar="NAME",
                        help="what runs the network; CompareMNIST.py lists all (default: torch)")
    parser.add_argument("--precision", default="fp32", metavar="NAME",
                        help="what it computes in: fp32, tf32, bf16, fp16 or int8, as far as the "
                             "engine can (default: fp32)")
    add_flags(parser, "network", "weights", "trust-pickle", "device", "data", "data-dir")
    return parser.parse_args(argv)


def main(argv=None):
    """Open the window and wait until it is closed."""
    options = read_options(argv)
    from mnist.gui.application import run_window

    run_window("GraphMNIST", lambda: make_window(options))


if __name__ == "__main__":
    run_program(main)
