"""Studies: many trainings with different settings, judged on held-out digits, shared by workers.

A study lives in a database (an SQLite file, or a PostgreSQL server for many machines) and is run by
Optuna. Everything that is to be trained is put into it at once, numbered: a *point*. Workers, of
this process or of any other, take one waiting point after the other, and a point whose worker was
killed is put back. So nothing is lost and nothing counts twice, whoever comes and goes.

    study = Study(open_storage("SearchMNIST.db"), "grid-net", description, points)
    study.work(objective)
    rows = study.rows()
"""

import collections
import contextlib
import itertools
import json
import math
import os
import threading
import time
import warnings

from mnist.errors import MNISTError, UnavailableError, package_missing
from mnist.files import check_writable
from mnist.training.recipe import LEARNING_RATES, Recipe

# A worker says so often (seconds) that it lives, and counts as killed when it hasn't for so long.
HEARTBEAT, GRACE = 2, 20
PATIENCE = 60  # seconds to wait for an SQLite file that another worker writes

# What `tune` chooses from: (lowest, highest, whether on a logarithmic scale), or a list of choices.
RANGES = collections.OrderedDict((
    ("batch_size", [32, 64, 128, 256]),
    ("weight_decay", (1e-5, 1e-2, True)),
    ("label_smoothing", (0.0, 0.15, False)),
    ("augment", (0.0, 1.0, False)),
))
RATES = {"sgd": (0.01, 0.3, True), "adamw": (3e-4, 1e-2, True)}


# --- What is tried --------------------------------------------------------------------------------


def grid_points(space):
    """Every combination of the choices, a list of {setting: value}."""
    return [dict(zip(space, values)) for values in itertools.product(*space.values())]


def suggest(trial, space):
    """The settings of a trial: those of its point, the others as the sampler chooses."""
    def draw(name, choices):
        """A number of a range, of as many digits as the command shows that trains with it."""
        low, high, log = choices
        return float(f"{trial.suggest_float(name, low, high, log=log):.3g}")

    settings = collections.OrderedDict()
    for name, choices in space.items():
        if name == "lr" and isinstance(choices, dict):  # a range for each optimiser
            optimizer = settings["optimizer"]
            settings[name] = draw("lr_" + optimizer, choices[optimizer])
        elif isinstance(choices, list):
            settings[name] = trial.suggest_categorical(name, choices)
        else:
            settings[name] = draw(name, choices)
    return settings


def default_point(space):
    """What a training does when nothing is asked for, as far as it lies in the space of `tune`."""
    point = {}
    usual = Recipe()
    for name, choices in space.items():
        value = getattr(usual, name, None)
        if name == "lr":
            name, value = "lr_sgd", LEARNING_RATES["sgd"]
            choices = choices["sgd"] if isinstance(choices, dict) else choices
        if isinstance(choices, list) and value in choices or (
                isinstance(choices, tuple) and choices[0] <= value <= choices[1]):
            point[name] = value
    return point


# --- The study ------------------------------------------------------------------------------------


def import_optuna():
    """Optuna, silent. Raises UnavailableError where it is missing."""
    reason = package_missing("optuna")
    if reason:
        raise UnavailableError(f"{reason}; pip install -r requirements/search.txt")
    import optuna
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    warnings.filterwarnings("ignore", "Heartbeat of storage")  # `Study.heartbeat` gives it
    return optuna


def open_storage(where):
    """Optuna's storage in an SQLite file, or behind an address like postgresql://user@host/name.

    Raises UnavailableError where it can't be reached.
    """
    optuna = import_optuna()
    import sqlalchemy.exc
    url, settings = where, {"pool_pre_ping": True}
    if "://" not in where:
        check_writable("--storage", where)
        url = "sqlite:///" + os.path.abspath(where)
    if url.startswith("sqlite"):
        settings["connect_args"] = {"timeout": PATIENCE}
    elif url.startswith("postgresql://"):
        url = url.replace("postgresql", "postgresql+" + postgresql_driver(), 1)
    for attempt in range(5):
        try:
            storage = optuna.storages.RDBStorage(url, engine_kwargs=settings,
                                                 heartbeat_interval=HEARTBEAT, grace_period=GRACE)
            if url.startswith("sqlite"):
                lock_while_reading(storage.engine)
            return storage
        except sqlalchemy.exc.DBAPIError as error:
            # Two that make the tables of a new storage at the same moment get in each other's way.
            at_once = (isinstance(error, sqlalchemy.exc.IntegrityError)
                       or "already exists" in str(error))
            if at_once and attempt < 4:
                time.sleep(0.5)
                continue
            raise storage_error(where, error.orig) from error
        except (sqlalchemy.exc.SQLAlchemyError, ImportError, ValueError, RuntimeError) as error:
            raise storage_error(where, error) from error


def lock_while_reading(engine):
    """Have an SQLite file locked from a transaction's first read on, not from its first write: two
    workers that read that the same trial waits would both take it."""
    import sqlalchemy

    def leave_begin_to_us(connection, _):
        connection.isolation_level = None

    def begin(connection):
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    sqlalchemy.event.listen(engine, "connect", leave_begin_to_us)
    sqlalchemy.event.listen(engine, "begin", begin)
    engine.dispose()  # those connections that were made before


def postgresql_driver():
    """Whichever there is; which one SQLAlchemy expects unless told hangs on its version."""
    for driver in ("psycopg", "psycopg2"):
        if not package_missing(driver):
            return driver
    raise UnavailableError("PostgreSQL needs psycopg2: pip install psycopg2-binary")


def storage_error(where, error):
    """One line of why a storage can't be used."""
    return UnavailableError(f"--storage {where}: can't be used "
                            f"({str(error).strip().splitlines()[0]})")


class Study:
    """One study: its points, the workers' rules, and its results."""

    def __init__(self, storage, name, description, points, sampler=None, pruner=None):
        """
        description: what makes the study what it is (network, digits, what is tried), JSON's types.
        points: the fixed settings of each trial, a list of dicts; what they leave out is sampled.
            One that goes on later may have more of them.
        Raises UnavailableError where the storage has another study of that name.
        """
        optuna = import_optuna()
        self.states = optuna.trial.TrialState
        self.optuna, self.storage, self.points = optuna, storage, points
        self.seen_running = set()  # trials that `fail_the_killed` has seen
        self.study = optuna.create_study(
            storage=storage, study_name=name, direction="maximize", load_if_exists=True,
            sampler=sampler or optuna.samplers.RandomSampler(),
            pruner=pruner or optuna.pruners.NopPruner())
        description = json.loads(json.dumps(description))
        there = self.study.user_attrs.get("description")
        if there is None:
            self.study.set_user_attr("description", description)
        elif there != description:
            other = [key for key in sorted(set(there) | set(description))
                     if there.get(key) != description.get(key)]
            raise UnavailableError(
                f"the storage has another study called {name}: its {other[0]} is "
                f"{json.dumps(there.get(other[0]))}, not {json.dumps(description.get(other[0]))}\n"
                "Give this one a name of its own with --study, or another --storage")

    def trials(self, *states):
        """The trials in some of Optuna's states ("WAITING" …), in their order."""
        return self.study.get_trials(deepcopy=False, states=[
            getattr(self.states, state) for state in states])

    def work(self, objective, after_each=None, goes_on=lambda: True):
        """Do what is waiting until every point is done, or `goes_on()` says no.

        `objective(trial)` gives the held-out accuracy and leaves in the trial's `user_attrs` what
        `rows` says; `after_each(row, done)` is told what this worker or another one has done, and
        how many are done by then. A point that another worker has is waited for: it may be killed.
        """
        told = {trial.number for trial in self.trials(*DONE)}
        while goes_on():
            self.fail_the_killed()
            self.put_in_what_is_missing()
            waiting, running = self.trials("WAITING"), self.trials("RUNNING")
            for trial in self.trials(*DONE):
                if after_each and trial.number not in told:
                    told.add(trial.number)
                    after_each(self.row(trial), len(told))
            if waiting:
                self.do_one(objective)
            elif running:
                time.sleep(0.5)
            else:
                return

    def fail_the_killed(self):
        """Have those trials fail whose worker gives no heartbeat any more."""
        self.optuna.storages.fail_stale_trials(self.study)
        for trial in self.trials("RUNNING"):
            if trial.number not in self.seen_running:
                # Killed before its first heartbeat, it would never be missed without this one.
                self.storage.record_heartbeat(trial._trial_id)
                self.seen_running.add(trial.number)

    def do_one(self, objective):
        """Take a trial that waits, and do it unless it is superfluous.

        A worker that was stopped for longer than GRACE counts as killed: another one has its point
        then, and what this one found is dropped.
        """
        trial, value = self.study.ask(), None
        if self.superfluous(trial):
            self.study.tell(trial, state=self.states.FAIL)
            return
        with self.heartbeat(trial):
            try:
                value, state = objective(trial), self.states.COMPLETE
            except self.optuna.TrialPruned:
                state = self.states.PRUNED
            except self.optuna.exceptions.UpdateFinishedTrialError:
                return
            except BaseException:
                self.study.tell(trial, state=self.states.FAIL, skip_if_finished=True)
                raise
        self.study.tell(trial, value, state, skip_if_finished=True)

    @contextlib.contextmanager
    def heartbeat(self, trial):
        """Say every HEARTBEAT seconds, in a thread, that a trial's worker lives."""
        import sqlalchemy.exc
        failures = sqlalchemy.exc.SQLAlchemyError, self.optuna.exceptions.StorageInternalError
        ended = threading.Event()

        def beat():
            while not ended.wait(HEARTBEAT):
                with contextlib.suppress(failures):  # the next one may come through
                    self.storage.record_heartbeat(trial._trial_id)

        self.storage.record_heartbeat(trial._trial_id)
        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def put_in_what_is_missing(self):
        """Have every point wait that nobody has done and nobody is doing."""
        alive = {trial.user_attrs.get("point") for trial in self.trials(*ALIVE)}
        for number, settings in enumerate(self.points):
            if number not in alive:
                self.study.enqueue_trial(settings, user_attrs={"point": number})

    def superfluous(self, trial):
        """Whether an earlier trial has this one's point (two workers may have put it in at the same
        moment), or it has none (when nothing waits, Optuna makes a new one)."""
        point = trial.user_attrs.get("point")
        return point is None or any(
            other.user_attrs.get("point") == point and other.number < trial.number
            for other in self.trials(*ALIVE))

    def done(self):
        """How many points are done."""
        return len(self.trials(*DONE))

    def row(self, trial):
        """What was found in a trial: a dict with settings, accuracies (of the seeds), mean,
        deviation (None of a single one), seconds, epochs (made) and pruned."""
        row = dict(trial.user_attrs, pruned=trial.state == self.states.PRUNED)
        row["mean"], row["deviation"] = mean_and_deviation(row["accuracies"])
        return row

    def rows(self):
        """The `row` of every trial that is done, best first."""
        return sorted(map(self.row, self.trials(*DONE)),
                      key=lambda row: (row["pruned"], -row["mean"], row["seconds"]))

    def note(self, key, value=None):
        """What the study remembers under a name; with a value, have it remember that."""
        if value is not None:
            self.study.set_user_attr(key, value)
        return self.study.user_attrs.get(key)


DONE = ("COMPLETE", "PRUNED")
ALIVE = ("WAITING", "RUNNING") + DONE


@contextlib.contextmanager
def storage_failures(where):
    """Turn what a storage raises while it is used into one line."""
    import_optuna()
    import sqlalchemy.exc
    from optuna.exceptions import StorageInternalError
    try:
        yield
    except (sqlalchemy.exc.SQLAlchemyError, StorageInternalError) as error:
        cause = getattr(error, "orig", None) or error.__cause__ or error
        raise MNISTError(f"--storage {where}: {str(cause).strip().splitlines()[0]}\n"
                         "The same command goes on where it was stopped") from error


# --- What a difference means ----------------------------------------------------------------------


def mean_and_deviation(values):
    """The mean, and the standard deviation between seeds; None for a single one."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, None
    return mean, math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))


def error_of_a_mean(rows, held_out):
    """The standard error of a row's accuracy: how far it would lie elsewhere another time.

    From the seeds' deviation, taken together over all rows that learnt something; with one seed
    from the number of held-out digits, as of a binomial proportion.
    """
    spread = [row for row in rows if row["deviation"] is not None and row["mean"] > 0.5]
    best = rows[0]["mean"]
    if not spread:
        return math.sqrt(best * (1 - best) / held_out)
    near = [row for row in spread if 1 - row["mean"] <= 2 * (1 - best)] or spread
    variance = sum(row["deviation"] ** 2 for row in near) / len(near)
    return math.sqrt(variance / len(near[0]["accuracies"]))


def as_good_as_the_best(rows, held_out):
    """The rows, the best among them, that chance alone could have put behind it: those within two
    standard errors of a difference."""
    limit = 2 * math.sqrt(2) * error_of_a_mean(rows, held_out)
    return [row for row in rows if not row["pruned"] and rows[0]["mean"] - row["mean"] <= limit]
