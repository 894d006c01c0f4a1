"""What every row is judged by: the reference, and known answers that the reference is held against.

The reference is torch in float32 on the CPU. On some machines torch itself computes wrongly; so the
record beside a weights file keeps a few images with what the network puts out for them, computed in
float64 where it was trained.
"""

import base64
import copy
import json
import os
import platform

import numpy as np

from mnist.engines.precision import TOLERANCE, judge_outputs
from mnist.engines.registry import reference_log_probs
from mnist.errors import warn

KNOWN = 8  # images


def known_answers(net, image_set, images):
    """What a record keeps: {"images": base64 of the first of uint8 (N, C, H, W), "outputs": what
    the network puts out for them, computed in float64, "weights_sha256": of the network}."""
    import torch

    from mnist.models.weights import weights_digest
    images = np.ascontiguousarray(images[:KNOWN])
    mean, std = (np.reshape(values, (1, -1, 1, 1)) for values in (image_set.mean, image_set.std))
    x = torch.from_numpy((images / 255.0 - mean) / std)
    with torch.no_grad():
        outputs = copy.deepcopy(net).cpu().double().eval()(x)
    return {"images": base64.b64encode(images.tobytes()).decode(),
            "outputs": [[float(f"{value:.9g}") for value in row] for row in outputs.tolist()],
            "weights_sha256": weights_digest(net)}


def read_known(network):
    """(images uint8 (N, C, H, W), outputs float64 (N, K)) of the record beside a network's weights;
    None where there is none, or it is of other weights."""
    from mnist.models.weights import weights_digest
    try:
        with open(os.path.splitext(network.path)[0] + ".json", encoding="utf-8") as file:
            record = json.load(file)
        if record["known"]["weights_sha256"] != weights_digest(network.net):
            return None
        images = np.frombuffer(base64.b64decode(record["known"]["images"]), np.uint8)
        return (images.reshape((-1,) + tuple(network.image_set.shape)),
                np.array(record["known"]["outputs"]))
    except (OSError, KeyError, TypeError, ValueError):
        return None


def hint_at_orientation(network, images, targets, outputs):
    """A line that says what is wrong with images that a good network misreads, where they read far
    better transposed or inverted; None elsewhere."""
    image_set = network.image_set
    if image_set.task != "classification" or image_set.score(outputs, targets) > 0.3:
        return None
    some, wanted = images[:500], targets[:500]
    variants = {"inverted (light and dark exchanged)": 255 - some}
    if some.shape[2] == some.shape[3]:
        variants["transposed (rows and columns exchanged)"] = np.ascontiguousarray(
            some.transpose(0, 1, 3, 2))
    for how, changed in variants.items():
        score = image_set.score(reference_log_probs(network, changed), wanted)
        if score > 0.6:
            return (f"{image_set.score(outputs, targets):.1%} of these images are read, but {how} "
                    f"{score:.0%}: that is how the network's own images lie")
    return None


class Reference:
    """The reference outputs of a network for some `Images`, checked: what is wrong is said.

    wrong  whether torch computes wrongly here, by the known answers
    """

    def __init__(self, network, data):
        self.network, self.targets, self.wrong = network, data.targets, False
        self.known = read_known(network)
        self.outputs = reference_log_probs(network, data.images)
        hint = hint_at_orientation(network, data.images, data.targets, self.outputs)
        if hint:
            warn(hint)
        if self.known is not None:
            found = reference_log_probs(network, self.known[0])
            difference = np.abs(found - self.known[1]).max()
            self.wrong = not difference <= TOLERANCE["fp32"]  # a NaN is wrong too
            if self.wrong:
                import torch
                warn(f"{network.name}: torch {torch.__version__} computes wrongly on this machine "
                     f"({platform.machine()}): known answers differ by {difference:.2g}.\nEvery "
                     "row is judged by the known answers instead; try another version of torch")

    def row(self, stopwatch, repeat=None):
        """A stopwatch's row, judged by the reference; where that is wrong by the known answers."""
        row = stopwatch.row(self.targets, self.outputs, repeat)
        if self.wrong and row["end_to_end"]:
            images, expected = self.known
            try:
                outputs = stopwatch.outputs_of(images)
            except Exception as error:  # it died since; its row stands
                return dict(row, status="failed", reason=str(error))
            difference, reason = judge_outputs(self.network.image_set, outputs, expected,
                                               stopwatch.engine.precision)
            row.update(max_difference=difference, reason=reason,
                       status="failed" if reason else "ok")
        return row
