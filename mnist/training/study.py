"""Studies: many trainings with different settings, judged on held-out images, shared by workers.

A study lives in a database and is run by Optuna: its storage (an SQLite file, or any database that
SQLAlchemy reaches), its samplers, its heartbeat, by which a killed worker's trial is tried again.
"""

import contextlib
import json
import math
import os
import pathlib
import statistics
import warnings

from mnist.errors import MNISTError, UnavailableError, package_missing
from mnist.files import check_writable

# A worker says so often (seconds) that it lives, and counts as killed when it hasn't for so long.
HEARTBEAT, GRACE = 2, 20
RETRIES = 10  # of a trial whose worker was killed
PATIENCE = 60  # seconds to wait for an SQLite file that another worker writes


# --- The study ------------------------------------------------------------------------------------


def import_optuna():
    """Optuna, silent. Raises UnavailableError where it is missing."""
    reason = package_missing("optuna")
    if reason:
        raise UnavailableError(f"{reason}; pip install -r requirements/search.txt")
    import optuna
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    return optuna


def open_storage(where):
    """Optuna's storage in an SQLite file, or behind any SQLAlchemy address such as
    postgresql://user@host/name.

    Raises UnavailableError where it can't be reached.
    """
    optuna = import_optuna()
    import sqlalchemy.exc
    url, settings = where, {"pool_pre_ping": True}
    if "://" not in where:
        where = os.path.expanduser(where)
        check_writable("--storage", where)
        file = pathlib.Path(os.path.abspath(where)).as_uri()  # whatever letters the path has
        url = sqlalchemy.engine.URL.create("sqlite", database=file, query={"uri": "true"})
        url = url.render_as_string(hide_password=False)
        settings["connect_args"] = {"timeout": PATIENCE}
    try:
        return optuna.storages.RDBStorage(url, engine_kwargs=settings, grace_period=GRACE,
                                          heartbeat_interval=HEARTBEAT, **retrying(optuna))
    except (sqlalchemy.exc.SQLAlchemyError, ImportError, ValueError, RuntimeError) as error:
        cause = getattr(error, "orig", None) or error
        raise UnavailableError(f"--storage {where}: can't be used "
                               f"({str(cause).strip().splitlines()[0]})") from error


def retrying(optuna):
    """The argument of a storage that has a killed worker's trial tried again."""
    if hasattr(optuna.storages, "RetryHeartbeatStaleTrialCallback"):  # its name from 4.9 on
        kind = optuna.storages.RetryHeartbeatStaleTrialCallback
        return {"heartbeat_stale_trial_callback": kind(max_retry=RETRIES)}
    kind = optuna.storages.RetryFailedTrialCallback
    return {"failed_trial_callback": kind(max_retry=RETRIES)}


def open_study(storage, name, description, sampler, pruner=None):
    """Optuna's study of a name, begun or gone on with.

    `description`: what makes it what it is (network, images, what is tried), JSON's types. Raises
    UnavailableError where the storage has another study of that name.
    """
    optuna = import_optuna()
    study = optuna.create_study(storage=storage, study_name=name, direction="maximize",
                                load_if_exists=True, sampler=sampler, pruner=pruner)
    description = json.loads(json.dumps(description))
    there = study.user_attrs.get("description")
    if there is None:
        study.set_user_attr("description", description)
    elif there != description:
        other = [key for key in sorted(set(there) | set(description))
                 if there.get(key) != description.get(key)]
        raise UnavailableError(
            f"the storage has another study called {name}: its {other[0]} is "
            f"{json.dumps(there.get(other[0]))}, not {json.dumps(description.get(other[0]))}\n"
            "Give this one a name of its own with --study, or another --storage")
    return study


def done(study):
    """The trials of a study that are done, one for each combination of settings: at the end two
    workers may have tried the same."""
    states = import_optuna().trial.TrialState
    trials = study.get_trials(deepcopy=False, states=(states.COMPLETE, states.PRUNED))
    return list({json.dumps(trial.user_attrs["settings"]): trial
                 for trial in reversed(trials)}.values())[::-1]


def row_of(trial):
    """What was found in a trial: a dict with settings, accuracies (of the seeds), mean, deviation
    (None of a single one), seconds, epochs (made), diverged and pruned."""
    pruned = trial.state == import_optuna().trial.TrialState.PRUNED
    row = dict(trial.user_attrs, pruned=pruned)
    row["mean"], row["deviation"] = mean_and_deviation(row["accuracies"])
    return row


def ranking(study):
    """The `row_of` every trial that is done, best first."""
    return sorted(map(row_of, done(study)),
                  key=lambda row: (row["diverged"], row["pruned"], -row["mean"], row["seconds"]))


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
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None


def error_of_a_mean(rows, held_out):
    """The standard error of a row's accuracy: how far it would lie elsewhere another time.

    From the seeds' deviation, taken together over all rows that learnt something; with one seed
    from the number of held-out images, as of a binomial proportion.
    """
    spread = [row for row in rows if row["deviation"] is not None and not row["diverged"]
              and row["mean"] > 0.5]
    best = rows[0]["mean"]
    if not spread:
        return math.sqrt(best * (1 - best) / held_out)
    near = [row for row in spread if 1 - row["mean"] <= 2 * (1 - best)] or spread
    variance = statistics.mean(row["deviation"] ** 2 for row in near)
    return math.sqrt(variance / len(near[0]["accuracies"]))


def as_good_as_the_best(rows, held_out):
    """The rows, the best among them, that chance alone could have put behind it: those within two
    standard errors of a difference."""
    limit = 2 * math.sqrt(2) * error_of_a_mean(rows, held_out)
    return [row for row in rows if not row["pruned"] and rows[0]["mean"] - row["mean"] <= limit]
