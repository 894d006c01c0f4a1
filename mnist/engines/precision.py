"""The precisions an engine computes in, and how far each may lie from the reference.

The reference is torch on the CPU in float32, nothing folded: `reference_log_probs` of
mnist/engines/registry.py.
"""

import numpy as np

# A precision that only rounds is judged by the largest difference of a log-probability. Behind each
# tolerance stands the most that was measured on 10,000 training digits, over the shipped networks
# and the CPU's engines (`python benchmarks/rounding.py` measures it again). It is several times
# that, since a GPU adds up in another order, and other networks have larger numbers inside.
TOLERANCE = {
    "fp32": 1e-3,  # 1.1e-5
    "tf32": 0.1,  # 0.0056
    "bf16": 0.5,  # 0.068
    "fp16": 0.1,  # 0.0083
}

# int8 doesn't only round, it cuts off what calibration didn't see: it is judged by the part of the
# predictions that differ from the reference's, though it was sure of them. Of what it wasn't sure
# of, the more the harder the image set is, small differences decide.
CHANGED_PREDICTIONS = 0.005
SURE = 0.8  # a probability
CHANGED_VALUES = 0.05  # of values from -1 to 1, the root mean square difference


def judge_outputs(image_set, outputs, reference, precision):
    """(largest difference, why a network's outputs are wrong or None) of float32 (N, K) both.

    The difference is None where it isn't a number.
    """
    classes = image_set.task == "classification"
    what = "log-probabilities" if classes else "values"
    differences = np.abs(outputs - reference)
    largest, reason = float(differences.max()), None
    if not np.isfinite(largest):
        return None, f"WRONG: {what} that aren't numbers"
    if precision != "int8":
        if largest > TOLERANCE[precision]:
            reason = (f"{what} differ from the reference by {largest:.2g}, more than "
                      f"{TOLERANCE[precision]:g}")
    elif classes:
        sure = reference.max(1) > np.log(SURE)
        changed = float(((outputs.argmax(1) != reference.argmax(1)) & sure).mean())
        if changed > CHANGED_PREDICTIONS:
            reason = (f"{changed:.2%} of the predictions differ from sure ones of the reference, "
                      f"tolerated are {CHANGED_PREDICTIONS:.2%}")
    else:
        average = float(np.sqrt((differences ** 2).mean()))
        if average > CHANGED_VALUES:
            reason = (f"values differ from the reference by {average:.2g} on average, more than "
                      f"{CHANGED_VALUES:g}")
    return largest, reason and "WRONG: " + reason
