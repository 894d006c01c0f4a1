"""How a network is trained: the recipe, the loop, and what is done to the digits on the way.

    recipe = Recipe(epochs=3, augment=1.0)
    training, held_out = hold_out(load_tensors("train", "cpu"))
    net = new_network("net", Net, recipe, "cpu")
    history = train(net, recipe, training, held_out)

Everything is deterministic: the same recipe, machine and number of threads give the same weights,
bit for bit, also where the training was stopped after an epoch and went on later.
"""

import contextlib
import copy
import ctypes
import inspect
import math
import sys
import time

from mnist.cli import show_progress
from mnist.errors import UnavailableError
from mnist.training.augment import augment
from mnist.training.recipe import WARM_UP

HELD_OUT = 10000  # digits at the end of the training set that are kept for choosing
MOMENTUM = 0.9

# Distillation: how far teacher's and student's answers are softened before they are compared, and
# what share of the loss that comparison has; the rest is that of the labels.
TEMPERATURE = 4
TEACHER_SHARE = 0.9


# --- The digits -----------------------------------------------------------------------------------


def load_tensors(split, device, data="mnist", data_dir=None):
    """Digits on the device: (images uint8 (N, 28, 28), labels int64 (N,)), as `train` takes them.

    `split`, `data` and `data_dir` as for `MNISTdsource.load_digits`.
    """
    import torch

    from MNISTdsource import load_digits
    images, labels = (torch.from_numpy(array) for array in load_digits(split, data, data_dir)[:2])
    return images.to(device), labels.to(device).long()


def hold_out(digits):
    """(digits to train on, the last HELD_OUT ones to choose by), from all the training digits."""
    if len(digits[1]) <= HELD_OUT:
        raise UnavailableError(f"{HELD_OUT} digits are to be held out, but there are only "
                               f"{len(digits[1])} to train on")
    return [array[:-HELD_OUT] for array in digits], [array[-HELD_OUT:] for array in digits]


# --- The loop -------------------------------------------------------------------------------------


def new_network(name, make, recipe, device):
    """A network with the random weights of the recipe's seed, on the device.

    `name`, `make`: as `mnist.models.registry.find_network` gives them.
    """
    import torch

    from mnist.models.fold import channels_last
    from mnist.models.registry import make_network
    torch.manual_seed(recipe.seed)
    return channels_last(make_network(name, make).to(device))


def train(net, recipe, training, watched, teacher=None, optimiser=None, history=(),
          after_step=None, after_epoch=None, group=(0, 1)):
    """Train `net` in place on the device where the digits lie; gives the history, a dict an epoch.

    net: as `new_network` gives it; a loaded one is quicker after `mnist.models.fold.channels_last`.
    training, watched: digits as `load_tensors` gives them; accuracy and loss are those on the
        watched ones, seconds those of the epoch with reading them.
    teacher: a network whose answers are learnt along with the labels: distillation. Source: Hinton,
        Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015.
    optimiser, history: of the epochs that were made already, to go on after them.
    after_step(): called when the weights have changed, to put right what must hold of them.
    after_epoch(history): called after each epoch. What it raises ends the training.
    group: (rank, number) of the processes that share each batch. Each draws the same order from the
        seed and takes its part of every batch; batch norm sees that part alone and keeps the
        averages of process 0, the only one that has a history and calls `after_epoch`.
    """
    from mnist.models.fold import channels_last
    device = training[0].device
    prepare_device(device)
    net.to(device)
    if teacher is not None:
        teacher = channels_last(teacher.to(device).eval())
    bfloat16 = use_bfloat16(recipe.precision, device.type, net)
    optimiser = optimiser or make_optimiser(net, recipe)
    rank, world = group
    parallel = distribute(net, device) if world > 1 else net
    history = list(history)
    for epoch in range(len(history), recipe.epochs):
        started = time.perf_counter()
        train_loss = train_epoch(parallel, recipe, optimiser, training, epoch, bfloat16, teacher,
                                 after_step, group)
        if rank > 0:
            continue
        loss, right = evaluate(net, watched)
        history.append({"epoch": epoch + 1, "seconds": time.perf_counter() - started,
                        "train_loss": train_loss, "loss": loss,
                        "accuracy": right / len(watched[1])})
        if after_epoch:
            after_epoch(history)
    return history


def train_epoch(net, recipe, optimiser, digits, epoch, bfloat16, teacher, after_step, group):
    """One pass over the training digits in a new random order; gives the mean loss."""
    import torch

    from mnist.datasets.image_set import normalise
    rank, world = group
    images, labels = digits
    device = images.device
    order = torch.randperm(len(labels), generator=generator("cpu", recipe.seed, epoch))
    images, labels = images[order.to(device)], labels[order.to(device)]
    chance = generator(device, recipe.seed, epoch, rank)
    # What a network draws itself, dropout above all, must not hang on the epochs before either.
    torch.manual_seed(chance.initial_seed())
    steps = math.ceil(len(labels) / recipe.batch_size)
    total = torch.zeros((), device=device)
    net.train()
    for step in range(steps):
        set_learning_rate(optimiser, recipe.peak(), (epoch + (step + 1) / steps) / recipe.epochs)
        batch = slice(step * recipe.batch_size, (step + 1) * recipe.batch_size)
        answers = labels[batch][rank::world]
        x = normalise(images[batch][rank::world])
        changed = round(recipe.augment * len(x))  # the first ones: the order is random
        if changed:
            x = torch.cat([augment(x[:changed], chance), x[changed:]])
        with arithmetic(bfloat16, device):
            log_probabilities = net(x).float()
            wanted = teach(teacher, x)
        loss = loss_of(log_probabilities, answers, recipe.label_smoothing, wanted)
        # The processes' gradients are averaged: weigh parts of unequal length by their length.
        (loss * (len(answers) * world / len(labels[batch]))).backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        if after_step:
            after_step()
        total += loss.detach() * len(answers)
        if step % 50 == 0 and rank == 0:
            show_progress(step / steps, f"epoch {epoch + 1}/{recipe.epochs}")
    show_progress(None)
    return float(total) * world / len(labels)


def loss_of(log_probabilities, labels, label_smoothing, wanted=None):
    """The mean loss of a batch's log-probabilities (B, 10), given the labels (B,) and, where there
    is a teacher, its log-probabilities `wanted` (B, 10)."""
    import torch
    from torch.nn.functional import kl_div, log_softmax, nll_loss
    loss = nll_loss(log_probabilities, labels)
    if label_smoothing:
        loss = torch.lerp(loss, -log_probabilities.mean(), label_smoothing)
    if wanted is None:
        return loss
    soft, wanted = (log_softmax(answer / TEMPERATURE, dim=1)
                    for answer in (log_probabilities, wanted))
    likeness = kl_div(soft, wanted, reduction="batchmean", log_target=True) * TEMPERATURE ** 2
    return torch.lerp(loss, likeness, TEACHER_SHARE)


def teach(teacher, x):
    """The teacher's log-probabilities, float32 (B, 10); None without a teacher."""
    import torch
    if teacher is None:
        return None
    with torch.no_grad():
        return teacher(x).float()


def evaluate(net, digits):
    """(mean loss, number right) of the network in float32 over digits on the device."""
    import torch
    from torch.nn.functional import nll_loss

    from mnist.datasets.image_set import normalise
    net.eval()
    loss, right = 0.0, 0
    with torch.no_grad():
        for images, labels in zip(*(array.split(100) for array in digits)):
            log_probabilities = net(normalise(images)).float()
            loss += float(nll_loss(log_probabilities, labels, reduction="sum"))
            right += int((log_probabilities.argmax(1) == labels).sum())
    return loss / len(digits[1]), right


# --- The arithmetic -------------------------------------------------------------------------------


def use_bfloat16(precision, device, net):
    """Whether to train `net` in bfloat16: asked for, or `auto` on a processor that has it.

    torch emulates it everywhere else, slowly.
    """
    return precision == "bf16" or (precision == "auto" and has_bfloat16(device)
                                   and trains_in_bfloat16(net))


def trains_in_bfloat16(net):
    """Whether torch has all that a step of this network takes; older ones lack some of it."""
    import torch
    trial = copy.deepcopy(net).train()
    x = torch.zeros(2, 1, 28, 28, device=next(net.parameters()).device)
    try:
        with arithmetic(True, x.device):
            answers = trial(x)
        answers.float().sum().backward()
    except RuntimeError:
        return False
    return True


def has_bfloat16(device):
    """Whether the processor itself computes in bfloat16: a GPU from Ampere on, a CPU whose oneDNN
    is quick at it."""
    from mnist.engines.pytorch import bfloat16_missing
    return not bfloat16_missing(device)


@contextlib.contextmanager
def arithmetic(bfloat16, device):
    """Compute in bfloat16 what torch's autocast deems safe, or everything as it comes."""
    import torch
    if not bfloat16:
        yield
        return
    with torch.autocast(device.type, dtype=torch.bfloat16):
        yield


def prepare_device(device):
    """Make the device quick, its answers reproducible and its float32 just that."""
    import torch
    if device.type == "cuda":
        from mnist.engines.pytorch import allow_tf32
        allow_tf32(torch, False)
        torch.backends.cudnn.deterministic = True
    elif sys.platform == "linux":
        keep_freed_memory()


def keep_freed_memory():
    """Have glibc keep the memory that is freed after a step for the next one.

    It gives large blocks back to the system at once, and the system fills them with zeros when they
    are asked for anew: a sixth of the time of a step. Other libraries than glibc don't know this.
    """
    with contextlib.suppress(AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, 32 << 20)  # the largest that it takes
        mallopt(M_TRIM_THRESHOLD, 1 << 30)


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # from glibc's malloc.h


def make_optimiser(net, recipe):
    """The recipe's optimiser; a fused one (one kernel a step) where torch has it."""
    import torch
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


def set_learning_rate(optimiser, peak, done):
    """One cycle: up to the peak in a straight line, then down to nothing along a cosine.

    `done`: the part of the training that is behind after this step, up to 1. Source: Smith and
    Topin, "Super-Convergence", 2018.
    """
    if done < WARM_UP:
        rate = peak * done / WARM_UP
    else:
        rate = peak * (1 + math.cos(math.pi * (done - WARM_UP) / (1 - WARM_UP))) / 2
    for group in optimiser.param_groups:
        group["lr"] = rate


def distribute(net, device):
    """The network wrapped so that the processes of the group share their gradients."""
    import torch
    devices = [torch.cuda.current_device()] if device.type == "cuda" else None
    return torch.nn.parallel.DistributedDataParallel(net, device_ids=devices)


def generator(device, *numbers):
    """A random generator that depends on these numbers alone, so that a resumed run needs none
    of the earlier ones' state."""
    import torch
    seed = 0
    for number in numbers:
        seed = (seed * 1000003 + number) % 2**63
    return torch.Generator(device=device).manual_seed(seed)
