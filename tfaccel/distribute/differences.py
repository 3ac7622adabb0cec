"""The differences of a step between replicas and one device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from tfaccel.distribute.step_result import StepResult

_NOISE = 2e-5  # of a gradient relative to the largest: zero up to rounding


@dataclass(frozen=True)
class Difference:
    """One value that differs on replicas.

    Attributes:
        kind: ``"gradients"``, ``"slots"``, ``"metrics"``, ``"logs"``, ``"state"`` or ``"weights"``.
        name: which of them: the index of the call, the metric, the key, the variable.
        what: the same in words.
        replicated: the number of replicas.
        reference: the number of one device.
        advice: a possible fix.
        distance: the norm of the difference, infinite where it is NaN.
    """

    kind: str
    name: str
    what: str
    replicated: str
    reference: str
    advice: str
    distance: float


def differences(
    replicated: StepResult, reference: StepResult, tolerance: float
) -> list[Difference]:
    """Compares two runs of a step, causes before effects.

    Args:
        replicated: the replicas' run.
        reference: the single-device run.
        tolerance: relative, of the norm of each tensor.
    """
    differing: list[Difference] = []
    differing += _gradient_differences(replicated, reference, tolerance)
    differing += _slot_differences(replicated, reference, tolerance)
    differing += _state_differences(replicated, reference, tolerance)
    differing += _metric_differences(replicated, reference, tolerance)
    differing += _log_differences(replicated, reference, tolerance)
    differing += _output_differences(replicated, reference, tolerance)
    if not any(one.kind in ("gradients", "slots") for one in differing):
        differing += _weight_differences(replicated, reference, tolerance)
    return differing


def distances(result: StepResult, reference: StepResult) -> dict[tuple[str, str], float]:
    """How far apart two runs of a step are, by the kind and the description of a `Difference`.

    Equal values, and those that are zero up to rounding, are left out.
    """
    differing = differences(result, reference, 0.0) + _weight_differences(result, reference, 0.0)
    return {(one.kind, one.what): one.distance for one in differing}


def _gradient_differences(
    replicated: StepResult, reference: StepResult, tolerance: float
) -> list[Difference]:
    differing = []
    least = _least_gradient(reference)
    pairs = zip(replicated.gradients, reference.gradients, strict=False)
    for call, ((names, own), (_, right)) in enumerate(pairs):
        norms = [_norm(g) for g in right if g is not None and np.isfinite(g).all()]
        largest = max(norms, default=0.0)
        for name, a, b in zip(names, own, right, strict=False):
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
            differing.append(_difference("gradients", str(call), what, a, b, do))
    return differing


def _slot_differences(
    replicated: StepResult, reference: StepResult, tolerance: float
) -> list[Difference]:
    """The gradient statistics of optimizers: means, squares and sums."""
    largest: dict[str, float] = {}
    for path, (was, b) in reference.slots.items():
        if np.isfinite(b).all():
            kind = path.rpartition("_")[2]
            largest[kind] = max(_norm(b - was), largest.get(kind, 0.0))
    differing = []
    for path, (was, b) in reference.slots.items():
        a = replicated.slots[path][1] if path in replicated.slots else b
        if a.shape != b.shape or not np.isfinite(b).all():
            continue
        noise = _NOISE * largest[path.rpartition("_")[2]]
        if not _near(a, b, max(5 * tolerance * _norm(b - was), noise, 1e-6 * _norm(b), 1e-12)):
            what = f"{path!r}, which the optimizer keeps of a gradient,"
            do = "give the variable's layer operations that are the same on all devices"
            differing.append(_difference("slots", path, what, a, b, do))
    return differing


def _state_differences(
    replicated: StepResult, reference: StepResult, tolerance: float
) -> list[Difference]:
    differing = []
    for path, (was, b) in reference.state.items():
        if path not in replicated.state:
            continue
        a = replicated.state[path][1]
        if a.shape != b.shape or not np.isfinite(np.asarray(b, "float64")).all():
            continue
        moved, noise = _norm(b - was), 2e-7 * _spread(path, reference.state)
        if not _near(a, b, max(5 * tolerance * moved, 2e-6 * _norm(b), noise, 1e-9)):
            do = "keep a mean over rows in it, or what all replicas compute identically"
            differing.append(_difference("state", path, f"variable {path!r}", a, b, do))
    return differing


def _spread(path: str, state: dict[str, tuple[np.ndarray, np.ndarray]]) -> float:
    """The norm of the standard deviations beside a moving mean; 0 for another variable.

    What was normalised before has a mean of zero, of which rounding alone is left.
    """
    layer, _, name = path.rpartition("/")
    variance = state.get(f"{layer}/moving_variance") if name == "moving_mean" else None
    return 0.0 if variance is None else float(np.sqrt(np.sum(np.abs(variance[1]))))


def _metric_differences(
    replicated: StepResult, reference: StepResult, tolerance: float
) -> list[Difference]:
    differing = []
    for path, b in reference.metrics.items():
        a = replicated.metrics.get(path)
        if a is None or a.shape != b.shape or not np.isfinite(np.asarray(b, "float64")).all():
            continue
        if not _near(a, b, max(tolerance * _norm(b), 1e-6)):
            name = path.split("/")[0]
            what = f"metric variable {path!r}"
            do = "update the metric with one value for each row, or with a mean over rows"
            differing.append(_difference("metrics", name, what, a, b, do))
    return differing


def _log_differences(
    replicated: StepResult, reference: StepResult, tolerance: float
) -> list[Difference]:
    differing = []
    for key, b in reference.logs.items():
        a = replicated.logs.get(key)
        if a is None or a.shape != b.shape or not np.isfinite(np.asarray(b, "float64")).all():
            continue
        if not _near(a, b, max(tolerance * _norm(b), 1e-5)):
            do = "return the result of a metric, or a mean over rows"
            differing.append(_difference("logs", key, f"log {key!r}", a, b, do))
    return differing


def _output_differences(
    replicated: StepResult, reference: StepResult, tolerance: float
) -> list[Difference]:
    """Predicted rows: all NaN where replicas predict a different number of them."""
    differing = []
    for key, b in reference.outputs.items():
        a = replicated.outputs.get(key, np.full(1, np.nan))
        if not np.isfinite(np.asarray(b, "float64")).all():
            continue
        if a.shape != b.shape:
            a = np.full(b.shape, np.nan)
        if not _near(a, b, max(tolerance * _norm(b), 1e-5)):
            do = "predict each row by itself"
            differing.append(_difference("outputs", key, f"output {key} of predict", a, b, do))
    return differing


def _weight_differences(
    replicated: StepResult, reference: StepResult, tolerance: float
) -> list[Difference]:
    """If gradients are the same, so are updates, except for the sign of rounding noise."""
    sizes: dict[str, np.ndarray] = {}
    largest: dict[str, float] = {}
    least = _least_gradient(reference)
    for names, taken in reference.gradients:
        most = max((_norm(g) for g in taken if g is not None), default=0.0)
        for name, grad in zip(names, taken, strict=True):
            if grad is not None:
                sizes[name] = np.abs(grad) + sizes.get(name, 0.0)
                largest[name] = max(most, largest.get(name, 0.0))
    differing = []
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
            differing.append(_difference("weights", path, what, a, b, do))
    return differing


def _least_gradient(reference: StepResult) -> float:
    """The norm of a gradient that is zero up to rounding, for a loss of about 1."""
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
    """Whether two arrays are within a distance; NaN is far from all numbers."""
    return _norm(np.asarray(replicated, "float64") - reference) <= limit


def _norm(array: Any) -> float:
    return float(np.sqrt(np.sum(np.square(np.asarray(array, "float64")))))


def _difference(
    kind: str, name: str, what: str, replicated: np.ndarray, reference: np.ndarray, advice: str
) -> Difference:
    """A difference, illustrated by the two numbers that are farthest apart."""
    apart = np.abs(np.asarray(replicated, "float64") - np.asarray(reference, "float64"))
    apart = np.nan_to_num(apart, nan=np.inf)
    place = int(np.argmax(apart))
    shown, expected = (f"{float(np.ravel(x)[place]):.6g}" for x in (replicated, reference))
    return Difference(kind, name, what, shown, expected, advice, _norm(apart))
