"""The precisions an engine computes in, and how far each may lie from the reference.

The reference is torch on the CPU in float32, nothing folded: `reference_log_probs` of
mnist/engines/registry.py.
"""

import numpy as np

PRECISIONS = ("fp32", "tf32", "bf16", "fp16", "int8")

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
CHANGED_PREDICTIONS = {"int8": 0.005}
SURE = 0.8  # a probability
CHANGED_VALUES = {"int8": 0.05}  # of values from -1 to 1, the root mean square difference


def judge_outputs(image_set, outputs, reference, precision):
    """`judge_log_probs` or `judge_values`, as the image set's task asks for."""
    judge = judge_log_probs if image_set.task == "classification" else judge_values
    return judge(outputs, reference, precision)


def judge_log_probs(log_probs, reference, precision):
    """(largest difference, why log_probs are wrong or None) of float32 (N, K) both.

    The difference is None where it isn't a number.
    """
    difference = float(np.abs(log_probs - reference).max())
    if not np.isfinite(difference):
        return None, "WRONG: log-probabilities that aren't numbers"
    if precision in CHANGED_PREDICTIONS:
        bound = CHANGED_PREDICTIONS[precision]
        sure = reference.max(1) > np.log(SURE)
        changed = float(((log_probs.argmax(1) != reference.argmax(1)) & sure).mean())
        if changed > bound:
            return difference, (f"WRONG: {changed:.2%} of the predictions differ from sure ones of "
                                f"the reference, tolerated are {bound:.2%}")
        return difference, None
    if difference > TOLERANCE[precision]:
        return difference, ("WRONG: log-probabilities differ from the reference by "
                            f"{difference:.2g}, "
                            f"more than {TOLERANCE[precision]:g}")
    return difference, None


def judge_values(values, reference, precision):
    """(largest difference, why a regression's values are wrong or None) of float32 (N, K) both."""
    differences = np.abs(values - reference)
    difference = float(differences.max())
    if not np.isfinite(difference):
        return None, "WRONG: values that aren't numbers"
    bound = CHANGED_VALUES.get(precision)
    found, what = ((float(np.sqrt((differences ** 2).mean())), "on average") if bound
                   else (difference, "at most"))
    bound = bound or TOLERANCE[precision]
    if found > bound:
        return difference, (f"WRONG: values differ from the reference by {found:.2g} {what}, more "
                            f"than {bound:g}")
    return difference, None
