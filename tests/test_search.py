"""SearchMNIST.py: studies that are shared and continued; what they say and draw."""

import argparse
import json
import re
import shlex
import signal

import pytest
from scripts import read_until, refused, run, run_here, start

from mnist.training.recipe import LEARNING_RATES, Recipe
from MNISTdsource import find_image_set

pytest.importorskip("optuna", reason="pip install -r requirements/search.txt")

from mnist.training import plan, study  # noqa: E402

# --- Parts ----------------------------------------------------------------------------------------


def test_the_rate_follows_the_batch_size_from_the_default():
    assert Recipe().peak() == LEARNING_RATES["sgd"]
    assert Recipe(batch_size=32).peak() == pytest.approx(LEARNING_RATES["sgd"] / 2)
    assert Recipe(batch_size=32, lr=0.3).peak() == 0.3


def row(*accuracies, **more):
    mean, deviation = study.mean_and_deviation(accuracies)
    return dict({"accuracies": list(accuracies), "mean": mean, "deviation": deviation,
                 "pruned": False, "diverged": False}, **more)


def test_a_difference_within_the_seeds_deviation_is_not_called_one():
    rows = [row(0.990, 0.994), row(0.989, 0.992), row(0.950, 0.953)]
    assert study.as_good_as_the_best(rows, 10000) == rows[:2]
    rows = [row(0.9920, 0.9921), row(0.9900, 0.9901)]
    assert study.as_good_as_the_best(rows, 10000) == rows[:1]


def test_a_difference_of_single_runs_is_held_against_the_number_of_digits():
    rows = [row(0.9920), row(0.9910), row(0.9800)]  # 9 in 10,000 is the standard error
    assert study.as_good_as_the_best(rows, 10000) == rows[:2]
    assert study.as_good_as_the_best(rows, 10**7) == rows[:1]


def test_the_command_names_the_network_and_the_images():
    arguments = argparse.Namespace(kind="grid", network="net", data="gtsrb", option=[],
                                   data_dir="my signs", **dict.fromkeys(plan.SETTINGS))
    command = plan.Plan(arguments, find_image_set("gtsrb")).command({"epochs": 5})
    assert command == ("python TrainMNIST.py --network net --batch-size 128 --data gtsrb "
                       "--data-dir 'my signs'")


# --- The program ----------------------------------------------------------------------------------


def test_the_trial_of_a_killed_worker_is_tried_again(search, tmp_path, mine):
    flags = ["grid", "--network", mine, "--batch-size", 32, 64, "--epochs", 3]
    with search(*flags, run=start) as process:
        read_until(process, "2 trials, 0 done")
        process.kill()
    out, _ = search(*flags)
    assert "\n2/2  " in out and "The choice has an accuracy" in out


@pytest.fixture
def search(small_mnist, tmp_path):
    """Run SearchMNIST.py on a storage of the test's own."""
    def search(*flags, run=run, **settings):
        return run("SearchMNIST.py", *flags, "--data-dir", small_mnist, "--threads", 1,
                   "--storage", tmp_path / "study.db", **settings)
    return search


@pytest.fixture
def mine(tmp_path):
    """A network that is quickly trained, with an option."""
    (tmp_path / "mine.py").write_text(
        "import torch\nclass Mine(torch.nn.Sequential):\n"
        "    def __init__(self, dropout=0.0):\n"
        "        super().__init__(torch.nn.Flatten(), torch.nn.Linear(784, 10),\n"
        "                         torch.nn.Dropout(dropout), torch.nn.LogSoftmax(1))\n")
    return f"{tmp_path}/mine.py:Mine"


def test_a_grid_with_a_rate_that_diverges(search, tmp_path, small_mnist, mine):
    flags = ["grid", "--network", mine, "--batch-size", 32, "--epochs", 1, "--lr", 0.05, 1e38,
             "--json", tmp_path / "record.json", "--plot", tmp_path / "plot.png"]
    out, _ = search(*flags)
    assert "diverged, 0 % of the held-out images" in out
    record = json.loads((tmp_path / "record.json").read_text())
    assert [row["settings"]["lr"] for row in record["rows"]] == [0.05, 1e38]
    assert record["rows"][1]["diverged"] and not record["rows"][0]["diverged"]
    assert (record["trained_on"], record["held_out"], record["points"]) == (834, 166, 2)
    assert 0 < record["choice"]["test_accuracy"] <= 1 and (tmp_path / "plot.png").exists()
    again, _ = search(*flags, run=run_here)  # nothing is trained anew, not even for the test digits
    assert "2 trials, 2 done" in again and "of the held-out images, " not in again
    assert again.split("\n\n")[1:] == out.split("\n\n")[1:]
    command = shlex.split(out.strip().split("\n")[-1])
    assert command == ["python", "TrainMNIST.py", "--network", mine, "--batch-size", "32",
                       "--epochs", "1", "--lr", "0.05", "--data-dir", str(small_mnist)]
    out, _ = run_here(*command[1:], "--threads", 1, "--output", tmp_path / "net.pth")
    assert "training on 1000 images" in out
    _, err = search("grid", "--network", mine, "--batch-size", 16, "--lr", 0.05, run=refused)
    assert "another study called grid-Mine: its tried is" in err and "--study" in err


def test_an_ablation_with_two_workers(search, tmp_path, mine):
    out, _ = search("ablate", "--network", mine, "--option", "augment", "label-smoothing",
                    "--epochs", 1, "--seeds", 2, "--workers", 2, "--plot", tmp_path / "plot.png",
                    "--json", tmp_path / "record.json")
    record = json.loads((tmp_path / "record.json").read_text())
    assert {(row["settings"]["augment"], row["settings"]["label_smoothing"])
            for row in record["rows"]} == {(0, 0), (0, 0.05), (1, 0), (1, 0.05)}
    assert all(len(row["accuracies"]) == 2 for row in record["rows"])
    assert re.findall(r"^(\d)/4  ", out, re.MULTILINE) == list("1234")  # the other worker's too
    assert f"TrainMNIST.py --network {mine}" in out


def test_tuning_stops_the_hopeless_and_keeps_the_default(search, tmp_path, mine):
    flags = ["tune", "--network", mine, "--epochs", 3]
    search(*flags, "--trials", 9, "--json", tmp_path / "record.json", "--plot",
           tmp_path / "plot.png")
    rows = json.loads((tmp_path / "record.json").read_text())["rows"]
    assert len(rows) == 9 and {"batch_size": 128, "optimizer": "sgd", "lr": 0.08,
                               "weight_decay": 5e-4, "label_smoothing": 0.05, "augment": 0.0,
                               "epochs": 3} in [row["settings"] for row in rows]
    assert all(row["epochs"] < 3 for row in rows if row["pruned"])
    out, _ = search(*flags, "--trials", 10, run=run_here)  # one more
    assert "10 trials, 9 done" in out and "\n10/10  " in out


def test_ctrl_c_shows_what_was_found_and_the_study_goes_on(search, mine):
    flags = ["grid", "--network", mine, "--batch-size", 32, "--epochs", 1, 10, 20]
    with search(*flags, "--workers", 2, run=start) as process:
        read_until(process, "1/3  ")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "goes on" in err and "held-out %" in out
    out, _ = search(*flags, run=run_here)
    assert "3 trials, 0 done" not in out and "The choice has an accuracy" in out


@pytest.mark.parametrize("flags, words", [
    (["ablate"], "net has no variants to compare; --option takes augment"),
    (["ablate", "--option", "nonsense"], "invalid choice"),
    (["grid", "--digits", 835], "there are only 834"),
    (["grid", "--network", "nonsense"], "there is none of that name"),
    (["grid", "--storage", "nosuch/study.db"], "--storage nosuch/study.db"),
    (["grid", "--storage", "postgresql://me@127.0.0.1:1/none"], "can't be used"),
])
def test_what_cannot_be_is_one_clear_line(small_mnist, tmp_path, flags, words):
    storage = [] if "--storage" in flags else ["--storage", tmp_path / "study.db"]
    _, err = refused("SearchMNIST.py", *flags, "--data-dir", small_mnist, *storage)
    assert words in err and len(err.strip().split("\n")[-1]) < 250
    assert "error: " in err.strip().split("\n")[-1]


def test_a_file_that_is_no_database(search, tmp_path):
    (tmp_path / "study.db").write_text("a diary")
    _, err = search("grid", run=refused)
    assert "can't be used" in err and (tmp_path / "study.db").read_text() == "a diary"
