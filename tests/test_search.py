"""SearchMNIST.py: studies that are shared, killed and continued; what they say and draw."""

import contextlib
import glob
import json
import os
import random
import re
import shlex
import signal
import socket
import subprocess
import time

import pytest
from scripts import read_until, refused, run, run_here, start

from mnist.errors import UnavailableError
from mnist.training.recipe import LEARNING_RATES, Recipe

pytest.importorskip("optuna", reason="pip install -r requirements/search.txt")

import mnist.training.study  # noqa: E402
from mnist.models.registry import find_network, variants_of  # noqa: E402

HERE = os.path.dirname(os.path.abspath(__file__))


# --- Parts ----------------------------------------------------------------------------------------


def test_the_rate_follows_the_batch_size_from_the_default():
    assert Recipe().peak() == LEARNING_RATES["sgd"]
    assert Recipe(batch_size=32).peak() == pytest.approx(LEARNING_RATES["sgd"] / 2)
    assert Recipe(batch_size=32, lr=0.3).peak() == 0.3


def test_a_grid_has_every_combination_once():
    points = mnist.training.study.grid_points({"a": [1, 2], "b": [3], "c": ["x", "y"]})
    assert len(points) == 4 and {tuple(point.values()) for point in points} == {
        (1, 3, "x"), (1, 3, "y"), (2, 3, "x"), (2, 3, "y")}


def test_variants_of_a_network(tmp_path):
    options, variant = variants_of("separable")
    assert options == {"batch_norm": (False, True), "dropout": (0.0, 0.5)}
    assert [variant({"batch_norm": a, "dropout": b}) for a in (False, True) for b in (0, 0.5)] == [
        "separable", "separable-dropout", "separable-bn", "separable-bn-dropout"]
    assert variants_of("net")[0] == {}
    (tmp_path / "mine.py").write_text(
        "import torch\nclass Mine(torch.nn.Sequential):\n"
        "    def __init__(self, norm=False, width=32, dropout=0.0):\n"
        "        super().__init__(torch.nn.Flatten(), torch.nn.Linear(784, 10),\n"
        "                         torch.nn.Dropout(dropout), torch.nn.LogSoftmax(1))\n")
    options, variant = variants_of(f"{tmp_path}/mine.py:Mine")
    assert options == {"norm": (False, True), "dropout": (0.0, 0.5)}  # a width isn't switched
    assert variant({"norm": False, "dropout": 0.0}) == f"{tmp_path}/mine.py:Mine"
    chosen = variant({"norm": False, "dropout": 0.5})
    assert chosen == f"{tmp_path}/mine.py:Mine:dropout=0.5"
    name, make = find_network(chosen)
    assert name == "Mine" and make()[2].p == 0.5
    with pytest.raises(UnavailableError, match="NAME=VALUE"):
        find_network(f"{tmp_path}/mine.py:Mine:dropout")


def row(*accuracies, **more):
    mean, deviation = mnist.training.study.mean_and_deviation(accuracies)
    return dict({"accuracies": list(accuracies), "mean": mean, "deviation": deviation,
                 "pruned": False}, **more)


def test_a_difference_within_the_seeds_deviation_is_not_called_one():
    rows = [row(0.990, 0.994), row(0.989, 0.992), row(0.950, 0.953)]
    assert mnist.training.study.as_good_as_the_best(rows, 10000) == rows[:2]
    rows = [row(0.9920, 0.9921), row(0.9900, 0.9901)]
    assert mnist.training.study.as_good_as_the_best(rows, 10000) == rows[:1]


def test_a_difference_of_single_runs_is_held_against_the_number_of_digits():
    rows = [row(0.9920), row(0.9910), row(0.9800)]  # 9 in 10,000 is the standard error
    assert mnist.training.study.as_good_as_the_best(rows, 10000) == rows[:2]
    assert mnist.training.study.as_good_as_the_best(rows, 10**7) == rows[:1]


def test_the_first_trial_of_a_search_is_what_training_does_by_default():
    space = dict(mnist.training.study.RANGES, optimizer=["sgd", "adamw"], lr=mnist.training.study.RATES)
    point = mnist.training.study.default_point(space)
    assert point == {"batch_size": 128, "weight_decay": 5e-4, "label_smoothing": 0.05,
                     "augment": 0.0, "optimizer": "sgd", "lr_sgd": 0.08}


# --- Workers --------------------------------------------------------------------------------------


def open_study(storage, points):
    """What the workers of study_worker.py work on."""
    return mnist.training.study.Study(mnist.training.study.open_storage(storage), "waiting", {"points": points},
                             [{"x": x} for x in range(points)])


def finished(storage, points):
    """Check that every point is done, once; gives the numbers of the failed and of all trials."""
    study = open_study(storage, points)
    done = sorted(trial.user_attrs["point"] for trial in study.trials("COMPLETE"))
    assert done == list(range(points))
    assert sorted(r["settings"]["x"] for r in study.rows()) == list(range(points))
    assert not study.trials("WAITING", "RUNNING", "PRUNED")
    return len(study.trials("FAIL")), len(study.study.trials)


def worker(storage, points, seconds=0.3):
    return start(os.path.join("tests", "study_worker.py"), storage, points, seconds)


def test_two_workers_share_a_study(tmp_path):
    storage = str(tmp_path / "study.db")
    both = [worker(storage, 10) for _ in range(2)]
    said = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    begun = [out.count("begins") for out, _ in said]
    assert min(begun) > 0 and sum(begun) == 10
    finished(storage, 10)


def test_no_two_workers_take_the_same_trial(tmp_path):
    storage = str(tmp_path / "study.db")
    open_study(storage, 60).put_in_what_is_missing()
    workers = [worker(storage, 60, seconds=0) for _ in range(3)]
    said = [process.communicate(timeout=120) for process in workers]
    assert [process.returncode for process in workers] == [0, 0, 0], said
    assert sum(out.count("begins") for out, _ in said) == 60
    finished(storage, 60)


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="needs signals that stop a process")
def test_a_worker_that_was_stopped_for_long_goes_on_without_its_trial(tmp_path):
    storage = str(tmp_path / "study.db")
    stopped = worker(storage, 4, seconds=1)
    read_until(stopped, "begins")
    stopped.send_signal(signal.SIGSTOP)
    other = worker(storage, 4, seconds=0)
    _, err = other.communicate(timeout=120)
    assert other.returncode == 0, err
    stopped.send_signal(signal.SIGCONT)
    _, err = stopped.communicate(timeout=120)
    assert stopped.returncode == 0, err
    assert finished(storage, 4) == (1, 5)


def test_a_worker_killed_before_its_first_heartbeat_is_missed_too(tmp_path):
    storage = str(tmp_path / "study.db")
    study = open_study(storage, 3)
    study.put_in_what_is_missing()
    study.study.ask()  # taken, and never heard of again
    process = worker(storage, 3, seconds=0)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert finished(storage, 3) == (1, 4)


def kill_at_random(storage, points, kills):
    """Two workers on a study, one of them killed again and again while it has a trial; gives
    `finished` of it."""
    chance = random.Random(0)
    workers = [worker(storage, points) for _ in range(2)]
    for _ in range(kills):
        victim = chance.randrange(2)
        if workers[victim].poll() is None:
            with contextlib.suppress(AssertionError):  # what is left may wait for the other one
                read_until(workers[victim], "begins")
            time.sleep(chance.random() * 0.35)
        workers[victim].kill()
        workers[victim].communicate()
        workers[victim] = worker(storage, points)
    for process in workers:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
    return finished(storage, points)


@pytest.mark.slow
def test_killed_twenty_times_each_trial_is_done_once(tmp_path):
    failed, _ = kill_at_random(str(tmp_path / "study.db"), points=60, kills=20)
    assert failed >= 5


@pytest.fixture(scope="module")
def postgresql(tmp_path_factory):
    """The address of an empty database of a PostgreSQL server of our own."""
    pytest.importorskip("psycopg2", reason="pip install psycopg2-binary")
    programs = sorted(glob.glob("/usr/lib/postgresql/*/bin"))
    if not programs:
        pytest.skip("no PostgreSQL is installed")
    folder = tmp_path_factory.mktemp("postgresql")
    # It refuses to run as root; Debian's package brings a user of its own.
    who = ["setpriv", "--reuid", "postgres", "--regid", "postgres", "--clear-groups"]
    if os.getuid():
        who = []
    else:
        subprocess.run(["chown", "postgres", str(folder)], check=True)
        for parent in list(folder.parents)[:-2]:
            if parent.stat().st_uid == 0 and str(parent).startswith("/tmp/"):
                parent.chmod(0o755)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    data = str(folder / "data")
    subprocess.run([*who, f"{programs[-1]}/initdb", "--auth=trust", "--username=me", data],
                   check=True, stdout=subprocess.DEVNULL)
    server = subprocess.Popen([*who, f"{programs[-1]}/postgres", "-D", data, "-p", str(port),
                               "-h", "127.0.0.1", "-k", data], stderr=subprocess.PIPE, text=True)
    for line in server.stderr:
        if "ready to accept connections" in line:
            break
    yield f"postgresql://me@127.0.0.1:{port}/postgres"
    server.send_signal(signal.SIGINT)
    server.communicate(timeout=30)


@pytest.mark.slow
def test_workers_share_a_study_in_postgresql(postgresql):
    failed, _ = kill_at_random(postgresql, points=8, kills=2)
    assert failed >= 1


# --- The program ----------------------------------------------------------------------------------


@pytest.fixture
def search(digits_enough, tmp_path):
    """Run SearchMNIST.py on a storage of the test's own."""
    def search(*flags, run=run, **settings):
        return run("SearchMNIST.py", *flags, "--data-dir", digits_enough, "--threads", 1,
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


def test_a_grid_with_a_rate_that_diverges(search, tmp_path, digits_enough, mine):
    flags = ["grid", "--network", mine, "--batch-size", 32, "--epochs", 1, "--lr", 0.05, 1e38,
             "--json", tmp_path / "record.json", "--plot", tmp_path / "plot.png"]
    out, _ = search(*flags)
    assert "diverged, 0 % of the held-out digits" in out
    record = json.loads((tmp_path / "record.json").read_text())
    assert [row["settings"]["lr"] for row in record["rows"]] == [0.05, 1e38]
    assert record["rows"][1]["mean"] == 0 < record["rows"][0]["mean"]
    assert (record["trained_on"], record["held_out"], record["points"]) == (200, 10000, 2)
    assert 0 < record["choice"]["test_accuracy"] <= 1 and (tmp_path / "plot.png").exists()
    again, _ = search(*flags, run=run_here)  # nothing is trained anew, not even for the test digits
    assert "2 trials, 2 done" in again and "of the held-out digits, " not in again
    assert again.split("\n\n")[1:] == out.split("\n\n")[1:]
    command = shlex.split(out.strip().split("\n")[-1])
    assert command == ["python", "TrainMNIST.py", "--network", mine, "--batch-size", "32",
                       "--epochs", "1", "--lr", "0.05"]
    out, _ = run_here(*command[1:], "--data-dir", digits_enough, "--threads", 1,
                      "--output", tmp_path / "net.pth")
    assert "training on 10200 digits" in out
    _, err = search("grid", "--network", mine, "--batch-size", 16, "--lr", 0.05, run=refused)
    assert "another study called grid-Mine: its tried is" in err and "--study" in err


def test_an_ablation_with_two_workers(search, tmp_path, mine):
    out, _ = search("ablate", "--network", mine, "--option", "dropout", "label-smoothing",
                    "--epochs", 1, "--seeds", 2, "--workers", 2, "--plot", tmp_path / "plot.png",
                    "--json", tmp_path / "record.json")
    record = json.loads((tmp_path / "record.json").read_text())
    assert {(row["settings"]["dropout"], row["settings"]["label_smoothing"])
            for row in record["rows"]} == {(0, 0), (0, 0.05), (0.5, 0), (0.5, 0.05)}
    assert all(len(row["accuracies"]) == 2 for row in record["rows"])
    assert re.findall(r"^(\d)/4  ", out, re.MULTILINE) == list("1234")  # the other worker's too
    assert f"TrainMNIST.py --network {mine}" in out


def test_tuning_stops_the_hopeless_and_keeps_the_default(search, tmp_path, mine):
    flags = ["tune", "--network", mine, "--epochs", 3, "--optimizer", "sgd"]
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
    assert "3 trials, 0 done" not in out and "The choice reads" in out


@pytest.mark.parametrize("flags, words", [
    (["ablate"], "net has no options to leave out; --option takes augment"),
    (["ablate", "--option", "nonsense"], "no such option; there are augment"),
    (["grid", "--digits", 201], "there are only 200"),
    (["grid", "--lr", 0], "--lr can't be 0"),
    (["lr", "--augment", 2], "--augment can't be 2"),
    (["grid", "--network", "nonsense"], "there is none of that name"),
    (["grid", "--plot", "nosuch/plot.png"], "nosuch"),
    (["grid", "--storage", "nosuch/study.db"], "--storage nosuch/study.db"),
    (["grid", "--storage", "nonsense://x"], "--storage nonsense://x: can't be used"),
    (["grid", "--storage", "postgresql://me@127.0.0.1:1/none"], "can't be used"),
])
def test_what_cannot_be_is_one_clear_line(digits_enough, tmp_path, flags, words):
    storage = [] if "--storage" in flags else ["--storage", tmp_path / "study.db"]
    _, err = refused("SearchMNIST.py", *flags, "--data-dir", digits_enough, *storage)
    assert words in err and len(err.strip().split("\n")[-1]) < 250
    assert "error: " in err.strip().split("\n")[-1]


def test_a_file_that_is_no_database(search, tmp_path):
    (tmp_path / "study.db").write_text("a diary")
    _, err = search("grid", run=refused)
    assert "can't be used" in err and (tmp_path / "study.db").read_text() == "a diary"
