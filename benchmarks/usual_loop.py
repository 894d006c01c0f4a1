"""Compare this project's training and inference with the loop that most tutorials write.

examples:
  python benchmarks/usual_loop.py                 training and inference, about three minutes
  python benchmarks/usual_loop.py --skip-training

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

from MNISTscript import UnavailableError, add_flags, make_parser, run_program  # noqa: E402

EPOCHS = 5


def main():
    parser = make_parser(__doc__)
    add_flags(parser, "data-dir", "threads")
    parser.add_argument("--skip-training", action="store_true", help="compare inference only")
    arguments = parser.parse_args()

    from MNISTengine import set_threads
    threads = set_threads(arguments.threads)
    print(f"{threads} threads")
    if not arguments.skip_training:
        compare_training(arguments.data_dir, threads)
    compare_inference(arguments.data_dir)


def compare_training(data_dir, threads):
    """One epoch of the usual loop before and one after our five: their mean is one usual epoch."""
    before = usual_training_epoch(data_dir)
    ours = our_training(data_dir, threads)
    usual = EPOCHS * (before + usual_training_epoch(data_dir)) / 2
    show(f"training, {EPOCHS} epochs", ours, usual)


def usual_training_epoch(data_dir):
    """Seconds of one training epoch of the usual loop."""
    import torch
    from torch.nn.functional import nll_loss

    from MNISTmodel import Net
    net = Net()
    optimiser = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    loader = torch.utils.data.DataLoader(usual_dataset("train", data_dir), batch_size=64,
                                         shuffle=True)
    start = time.perf_counter()
    for x, labels in loader:
        optimiser.zero_grad()
        nll_loss(net(x), labels).backward()
        optimiser.step()
    return time.perf_counter() - start


def our_training(data_dir, threads):
    """Seconds that TrainMNIST.py takes, after its imports: reading the data, epochs, tests."""
    with tempfile.TemporaryDirectory() as folder:
        record = os.path.join(folder, "record.json")
        command = [sys.executable, os.path.join(HERE, "TrainMNIST.py"), "--device", "cpu",
                   "--epochs", str(EPOCHS), "--threads", str(threads), "--json", record,
                   "--output", os.path.join(folder, "NetMNIST.pth")]
        subprocess.check_call(command + (["--data-dir", data_dir] if data_dir else []))
        with open(record) as file:
            return json.load(file)["result"]["seconds"]


def compare_inference(data_dir):
    """The 10,000 test digits by the usual loop and by our engine, in turns; medians."""
    from MNISTdsource import load_split
    from MNISTengine import open_engine
    from MNISTmodel import load_weights
    net = load_weights()
    images, _ = load_split("test", data_dir)
    for batch_size in (64, 1):
        engine = open_engine("torch", net, batch_size=batch_size)
        pairs = [(our_inference(engine, images), usual_inference(net, batch_size, data_dir))
                 for _ in range(4)][1:]  # the first turn warms both up
        ours, usual = (sorted(times)[1] for times in zip(*pairs))
        show(f"inference, batch {batch_size}", ours, usual)


def our_inference(engine, images):
    """Seconds for one pass of our engine over the images."""
    start = time.perf_counter()
    for first in range(0, len(images), engine.batch_size):
        engine(images[first:first + engine.batch_size])
    return time.perf_counter() - start


def usual_inference(net, batch_size, data_dir):
    """Seconds for one pass of the usual loop over the test digits."""
    import torch
    loader = torch.utils.data.DataLoader(usual_dataset("test", data_dir), batch_size=batch_size)
    start = time.perf_counter()
    with torch.no_grad():
        for x, _ in loader:
            net(x)
    return time.perf_counter() - start


def usual_dataset(split, data_dir):
    """torchvision's MNIST with the usual transforms, over the digits that are already here."""
    try:
        from torchvision import datasets, transforms
    except (ImportError, RuntimeError) as error:  # RuntimeError: one that doesn't fit this torch
        raise UnavailableError(f"needs a torchvision that fits this torch ({error})") from error
    import torch

    from MNISTdsource import MEAN, STD, load_split

    class FoundMNIST(datasets.MNIST):
        def _check_exists(self):
            return True

        def _load_data(self):
            images, labels = load_split(split, data_dir)
            return torch.from_numpy(images), torch.from_numpy(labels).long()

    usual = transforms.Compose([transforms.ToTensor(), transforms.Normalize((MEAN,), (STD,))])
    return FoundMNIST("", train=split == "train", transform=usual)


def show(what, ours, usual):
    print(f"{what}: ours {ours:.2f} s, the usual loop {usual:.2f} s, ratio {ours / usual:.3f}",
          flush=True)


if __name__ == "__main__":
    run_program(main)
