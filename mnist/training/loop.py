"""How a network is trained: the loop, and what it asks of torch.

    training, held_out = hold_out(load_images(image_set, "train"), "cpu")
    net = new_network("net", Net, image_set, recipe, "cpu")
    for line in train(Run(net, image_set, recipe, training, held_out)):
        print(line["epoch"], line["accuracy"])

Everything is deterministic: the same recipe, machine and number of threads give the same weights,
bit for bit, also where the training was stopped after an epoch and went on later.
"""

import contextlib
import copy
import inspect
import math
import time

import numpy as np
import torch
from torch.nn.functional import kl_div, log_softmax, mse_loss, nll_loss

from mnist.cli import show_progress
from mnist.engines.pytorch import allow_tf32, bfloat16_missing, keep_freed_memory
from mnist.errors import UnavailableError
from mnist.models.fold import channels_last, fold_batch_norms
from mnist.models.registry import make_network
from mnist.training.augment import augment
from mnist.training.recipe import HELD_OUT, MOMENTUM, TEACHER_SHARE, TEMPERATURE, WARM_UP


class Run:
    """One training: what it works on, and how far it is.

    net        as `new_network` gives it; a loaded one is quicker after `channels_last`
    image_set  what the images are
    training   (images, targets), as `to_tensors` gives them, on the device to train on
    watched    the same of the images that accuracy and loss are measured on after each epoch, or
               None
    teacher    a network of the same images whose outputs are learned along with the targets:
               distillation.
               Source: Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network",
               2015
    rank, world  of the processes that share each batch. Each draws the same order from the seed and
               takes its part of every batch; batch norm sees that part alone and keeps the averages
               of process 0, the only one that has a history
    history    a dict for each epoch that was made, also in an earlier run
    after_step()  called when the weights have changed, to put right what must hold of them
    """

    def __init__(self, net, image_set, recipe, training, watched, teacher=None, rank=0, world=1):
        self.device = training[0].device
        self.net, self.image_set, self.recipe = net.to(self.device), image_set, recipe
        self.training, self.watched = training, watched
        self.teacher = teacher and channels_last(
            fold_batch_norms(teacher, image_set).to(self.device), image_set)
        self.rank, self.world = rank, world
        self.bfloat16 = use_bfloat16(recipe.precision, self.device.type, net, image_set)
        self.optimiser = make_optimiser(net, recipe)
        self.history = []
        self.after_step = None


# --- The images -----------------------------------------------------------------------------------


def to_tensors(data, device):
    """(images uint8 (N, C, H, W), targets int64 (N,) or float32 (N, K)) of an `Images` as tensors
    on the device."""
    return tuple(torch.from_numpy(array).to(device) for array in (data.images, data.targets))


def hold_out(data, device):
    """(images to train on, those held out to choose by), each as `to_tensors` gives them, of all
    the training images.

    The last sixth is held out, or a sixth by a fixed seed where the last lacks a class; where
    images come in groups of the same thing, a sixth of each class's groups, so that nothing held
    out is as good as known.
    """
    number = len(data.targets)
    if number < HELD_OUT:
        raise UnavailableError(f"a sixth of the images is to be held out, but there are {number}")
    if data.groups is None:
        held = np.arange(number) >= number - number // HELD_OUT
        if data.targets.ndim == 1 and set(data.targets) != set(data.targets[held]):
            held = np.random.RandomState(0).permutation(held)
    else:
        held = np.isin(data.groups, groups_to_hold_out(data.targets, data.groups))
    held = torch.from_numpy(held).to(device)
    tensors = to_tensors(data, device)
    return [tensor[~held] for tensor in tensors], [tensor[held] for tensor in tensors]


def groups_to_hold_out(targets, groups):
    """A sixth of the groups of each class, one at least, the same every time."""
    generator = np.random.RandomState(0)
    chosen = []
    for target in np.unique(targets):
        own = np.unique(groups[targets == target])
        chosen.extend(generator.permutation(own)[:max(1, len(own) // HELD_OUT)])
    return chosen


# --- The loop -------------------------------------------------------------------------------------


def new_network(name, make, image_set, recipe, device):
    """A network for an image set with the random weights of the recipe's seed, on the device.

    `name`, `make`: as `mnist.models.registry.find_network` gives them.
    """
    torch.manual_seed(recipe.seed)
    return channels_last(make_network(name, make, image_set).to(device), image_set)


def train(run):
    """Train `run.net` in place: yields the line of the history, a dict, after each epoch that is
    still to be made. A caller that stops iterating ends the training."""
    recipe, device, rank, world = run.recipe, run.device, run.rank, run.world
    prepare_device(device)
    net = run.net
    if world > 1:  # the processes of the group share their gradients
        net = torch.nn.parallel.DistributedDataParallel(
            net, device_ids=[torch.cuda.current_device()] if device.type == "cuda" else None)
    batches = batches_of(len(run.training[1]), recipe.batch_size)
    for epoch in range(len(run.history), recipe.epochs):
        started = time.perf_counter()
        order = torch.randperm(len(run.training[1]),
                               generator=make_generator("cpu", recipe.seed, epoch)).to(device)
        images, targets = (tensor[order] for tensor in run.training)
        generator = make_generator(device, recipe.seed, epoch, rank)
        # What a network draws itself, dropout above all, must not hang on the epochs before either.
        torch.manual_seed(generator.initial_seed())
        train_loss = torch.zeros((), device=device)
        net.train()
        for step, batch in enumerate(batches):
            set_learning_rate(run, (epoch + (step + 1) / len(batches)) / recipe.epochs)
            x, y = run.image_set.normalise(images[batch][rank::world]), targets[batch][rank::world]
            changed = round(recipe.augment * len(x))  # the first ones: the order is random
            if changed:
                new, new_y = augment(run.image_set, x[:changed], y[:changed], generator)
                x, y = torch.cat([new, x[changed:]]), torch.cat([new_y, y[changed:]])
            outputs, teacher_outputs = outputs_of(run, net, x)
            loss = loss_of(outputs, y, recipe.label_smoothing, teacher_outputs)
            # The processes' gradients are averaged: weigh parts of unequal length by their length.
            (loss * (len(y) * world / len(targets[batch]))).backward()
            run.optimiser.step()
            run.optimiser.zero_grad(set_to_none=True)
            if run.after_step:
                run.after_step()
            train_loss += loss.detach() * len(y)
            if step % 50 == 0 and rank == 0:
                show_progress(step / len(batches), f"epoch {epoch + 1}/{recipe.epochs}")
        show_progress(None)
        if rank == 0:
            result = evaluate(run.net, run.image_set, run.watched) if run.watched else {}
            run.history.append(dict(
                {"epoch": epoch + 1, "seconds": time.perf_counter() - started,
                 "train_loss": float(train_loss) * world / len(targets)}, **result))
            yield run.history[-1]


def batches_of(number, size):
    """The batches of so many images, as slices; a single one left over joins the last: batch norm
    can't learn from one."""
    starts = list(range(0, number, size))
    if len(starts) > 1 and number % size == 1:
        starts.pop()
    return [slice(start, end) for start, end in zip(starts, starts[1:] + [number])]


def outputs_of(run, net, x):
    """(outputs, the teacher's or None), float32 (B, K), of normalised images (B, C, H, W)."""
    with arithmetic(run.bfloat16, x.device):
        outputs = net(x).float()
        if run.teacher is None:
            return outputs, None
        with torch.no_grad():
            return outputs, run.teacher(x).float()


def loss_of(outputs, targets, label_smoothing, teacher_outputs=None):
    """The mean loss of a batch: of log-probabilities (B, K) and the teacher's for class numbers
    (B,); of values (B, K) the mean squared error from float32 (B, K) and from the teacher's."""
    if targets.is_floating_point():
        loss = mse_loss(outputs, targets)
    else:
        loss = nll_loss(outputs, targets)
        if label_smoothing:
            loss = torch.lerp(loss, -outputs.mean(), label_smoothing)
    if teacher_outputs is None:
        return loss
    if targets.is_floating_point():
        distance = mse_loss(outputs, teacher_outputs)
    else:
        soft, teacher_soft = (log_softmax(each / TEMPERATURE, dim=1)
                              for each in (outputs, teacher_outputs))
        distance = TEMPERATURE ** 2 * kl_div(soft, teacher_soft, reduction="batchmean",
                                             log_target=True)
    return torch.lerp(loss, distance, TEACHER_SHARE)


def evaluate(net, image_set, tensors):
    """How good the network is in float32 over (images, targets) on the device: {"loss", "right",
    "accuracy"}, or for regression {"loss", "rmse"}."""
    net.eval()
    loss, right = 0.0, 0
    with torch.no_grad():
        for images, targets in zip(*(array.split(100) for array in tensors)):
            outputs = net(image_set.normalise(images)).float()
            loss += float(loss_of(outputs, targets, 0)) * len(targets)
            if image_set.task == "classification":
                right += int((outputs.argmax(1) == targets).sum())
    number = len(tensors[1])
    if image_set.task == "regression":
        return {"loss": loss / number, "rmse": math.sqrt(loss / number)}
    return {"loss": loss / number, "right": right, "accuracy": right / number}


# --- The arithmetic -------------------------------------------------------------------------------


def use_bfloat16(precision, device, net, image_set):
    """Whether to train `net` in bfloat16: asked for, or `auto` on a processor that has it.

    torch emulates it everywhere else, slowly.
    """
    return precision == "bf16" or (precision == "auto" and has_bfloat16(device)
                                   and trains_in_bfloat16(net, image_set))


def trains_in_bfloat16(net, image_set):
    """Whether torch has all that a step of this network takes; older ones lack some of it."""
    trial = copy.deepcopy(net).train()
    x = torch.zeros((2,) + tuple(image_set.shape), device=next(net.parameters()).device)
    try:
        with arithmetic(True, x.device):
            outputs = trial(x)
        outputs.float().sum().backward()
    except RuntimeError:
        return False
    return True


def has_bfloat16(device):
    """Whether the processor itself computes in bfloat16: a GPU from Ampere on, a CPU whose oneDNN
    is quick at it."""
    return not bfloat16_missing(device)


@contextlib.contextmanager
def arithmetic(bfloat16, device):
    """Compute in bfloat16 what torch's autocast considers safe, or everything as it comes."""
    if not bfloat16:
        yield
        return
    with torch.autocast(device.type, dtype=torch.bfloat16):
        yield


def prepare_device(device):
    """Make the device quick, its results reproducible and its float32 just that."""
    if device.type == "cuda":
        allow_tf32(torch, False)
        torch.backends.cudnn.deterministic = True
    else:
        keep_freed_memory()


def make_optimiser(net, recipe):
    """The recipe's optimiser; a fused one (one kernel a step) where torch has it."""
    parameters = [parameter for parameter in net.parameters() if parameter.requires_grad]
    if not parameters:
        raise UnavailableError("the network has nothing to train: no parameter of it is free")
    if recipe.optimizer == "sgd":
        kind, settings = torch.optim.SGD, {"momentum": MOMENTUM, "nesterov": True}
    else:
        kind, settings = torch.optim.AdamW, {}
    settings.update(lr=recipe.peak(), weight_decay=recipe.weight_decay)
    if "fused" in inspect.signature(kind).parameters:
        with contextlib.suppress(RuntimeError):  # torch 2.0 knows it, but not on every device
            return kind(parameters, fused=True, **settings)
    return kind(parameters, **settings)


def set_learning_rate(run, done):
    """One cycle: up to the peak in a straight line, then down to nothing along a cosine.

    `done`: the part of the training that is behind after this step, up to 1. Source: Smith and
    Topin, "Super-Convergence", 2018.
    """
    if done < WARM_UP:
        rate = run.recipe.peak() * done / WARM_UP
    else:
        rate = run.recipe.peak() * (
            1 + math.cos(math.pi * (done - WARM_UP) / (1 - WARM_UP))) / 2
    for group in run.optimiser.param_groups:
        group["lr"] = rate


def make_generator(device, *numbers):
    """A random generator that depends on these numbers alone, so that a resumed run needs none
    of the earlier ones' state."""
    seed = 0
    for number in numbers:
        seed = (seed * 1000003 + number) % 2**63
    return torch.Generator(device=device).manual_seed(seed)
