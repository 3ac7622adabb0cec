"""How the values of replicas are reduced to one device's, depending on how a step is written.

There are two conventions. Keras's: a loss is a mean over the rows that the step sees. TensorFlow's:
a sum over those rows, divided by the rows of the *global* batch. Its graph does not show which one
a step follows; the first-step check (`first_step_check.py`) determines it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

WEIGHTED_MEAN, SUM, SCALED_MEAN = "weighted_mean", "sum", "scaled_mean"
"""WEIGHTED_MEAN: the mean over replicas, weighted by rows. SUM: the plain sum. SCALED_MEAN: the
mean weighted by rows, times the number of replicas: for values divided by that number."""


@dataclass(frozen=True)
class StepReductions:
    """The reductions of one model's step; `WEIGHTED_MEAN` where not listed.

    Attributes:
        gradients: of each call of `GradientTape.gradient`, in order.
        metrics: of metrics that get one number for the batch, by name.
        logs: by key.
        all_rows: whether every replica runs the step over all rows of the batch, since nothing else
            matches one device (`replicated_batch.py`).
    """

    gradients: tuple[str, ...] = ()
    metrics: Mapping[str, str] = field(default_factory=dict)
    logs: Mapping[str, str] = field(default_factory=dict)
    all_rows: bool = False

    def gradient(self, call: int) -> str:
        """The reduction of the gradient taken at this call."""
        return self.gradients[call] if call < len(self.gradients) else WEIGHTED_MEAN

    def __str__(self) -> str:
        """The reductions other than `WEIGHTED_MEAN`, for messages."""
        parts = [f"gradients {', '.join(self.gradients)}"] if self.gradients else []
        for kind in ("metrics", "logs"):
            parts += [
                f"{kind[:-1]} {name!r} {reduction}"
                for name, reduction in getattr(self, kind).items()
            ]
        return "; ".join(parts)

    def of(self, kind: str, name: str) -> str:
        """The reduction of one value; `kind` is the name of an attribute."""
        if kind == "gradients":
            return self.gradient(int(name))
        by_name: Mapping[str, str] = getattr(self, kind)
        return by_name.get(name, WEIGHTED_MEAN)

    def replaced(self, kind: str, name: str, reduction: str) -> StepReductions:
        """The same, with one reduction replaced."""
        if kind == "gradients":
            call = int(name)
            known = [self.gradient(i) for i in range(max(call + 1, len(self.gradients)))]
            known[call] = reduction
            return replace(self, gradients=tuple(known))
        if kind == "metrics":
            return replace(self, metrics={**self.metrics, name: reduction})
        return replace(self, logs={**self.logs, name: reduction})
