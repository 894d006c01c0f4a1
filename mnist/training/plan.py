"""What a study tries: the space of settings that its flags ask for, and a point of it.

The flags are SearchMNIST.py's; Optuna's samplers choose the points.
"""

import collections
import itertools
import shlex

from mnist.cli import dashed
from mnist.errors import UnavailableError
from mnist.models.registry import find_network
from mnist.models.weights import default_network
from mnist.training.recipe import LEARNING_RATES, OPTIONS, Recipe
from MNISTmodel import NETWORKS

# The settings that can be varied, and what each kind of study tries unless told: choices, or a
# range (lowest, highest, whether on a logarithmic scale); rates by optimiser.
SETTINGS = ("batch_size", "epochs", "optimizer", "lr", "weight_decay", "label_smoothing", "augment")
TRIED = {
    "grid": {"batch_size": [16, 32, 64, 128, 256], "epochs": [1, 2, 3, 5]},
    "lr": {"lr": {"sgd": [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0],
                  "adamw": [1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1]}},
    "ablate": {},
    "tune": {"batch_size": [32, 64, 128, 256], "optimizer": ["sgd", "adamw"],
             "lr": {"sgd": (0.01, 0.3, True), "adamw": (3e-4, 1e-2, True)},
             "weight_decay": (1e-5, 1e-2, True), "label_smoothing": (0.0, 0.15, False),
             "augment": (0.0, 1.0, False)},
}


class Plan:
    """What the flags ask for: the space of settings, and how one of them is trained."""

    def __init__(self, arguments, image_set):
        self.kind, self.arguments, self.image_set = arguments.kind, arguments, image_set
        self.network = arguments.network or default_network(image_set)
        self.name, _ = find_network(self.network)
        self.space = collections.OrderedDict()
        for name in SETTINGS:
            choices = self.choices_of(name)
            if choices:
                self.space[name] = choices
        if self.kind == "ablate":
            self.add_variants()
        for option in arguments.option:
            self.space[option.replace("-", "_")] = list(OPTIONS[option.replace("-", "_")])
        self.trials = arguments.trials if self.kind == "tune" else len(
            list(itertools.product(*self.space.values())))
        # What a training has that the study doesn't vary isn't said again in every row.
        self.varied = [name for name, choices in self.space.items() if len(choices) > 1]

    def choices_of(self, name):
        """What to try of a setting: a list, a range, or None."""
        given = getattr(self.arguments, name)
        if given:
            return sorted(set(given), key=given.index)
        tried = TRIED[self.kind].get(name)
        if name == "lr" and self.kind == "lr":
            optimizers = self.space.get("optimizer", [Recipe().optimizer])
            return sorted({rate for optimizer in optimizers for rate in tried[optimizer]})
        return tried

    def add_variants(self):
        """Put the network's variants into the space."""
        base = self.network
        variants = [name for name in NETWORKS if name == base or name.startswith(base + "-")]
        if len(variants) > 1:
            self.space["network"] = variants
        elif not self.arguments.option:
            raise UnavailableError(f"{self.name} has no variants to compare; --option takes "
                                   + ", ".join(map(dashed, OPTIONS)) + " for any network")

    def description(self):
        """What makes the study what it is."""
        return {"kind": self.kind, "network": self.name, "data": self.arguments.data,
                "digits": self.arguments.digits, "seeds": self.arguments.seeds,
                "tried": self.space}

    def recipe(self, settings, seed=0):
        """(what TrainMNIST.py's --network would be, the `Recipe`) of some settings."""
        fields = {name: value for name, value in settings.items() if name in Recipe._fields}
        return settings.get("network", self.network), Recipe(seed=seed, **fields)

    def command(self, settings):
        """The command that trains with these settings on all the images."""
        network, recipe = self.recipe(settings)
        usual = Recipe(batch_size=recipe.batch_size, optimizer=recipe.optimizer)
        words = ["python", "TrainMNIST.py"]
        if network != default_network(self.image_set):
            words += ["--network", network]
        for name in SETTINGS:
            value = getattr(recipe, name)
            if name == "lr":
                value, default = float(f"{recipe.peak():.3g}"), float(f"{usual.peak():.3g}")
            else:
                default = getattr(Recipe(), name)
            if value != default or name == "batch_size":  # TrainMNIST.py's hangs on the images
                words += ["--" + dashed(name), f"{value:g}" if name != "optimizer" else value]
        if self.arguments.data != "mnist":
            words += ["--data", self.arguments.data]
        if self.arguments.data_dir:
            words += ["--data-dir", self.arguments.data_dir]
        return " ".join(map(shlex.quote, words))


def suggest(trial, space):
    """The settings of a trial, as Optuna's sampler chooses them."""
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
