"""The first-step check on a mesh: the step as DTensor lays it out beside that of one device.

Which operation DTensor lays out wrongly is known when it has been seen. So the first step of every
model is compared: what it returns, metrics, the state of layers, and what it leaves in weights and
in the optimizer's slots, which are the gradients' means, squares or sums.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from tfaccel.distribute.broadcast import broadcast_text
from tfaccel.distribute.check import FirstSteps, difference_message, log_skipped
from tfaccel.distribute.differences import beyond_rounding, differences
from tfaccel.distribute.model_parallel.layer_attribution import first_divergent
from tfaccel.distribute.model_parallel.mesh_parity import MeshParityRun
from tfaccel.distribute.step_result import ParityRunError, StepResult, tolerance
from tfaccel.errors import CheckError

_ADVICE = (
    "keep the variables of such a layer whole by a rule of layouts=, write it with other "
    "operations, use another strategy, or leave the check out with check='off'"
)


class MeshChecks:
    """The checks of one strategy.

    Args:
        strategy: of a mesh.
    """

    def __init__(self, strategy: Any) -> None:
        self._strategy = strategy
        self._first_steps = FirstSteps()

    def check_first_step(self, model: Any, function: Callable[[Any], Any], batch: Any) -> None:
        """Compares the first step of `model` since it was compiled, before it is taken.

        Args:
            model: about to train.
            function: takes the step; it is given a list of batches.
            batch: the next one.

        Raises:
            CheckError: when the mesh would make other numbers than one device.
        """
        mode = self._strategy.check
        if mode == "off" or not self._first_steps.is_new(model):
            return
        try:
            self._compare(
                model, MeshParityRun(self._strategy, model, function, batch, mode == "auto")
            )
        except ParityRunError as reason:
            log_skipped(model, reason)

    def _compare(self, model: Any, parity: MeshParityRun) -> None:
        mesh_result = parity.on_mesh()
        found = self._from_chief(lambda: self._comparison(model, parity, mesh_result))
        if found.startswith("tfaccel: "):
            raise CheckError(f"{found}; {self._divergent_layer(model, parity)}; {_ADVICE}.")
        if found:
            raise ParityRunError(found)

    def _comparison(self, model: Any, parity: MeshParityRun, mesh_result: StepResult) -> str:
        """What differs, why nothing was compared, or nothing."""
        try:
            reference = parity.on_one_device()
        except ParityRunError as reason:
            return str(reason) or "it failed"
        differing = differences(mesh_result, reference, tolerance(model))
        if differing:
            with contextlib.suppress(ParityRunError):
                exact = parity.in_double_precision()
                differing = beyond_rounding(mesh_result, reference, exact, tolerance(model))
        where = f"on the mesh {self._strategy.planner.mesh}"
        return difference_message(differing[0], where) if differing else ""

    def _divergent_layer(self, model: Any, parity: MeshParityRun) -> str:
        """Which layer is to blame, as far as it can be told."""
        try:
            mesh_outputs = parity.layers_on_mesh()
        except Exception as reason:  # the same in all processes
            return f"which layer's output differs was not found ({type(reason).__name__})"

        def compared() -> str:
            try:
                reference = parity.layers_on_one_device()
            except ParityRunError as reason:
                return f"which layer's output differs was not found ({reason})"
            return first_divergent(model, mesh_outputs, reference, tolerance(model))

        return self._from_chief(compared)

    def _from_chief(self, text: Callable[[], str]) -> str:
        """What `text` gives in the first process, in all of them.

        Others may round to another side of the tolerance, or have less memory.
        """
        cluster = self._strategy.cluster
        if cluster is None:
            return text()
        return broadcast_text(self._strategy, text() if cluster.is_chief else "")
