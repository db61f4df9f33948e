"""Distances between maps, and which of them are allowed."""

import dataclasses
import math

import numpy as np

MAPS = ("guided_grad_cam", "grad_cam", "guided_backprop")
LOGITS_RELATIVE = 1e-4


@dataclasses.dataclass(frozen=True)
class Bounds:
    relative_l2: float
    largest: float
    cosine: float


# float32 without TF32, at the last spatial layer.
FLOAT32 = Bounds(1e-3, 5e-3, 0.99999)
# Reduced precision, beside float32 on trained weights.
REDUCED = Bounds(math.inf, math.inf, 0.99)


@dataclasses.dataclass(frozen=True)
class Distance:
    relative_l2: float      # |found - wanted| / |wanted|; the norm of `found` where `wanted` is zero
    largest: float          # max |found - wanted| / max |wanted|
    cosine: float           # 1 where both are zero

    def is_within(self, bounds):
        return (
            self.relative_l2 <= bounds.relative_l2 and self.largest <= bounds.largest and self.cosine >= bounds.cosine
        )


def distance(found, wanted):
    """Raises ValueError for arrays of different shapes. A value that is not finite is infinitely far."""
    found, wanted = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    if found.shape != wanted.shape:
        raise ValueError(f"a map of shape {found.shape}, where {wanted.shape} is wanted")
    if not np.isfinite(found).all():
        return Distance(math.inf, math.inf, -1.0)
    away, norm, own = np.linalg.norm(found - wanted), np.linalg.norm(wanted), np.linalg.norm(found)
    if norm == 0:
        return Distance(float(own), float(np.abs(found).max(initial=0)), 1.0 if own == 0 else 0.0)
    cosine = float(np.vdot(found, wanted) / (norm * own)) if own else 0.0
    return Distance(float(away / norm), float(np.abs(found - wanted).max() / np.abs(wanted).max()), cosine)


def allowed(processor_error, times=3):
    """The bounds of float32, where exact float32 on the processor is `processor_error` from float64.

    A gate near zero may flip in float32, on any device; then the bound is `times` what it costs the processor."""
    if times * processor_error <= FLOAT32.relative_l2:
        return FLOAT32
    return Bounds(times * processor_error, math.inf, 0.9999)


def logits_agree(found, wanted):
    """Whether the logits of the classes in both, by class, agree; and the largest relative difference."""
    shared = found.keys() & wanted.keys()
    scale = max(map(abs, wanted.values()))
    worst = max((abs(found[index] - wanted[index]) / scale for index in shared), default=math.inf)
    return worst <= LOGITS_RELATIVE, worst
