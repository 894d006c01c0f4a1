"""Compare this project's training with the loop that most tutorials write; CompareMNIST.py does it
for inference.

examples:
  python benchmarks/usual_loop.py                 about three minutes
  python benchmarks/usual_loop.py --data cifar10

The usual loop: torchvision's datasets.MNIST with ToTensor and Normalize for every image, a
DataLoader, the same network, SGD, float32. Both run on the CPU with the same threads, one after the
other in one run, since the speed of a machine drifts: compare the ratios, not the seconds.
"""

import json
import os
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, HERE)

import torch
from torch.nn.functional import nll_loss

from mnist.cli import add_flags, make_parser, run_program
from mnist.engines.pytorch import usual_dataset
from mnist.engines.registry import set_threads, why_not
from mnist.errors import UnavailableError
from mnist.models.weights import default_network
from MNISTdsource import find_image_set, load_images
from MNISTmodel import NETWORKS

EPOCHS = 5
BATCH = 128  # as TrainMNIST.py's


def main():
    parser = make_parser(__doc__)
    add_flags(parser, "data", "data-dir", "threads", data="mnist")
    arguments = parser.parse_args()
    if why_not("usual-loop"):
        raise UnavailableError(why_not("usual-loop"))
    threads = set_threads(arguments.threads)
    print(f"{threads} threads")
    # One epoch of the usual loop before and one after ours: their mean is one usual epoch.
    before = usual_training_epoch(arguments)
    five, one = (our_training(arguments, threads, epochs) for epochs in (EPOCHS, 1))
    usual = EPOCHS * (before + usual_training_epoch(arguments)) / 2
    show(f"training, {EPOCHS} epochs", five, usual)
    show(f"training, 1 epoch against its {EPOCHS}", one, usual)


def usual_training_epoch(arguments):
    """Seconds of one training epoch of the usual loop."""
    image_set = find_image_set(arguments.data)
    net = NETWORKS[default_network(image_set)](image_set.shape, image_set.outputs)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    data = load_images(image_set, "train", arguments.data, arguments.data_dir)
    dataset = usual_dataset(image_set, data.images, data.targets)
    loader = torch.utils.data.DataLoader(dataset, batch_size=BATCH, shuffle=True)
    start = time.perf_counter()
    for x, labels in loader:
        optimiser.zero_grad()
        nll_loss(net(x), labels).backward()
        optimiser.step()
    return time.perf_counter() - start


def our_training(arguments, threads, epochs):
    """Seconds that TrainMNIST.py takes for its epochs, each with reading the test images."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, os.path.join(HERE, "TrainMNIST.py"), "--device", "cpu",
                   "--epochs", str(epochs), "--data", arguments.data,
                   "--threads", str(threads), "--json", "-",
                   "--output", os.path.join(folder, "NetMNIST.pth")]
        where = ["--data-dir", arguments.data_dir] if arguments.data_dir else []
        record = json.loads(subprocess.check_output(command + where))
    return record["result"]["seconds"]


def show(what, ours, usual):
    print(f"{what}: ours {ours:.2f} s, the usual loop {usual:.2f} s, ratio {ours / usual:.3f}",
          flush=True)


if __name__ == "__main__":
    run_program(main)
