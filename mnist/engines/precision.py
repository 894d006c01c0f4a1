"""The precisions an engine computes in, and how far each may lie from the reference.

The reference is torch on the CPU in float32, nothing folded: `mnist.engines.registry.reference_answers`.
"""

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
# answers that are other digits than the reference's.
CHANGED_ANSWERS = {"int8": 0.005}  # 0.0007


def judge_answers(answers, reference, precision):
    """(largest difference, why the answers are wrong or None) of float32 (N, 10) both.

    The difference is None where it isn't a number.
    """
    import numpy as np
    difference = float(np.abs(answers - reference).max())
    if not np.isfinite(difference):
        return None, "WRONG: answers that aren't numbers"
    if precision in CHANGED_ANSWERS:
        bound = CHANGED_ANSWERS[precision]
        changed = float((answers.argmax(1) != reference.argmax(1)).mean())
        if changed > bound:
            return difference, (f"WRONG: {changed:.2%} of the answers are other digits than the "
                                f"reference's, tolerated are {bound:.2%}")
        return difference, None
    if difference > TOLERANCE[precision]:
        return difference, (f"WRONG: answers differ from the reference by {difference:.2g}, "
                            f"more than {TOLERANCE[precision]:g}")
    return difference, None
