"""TrainMNIST.py, run as a program on a few digits, and its parts."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import types

import numpy as np
import pytest
import torch
from scripts import ROOT, refused, run, run_here, start

import TrainMNIST
from mnist.datasets.fonts import generated_digits
from mnist.datasets.image_set import MNIST
from mnist.errors import MNISTError, UnavailableError
from mnist.models.registry import find_network, make_network
from mnist.models.weights import load_network, save_weights
from mnist.training import augment, loop
from mnist.training.recipe import Recipe
from mnist.training.state import resume, save_state
from MNISTmodel import NETWORKS


@pytest.fixture
def training(small_mnist, tmp_path):
    """The command that trains weights of this name on the small data, one thread."""
    return lambda name, *flags: [
        "TrainMNIST.py", "--data-dir", small_mnist, "--device", "cpu", "--threads", 1, "--epochs",
        3, "--batch-size", 64, "--lr", 0.05, "--output", tmp_path / name, *flags]


def tensors_of(path):
    return load_network(path).net.state_dict()


def identical(one, other):
    return all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("share", [0, 1])
def test_the_seed_orders_the_digits_too(share):
    """Beside giving the weights a training begins with."""
    digits = [torch.from_numpy(array) for array in generated_digits(256, seed=0)]
    trained = []
    for seed in (3, 3, 4):
        recipe = Recipe(seed=seed, epochs=1, batch_size=64, augment=share)
        net = loop.new_network("net", NETWORKS["net"], MNIST, Recipe(seed=0), "cpu")
        list(loop.train(loop.Run(net, MNIST, recipe, digits, digits)))
        trained.append(net.state_dict())
    assert identical(trained[0], trained[1]) and not identical(trained[0], trained[2])


def test_killed_run_resumes_to_the_same_weights(training, tmp_path):
    run(*training("a.pth", "--augment", "--precision", "fp32", "--json", tmp_path / "record.json",
                  "--plot", tmp_path / "curves.png"))
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["epochs"][-1]["train_loss"] < record["epochs"][0]["train_loss"]
    assert 0.5 < record["result"]["accuracy"] <= 1 and record["settings"]["epochs"] == 3
    assert record["weights"]["file"] == "a.pth" and record["weights"]["parameters"] == 431080
    assert record["weights"]["sha256"] == TrainMNIST.file_digest(tmp_path / "a.pth")
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"
    command = training("b.pth", "--augment", "--precision", "fp32")
    process = start(*command)
    wait_for(tmp_path / "b.pth.resume", process)
    process.kill()
    process.communicate()
    assert not (tmp_path / "b.pth").exists()
    out, _ = run(*command, "--resume")
    assert "resuming after epoch" in out
    record = json.loads((tmp_path / "b.json").read_text())
    assert [epoch["epoch"] for epoch in record["epochs"]] == [1, 2, 3]  # with those before
    assert record["result"]["seconds"] == sum(epoch["seconds"] for epoch in record["epochs"])
    assert identical(tensors_of(tmp_path / "a.pth"), tensors_of(tmp_path / "b.pth"))
    assert sorted(os.listdir(tmp_path)) == [
        "a.pth", "b.json", "b.pth", "curves.png", "record.json"]


def wait_for(path, process):
    deadline = time.time() + 60
    while not path.exists():
        assert process.poll() is None and time.time() < deadline
        time.sleep(0.005)


def test_resume_of_another_recipe_or_of_other_images_is_refused(training, small_mnist, tmp_path):
    command = training("net.pth", "--epochs", 500)
    _, err = refused(*command, "--resume")
    assert "no unfinished run" in err
    process = start(*command)
    wait_for(tmp_path / "net.pth.resume", process)
    process.send_signal(signal.SIGINT)
    sent = time.time()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and time.time() - sent < 10  # Python ends its libraries
    assert "--resume goes on" in err and "Traceback" not in err
    assert os.listdir(tmp_path) == ["net.pth.resume"]
    _, err = refused(*command, "--lr", 0.01, "--resume")
    assert "the unfinished run had lr 0.05" in err
    other = shutil.copytree(small_mnist, tmp_path / "other")
    (other / "train-labels-idx1-ubyte").write_bytes(bytes.fromhex("00000801000003e8") + bytes(1000))
    _, err = refused(*command, "--data-dir", other, "--resume")
    assert "--resume: the unfinished run had data IDX files" in err
    (tmp_path / "net.pth.resume").write_bytes(b"garbage")
    _, err = refused(*command, "--resume", status=1)
    assert "net.pth.resume" in err


@pytest.mark.slow
def test_two_processes_train_as_one(training, tmp_path):
    run(*training("alone.pth", "--precision", "fp32"))
    script, *flags = map(str, training("two.pth", "--precision", "fp32"))
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2",
         "--rdzv_backend", "c10d", "--rdzv_endpoint", "127.0.0.1:0", os.path.join(ROOT, script),
         *flags],
        capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if "'NoneType' object has no attribute 'get'" in done.stderr:
        pytest.skip("torch 1.13's torchrun doesn't run on Python 3.11")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("epoch 3/3") == 1 and "in each of 2 processes" in done.stdout
    alone, together = tensors_of(tmp_path / "alone.pth"), tensors_of(tmp_path / "two.pth")
    for key, tensor in alone.items():
        assert torch.allclose(tensor, together[key], atol=2e-3), key
    assert not identical(alone, together)  # the sums are added in another order


@pytest.mark.parametrize("flags, words", [
    (["--output", "no/such/folder/net.pth"], "there is no folder"),
    (["--lr", "-1"], "--lr: must be above 0"),
    (["--epochs", "0"], "at least 1"),
    (["--augment", "1.5"], "--augment: must be from 0 to 1"),
    (["--json", "no/such/folder/record.json"], "--json no/such/folder/record.json: there is no"),
    (["--plot", "no/such/folder/curves.png"], "--plot no/such/folder/curves.png: there is no"),
    (["--network", "nett"], "did you mean net?"),
    (["--teacher", "no.pth"], "no weights file no.pth"),
])
def test_bad_requests(small_mnist, tmp_path, flags, words):
    out, err = refused("TrainMNIST.py", "--data-dir", small_mnist, "--output", "net.pth", *flags,
                       cwd=tmp_path)
    assert words in err and "epoch 1" not in out and os.listdir(tmp_path) == []


def test_diverged_training_replaces_nothing(training, tmp_path):
    (tmp_path / "net.pth").write_bytes(b"weights of old")
    _, err = refused(*training("net.pth", "--lr", 1e4), status=1)
    assert "the training diverged in epoch 1; nothing was saved" in err and "--lr" in err
    assert (tmp_path / "net.pth").read_bytes() == b"weights of old"
    assert os.listdir(tmp_path) == ["net.pth"]


@pytest.mark.parametrize("right, loss, guessed", [
    (61, 1.2, False), (60, 1.2, True), (60, 1.0, False), (85, 9.9, True), (100, 9.9, False)])
def test_what_counts_as_guessing_among_few_classes(right, loss, guessed):
    TrainMNIST.import_library()
    image_set = MNIST._replace(classes=("cat", "ship", "truck"))
    run = types.SimpleNamespace(
        history=[{"right": right, "accuracy": right / 180, "loss": loss}], image_set=image_set,
        watched=(None, torch.arange(180) % 3), training=(None, torch.zeros(6000)),
        recipe=Recipe())
    with pytest.raises(MNISTError, match="nothing") if guessed else contextlib.nullcontext():
        TrainMNIST.check_converged(run, types.SimpleNamespace(images=np.zeros((9, 1, 28, 28))))


def test_student_of_another_network(training, tmp_path):
    run_here(*training("net.pth"))
    out, err = run(*training("small.pth", "--network", "small", "--teacher", tmp_path / "net.pth",
                             "--optimizer", "adamw", "--json", "-"), env={"PYTHONUNBUFFERED": "1"})
    assert f"teacher: net, {tmp_path / 'net.pth'}" in err
    assert load_network(tmp_path / "small.pth").name == "small"
    record = json.loads(out)
    assert record["settings"]["network"] == "small"
    assert record["teacher_sha256"] == TrainMNIST.file_digest(tmp_path / "net.pth")


def test_what_only_validates_overwrites_no_trained_weights(monkeypatch):
    monkeypatch.setattr("sys.argv", ["TrainMNIST.py", "--validate"])
    arguments = TrainMNIST.parse_arguments()
    TrainMNIST.import_library()
    TrainMNIST.choose_files(arguments, "small", MNIST)
    assert arguments.output == os.path.join(ROOT, "SmallMNIST-validate.pth")
    assert arguments.json == os.path.join(ROOT, "SmallMNIST-validate.json")


def test_learning_rate_is_one_cycle():
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1)
    rates = []
    for step in range(1, 101):
        loop.set_learning_rate(types.SimpleNamespace(optimiser=optimiser, recipe=Recipe(lr=0.2)),
                               step / 100)
        rates.append(optimiser.param_groups[0]["lr"])
    assert max(rates) == pytest.approx(0.2) and 20 < np.argmax(rates) < 30
    assert rates[-1] < 1e-6 and all(rate >= 0 for rate in rates)


def test_augmentation_moves_digits_but_keeps_them():
    """Across and down independently."""
    images = torch.zeros(200, 1, 28, 28, dtype=torch.uint8)
    images[:, :, 8:20, 12:16] = 255
    x = MNIST.normalise(images)
    moved, again = (augment.augment_digits(x, loop.make_generator("cpu", 0)) for _ in range(2))
    assert torch.equal(moved, again) and moved.shape == x.shape
    assert moved.min() >= x.min() - 1e-5 and moved.max() <= x.max() + 1e-5
    ink, places = (moved - x.min())[:, 0], torch.arange(28.0)
    total = ink.sum((1, 2))
    kept = total / (x - x.min()).sum((1, 2, 3))
    assert 0.3 < kept.min() and kept.max() < 2.2 and abs(kept.mean() - 1.1) < 0.2
    across, down = ink.sum(1) @ places / total, ink.sum(2) @ places / total
    for centre in (across, down):
        assert abs(centre.mean() - 13.5) < 0.3 and centre.std() > 0.5
    assert abs(np.corrcoef(across, down)[0, 1]) < 0.3


def test_some_ones_get_a_flag_and_no_other_digit(monkeypatch):
    images = torch.zeros(400, 1, 28, 28, dtype=torch.uint8)
    images[:, :, 4:24, 13:15] = 255
    x, places = MNIST.normalise(images), torch.arange(28.0)
    flagged = augment.add_flags(x, loop.make_generator("cpu", 0))
    ink = (flagged - x.min())[:, 0] / (x.max() - x.min())
    assert (ink.sum((1, 2)) > 45).all()
    assert torch.all(ink[:, :3] == 0) and torch.all(ink[:, 24:] == 0)  # as high as before
    foot = ink[:, 23] @ places / ink[:, 23].sum(1)
    assert torch.all(ink[:, 4:16].sum(1) @ places / ink[:, 4:16].sum((1, 2)) < foot)  # to its left
    blank = augment.add_flags(x * 0, loop.make_generator("cpu", 0))
    assert torch.isfinite(blank).all()  # of a blank image labelled 1
    monkeypatch.setitem(augment.AUGMENT, "digits", lambda x, generator: x)
    targets = torch.arange(400) % 10
    changed, _ = augment.augment(MNIST, x, targets, loop.make_generator("cpu", 0))
    changed = (changed != x).any(3).any(2).any(1)
    assert 0 < changed.sum() < 40 and torch.all(targets[changed] == 1)


def test_thickness_between_erosion_and_dilation():
    x = torch.zeros(3, 1, 9, 9)
    x[:, :, 3:6, 3:6] = 1
    thinner, same, thicker = augment.change_thickness(
        x, torch.tensor([-1.0, 0.0, 1.0]).view(3, 1, 1, 1)).sum((1, 2, 3)).tolist()
    assert (thinner, same, thicker) == (1, 9, 25)


def test_accuracy_has_its_binomial_error():
    result = {"right": 9935, "accuracy": 0.9935}
    assert TrainMNIST.score_text(result, 10000) == "accuracy 9935/10000 (99.35 % ± 0.08)"


@pytest.mark.mnist
@pytest.mark.slow
def test_one_epoch_on_the_real_digits(mnist_dir, tmp_path):
    out, _ = run("TrainMNIST.py", "--data-dir", mnist_dir, "--epochs", 1, "--device", "cpu",
                 "--output", tmp_path / "net.pth")
    accuracy = float(out.split("(")[-1].split(" %")[0])
    assert accuracy > 98.5 and "/10000" in out


# --- The loop, called as other programs do --------------------------------------------------------


def noisy(*_):
    """Batch norm, whose averages are no parameters, and dropout, which draws numbers itself."""
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 5, stride=3), torch.nn.BatchNorm2d(4), torch.nn.ReLU(),
        torch.nn.Flatten(), torch.nn.Dropout(0.3), torch.nn.Linear(256, 10),
        torch.nn.LogSoftmax(1))


@pytest.fixture(scope="module")
def few():
    """(digits to train on, digits to watch), generated."""
    digits = [torch.from_numpy(array) for array in generated_digits(700, seed=1)]
    return [array[:500] for array in digits], [array[500:] for array in digits]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_resuming_keeps_what_batch_norm_and_dropout_need(few, tmp_path, optimizer):
    recipe = Recipe(epochs=4, batch_size=64, augment=1.0, optimizer=optimizer)
    whole = loop.new_network("noisy", noisy, MNIST, recipe, "cpu")
    list(loop.train(loop.Run(whole, MNIST, recipe, *few)))

    TrainMNIST.import_library()
    for _ in range(2):
        net = loop.new_network("noisy", noisy, MNIST, recipe, "cpu")
        run = loop.Run(net, MNIST, recipe, *few)
        if (tmp_path / "state").exists():
            resume(tmp_path / "state", recipe._asdict(), run)
        for line in loop.train(run):
            save_state(tmp_path / "state", recipe._asdict(), run)
            if line["epoch"] == 2:
                break
    assert [line["epoch"] for line in run.history] == [1, 2, 3, 4]
    assert identical(whole.state_dict(), run.net.state_dict())
    assert whole[1].num_batches_tracked == 4 * 8


def test_a_student_learns_from_the_teacher_what_the_labels_do_not_say(few):
    recipe = Recipe(epochs=6, batch_size=16, lr=0.02, precision="fp32")
    (images, labels), watched = few
    teacher = loop.new_network("net", NETWORKS["net"], MNIST, recipe, "cpu")
    list(loop.train(loop.Run(teacher, MNIST, recipe, (images, labels), watched)))
    before = {key: tensor.clone() for key, tensor in teacher.state_dict().items()}
    wrong = labels[torch.randperm(len(labels), generator=loop.make_generator("cpu", 0))]

    def accuracy(**more):
        student = loop.new_network("small", NETWORKS["small"], MNIST, recipe, "cpu")
        run = loop.Run(student, MNIST, recipe, (images, wrong), watched, **more)
        return list(loop.train(run))[-1]["accuracy"]
    assert accuracy(teacher=teacher) > 0.8 > 0.4 > accuracy()
    assert identical(before, teacher.state_dict())


def test_a_teacher_gets_images_of_another_size_normalised_its_own_way(tmp_path):
    TrainMNIST.import_library()
    theirs = MNIST._replace(shape=(1, 40, 40), mean=(0.5,), std=(0.25,))
    images = torch.randint(0, 256, (4, 1, 28, 28), dtype=torch.uint8)
    for name in ("transfer-efficientnet-lite0-32", "net"):
        save_weights(make_network(*find_network(name), theirs), tmp_path / name, name, theirs)
    teacher = TrainMNIST.find_teacher(tmp_path / "transfer-efficientnet-lite0-32", MNIST).net
    teacher.net = torch.nn.Identity()  # gives back what the network is given
    assert torch.allclose(teacher(MNIST.normalise(images)), theirs.normalise(images), atol=1e-4)
    with pytest.raises(UnavailableError, match="of 1×40×40, not of 1×28×28"):
        TrainMNIST.find_teacher(tmp_path / "net", MNIST)


def test_after_step_and_frozen_parameters(few):
    recipe = Recipe(epochs=1, batch_size=64)
    net = loop.new_network("noisy", noisy, MNIST, recipe, "cpu")
    net[0].weight.requires_grad_(False)
    frozen, steps = net[0].weight.clone(), []

    def mask():
        steps.append(1)
        with torch.no_grad():
            net[5].weight[:, :100] = 0
    run = loop.Run(net, MNIST, recipe, *few)
    run.after_step = mask
    list(loop.train(run))
    assert len(steps) == 8 and torch.equal(frozen, net[0].weight)
    assert net[5].weight[:, :100].abs().max() == 0 < net[5].weight.abs().max()
    with pytest.raises(UnavailableError, match="nothing to train"):
        loop.make_optimiser(net.requires_grad_(False), recipe)


def test_pictures_are_flipped_and_moved_but_signs_never_flipped():
    x = torch.zeros(400, 3, 32, 32)
    x[:, :, :, 4:9] = 1  # a stripe on the left
    pictures = augment.augment_pictures(x, loop.make_generator("cpu", 0))
    right = pictures[..., 16:].mean((1, 2, 3)) > pictures[..., :16].mean((1, 2, 3))
    assert 0.4 < right.float().mean() < 0.6 and len(torch.unique(pictures.flatten(1), dim=0)) > 15
    assert set(torch.unique(pictures).tolist()) == {0, 1}
    signs = augment.augment_signs(x, loop.make_generator("cpu", 0))
    assert (signs[..., 16:].mean((1, 2, 3)) < signs[..., :16].mean((1, 2, 3))).all()


def test_regression_is_judged_by_its_root_mean_square_error():
    values, zeros = torch.tensor([[0.5, 0.0], [0.0, 0.0]]), torch.zeros(2, 2)
    image_set = MNIST._replace(task="regression", classes=("x", "y"))
    assert image_set.score(values.numpy(), zeros.numpy()) == pytest.approx(0.25)
    assert float(loop.loss_of(values, zeros, 0)) == pytest.approx(0.0625)
    assert float(loop.loss_of(zeros, zeros, 0, zeros + 2)) == pytest.approx(4 * loop.TEACHER_SHARE)


# --- What it computes with ------------------------------------------------------------------------


@pytest.mark.parametrize("capability, has", [((5, 3), False), ((7, 5), False), ((8, 0), True),
                                             ((8, 7), True), ((12, 0), True)])
def test_bfloat16_on_a_gpu_is_not_emulated(monkeypatch, capability, has):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)  # true of Turing too
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))
    assert loop.use_bfloat16("auto", "cuda", net, MNIST) is has
    assert loop.use_bfloat16("bf16", "cuda", net, MNIST)
    assert not loop.use_bfloat16("fp32", "cuda", net, MNIST)


def test_auto_takes_float32_where_torch_lacks_a_part_of_bfloat16(monkeypatch):
    class Float32Only(torch.nn.Linear):
        def forward(self, x):
            x = super().forward(x.flatten(1))
            if x.dtype == torch.bfloat16:
                raise RuntimeError('"some_kernel" not implemented for \'BFloat16\'')
            return x

    monkeypatch.setattr(loop, "has_bfloat16", lambda device: True)
    assert not loop.use_bfloat16("auto", "cpu", Float32Only(784, 10), MNIST)


def test_float32_on_a_gpu_is_not_tf32(monkeypatch):
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    monkeypatch.setattr(cudnn, "deterministic", False)
    cudnn.allow_tf32 = matmul.allow_tf32 = True
    loop.prepare_device(torch.device("cuda"))
    assert cudnn.deterministic and not cudnn.allow_tf32 and not matmul.allow_tf32
