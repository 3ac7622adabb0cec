"""The first-step check on a mesh: the step as DTensor lays it out against that of one device.

Operations that DTensor lays out wrongly are only found by observation. So the first step of every
model is compared: its results, metrics, the state of layers, and the updated weights and optimizer
slots, which are the gradients' means, squares or sums. A user's `test_step` or `predict_step` is
compared before its first batch too, and so are Keras's where `evaluate` or `predict` is the first
call on a model.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from tfaccel.distribute.broadcast import broadcast_text
from tfaccel.distribute.checked_steps import CheckedSteps
from tfaccel.distribute.differences import Difference, differences
from tfaccel.distribute.first_step_check import difference_message, log_skipped
from tfaccel.distribute.model_parallel.host_parity import HostParityRun
from tfaccel.distribute.model_parallel.layer_attribution import first_divergent
from tfaccel.distribute.model_parallel.mesh_parity import MeshParityRun
from tfaccel.distribute.rounding import beyond_rounding
from tfaccel.distribute.step_result import ParityRunError, StepResult, tolerance
from tfaccel.errors import CheckError

_ADVICE = (
    "replicate the variables of that layer by a rule of layouts=, write it with other "
    "operations, use another strategy, or disable the check with check='off'"
)


class MeshChecks:
    """The checks of one strategy.

    Args:
        strategy: of a mesh.
    """

    def __init__(self, strategy: Any) -> None:
        self._strategy = strategy
        self._checked_steps = CheckedSteps()

    def verdict(self, model: Any) -> dict[str, Any]:
        """Whether the step of `model` was compared, for a file: a resumed run reuses it."""
        return {"compared": not self._checked_steps.is_pending(model, "train")}

    def keep_verdict(self, model: Any, verdict: dict[str, Any]) -> None:
        """Adopts an earlier run's verdict on the step of `model` on an equal mesh."""
        if verdict["compared"]:
            self._checked_steps.is_new(model, "train")

    def check_first_step(
        self, model: Any, kind: str, function: Callable[[Any], Any], batch: Any
    ) -> None:
        """Compares the first step of a kind since `model` was compiled, before it is taken.

        Args:
            model: about to take it.
            kind: of the step: ``"train"``, ``"test"`` or ``"predict"``.
            function: takes the step, from a list of batches.
            batch: the next one.

        Raises:
            CheckError: when the mesh would compute other numbers than one device.
        """
        mode = self._strategy.check
        if mode == "off" or not self._checked_steps.is_new(model, kind):
            return
        if self._checked_steps.is_known(model, kind):
            return
        limited = mode == "auto"
        try:
            self._compare(
                model, MeshParityRun(self._strategy, model, kind, function, batch, limited)
            )
        except ParityRunError as reason:
            log_skipped(model, reason)

    def _compare(self, model: Any, parity: MeshParityRun) -> None:
        mesh_result = parity.on_mesh()
        difference = self._from_chief(lambda: self._comparison(model, parity, mesh_result))
        if difference.startswith("tfaccel: "):
            raise CheckError(f"{difference}; {self._divergent_layer(model, parity)}; {_ADVICE}.")
        if difference:
            raise ParityRunError(difference)

    def _comparison(self, model: Any, parity: MeshParityRun, mesh_result: StepResult) -> str:
        """What differs, or why nothing was compared, or an empty result."""
        try:
            with parity.on_one_device() as alone:
                differing = self._differences(mesh_result, alone, tolerance(model))
        except ParityRunError as reason:
            return str(reason) or "it failed"
        where = f"on the mesh {self._strategy.planner.mesh}"
        return difference_message(differing[0], where) if differing else ""

    def _differences(
        self, mesh_result: StepResult, alone: HostParityRun, tolerance: float
    ) -> list[Difference]:
        reference = alone.in_single_precision()
        differing = differences(mesh_result, reference, tolerance)
        if differing:
            with contextlib.suppress(ParityRunError):
                in_double = alone.in_double_precision()
                exact = next(in_double)
                differing = beyond_rounding(mesh_result, reference, exact, in_double, tolerance)
        return differing

    def _divergent_layer(self, model: Any, parity: MeshParityRun) -> str:
        """Which layer differs first, where that can be determined."""
        try:
            mesh_outputs = parity.layers_on_mesh()
        except Exception as reason:  # the same in all processes
            return f"which layer's output differs was not found ({type(reason).__name__})"

        def compared() -> str:
            try:
                with parity.on_one_device() as alone:
                    reference = alone.layers()
            except ParityRunError as reason:
                return f"which layer's output differs was not found ({reason})"
            return first_divergent(model, mesh_outputs, reference, tolerance(model))

        return self._from_chief(compared)

    def _from_chief(self, text: Callable[[], str]) -> str:
        """The first process's result of `text`, on all processes.

        Others may round to the other side of the tolerance, or have less memory.
        """
        cluster = self._strategy.cluster
        if cluster is None:
            return text()
        return broadcast_text(self._strategy, text() if cluster.is_chief else "")
