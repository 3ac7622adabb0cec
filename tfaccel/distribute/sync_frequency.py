"""How often replicas communicate."""

from __future__ import annotations

from dataclasses import dataclass

from tfaccel.errors import StrategyError


@dataclass(frozen=True)
class Frequency:
    """What is sent less often than every step.

    Attributes:
        gradient_accumulation: ``"local"``: an optimizer with `gradient_accumulation_steps` sums
            gradients over replicas only in the steps that update; ``"reduced"`` and None: in every
            step.
        local_steps: each replica updates its own copy for this many steps before the copies are
            averaged; 1: no local steps.

    >>> Frequency(gradient_accumulation="local").replicas_diverge, Frequency().replicas_diverge
    (True, False)
    """

    gradient_accumulation: str | None = None
    local_steps: int = 1

    def __post_init__(self) -> None:
        if self.gradient_accumulation == "local" and self.local_steps > 1:
            raise StrategyError(
                f"tfaccel: gradient_accumulation='local' and local_steps={self.local_steps} were "
                "requested together; expected one of them: under local steps no gradient is "
                "reduced."
            )

    @property
    def replicas_diverge(self) -> bool:
        """Whether replicas may hold different states between two steps."""
        return self.gradient_accumulation == "local" or self.local_steps > 1
