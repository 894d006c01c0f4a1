"""TrainMNIST.py, run as a program on a few digits, and its parts."""

import json
import math
import os
import signal
import time

import numpy as np
import pytest
import torch
from scripts import ROOT, run, start

import MNISTtraining
import TrainMNIST
from MNISTdsource import normalise
from MNISTweights import load_network


@pytest.fixture
def train(small_mnist, tmp_path):
    """Run the program on the small data, one thread; gives its weights."""
    def run_training(name, *flags, status=0):
        output = tmp_path / name
        run("TrainMNIST.py", "--data-dir", small_mnist, "--device", "cpu", "--threads", 1,
            "--epochs", 3, "--output", output, *flags, status=status)
        return load_network(output).net.state_dict()
    return run_training


def identical(one, other):
    return all(torch.equal(one[key], other[key]) for key in one)


def test_same_seed_same_weights(train):
    first = train("a.pth", "--augment", "--seed", 3)
    assert identical(first, train("b.pth", "--augment", "--seed", 3))
    assert not identical(first, train("c.pth", "--augment", "--seed", 4))


def test_killed_run_resumes_to_the_same_weights(train, small_mnist, tmp_path):
    undisturbed = train("a.pth", "--augment", "--precision", "fp32")
    output = tmp_path / "b.pth"
    command = ["TrainMNIST.py", "--data-dir", small_mnist, "--device", "cpu", "--threads", 1,
               "--epochs", 3, "--output", output, "--augment", "--precision", "fp32"]
    process = start(*command)
    wait_for(tmp_path / "b.pth.resume", process)
    process.kill()
    process.communicate()
    assert not output.exists()
    out, _ = run(*command, "--resume")
    assert "resuming after epoch" in out
    assert identical(undisturbed, load_network(output).net.state_dict())
    assert sorted(os.listdir(tmp_path)) == ["a.json", "a.pth", "b.json", "b.pth"]


def wait_for(path, process):
    deadline = time.time() + 60
    while not path.exists():
        assert process.poll() is None and time.time() < deadline
        time.sleep(0.005)


def test_resume_of_another_recipe_is_refused(small_mnist, tmp_path):
    command = ["TrainMNIST.py", "--data-dir", small_mnist, "--device", "cpu", "--threads", 1,
               "--output", tmp_path / "net.pth"]
    _, err = run(*command, "--resume", status=2)
    assert "no unfinished run" in err
    process = start(*command, "--epochs", 500)
    wait_for(tmp_path / "net.pth.resume", process)
    process.send_signal(signal.SIGINT)
    sent = time.time()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and time.time() - sent < 2
    assert "--resume goes on" in err and "Traceback" not in err
    _, err = run(*command, "--epochs", 500, "--lr", 0.01, "--resume", status=2)
    assert "the unfinished run had lr 0.05, not 0.01" in err
    (tmp_path / "net.pth.resume").write_bytes(b"garbage")
    _, err = run(*command, "--resume", status=1)
    assert "net.pth.resume" in err


def test_two_processes_train_as_one(train, small_mnist, tmp_path):
    alone = train("alone.pth", "--precision", "fp32")
    import subprocess
    import sys
    output = tmp_path / "two.pth"
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2",
         "--rdzv_backend", "c10d", "--rdzv_endpoint", "127.0.0.1:0",
         os.path.join(ROOT, "TrainMNIST.py"), "--data-dir", str(small_mnist), "--device", "cpu",
         "--threads", "1", "--epochs", "3", "--output", str(output), "--precision", "fp32"],
        capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if "'NoneType' object has no attribute 'get'" in done.stderr:
        pytest.skip("torch 1.13's torchrun doesn't run on Python 3.11")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("epoch 3/3") == 1 and "in each of 2 processes" in done.stdout
    together = load_network(output).net.state_dict()
    for key, tensor in alone.items():
        assert torch.allclose(tensor, together[key], atol=2e-3), key
    assert not identical(alone, together)  # the sums are added in another order


def test_record_and_plot(train, tmp_path):
    train("net.pth", "--json", tmp_path / "record.json", "--plot", tmp_path / "curves.png")
    record = json.loads((tmp_path / "record.json").read_text())
    assert [epoch["epoch"] for epoch in record["epochs"]] == [1, 2, 3]
    assert record["epochs"][-1]["train_loss"] < record["epochs"][0]["train_loss"]
    assert 0.5 < record["result"]["accuracy"] <= 1 and record["settings"]["epochs"] == 3
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("flags, words", [
    (["--output", "."], "is a folder"),
    (["--output", "no/such/folder/net.pth"], "there is no folder"),
    (["--lr", "-1"], "--lr must be above 0"),
    (["--epochs", "0"], "at least 1"),
    (["--validate"], "10000 digits are to be held out"),
])
def test_bad_requests(small_mnist, tmp_path, flags, words):
    _, err = run("TrainMNIST.py", "--data-dir", small_mnist, *flags, status=2, cwd=tmp_path)
    assert words in err


def test_learning_rate_is_one_cycle():
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1)
    rates = []
    for step in range(1, 101):
        MNISTtraining.set_learning_rate(optimiser, 0.2, step / 100)
        rates.append(optimiser.param_groups[0]["lr"])
    assert max(rates) == pytest.approx(0.2) and 20 < np.argmax(rates) < 30
    assert rates[-1] < 1e-6 and all(rate >= 0 for rate in rates)


def test_augmentation_moves_digits_but_keeps_them():
    images = torch.zeros(200, 28, 28, dtype=torch.uint8)
    images[:, 8:20, 12:16] = 255
    x = normalise(images)
    moved = MNISTtraining.augment(x, MNISTtraining.generator("cpu", 0))
    again = MNISTtraining.augment(x, MNISTtraining.generator("cpu", 0))
    assert torch.equal(moved, again)
    assert moved.shape == x.shape and len(torch.unique(moved.sum((1, 2, 3)))) > 190
    assert moved.min() >= x.min() - 1e-5 and moved.max() <= x.max() + 1e-5
    ink = (moved - x.min()).sum((1, 2, 3)) / (x - x.min()).sum((1, 2, 3))
    assert 0.3 < ink.min() and ink.max() < 2.2 and abs(ink.mean() - 1.1) < 0.2


def test_thickness_between_erosion_and_dilation():
    x = torch.zeros(3, 1, 9, 9)
    x[:, :, 3:6, 3:6] = 1
    thinner, same, thicker = MNISTtraining.change_thickness(
        x, torch.tensor([-1.0, 0.0, 1.0]).view(3, 1, 1, 1)).sum((1, 2, 3)).tolist()
    assert (thinner, same, thicker) == (1, 9, 25)


def test_accuracy_has_its_binomial_error():
    assert TrainMNIST.accuracy_text(9935, 10000) == "9935/10000 (99.35 % ± 0.08)"
    assert math.isclose(100 * math.sqrt(0.9935 * 0.0065 / 10000), 0.08, abs_tol=0.005)


@pytest.mark.mnist
@pytest.mark.slow
def test_one_epoch_on_the_real_digits(mnist_dir, tmp_path):
    out, _ = run("TrainMNIST.py", "--data-dir", mnist_dir, "--epochs", 1, "--device", "cpu",
                 "--output", tmp_path / "net.pth")
    accuracy = float(out.split("(")[-1].split(" %")[0])
    assert accuracy > 98.5 and "/10000" in out
