"""How what replicas say of a batch makes what one device says: as the user has written it.

There are two habits. Keras's: a loss is a mean over the rows that the step sees. TensorFlow's: a
sum over those rows, divided by the rows of the *global* batch. Which one a step follows cannot be
seen in its graph; the first-step check (`check.py`) finds it out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

ROWS, SUM, SCALED = "rows", "sum", "scaled"
"""ROWS: the mean over replicas, weighted by rows. SUM: the plain sum. SCALED: the mean weighted by
rows, times the number of replicas: what was divided by that number."""


@dataclass(frozen=True)
class Ways:
    """The ways of one model's step; `ROWS` for what is not named.

    Attributes:
        gradients: of each call of `GradientTape.gradient`, in order.
        metrics: of metrics that are told one number for the batch, by name.
        logs: by key.
        all_rows: whether every replica runs the step over all rows of the batch, since no other
            way makes one device's numbers (`all_rows.py`).
    """

    gradients: tuple[str, ...] = ()
    metrics: Mapping[str, str] = field(default_factory=dict)
    logs: Mapping[str, str] = field(default_factory=dict)
    all_rows: bool = False

    def gradient(self, call: int) -> str:
        """The way of the gradient that is taken at this call."""
        return self.gradients[call] if call < len(self.gradients) else ROWS

    def __str__(self) -> str:
        """What is not `ROWS`, for people."""
        said = [f"gradients {', '.join(self.gradients)}"] if self.gradients else []
        for kind in ("metrics", "logs"):
            said += [f"{kind[:-1]} {name!r} {way}" for name, way in getattr(self, kind).items()]
        return "; ".join(said)

    def of(self, kind: str, name: str) -> str:
        """The way of one thing; `kind` is the name of an attribute."""
        if kind == "gradients":
            return self.gradient(int(name))
        found: Mapping[str, str] = getattr(self, kind)
        return found.get(name, ROWS)

    def having(self, kind: str, name: str, way: str) -> Ways:
        """The same but for one thing."""
        if kind == "gradients":
            call = int(name)
            known = [self.gradient(i) for i in range(max(call + 1, len(self.gradients)))]
            known[call] = way
            return replace(self, gradients=tuple(known))
        if kind == "metrics":
            return replace(self, metrics={**self.metrics, name: way})
        return replace(self, logs={**self.logs, name: way})
