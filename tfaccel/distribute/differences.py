"""What of a step differs between replicas and one device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from tfaccel.distribute.step_result import StepResult

_ROUNDING = 3.0  # how much larger than one device's another order of sums may make it
_NOISE = 2e-5  # of a gradient beside the largest one: what is zero but for rounding


@dataclass(frozen=True)
class Difference:
    """One value that replicas make otherwise.

    Attributes:
        kind: ``"gradients"``, ``"slots"``, ``"metrics"``, ``"logs"``, ``"state"`` or ``"weights"``.
        name: which of them: the number of the call, the metric, the key, the variable.
        what: the same in words.
        replicated: the number of replicas.
        reference: the number of one device.
        advice: what may be done.
        distance: the norm of the difference, infinite where it is no number.
    """

    kind: str
    name: str
    what: str
    replicated: str
    reference: str
    advice: str
    distance: float


def beyond_rounding(
    replicated: StepResult, reference: StepResult, exact: StepResult, tolerance: float
) -> list[Difference]:
    """Compares two runs of a step with a third, in double precision.

    Args:
        replicated: what replicas made.
        reference: what one device made.
        exact: what one device made in float64.
        tolerance: relative, of the norm of each tensor.

    Returns:
        What replicas make otherwise, and farther from the third than one device's own rounding is.
    """
    rounded = differences(reference, exact, tolerance)
    rounded += _weight_differences(reference, exact, tolerance)
    rounding = {(one.kind, one.what): one.distance for one in rounded}
    return [
        found
        for found in differences(replicated, exact, tolerance)
        if found.distance > _ROUNDING * rounding.get((found.kind, found.what), 0.0)
    ]


def differences(
    replicated: StepResult, reference: StepResult, tolerance: float
) -> list[Difference]:
    """Compares two runs of a step, in the order in which one thing follows from another.

    Args:
        replicated: what replicas made.
        reference: what one device made.
        tolerance: relative, of the norm of each tensor.
    """
    found: list[Difference] = []
    found += _gradient_differences(replicated, reference, tolerance)
    found += _slot_differences(replicated, reference, tolerance)
    found += _state_differences(replicated, reference, tolerance)
    found += _metric_differences(replicated, reference, tolerance)
    found += _log_differences(replicated, reference, tolerance)
    if not any(one.kind in ("gradients", "slots") for one in found):
        found += _weight_differences(replicated, reference, tolerance)
    return found


def _gradient_differences(
    replicated: StepResult, reference: StepResult, tolerance: float
) -> list[Difference]:
    found = []
    least = _least_gradient(reference)
    pairs = zip(replicated.gradients, reference.gradients, strict=False)
    for call, ((names, mine), (_, right)) in enumerate(pairs):
        norms = [_norm(g) for g in right if g is not None and np.isfinite(g).all()]
        largest = max(norms, default=0.0)
        for name, a, b in zip(names, mine, right, strict=False):
            if a is None or b is None or a.shape != b.shape or not np.isfinite(b).all():
                continue
            if _near(a, b, max(tolerance * _norm(b), _NOISE * largest, least)):
                continue
            what = f"the gradient of {name!r}"
            if len(replicated.gradients) > 1:
                what += f" (in call {call + 1} of GradientTape.gradient)"
            do = (
                "a loss that compares rows must see those of all replicas (gather them with "
                "tf.distribute.get_replica_context().all_gather), a sum over rows is written "
                "as a mean or divided by the global batch size"
            )
            found.append(_difference("gradients", str(call), what, a, b, do))
    return found


def _slot_differences(
    replicated: StepResult, reference: StepResult, tolerance: float
) -> list[Difference]:
    """What optimizers keep of gradients: their means, squares and sums."""
    largest: dict[str, float] = {}
    for path, (was, b) in reference.slots.items():
        if np.isfinite(b).all():
            kind = path.rpartition("_")[2]
            largest[kind] = max(_norm(b - was), largest.get(kind, 0.0))
    found = []
    for path, (was, b) in reference.slots.items():
        a = replicated.slots[path][1] if path in replicated.slots else b
        if a.shape != b.shape or not np.isfinite(b).all():
            continue
        noise = _NOISE * largest[path.rpartition("_")[2]]
        if not _near(a, b, max(5 * tolerance * _norm(b - was), noise, 1e-6 * _norm(b), 1e-12)):
            what = f"{path!r}, which the optimizer keeps of a gradient,"
            do = "give the variable's layer operations that are the same on all devices"
            found.append(_difference("slots", path, what, a, b, do))
    return found


def _state_differences(
    replicated: StepResult, reference: StepResult, tolerance: float
) -> list[Difference]:
    found = []
    for path, (was, b) in reference.state.items():
        if path not in replicated.state:
            continue
        a = replicated.state[path][1]
        if a.shape != b.shape or not np.isfinite(np.asarray(b, "float64")).all():
            continue
        moved = _norm(b - was)
        if not _near(a, b, max(5 * tolerance * moved, 2e-6 * _norm(b), 1e-9)):
            do = "keep a mean over rows in it, or what all replicas compute alike"
            found.append(_difference("state", path, f"variable {path!r}", a, b, do))
    return found


def _metric_differences(
    replicated: StepResult, reference: StepResult, tolerance: float
) -> list[Difference]:
    found = []
    for path, b in reference.metrics.items():
        a = replicated.metrics.get(path)
        if a is None or a.shape != b.shape or not np.isfinite(np.asarray(b, "float64")).all():
            continue
        if not _near(a, b, max(tolerance * _norm(b), 1e-6)):
            name = path.split("/")[0]
            what = f"metric variable {path!r}"
            do = "update the metric with one value for each row, or with a mean over rows"
            found.append(_difference("metrics", name, what, a, b, do))
    return found


def _log_differences(
    replicated: StepResult, reference: StepResult, tolerance: float
) -> list[Difference]:
    found = []
    for key, b in reference.logs.items():
        a = replicated.logs.get(key)
        if a is None or a.shape != b.shape or not np.isfinite(np.asarray(b, "float64")).all():
            continue
        if not _near(a, b, max(tolerance * _norm(b), 1e-5)):
            do = "return the result of a metric, or a mean over rows"
            found.append(_difference("logs", key, f"log {key!r}", a, b, do))
    return found


def _weight_differences(
    replicated: StepResult, reference: StepResult, tolerance: float
) -> list[Difference]:
    """Where gradients are the same, updates are too, but for the sign of what is only rounding."""
    sizes: dict[str, np.ndarray] = {}
    largest: dict[str, float] = {}
    least = _least_gradient(reference)
    for names, taken in reference.gradients:
        most = max((_norm(g) for g in taken if g is not None), default=0.0)
        for name, grad in zip(names, taken, strict=True):
            if grad is not None:
                sizes[name] = np.abs(grad) + sizes.get(name, 0.0)
                largest[name] = max(most, largest.get(name, 0.0))
    found = []
    for path, (was, b) in reference.weights.items():
        if path not in replicated.weights:
            continue
        a, counts = replicated.weights[path][1], np.ones(b.shape, bool)
        if not np.isfinite(b).all():
            continue
        if path in sizes:
            size = sizes[path]
            if _norm(size) <= max(50 * _NOISE * largest[path], least):
                continue
            counts = size >= 1e-2 * size.max()
        moved = _norm((b - was)[counts])
        limit = max(5 * tolerance * moved, 1e-6 * _norm(b), 1e-9)
        if not _near(a[counts], b[counts], limit):
            do = "compute updates from gradients that GradientTape.gradient returns"
            what = f"variable {path!r} after a step"
            found.append(_difference("weights", path, what, a, b, do))
    return found


def _least_gradient(reference: StepResult) -> float:
    """The norm of a gradient that is zero but for rounding: a loss of about 1 leaves that much."""
    sizes = [
        float(np.max(np.abs(v))) for v in reference.logs.values() if v.size and np.isfinite(v).all()
    ]
    return max(1e-9, 1e-6 * min(1.0, max(sizes, default=0.0)))


def is_near(replicated: np.ndarray, reference: np.ndarray, tolerance: float) -> bool:
    """Whether two arrays are the same, relative to the norm of `reference`, if that is finite."""
    if replicated.shape != reference.shape or not np.isfinite(reference).all():
        return True
    return _near(replicated, reference, max(tolerance * _norm(reference), 1e-6))


def _near(replicated: np.ndarray, reference: np.ndarray, limit: float) -> bool:
    """Whether two arrays are not farther apart; NaN is far from all numbers."""
    return _norm(np.asarray(replicated, "float64") - reference) <= limit


def _norm(array: Any) -> float:
    return float(np.sqrt(np.sum(np.square(np.asarray(array, "float64")))))


def _difference(
    kind: str, name: str, what: str, replicated: np.ndarray, reference: np.ndarray, advice: str
) -> Difference:
    """A difference, shown by the two numbers that are farthest apart."""
    apart = np.abs(np.asarray(replicated, "float64") - np.asarray(reference, "float64"))
    apart = np.nan_to_num(apart, nan=np.inf)
    place = int(np.argmax(apart))
    mine, right = (f"{float(np.ravel(x)[place]):.6g}" for x in (replicated, reference))
    return Difference(kind, name, what, mine, right, advice, _norm(apart))
